//! Rows of tables of messages become the frames that a writer would have put into the log.
//!
//! Such a table is the outbox's own journal, or any other that a [`Mapping`] describes. From there on
//! a row is a message like any other: one decoder, one set of rules, one record.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use tailrace_outbox::frame::{Parts, encode_parts};
use tailrace_outbox::mapping::{ColumnType, Mapping, Part};
use uuid::Uuid;

use crate::error::Kind;
use crate::pgoutput::{Column, Relation, RelationColumn, RelationId, Timestamp, Tuple};

mod shown;

/// The first OID that a type made by a user can have (`FirstNormalObjectId` in Postgres).
const USER_OID_MIN: u32 = 16_384;

/// Which relations of the stream hold messages, and how their rows are laid out.
#[derive(Debug)]
pub(crate) struct Tables {
    mappings: Vec<Mapping>,
    layouts: HashMap<RelationId, Known>,
    /// Those of the stream, while a streamed transaction with its own is read back.
    aside: Option<HashMap<RelationId, Known>>,
    /// Descriptions that have come.
    arrivals: u64,
    /// When the transaction that is read was committed: the time of rows that say none.
    committed_at: Timestamp,
    /// Reused for each row.
    topic: String,
}

/// The newest description of a relation.
#[derive(Debug)]
struct Known {
    arrival: u64,
    /// `None` where its rows are no messages.
    layout: Option<Layout>,
}

#[derive(Debug)]
struct Layout {
    mapping: Mapping,
    /// For each column of the relation the place of its name in the mapping.
    places: Vec<Option<usize>>,
    /// Why no row of it can be a message.
    fault: Option<String>,
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

impl Tables {
    pub(crate) fn new(mappings: Vec<Mapping>) -> Self {
        Tables {
            mappings,
            layouts: HashMap::new(),
            aside: None,
            arrivals: 0,
            committed_at: Timestamp(0),
            topic: String::new(),
        }
    }

    /// A transaction begins, which was committed at this time.
    pub(crate) fn begin(&mut self, committed_at: Timestamp) {
        self.committed_at = committed_at;
    }

    /// A streamed transaction is read back: it brings its own descriptions, which may be older or
    /// newer than what came beside it.
    pub(crate) fn begin_streamed(&mut self) {
        self.aside = Some(std::mem::take(&mut self.layouts));
    }

    /// The streamed transaction is complete. The server does not describe again what it has
    /// described in a transaction that committed, so of each relation the newest description
    /// holds, in the order in which they came.
    pub(crate) fn end_streamed(&mut self) {
        let Some(aside) = self.aside.take() else { return };
        let streamed = std::mem::replace(&mut self.layouts, aside);
        for (relation, known) in streamed {
            let here = self.layouts.get(&relation);
            if here.is_none_or(|here| here.arrival < known.arrival) {
                self.layouts.insert(relation, known);
            }
        }
    }

    /// Counts a description that comes now.
    pub(crate) fn arrives(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    /// Takes in what the rows of a table look like from here on; `arrival` is the answer of
    /// [`Tables::arrives`] to it.
    pub(crate) fn relation(&mut self, relation: &Relation<'_>, arrival: u64) {
        let layout = self.layout(relation);
        self.layouts.insert(relation.id, Known { arrival, layout });
    }

    fn layout(&self, relation: &Relation<'_>) -> Option<Layout> {
        let of_table = |mapping: &&Mapping| {
            mapping.schema() == relation.namespace && mapping.table() == relation.name
        };
        let mapping = self.mappings.iter().find(of_table)?;
        let place = |column: &RelationColumn<'_>| {
            mapping.columns().iter().position(|mapped| mapped.name() == column.name)
        };
        Some(Layout {
            mapping: mapping.clone(),
            places: relation.columns.iter().map(place).collect(),
            fault: misfit(mapping, relation),
        })
    }

    fn known(&self, relation: RelationId) -> Option<&Layout> {
        self.layouts.get(&relation)?.layout.as_ref()
    }

    /// Whether rows of this relation are messages.
    pub(crate) fn hold(&self, relation: RelationId) -> bool {
        self.known(relation).is_some()
    }

    /// The table of this relation, for errors.
    pub(crate) fn name(&self, relation: RelationId) -> String {
        self.known(relation).map_or_else(String::new, |layout| layout.mapping.table_sql())
    }

    /// Appends the frame of a new row; nothing but what its JSON columns need is allocated.
    pub(crate) fn frame(
        &mut self,
        relation: RelationId,
        row: Tuple<'_>,
        into: &mut Vec<u8>,
    ) -> Result<(), RowFault> {
        let layout = self.layouts.get(&relation).and_then(|known| known.layout.as_ref());
        let layout = layout.ok_or_else(|| fault("its table is unknown"))?;
        if let Some(why) = &layout.fault {
            return Err(fault(why.clone()));
        }
        let row = Row::read(layout, row)?;
        let mapping = &layout.mapping;
        let id = row.id()?;
        let attributes = row.pairs(Part::Attributes)?;
        let mut headers = row.pairs(Part::Headers)?;
        if let Some(name) = mapping.id_header() {
            headers.insert(Cow::Borrowed(name), Cow::Owned(id.to_string()));
        }
        let payload = row.payload()?;
        self.topic.clear();
        match mapping.column(Part::Topic) {
            None => mapping.push_topic("", &mut self.topic),
            Some(_) => mapping.push_topic(row.text(Part::Topic)?, &mut self.topic),
        }
        let time = match row.get(Part::CreatedAt) {
            None => self.committed_at,
            Some(bytes) => Timestamp(i64::from_be_bytes(array(Part::CreatedAt, bytes)?)),
        };
        let mut key_text = [0; 36];
        let parts = Parts {
            id,
            time_micros: time.unix_micros(),
            topic: &self.topic,
            key: row.key(&mut key_text)?,
            r#type: row.text(Part::Type)?,
            source: row.nullable_text(Part::Source)?.unwrap_or(mapping.source()),
            subject: row.nullable_text(Part::Subject)?,
            content_type: row.nullable_text(Part::ContentType)?.unwrap_or(mapping.content_type()),
            payload,
        };
        encode_parts(into, &parts, each(&attributes), each(&headers));
        Ok(())
    }

    /// Appends what a row that is no message holds, as JSON: for its dead letter.
    pub(crate) fn show(&self, relation: RelationId, row: Tuple<'_>, into: &mut Vec<u8>) {
        if let Some(layout) = self.known(relation) {
            shown::show(&layout.mapping, &layout.places, row, into);
        }
    }
}

/// Why rows of this relation can not be read by this mapping, if they can not.
fn misfit(mapping: &Mapping, relation: &Relation<'_>) -> Option<String> {
    mapping.columns().iter().find_map(|mapped| {
        let name = mapped.name();
        let found = relation.columns.iter().find(|column| column.name == name);
        let Some(found) = found else {
            // Dropped, or left out of the publication: then what it holds would be lost unseen.
            return Some(format!("its table shows no column {name:?}"));
        };
        let oid = found.type_oid;
        // What users made, a domain or an enum, was looked at when the session began.
        (oid < USER_OID_MIN && !oids(mapped.r#type()).contains(&oid)).then(|| {
            format!("its column {name:?} is not of type {}, as mapped", mapped.r#type().name())
        })
    })
}

/// The types of the catalog that a mapped column may have, by OID (`pg_type.dat` in Postgres).
fn oids(r#type: ColumnType) -> &'static [u32] {
    match r#type {
        ColumnType::Boolean => &[16],
        ColumnType::Bytea => &[17],
        ColumnType::Json => &[114],
        ColumnType::Jsonb => &[3802],
        ColumnType::Timestamptz => &[1184],
        ColumnType::Uuid => &[2950],
        // text, varchar, char(n), name
        ColumnType::Text => &[25, 1043, 1042, 19],
        _ => &[],
    }
}

/// A row's values, in the order of the mapping's columns.
struct Row<'a> {
    mapping: &'a Mapping,
    values: [Option<&'a [u8]>; Part::COUNT],
}

impl<'a> Row<'a> {
    fn read(layout: &'a Layout, row: Tuple<'a>) -> Result<Self, RowFault> {
        let mut values = [None; Part::COUNT];
        for (column, place) in row.columns().zip(&layout.places) {
            let Some(place) = *place else { continue };
            let Some(value) = values.get_mut(place) else { continue };
            let of = layout.mapping.columns().get(place).map(|mapped| mapped.r#type());
            *value = match column {
                Column::Null => None,
                Column::Binary(bytes) => Some(bytes),
                // A type without a binary form, such as one of an extension.
                Column::Text(bytes) if of == Some(ColumnType::Text) => Some(bytes),
                Column::Unchanged | Column::Text(_) => {
                    return Err(fault("a column came in another form than was asked for"));
                }
            };
        }
        Ok(Row { mapping: &layout.mapping, values })
    }

    fn get(&self, part: Part) -> Option<&'a [u8]> {
        let place = self.mapping.columns().iter().position(|column| column.part() == part)?;
        *self.values.get(place)?
    }

    fn need(&self, part: Part) -> Result<&'a [u8], RowFault> {
        self.get(part).ok_or_else(|| fault(format!("its {} is missing", part.name())))
    }

    fn is_of(&self, part: Part, r#type: ColumnType) -> bool {
        self.mapping.column(part).is_some_and(|column| column.r#type() == r#type)
    }

    fn id(&self) -> Result<Uuid, RowFault> {
        let bytes = self.need(Part::Id)?;
        if self.is_of(Part::Id, ColumnType::Uuid) {
            return Ok(Uuid::from_bytes(array(Part::Id, bytes)?));
        }
        Uuid::try_parse_ascii(bytes).map_err(|_| fault("its id is not a UUID"))
    }

    fn key<'k>(&self, text: &'k mut [u8; 36]) -> Result<Option<&'k [u8]>, RowFault>
    where
        'a: 'k,
    {
        let Some(bytes) = self.get(Part::Key) else { return Ok(None) };
        if self.is_of(Part::Key, ColumnType::Uuid) {
            let uuid = Uuid::from_bytes(array(Part::Key, bytes)?);
            return Ok(Some(uuid.hyphenated().encode_lower(text).as_bytes()));
        }
        Ok(Some(bytes))
    }

    fn payload(&self) -> Result<Option<&'a [u8]>, RowFault> {
        let payload = match self.get(Part::Payload) {
            Some(bytes) if self.is_of(Part::Payload, ColumnType::Jsonb) => {
                Some(jsonb(Part::Payload, bytes)?)
            }
            payload => payload,
        };
        let is_null = payload.is_none();
        match self.mapping.column(Part::Tombstone) {
            Some(_) => {
                let tombstone = self.get(Part::Tombstone).is_some_and(|bytes| bytes != [0]);
                if tombstone != is_null {
                    return Err(fault("a payload is null exactly in a tombstone"));
                }
            }
            None if is_null && !self.mapping.null_payload_is_tombstone() => {
                return Err(fault("its payload is null, and is not mapped as a tombstone"));
            }
            None => {}
        }
        Ok(payload)
    }

    fn text(&self, part: Part) -> Result<&'a str, RowFault> {
        utf8(part, self.need(part)?)
    }

    fn nullable_text(&self, part: Part) -> Result<Option<&'a str>, RowFault> {
        self.get(part).map(|bytes| utf8(part, bytes)).transpose()
    }

    /// Names and values of a JSON object, sorted as a frame has them.
    fn pairs(&self, part: Part) -> Result<Pairs<'a>, RowFault> {
        let Some(bytes) = self.get(part) else { return Ok(Pairs::new()) };
        let json = match self.is_of(part, ColumnType::Jsonb) {
            true => jsonb(part, bytes)?,
            false => bytes,
        };
        serde_json::from_slice(json)
            .map_err(|_| fault(format!("its {} are no object of strings", part.name())))
    }
}

type Pairs<'a> = BTreeMap<Cow<'a, str>, Cow<'a, str>>;

fn each<'p>(pairs: &'p Pairs<'_>) -> impl ExactSizeIterator<Item = (&'p str, &'p str)> {
    pairs.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))
}

/// The text of a jsonb: `jsonb_send` puts the version of its format, 1, before it.
fn jsonb(part: Part, bytes: &[u8]) -> Result<&[u8], RowFault> {
    match bytes {
        [1, json @ ..] => Ok(json),
        _ => Err(fault(format!("its {} is jsonb of a strange version", part.name()))),
    }
}

fn array<const N: usize>(part: Part, bytes: &[u8]) -> Result<[u8; N], RowFault> {
    bytes.try_into().map_err(|_| fault(format!("its {} has a strange length", part.name())))
}

fn utf8(part: Part, bytes: &[u8]) -> Result<&str, RowFault> {
    str::from_utf8(bytes).map_err(|_| fault(format!("its {} is not UTF-8", part.name())))
}

#[cfg(test)]
mod tests;
