//! What holds for the repository as a whole and no compiler checks.
//!
//! Each check is a pure function from what it reads to a list of faults, and beside it stands a
//! test with a planted fault. The tests of this file read the real repository and show every
//! fault at once, each with the way to mend it.

#[path = "tidy/commands.rs"]
mod commands;
#[path = "tidy/edges.rs"]
mod edges;
#[path = "tidy/files.rs"]
mod files;
#[path = "tidy/promises.rs"]
mod promises;
#[path = "tidy/reach.rs"]
mod reach;

use std::process::Command;

use cargo_metadata::camino::Utf8PathBuf;
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

use commands::Package;
use edges::Edge;
use files::SourceFile;

#[test]
fn packages_depend_on_each_other_as_the_architecture_allows() {
    let metadata = metadata();

    let packages: Vec<&str> =
        metadata.packages.iter().map(|package| package.name.as_str()).collect();

    show(&edges::faults(&packages, &edges_between(&metadata)));
}

#[test]
fn no_package_reaches_what_its_users_must_not_compile() {
    let root = metadata().workspace_root;

    let faults = reach::RULES
        .iter()
        .flat_map(|rule| reach::faults(rule, &tree(&root, rule)))
        .collect::<Vec<_>>();

    show(&faults);
}

#[test]
fn files_are_named_for_what_they_do_and_short_enough_to_read() {
    let files = files::read(metadata().workspace_root.as_std_path());

    let faults = [files::banned_names(&files), files::too_long(&files)].concat();

    show(&faults);
}

#[test]
fn no_file_names_a_path_of_one_machine() {
    let files = files::read(metadata().workspace_root.as_std_path());

    show(&files::machine_paths(&files));
}

#[test]
fn every_command_in_a_document_exists() {
    let metadata = metadata();
    let files = files::read(metadata.workspace_root.as_std_path());

    let faults = files
        .iter()
        .filter(|file| is_document(file))
        .flat_map(|file| commands::faults(&file.path, &file.text, &packages(&metadata)))
        .collect::<Vec<_>>();

    show(&faults);
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let files = files::read(metadata().workspace_root.as_std_path());
    let document = files.iter().find(|file| file.path.ends_with("docs/guarantees.md"));

    show(&promises::faults(document.expect("the promises are written down"), &files));
}

#[track_caller]
fn show(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n- {}\n", faults.len(), faults.join("\n- "));
}

/// The workspace's own packages; their dependencies need not be downloaded for it.
fn metadata() -> Metadata {
    MetadataCommand::new()
        .no_deps()
        .other_options(["--offline".to_owned()])
        .exec()
        .expect("cargo describes this workspace")
}

fn edges_between(metadata: &Metadata) -> Vec<Edge> {
    let is_ours =
        |name: &str| metadata.packages.iter().any(|package| package.name.as_str() == name);
    metadata
        .packages
        .iter()
        .flat_map(|package| {
            package.dependencies.iter().filter(|edge| is_ours(&edge.name)).map(|edge| Edge {
                from: package.name.to_string(),
                to: edge.name.clone(),
                for_tests_only: edge.kind == DependencyKind::Development,
            })
        })
        .collect()
}

fn packages(metadata: &Metadata) -> Vec<Package> {
    metadata
        .packages
        .iter()
        .map(|package| {
            let named = |is_kind: fn(&cargo_metadata::Target) -> bool| {
                package.targets.iter().filter(|t| is_kind(t)).map(|t| t.name.clone()).collect()
            };
            Package {
                name: package.name.to_string(),
                binaries: named(cargo_metadata::Target::is_bin),
                tests: named(cargo_metadata::Target::is_test),
                runs_by_default: package.default_run.clone(),
            }
        })
        .collect()
}

/// What the package compiles for its users, with the features of the rule and no others: the
/// features that some other package of the workspace turns on do not count.
fn tree(root: &Utf8PathBuf, rule: &reach::Rule) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .current_dir(root)
        .args(["tree", "--offline", "--edges", "normal,build", "--prefix", "depth"])
        .args(["--package", rule.package])
        .args(rule.features)
        .output()
        .expect("cargo runs, as it runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo writes UTF-8")
}

fn is_document(file: &SourceFile) -> bool {
    file.path.extension().is_some_and(|extension| extension == "md")
}
