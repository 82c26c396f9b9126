//! Merges flags, environment and file into one configuration that knows where each value is from.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::file::File;
use super::settings::{Form, SETTINGS, Setting, VARIABLES};
use super::{Config, is_secret_property};
use crate::error::{Error, Kind};

/// Texts at least this alike are taken for a slip of the pen.
const ALIKE_MIN: f64 = 0.8;

/// Everything that was given, as it was given.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    pub(crate) file: Option<File>,
    /// Names and values of the environment; what is not for the relay is left alone.
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) flags: Vec<Given>,
}

/// A value of the command line.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) key: &'static str,
    pub(crate) flag: &'static str,
    /// In a table, the value's own name; else empty.
    pub(crate) name: String,
    pub(crate) text: String,
}

/// Where a value comes from; a later one wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    File { name: String, line: usize },
    Environment(String),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { name, line } => write!(f, "{name}:{line}"),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// A value that counts.
#[derive(Debug)]
pub(crate) struct Value {
    pub(crate) text: String,
    pub(crate) origin: Origin,
}

/// The configuration that follows, and where each of its values is from.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) config: Config,
    /// By the setting's place in [`SETTINGS`] and the value's own name.
    pub(crate) values: BTreeMap<(usize, String), Value>,
}

impl Layers {
    /// Merges the layers: a flag wins over the environment, that over the file, that over the
    /// default. Every fault of every layer is in the one error.
    pub(crate) fn settings(self) -> Result<Settings, Error> {
        let mut merging = Merging::default();
        if let Some(file) = &self.file {
            merging.file(file);
        }
        merging.environment(self.environment);
        for Given { key, flag, name, text } in self.flags {
            if let Some(at) = SETTINGS.iter().position(|setting| setting.key == key) {
                merging.put(at, name, text, Origin::Flag(flag));
            }
        }
        merging.settings()
    }
}

#[derive(Default)]
struct Merging {
    values: BTreeMap<(usize, String), Value>,
    faults: Vec<String>,
}

impl Merging {
    fn put(&mut self, at: usize, name: String, text: String, origin: Origin) {
        let flag = match origin {
            Origin::Flag(flag) if !name.is_empty() => Some(format!("--{flag} {name}")),
            _ => None,
        };
        let before = self.values.insert((at, name), Value { text, origin });
        // Which of two values was meant nobody can tell.
        if let (Some(flag), Some(Value { origin: Origin::Flag(_), .. })) = (flag, before) {
            self.faults.push(format!("{flag} is given twice"));
        }
    }

    fn file(&mut self, file: &File) {
        let (entries, faults) = file.entries();
        for fault in faults {
            self.faults.push(format!("{}:{}: {}", file.name, fault.line, fault.text));
        }
        for entry in entries {
            let path: Vec<&str> = entry.path.iter().map(String::as_str).collect();
            let origin = Origin::File { name: file.name.clone(), line: entry.line };
            match find(&path) {
                Some((at, name)) => self.put(at, name, entry.text, origin),
                None => {
                    let key = path.join(".");
                    let known = SETTINGS.iter().map(|setting| setting.key.to_owned());
                    let likely = suggestion(&key, known);
                    self.faults.push(format!("{origin}: {key:?} is no setting{likely}"));
                }
            }
        }
    }

    /// The common names first: the relay's own win over them.
    fn environment(&mut self, variables: Vec<(String, String)>) {
        let given = |(_, text): &&(String, String)| !text.is_empty();
        for (name, text) in variables.iter().filter(given) {
            let known = SETTINGS.iter().position(|setting| setting.common == Some(name));
            if let Some(at) = known {
                self.put(at, String::new(), text.clone(), Origin::Environment(name.clone()));
            }
        }
        for (variable, text) in variables.iter().filter(given) {
            let Some(rest) = variable.strip_prefix(VARIABLES) else { continue };
            let lower = rest.to_lowercase();
            let path: Vec<&str> = lower.split("__").collect();
            if let Some(at) = whole_table(&path) {
                self.table(at, variable, text);
                continue;
            }
            match find(&path) {
                Some((at, name)) => {
                    // The names of Kafka's settings have dots, which a variable can not have.
                    let name = name.replace('_', ".");
                    let origin = Origin::Environment(variable.clone());
                    self.put(at, name, text.clone(), origin);
                }
                None => {
                    let likely = suggestion(variable, SETTINGS.iter().map(Setting::variable));
                    self.faults.push(format!("environment: {variable} is no setting{likely}"));
                }
            }
        }
    }

    /// Several values of a table in one variable, each on a line as a flag takes it.
    fn table(&mut self, at: usize, variable: &str, text: &str) {
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match line.split_once('=') {
                Some((name, value)) if !name.trim().is_empty() => {
                    let origin = Origin::Environment(variable.to_owned());
                    self.put(at, name.trim().to_owned(), value.to_owned(), origin);
                }
                // Not shown: it may be a secret.
                _ => self.faults.push(format!(
                    "environment: {variable} has a line that is not of the form name=value"
                )),
            }
        }
    }

    fn settings(mut self) -> Result<Settings, Error> {
        let mut config = Config::new("", "");
        for ((at, name), value) in &self.values {
            let setting = SETTINGS.get(*at).expect("a value is of a setting");
            let texts: Vec<&str> = match setting.form {
                Form::Many => value.text.split(',').map(str::trim).collect(),
                Form::One | Form::Table => vec![value.text.as_str()],
            };
            for text in texts {
                match (setting.set)(config.clone(), name, text) {
                    Ok(set) => config = set,
                    Err(fault) => {
                        self.faults.push(format!("{} ({}): {fault}", setting.key, value.origin));
                    }
                }
            }
        }
        for (key, fault) in config.faults() {
            let at = SETTINGS.iter().position(|setting| setting.key == key).unwrap_or_default();
            let mut values = self.values.range((at, String::new())..(at + 1, String::new()));
            // Of a table, the value that the fault names.
            let value = match values.clone().count() {
                0 | 1 => values.next(),
                _ => values.find(|((_, name), _)| fault.contains(name.as_str())),
            };
            self.faults.push(match value {
                Some((_, value)) => format!("{key} ({}): {fault}", value.origin),
                None => format!("{key}: {fault}"),
            });
        }
        if self.faults.is_empty() {
            return Ok(Settings { config, values: self.values });
        }
        Err(Error::new(Kind::Config, self.faults.join("\n"))
            .hint("correct what is named; cdc-relay help shows every setting"))
    }
}

/// Settings that say which relay this is, another value being another relay, and where its process
/// answers, which holds for all of its life.
const IDENTITY: [&str; 6] =
    ["relay.id", "relay.slot", "relay.prefix", "http.address", "http.token", "http.token_file"];

impl Settings {
    /// The keys whose values differ, those of the relay's identity first.
    pub(crate) fn changed(&self, other: &Settings) -> (Vec<String>, Vec<String>) {
        let text = |settings: &Settings, at: &(usize, String)| {
            settings.values.get(at).map(|value| value.text.clone())
        };
        let mut all: BTreeSet<&(usize, String)> = self.values.keys().collect();
        all.extend(other.values.keys());
        let changed = all.into_iter().filter(|at| text(self, at) != text(other, at));
        let keys = changed.map(|(at, name)| {
            let key = SETTINGS.get(*at).expect("a value is of a setting").key;
            if name.is_empty() { key.to_owned() } else { format!("{key}.{name}") }
        });
        keys.partition(|key| IDENTITY.contains(&key.as_str()))
    }

    /// One line for each setting: key, value and where it is from; secrets are hidden.
    pub(crate) fn lines(&self) -> Vec<(String, String, String)> {
        let mut lines = Vec::new();
        for (at, setting) in SETTINGS.iter().enumerate() {
            let values = self.values.range((at, String::new())..(at + 1, String::new()));
            let before = lines.len();
            for ((_, name), value) in values {
                let (key, secret) = match setting.form {
                    Form::Table => (format!("{}.{name}", setting.key), is_secret_property(name)),
                    Form::One | Form::Many => (setting.key.to_owned(), setting.secret),
                };
                let shown = match secret {
                    true => self.config.without_secret(setting.key),
                    false => value.text.clone(),
                };
                lines.push((key, shown, value.origin.to_string()));
            }
            if lines.len() == before && setting.form == Form::One {
                lines.push((
                    setting.key.to_owned(),
                    setting.default.to_owned(),
                    Origin::Default.to_string(),
                ));
            }
        }
        lines
    }
}

/// The setting that a path names, and in a table the value's own name.
fn find(path: &[&str]) -> Option<(usize, String)> {
    let (table, rest) = path.split_first()?;
    let (key, name) = rest.split_first()?;
    let key = format!("{table}.{key}");
    let at = SETTINGS.iter().position(|setting| setting.key == key)?;
    let is_table = SETTINGS.get(at)?.form == Form::Table;
    (is_table != name.is_empty()).then(|| (at, name.join(".")))
}

/// The setting that a path names, if it is a table as a whole.
fn whole_table(path: &[&str]) -> Option<usize> {
    let key = path.join(".");
    SETTINGS.iter().position(|setting| setting.form == Form::Table && setting.key == key)
}

fn suggestion(wrong: &str, known: impl Iterator<Item = String>) -> String {
    let alike = |known: String| (strsim::jaro_winkler(wrong, &known), known);
    let best = known.map(alike).max_by(|(one, _), (other, _)| one.total_cmp(other));
    match best {
        Some((alike, known)) if alike >= ALIKE_MIN => format!("; did you mean {known}?"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
