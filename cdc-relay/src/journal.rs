//! Rows of the journal table become the frames that the writer would have put into the log.
//!
//! From there on a row is a message like any other: one decoder, one set of rules, one record.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use tailrace_outbox::frame::{Parts, encode_parts};
use uuid::Uuid;

use crate::error::Kind;
use crate::pgoutput::{Column, Relation, RelationId, Timestamp, Tuple};

/// The journal's table, in the schema of the outbox.
pub(crate) const TABLE: &str = "outbox";

/// The columns of the journal, by name: their order in the table decides nothing.
const COLUMNS: [&str; 12] = [
    "id",
    "created_at",
    "topic",
    "key",
    "type",
    "source",
    "subject",
    "content_type",
    "attributes",
    "headers",
    "tombstone",
    "payload",
];

/// Which relations of the stream are the journal, and how their rows are laid out.
#[derive(Debug)]
pub(crate) struct Journal {
    schema: String,
    /// For each column of the relation the place of its name in [`COLUMNS`].
    layouts: HashMap<RelationId, Vec<Option<usize>>>,
}

/// Why a row is no message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RowFault {
    pub(crate) kind: Kind,
    pub(crate) text: Cow<'static, str>,
}

fn fault(text: impl Into<Cow<'static, str>>) -> RowFault {
    RowFault { kind: Kind::Malformed, text: text.into() }
}

impl Journal {
    pub(crate) fn new(schema: &str) -> Self {
        Journal { schema: schema.to_owned(), layouts: HashMap::new() }
    }

    /// Takes in what the rows of a table look like from here on.
    pub(crate) fn relation(&mut self, relation: &Relation<'_>) {
        self.layouts.remove(&relation.id);
        if relation.namespace != self.schema || relation.name != TABLE {
            return;
        }
        let place = |name: &str| COLUMNS.iter().position(|column| *column == name);
        let layout = relation.columns.iter().map(|column| place(column.name)).collect();
        self.layouts.insert(relation.id, layout);
    }

    /// Whether rows of this relation are messages.
    pub(crate) fn holds(&self, relation: RelationId) -> bool {
        self.layouts.contains_key(&relation)
    }

    /// Appends the frame of a new row; nothing but what its JSON columns need is allocated.
    pub(crate) fn frame(
        &self,
        relation: RelationId,
        row: Tuple<'_>,
        into: &mut Vec<u8>,
    ) -> Result<(), RowFault> {
        let layout = self.layouts.get(&relation).ok_or_else(|| fault("its table is unknown"))?;
        let mut values: [Option<&[u8]>; COLUMNS.len()] = [None; COLUMNS.len()];
        for (column, place) in row.columns().zip(layout) {
            let Some(value) = place.and_then(|place| values.get_mut(place)) else { continue };
            *value = match column {
                Column::Null => None,
                Column::Binary(bytes) => Some(bytes),
                Column::Unchanged | Column::Text(_) => {
                    return Err(fault("a column came in another form than was asked for"));
                }
            };
        }
        let row = Row(values);
        let (attributes, headers) = (row.pairs("attributes")?, row.pairs("headers")?);
        let tombstone = row.need("tombstone")? != [0];
        let parts = Parts {
            id: Uuid::from_bytes(row.array("id")?),
            time_micros: Timestamp(i64::from_be_bytes(row.array("created_at")?)).unix_micros(),
            topic: row.text("topic")?,
            key: row.get("key"),
            r#type: row.text("type")?,
            source: row.text("source")?,
            subject: row.nullable_text("subject")?,
            content_type: row.text("content_type")?,
            payload: row.get("payload"),
        };
        if tombstone != parts.payload.is_none() {
            return Err(fault("a payload is null exactly in a tombstone"));
        }
        encode_parts(into, &parts, each(&attributes), each(&headers));
        Ok(())
    }
}

/// A row's values, in the order of [`COLUMNS`].
struct Row<'a>([Option<&'a [u8]>; COLUMNS.len()]);

impl<'a> Row<'a> {
    fn get(&self, name: &str) -> Option<&'a [u8]> {
        let place = COLUMNS.iter().position(|column| *column == name)?;
        *self.0.get(place)?
    }

    fn need(&self, name: &'static str) -> Result<&'a [u8], RowFault> {
        self.get(name).ok_or_else(|| fault(format!("its {name} is missing")))
    }

    fn array<const N: usize>(&self, name: &'static str) -> Result<[u8; N], RowFault> {
        let bytes = self.need(name)?;
        bytes.try_into().map_err(|_| fault(format!("its {name} has a strange length")))
    }

    fn text(&self, name: &'static str) -> Result<&'a str, RowFault> {
        utf8(name, self.need(name)?)
    }

    fn nullable_text(&self, name: &'static str) -> Result<Option<&'a str>, RowFault> {
        self.get(name).map(|bytes| utf8(name, bytes)).transpose()
    }

    /// Names and values of a JSON object, sorted as a frame has them.
    fn pairs(&self, name: &'static str) -> Result<Pairs<'a>, RowFault> {
        // `jsonb_send` puts the version of its format, 1, before the text.
        let Some([1, json @ ..]) = self.get(name) else {
            return Err(fault(format!("its {name} are missing or of a strange version")));
        };
        serde_json::from_slice(json)
            .map_err(|_| fault(format!("its {name} are no object of strings")))
    }
}

type Pairs<'a> = BTreeMap<Cow<'a, str>, Cow<'a, str>>;

fn each<'p>(pairs: &'p Pairs<'_>) -> impl ExactSizeIterator<Item = (&'p str, &'p str)> {
    pairs.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))
}

fn utf8<'a>(name: &'static str, bytes: &'a [u8]) -> Result<&'a str, RowFault> {
    str::from_utf8(bytes).map_err(|_| fault(format!("its {name} is not UTF-8")))
}

#[cfg(test)]
mod tests;
