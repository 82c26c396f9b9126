//! What an engine has done so far, and its metrics, through the facade of the crate `metrics`: they go to whatever
//! recorder the process has installed, and cost next to nothing without one.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use sqlx::PgConnection;

use crate::correlation::Operation;
use crate::engine::Quarantined;
use crate::engine::apply::Applied;
use crate::error::Error;
use crate::instance::{Instance, StepState, StepStatus};
use crate::lock::Lines;

/// Sagas that have begun, ended or turned round, by [`DEFINITION`] and [`STATUS`].
pub const TURNED: &str = "tailrace_saga_turned_total";
/// Steps that came to wait for a person, by [`DEFINITION`], [`STEP`] and [`OPERATION`].
pub const STUCK: &str = "tailrace_saga_stuck_total";
/// What sagas were told, by [`VERDICT`]: `applied`, `stale`, `duplicate`, `unknown`, `foreign` or `failed`.
pub const INPUTS: &str = "tailrace_saga_inputs_total";
/// Running sagas that no living engine can run, by [`DEFINITION`] with its version.
pub const QUARANTINED: &str = "tailrace_saga_quarantined";

/// How long steps have taken, from the first time that they were asked for, by [`DEFINITION`], [`STEP`] and [`OUTCOME`].
pub const STEP_SECONDS: &str = "tailrace_saga_step_seconds";
/// Sagas that wait for a person, by [`DEFINITION`], as of the last look: every 15 seconds.
pub const PARKED: &str = "tailrace_saga_parked";
/// For how long that saga has been undone which has been so for longest and is not yet, by [`DEFINITION`], as of the last
/// look: how long an effect stands already that is to go. 0 where there is none.
pub const UNCOMPENSATED_SECONDS: &str = "tailrace_saga_uncompensated_seconds";

/// A label: how a step has ended: `done`, `refused`, `skipped`, `compensated` or `waived`.
pub const OUTCOME: &str = "outcome";
/// Locks of sagas, by [`LOCK`] and [`STATE`]: `held`, `waiting`, or `expired`, which are held for longer than a saga may
/// go forward with them.
pub const LOCKS: &str = "tailrace_saga_locks";
/// For how many seconds the saga has stood in line that stands there longest, by [`LOCK`].
pub const LOCK_WAIT: &str = "tailrace_saga_lock_wait_seconds_max";

/// A label: the name of a definition.
pub const DEFINITION: &str = "definition";
/// A label: how a saga stands, as [`Status::as_str`](crate::Status::as_str) has it.
pub const STATUS: &str = "status";
/// A label: the name of a step.
pub const STEP: &str = "step";
/// A label: `action` or `compensation`.
pub const OPERATION: &str = "operation";
/// A label: what became of an input.
pub const VERDICT: &str = "verdict";

/// A label: the name of a lock, never its key.
pub const LOCK: &str = "lock";
/// A label: whether a lock is held, waited for or expired.
pub const STATE: &str = "state";

/// Tells the recorder what the metrics mean.
pub fn describe() {
    describe_counter!(TURNED, Unit::Count, "Sagas that have begun, ended or turned round");
    describe_counter!(STUCK, Unit::Count, "Steps that came to wait for a person");
    describe_counter!(INPUTS, Unit::Count, "What sagas were told, by what became of it");
    describe_gauge!(QUARANTINED, Unit::Count, "Running sagas that no living engine can run");
    describe_histogram!(STEP_SECONDS, Unit::Seconds, "How long steps have taken");
    describe_gauge!(PARKED, Unit::Count, "Sagas that wait for a person");
    describe_gauge!(
        UNCOMPENSATED_SECONDS,
        Unit::Seconds,
        "How long the oldest saga is being undone"
    );
    describe_gauge!(LOCKS, Unit::Count, "Locks that are held, waited for, or held for too long");
    describe_gauge!(LOCK_WAIT, Unit::Seconds, "How long a saga has waited for a lock at most");
}

/// What a committed transaction has done. In the transaction of a batch it is said before the commit, and so again if
/// that is repeated.
pub(super) fn tell(applied: &Applied) {
    for (definition, status) in &applied.turned {
        counter!(TURNED, DEFINITION => definition.to_string(), STATUS => status.as_str())
            .increment(1);
    }
    for (definition, alert) in &applied.alerts {
        let (step, operation) = (alert.step.to_string(), alert.operation.as_str());
        counter!(STUCK, DEFINITION => definition.to_string(), STEP => step, OPERATION => operation)
            .increment(1);
    }
    for ended in &applied.steps {
        let (definition, step) = (ended.definition.to_string(), ended.step.to_string());
        histogram!(STEP_SECONDS, DEFINITION => definition, STEP => step, OUTCOME => ended.outcome)
            .record(ended.took);
    }
    let tally = &applied.tally;
    for (verdict, inputs) in [
        ("applied", tally.transitions),
        ("stale", tally.stale),
        ("duplicate", tally.duplicates),
        ("unknown", tally.unknown),
        ("foreign", tally.foreign),
        ("failed", tally.failed),
    ] {
        counter!(INPUTS, VERDICT => verdict).increment(inputs);
    }
}

/// A step that is over, in one direction.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StepEnded {
    definition: Box<str>,
    step: Box<str>,
    outcome: &'static str,
    took: Duration,
}

/// The steps that have ended between two states of a saga.
pub(super) fn steps(
    before: &Instance,
    after: &Instance,
    now: SystemTime,
    ended: &mut Vec<StepEnded>,
) {
    for step in after.steps() {
        let was = before.step(step.name());
        if was.is_some_and(|was| was.status() == step.status()) {
            continue;
        }
        let operation = match step.status() {
            StepStatus::Done | StepStatus::Refused | StepStatus::Skipped => Operation::Action,
            StepStatus::Compensated | StepStatus::Waived => Operation::Compensation,
            _ => continue,
        };
        // One that is asked for and done at once, as a local step, was not under way before.
        let under_way = was.filter(|was| was.operation() == Some(operation));
        let Some(since) = under_way.and_then(StepState::since).or(step.since()) else { continue };
        ended.push(StepEnded {
            definition: after.definition().name.clone(),
            step: step.name().into(),
            outcome: step.status().as_str(),
            took: now.duration_since(since).unwrap_or_default(),
        });
    }
}

/// What waits for a person or to be undone, of one definition.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Waits {
    definition: String,
    parked: u32,
    uncompensated_secs: f64,
}

/// Looks at what waits, and tells it.
pub(super) async fn look(conn: &mut PgConnection, definitions: &[&str]) -> Result<(), Error> {
    tell_waiting(waiting(conn, definitions).await?);
    Ok(())
}

/// By indexes that have nothing else in them; more than 10,000 are not counted.
pub(super) async fn waiting(
    conn: &mut PgConnection,
    definitions: &[&str],
) -> Result<Vec<Waits>, Error> {
    let rows: Vec<(String, i64, f64)> = sqlx::query_as(
        "SELECT name,
             (SELECT count(*) FROM (
                 SELECT FROM tailrace.saga_instance
                 WHERE status = 'parked' AND definition = name LIMIT 10000) AS parked),
             coalesce((SELECT extract(epoch FROM now() - min(turned_at))::float8 FROM tailrace.saga_instance
                 WHERE status IN ('compensating', 'parked') AND turned_at IS NOT NULL AND definition = name), 0)
         FROM unnest($1::text[]) AS name",
    )
    .bind(definitions)
    .fetch_all(conn)
    .await
    .map_err(|error| Error::database("what waits for a person cannot be known", error))?;
    let waits = |(definition, parked, seconds): (String, i64, f64)| Waits {
        definition,
        parked: u32::try_from(parked).unwrap_or(u32::MAX),
        uncompensated_secs: seconds.max(0.0),
    };
    Ok(rows.into_iter().map(waits).collect())
}

pub(super) fn tell_waiting(waiting: Vec<Waits>) {
    for Waits { definition, parked, uncompensated_secs } in waiting {
        gauge!(PARKED, DEFINITION => definition.clone()).set(f64::from(parked));
        gauge!(UNCOMPENSATED_SECONDS, DEFINITION => definition).set(uncompensated_secs);
    }
}

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
    locks: Mutex<Vec<Lines>>,
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

    /// The same for people.
    pub(crate) fn degraded(&self) -> Vec<String> {
        let say = |it: Quarantined| {
            format!(
                "{} sagas of {} ({}) wait for an engine that can run them",
                it.sagas, it.definition, it.definition.hash
            )
        };
        self.quarantined().into_iter().map(say).collect()
    }

    pub(crate) fn quarantine(&self, found: Vec<Quarantined>) {
        let mut known = self.0.quarantined.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in
            known.iter().filter(|it| found.iter().all(|now| now.definition != it.definition))
        {
            gauge!(QUARANTINED, DEFINITION => gone.definition.to_string()).set(0.0);
        }
        for it in &found {
            let sagas = u32::try_from(it.sagas).unwrap_or(u32::MAX);
            gauge!(QUARANTINED, DEFINITION => it.definition.to_string()).set(f64::from(sagas));
        }
        if *known != found {
            for it in &found {
                tracing::error!(definition = %it.definition, hash = %it.definition.hash, sagas = it.sagas,
                    "no engine can run these sagas: they wait");
            }
            *known = found;
        }
    }

    /// How many locks are held and waited for, by their names, as of the last look.
    pub fn locks(&self) -> Vec<Lines> {
        self.0.locks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn look_at_locks(&self, found: Vec<Lines>) {
        let mut known = self.0.locks.lock().unwrap_or_else(PoisonError::into_inner);
        let is_gone = |it: &&Lines| found.iter().all(|now| now.lock != it.lock);
        let gone = known.iter().filter(is_gone).map(|it| Lines::of(&it.lock));
        for it in gone.chain(found.iter().cloned()) {
            for (state, sagas) in
                [("held", it.held), ("waiting", it.waiting), ("expired", it.expired)]
            {
                let sagas = f64::from(u32::try_from(sagas).unwrap_or(u32::MAX));
                gauge!(LOCKS, LOCK => it.lock.clone(), STATE => state).set(sagas);
            }
            gauge!(LOCK_WAIT, LOCK => it.lock).set(it.wait_max.as_secs_f64());
        }
        *known = found;
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
