//! Reads the configuration file into lines of `key = value`, each with its place.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A configuration file as it was read.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// Its path, for messages.
    pub(crate) name: String,
    /// What is in it.
    pub(crate) text: String,
}

/// A value of the file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The names of its tables and its own: `["relay", "slot"]`.
    pub(crate) path: Vec<String>,
    pub(crate) text: String,
    pub(crate) line: usize,
}

/// A fault of the file's form.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FormFault {
    pub(crate) line: usize,
    pub(crate) text: String,
}

impl File {
    /// Its values, and every fault of its form.
    pub(crate) fn entries(&self) -> (Vec<Entry>, Vec<FormFault>) {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        let line = |at: usize| self.text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
        let mut faults: Vec<FormFault> = errors
            .iter()
            .map(|error| FormFault {
                line: error.span().map_or(1, |span| line(span.start)),
                text: error.message().to_owned(),
            })
            .collect();
        let mut entries = Vec::new();
        let mut path = Vec::new();
        // What is left of a broken file is not what was meant.
        if faults.is_empty() {
            walk(table.get_ref(), &mut path, &line, &mut entries, &mut faults);
        }
        (entries, faults)
    }
}

fn walk(
    table: &DeTable<'_>,
    path: &mut Vec<String>,
    line: &impl Fn(usize) -> usize,
    entries: &mut Vec<Entry>,
    faults: &mut Vec<FormFault>,
) {
    for (name, value) in table {
        path.push(name.get_ref().to_string());
        match value.get_ref() {
            DeValue::Table(table) => walk(table, path, line, entries, faults),
            other => {
                let line = line(name.span().start);
                match text(other) {
                    Some(text) => entries.push(Entry { path: path.clone(), text, line }),
                    None => faults.push(FormFault {
                        line,
                        text: format!(
                            "{}: a {} is no value here",
                            path.join("."),
                            other.type_str()
                        ),
                    }),
                }
            }
        }
        path.pop();
    }
}

/// The value as it would stand in the environment.
fn text(value: &DeValue<'_>) -> Option<String> {
    Some(match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Array(values) => {
            let texts: Option<Vec<String>> =
                values.iter().map(Spanned::get_ref).map(text).collect();
            texts?.join(",")
        }
        DeValue::Datetime(_) | DeValue::Table(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{Entry, File};

    fn file(text: &str) -> File {
        File { name: "relay.toml".to_owned(), text: text.to_owned() }
    }

    #[test]
    fn tables_dots_and_lists_are_all_the_same() {
        let (entries, faults) = file(
            "[kafka]\nbrokers = ['a:1', 'b:2']\nproperties.'sasl.username' = 'me'\n\
             [kafka.properties]\nsasl.mechanism = 'PLAIN'\n",
        )
        .entries();
        // A table may not be written in two ways: that is TOML's rule.
        assert_eq!((entries.len(), faults.len()), (0, 1), "{faults:?}");

        let (entries, faults) = file(
            "relay.init = false\n[transaction]\nmax_records = 5\n[kafka]\nbrokers = ['a:1', 'b:2']\n\
             properties.'sasl.username' = 'me'\nproperties.sasl.mechanism = 'PLAIN'\n",
        )
        .entries();
        assert_eq!(faults, []);
        let mut shown: Vec<String> = entries
            .iter()
            .map(|Entry { path, text, line }| format!("{line} {} {text}", path.join(".")))
            .collect();
        shown.sort();
        assert_eq!(
            shown,
            [
                "1 relay.init false",
                "3 transaction.max_records 5",
                "5 kafka.brokers a:1,b:2",
                "6 kafka.properties.sasl.username me",
                "7 kafka.properties.sasl.mechanism PLAIN",
            ]
        );
    }

    #[test]
    fn every_fault_of_the_form_is_told_with_its_line() {
        let (_, faults) = file("[relay]\nslot = \nprefix = 'a\n").entries();
        let lines: Vec<usize> = faults.iter().map(|fault| fault.line).collect();
        assert_eq!(lines, [2, 3], "{faults:?}");

        let (_, faults) = file("relay.slot = 2026-01-01\n").entries();
        assert!(faults[0].text.contains("relay.slot"), "{faults:?}");
    }
}
