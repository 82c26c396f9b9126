//! What an engine has done so far.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::Quarantined;

/// A cheap handle to an engine's live counters, and to what it cannot run.
#[derive(Debug, Clone, Default)]
pub struct Counters(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    started: AtomicU64,
    completed: AtomicU64,
    compensated: AtomicU64,
    parked: AtomicU64,
    aborted: AtomicU64,
    transitions: AtomicU64,
    stale: AtomicU64,
    duplicates: AtomicU64,
    unknown: AtomicU64,
    foreign: AtomicU64,
    failed: AtomicU64,
    timers: AtomicU64,
    quarantined: Mutex<Vec<Quarantined>>,
}

/// Counts of one engine, as numbers. What is rolled back and repeated with its batch counts each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Report {
    /// Sagas that began.
    pub started: u64,
    /// Sagas whose every step is done.
    pub completed: u64,
    /// Sagas that are undone.
    pub compensated: u64,
    /// Times that a saga came to wait for a person.
    pub parked: u64,
    /// Sagas that a person ended as they were.
    pub aborted: u64,
    /// Inputs that changed a saga.
    pub transitions: u64,
    /// Answers and timers of an epoch or attempt that was over.
    pub stale: u64,
    /// Answers that had been heard before.
    pub duplicates: u64,
    /// Answers and signals for sagas that nobody knew.
    pub unknown: u64,
    /// What came for a version that this engine cannot run.
    pub foreign: u64,
    /// What could not be applied, and waits.
    pub failed: u64,
    /// Timers that were taken.
    pub timers: u64,
}

/// What one transaction comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    pub(crate) started: u64,
    pub(crate) completed: u64,
    pub(crate) compensated: u64,
    pub(crate) parked: u64,
    pub(crate) aborted: u64,
    pub(crate) transitions: u64,
    pub(crate) stale: u64,
    pub(crate) duplicates: u64,
    pub(crate) unknown: u64,
    pub(crate) foreign: u64,
    pub(crate) failed: u64,
    pub(crate) timers: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.started += other.started;
        self.completed += other.completed;
        self.compensated += other.compensated;
        self.parked += other.parked;
        self.aborted += other.aborted;
        self.transitions += other.transitions;
        self.stale += other.stale;
        self.duplicates += other.duplicates;
        self.unknown += other.unknown;
        self.foreign += other.foreign;
        self.failed += other.failed;
        self.timers += other.timers;
    }
}

impl Counters {
    /// The counts as of now.
    pub fn report(&self) -> Report {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &*self.0;
        Report {
            started: read(&counts.started),
            completed: read(&counts.completed),
            compensated: read(&counts.compensated),
            parked: read(&counts.parked),
            aborted: read(&counts.aborted),
            transitions: read(&counts.transitions),
            stale: read(&counts.stale),
            duplicates: read(&counts.duplicates),
            unknown: read(&counts.unknown),
            foreign: read(&counts.foreign),
            failed: read(&counts.failed),
            timers: read(&counts.timers),
        }
    }

    /// Running sagas that no living engine can run, as of the last look. Where there are any, the service is degraded:
    /// they wait until somebody registers their definition, or migrates them.
    pub fn quarantined(&self) -> Vec<Quarantined> {
        self.0.quarantined.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn quarantine(&self, found: Vec<Quarantined>) {
        let mut known = self.0.quarantined.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != found {
            for it in &found {
                tracing::error!(definition = %it.definition, hash = %it.definition.hash, sagas = it.sagas,
                    "no engine can run these sagas: they wait");
            }
            *known = found;
        }
    }

    pub(crate) fn count(&self, tally: Tally) {
        let add = |count: &AtomicU64, more| count.fetch_add(more, Ordering::Relaxed);
        let counts = &*self.0;
        add(&counts.started, tally.started);
        add(&counts.completed, tally.completed);
        add(&counts.compensated, tally.compensated);
        add(&counts.parked, tally.parked);
        add(&counts.aborted, tally.aborted);
        add(&counts.transitions, tally.transitions);
        add(&counts.stale, tally.stale);
        add(&counts.duplicates, tally.duplicates);
        add(&counts.unknown, tally.unknown);
        add(&counts.foreign, tally.foreign);
        add(&counts.failed, tally.failed);
        add(&counts.timers, tally.timers);
    }
}
