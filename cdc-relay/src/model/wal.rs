//! The source: a log that is written already, and what a slot sends of it.

use crate::lsn::Lsn;
use crate::position::{Ordinal, Place};

/// Messages are told apart by their place in the order of commits.
pub(super) type Number = u8;

/// One event of the stream. A transaction's begin travels with its first change: the relay sees
/// nothing between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Change { commit_lsn: Lsn, lsn: Lsn, begins: bool, message: Option<Number> },
    Commit { commit_lsn: Lsn, end_lsn: Lsn },
    Keepalive { wal_end: Lsn },
}

/// A message that the source has committed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    pub(super) place: Place,
    pub(super) key: usize,
}

/// A log.
#[derive(Clone, Debug)]
pub(super) struct Wal {
    pub(super) start: Lsn,
    pub(super) end: Lsn,
    pub(super) events: Vec<Event>,
    pub(super) messages: Vec<Message>,
}

/// A change: where it stands, and the key of the message that it is, unless it is of another
/// prefix.
type Change = (u64, Option<usize>);

impl Wal {
    fn new(start: u64) -> Self {
        Wal { start: Lsn(start), end: Lsn(start), events: Vec::new(), messages: Vec::new() }
    }

    fn transaction(mut self, changes: &[Change], commit: u64, end: u64) -> Self {
        let commit_lsn = Lsn(commit);
        for (at, (lsn, key)) in changes.iter().enumerate() {
            let ordinal = Ordinal(u32::try_from(at).unwrap());
            let message = key.map(|key| {
                self.messages.push(Message { place: Place { commit_lsn, ordinal }, key });
                Number::try_from(self.messages.len() - 1).unwrap()
            });
            self.events.push(Event::Change {
                commit_lsn,
                lsn: Lsn(*lsn),
                begins: at == 0,
                message,
            });
        }
        self.events.push(Event::Commit { commit_lsn, end_lsn: Lsn(end) });
        self.end = Lsn(end);
        self
    }

    /// Log that is not for us, and the keepalive that tells of it.
    fn foreign(mut self, wal_end: u64) -> Self {
        self.events.push(Event::Keepalive { wal_end: Lsn(wal_end) });
        self.end = Lsn(wal_end);
        self
    }

    /// Keepalives that the server sends in the midst of the last transaction, before each of its
    /// last two changes, with the end of what it has decoded.
    fn keepalives_inside(mut self) -> Self {
        for before_the_end in [2, 4] {
            let at = self.events.len() - before_the_end;
            self.events.insert(at, Event::Keepalive { wal_end: self.end });
        }
        self
    }

    /// One transaction of one change, foreign log, a short transaction, and a long one that began
    /// before the short one and ends where that ends; in the long one is a change that is not ours,
    /// and it is split. Foreign log at the end.
    pub(super) fn of_all_shapes() -> Self {
        Wal::new(100)
            .transaction(&[(110, Some(0))], 120, 130)
            .foreign(500)
            .transaction(&[(530, Some(1))], 540, 550)
            .transaction(&[(510, Some(0)), (515, None), (520, Some(1)), (535, Some(0))], 550, 560)
            .keepalives_inside()
            .foreign(1_000)
    }

    /// A transaction that is split between two of one change.
    pub(super) fn split() -> Self {
        Wal::new(100)
            .transaction(&[(110, Some(0))], 120, 130)
            .transaction(&[(140, Some(0)), (145, None), (150, Some(1)), (155, Some(0))], 160, 170)
            .transaction(&[(180, Some(1))], 190, 200)
            .foreign(600)
    }

    /// Transactions of one change, and foreign log.
    pub(super) fn short() -> Self {
        Wal::new(100)
            .transaction(&[(110, Some(0))], 120, 130)
            .transaction(&[(140, Some(0))], 150, 160)
            .foreign(600)
    }

    /// One message, and foreign log.
    pub(super) fn one_message() -> Self {
        Wal::new(100).transaction(&[(110, Some(0))], 120, 130).foreign(600)
    }

    /// The event with which the stream of a slot begins that was flushed to `confirmed`: a
    /// transaction that committed before is not sent.
    pub(super) fn first_after(&self, confirmed: Lsn) -> usize {
        let sent = |event: &Event| match event {
            Event::Change { commit_lsn, .. } | Event::Commit { commit_lsn, .. } => {
                *commit_lsn >= confirmed
            }
            Event::Keepalive { wal_end } => *wal_end > confirmed,
        };
        self.events.iter().position(sent).unwrap_or(self.events.len())
    }
}
