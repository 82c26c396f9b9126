//! What a row holds, for people: the value of a dead letter that stands for no message.

use std::fmt::Write as _;

use serde_json::{Map, Value};
use tailrace_outbox::mapping::{ColumnType, Mapping};
use uuid::Uuid;

use crate::pgoutput::{Column, Timestamp, Tuple};

/// Appends the mapped columns by name, as a JSON object: text as it is, JSON as JSON, a time in
/// microseconds since 1970, and what is none of these in hexadecimal.
pub(super) fn show(
    mapping: &Mapping,
    places: &[Option<usize>],
    row: Tuple<'_>,
    into: &mut Vec<u8>,
) {
    let columns = row.columns().zip(places);
    let named = columns.filter_map(|(value, place)| {
        let column = mapping.columns().get((*place)?)?;
        Some((column.name().to_owned(), shown(column.r#type(), value)))
    });
    let object: Map<String, Value> = named.collect();
    into.extend_from_slice(Value::Object(object).to_string().as_bytes());
}

fn shown(r#type: ColumnType, value: Column<'_>) -> Value {
    let bytes = match value {
        Column::Null | Column::Unchanged => return Value::Null,
        Column::Text(text) => return text_or_hex(text),
        Column::Binary(bytes) => bytes,
    };
    let typed = match r#type {
        ColumnType::Uuid => Uuid::from_slice(bytes).ok().map(|uuid| uuid.to_string().into()),
        ColumnType::Timestamptz => {
            let micros = bytes.try_into().ok().map(i64::from_be_bytes);
            micros.map(|micros| Timestamp(micros).unix_micros().into())
        }
        ColumnType::Boolean => Some((bytes != [0]).into()),
        ColumnType::Jsonb => {
            bytes.split_first().and_then(|(_, json)| serde_json::from_slice(json).ok())
        }
        ColumnType::Bytea => Some(hex(bytes).into()),
        _ => None,
    };
    typed.unwrap_or_else(|| text_or_hex(bytes))
}

fn text_or_hex(bytes: &[u8]) -> Value {
    str::from_utf8(bytes).map_or_else(|_| hex(bytes).into(), Into::into)
}

/// As Postgres writes bytes.
fn hex(bytes: &[u8]) -> String {
    let mut text = "\\x".to_owned();
    for byte in bytes {
        // A string takes any text.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
