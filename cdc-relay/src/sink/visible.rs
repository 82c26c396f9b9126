//! What is committed without a checkpoint that covers it.
//!
//! It is so only where the brokers have left a transaction open and committed a part of it ([`super::left_open`]). The
//! next session reads its source again from the checkpoint before, and leaves these out.

use std::collections::{BTreeSet, HashSet};

use serde::{Deserialize, Serialize};

use super::Saved;
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::position::Position;
use crate::saved::{VERSION, decode, encode};

/// Before a number: the key of a part of it among the saved entries.
const KEY: &str = "visible:";

/// How many places an entry holds: of 40 bytes and more, within the brokers' default for the size of a record.
const PLACES_MAX: usize = 4_000;

#[derive(Serialize, Deserialize)]
struct Entry {
    version: u32,
    sequences: Vec<String>,
    relay_version: String,
}

/// The places of records that are not to be published again.
#[derive(Debug, Default)]
pub(super) struct Visible(HashSet<String>);

impl Visible {
    /// What is to be saved of these places, each a `ce_sequence`. Parts of an earlier time that none of these replaces do
    /// no harm: what they name is visible still.
    pub(super) fn entries(sequences: &BTreeSet<String>) -> Vec<(String, Vec<u8>)> {
        let all: Vec<String> = sequences.iter().cloned().collect();
        let entry = |(number, sequences): (usize, &[String])| {
            let relay_version = env!("CARGO_PKG_VERSION").to_owned();
            let entry = Entry { version: VERSION, sequences: sequences.to_vec(), relay_version };
            (format!("{KEY}{number}"), encode(&entry))
        };
        all.chunks(PLACES_MAX).enumerate().map(entry).collect()
    }

    /// What is saved, as far as the checkpoint does not cover it.
    pub(super) fn restore(saved: &Saved, checkpoint: Option<&Checkpoint>) -> Result<Self, Error> {
        let mut places = HashSet::new();
        for (_, value) in saved.iter().filter(|(key, _)| key.starts_with(KEY)) {
            let entry: Entry = decode(value)?;
            places.extend(entry.sequences.into_iter().filter(|sequence| {
                let position = sequence.rsplit(':').next().and_then(Position::of_sequence);
                let covered = position.zip(checkpoint);
                !covered.is_some_and(|(position, checkpoint)| checkpoint.covers(&position))
            }));
        }
        Ok(Visible(places))
    }

    pub(super) fn holds(&self, sequence: Option<&str>) -> bool {
        !self.0.is_empty() && sequence.is_some_and(|sequence| self.0.contains(sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Partial, Published, Reads, Source};
    use crate::lsn::Lsn;
    use crate::position::{Incarnation, Ordinal};
    use crate::progress::Counting;

    fn sequence(incarnation: u32, commit_lsn: u64, ordinal: u32) -> String {
        let position = Position {
            incarnation: Incarnation(incarnation),
            commit_lsn: Lsn(commit_lsn),
            ordinal: Ordinal(ordinal),
        };
        format!("a:relay:{}", position.sequence())
    }

    #[test]
    fn what_is_saved_is_restored_unless_a_checkpoint_covers_it() {
        let all: BTreeSet<String> = (0..9_000).map(|at| sequence(7, 0x100, at)).collect();
        let saved: Saved = Visible::entries(&all).into_iter().collect();
        assert_eq!(saved.len(), 3);
        let holds = |visible: &Visible, text: String| visible.holds(Some(&text));

        let visible = Visible::restore(&saved, None).unwrap();
        assert!(all.iter().all(|sequence| visible.holds(Some(sequence))));
        assert!(!visible.holds(None) && !holds(&visible, sequence(8, 0x100, 0)));

        let (commit_lsn, ordinal) = (Lsn(0x100), Ordinal(3));
        let (change_lsn, counting) = (Lsn(0x90), Counting::All);
        let partial = Partial { commit_lsn, ordinal, change_lsn, counting };
        let mut checkpoint = Checkpoint {
            source: Source {
                system_identifier: "1".to_owned(),
                timeline: 1,
                database: "shop".to_owned(),
                slot: "tailrace".to_owned(),
                incarnation: Incarnation(7),
            },
            progress: Published { flush_lsn: Lsn(0x80), partial: Some(partial) },
            reads: Reads::default(),
        };
        let visible = Visible::restore(&saved, Some(&checkpoint)).unwrap();
        assert!(!holds(&visible, sequence(7, 0x100, 3)) && holds(&visible, sequence(7, 0x100, 4)));

        checkpoint.progress = Published { flush_lsn: Lsn(0x101), partial: None };
        let visible = Visible::restore(&saved, Some(&checkpoint)).unwrap();
        assert!(visible.0.is_empty());
    }
}
