//! Which column of a table holds which part of a message.
//!
//! A table that exists already, and that services or other tools know, can be the place of a
//! message: the writer inserts a row of it, and the relay makes a record of every row that is
//! inserted, whoever did it. Both are told by the same [`Mapping`].
//!
//! ```
//! use tailrace_outbox::mapping::{ColumnType, Mapping, Part};
//!
//! // Debezium's outbox table: id, aggregatetype, aggregateid, type, payload.
//! let theirs = Mapping::debezium("public.outbox").source("/orders").build()?;
//!
//! let ours = Mapping::builder("shop.events")
//!     .topic("${stream}")
//!     .column(Part::Id, "event_id", ColumnType::Uuid)
//!     .column(Part::Key, "order_no", ColumnType::Text)
//!     .column(Part::Type, "kind", ColumnType::Text)
//!     .column(Part::Payload, "body", ColumnType::Jsonb)
//!     .source("/shop")
//!     .build()?;
//!
//! // The same for settings that are text.
//! let text = "shop.events=topic=${stream}, id:event_id:uuid, key:order_no:text, type:kind:text, \
//!             payload:body:jsonb, source=/shop";
//! assert_eq!(ours, text.parse::<Mapping>()?);
//! # Ok::<(), tailrace_outbox::Error>(())
//! ```
//!
//! # What a row says, and what it does not
//!
//! - Id, type, payload and topic are required; the other parts may be left out. A message that has
//!   a part for which there is no column is refused by the writer with
//!   [`Kind::Unmapped`](crate::Kind::Unmapped), and so is one whose source or content type is
//!   another than the mapping's where the row does not say it.
//! - The topic is a pattern such as `outbox.event.${aggregatetype}`: the column's text stands where
//!   the pattern names it. A pattern of a column alone (`${topic}`) is a column of topics, and one
//!   without any is one topic for all rows.
//! - Without a column for the time a record has that of the commit.
//! - A payload in a column of type `jsonb` is published as Postgres writes it, which is not byte by
//!   byte what was given: blanks, the order of names and numbers may differ. `json`, `text` and
//!   `bytea` keep every byte.
//! - A null payload is a tombstone if [`Builder::null_payload_is_tombstone`] says so, or if a column
//!   for [`Part::Tombstone`] does; otherwise it is an error.

use std::sync::Arc;

use crate::Error;
use crate::schema::Schema;

mod builder;
mod text;
mod topic;

pub use builder::Builder;
pub(crate) use topic::Topic;

/// A part of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Part {
    /// The id: `uuid`, or `text` that is one. Required.
    Id,
    /// When it was written: `timestamptz`.
    CreatedAt,
    /// What stands for the column in the topic's pattern: `text`. Given by [`Builder::topic`].
    Topic,
    /// The key: `text`, `bytea` or `uuid`.
    Key,
    /// The type: `text`. Required.
    Type,
    /// The source: `text`; a null stands for [`Builder::source`].
    Source,
    /// The subject: `text`.
    Subject,
    /// The content type: `text`; a null stands for [`Builder::content_type`].
    ContentType,
    /// The system attributes: `json` or `jsonb`, an object of strings.
    Attributes,
    /// The user headers: `json` or `jsonb`, an object of strings.
    Headers,
    /// Whether it is a tombstone: `boolean`.
    Tombstone,
    /// The payload: `jsonb`, `json`, `text` or `bytea`. Required.
    Payload,
}

impl Part {
    /// How many there are.
    pub const COUNT: usize = Part::ALL.len();

    const ALL: [Part; 12] = [
        Part::Id,
        Part::CreatedAt,
        Part::Topic,
        Part::Key,
        Part::Type,
        Part::Source,
        Part::Subject,
        Part::ContentType,
        Part::Attributes,
        Part::Headers,
        Part::Tombstone,
        Part::Payload,
    ];

    /// Its name, as settings and errors have it; the journal calls its column so.
    pub fn name(self) -> &'static str {
        match self {
            Part::Id => "id",
            Part::CreatedAt => "created_at",
            Part::Topic => "topic",
            Part::Key => "key",
            Part::Type => "type",
            Part::Source => "source",
            Part::Subject => "subject",
            Part::ContentType => "content_type",
            Part::Attributes => "attributes",
            Part::Headers => "headers",
            Part::Tombstone => "tombstone",
            Part::Payload => "payload",
        }
    }

    /// The types that a column for it may have, the usual one first.
    fn types(self) -> &'static [ColumnType] {
        use ColumnType::{Boolean, Bytea, Json, Jsonb, Text, Timestamptz, Uuid};
        match self {
            Part::Id => &[Uuid, Text],
            Part::CreatedAt => &[Timestamptz],
            Part::Topic | Part::Type | Part::Source | Part::Subject | Part::ContentType => &[Text],
            Part::Key => &[Text, Bytea, Uuid],
            Part::Attributes | Part::Headers => &[Jsonb, Json],
            Part::Tombstone => &[Boolean],
            Part::Payload => &[Jsonb, Json, Text, Bytea],
        }
    }
}

/// The type of a mapped column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ColumnType {
    /// `uuid`.
    Uuid,
    /// `text`, `varchar`, and whatever else is a string to Postgres.
    Text,
    /// `bytea`.
    Bytea,
    /// `json`: kept as it was given.
    Json,
    /// `jsonb`: kept in Postgres' own form.
    Jsonb,
    /// `timestamptz`.
    Timestamptz,
    /// `boolean`.
    Boolean,
}

impl ColumnType {
    const ALL: [ColumnType; 7] = [
        ColumnType::Uuid,
        ColumnType::Text,
        ColumnType::Bytea,
        ColumnType::Json,
        ColumnType::Jsonb,
        ColumnType::Timestamptz,
        ColumnType::Boolean,
    ];

    /// Its name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            ColumnType::Uuid => "uuid",
            ColumnType::Text => "text",
            ColumnType::Bytea => "bytea",
            ColumnType::Json => "json",
            ColumnType::Jsonb => "jsonb",
            ColumnType::Timestamptz => "timestamptz",
            ColumnType::Boolean => "boolean",
        }
    }
}

/// A mapped column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    part: Part,
    name: String,
    r#type: ColumnType,
}

impl Column {
    /// The part that it holds.
    pub fn part(&self) -> Part {
        self.part
    }

    /// Its name, as the catalog has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its type.
    pub fn r#type(&self) -> ColumnType {
        self.r#type
    }
}

/// Which column of a table holds which part of a message. Cheap to clone.
///
/// Made by [`Mapping::builder`], by a preset ([`Mapping::debezium`], [`Mapping::journal`]), or from
/// text; one that exists keeps every rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping(Arc<Inner>);

#[derive(Debug, PartialEq, Eq)]
struct Inner {
    schema: String,
    table: String,
    topic: Topic,
    columns: Vec<Column>,
    source: String,
    content_type: String,
    null_payload_is_tombstone: bool,
    id_header: Option<String>,
    #[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
    statements: crate::outbox::rows::Statements,
}

impl Mapping {
    /// Begins the mapping of a table, named with its schema: `public.outbox`.
    pub fn builder(table: impl Into<String>) -> Builder {
        Builder::new(table.into())
    }

    /// Begins with the table that Debezium's outbox event router reads by default.
    ///
    /// Columns `id uuid`, `aggregatetype`, `aggregateid` and `type`, which are strings, and
    /// `payload jsonb`; the topic is `outbox.event.${aggregatetype}`, the key `aggregateid`, a null
    /// payload is a tombstone, and the record has the id in a header `id` too, where Debezium's
    /// consumers look for it
    /// (<https://debezium.io/documentation/reference/stable/transformations/outbox-event-router.html>).
    /// Each can be said otherwise.
    pub fn debezium(table: impl Into<String>) -> Builder {
        Mapping::builder(table)
            .topic("outbox.event.${aggregatetype}")
            .column(Part::Id, "id", ColumnType::Uuid)
            .column(Part::Key, "aggregateid", ColumnType::Text)
            .column(Part::Type, "type", ColumnType::Text)
            .column(Part::Payload, "payload", ColumnType::Jsonb)
            .null_payload_is_tombstone(true)
            .id_header("id")
    }

    /// The journal of a schema, which has a column for each part.
    pub fn journal(schema: &Schema) -> Mapping {
        let column = |builder: Builder, part: Part| {
            let r#type = match part {
                Part::Key | Part::Payload => ColumnType::Bytea,
                _ => part.types().first().copied().expect("each part has a type"),
            };
            builder.column(part, part.name(), r#type)
        };
        let table = format!("{}.outbox", schema.name());
        let parts = Part::ALL.into_iter().filter(|part| *part != Part::Topic);
        let builder = parts.fold(Mapping::builder(table).topic("${topic}"), column);
        builder.build().expect("the journal keeps the rules")
    }

    /// The table's schema.
    pub fn schema(&self) -> &str {
        &self.0.schema
    }

    /// The table's name, without the schema.
    pub fn table(&self) -> &str {
        &self.0.table
    }

    /// The table as SQL names it, each part quoted.
    pub fn table_sql(&self) -> String {
        format!("{}.{}", quoted(self.schema()), quoted(self.table()))
    }

    /// The columns, each for another part.
    pub fn columns(&self) -> &[Column] {
        &self.0.columns
    }

    /// The column for a part, if there is one.
    pub fn column(&self, part: Part) -> Option<&Column> {
        self.columns().iter().find(|column| column.part == part)
    }

    /// Appends the topic of a row; `value` is what its column for [`Part::Topic`] holds, and counts
    /// for nothing where there is none.
    pub fn push_topic(&self, value: &str, into: &mut String) {
        self.0.topic.push(value, into);
    }

    /// The source of a row that does not say it.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// The content type of a row that does not say it.
    pub fn content_type(&self) -> &str {
        &self.0.content_type
    }

    /// Whether a null payload needs nothing else to be a tombstone.
    pub fn null_payload_is_tombstone(&self) -> bool {
        self.0.null_payload_is_tombstone
    }

    /// The header in which a record has the id once more.
    pub fn id_header(&self) -> Option<&str> {
        self.0.id_header.as_deref()
    }

    #[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
    pub(crate) fn topic(&self) -> &Topic {
        &self.0.topic
    }

    #[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
    pub(crate) fn statements(&self) -> &crate::outbox::rows::Statements {
        &self.0.statements
    }
}

/// A name as SQL takes it, whatever letters it has.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Postgres cuts names after so many bytes.
const NAME_BYTES_MAX: usize = 63;

/// Fails unless a name of the catalog can be so, whatever needs quotes in it.
fn must_be_name(what: &str, name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "the {what} {name:?} is not a name: 1 to {NAME_BYTES_MAX} bytes without control \
             characters"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
