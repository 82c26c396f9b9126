//! Messages as rows of a mapped table: the statements, and the values of their parameters.

use std::borrow::Cow;
use std::sync::Arc;

use serde::de::IgnoredAny;
#[cfg(feature = "sqlx")]
use sqlx::{Arguments, error::BoxDynError, postgres::PgArguments};
use uuid::Uuid;

use crate::mapping::{Column, ColumnType, Mapping, Part, quoted};
use crate::outbox::Place;
use crate::{Error, Kind, Message};

mod jsonb;

/// What is sent for a mapping, made once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statements {
    anywhere: Texts,
    in_transaction: Texts,
    /// `INSERT INTO table (columns) SELECT`.
    insert: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Texts {
    one: Arc<str>,
    many: Arc<str>,
}

impl Statements {
    pub(crate) fn of(schema: &str, table: &str, columns: &[Column]) -> Self {
        let names = list(columns, |_, column| quoted(column.name()));
        let insert = format!("INSERT INTO {}.{} ({names}) SELECT", quoted(schema), quoted(table));
        let texts = |place| Texts::of(&insert, columns, place);
        let (anywhere, in_transaction) = (texts(Place::Anywhere), texts(Place::InTransaction));
        Statements { anywhere, in_transaction, insert }
    }

    /// Inserts one row, and answers with a row if it did.
    pub(crate) fn one(&self, place: Place) -> Arc<str> {
        Arc::clone(&self.texts(place).one)
    }

    /// Inserts many rows in their order, and counts them; each parameter is an array.
    pub(crate) fn many(&self, place: Place) -> Arc<str> {
        Arc::clone(&self.texts(place).many)
    }

    fn texts(&self, place: Place) -> &Texts {
        match place {
            Place::Anywhere => &self.anywhere,
            Place::InTransaction => &self.in_transaction,
        }
    }
}

impl Texts {
    fn of(insert: &str, columns: &[Column], place: Place) -> Self {
        let written = written(place);
        let one = list(columns, |place, column| value(parameter(place + 1, column), column));
        let one = format!("{insert} {one} RETURNING {written}");
        // With a schema before its name unnest takes one array only.
        let arrays = list(columns, |place, column| format!("{}[]", parameter(place + 1, column)));
        let given = list(columns, |place, _| format!("c{place}"));
        let values = list(columns, |place, column| value(format!("c{place}"), column));
        let many = format!(
            "WITH message AS ({insert} {values} \
             FROM unnest({arrays}) WITH ORDINALITY AS given ({given}, place) ORDER BY place \
             RETURNING {written}) SELECT pg_catalog.count(*) FROM message"
        );
        Texts { one: one.into(), many: many.into() }
    }
}

/// What a row that was written returns: a constant, because to return a column takes a right to
/// read that writers need not have. As a subquery without a reference to the row, what is asked
/// about the transaction is asked once for all rows.
fn written(place: Place) -> String {
    match place {
        Place::Anywhere => "true".to_owned(),
        Place::InTransaction => {
            format!("(SELECT {})", place.unless_ended("true", "::pg_catalog.bool"))
        }
    }
}

/// The part of a merged write that inserts one row if the business statement touched any.
///
/// It runs whether or not anything reads it, because it changes data itself; only a SELECT in a
/// CTE does not.
pub(crate) fn merged(mapping: &Mapping, first: usize, place: Place) -> String {
    let written = written(place);
    let values =
        list(mapping.columns(), |place, column| value(parameter(place + first, column), column));
    format!(
        "{} {values} WHERE EXISTS (SELECT FROM business) RETURNING {written} AS written",
        mapping.statements().insert
    )
}

/// The parameter for a column. A time is its microseconds since 1970, and JSON is text, so that no
/// driver needs a type for them.
fn parameter(number: usize, column: &Column) -> String {
    let of = match column.r#type() {
        ColumnType::Uuid => "uuid",
        ColumnType::Bytea => "bytea",
        ColumnType::Timestamptz => "int8",
        ColumnType::Boolean => "bool",
        ColumnType::Text | ColumnType::Json | ColumnType::Jsonb => "text",
    };
    // With its schema, and so are operators: what stands in a search_path before pg_catalog counts
    // for nothing.
    format!("${number}::pg_catalog.{of}")
}

/// The column's value, made of a parameter or a column of the parameter's type.
fn value(given: String, column: &Column) -> String {
    match column.r#type() {
        // In hours and the rest: an interval is multiplied as a float8, which has no room for all
        // the microseconds of three centuries.
        ColumnType::Timestamptz => format!(
            "pg_catalog.timestamptz 'epoch' OPERATOR(pg_catalog.+) pg_catalog.make_interval( \
             hours => ({given} OPERATOR(pg_catalog./) 3600000000)::pg_catalog.int4) \
             OPERATOR(pg_catalog.+) (({given} OPERATOR(pg_catalog.%) 3600000000) \
             OPERATOR(pg_catalog.*) pg_catalog.interval '1 microsecond')"
        ),
        ColumnType::Json => format!("{given}::pg_catalog.json"),
        ColumnType::Jsonb => format!("{given}::pg_catalog.jsonb"),
        ColumnType::Uuid | ColumnType::Bytea | ColumnType::Boolean | ColumnType::Text => given,
    }
}

fn list(columns: &[Column], part: impl Fn(usize, &Column) -> String) -> String {
    let parts: Vec<String> =
        columns.iter().enumerate().map(|(place, column)| part(place, column)).collect();
    parts.join(", ")
}

/// A parameter.
#[derive(Debug)]
pub(crate) enum Value<'m> {
    Uuid(Option<Uuid>),
    Micros(i64),
    Text(Option<Cow<'m, str>>),
    Bytes(Option<&'m [u8]>),
    Bool(bool),
}

/// The parameters for a message, in the order of the mapping's columns.
///
/// # Errors
///
/// [`Kind::Unmapped`] for a part that the row has no place for, [`Kind::Invalid`] for one that its
/// column can not hold.
pub(crate) fn row<'m>(mapping: &Mapping, message: &'m Message) -> Result<Vec<Value<'m>>, Error> {
    must_have_places(mapping, message)?;
    mapping.columns().iter().map(|column| of_column(mapping, column, message)).collect()
}

/// Fails if the message has a part that would be lost.
fn must_have_places(mapping: &Mapping, message: &Message) -> Result<(), Error> {
    let parts = [
        (Part::Key, message.key().is_some()),
        (Part::Subject, message.subject().is_some()),
        (Part::Attributes, message.attributes().len() > 0),
        (Part::Headers, message.headers().len() > 0),
    ];
    for (part, _) in parts.into_iter().filter(|(_, given)| *given) {
        if mapping.column(part).is_none() {
            return Err(unmapped(mapping, &format!("has no column for the {}", part.name())));
        }
    }
    for (part, given, of_table) in [
        (Part::Source, message.source(), mapping.source()),
        (Part::ContentType, message.content_type(), mapping.content_type()),
    ] {
        if mapping.column(part).is_none() && given != of_table {
            let part = part.name();
            return Err(unmapped(
                mapping,
                &format!("has the {part} {of_table:?} for all rows, and the message {given:?}"),
            ));
        }
    }
    let tombstones =
        mapping.null_payload_is_tombstone() || mapping.column(Part::Tombstone).is_some();
    if message.is_tombstone() && !tombstones {
        return Err(unmapped(mapping, "takes no tombstones"));
    }
    Ok(())
}

fn unmapped(mapping: &Mapping, what: &str) -> Error {
    Error::new(Kind::Unmapped, format!("table {} {what}", mapping.table_sql()))
        .mended_by("change the mapping, of writer and relay alike, or use another store")
}

fn of_column<'m>(
    mapping: &Mapping,
    column: &Column,
    message: &'m Message,
) -> Result<Value<'m>, Error> {
    let text = |text: &'m str| {
        must_be_postgres_text(column, text)?;
        Ok(Value::Text(Some(Cow::Borrowed(text))))
    };
    match column.part() {
        Part::Id if column.r#type() == ColumnType::Uuid => Ok(Value::Uuid(Some(message.id()))),
        Part::Id => Ok(Value::Text(Some(Cow::Owned(message.id().to_string())))),
        Part::CreatedAt if !TIMES.contains(&message.time_micros()) => {
            Err(unfit(column, "times of the years 1 to 9999"))
        }
        Part::CreatedAt => Ok(Value::Micros(message.time_micros())),
        Part::Topic => match mapping.topic().value_of(message.topic()) {
            Some(value) => text(value),
            None => Err(unmapped(
                mapping,
                &format!("has topics {}, and the message {:?}", mapping.topic(), message.topic()),
            )),
        },
        Part::Key => key(column, message.key()),
        Part::Type => text(message.r#type()),
        Part::Source => text(message.source()),
        Part::Subject => message.subject().map_or(Ok(Value::Text(None)), text),
        Part::ContentType => text(message.content_type()),
        Part::Attributes => Ok(Value::Text(Some(object(message.attributes()).into()))),
        Part::Headers => Ok(Value::Text(Some(object(message.headers()).into()))),
        Part::Tombstone => Ok(Value::Bool(message.is_tombstone())),
        Part::Payload => payload(column, message.payload()),
    }
}

/// The microseconds of the years 1 to 9999: what every reader of a table takes, and RFC 3339 can
/// say. Postgres' own range is wider.
const TIMES: std::ops::RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_300_799_999_999;

fn key<'m>(column: &Column, key: Option<&'m [u8]>) -> Result<Value<'m>, Error> {
    match column.r#type() {
        ColumnType::Bytea => Ok(Value::Bytes(key)),
        ColumnType::Uuid => {
            let Some(key) = key else { return Ok(Value::Uuid(None)) };
            // Only in this form will the record have the same key again.
            let uuid = Uuid::try_parse_ascii(key).ok();
            let uuid = uuid.filter(|uuid| uuid.to_string().as_bytes() == key);
            uuid.map(|uuid| Value::Uuid(Some(uuid)))
                .ok_or_else(|| unfit(column, "a UUID, hyphenated and in lower case"))
        }
        _ => Ok(Value::Text(key.map(|key| utf8(column, key)).transpose()?.map(Cow::Borrowed))),
    }
}

fn payload<'m>(column: &Column, payload: Option<&'m [u8]>) -> Result<Value<'m>, Error> {
    if column.r#type() == ColumnType::Bytea {
        return Ok(Value::Bytes(payload));
    }
    let Some(payload) = payload else { return Ok(Value::Text(None)) };
    let text = utf8(column, payload)?;
    let is_json = column.r#type() != ColumnType::Text;
    if is_json && serde_json::from_str::<IgnoredAny>(text).is_err() {
        return Err(unfit(column, "JSON"));
    }
    if column.r#type() == ColumnType::Jsonb
        && let Some(fault) = jsonb::fault(text)
    {
        return Err(unfit(column, fault));
    }
    Ok(Value::Text(Some(Cow::Borrowed(text))))
}

fn utf8<'m>(column: &Column, bytes: &'m [u8]) -> Result<&'m str, Error> {
    let text = str::from_utf8(bytes).map_err(|_| unfit(column, "text"))?;
    must_be_postgres_text(column, text)?;
    Ok(text)
}

/// Postgres has no text with a NUL.
fn must_be_postgres_text(column: &Column, text: &str) -> Result<(), Error> {
    if text.contains('\0') { Err(unfit(column, "text without NUL")) } else { Ok(()) }
}

fn unfit(column: &Column, what: &str) -> Error {
    Error::invalid(format!(
        "column {:?} takes {what}, and the message's {} is none",
        column.name(),
        column.part().name()
    ))
}

/// A JSON object of pairs. No name stands twice: the builder saw to that.
fn object<'m>(pairs: impl Iterator<Item = (&'m str, &'m str)>) -> String {
    let object: serde_json::Map<String, serde_json::Value> =
        pairs.map(|(name, value)| (name.to_owned(), value.into())).collect();
    serde_json::Value::Object(object).to_string()
}

/// One column's values of many rows.
pub(crate) enum Values<'r> {
    Uuids(Vec<Option<Uuid>>),
    Micros(Vec<i64>),
    Texts(Vec<Option<&'r str>>),
    Bytes(Vec<Option<&'r [u8]>>),
    Bools(Vec<bool>),
}

/// The arrays that [`Statements::many`] takes.
pub(crate) fn arrays<'r>(mapping: &Mapping, rows: &'r [Vec<Value<'_>>]) -> Vec<Values<'r>> {
    let of = |(place, column): (usize, &Column)| {
        let values = rows.iter().filter_map(move |row| row.get(place));
        match column.r#type() {
            ColumnType::Uuid => Values::Uuids(values.map(Value::uuid).collect()),
            ColumnType::Timestamptz => Values::Micros(values.map(Value::micros).collect()),
            ColumnType::Boolean => Values::Bools(values.map(Value::bool).collect()),
            ColumnType::Bytea => Values::Bytes(values.map(Value::bytes).collect()),
            ColumnType::Text | ColumnType::Json | ColumnType::Jsonb => {
                Values::Texts(values.map(Value::text).collect())
            }
        }
    };
    mapping.columns().iter().enumerate().map(of).collect()
}

const OF_ONE_TYPE: &str = "a column's values have its type";

impl Value<'_> {
    fn uuid(&self) -> Option<Uuid> {
        let Value::Uuid(uuid) = self else { panic!("{OF_ONE_TYPE}") };
        *uuid
    }

    fn micros(&self) -> i64 {
        let Value::Micros(micros) = self else { panic!("{OF_ONE_TYPE}") };
        *micros
    }

    fn bool(&self) -> bool {
        let Value::Bool(bool) = self else { panic!("{OF_ONE_TYPE}") };
        *bool
    }

    fn bytes(&self) -> Option<&[u8]> {
        let Value::Bytes(bytes) = self else { panic!("{OF_ONE_TYPE}") };
        *bytes
    }

    fn text(&self) -> Option<&str> {
        let Value::Text(text) = self else { panic!("{OF_ONE_TYPE}") };
        text.as_deref()
    }
}

/// Binds the parameters of one row.
#[cfg(feature = "sqlx")]
pub(crate) fn bind(arguments: &mut PgArguments, row: Vec<Value<'_>>) -> Result<(), BoxDynError> {
    row.into_iter().try_for_each(|value| match value {
        Value::Uuid(uuid) => arguments.add(uuid),
        Value::Micros(micros) => arguments.add(micros),
        Value::Text(text) => arguments.add(text.as_deref()),
        Value::Bytes(bytes) => arguments.add(bytes),
        Value::Bool(bool) => arguments.add(bool),
    })
}

/// Binds the parameters of many rows.
#[cfg(feature = "sqlx")]
pub(crate) fn bind_all(arrays: Vec<Values<'_>>) -> Result<PgArguments, BoxDynError> {
    let mut arguments = PgArguments::default();
    arrays.into_iter().try_for_each(|values| match values {
        Values::Uuids(uuids) => arguments.add(uuids),
        Values::Micros(micros) => arguments.add(micros),
        Values::Texts(texts) => arguments.add(texts),
        Values::Bytes(bytes) => arguments.add(bytes),
        Values::Bools(bools) => arguments.add(bools),
    })?;
    Ok(arguments)
}

#[cfg(test)]
#[cfg(feature = "sqlx")]
mod tests;
