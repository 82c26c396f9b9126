//! Sagas that are wrong do not compile, and the compiler says why in words that a person understands.
//!
//! Each file of `wrong_sagas/` holds one wrong saga; beside it stands what the compiler says. `RECORD=1` writes that
//! down anew. One run of the compiler takes them all: `trybuild` would build librdkafka and OpenSSL a second time.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "all of it is a test: what is not as it should be fails it"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// What a compiled crate is found by.
struct Externs {
    folder: PathBuf,
    saga: PathBuf,
    serde: PathBuf,
}

#[test]
fn wrong_sagas_do_not_compile_and_each_message_is_as_recorded() {
    let externs = externs();
    let names = names();
    assert!(names.len() >= 12, "{names:?}");

    let said = said(&compile(&externs, &root(&names)));

    let mut faults = Vec::new();
    for name in &names {
        let said = said.get(name).map(String::as_str).unwrap_or_default();
        let file = cases().join(format!("{name}.txt"));
        if std::env::var_os("RECORD").is_some() {
            fs::write(&file, said).unwrap();
        }
        let recorded = fs::read_to_string(&file).unwrap_or_default();
        if said.is_empty() || said != recorded {
            faults.push(format!("{name}: recorded\n{recorded}\nsaid\n{said}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wrong_sagas")
}

/// The wrong sagas; `given.rs` is what they have in common.
fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(cases())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != "given")
        .collect();
    names.sort();
    names
}

/// A crate of the given files.
fn root(names: &[String]) -> String {
    let module = |name: &str| {
        let path = cases().join(format!("{name}.rs"));
        format!("#[path = {path:?}] mod {name};\n")
    };
    let of_cases: String = names.iter().map(|name| module(name)).collect();
    format!("{}{of_cases}", module("given"))
}

/// The crates that cargo has built for this test. Of serde there may be several; the right one is that with which
/// a right saga compiles.
fn externs() -> Externs {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let newest = |prefix: &str| {
        let mut files: Vec<PathBuf> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                let name = path.file_name().unwrap().to_str().unwrap_or_default();
                name.starts_with(prefix) && name.ends_with(".rlib")
            })
            .collect();
        files.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
        files.reverse();
        files
    };
    let saga = newest("libtailrace_saga-").into_iter().next().expect("cargo has built the crate");
    let mut said = String::new();
    for serde in newest("libserde-") {
        let externs = Externs { folder: folder.clone(), saga: saga.clone(), serde };
        let output = compile(&externs, &root(&[]));
        if output.status.success() {
            return externs;
        }
        said = String::from_utf8_lossy(&output.stderr).into_owned();
    }
    panic!("a right saga does not compile: {said}");
}

fn compile(externs: &Externs, root: &str) -> Output {
    let folder = std::env::temp_dir().join(format!("wrong-sagas-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("lib.rs");
    fs::write(&file, root).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let extern_of = |name: &str, path: &Path| format!("{name}={}", path.display());
    let output = Command::new(rustc)
        .args([
            "--edition=2024",
            "--crate-type=lib",
            "--emit=metadata",
            "--error-format=json",
            "-Adead_code",
            "-Aunused",
        ])
        .arg("--extern")
        .arg(extern_of("tailrace_saga", &externs.saga))
        .arg("--extern")
        .arg(extern_of("serde", &externs.serde))
        .arg("-L")
        .arg(format!("dependency={}", externs.folder.display()))
        .arg("--out-dir")
        .arg(&folder)
        .arg(&file)
        .output()
        .expect("the compiler runs");
    fs::remove_dir_all(&folder).unwrap();
    output
}

/// What the compiler says of each file, without the paths of this machine.
fn said(output: &Output) -> BTreeMap<String, String> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        let message: Value = serde_json::from_str(line).unwrap();
        let span = &message["spans"][0]["file_name"];
        let Some(name) = span.as_str().and_then(|file| Path::new(file).file_stem()) else {
            continue;
        };
        let text = message["rendered"].as_str().unwrap();
        let text = text
            .replace(&format!("{}/", cases().display()), "")
            .replace(&format!("{}/", repository.display()), "");
        let text: String = text.lines().map(|line| without_place(line) + "\n").collect();
        said.entry(name.to_str().unwrap().to_owned()).or_default().push_str(&text);
    }
    said
}

/// The line without the place in a file of ours, which changes with everything that stands before it.
fn without_place(line: &str) -> String {
    let (is_ours, end) = (line.contains("saga/src/"), line.find(".rs:"));
    end.filter(|_| is_ours).map_or(line, |end| &line[..end + 3]).trim_end().to_owned()
}
