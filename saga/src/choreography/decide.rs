//! What a service does about an event, after what it remembers of the saga. Pure.

use std::collections::BTreeSet;

use super::{Map, Role, epoch};
use crate::barrier::{Barrier, Decision, Request};
use crate::correlation::Operation;

/// How the first service of a saga sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Course {
    pub(crate) status: Status,
    /// Which of the events that end it have come.
    pub(crate) heard: BTreeSet<Box<str>>,
}

/// Where a choreographed saga stands, as the service sees it that has started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Status {
    /// It goes on.
    Running,
    /// Its deadline has passed, and whether its pivot was done before is not heard yet.
    Expiring,
    /// All events that end it have come.
    Completed,
    /// It has failed, and everybody undoes what he has done.
    Undone,
}

/// What is asked of the barrier.
pub(crate) fn request(operation: Operation) -> Request {
    Request { operation, epoch: epoch(operation), late: false }
}

/// What is done about a step: `None` where nothing is, and nothing is remembered. `decide` is what the barrier decides.
///
/// A [`Decision::Void`] of the pivot calls the saga off; of every other step it says nothing.
pub(crate) fn of_step(
    role: Role,
    barrier: Barrier,
    decide: impl Fn(Request) -> Decision,
) -> Option<(Request, Decision)> {
    let operation = match role {
        Role::Act(_) => Operation::Action,
        Role::Undo(_) => Operation::Compensation,
        // It has been done, or refused: who asks whether it was is told by its events.
        Role::CallOff(_) if barrier.action.is_some() => return None,
        Role::CallOff(_) => Operation::Compensation,
        Role::Hear | Role::Fail => return None,
    };
    let request = request(operation);
    match decide(request) {
        Decision::Repeat(_) | Decision::Stale => None,
        decision => Some((request, decision)),
    }
}

impl Course {
    pub(crate) const BEGUN: Self = Self { status: Status::Running, heard: BTreeSet::new() };

    /// What one of the events that end the saga makes of it.
    pub(crate) fn hears(mut self, map: &Map, event: &str) -> Self {
        self.heard.insert(event.into());
        if self.is_open() && self.heard.is_superset(&map.ends) {
            self.status = Status::Completed;
        }
        self
    }

    /// What a failure makes of it.
    pub(crate) fn fails(mut self) -> Self {
        if self.is_open() {
            self.status = Status::Undone;
        }
        self
    }

    /// What the deadline makes of it. Where that is no change, the expiry is not emitted.
    pub(crate) fn expires(mut self, map: &Map) -> Self {
        if self.status == Status::Running {
            // Without a pivot nobody else decides between completed and expired.
            self.status = match map.pivot() {
                None => Status::Undone,
                Some(_) => Status::Expiring,
            };
        }
        self
    }

    fn is_open(&self) -> bool {
        matches!(self.status, Status::Running | Status::Expiring)
    }
}

impl Status {
    /// As it stands in the table and on metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Expiring => "expiring",
            Self::Completed => "completed",
            Self::Undone => "undone",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Running, Self::Expiring, Self::Completed, Self::Undone]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}
