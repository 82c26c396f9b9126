//! What a service of a choreography has done so far, and its metrics, through the facade of the crate `metrics`.
//!
//! What is rolled back and repeated with its batch counts each time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use super::decide::Status;
use crate::correlation::{Answer, Operation};
use crate::metrics::{DEFINITION, OPERATION, OUTCOME, STATUS, STEP, TURNED};

/// What has come of steps, by [`DEFINITION`], [`STEP`], [`OPERATION`] and [`OUTCOME`]: `done`, `refused`, `blocked` (it will
/// never be done, since the saga has failed before), or `calling` (it is made outside of the database).
pub const REACTIONS: &str = "tailrace_saga_reactions_total";
/// Sagas that have not ended although their deadline has passed, by [`DEFINITION`], as of the last look: every 15 seconds.
pub const OVERDUE: &str = "tailrace_saga_overdue";
/// For how many seconds the oldest of them is overdue, by [`DEFINITION`].
pub const OVERDUE_SECONDS: &str = "tailrace_saga_overdue_seconds_max";

/// Tells the recorder what the metrics mean.
pub fn describe() {
    describe_counter!(REACTIONS, Unit::Count, "What has come of steps of choreographed sagas");
    describe_counter!(TURNED, Unit::Count, "Sagas that have begun, ended or turned round");
    describe_gauge!(OVERDUE, Unit::Count, "Choreographed sagas whose deadline has passed");
    describe_gauge!(OVERDUE_SECONDS, Unit::Seconds, "How long the oldest of them is overdue");
}

/// What has come of a step, for a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcomes {
    Done,
    Refused,
    Blocked,
    Calling,
}

impl Outcomes {
    pub(super) fn of(answer: Answer) -> Self {
        match answer {
            Answer::Done => Self::Done,
            Answer::Refused => Self::Refused,
            Answer::Blocked => Self::Blocked,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Blocked => "blocked",
            Self::Calling => "calling",
        }
    }
}

/// A cheap handle to a service's live counters; it stays valid after the service has ended.
#[derive(Debug, Clone, Default)]
pub struct Counters(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    started: AtomicU64,
    expired: AtomicU64,
    completed: AtomicU64,
    undone: AtomicU64,
    done: AtomicU64,
    refused: AtomicU64,
    compensated: AtomicU64,
    blocked: AtomicU64,
    calls: AtomicU64,
    overdue: AtomicU64,
}

/// Counts of one service, as numbers. The first four are those of the service that starts sagas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Report {
    /// Sagas that were started here.
    pub started: u64,
    /// Sagas whose deadline has passed before they had ended.
    pub expired: u64,
    /// Sagas of which all events have come that end them.
    pub completed: u64,
    /// Sagas that have failed.
    pub undone: u64,
    /// Steps that were done.
    pub done: u64,
    /// Steps that were refused.
    pub refused: u64,
    /// Steps that were undone.
    pub compensated: u64,
    /// Steps that will never be done, since their saga had failed before; with the pivots that were called off.
    pub blocked: u64,
    /// Calls that were begun, for steps and compensations.
    pub calls: u64,
    /// Sagas that are overdue, as of the last look.
    pub overdue: u64,
}

impl Counters {
    /// The counts as of now.
    pub fn report(&self) -> Report {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &*self.0;
        Report {
            started: read(&counts.started),
            expired: read(&counts.expired),
            completed: read(&counts.completed),
            undone: read(&counts.undone),
            done: read(&counts.done),
            refused: read(&counts.refused),
            compensated: read(&counts.compensated),
            blocked: read(&counts.blocked),
            calls: read(&counts.calls),
            overdue: read(&counts.overdue),
        }
    }

    pub(super) fn turned(&self, definition: &str, status: Status, sagas: u64) {
        let counts = &*self.0;
        let count = match status {
            Status::Running => &counts.started,
            Status::Expiring => &counts.expired,
            Status::Completed => &counts.completed,
            Status::Undone => &counts.undone,
        };
        count.fetch_add(sagas, Ordering::Relaxed);
        counter!(TURNED, DEFINITION => definition.to_owned(), STATUS => status.as_str())
            .increment(sagas);
    }

    pub(super) fn did(
        &self,
        definition: &str,
        step: &str,
        operation: Operation,
        outcome: Outcomes,
    ) {
        let counts = &*self.0;
        let count = match (outcome, operation) {
            (Outcomes::Calling, _) => &counts.calls,
            (Outcomes::Blocked, _) => &counts.blocked,
            (Outcomes::Refused, _) => &counts.refused,
            (Outcomes::Done, Operation::Action) => &counts.done,
            (Outcomes::Done, Operation::Compensation) => &counts.compensated,
        };
        count.fetch_add(1, Ordering::Relaxed);
        let (definition, step) = (definition.to_owned(), step.to_owned());
        counter!(REACTIONS, DEFINITION => definition, STEP => step, OPERATION => operation.as_str(),
            OUTCOME => outcome.as_str())
        .increment(1);
    }

    pub(super) fn look(&self, definition: &str, overdue: u32, oldest: Duration) {
        self.0.overdue.store(overdue.into(), Ordering::Relaxed);
        gauge!(OVERDUE, DEFINITION => definition.to_owned()).set(f64::from(overdue));
        gauge!(OVERDUE_SECONDS, DEFINITION => definition.to_owned()).set(oldest.as_secs_f64());
    }
}
