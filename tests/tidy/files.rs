//! Names, lengths and contents of the files in the repository.

use std::fs;
use std::path::{Path, PathBuf};

/// A text file; its path is relative to the root of the repository.
pub(crate) struct SourceFile {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// A file longer than that is not read in one sitting.
const LINES_MAX: usize = 800;

/// Beginnings of names that say nothing about what is inside.
const BANNED: &[&str] = &["util", "common", "helper", "types", "misc", "manager"];

/// Folders that belong to one person or one machine. In pieces, so that this file has none.
const MACHINE: &[&str] = &[
    concat!("/home", "/"),
    concat!("/Users", "/"),
    concat!("/root", "/"),
    concat!("/work", "/"),
    concat!("/var/tmp", "/"),
    concat!("C:\\", "Users\\"),
];

/// Every text file below `root`, but for version control and what cargo built.
pub(crate) fn read(root: &Path) -> Vec<SourceFile> {
    let mut folders = vec![root.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository can be read") {
            let path = entry.expect("an entry of a folder can be read").path();
            if path.is_symlink() || path.ends_with(".git") {
                continue;
            }
            if path.is_dir() {
                // Cargo and other tools mark a folder that can be made again by this file.
                if !path.join("CACHEDIR.TAG").exists() && !path.ends_with("target") {
                    folders.push(path);
                }
                continue;
            }
            // What is not text has neither lines nor commands.
            if let Ok(text) = fs::read_to_string(&path) {
                let path = path.strip_prefix(root).expect("below the root").to_owned();
                files.push(SourceFile { path, text });
            }
        }
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    files
}

/// Rust files and folders with a name that says nothing.
pub(crate) fn banned_names(files: &[SourceFile]) -> Vec<String> {
    let is_banned = |part: &Path| {
        let name = part.to_string_lossy().to_lowercase();
        BANNED.iter().any(|banned| name.starts_with(banned))
    };
    rust(files)
        .filter(|file| file.path.iter().any(|part| is_banned(Path::new(part))))
        .map(|file| {
            format!(
                "{}: rename it after the one thing it does (no {})",
                file.path.display(),
                BANNED.join(", ")
            )
        })
        .collect()
}

/// Rust files over [`LINES_MAX`] lines.
pub(crate) fn too_long(files: &[SourceFile]) -> Vec<String> {
    rust(files)
        .map(|file| (file, file.text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(file, lines)| {
            format!(
                "{}: {lines} lines, at most {LINES_MAX}: move one of its concepts to a file of \
                 its own",
                file.path.display()
            )
        })
        .collect()
}

/// Lines that name a folder which exists on one machine only.
pub(crate) fn machine_paths(files: &[SourceFile]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        for (number, line) in file.text.lines().enumerate() {
            if let Some(path) = MACHINE.iter().find(|path| begins_in(line, path)) {
                found.push(format!(
                    "{}:{}: names {path}, a path of one machine: derive it from the \
                     environment, or make it relative",
                    file.path.display(),
                    number + 1
                ));
            }
        }
    }
    found
}

/// Whether an absolute path begins with `start` somewhere in the line: not the middle of a longer
/// path or of an address.
fn begins_in(line: &str, start: &str) -> bool {
    line.match_indices(start).any(|(at, _)| {
        let before = line.get(..at).and_then(|before| before.chars().next_back());
        !before.is_some_and(|c| c.is_alphanumeric() || "._-~}/*".contains(c))
    })
}

fn rust(files: &[SourceFile]) -> impl Iterator<Item = &SourceFile> {
    files.iter().filter(|file| file.path.extension().is_some_and(|extension| extension == "rs"))
}

#[cfg(test)]
fn planted(path: &str, text: &str) -> Vec<SourceFile> {
    vec![SourceFile { path: PathBuf::from(path), text: text.to_owned() }]
}

#[test]
fn a_planted_name_is_found() {
    for bad in ["a/src/util.rs", "a/src/utils/x.rs", "common.rs", "a/Helpers.rs", "misc_io.rs"] {
        assert_eq!(banned_names(&planted(bad, "")).len(), 1, "{bad}");
    }
    for good in ["a/src/lane.rs", "a/src/uncommon.rs", "util.md", "a/src/subtypes.rs"] {
        assert_eq!(banned_names(&planted(good, "")).len(), 0, "{good}");
    }
}

#[test]
fn a_planted_long_file_is_found() {
    assert_eq!(too_long(&planted("a.rs", &"x\n".repeat(LINES_MAX))).len(), 0);
    assert_eq!(too_long(&planted("a.sql", &"x\n".repeat(LINES_MAX + 1))).len(), 0);

    let found = too_long(&planted("a.rs", &"x\n".repeat(LINES_MAX + 1)));

    assert!(found[0].starts_with("a.rs: 801 lines"), "{found:?}");
}

#[test]
fn a_planted_machine_path_is_found() {
    for start in MACHINE {
        let found = machine_paths(&planted("a.toml", &format!("x\npath = \"{start}mine\"")));
        assert!(found[0].starts_with("a.toml:2: names "), "{found:?}");
    }
    for start in MACHINE {
        let inside = format!("see https://example.org{start}mine and ${{BASE}}{start}x");
        assert_eq!(machine_paths(&planted("a.md", &inside)).len(), 0, "{inside}");
    }
}
