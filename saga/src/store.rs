//! What an orchestrator keeps of its sagas, in its own database.
//!
//! Every function works in the caller's transaction. Who holds the lock of an instance has all of the saga to himself.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres, Row};
use uuid::Uuid;

use crate::correlation::SagaId;
use crate::definition::Identity;
use crate::error::{Error, Kind};
use crate::instance::Instance;
use crate::transition::{Entry, Input, PUT_OFF_FOR, Tick, Timer};

/// The attributes of messages that something has caused.
pub(crate) type Cause = BTreeMap<String, String>;

/// A saga, locked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Kept {
    pub(crate) identity: Identity,
    /// None where a newer release has written it.
    pub(crate) instance: Option<Instance>,
    pub(crate) origin: Cause,
}

/// A saga as it is to be from now on.
#[derive(Debug, Clone)]
pub(crate) struct Changed {
    pub(crate) instance: Instance,
    /// What it was started by, where it is new.
    pub(crate) begun: Option<Cause>,
}

/// What one input has done to a saga.
#[derive(Debug, Clone)]
pub(crate) struct Noted {
    pub(crate) saga: SagaId,
    pub(crate) revision: u64,
    pub(crate) entries: Vec<Entry>,
}

/// An input that waits in the table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Waiting {
    pub(crate) id: i64,
    pub(crate) saga: SagaId,
    /// None where a newer release has written it.
    pub(crate) input: Option<Input>,
    pub(crate) cause: Cause,
    pub(crate) attempts: i32,
}

/// An input that is to wait.
#[derive(Debug, Clone)]
pub(crate) struct Deferred {
    pub(crate) saga: SagaId,
    pub(crate) input: Input,
    pub(crate) cause: Cause,
    pub(crate) reason: Reason,
    /// Its row, where it has waited before.
    pub(crate) ticket: Option<i64>,
}

/// Why an input waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// The service or a person has told it.
    Told,
    /// There is no such saga, or not yet.
    Unknown,
    /// Nobody here can run its definition.
    Foreign,
    /// It could not be applied: the service's code, or what came of it, failed.
    Failed,
}

impl Reason {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Told => "told",
            Self::Unknown => "unknown",
            Self::Foreign => "foreign",
            Self::Failed => "failed",
        }
    }
}

/// Locks sagas in the order of their ids, so that two transactions never wait for each other in a circle.
///
/// Row by row, so that no plan reads the table from end to end: a plan is kept for as long as the connection, and one that
/// was made while there were few sagas would read all of them for each batch, until the table is analyzed.
pub(crate) async fn lock(
    conn: &mut PgConnection,
    sagas: &[SagaId],
) -> Result<BTreeMap<SagaId, Kept>, Error> {
    let mut ids: Vec<Uuid> = sagas.iter().map(|saga| *saga.as_uuid()).collect();
    ids.sort_unstable();
    ids.dedup();
    let rows = sqlx::query(
        "SELECT saga.id, saga.definition, saga.version, saga.hash, saga.instance, saga.origin
         FROM unnest($1::uuid[]) AS wanted (id) CROSS JOIN LATERAL (
             SELECT id, definition, version, hash, instance::text, origin::text
             FROM tailrace.saga_instance AS kept WHERE kept.id = wanted.id FOR UPDATE) AS saga",
    )
    .bind(ids)
    .fetch_all(conn)
    .await
    .map_err(reading)?;
    rows.iter().map(kept).collect()
}

fn kept(row: &PgRow) -> Result<(SagaId, Kept), Error> {
    let text = |at| row.try_get::<&str, usize>(at).map_err(reading);
    let version: i64 = row.try_get(2).map_err(reading)?;
    let identity = Identity {
        name: text(1)?.into(),
        version: u32::try_from(version).unwrap_or(u32::MAX),
        hash: text(3)?.into(),
    };
    let kept = Kept {
        identity,
        instance: serde_json::from_str(text(4)?).ok(),
        origin: serde_json::from_str(text(5)?).unwrap_or_default(),
    };
    Ok((SagaId::from_uuid(row.try_get(0).map_err(reading)?), kept))
}

/// A saga as it was last stored.
pub(crate) async fn read(conn: &mut PgConnection, id: SagaId) -> Result<Option<Instance>, Error> {
    let found: Option<String> =
        sqlx::query_scalar("SELECT instance::text FROM tailrace.saga_instance WHERE id = $1")
            .bind(*id.as_uuid())
            .fetch_optional(conn)
            .await
            .map_err(reading)?;
    found.map(|text| serde_json::from_str(&text).map_err(unreadable)).transpose()
}

/// Whether there is such a saga, also where a newer release has written it.
pub(crate) async fn is_there(conn: &mut PgConnection, id: SagaId) -> Result<bool, Error> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM tailrace.saga_instance WHERE id = $1)")
        .bind(*id.as_uuid())
        .fetch_one(conn)
        .await
        .map_err(reading)
}

/// Stores sagas that were locked, or are new, appends to the journal, and wishes for ticks: one round trip. A new saga
/// whose id is taken is an error.
///
/// Known ones are stored by ON CONFLICT, which finds each by the primary key. An UPDATE that is joined with them is free to
/// read the table from end to end, and goes on to do so once it was planned for a small one: see [`lock`].
///
/// Definition and version change only by a migration; to write what they are costs nothing, since they are what they were
/// to the index.
const WRITE: &str = "
    WITH begun AS (
        INSERT INTO tailrace.saga_instance (id, definition, version, hash, status, revision, instance, origin)
        SELECT id, definition, version, hash, status, revision, instance::json, origin::json
        FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::text[])
            AS given (id, definition, version, hash, status, revision, instance, origin)
        ORDER BY id
    ), changed AS (
        INSERT INTO tailrace.saga_instance AS kept (id, definition, version, hash, status, revision, instance)
        SELECT id, definition, version, hash, status, revision, instance::json
        FROM unnest($9::uuid[], $10::text[], $11::bigint[], $12::text[], $13::text[], $14::bigint[], $15::text[])
            AS given (id, definition, version, hash, status, revision, instance)
        ON CONFLICT (id) DO UPDATE
        SET definition = excluded.definition, version = excluded.version, hash = excluded.hash,
            status = excluded.status, revision = excluded.revision, instance = excluded.instance, changed_at = now(),
            turned_at = CASE excluded.status WHEN 'compensating' THEN coalesce(kept.turned_at, now())
                ELSE kept.turned_at END
    ), noted AS (
        INSERT INTO tailrace.saga_journal (saga_id, revision, entries)
        SELECT saga_id, revision, entries::json
        FROM unnest($16::uuid[], $17::bigint[], $18::text[]) WITH ORDINALITY
            AS given (saga_id, revision, entries, place)
        ORDER BY place
    )
    INSERT INTO tailrace.saga_timer (due_at, saga_id, tick)
    SELECT to_timestamp(due / 1000000.0), saga_id, tick::json
    FROM unnest($19::bigint[], $20::uuid[], $21::text[]) AS given (due, saga_id, tick)";

/// What a transaction stores of sagas: see [`WRITE`].
pub(crate) async fn write(
    conn: &mut PgConnection,
    changed: &[Changed],
    noted: &[Noted],
    timers: &[(SagaId, Timer)],
) -> Result<(), Error> {
    if changed.is_empty() && noted.is_empty() && timers.is_empty() {
        return Ok(());
    }
    let (new, known): (Vec<_>, Vec<_>) = changed.iter().partition(|saga| saga.begun.is_some());
    let origin = |saga: &&Changed| json(&saga.begun.clone().unwrap_or_default());
    let origins = new.iter().map(origin).collect::<Result<Vec<_>, _>>()?;
    let query = bound(bound(sqlx::query(WRITE), &new)?.bind(origins), &known)?;
    query
        .bind(noted.iter().map(|noted| *noted.saga.as_uuid()).collect::<Vec<_>>())
        .bind(noted.iter().map(|noted| number(noted.revision)).collect::<Vec<_>>())
        .bind(noted.iter().map(|noted| json(&noted.entries)).collect::<Result<Vec<_>, _>>()?)
        .bind(timers.iter().map(|(_, timer)| micros(timer.due)).collect::<Vec<_>>())
        .bind(timers.iter().map(|(saga, _)| *saga.as_uuid()).collect::<Vec<_>>())
        .bind(timers.iter().map(|(_, timer)| json(&timer.tick)).collect::<Result<Vec<_>, _>>()?)
        .execute(conn)
        .await
        .map_err(writing)?;
    Ok(())
}

type Statement = Query<'static, Postgres, PgArguments>;

/// Binds the columns of sagas.
fn bound(query: Statement, sagas: &[&Changed]) -> Result<Statement, Error> {
    let instances = || sagas.iter().map(|saga| &saga.instance);
    Ok(query
        .bind(instances().map(|saga| *saga.id().as_uuid()).collect::<Vec<_>>())
        .bind(instances().map(|saga| saga.definition().name.to_string()).collect::<Vec<_>>())
        .bind(instances().map(|saga| i64::from(saga.definition().version)).collect::<Vec<_>>())
        .bind(instances().map(|saga| saga.definition().hash.to_string()).collect::<Vec<_>>())
        .bind(instances().map(|saga| saga.status().as_str()).collect::<Vec<_>>())
        .bind(instances().map(revision).collect::<Vec<_>>())
        .bind(instances().map(json).collect::<Result<Vec<_>, _>>()?))
}

/// Whether any timer is due: the least one, which is read from the index.
pub(crate) async fn has_due(conn: &mut PgConnection, now: SystemTime) -> Result<bool, Error> {
    sqlx::query_scalar(
        "SELECT coalesce(min(due_at) <= to_timestamp($1 / 1000000.0), false) FROM tailrace.saga_timer",
    )
    .bind(micros(now))
    .fetch_one(conn)
    .await
    .map_err(reading)
}

/// Takes timers that are due, of sagas that one of these definitions runs, with the locks of their sagas. Those that
/// somebody else works at are passed over.
///
/// One that a newer release has written, so that it can not be read here, is put off: it would be the first one again in
/// the next round, and none would ever be taken behind it.
pub(crate) async fn take_timers(
    conn: &mut PgConnection,
    mine: &[Identity],
    now: SystemTime,
    max: u32,
) -> Result<Vec<(SagaId, Option<Tick>)>, Error> {
    let rows = due_timers(conn, mine, now, max).await?;
    let mut taken = Vec::with_capacity(rows.len());
    let mut unread: Vec<(SagaId, &str)> = Vec::new();
    for row in &rows {
        let (saga, text) = timer(row)?;
        let tick = serde_json::from_str(text).ok();
        if tick.is_none() {
            unread.push((saga, text));
        }
        taken.push((saga, tick));
    }
    put_off_timers(conn, &unread, now).await?;
    for (saga, _) in unread {
        tracing::error!(%saga, "a timer of a saga can not be read, and is put off: a newer release has written it");
    }
    Ok(taken)
}

/// Removes timers that are due, of sagas that one of these definitions runs, with the locks of their sagas.
///
/// It is planned each time, for how many are due now. A plan for any number is one for a third of them all, and reads
/// and sorts the table.
async fn due_timers(
    conn: &mut PgConnection,
    mine: &[Identity],
    now: SystemTime,
    max: u32,
) -> Result<Vec<PgRow>, Error> {
    sqlx::query(
        "WITH due AS (
             SELECT timer.ctid AS at
             FROM tailrace.saga_timer AS timer CROSS JOIN LATERAL (
                 SELECT FROM tailrace.saga_instance AS kept
                 WHERE kept.id = timer.saga_id
                   AND EXISTS (SELECT FROM unnest($2::text[], $3::bigint[], $4::text[]) AS mine (name, version, hash)
                       WHERE (kept.definition, kept.version, kept.hash) = (mine.name, mine.version, mine.hash))
                 FOR UPDATE SKIP LOCKED) AS saga
             WHERE timer.due_at <= to_timestamp($1 / 1000000.0)
             ORDER BY timer.due_at LIMIT $5
             FOR UPDATE OF timer SKIP LOCKED)
         DELETE FROM tailrace.saga_timer AS timer
         WHERE timer.ctid = ANY (ARRAY(SELECT at FROM due))
         RETURNING timer.saga_id, timer.tick::text",
    )
    .persistent(false)
    .bind(micros(now))
    .bind(mine.iter().map(|mine| mine.name.to_string()).collect::<Vec<_>>())
    .bind(mine.iter().map(|mine| i64::from(mine.version)).collect::<Vec<_>>())
    .bind(mine.iter().map(|mine| mine.hash.to_string()).collect::<Vec<_>>())
    .bind(i64::from(max))
    .fetch_all(conn)
    .await
    .map_err(reading)
}

/// Puts the timer off that is due first, and says whose it is.
pub(crate) async fn put_timer_off(
    conn: &mut PgConnection,
    mine: &[Identity],
    now: SystemTime,
) -> Result<Option<SagaId>, Error> {
    let rows = due_timers(conn, mine, now, 1).await?;
    let first = rows.iter().map(timer).collect::<Result<Vec<_>, _>>()?;
    put_off_timers(conn, &first, now).await?;
    Ok(first.first().map(|(saga, _)| *saga))
}

/// A row of [`due_timers`].
fn timer(row: &PgRow) -> Result<(SagaId, &str), Error> {
    let saga = SagaId::from_uuid(row.try_get(0).map_err(reading)?);
    Ok((saga, row.try_get(1).map_err(reading)?))
}

/// For how long timers are put off that nobody can run.
const NOBODYS_FOR: Duration = Duration::from_secs(15);

/// Puts timers off that are due and whose sagas no living engine can run, a bounded number of them: as long as they are
/// due they are read at each look, ten times a second. Those of sagas that are over stay for the sweep.
pub(crate) async fn put_off_nobodys_timers(
    conn: &mut PgConnection,
    silence_max: Duration,
    max: u32,
) -> Result<u64, Error> {
    let put_off = sqlx::query(
        "UPDATE tailrace.saga_timer SET due_at = now() + interval '1 s' * $1
         WHERE ctid = ANY (ARRAY(
             SELECT timer.ctid
             FROM tailrace.saga_timer AS timer CROSS JOIN LATERAL (
                 SELECT FROM tailrace.saga_instance AS kept
                 WHERE kept.id = timer.saga_id AND kept.status IN ('running', 'compensating', 'parked')
                   AND NOT EXISTS (SELECT FROM tailrace.saga_engine AS living
                       WHERE living.seen_at > now() - interval '1 s' * $2
                         AND (living.definition, living.version, living.hash) = (kept.definition, kept.version, kept.hash))
                 OFFSET 0) AS saga
             WHERE timer.due_at <= now()
             ORDER BY timer.due_at LIMIT $3
             FOR UPDATE OF timer SKIP LOCKED))",
    )
    .persistent(false)
    .bind(NOBODYS_FOR.as_secs_f64())
    .bind(silence_max.as_secs_f64())
    .bind(i64::from(max))
    .execute(conn)
    .await
    .map_err(writing)?;
    Ok(put_off.rows_affected())
}

async fn put_off_timers(
    conn: &mut PgConnection,
    timers: &[(SagaId, &str)],
    now: SystemTime,
) -> Result<(), Error> {
    if timers.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO tailrace.saga_timer (due_at, saga_id, tick)
         SELECT to_timestamp($1 / 1000000.0), saga_id, tick::json
         FROM unnest($2::uuid[], $3::text[]) AS given (saga_id, tick)",
    )
    .bind(micros(now + PUT_OFF_FOR))
    .bind(timers.iter().map(|(saga, _)| *saga.as_uuid()).collect::<Vec<_>>())
    .bind(timers.iter().map(|(_, tick)| *tick).collect::<Vec<_>>())
    .execute(conn)
    .await
    .map_err(writing)?;
    Ok(())
}

/// Stores what cannot be told now. What comes for a saga that nobody knows is kept for so long.
pub(crate) async fn defer(
    conn: &mut PgConnection,
    deferred: &[Deferred],
    unknown_for_secs: f64,
) -> Result<(), Error> {
    if deferred.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO tailrace.saga_input (saga_id, input, cause, reason, attempts, not_before, expires_at)
         SELECT saga_id, input::json, cause::json, reason, (reason = 'failed')::integer,
             now() + interval '1 s' * (reason = 'failed')::integer,
             CASE WHEN reason = 'unknown' THEN now() + interval '1 s' * $5 END
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY
             AS given (saga_id, input, cause, reason, place)
         ORDER BY place",
    )
    .bind(deferred.iter().map(|input| *input.saga.as_uuid()).collect::<Vec<_>>())
    .bind(deferred.iter().map(|input| json(&input.input)).collect::<Result<Vec<_>, _>>()?)
    .bind(deferred.iter().map(|input| json(&input.cause)).collect::<Result<Vec<_>, _>>()?)
    .bind(deferred.iter().map(|input| input.reason.as_str()).collect::<Vec<_>>())
    .bind(unknown_for_secs)
    .execute(conn)
    .await
    .map_err(writing)?;
    Ok(())
}

/// Which of the inputs that wait are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// What was told or has failed, and is told as soon as its time has come: by an index in which nothing else is.
    Ready,
    /// What came for sagas that nobody knew, or nobody here could run. It waits for something else to happen, and there may
    /// be any number of it: it is read from end to end.
    Parked,
}

/// Inputs that can be told now, to sagas that one of these definitions runs, with the locks of both.
pub(crate) async fn waiting(
    conn: &mut PgConnection,
    mine: &[Identity],
    look: Look,
    max: u32,
) -> Result<Vec<Waiting>, Error> {
    let rows = sqlx::query(look.statement())
        .bind(mine.iter().map(|mine| mine.name.to_string()).collect::<Vec<_>>())
        .bind(mine.iter().map(|mine| i64::from(mine.version)).collect::<Vec<_>>())
        .bind(mine.iter().map(|mine| mine.hash.to_string()).collect::<Vec<_>>())
        .bind(i64::from(max))
        .fetch_all(conn)
        .await
        .map_err(reading)?;
    rows.iter()
        .map(|row| {
            let text = |at| row.try_get::<&str, usize>(at).map_err(reading);
            Ok(Waiting {
                id: row.try_get(0).map_err(reading)?,
                saga: SagaId::from_uuid(row.try_get(1).map_err(reading)?),
                input: serde_json::from_str(text(2)?).ok(),
                cause: serde_json::from_str(text(3)?).unwrap_or_default(),
                attempts: row.try_get(4).map_err(reading)?,
            })
        })
        .collect()
}

macro_rules! waiting {
    ($of:literal) => {
        concat!(
            "SELECT input.id, input.saga_id, input.input::text, input.cause::text, input.attempts
             FROM tailrace.saga_input AS input CROSS JOIN LATERAL (
                 SELECT FROM tailrace.saga_instance AS kept
                 WHERE kept.id = input.saga_id
                   AND EXISTS (SELECT FROM unnest($1::text[], $2::bigint[], $3::text[]) AS mine (name, version, hash)
                       WHERE (kept.definition, kept.version, kept.hash) = (mine.name, mine.version, mine.hash))
                 FOR UPDATE SKIP LOCKED) AS saga
             WHERE input.not_before <= now() AND ",
            $of,
            " LIMIT $4 FOR UPDATE OF input SKIP LOCKED"
        )
    };
}

impl Look {
    fn statement(self) -> &'static str {
        match self {
            Self::Ready => {
                waiting!("input.reason IN ('told', 'failed') ORDER BY input.not_before, input.id")
            }
            Self::Parked => waiting!("input.reason NOT IN ('told', 'failed') ORDER BY input.id"),
        }
    }
}

/// Removes inputs that were told.
pub(crate) async fn told(conn: &mut PgConnection, ids: &[i64]) -> Result<(), Error> {
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query("DELETE FROM tailrace.saga_input WHERE id = ANY ($1)")
        .bind(ids)
        .execute(conn)
        .await
        .map_err(writing)?;
    Ok(())
}

/// Puts inputs off that could not be told, twice as long each time, five minutes at most.
pub(crate) async fn put_off(
    conn: &mut PgConnection,
    ids: &[i64],
    reason: Reason,
) -> Result<(), Error> {
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE tailrace.saga_input SET attempts = attempts + 1, reason = $2,
             not_before = now() + interval '1 s' * least(300, power(2, least(attempts, 10)))
         WHERE id = ANY ($1)",
    )
    .bind(ids)
    .bind(reason.as_str())
    .execute(conn)
    .await
    .map_err(writing)?;
    Ok(())
}

/// Removes inputs whose saga has not come in time, a bounded number of them, and says how many.
pub(crate) async fn expire(conn: &mut PgConnection, max: u32) -> Result<u64, Error> {
    let expired = sqlx::query(
        "DELETE FROM tailrace.saga_input WHERE id = ANY (ARRAY(
             SELECT input.id FROM tailrace.saga_input AS input
             WHERE expires_at <= now()
               AND NOT EXISTS (SELECT FROM tailrace.saga_instance AS saga WHERE saga.id = input.saga_id)
             ORDER BY input.id LIMIT $1 FOR UPDATE SKIP LOCKED))",
    )
    .bind(i64::from(max))
    .execute(conn)
    .await
    .map_err(writing)?;
    Ok(expired.rows_affected())
}

fn revision(instance: &Instance) -> i64 {
    number(instance.revision())
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(crate) fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(value)
        // Postgres stores no NUL in a text; as JSON it is written in six characters, which are data all the same.
        .map_err(|error| {
            Error::new(Kind::Unreadable, "a saga does not encode as JSON").caused_by(error)
        })
}

fn unreadable(error: serde_json::Error) -> Error {
    let place = format!("line {}, column {}", error.line(), error.column());
    Error::new(Kind::Schema, "what is stored of a saga is not known to this version")
        .caused_by(place)
}

fn reading(error: sqlx::Error) -> Error {
    Error::database("sagas cannot be read", error)
}

fn writing(error: sqlx::Error) -> Error {
    Error::database("sagas cannot be stored", error)
}

#[cfg(test)]
mod tests;
