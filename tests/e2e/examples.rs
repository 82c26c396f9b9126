//! Each example says what its `expected.txt` says.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tailrace_stack::Stack;
use tokio::process::Command;

/// No example takes longer, on a busy machine and without optimisation.
const END_MAX: Duration = Duration::from_secs(180);

/// Stands for any text within a line.
const ANYTHING: char = '…';

#[tokio::test(flavor = "multi_thread")]
async fn every_example_says_what_is_expected_of_it() {
    let stack = Stack::shared().await;
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("examples");
    let entries = std::fs::read_dir(examples).expect("the examples are there");
    let mut running = tokio::task::JoinSet::new();
    for entry in entries {
        let folder = entry.expect("an entry can be read").path();
        // What has no number is no lesson: the shop has a test of its own.
        let is_numbered = entry_begins_with_a_digit(&folder);
        if is_numbered && folder.join("Cargo.toml").is_file() {
            running.spawn(fault_of(folder, stack.postgres().url(), stack.kafka().brokers()));
        }
    }
    assert!(running.len() > 1, "no examples were found");

    let faults: Vec<String> = running.join_all().await.into_iter().flatten().collect();

    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

/// Runs an example as the first line of what is expected of it says, and compares the rest.
async fn fault_of(folder: PathBuf, database_url: &str, brokers: &str) -> Option<String> {
    let name = folder.file_name().expect("a folder has a name").display().to_string();
    let Ok(expected) = std::fs::read_to_string(folder.join("expected.txt")) else {
        return Some(format!("{name} has no expected.txt: write down what it prints"));
    };
    let (command, expected) = expected.split_once('\n').unwrap_or_default();
    let begin = format!("$ cargo run --release -p example-{name}");
    let Some(arguments) = command.strip_prefix(&begin) else {
        return Some(format!("the first line of {name}'s expected.txt is not {begin:?}"));
    };
    let program = Path::new(env!("CARGO_BIN_EXE_node")).with_file_name(format!("example-{name}"));
    if is_older(&program, &folder.join("src")) {
        return Some(format!(
            "{} is missing or older than its source: `cargo test --workspace` builds it if {name} has the test \
             ../is_built.rs, and so does `cargo build -p example-{name}`",
            program.display()
        ));
    }
    let mut command = Command::new(program);
    command
        .args(arguments.split_whitespace().filter(|argument| *argument != "--"))
        .env("TAILRACE_STACK_DATABASE_URL", database_url)
        .env("TAILRACE_STACK_KAFKA_BROKERS", brokers)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let Ok(ended) = tokio::time::timeout(END_MAX, command.output()).await else {
        return Some(format!("{name} does not end within {END_MAX:?}"));
    };
    let output = ended.expect("the example starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let difference = difference(expected, &said);
    if output.status.success() && difference.is_none() {
        return None;
    }
    let (difference, log) =
        (difference.unwrap_or_default(), String::from_utf8_lossy(&output.stderr));
    Some(format!("{name} ended with {}: {difference}\n{said}\n{log}", output.status))
}

fn entry_begins_with_a_digit(folder: &Path) -> bool {
    let name = folder.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(|first: char| first.is_ascii_digit()))
}

fn is_older(program: &Path, sources: &Path) -> bool {
    let changed = |path: &Path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
    let files = std::fs::read_dir(sources).into_iter().flatten().flatten();
    let newest = files.filter_map(|file| changed(&file.path())).max();
    changed(program) < newest
}

/// The first line that is not as expected.
fn difference(expected: &str, said: &str) -> Option<String> {
    let (mut expected, mut said) = (expected.lines(), said.lines());
    loop {
        match (expected.next(), said.next()) {
            (None, None) => return None,
            (Some(expected), Some(said)) if fits(expected, said) => {}
            (expected, said) => return Some(format!("{expected:?} is expected and not {said:?}")),
        }
    }
}

fn fits(expected: &str, said: &str) -> bool {
    let (expected, said) = (expected.trim_end(), said.trim_end());
    let Some((first, rest)) = expected.split_once(ANYTHING) else { return expected == said };
    let (middle, last) = rest.rsplit_once(ANYTHING).unwrap_or(("", rest));
    let within = said.strip_prefix(first).and_then(|said| said.strip_suffix(last));
    let mut left = within;
    for part in middle.split(ANYTHING) {
        left = left.and_then(|said| said.split_once(part)).map(|(_, after)| after);
    }
    left.is_some()
}

#[test]
fn a_planted_difference_is_found() {
    assert_eq!(difference("a\nb … c…\n", "a\nb 1 c 2\n"), None);
    assert_eq!(difference("a…\n", "a\n"), None);

    for (expected, said) in
        [("a\n", "b\n"), ("a\n", ""), ("", "a\n"), ("a …c\n", "a b\n"), ("a\n", "ab\n")]
    {
        assert!(difference(expected, said).is_some(), "{expected:?} {said:?}");
    }
}
