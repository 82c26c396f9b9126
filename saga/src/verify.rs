//! Whether what is stored of sagas is what the machine has made of what they were told.
//!
//! The journal says what each saga was told, and what came of that. Here the machine is told the same once more, and has to
//! come to the same entries, one by one, and in the end to the same saga: phase, and status, epoch, attempts and times of
//! each step. Beside that, whatever the saga waits for must be there: a step that is under way has its timer, or the saga
//! would wait for ever.
//!
//! The code of the user does not run. What it has decided is in the journal; what it has made (data and commands) is not
//! compared. Where time-outs or retry policies have changed since a saga began, it is found to differ, though nothing is
//! wrong with it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::correlation::SagaId;
use crate::definition::{Definition, Identity};
use crate::error::Error;
use crate::instance::{Instance, Phase, StepStatus};
use crate::transition::{Entry, Happening, Input, PUT_OFF_FOR, Tick, Timer};

mod lines;
mod recall;
mod retell;

use lines::Place;
use retell::retell;

/// The most sagas that are looked at in one statement.
pub const PAGE_MAX: u32 = 500;

/// Between a time in a saga and the same time as Postgres has it.
const ROUNDING: Duration = Duration::from_micros(2);

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Verified {
    /// Sagas that were looked at.
    pub sagas: u64,
    /// Of them, those that have followed another definition before: how they came here can not be told again.
    pub migrated: u64,
    /// What they were told, as far as it was told again.
    pub inputs: u64,
    /// What is wrong, by saga.
    pub faults: BTreeMap<SagaId, Vec<String>>,
    /// Where to go on, unless there are no more.
    pub next: Option<SagaId>,
}

impl Verified {
    /// Adds what was found on another page.
    pub fn merge(&mut self, page: Self) {
        self.sagas += page.sagas;
        self.migrated += page.migrated;
        self.inputs += page.inputs;
        self.faults.extend(page.faults);
        self.next = page.next;
    }
}

/// Looks at one saga; at none where it is not there or follows another definition.
///
/// # Errors
/// What Postgres says.
pub async fn saga(
    conn: &mut PgConnection,
    definition: &Definition,
    id: SagaId,
) -> Result<Verified, Error> {
    let ids = Ids { from: *id.as_uuid(), to: *id.as_uuid(), max: 1 };
    Ok(Verified { next: None, ..look(conn, definition, ids).await? })
}

/// Looks at sagas that follow this definition, whether they are over or not, in the order of their ids: a page of at most
/// [`PAGE_MAX`], beginning behind `after`.
///
/// All of a page is read in one statement, so that sagas may go on meanwhile.
///
/// # Errors
/// What Postgres says.
///
/// ```no_run
/// # use tailrace_saga::{Definition, Error, verify};
/// # async fn all(conn: &mut sqlx::PgConnection, definition: &Definition) -> Result<(), Error> {
/// let mut found = verify::page(conn, definition, None, verify::PAGE_MAX).await?;
/// while found.next.is_some() {
///     let page = verify::page(conn, definition, found.next, verify::PAGE_MAX).await?;
///     found.merge(page);
/// }
/// assert!(found.faults.is_empty(), "{:?}", found.faults);
/// # Ok(())
/// # }
/// ```
pub async fn page(
    conn: &mut PgConnection,
    definition: &Definition,
    after: Option<SagaId>,
    max: u32,
) -> Result<Verified, Error> {
    let max = max.clamp(1, PAGE_MAX);
    let from = after.map_or(0, |id| id.as_uuid().as_u128().saturating_add(1));
    let ids = Ids { from: Uuid::from_u128(from), to: Uuid::max(), max };
    look(conn, definition, ids).await
}

struct Ids {
    from: Uuid,
    to: Uuid,
    max: u32,
}

/// A saga with all that belongs to it.
#[derive(Debug)]
struct Stored {
    id: SagaId,
    identity: Identity,
    status: String,
    revision: u64,
    /// None where a newer release has written it.
    instance: Option<Instance>,
    journal: Vec<Noted>,
    timers: Vec<Timer>,
    inputs: Vec<Input>,
    lines: Vec<Place>,
    now: SystemTime,
}

/// What one input has left in the journal.
#[derive(Debug, Deserialize)]
struct Noted {
    revision: u64,
    entries: Vec<Entry>,
}

async fn look(
    conn: &mut PgConnection,
    definition: &Definition,
    ids: Ids,
) -> Result<Verified, Error> {
    let identity = definition.identity();
    let rows = sqlx::query(
        "WITH page AS (
             SELECT * FROM tailrace.saga_instance
             WHERE id BETWEEN $1 AND $2 AND (definition, version, hash) = ($3, $4, $5)
             ORDER BY id LIMIT $6),
         told AS (
             SELECT saga_id, json_agg(json_build_object('revision', revision, 'entries', entries) ORDER BY id) AS rows
             FROM tailrace.saga_journal WHERE saga_id IN (SELECT id FROM page) GROUP BY saga_id),
         timed AS (
             SELECT saga_id, json_agg(tick::jsonb || jsonb_build_object('due', (extract(epoch FROM due_at) * 1000000)::bigint)) AS rows
             FROM tailrace.saga_timer WHERE saga_id IN (SELECT id FROM page) GROUP BY saga_id),
         waiting AS (
             SELECT saga_id, json_agg(input ORDER BY id) AS rows
             FROM tailrace.saga_input WHERE saga_id IN (SELECT id FROM page) GROUP BY saga_id),
         lines AS (
             SELECT saga_id, json_agg(json_build_object('lock', lock, 'key', key, 'is_held', held_at IS NOT NULL)) AS rows
             FROM tailrace.saga_lock WHERE saga_id IN (SELECT id FROM page) GROUP BY saga_id)
         SELECT page.id, page.status, page.revision, page.instance::text, coalesce(told.rows::text, '[]'),
             coalesce(timed.rows::text, '[]'), coalesce(waiting.rows::text, '[]'), coalesce(lines.rows::text, '[]'),
             (extract(epoch FROM now()) * 1000000)::bigint
         FROM page LEFT JOIN told ON told.saga_id = page.id LEFT JOIN timed ON timed.saga_id = page.id
             LEFT JOIN waiting ON waiting.saga_id = page.id LEFT JOIN lines ON lines.saga_id = page.id
         ORDER BY page.id",
    )
    .bind(ids.from)
    .bind(ids.to)
    .bind(&*identity.name)
    .bind(i64::from(identity.version))
    .bind(&*identity.hash)
    .bind(i64::from(ids.max))
    .fetch_all(conn)
    .await
    .map_err(reading)?;
    let mut found = Verified::default();
    for row in &rows {
        let id = SagaId::from_uuid(row.try_get(0).map_err(reading)?);
        let faults = match stored(row, id, identity).map_err(reading)? {
            Ok(stored) => stored.faults(definition, &mut found),
            Err(unreadable) => vec![unreadable],
        };
        found.sagas += 1;
        if !faults.is_empty() {
            found.faults.insert(id, faults);
        }
        found.next = Some(id);
    }
    if u32::try_from(rows.len()).is_ok_and(|count| count < ids.max) {
        found.next = None;
    }
    Ok(found)
}

fn stored(
    row: &PgRow,
    id: SagaId,
    identity: &Identity,
) -> Result<Result<Stored, String>, sqlx::Error> {
    let text = |at| row.try_get::<&str, usize>(at);
    let revision: i64 = row.try_get(2)?;
    let status = text(1)?.to_owned();
    let instance = serde_json::from_str(text(3)?).ok();
    let (journal, timers, inputs, lines) = (text(4)?, text(5)?, text(6)?, text(7)?);
    let now: i64 = row.try_get(8)?;
    let now = UNIX_EPOCH + Duration::from_micros(u64::try_from(now).unwrap_or_default());
    let read = || {
        Ok::<_, serde_json::Error>(Stored {
            id,
            identity: identity.clone(),
            status,
            revision: u64::try_from(revision).unwrap_or_default(),
            instance,
            journal: serde_json::from_str(journal)?,
            timers: serde_json::from_str(timers)?,
            inputs: serde_json::from_str(inputs)?,
            lines: serde_json::from_str(lines)?,
            now,
        })
    };
    Ok(read().map_err(|error| {
        format!("its journal, timers or inputs can not be read (column {})", error.column())
    }))
}

impl Stored {
    fn faults(&self, definition: &Definition, found: &mut Verified) -> Vec<String> {
        let Some(instance) = &self.instance else {
            return vec!["its row can not be read".to_owned()];
        };
        let mut faults = self.row_faults(instance);
        faults.extend(self.lost_timers(definition, instance));
        faults.extend(lines::faults(instance, &self.lines, &self.inputs));
        let is_migration = |entry: &Entry| matches!(entry.what, Happening::Migrated { .. });
        if self.journal.iter().flat_map(|row| &row.entries).any(is_migration) {
            found.migrated += 1;
            return faults;
        }
        match retell(definition, instance, &self.journal) {
            Ok(told) => {
                found.inputs += u64::try_from(self.journal.len()).unwrap_or_default();
                faults.extend(differences(&told, instance));
            }
            Err(fault) => faults.push(fault),
        }
        faults
    }

    /// The columns beside the saga say what the saga says.
    fn row_faults(&self, instance: &Instance) -> Vec<String> {
        let mut faults = Vec::new();
        let mut same = |name: &str, column: String, of_the_saga: String| {
            if column != of_the_saga {
                faults.push(format!("its row has the {name} {column}, and the saga {of_the_saga}"));
            }
        };
        same("id", self.id.to_string(), instance.id().to_string());
        same("definition", self.identity.to_string(), instance.definition().to_string());
        same("hash", self.identity.hash.to_string(), instance.definition().hash.to_string());
        same("status", self.status.clone(), instance.status().as_str().to_owned());
        same("revision", self.revision.to_string(), instance.revision().to_string());
        faults
    }

    /// Whatever is under way, something will come of it in the end.
    fn lost_timers(&self, definition: &Definition, instance: &Instance) -> Vec<String> {
        let mut faults = Vec::new();
        for state in instance.steps() {
            let Some(due) = state.due() else { continue };
            let (step, epoch, attempt) = (state.name().into(), state.epoch(), state.attempts());
            if !self.will_come(&Tick::Step { step, epoch, attempt }, due) {
                faults.push(format!("step {} is under way without its timer", state.name()));
            }
        }
        for state in instance.steps() {
            let lock = state.lock().filter(|lock| !lock.is_expired());
            let Some(due) = lock.and_then(|lock| lock.expires_at()) else { continue };
            if !self.will_come(&Tick::Lock { step: state.name().into() }, due) {
                faults.push(format!("the lock {} expires without a timer", state.name()));
            }
        }
        let is_undoable = instance.phase == Phase::Running
            && instance.steps.iter().zip(definition.steps()).all(|(state, step)| {
                step.kind() != crate::definition::StepKind::Pivot
                    || state.status == StepStatus::Pending
            });
        if let Some(due) = instance.deadline().filter(|_| is_undoable && instance.revision() > 0)
            && !self.will_come(&Tick::Deadline, due)
        {
            faults.push("its deadline is without a timer".to_owned());
        }
        faults
    }

    fn will_come(&self, tick: &Tick, due: SystemTime) -> bool {
        // One that nobody could take was put off.
        let latest = due.max(self.now + PUT_OFF_FOR) + ROUNDING;
        let is_it = |timer: &Timer| timer.tick == *tick && timer.due <= latest;
        let waits = |input: &Input| matches!(input, Input::Tick(waiting) if waiting == tick);
        self.timers.iter().any(is_it) || self.inputs.iter().any(waits)
    }
}

/// Where a saga that was told the same stands otherwise than the one that is stored.
fn differences(told: &Instance, stored: &Instance) -> Vec<String> {
    let mut faults = Vec::new();
    let mut same = |of: &str, told: String, stored: String| {
        if told != stored {
            faults.push(format!("{of} is {stored}, and would be {told} by its journal"));
        }
    };
    same("the saga", format!("{:?}", told.phase), format!("{:?}", stored.phase));
    same("the revision", told.revision.to_string(), stored.revision.to_string());
    same("the cause", format!("{:?}", told.cause), format!("{:?}", stored.cause));
    for (told, stored) in told.steps.iter().zip(&stored.steps) {
        let of = format!("step {}", stored.name);
        let state = |step: &crate::instance::StepState| {
            let crate::instance::StepState { status, epoch, attempts, since, due, trouble, .. } =
                step;
            format!("{status:?} ({epoch}, {attempts}, {since:?}, {due:?}, {trouble:?})")
        };
        same(&of, state(told), state(stored));
        let lock = |step: &crate::instance::StepState| {
            let lock = step.lock.as_ref();
            let said = lock.map(|lock| (lock.held, lock.expires_at, lock.is_expired));
            format!("{said:?}")
        };
        same(&format!("the lock of {of}"), lock(told), lock(stored));
    }
    let signals = |saga: &Instance| {
        let signals = saga.signals.iter().map(|signal| signal.signal_type.clone());
        signals.collect::<Vec<_>>().join(", ")
    };
    same("what waits for its step", signals(told), signals(stored));
    faults
}

fn reading(error: sqlx::Error) -> Error {
    Error::database("sagas cannot be read", error)
}

#[cfg(test)]
#[cfg(feature = "kafka")]
mod tests;
