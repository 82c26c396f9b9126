//! Which keys of a lane are parked, and when to look after them: the owner's view of `tailrace.parked_message`.
//!
//! Only the owner adds and removes rows, so what it remembers is what the table holds. The command line changes
//! states, which the owner finds when it looks, once a second while anything is parked.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::position::Offset;

/// How often the table is looked at for what a person has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The shortest time between two looks; clocks of two machines may disagree about what is due.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The messages of one key, or one message that has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Queue {
    Key(Vec<u8>),
    Single(Offset),
}

impl Queue {
    pub(crate) fn of(key: Option<&[u8]>, offset: Offset) -> Self {
        key.map_or(Self::Single(offset), |key| Self::Key(key.to_vec()))
    }

    pub(crate) fn key(&self) -> Option<&[u8]> {
        match self {
            Self::Key(key) => Some(key),
            Self::Single(_) => None,
        }
    }
}

/// The message of a queue that is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) offset: Offset,
    /// The time until it is tried again; none while it is stuck.
    pub(crate) wait: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Due {
    offset: Offset,
    at: Option<Instant>,
}

/// The parked queues of a lane.
#[derive(Debug, Default)]
pub(crate) struct Parked {
    keys: HashMap<Vec<u8>, Due>,
    singles: BTreeMap<Offset, Due>,
    looked: Option<Instant>,
}

impl Parked {
    pub(crate) fn holds(&self, key: &[u8]) -> bool {
        self.keys.contains_key(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len() + self.singles.len()
    }

    /// A queue has this head now, or is empty.
    pub(crate) fn set(&mut self, queue: Queue, head: Option<Head>, now: Instant) {
        let due = head.map(|head| Due {
            offset: head.offset,
            at: head.wait.and_then(|wait| now.checked_add(wait)),
        });
        match (queue, due) {
            (Queue::Key(key), Some(due)) => drop(self.keys.insert(key, due)),
            (Queue::Key(key), None) => drop(self.keys.remove(&key)),
            (Queue::Single(offset), Some(due)) => drop(self.singles.insert(offset, due)),
            (Queue::Single(offset), None) => drop(self.singles.remove(&offset)),
        }
    }

    /// The table is looked at now.
    pub(crate) fn looked(&mut self, now: Instant) {
        self.looked = Some(now);
    }

    /// When to look at the table again; none while nothing is parked.
    pub(crate) fn look_at(&self, now: Instant) -> Option<Instant> {
        if self.len() == 0 {
            return None;
        }
        let looked = self.looked.unwrap_or(now);
        let due = self.all().filter_map(|due| due.at).min();
        let latest = looked + LOOK_EVERY;
        let earliest = self.looked.map_or(now, |looked| looked + LOOK_AGAIN);
        Some(due.map_or(latest, |due| due.min(latest).max(earliest)))
    }

    pub(crate) fn head(&self, queue: &Queue) -> Option<Offset> {
        let due = match queue {
            Queue::Key(key) => self.keys.get(key),
            Queue::Single(offset) => self.singles.get(offset),
        };
        due.map(|due| due.offset)
    }

    /// The heads of all queues.
    pub(crate) fn heads(&self) -> Vec<Offset> {
        self.all().map(|due| due.offset).collect()
    }

    /// The queues with these heads.
    pub(crate) fn queues(&self, heads: &[Offset]) -> Vec<Queue> {
        let keys = self.keys.iter().filter(|(_, due)| heads.contains(&due.offset));
        let singles = self.singles.keys().filter(|offset| heads.contains(offset));
        keys.map(|(key, _)| Queue::Key(key.clone()))
            .chain(singles.map(|offset| Queue::Single(*offset)))
            .collect()
    }

    fn all(&self) -> impl Iterator<Item = &Due> {
        self.keys.values().chain(self.singles.values())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Queue {
        Queue::Key(name.as_bytes().to_vec())
    }

    fn head(offset: i64, wait_ms: Option<u64>) -> Option<Head> {
        Some(Head { offset: Offset::new(offset), wait: wait_ms.map(Duration::from_millis) })
    }

    fn look_in(parked: &Parked, now: Instant) -> Option<u128> {
        parked.look_at(now).map(|at| at.saturating_duration_since(now).as_millis())
    }

    #[test]
    fn the_table_is_looked_at_when_something_is_due_and_once_a_second_and_not_for_nothing() {
        let now = Instant::now();
        let mut parked = Parked::default();
        assert_eq!(look_in(&parked, now), None);

        parked.set(key("stuck"), head(7, None), now);
        assert_eq!(look_in(&parked, now), Some(1000));
        parked.set(key("soon"), head(3, Some(300)), now);
        assert_eq!(look_in(&parked, now), Some(300));
        parked.set(Queue::Single(Offset::new(9)), head(9, Some(5)), now);
        parked.looked(now);
        assert_eq!(look_in(&parked, now), Some(20));
        parked.set(Queue::Single(Offset::new(9)), None, now);
        parked.set(key("soon"), head(3, Some(90_000)), now);

        assert_eq!(look_in(&parked, now), Some(1000));
        assert!(parked.holds(b"soon") && !parked.holds(b"other"));
    }

    #[test]
    fn queues_are_found_by_their_heads() {
        let now = Instant::now();
        let mut parked = Parked::default();
        parked.set(key("a"), head(1, None), now);
        parked.set(key("b"), head(2, None), now);
        parked.set(Queue::Single(Offset::new(3)), head(3, None), now);
        parked.set(key("a"), head(4, None), now);

        assert_eq!(parked.queues(&[Offset::new(4)]), [key("a")]);
        assert_eq!(
            parked.queues(&[Offset::new(1), Offset::new(3)]),
            [Queue::Single(Offset::new(3))]
        );
        assert_eq!(parked.len(), 3);
    }
}
