//! Every decoder of the relay behind one door, for arbitrary bytes.
//!
//! A [`Target`] gives bytes of others to the code that reads them and looks at whatever comes out;
//! a panic in it is a finding, and nothing else is. The same functions are run by the tests here,
//! on the committed corpus and on damaged copies of it, and by the fuzzers in `cdc-relay/fuzz`, for
//! which this module is compiled in by the feature `fuzzing`. It is no part of the public API.

use tailrace_outbox::mapping::Mapping;
use tailrace_outbox::schema::Schema;

use crate::checkpoint::{self, CHECKPOINT_KEY, INTENT_KEY, Stored};
use crate::config::file::File;
use crate::config::layers::Layers;
use crate::config::measure;
use crate::dead_letter;
use crate::error::{Error, Kind};
use crate::lsn::Lsn;
use crate::pgoutput::{
    Change, Column, OldRow, RelationId, Segment, Tuple, decode, decode_segment, decode_streamed,
};
use crate::position::{Ordinal, Place};
use crate::record::{self, Record};
use crate::replication::Endpoint;
pub use crate::replication::fuzzing::{log_in, server};
use crate::resume::left_at;
use crate::sink::{Partitions, Saved};
use crate::tables::Tables;

/// A decoder, and what its bytes are.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, that of its folder in the corpus and of its program.
    pub name: &'static str,
    /// Has it read these bytes.
    pub read: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "log_in", read: log_in },
    Target { name: "pgoutput", read: pgoutput },
    Target { name: "saved", read: saved },
    Target { name: "server", read: server },
    Target { name: "settings", read: settings },
    Target { name: "url", read: url },
];

/// Stands in the input of [`url`] for a password.
const PASSWORD_MARK: &str = "*";
const PASSWORD: &str = "Se3retSe3ret";

/// Messages of the output plugin, each with its length in two bytes before it; the rows and frames
/// in them go the way that they go in a relay. Each is read in both of its forms, that of a
/// committed transaction and that of one in progress.
pub fn pgoutput(bytes: &[u8]) {
    let mut stream = Stream::new();
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
        let (body, after) = after.split_at(length);
        rest = after;
        match decode(body, Lsn(7)) {
            Ok(change) => stream.take(&change),
            Err(error) => assert_eq!(error.kind(), Kind::Malformed, "{error}"),
        }
        match (decode_segment(body, Lsn(7)), decode_streamed(body, Lsn(7))) {
            (Ok(Segment::Change(of) | Segment::Relation(of)), Ok((xid, change))) => {
                assert_eq!(of, xid, "both say whose it is");
                stream.take(&change);
            }
            (Ok(Segment::Nothing) | Err(_), Err(_)) | (Ok(_), _) => {}
            (Err(error), Ok(_)) => panic!("a change of a segment is none of it: {error}"),
        }
    }
}

/// Entries of the checkpoint topic, `key NUL value NUL key …`, and the texts that positions and
/// timelines are read from.
pub fn saved(bytes: &[u8]) {
    let mut parts = bytes.split(|byte| *byte == 0);
    let mut saved = Saved::new();
    while let (Some(key), Some(value)) = (parts.next(), parts.next()) {
        saved.insert(String::from_utf8_lossy(key).into_owned(), value.to_vec());
    }
    match Stored::read(&saved) {
        Ok(stored) => again(&stored),
        Err(error) => assert_eq!(error.kind(), Kind::Gap, "{error}"),
    }
    checkpoint::written_ms(&saved);
    Partitions::default().restore(&saved).ok();
    if let Ok(text) = str::from_utf8(bytes) {
        shown_again::<Lsn>(text);
        shown_again::<Place>(text);
        left_at(text, 1);
    }
}

/// A configuration file, and after a zero byte each a variable of the environment, `NAME=VALUE`.
pub fn settings(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let variables = parts.filter_map(|part| part.split_once('='));
    let layers = Layers {
        file: Some(File { name: "relay.toml".to_owned(), text: file.to_owned() }),
        environment: variables.map(|(name, text)| (name.to_owned(), text.to_owned())).collect(),
        flags: Vec::new(),
    };
    match layers.settings() {
        Ok(settings) => drop(settings.lines()),
        Err(error) => assert_eq!(error.kind(), Kind::Config, "{error}"),
    }
    measure::duration(text).map(measure::show_duration).ok();
    measure::size(text).map(|bytes| measure::show_size(bytes as u64)).ok();
}

/// A database URL; an asterisk in it is a password, which no answer may repeat.
pub fn url(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let is_silent = |shown: &str| assert!(!shown.contains(PASSWORD), "{shown}");
    // Not where it says what else the password is, such as a user's name.
    let (before, after) = text.split_once(PASSWORD_MARK).unwrap_or((text, ""));
    let place = ["postgres://u:", "postgresql://u:"].contains(&before);
    match Endpoint::parse(&format!("{before}{PASSWORD}{after}")) {
        Ok(endpoint) if place => is_silent(&format!("{endpoint:?}")),
        Ok(endpoint) => drop(endpoint.describe()),
        Err(error) => {
            assert_eq!(error.kind(), Kind::Config, "{error}");
            if place {
                is_silent(&format!("{error} {error:?}"));
            }
        }
    }
    if let Ok(endpoint) = Endpoint::parse(text) {
        assert!(!endpoint.host().is_empty() && endpoint.port() > 0, "{endpoint:?}");
    }
}

/// What a session keeps of a stream, as far as rows and messages depend on it.
struct Stream {
    tables: Tables,
    frame: Vec<u8>,
}

impl Stream {
    fn new() -> Self {
        let debezium = Mapping::debezium("public.outbox").build().expect("the preset is valid");
        Stream {
            tables: Tables::new(vec![Mapping::journal(&Schema::default()), debezium]),
            frame: Vec::new(),
        }
    }

    fn take(&mut self, change: &Change<'_>) {
        match change {
            Change::Begin { timestamp, .. } => self.tables.begin(*timestamp),
            Change::Message { content, .. } => publish(content),
            Change::Relation(relation) => {
                let arrival = self.tables.arrives();
                self.tables.relation(relation, arrival);
            }
            Change::Insert { relation, new } => {
                walk(*new);
                self.row(*relation, *new);
            }
            Change::Update { old, new, .. } => {
                walk(*new);
                if let Some(old) = old {
                    walk_old(old);
                }
            }
            Change::Delete { old, .. } => walk_old(old),
            _ => {}
        }
    }

    fn row(&mut self, relation: RelationId, row: Tuple<'_>) {
        if !self.tables.hold(relation) {
            return;
        }
        self.frame.clear();
        match self.tables.frame(relation, row, &mut self.frame) {
            Ok(()) => publish(&self.frame),
            Err(_) => {
                self.tables.show(relation, row, &mut self.frame);
                let shown: Result<serde_json::Value, _> = serde_json::from_slice(&self.frame);
                assert!(shown.is_ok(), "a row is shown as json");
            }
        }
    }
}

/// Makes the record of a message, or the dead letter of what is none.
fn publish(content: &[u8]) {
    let size = |record: &Record<'_>| {
        let mut size = record.key().map_or(0, <[u8]>::len);
        size += record.value().map_or(0, <[u8]>::len);
        record.each_header(|name, value| size += name.len() + value.len());
        assert_eq!(record.size(), size, "{record:?}");
    };
    match record::decode(content) {
        Ok(frame) => size(&Record::new(frame, "relay:1")),
        Err(unpublishable) => {
            let place = Place { commit_lsn: Lsn(7), ordinal: Ordinal(0) };
            let at = std::time::SystemTime::UNIX_EPOCH;
            let cause = dead_letter::Cause { relay_id: "relay", place, at, why: &unpublishable };
            let letter = dead_letter::headers(content, &cause);
            size(&Record::dead_letter("letters", content, 0, "relay:1", &letter, 0));
        }
    }
}

fn walk(row: Tuple<'_>) {
    let bytes: usize = row
        .columns()
        .map(|column| match column {
            Column::Null | Column::Unchanged => 0,
            Column::Text(bytes) | Column::Binary(bytes) => bytes.len(),
        })
        .sum();
    assert!(row.columns().len() == row.len() && bytes <= usize::from(u16::MAX));
}

fn walk_old(old: &OldRow<'_>) {
    match old {
        OldRow::Key(row) | OldRow::Full(row) => walk(*row),
    }
}

/// What was read is written and read again as the same.
fn again(stored: &Stored) {
    let mut saved = Saved::new();
    if let Some(checkpoint) = &stored.checkpoint {
        saved.insert(CHECKPOINT_KEY.to_owned(), checkpoint.encode(1));
    }
    if let Some(intent) = &stored.intent {
        saved.insert(INTENT_KEY.to_owned(), intent.encode(1));
    }
    let again: Result<Stored, Error> = Stored::read(&saved);
    assert_eq!(again.ok().as_ref(), Some(stored));
}

/// What is read from this text is shown in a form that is read as the same.
fn shown_again<T>(text: &str)
where
    T: std::str::FromStr + std::fmt::Display + std::fmt::Debug + PartialEq,
{
    if let Ok(read) = text.parse::<T>() {
        assert_eq!(read.to_string().parse().ok(), Some(read));
    }
}

#[cfg(test)]
mod tests;
