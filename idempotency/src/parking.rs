//! Which keys of a lane are parked, and when to look after them: the owner's view of `tailrace.parked_message`.
//!
//! Only the owner adds and removes rows, so what it remembers is what the table holds. The command line changes
//! states, which the owner finds when it looks, once a second while anything is parked.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::position::Offset;
use crate::route::RouteId;

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
    /// The time until it is tried again; none while it is stuck, or while its call is made.
    pub(crate) wait: Option<Duration>,
    /// Its handler, where that makes calls.
    pub(crate) call: Option<RouteId>,
}

#[derive(Debug, Clone, Copy)]
struct Due {
    offset: Offset,
    at: Option<Instant>,
    call: Option<RouteId>,
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
            call: head.call,
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

    /// When to look at the table again; none while nothing is parked. Calls need no look.
    pub(crate) fn look_at(&self, now: Instant) -> Option<Instant> {
        if self.len() == 0 {
            return None;
        }
        let looked = self.looked.unwrap_or(now);
        let due = self.all().filter(|due| due.call.is_none()).filter_map(|due| due.at).min();
        let latest = looked + LOOK_EVERY;
        let earliest = self.looked.map_or(now, |looked| looked + LOOK_AGAIN);
        Some(due.map_or(latest, |due| due.min(latest).max(earliest)))
    }

    /// When the next call is due; none where there is none, or somebody will tell. `free_at` says when one may be made.
    pub(crate) fn call_at(&self, free_at: impl Fn(RouteId) -> Option<Instant>) -> Option<Instant> {
        self.all().filter_map(|due| Some(due.at?.max(free_at(due.call?)?))).min()
    }

    /// The oldest heads that make calls and are due.
    pub(crate) fn due_calls(
        &self,
        now: Instant,
        is_free: impl Fn(RouteId) -> bool,
        max: usize,
    ) -> Vec<Queue> {
        let is_due =
            |due: &Due| due.at.is_some_and(|at| at <= now) && due.call.is_some_and(&is_free);
        let mut due: Vec<Offset> =
            self.all().filter(|due| is_due(due)).map(|due| due.offset).collect();
        due.sort_unstable();
        due.truncate(max);
        self.queues(&due)
    }

    pub(crate) fn head(&self, queue: &Queue) -> Option<Head> {
        let due = match queue {
            Queue::Key(key) => self.keys.get(key),
            Queue::Single(offset) => self.singles.get(offset),
        };
        due.map(|due| Head { offset: due.offset, wait: None, call: due.call })
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

    /// The queue with this head.
    pub(crate) fn queue(&self, head: Offset) -> Option<Queue> {
        self.queues(&[head]).pop()
    }

    /// The heads that make calls.
    pub(crate) fn calls(&self) -> HashSet<Offset> {
        self.all().filter(|due| due.call.is_some()).map(|due| due.offset).collect()
    }

    /// A head may be seen to at once.
    pub(crate) fn is_due(&mut self, head: Offset, now: Instant) {
        let all = self.keys.values_mut().chain(self.singles.values_mut());
        for due in all.filter(|due| due.offset == head) {
            due.at = Some(now);
        }
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
        let wait = wait_ms.map(Duration::from_millis);
        Some(Head { offset: Offset::new(offset), wait, call: None })
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
    fn a_call_is_due_when_it_may_be_made_and_needs_no_look() {
        let now = Instant::now();
        let mut parked = Parked::default();
        let calling = |offset, wait_ms| {
            head(offset, wait_ms).map(|head| Head { call: Some(RouteId::new(0)), ..head })
        };
        parked.set(key("a"), calling(2, Some(0)), now);
        parked.set(key("b"), calling(1, Some(0)), now);
        parked.set(key("later"), calling(3, Some(500)), now);
        parked.set(key("being made"), calling(4, None), now);
        parked.looked(now);
        let call_in = |free_ms: Option<u64>| {
            let free_at = free_ms.map(|free| now + Duration::from_millis(free));
            parked.call_at(|_| free_at).map(|at| at.saturating_duration_since(now).as_millis())
        };

        assert_eq!(
            [call_in(Some(0)), call_in(Some(300)), call_in(None)],
            [Some(0), Some(300), None]
        );
        assert_eq!(look_in(&parked, now), Some(1000));
        assert_eq!(parked.due_calls(now, |_| true, 1), [key("b")]);
        assert_eq!(parked.due_calls(now, |_| true, 9).len(), 2);
        assert_eq!(parked.due_calls(now, |_| false, 9), []);
        assert_eq!(parked.calls().len(), 4);
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
