//! The durable record of what is published.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind};
use crate::lsn::Lsn;
use crate::position::{Incarnation, Ordinal};

/// Version of the record's format. A newer one is refused.
const VERSION: u32 = 1;

/// How far the source is published, written in the same Kafka transaction as the records that it
/// covers (design: the relay's position rules).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) source: Source,
    pub(crate) progress: Published,
}

/// Which life of which slot of which server a checkpoint speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// The cluster's own number, as `IDENTIFY_SYSTEM` tells it.
    pub(crate) system_identifier: String,
    pub(crate) timeline: u32,
    pub(crate) database: String,
    pub(crate) slot: String,
    pub(crate) incarnation: Incarnation,
}

/// How far a slot's life is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    /// End of the last whole transaction. The slot starts and is flushed here, and nowhere else.
    pub(crate) flush_lsn: Lsn,
    /// The last published change of a transaction that more is to come of.
    pub(crate) partial: Option<Partial>,
}

/// A place inside a transaction that is split over several Kafka transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Partial {
    pub(crate) commit_lsn: Lsn,
    pub(crate) ordinal: Ordinal,
    /// Where the change itself stands: read again, the same ordinal must have it.
    pub(crate) change_lsn: Lsn,
}

/// Said before a slot is created, so that a slot without a checkpoint can be told from one whose
/// checkpoint was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Intent {
    pub(crate) source: Source,
}

/// What a relay's checkpoint topic holds in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) intent: Option<Intent>,
    /// Topics and their partition counts: those that were written down near the topic's end.
    pub(crate) partitions: BTreeMap<String, i32>,
}

/// Key of the checkpoint in the compacted topic.
pub(crate) const CHECKPOINT_KEY: &str = "checkpoint";
/// Key of the intent in the compacted topic.
pub(crate) const INTENT_KEY: &str = "intent";
/// Before a topic's name: the key of its partition count.
const PARTITIONS_KEY: &str = "partitions:";

const TOPIC_PREFIX: &str = "tailrace.checkpoint.";

/// The topic that holds a relay's checkpoint.
pub(crate) fn topic(relay_id: &str) -> String {
    format!("{TOPIC_PREFIX}{relay_id}")
}

/// Whether a topic is some relay's: a message there would be read as a checkpoint.
pub(crate) fn is_topic(name: &str) -> bool {
    name.starts_with(TOPIC_PREFIX)
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    system_identifier: String,
    timeline: u32,
    database: String,
    slot: String,
    incarnation: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    flush_lsn: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partial: Option<PartialRecord>,
    relay_version: String,
    /// Milliseconds since the Unix epoch, for people: nothing is decided by it.
    time_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct PartitionsRecord {
    version: u32,
    partitions: i32,
    relay_version: String,
    time_ms: u64,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct PartialRecord {
    commit_lsn: String,
    ordinal: u32,
    change_lsn: String,
}

impl Checkpoint {
    /// The record's value.
    pub(crate) fn encode(&self, time_ms: u64) -> Vec<u8> {
        let partial = self.progress.partial.map(|partial| PartialRecord {
            commit_lsn: partial.commit_lsn.to_string(),
            ordinal: partial.ordinal.0,
            change_lsn: partial.change_lsn.to_string(),
        });
        encode(&self.source, Some(self.progress.flush_lsn), partial, time_ms)
    }
}

impl Intent {
    /// The record's value.
    pub(crate) fn encode(&self, time_ms: u64) -> Vec<u8> {
        encode(&self.source, None, None, time_ms)
    }
}

/// The key and the value of a topic's partition count.
pub(crate) fn encode_partitions(topic: &str, partitions: i32, time_ms: u64) -> (String, Vec<u8>) {
    let record = PartitionsRecord {
        version: VERSION,
        partitions,
        relay_version: env!("CARGO_PKG_VERSION").to_owned(),
        time_ms,
    };
    (format!("{PARTITIONS_KEY}{topic}"), json(&record))
}

impl Stored {
    /// Takes one record of the topic in, in the order of the topic.
    pub(crate) fn take(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<(), Error> {
        match (key, value) {
            (Some(key), Some(value)) if key == CHECKPOINT_KEY.as_bytes() => {
                self.checkpoint = Some(decode_checkpoint(value)?);
            }
            (Some(key), Some(value)) if key == INTENT_KEY.as_bytes() => {
                self.intent = Some(Intent { source: decode::<Record>(value)?.source() });
            }
            (Some(key), Some(value)) if key.starts_with(PARTITIONS_KEY.as_bytes()) => {
                let topic = String::from_utf8_lossy(key);
                let topic = topic.strip_prefix(PARTITIONS_KEY).unwrap_or_default().to_owned();
                self.partitions.insert(topic, decode::<PartitionsRecord>(value)?.partitions);
            }
            // Keys of a later release are for that release.
            _ => {}
        }
        Ok(())
    }
}

fn encode(
    source: &Source,
    flush_lsn: Option<Lsn>,
    partial: Option<PartialRecord>,
    time_ms: u64,
) -> Vec<u8> {
    let record = Record {
        version: VERSION,
        system_identifier: source.system_identifier.clone(),
        timeline: source.timeline,
        database: source.database.clone(),
        slot: source.slot.clone(),
        incarnation: source.incarnation.0,
        flush_lsn: flush_lsn.map(|lsn| lsn.to_string()),
        partial,
        relay_version: env!("CARGO_PKG_VERSION").to_owned(),
        time_ms,
    };
    json(&record)
}

fn json(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record of numbers and strings is valid JSON")
}

fn decode<T: DeserializeOwned>(value: &[u8]) -> Result<T, Error> {
    let unreadable = |error| malformed("is not readable", error);
    // The version first: a later format may lack what this one demands.
    let Version { version } = serde_json::from_slice(value).map_err(unreadable)?;
    if version != VERSION {
        return Err(Error::new(
            Kind::Gap,
            format!("the checkpoint has version {version}, this relay knows {VERSION}"),
        )
        .hint("run the relay release that wrote it, or a newer one"));
    }
    serde_json::from_slice(value).map_err(unreadable)
}

fn decode_checkpoint(value: &[u8]) -> Result<Checkpoint, Error> {
    let record: Record = decode(value)?;
    let lsn = |text: &str| text.parse::<Lsn>().map_err(|error| malformed("has a bad lsn", error));
    let flush_lsn = lsn(record.flush_lsn.as_deref().unwrap_or_default())?;
    let partial = match &record.partial {
        None => None,
        Some(partial) => Some(Partial {
            commit_lsn: lsn(&partial.commit_lsn)?,
            ordinal: Ordinal(partial.ordinal),
            change_lsn: lsn(&partial.change_lsn)?,
        }),
    };
    Ok(Checkpoint { source: record.source(), progress: Published { flush_lsn, partial } })
}

impl Record {
    fn source(&self) -> Source {
        Source {
            system_identifier: self.system_identifier.clone(),
            timeline: self.timeline,
            database: self.database.clone(),
            slot: self.slot.clone(),
            incarnation: Incarnation(self.incarnation),
        }
    }
}

fn malformed(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Kind::Gap, format!("the checkpoint {what}"))
        .hint("something else has written to the checkpoint topic: give each relay a topic of its own by --relay-id")
        .caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::{
        CHECKPOINT_KEY, Checkpoint, INTENT_KEY, Intent, Partial, Published, Source, Stored,
        encode_partitions,
    };
    use crate::error::Kind;
    use crate::lsn::Lsn;
    use crate::position::{Incarnation, Ordinal};

    fn source() -> Source {
        Source {
            system_identifier: "7423558143265738753".to_owned(),
            timeline: 1,
            database: "shop".to_owned(),
            slot: "tailrace".to_owned(),
            incarnation: Incarnation(1_700_000_000),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let partial = Partial { commit_lsn: Lsn(0x30), ordinal: Ordinal(4), change_lsn: Lsn(0x25) };
        for partial in [None, Some(partial)] {
            let progress = Published { flush_lsn: Lsn(0x1_0000_0010), partial };
            let checkpoint = Checkpoint { source: source(), progress };
            let intent = Intent { source: source() };
            let mut stored = Stored::default();

            stored.take(Some(INTENT_KEY.as_bytes()), Some(&intent.encode(1))).unwrap();
            stored.take(Some(CHECKPOINT_KEY.as_bytes()), Some(&checkpoint.encode(2))).unwrap();
            for count in [3, 6] {
                let (key, value) = encode_partitions("partitions:orders", count, 3);
                stored.take(Some(key.as_bytes()), Some(&value)).unwrap();
            }

            let partitions = [("partitions:orders".to_owned(), 6)].into();
            let written = (Some(checkpoint), Some(intent), partitions);
            assert_eq!((stored.checkpoint, stored.intent, stored.partitions), written);
        }
    }

    #[test]
    fn the_bytes_of_version_1_stay() {
        let progress = Published { flush_lsn: Lsn(0x16_B374_D848), partial: None };

        let value = Checkpoint { source: source(), progress }.encode(1_763_000_000_000);

        assert_eq!(
            String::from_utf8(value).unwrap(),
            format!(
                r#"{{"version":1,"system_identifier":"7423558143265738753","timeline":1,"database":"shop","slot":"tailrace","incarnation":1700000000,"flush_lsn":"16/B374D848","relay_version":"{}","time_ms":1763000000000}}"#,
                env!("CARGO_PKG_VERSION")
            )
        );
    }

    #[test]
    fn what_can_not_be_read_is_refused() {
        let key = Some(CHECKPOINT_KEY.as_bytes());
        for value in ["", "{}", r#"{"version":2}"#, "\u{0}"] {
            let refused = Stored::default().take(key, Some(value.as_bytes())).unwrap_err();

            assert_eq!(refused.kind(), Kind::Gap, "{value}");
        }
        Stored::default().take(Some(b"a later release"), Some(b"?")).unwrap();
    }
}
