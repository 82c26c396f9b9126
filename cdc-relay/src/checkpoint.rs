//! The durable record of what is published.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::Error;
use crate::lsn::Lsn;
use crate::position::{Incarnation, Ordinal};
use crate::progress::Counting;
use crate::publication::Seen;
use crate::saved::{VERSION, decode, encode, is_of_later, malformed};
use crate::sink::Saved;
use crate::status::Status;

/// How far the source is published, written in the same Kafka transaction as the records that it
/// covers (design: the relay's position rules).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) source: Source,
    pub(crate) progress: Published,
    pub(crate) reads: Reads,
}

/// What a relay takes for messages, as far as it was written down: at first it was not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reads {
    /// The prefix of logical messages.
    pub(crate) prefix: Option<String>,
    /// The publication, as it was seen last.
    pub(crate) publication: Option<Seen>,
}

impl Reads {
    /// What a relay with these settings reads, and how it has seen the publication.
    pub(crate) fn of(config: &Config, report: &Status) -> Self {
        let prefix = config.published_prefix().map(str::to_owned);
        Reads { prefix, publication: report.publication() }
    }

    /// Whether nothing but the time of the look differs.
    pub(crate) fn is_as(&self, other: &Reads) -> bool {
        let tables = |reads: &'_ Reads| {
            reads.publication.as_ref().map(|seen| seen.tables.clone()).unwrap_or_default()
        };
        self.prefix == other.prefix && tables(self) == tables(other)
    }
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Published {
    /// End of the last whole transaction. The slot starts and is flushed here, and nowhere else.
    pub(crate) flush_lsn: Lsn,
    /// The last published change of a transaction that more is to come of.
    pub(crate) partial: Option<Partial>,
}

/// A place inside a transaction that is split over several Kafka transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Partial {
    pub(crate) commit_lsn: Lsn,
    pub(crate) ordinal: Ordinal,
    /// Where the change itself stands: read again, the same ordinal must have it.
    pub(crate) change_lsn: Lsn,
    /// What the ordinal counts.
    pub(crate) counting: Counting,
}

/// Said before a slot is created, so that a slot without a checkpoint can be told from one whose
/// checkpoint was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Intent {
    pub(crate) source: Source,
}

/// What a relay has saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) intent: Option<Intent>,
}

/// Key of the checkpoint in the compacted topic.
pub(crate) const CHECKPOINT_KEY: &str = "checkpoint";
/// Key of the intent in the compacted topic.
pub(crate) const INTENT_KEY: &str = "intent";

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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    publication: Option<PublicationRecord>,
    relay_version: String,
    /// Milliseconds since the Unix epoch, for people: nothing is decided by it.
    time_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct PublicationRecord {
    at: String,
    tables: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct PartialRecord {
    commit_lsn: String,
    ordinal: u32,
    change_lsn: String,
    /// Whether the ordinal does not count logical messages.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    rows_alone: bool,
}

impl Checkpoint {
    /// The record's value.
    pub(crate) fn encode(&self, time_ms: u64) -> Vec<u8> {
        let partial = self.progress.partial.map(|partial| PartialRecord {
            commit_lsn: partial.commit_lsn.to_string(),
            ordinal: partial.ordinal.0,
            change_lsn: partial.change_lsn.to_string(),
            rows_alone: partial.counting == Counting::Rows,
        });
        let publication = self
            .reads
            .publication
            .as_ref()
            .map(|seen| PublicationRecord { at: seen.at.to_string(), tables: seen.tables.clone() });
        encode(&Record {
            flush_lsn: Some(self.progress.flush_lsn.to_string()),
            partial,
            prefix: self.reads.prefix.clone(),
            publication,
            ..record(&self.source, time_ms)
        })
    }
}

impl Intent {
    /// The record's value.
    pub(crate) fn encode(&self, time_ms: u64) -> Vec<u8> {
        encode(&record(&self.source, time_ms))
    }
}

impl Stored {
    /// Reads what a sink has saved for this relay.
    pub(crate) fn read(saved: &Saved) -> Result<Self, Error> {
        let checkpoint = saved.get(CHECKPOINT_KEY).map(|value| decode_checkpoint(value));
        let intent = saved.get(INTENT_KEY).map(|value| decode::<Record>(value));
        Ok(Stored {
            checkpoint: checkpoint.transpose()?,
            intent: intent.transpose()?.map(|record| Intent { source: record.source() }),
        })
    }
}

impl Stored {
    /// As [`Stored::read`], for whoever begins anew: what no relay can have written counts as
    /// lost, and is answered as an error beside the rest. What a later release wrote does not.
    pub(crate) fn read_or_lost(saved: &Saved) -> Result<(Self, Option<Error>), Error> {
        match Stored::read(saved) {
            Ok(stored) => Ok((stored, None)),
            Err(error) => {
                let of_later = |key| saved.get(key).is_some_and(|value| is_of_later(value));
                match of_later(CHECKPOINT_KEY) || of_later(INTENT_KEY) {
                    true => Err(error),
                    false => Ok((Stored::default(), Some(error))),
                }
            }
        }
    }
}

/// When the checkpoint was written, in milliseconds since the Unix epoch; for people.
pub(crate) fn written_ms(saved: &Saved) -> Option<u64> {
    let record: Record = decode(saved.get(CHECKPOINT_KEY)?).ok()?;
    Some(record.time_ms)
}

fn record(source: &Source, time_ms: u64) -> Record {
    Record {
        version: VERSION,
        system_identifier: source.system_identifier.clone(),
        timeline: source.timeline,
        database: source.database.clone(),
        slot: source.slot.clone(),
        incarnation: source.incarnation.0,
        flush_lsn: None,
        partial: None,
        prefix: None,
        publication: None,
        relay_version: env!("CARGO_PKG_VERSION").to_owned(),
        time_ms,
    }
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
            counting: if partial.rows_alone { Counting::Rows } else { Counting::All },
        }),
    };
    let publication = match &record.publication {
        None => None,
        Some(seen) => Some(Seen { at: lsn(&seen.at)?, tables: seen.tables.clone() }),
    };
    let reads = Reads { prefix: record.prefix.clone(), publication };
    let progress = Published { flush_lsn, partial };
    Ok(Checkpoint { source: record.source(), progress, reads })
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

#[cfg(test)]
mod tests {
    use super::{
        CHECKPOINT_KEY, Checkpoint, INTENT_KEY, Intent, Partial, Published, Reads, Source, Stored,
    };
    use crate::error::Kind;
    use crate::lsn::Lsn;
    use crate::position::{Incarnation, Ordinal};
    use crate::progress::Counting;
    use crate::publication::Seen;

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
        let partial = |counting| Partial {
            commit_lsn: Lsn(0x30),
            ordinal: Ordinal(4),
            change_lsn: Lsn(0x25),
            counting,
        };
        for partial in [None, Some(partial(Counting::All)), Some(partial(Counting::Rows))] {
            let progress = Published { flush_lsn: Lsn(0x1_0000_0010), partial };
            let tables = [("\"public\".\"events\"".to_owned(), "1.2.3.4".to_owned())].into();
            let reads = Reads {
                prefix: Some("tailrace".to_owned()),
                publication: Some(Seen { at: Lsn(0x20), tables }),
            };
            let checkpoint = Checkpoint { source: source(), progress, reads };
            let intent = Intent { source: source() };
            let saved = [
                (INTENT_KEY.to_owned(), intent.encode(1)),
                (CHECKPOINT_KEY.to_owned(), checkpoint.encode(2)),
                ("of a later release".to_owned(), b"?".to_vec()),
            ];

            let stored = Stored::read(&saved.into()).unwrap();

            assert_eq!(stored, Stored { checkpoint: Some(checkpoint), intent: Some(intent) });
        }
    }

    #[test]
    fn the_bytes_of_version_1_stay() {
        let progress = Published { flush_lsn: Lsn(0x16_B374_D848), partial: None };

        let checkpoint = Checkpoint { source: source(), progress, reads: Reads::default() };
        let value = checkpoint.encode(1_763_000_000_000);

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
        for value in ["", "{}", r#"{"version":2}"#, "\u{0}"] {
            let saved = [(CHECKPOINT_KEY.to_owned(), value.as_bytes().to_vec())];

            let saved = saved.into();
            let refused = Stored::read(&saved).unwrap_err();

            assert_eq!(refused.kind(), Kind::Gap, "{value}");
            // Who begins anew may leave it behind, unless a later release could still read it.
            let lost = Stored::read_or_lost(&saved).map(|(stored, _)| stored).ok();
            assert_eq!(lost, (!value.contains('2')).then(Stored::default), "{value}");
        }
    }
}
