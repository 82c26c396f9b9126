//! Which of the transactional producers is filled, and which commits.
//!
//! One producer commits while the next is filled, so that the time of a commit is not lost. They are three, though
//! only two of them are ever at work: a broker answers a commit before it has marked the end of the transaction in
//! every partition, and a client that begins the next one meanwhile is sent away for 20 ms
//! (`CONCURRENT_TRANSACTIONS`). The third has that time.
//!
//! What keeps that safe, each to be explored in `tests/`:
//!
//! - A producer is filled only after the one before has the answer to each of its records; else
//!   records of a key could land in the wrong order.
//! - A commit begins only when the one before, on another producer, is certain; else a crash
//!   could keep the later one and lose the earlier.
//! - The first commit of a session is on the first producer. Of two relays that both believe to
//!   lead, the one that was fenced there never comes to commit on the others.

/// One of the producers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Turn {
    /// The first to be fenced and the first to commit.
    A,
    B,
    C,
}

impl Turn {
    /// All, in the order in which a session takes them over.
    pub(crate) const ALL: [Turn; 3] = [Turn::A, Turn::B, Turn::C];

    fn next(self) -> Turn {
        match self {
            Turn::A => Turn::B,
            Turn::B => Turn::C,
            Turn::C => Turn::A,
        }
    }
}

/// Where the producers of a session stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Turns {
    filling: Turn,
    committing: Option<Turn>,
}

impl Turns {
    /// A session begins: nothing is under way.
    pub(crate) fn new() -> Self {
        Turns { filling: Turn::A, committing: None }
    }

    /// The producer that records go to.
    pub(crate) fn filling(&self) -> Turn {
        self.filling
    }

    /// The producer whose commit is under way.
    pub(crate) fn committing(&self) -> Option<Turn> {
        self.committing
    }

    /// The filled producer has all its answers: answers which one commits now, while the next is
    /// filled; `None` while the commit before is not certain.
    pub(crate) fn seal(&mut self) -> Option<Turn> {
        if self.committing.is_some() {
            return None;
        }
        let sealed = self.filling;
        self.filling = sealed.next();
        self.committing = Some(sealed);
        Some(sealed)
    }

    /// The commit under way is certain.
    pub(crate) fn committed(&mut self) {
        self.committing = None;
    }
}

/// The transactional id of one of a relay's producers.
pub(super) fn transactional_id(relay_id: &str, turn: Turn) -> String {
    let turn = match turn {
        Turn::A => "a",
        Turn::B => "b",
        Turn::C => "c",
    };
    format!("tailrace.relay.{relay_id}.{turn}")
}

#[cfg(test)]
mod tests {
    use super::{Turn, Turns};

    #[test]
    fn the_producers_take_turns_and_only_one_commits() {
        let mut turns = Turns::new();
        assert_eq!((turns.filling(), turns.committing()), (Turn::A, None));

        for (sealed, filling) in [(Turn::A, Turn::B), (Turn::B, Turn::C), (Turn::C, Turn::A)] {
            assert_eq!(turns.seal(), Some(sealed));
            assert_eq!((turns.filling(), turns.committing()), (filling, Some(sealed)));
            assert_eq!(turns.seal(), None);
            turns.committed();
            assert_eq!((turns.filling(), turns.committing()), (filling, None));
        }
    }
}
