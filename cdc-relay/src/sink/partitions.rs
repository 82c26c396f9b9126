//! How many partitions each topic has, as the relay knows and writes down.
//!
//! The count decides where a key's records go. It is written beside the checkpoint, so that a
//! relay that starts again can tell that somebody has changed it meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Saved;
use crate::error::Error;
use crate::saved::{VERSION, decode, encode};

/// Before a topic's name: the key of its partition count among the saved entries.
pub(super) const KEY: &str = "partitions:";

/// Topics that are remembered; beyond it all are asked for again.
pub(super) const TOPICS_MAX: usize = 10_000;

/// Commits after which every count is written again. A reader of the checkpoint topic so finds
/// them near its end ([`super::checkpoint_topic`]), however long ago they changed.
pub(super) const REPEAT_AFTER: u32 = 4_096;

#[derive(Serialize, Deserialize)]
struct Entry {
    version: u32,
    partitions: i32,
    relay_version: String,
}

/// The partition counts of a session's topics.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    /// As an earlier session wrote them down.
    stored: BTreeMap<String, i32>,
    /// As the brokers said in this session.
    known: BTreeMap<String, i32>,
    /// To be written with the next commit.
    unwritten: BTreeSet<String>,
    commits: u32,
}

impl Partitions {
    /// Takes over what an earlier session wrote down.
    pub(crate) fn restore(&mut self, saved: &Saved) -> Result<(), Error> {
        for (key, value) in saved {
            if let Some(topic) = key.strip_prefix(KEY) {
                let entry: Entry = decode(value)?;
                self.stored.insert(topic.to_owned(), entry.partitions);
            }
        }
        Ok(())
    }

    /// The brokers say that a topic has this many partitions. Answers with the count that was
    /// written down, if it is another one.
    pub(super) fn learn(&mut self, topic: &str, count: i32) -> Option<i32> {
        if self.known.len() >= TOPICS_MAX {
            self.known.clear();
        }
        let before = self.stored.insert(topic.to_owned(), count);
        self.known.insert(topic.to_owned(), count);
        if before == Some(count) {
            return None;
        }
        self.unwritten.insert(topic.to_owned());
        before
    }

    /// What belongs into the transaction that is about to be committed.
    pub(super) fn due(&mut self) -> Vec<(String, Vec<u8>)> {
        self.commits += 1;
        if self.commits >= REPEAT_AFTER {
            self.commits = 0;
            self.unwritten.extend(self.known.keys().cloned());
        }
        let unwritten = std::mem::take(&mut self.unwritten);
        let entry = |topic: String| {
            let partitions = *self.known.get(&topic)?;
            let relay_version = env!("CARGO_PKG_VERSION").to_owned();
            let entry = Entry { version: VERSION, partitions, relay_version };
            Some((format!("{KEY}{topic}"), encode(&entry)))
        };
        unwritten.into_iter().filter_map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Partitions, REPEAT_AFTER};

    fn written(topic: &str, count: i32) -> (String, Vec<u8>) {
        let version = env!("CARGO_PKG_VERSION");
        let value = format!(r#"{{"version":1,"partitions":{count},"relay_version":"{version}"}}"#);
        (format!("partitions:{topic}"), value.into_bytes())
    }

    #[test]
    fn a_count_is_written_when_it_is_new_or_has_changed() {
        let mut partitions = Partitions::default();
        let saved = [written("orders", 3), written("stock", 3), ("checkpoint".to_owned(), vec![])];
        partitions.restore(&saved.into()).unwrap();

        assert_eq!(partitions.learn("orders", 3), None);
        assert_eq!(partitions.learn("stock", 6), Some(3));
        assert_eq!(partitions.learn("payments", 1), None);

        assert_eq!(partitions.due(), [written("payments", 1), written("stock", 6)]);
        assert_eq!(partitions.due(), []);
    }

    #[test]
    fn every_count_is_written_again_now_and_then() {
        let mut partitions = Partitions::default();
        partitions.restore(&[written("orders", 3)].into()).unwrap();
        partitions.learn("orders", 3);

        let due: Vec<_> = (0..2 * REPEAT_AFTER).flat_map(|_| partitions.due()).collect();

        assert_eq!(due, vec![written("orders", 3); 2]);
    }
}
