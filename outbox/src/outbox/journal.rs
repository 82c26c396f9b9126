//! The statements of the journal store.

#[cfg(feature = "sqlx")]
use sqlx::{Arguments, error::BoxDynError, postgres::PgArguments};

use crate::Message;
use crate::frame::Parts;

const COLUMNS: &str = "id, created_at, topic, key, type, source, subject, content_type, \
                       attributes, headers, tombstone, payload";

/// The types of the parameters, in the order of the columns.
///
/// A time is its microseconds since 1970, and JSON is text, so that no driver needs a type for
/// them.
const TYPES: [&str; 12] = [
    "uuid", "bigint", "text", "bytea", "text", "text", "text", "text", "text", "text", "boolean",
    "bytea",
];

/// What a row of the journal is made of.
pub(crate) struct Row<'m> {
    pub(crate) parts: Parts<'m>,
    pub(crate) attributes: String,
    pub(crate) headers: String,
    pub(crate) tombstone: bool,
}

impl<'m> Row<'m> {
    pub(crate) fn of(message: &'m Message) -> Self {
        Row {
            parts: message.parts(),
            attributes: object(message.attributes()),
            headers: object(message.headers()),
            tombstone: message.is_tombstone(),
        }
    }

    /// Binds the columns, in their order.
    #[cfg(feature = "sqlx")]
    pub(crate) fn bind(self, arguments: &mut PgArguments) -> Result<(), BoxDynError> {
        arguments.add(self.parts.id)?;
        arguments.add(self.parts.time_micros)?;
        arguments.add(self.parts.topic)?;
        arguments.add(self.parts.key)?;
        arguments.add(self.parts.r#type)?;
        arguments.add(self.parts.source)?;
        arguments.add(self.parts.subject)?;
        arguments.add(self.parts.content_type)?;
        arguments.add(self.attributes)?;
        arguments.add(self.headers)?;
        arguments.add(self.tombstone)?;
        arguments.add(self.parts.payload)
    }
}

/// A JSON object of pairs. No name stands twice: the builder saw to that.
fn object<'m>(pairs: impl Iterator<Item = (&'m str, &'m str)>) -> String {
    let object: serde_json::Map<String, serde_json::Value> =
        pairs.map(|(name, value)| (name.to_owned(), value.into())).collect();
    serde_json::Value::Object(object).to_string()
}

/// The statement that inserts one row.
pub(crate) fn one(table: &str) -> String {
    format!(
        "INSERT INTO {table} ({COLUMNS}) SELECT {}",
        values(|place, of| parameter(place + 1, of))
    )
}

/// The statement that inserts many rows in their order, and counts them; each parameter is an
/// array.
pub(crate) fn many(table: &str) -> String {
    let names = |place: usize, _: &str| format!("c{place}");
    // With a schema before its name unnest takes one array only.
    let arrays = list(|place, of| format!("${}::{of}[]", place + 1));
    format!(
        "WITH message AS (INSERT INTO {table} ({COLUMNS}) SELECT {} \
         FROM unnest({arrays}) WITH ORDINALITY AS given ({}, place) ORDER BY place \
         RETURNING true) SELECT pg_catalog.count(*) FROM message",
        values(names),
        list(names)
    )
}

/// The part of a merged write that inserts one row if the business statement touched any.
///
/// It returns a constant, because to return a column takes a right to read that writers need not
/// have. It runs whether or not anything reads it, because it changes data itself; only a SELECT in a
/// CTE does not.
pub(crate) fn merged(table: &str, first: usize) -> String {
    format!(
        "INSERT INTO {table} ({COLUMNS}) SELECT {} WHERE EXISTS (SELECT FROM business) \
         RETURNING true AS written",
        values(|place, of| parameter(place + first, of))
    )
}

fn parameter(number: usize, of: &str) -> String {
    format!("${number}::{of}")
}

/// The columns' values, made of parameters or columns of the parameters' types.
fn values(given: impl Fn(usize, &str) -> String) -> String {
    list(|place, of| {
        let given = given(place, of);
        match place {
            1 => format!("timestamptz 'epoch' + {given} * interval '1 microsecond'"),
            8 | 9 => format!("{given}::jsonb"),
            _ => given,
        }
    })
}

fn list(part: impl Fn(usize, &str) -> String) -> String {
    let parts: Vec<String> = TYPES.iter().enumerate().map(|(place, of)| part(place, of)).collect();
    parts.join(", ")
}
