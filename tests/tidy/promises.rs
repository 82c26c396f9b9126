//! Promises: the tests that docs/guarantees.md names must exist.

use crate::files::SourceFile;

/// A name between back-ticks with so many words is the name of a test: a claim is a sentence.
const WORDS_MIN: usize = 4;

/// The tests that a document names and no file defines.
pub(crate) fn faults(document: &SourceFile, files: &[SourceFile]) -> Vec<String> {
    let defined = |test: &str| {
        let definition = format!("fn {test}(");
        files.iter().any(|file| is_rust(file) && file.text.contains(&definition))
    };
    document
        .text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| is_test_name(code) && !defined(code))
        .map(|test| {
            format!("{}: there is no test {test}: name the right one", document.path.display())
        })
        .collect()
}

fn is_rust(file: &SourceFile) -> bool {
    file.path.extension().is_some_and(|extension| extension == "rs")
}

fn is_test_name(code: &str) -> bool {
    let is_name =
        code.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    is_name && code.split('_').count() >= WORDS_MIN
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::faults;
    use crate::files::SourceFile;

    #[test]
    fn a_promise_whose_test_is_gone_is_found() {
        let file = |path: &str, text: &str| SourceFile {
            path: PathBuf::from(path),
            text: text.to_owned(),
        };
        let document =
            file("docs/guarantees.md", "`it_is_so_for_all` `it_is_gone_for_good` `wal_level`");
        let code = file("a.rs", "fn it_is_so_for_all() {}");

        let found = faults(&document, &[code]);

        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("it_is_gone_for_good"));
    }
}
