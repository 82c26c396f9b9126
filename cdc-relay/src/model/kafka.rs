//! Kafka, as specified for transactions: what is durable, and what may still arrive.

use super::TURNS;
use super::wal::Number;
use crate::checkpoint::Published;
use crate::sink::turns::Turn;

/// What is saved in the checkpoint topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Entry {
    Intent,
    Checkpoint(Published),
}

/// What a producer asks of the brokers. Answers are not modelled: whoever waits for one sees that
/// the request has been carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Request {
    InitProducerId,
    Produce(Number),
    Save(Entry),
    /// A save outside of any transaction: no relay of ours sends it.
    SavePlainly(Entry),
    Commit,
}

/// Whether a record counts. One that was aborted is taken out at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fate {
    Open(Turn),
    Committed,
}

/// One value per transactional id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct PerTurn<T>([T; TURNS.len()]);

impl<T> PerTurn<T> {
    pub(super) fn of(&self, turn: Turn) -> &T {
        &self.0[turn as usize]
    }

    pub(super) fn of_mut(&mut self, turn: Turn) -> &mut T {
        &mut self.0[turn as usize]
    }
}

/// The brokers.
///
/// Epochs are not counted here: each session knows whether its own is the newest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Kafka {
    /// Records in the order in which they were appended, a partition per key.
    records: [Vec<(Number, Fate)>; 2],
    /// The checkpoint topic, compacted.
    saved: Vec<(Entry, Fate)>,
    /// Requests of the newest epoch whose sender is gone.
    pub(super) orphans: PerTurn<Vec<Request>>,
    /// Requests for a new epoch whose sender is gone.
    pub(super) orphan_inits: PerTurn<u8>,
}

impl Kafka {
    pub(super) fn append(&mut self, turn: Turn, number: Number, key: usize) {
        self.records[key].push((number, Fate::Open(turn)));
    }

    pub(super) fn save(&mut self, turn: Turn, entry: Entry) {
        self.saved.push((entry, Fate::Open(turn)));
    }

    pub(super) fn save_plainly(&mut self, entry: Entry) {
        self.saved.push((entry, Fate::Committed));
    }

    /// Ends the open transaction of an id, well.
    pub(super) fn commit(&mut self, turn: Turn) {
        let fates = self.records.iter_mut().flatten().map(|(_, fate)| fate);
        for fate in fates.chain(self.saved.iter_mut().map(|(_, fate)| fate)) {
            if *fate == Fate::Open(turn) {
                *fate = Fate::Committed;
            }
        }
    }

    /// Ends the open transaction of an id, and with it what still was to arrive: a later epoch
    /// fences it.
    pub(super) fn abort(&mut self, turn: Turn) {
        for records in &mut self.records {
            records.retain(|(_, fate)| *fate != Fate::Open(turn));
        }
        self.saved.retain(|(_, fate)| *fate != Fate::Open(turn));
        self.orphans.of_mut(turn).clear();
    }

    pub(super) fn has_open(&self, turn: Turn) -> bool {
        let fates = self.records.iter().flatten().map(|(_, fate)| fate);
        fates.chain(self.saved.iter().map(|(_, fate)| fate)).any(|fate| *fate == Fate::Open(turn))
    }

    /// Forgets what newer entries have replaced, but for the newest `kept` checkpoints.
    pub(super) fn compact(&mut self, kept: usize) {
        let (mut checkpoints, mut intents) = (0, 0);
        for at in (0..self.saved.len()).rev() {
            let is_old = match &self.saved[at] {
                (_, Fate::Open(_)) => false,
                (Entry::Checkpoint(_), Fate::Committed) => {
                    checkpoints += 1;
                    checkpoints > kept
                }
                (Entry::Intent, Fate::Committed) => {
                    intents += 1;
                    intents > 1
                }
            };
            if is_old {
                self.saved.remove(at);
            }
        }
    }

    /// Whether everything below the end of the checkpoint topic is certain.
    pub(super) fn is_settled(&self) -> bool {
        self.saved.iter().all(|(_, fate)| *fate == Fate::Committed)
    }

    /// The committed checkpoints, the newest first.
    pub(super) fn checkpoints(&self) -> impl Iterator<Item = Published> {
        self.saved.iter().rev().filter_map(|saved| match saved {
            (Entry::Checkpoint(published), Fate::Committed) => Some(*published),
            _ => None,
        })
    }

    pub(super) fn has_intent(&self) -> bool {
        self.saved.contains(&(Entry::Intent, Fate::Committed))
    }

    /// What read_committed readers of a key see: up to the last stable offset.
    pub(super) fn read(&self, key: usize) -> impl Iterator<Item = Number> {
        let stable = |record: &&(Number, Fate)| record.1 == Fate::Committed;
        self.records[key].iter().take_while(stable).map(|(number, _)| *number)
    }

    /// Whether a record is sure to be seen.
    pub(super) fn holds(&self, number: Number, key: usize) -> bool {
        self.records[key].contains(&(number, Fate::Committed))
    }
}
