//! The pattern of a topic, and the column that it names.

use crate::{Error, topic};

/// `before${column}after`, or a topic without a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Topic {
    before: String,
    column: Option<String>,
    after: String,
}

impl Topic {
    pub(super) fn parse(pattern: &str) -> Result<Self, Error> {
        let Some((before, rest)) = pattern.split_once("${") else {
            topic::validate(pattern)?;
            return Ok(Topic { before: pattern.to_owned(), column: None, after: String::new() });
        };
        let wrong = |what: &str| {
            Error::invalid(format!("the topic's pattern {pattern:?} {what}"))
                .mended_by("name one column, as in outbox.event.${aggregatetype}")
        };
        let (column, after) = rest.split_once('}').ok_or_else(|| wrong("does not end a ${"))?;
        if after.contains("${") {
            return Err(wrong("names more than one column"));
        }
        super::must_be_name("column of the topic", column)?;
        // With one letter for the column: the text of a row is judged with the row.
        topic::validate(&format!("{before}x{after}"))?;
        Ok(Topic {
            before: before.to_owned(),
            column: Some(column.to_owned()),
            after: after.to_owned(),
        })
    }

    pub(super) fn column(&self) -> Option<&str> {
        self.column.as_deref()
    }

    pub(super) fn push(&self, value: &str, into: &mut String) {
        into.push_str(&self.before);
        if self.column.is_some() {
            into.push_str(value);
        }
        into.push_str(&self.after);
    }

    /// What the column must hold for this topic, empty without a column; `None` if the pattern
    /// does not lead to it.
    #[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
    pub(crate) fn value_of<'t>(&self, topic: &'t str) -> Option<&'t str> {
        let value = topic.strip_prefix(self.before.as_str())?.strip_suffix(self.after.as_str())?;
        (value.is_empty() == self.column.is_none()).then_some(value)
    }
}

impl std::fmt::Display for Topic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.before)?;
        if let Some(column) = &self.column {
            write!(f, "${{{column}}}")?;
        }
        f.write_str(&self.after)
    }
}
