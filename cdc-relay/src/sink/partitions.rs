//! How many partitions each topic has, as the relay knows and writes down.
//!
//! The count decides where a key's records go. It is written beside the checkpoint, so that a
//! relay that starts again can tell that somebody has changed it meanwhile.

use std::collections::{BTreeMap, BTreeSet};

/// Topics that are remembered; beyond it all are asked for again.
const TOPICS_MAX: usize = 10_000;

/// Commits after which every count is written again. A reader of the checkpoint topic so finds
/// them near its end ([`super::checkpoint_topic`]), however long ago they changed.
pub(super) const REPEAT_AFTER: u32 = 4_096;

/// The partition counts of a session's topics.
#[derive(Debug, Default)]
pub(super) struct Partitions {
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
    pub(super) fn restore(&mut self, stored: BTreeMap<String, i32>) {
        self.stored = stored;
    }

    pub(super) fn knows(&self, topic: &str) -> bool {
        self.known.contains_key(topic)
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
    pub(super) fn due(&mut self) -> Vec<(String, i32)> {
        self.commits += 1;
        if self.commits >= REPEAT_AFTER {
            self.commits = 0;
            self.unwritten.extend(self.known.keys().cloned());
        }
        let unwritten = std::mem::take(&mut self.unwritten);
        let count = |topic: String| self.known.get(&topic).map(|count| (topic.clone(), *count));
        unwritten.into_iter().filter_map(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Partitions, REPEAT_AFTER};

    #[test]
    fn a_count_is_written_when_it_is_new_or_has_changed() {
        let mut partitions = Partitions::default();
        partitions.restore([("orders".to_owned(), 3), ("stock".to_owned(), 3)].into());

        assert_eq!(partitions.learn("orders", 3), None);
        assert_eq!(partitions.learn("stock", 6), Some(3));
        assert_eq!(partitions.learn("payments", 1), None);

        assert!(partitions.knows("orders") && !partitions.knows("other"));
        assert_eq!(partitions.due(), [("payments".to_owned(), 1), ("stock".to_owned(), 6)]);
        assert_eq!(partitions.due(), []);
    }

    #[test]
    fn every_count_is_written_again_now_and_then() {
        let mut partitions = Partitions::default();
        partitions.restore([("orders".to_owned(), 3)].into());
        partitions.learn("orders", 3);

        let written: Vec<_> = (0..2 * REPEAT_AFTER).flat_map(|_| partitions.due()).collect();

        assert_eq!(written, vec![("orders".to_owned(), 3); 2]);
    }
}
