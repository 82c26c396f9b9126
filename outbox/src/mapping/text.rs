//! A mapping as one line of text, for flags, variables and files.

use std::str::FromStr;

use super::{Builder, ColumnType, Mapping, Part};
use crate::Error;

impl FromStr for Mapping {
    type Err = Error;

    /// Reads `TABLE=ITEM, ITEM, …`.
    ///
    /// | item | says |
    /// |---|---|
    /// | `debezium` | begin with [`Mapping::debezium`]; only as the first item |
    /// | `PART:COLUMN`, `PART:COLUMN:TYPE` | the column of a part, by the names of [`Part`]; without a type the first that the part takes |
    /// | `topic=PATTERN` | [`Builder::topic`] |
    /// | `source=TEXT`, `content_type=TEXT` | [`Builder::source`], [`Builder::content_type`] |
    /// | `id_header=NAME`, `id_header=` | [`Builder::id_header`] |
    /// | `null_payload=tombstone`, `null_payload=error` | [`Builder::null_payload_is_tombstone`] |
    ///
    /// Names with a comma, a colon, an equals sign or a dot in them can be given by a [`Builder`]
    /// only, and a table's name with a dot not at all.
    fn from_str(text: &str) -> Result<Self, Error> {
        let (table, items) = text.split_once('=').ok_or_else(|| {
            Error::invalid(format!("{text:?} is not the mapping of a table"))
                .mended_by("write it as public.outbox=debezium")
        })?;
        let mut items = items.split(',').map(str::trim).peekable();
        let begun = match items.next_if_eq(&"debezium") {
            Some(_) => Mapping::debezium(table.trim()),
            None => Mapping::builder(table.trim()),
        };
        items.try_fold(begun, item)?.build()
    }
}

fn item(builder: Builder, text: &str) -> Result<Builder, Error> {
    if let Some((name, value)) = text.split_once('=') {
        return match (name.trim(), value.trim()) {
            ("topic", pattern) => Ok(builder.topic(pattern)),
            ("source", source) => Ok(builder.source(source)),
            ("content_type", content_type) => Ok(builder.content_type(content_type)),
            ("id_header", name) => Ok(builder.id_header(name)),
            ("null_payload", "tombstone") => Ok(builder.null_payload_is_tombstone(true)),
            ("null_payload", "error") => Ok(builder.null_payload_is_tombstone(false)),
            _ => Err(unknown(text)),
        };
    }
    let mut words = text.split(':').map(str::trim);
    let part = words.next().and_then(|name| Part::ALL.into_iter().find(|part| part.name() == name));
    let (Some(part), Some(name)) = (part, words.next()) else { return Err(unknown(text)) };
    let r#type = match words.next() {
        None => part.types().first().copied(),
        Some("bool") => Some(ColumnType::Boolean),
        Some("varchar") => Some(ColumnType::Text),
        Some(name) => ColumnType::ALL.into_iter().find(|r#type| r#type.name() == name),
    };
    match (r#type, words.next()) {
        (Some(r#type), None) => Ok(builder.column(part, name, r#type)),
        _ => Err(unknown(text)),
    }
}

fn unknown(item: &str) -> Error {
    Error::invalid(format!("{item:?} says nothing about a table's columns")).mended_by(
        "write debezium, PART:COLUMN:TYPE, topic=PATTERN, source=TEXT, content_type=TEXT, \
         id_header=NAME, null_payload=tombstone or null_payload=error, with commas between them",
    )
}
