//! The rules of a mapping.

use std::sync::Arc;

use super::{Column, ColumnType, Inner, Mapping, Part, Topic, must_be_name};
use crate::{Error, rules};

const JSON: &str = "application/json";

/// Parts without which there is no message.
const REQUIRED: [Part; 3] = [Part::Id, Part::Type, Part::Payload];

/// Collects what is known of a table. A part given twice counts as given last.
#[derive(Clone, Debug)]
#[must_use = "a builder makes no mapping before build"]
pub struct Builder {
    table: String,
    topic: Option<String>,
    columns: Vec<Column>,
    source: Option<String>,
    content_type: String,
    null_payload_is_tombstone: bool,
    id_header: Option<String>,
}

impl Builder {
    pub(super) fn new(table: String) -> Self {
        Builder {
            table,
            topic: None,
            columns: Vec::new(),
            source: None,
            content_type: JSON.to_owned(),
            null_payload_is_tombstone: false,
            id_header: None,
        }
    }

    /// The topic, as a pattern that may name one column of type `text`:
    /// `outbox.event.${aggregatetype}`, `${topic}`, or `orders` for all rows. Required.
    pub fn topic(mut self, pattern: impl Into<String>) -> Self {
        self.topic = Some(pattern.into());
        self
    }

    /// The column that holds a part. For [`Part::Topic`] there is [`Builder::topic`] instead.
    pub fn column(mut self, part: Part, name: impl Into<String>, r#type: ColumnType) -> Self {
        self.columns.retain(|column| column.part != part);
        self.columns.push(Column { part, name: name.into(), r#type });
        self
    }

    /// The source of rows that do not say it, as a URI reference. Default: `/` and the table, for
    /// example `/public.outbox`.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The content type of rows that do not say it. Default: `application/json`.
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = content_type.into();
        self
    }

    /// Whether a null payload is a tombstone. Default: it is an error, and with Debezium's layout
    /// a tombstone.
    pub fn null_payload_is_tombstone(mut self, is: bool) -> Self {
        self.null_payload_is_tombstone = is;
        self
    }

    /// A user header of the record that has the id once more, for consumers that know no `ce_id`.
    /// Empty for none. Default: none, and with Debezium's layout `id`.
    pub fn id_header(mut self, name: impl Into<String>) -> Self {
        self.id_header = Some(name.into()).filter(|name| !name.is_empty());
        self
    }

    /// Checks every rule and makes the mapping.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`](crate::Kind::Invalid) with every fault at once: the table is not named as
    /// `schema.table`, a name can not be one, a required part is missing, a column has a type that
    /// its part can not have, or one column is for two parts.
    pub fn build(mut self) -> Result<Mapping, Error> {
        let mut faults = Vec::new();
        let topic = self.judge_topic(&mut faults);
        if let Some(column) = topic.as_ref().and_then(Topic::column) {
            let name = column.to_owned();
            self.columns.push(Column { part: Part::Topic, name, r#type: ColumnType::Text });
        }
        let (schema, table) = self.judge_table(&mut faults);
        self.judge_columns(&mut faults);
        let source = self.source.unwrap_or_else(|| format!("/{}", self.table));
        for (what, text) in [("source", &source), ("content type", &self.content_type)] {
            if !rules::is_attribute_text(text) {
                faults.push(format!("the {what} is empty or contains a control character"));
            }
        }
        if let Some(name) = &self.id_header {
            faults.extend(rules::user_header(name, "").err().map(|error| error.to_string()));
        }
        match topic {
            Some(topic) if faults.is_empty() => Ok(Mapping(Arc::new(Inner {
                #[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
                statements: crate::outbox::rows::Statements::of(&schema, &table, &self.columns),
                schema,
                table,
                topic,
                columns: self.columns,
                source,
                content_type: self.content_type,
                null_payload_is_tombstone: self.null_payload_is_tombstone,
                id_header: self.id_header,
            }))),
            _ => Err(Error::invalid(format!(
                "the mapping of table {:?} can not be: {}",
                self.table,
                faults.join("; ")
            ))),
        }
    }

    fn judge_topic(&mut self, faults: &mut Vec<String>) -> Option<Topic> {
        let before = self.columns.len();
        self.columns.retain(|column| column.part != Part::Topic);
        if self.columns.len() < before {
            faults.push("the topic's column is named by its pattern, as ${column}".to_owned());
        }
        let Some(pattern) = &self.topic else {
            faults.push("there is no topic".to_owned());
            return None;
        };
        Topic::parse(pattern).map_err(|error| faults.push(error.to_string())).ok()
    }

    fn judge_table(&self, faults: &mut Vec<String>) -> (String, String) {
        let names = self.table.split_once('.').filter(|(_, table)| !table.contains('.'));
        let Some((schema, table)) = names else {
            faults.push("it is not named as schema.table, for example public.outbox".to_owned());
            return Default::default();
        };
        for (what, name) in [("schema", schema), ("table", table)] {
            faults.extend(must_be_name(what, name).err().map(|error| error.to_string()));
        }
        (schema.to_owned(), table.to_owned())
    }

    fn judge_columns(&self, faults: &mut Vec<String>) {
        let has = |part| self.columns.iter().any(|column| column.part == part);
        for part in REQUIRED.into_iter().filter(|part| !has(*part)) {
            faults.push(format!("no column holds the {}", part.name()));
        }
        if has(Part::Tombstone) && self.null_payload_is_tombstone {
            faults.push("a column and a null payload both say what a tombstone is".to_owned());
        }
        for (place, Column { part, name, r#type }) in self.columns.iter().enumerate() {
            faults.extend(must_be_name("column", name).err().map(|error| error.to_string()));
            if !part.types().contains(r#type) {
                let types: Vec<&str> = part.types().iter().map(|r#type| r#type.name()).collect();
                faults.push(format!(
                    "column {name:?} is {}, and the {} takes {}",
                    r#type.name(),
                    part.name(),
                    types.join(", ")
                ));
            }
            if self.columns.iter().skip(place + 1).any(|other| other.name == *name) {
                faults.push(format!("column {name:?} is for two parts"));
            }
        }
    }
}
