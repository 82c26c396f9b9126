//! Commands in documents: what a reader is told to type must exist.

use std::path::Path;

/// A package and what of it can be run.
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) binaries: Vec<String>,
    pub(crate) tests: Vec<String>,
    pub(crate) runs_by_default: Option<String>,
}

/// The `cargo run` and `cargo test` commands in a document that name a package, a binary or a
/// test which is not there.
///
/// Read are code blocks and code in a line. A name in angle brackets stands for any name.
pub(crate) fn faults(document: &Path, text: &str, packages: &[Package]) -> Vec<String> {
    commands(text)
        .into_iter()
        .filter_map(|(line, command)| {
            let what = wrong(&command, packages)?;
            let document = document.display();
            Some(format!("{document}:{line}: `{}`: {what}: correct it", command.join(" ")))
        })
        .collect()
}

/// The words of each cargo command, and the line it begins in.
fn commands(text: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut in_block = false;
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
            continue;
        }
        if !in_block {
            // Every second piece between back-ticks is code.
            let code = line.split('`').skip(1).step_by(2);
            found.extend(code.filter_map(words).map(|words| (number + 1, words)));
            continue;
        }
        let mut whole = line.trim_end().to_owned();
        while whole.ends_with('\\') {
            whole.pop();
            let Some((_, next)) = lines.next() else { break };
            whole.push_str(next.trim_end());
        }
        found.extend(words(&whole).map(|words| (number + 1, words)));
    }
    found
}

/// The words of a command from `cargo` on, up to a comment or another command.
fn words(code: &str) -> Option<Vec<String>> {
    let mut words = code.split_whitespace().skip_while(|word| *word != "cargo").peekable();
    words.peek()?;
    let ends = |word: &&str| !word.starts_with('#') && !["&&", "|", ";", ">", "&"].contains(word);
    Some(words.take_while(ends).map(str::to_owned).collect())
}

/// What is wrong with a command.
fn wrong(command: &[String], packages: &[Package]) -> Option<String> {
    let subcommand = command.iter().skip(1).find(|word| !word.starts_with('+'))?;
    let runs = subcommand == "run";
    if !runs && subcommand != "test" {
        return None;
    }
    // After two dashes come the program's own arguments.
    let own: Vec<&str> = command.iter().map(String::as_str).take_while(|w| *w != "--").collect();
    let named = value(&own, &["-p", "--package"]);
    if named.is_some_and(is_any) {
        return None;
    }
    let candidates: Vec<&Package> =
        packages.iter().filter(|package| named.is_none_or(|name| package.name == name)).collect();
    if candidates.is_empty() {
        return Some(format!("there is no package {}", named.unwrap_or_default()));
    }
    if let Some(binary) = value(&own, &["--bin"]).filter(|name| !is_any(name)) {
        let exists = candidates.iter().any(|package| package.binaries.iter().any(|b| b == binary));
        return (!exists).then(|| format!("there is no binary {binary}"));
    }
    if let Some(test) = value(&own, &["--test"]).filter(|name| !is_any(name)) {
        let exists = candidates.iter().any(|package| package.tests.iter().any(|t| t == test));
        return (!exists).then(|| format!("there is no test {test}"));
    }
    let [package] = candidates.as_slice() else {
        return runs.then(|| "it does not say which package to run".to_owned());
    };
    let is_clear = package.runs_by_default.is_some() || package.binaries.len() == 1;
    (runs && !is_clear).then(|| format!("it does not say which binary of {}", package.name))
}

/// The value of an option, apart or behind an equals sign.
fn value<'a>(words: &[&'a str], names: &[&str]) -> Option<&'a str> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if names.contains(word) {
            return words.next().copied();
        }
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        if names.contains(&name) {
            return Some(value);
        }
    }
    None
}

fn is_any(name: &str) -> bool {
    name.starts_with('<')
}

#[cfg(test)]
fn wrong_in(text: &str) -> Vec<String> {
    let package = |name: &str, binaries: &[&str], tests: &[&str]| Package {
        name: name.to_owned(),
        binaries: binaries.iter().map(|&name| name.to_owned()).collect(),
        tests: tests.iter().map(|&name| name.to_owned()).collect(),
        runs_by_default: None,
    };
    let packages = [
        package("library", &[], &[]),
        package("relay", &["relay"], &[]),
        package("tests", &["node", "prove"], &["tidy"]),
    ];
    faults(Path::new("README.md"), text, &packages)
}

#[test]
fn a_command_that_exists_is_no_fault() {
    for command in [
        "cargo run -p relay",
        "cargo run --release -p relay -- --bin nothing",
        "$ cargo run --package=tests --bin prove -- giant",
        "cargo run --bin node",
        "cargo test --workspace",
        "RUST_LOG=info cargo test -p library some_name",
        "cargo test -p tests --test tidy # with -p nothing",
        "cargo +nightly build -p nothing",
        "cargo test -p <package>",
    ] {
        assert_eq!(wrong_in(&format!("```sh\n{command}\n```")), [""; 0], "{command}");
    }
}

#[test]
fn a_planted_command_is_found() {
    let check = |text: &str, expected: &str| {
        let found = wrong_in(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].contains(expected), "{found:?}");
    };

    check(
        "```\ncargo run -p rely\n```",
        "README.md:2: `cargo run -p rely`: there is no package rely",
    );
    check("Type `cargo test -p librari` now.", "README.md:1: ");
    check("```\ncargo run --release \\\n  -p rely\n```", "there is no package rely");
    check("`cargo run -p tests --bin proof`", "there is no binary proof");
    check("`cargo run -p relay --bin node`", "there is no binary node");
    check("`cargo test -p tests --test tidi`", "there is no test tidi");
    check("`cargo run -p tests`", "it does not say which binary of tests");
    check("`cargo run -p library`", "it does not say which binary of library");
    check("`cargo run`", "it does not say which package");
}
