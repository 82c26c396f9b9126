//! Which of two transactional producers is filled, and which commits.
//!
//! One producer commits while the other is filled, so that the time of a commit is not lost. What
//! keeps that safe, each to be explored in `tests/`:
//!
//! - A producer is filled only after the other has the answer to each of its records; else records
//!   of a key could land in the wrong order.
//! - A commit begins only when the one before, on the other producer, is certain; else a crash
//!   could keep the later one and lose the earlier.
//! - The first commit of a session is on the first producer. Of two relays that both believe to
//!   lead, the one that was fenced there never comes to commit on the other.

/// One of the two producers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Turn {
    /// The first to be fenced and the first to commit.
    A,
    B,
}

impl Turn {
    /// Both, in the order in which a session takes them over.
    pub(crate) const BOTH: [Turn; 2] = [Turn::A, Turn::B];

    fn other(self) -> Turn {
        match self {
            Turn::A => Turn::B,
            Turn::B => Turn::A,
        }
    }
}

/// Where the two producers of a session stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Turns {
    filling: Turn,
    committing: bool,
}

impl Turns {
    /// A session begins: nothing is under way.
    pub(crate) fn new() -> Self {
        Turns { filling: Turn::A, committing: false }
    }

    /// The producer that records go to.
    pub(crate) fn filling(&self) -> Turn {
        self.filling
    }

    /// The producer whose commit is under way.
    pub(crate) fn committing(&self) -> Option<Turn> {
        self.committing.then(|| self.filling.other())
    }

    /// The filled producer has all its answers: answers which one commits now, while the other is
    /// filled; `None` while the commit before is not certain.
    pub(crate) fn seal(&mut self) -> Option<Turn> {
        if self.committing {
            return None;
        }
        let sealed = self.filling;
        self.filling = sealed.other();
        self.committing = true;
        Some(sealed)
    }

    /// The commit under way is certain.
    pub(crate) fn committed(&mut self) {
        self.committing = false;
    }
}

/// The transactional id of one of a relay's producers.
pub(super) fn transactional_id(relay_id: &str, turn: Turn) -> String {
    let turn = match turn {
        Turn::A => "a",
        Turn::B => "b",
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

        assert_eq!(turns.seal(), Some(Turn::A));
        assert_eq!((turns.filling(), turns.committing()), (Turn::B, Some(Turn::A)));
        assert_eq!(turns.seal(), None);

        turns.committed();
        assert_eq!((turns.filling(), turns.committing()), (Turn::B, None));
        assert_eq!(turns.seal(), Some(Turn::B));
        assert_eq!((turns.filling(), turns.committing()), (Turn::A, Some(Turn::B)));
    }
}
