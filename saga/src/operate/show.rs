//! All that is known of one saga.

use std::time::{Duration, SystemTime};

use sqlx::{PgConnection, Row as _};

use super::{Listed, get, living, seconds, unread};
use crate::correlation::SagaId;
use crate::error::{Error, Kind};
use crate::transition::{Entry, Input};

/// The most entries of a journal, inputs, or rows of the audit that are told.
const ROWS_MAX: i64 = 10_000;
/// The newest rows of the audit.
const AUDITED_MAX: i64 = 100;

/// One saga, and what waits for it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Shown {
    /// The saga.
    pub saga: Listed,
    /// Whether an engine lives that can run it.
    pub has_engine: bool,
    /// What it has still to be told, oldest first.
    pub inputs: Vec<WaitingInput>,
    /// Under which definition it is to go on, where somebody wants that.
    pub ordered: Option<Ordered>,
    /// What people wanted of it, oldest first; the newest hundred.
    pub audit: Vec<Audited>,
}

/// Something that a saga has still to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WaitingInput {
    /// What it is, without its data.
    pub what: String,
    /// Why it waits: `told`, `unknown`, `foreign` or `failed`.
    pub reason: String,
    /// How often that was tried.
    pub attempts: u32,
    /// For how long.
    pub age: Duration,
}

/// A migration that somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ordered {
    /// The definition, as `create-order/4`.
    pub to: String,
    /// Who.
    pub actor: String,
    /// How long ago.
    pub age: Duration,
    /// Why an engine has not done it; none while it waits for one.
    pub refused: Option<String>,
}

/// What a person wanted of a saga.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Audited {
    /// When, in UTC: `2026-11-21 12:34:56`.
    pub at: String,
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// Of which step.
    pub step: Option<String>,
    /// Why, if that was said.
    pub note: Option<String>,
    /// How the saga was chosen.
    pub query: String,
}

/// What one input has done to a saga.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Moment {
    /// When that was committed, by the clock of the database.
    pub at: SystemTime,
    /// How often the saga had changed by then.
    pub revision: u64,
    /// What happened.
    pub entries: Vec<Entry>,
}

/// All that is known of a saga, where there is one.
///
/// # Errors
/// What Postgres answers.
pub async fn show(conn: &mut PgConnection, id: SagaId) -> Result<Option<Shown>, Error> {
    let Some(saga) = get(conn, id).await? else { return Ok(None) };
    let has_engine = living(conn).await?.run(&saga.definition);
    let inputs = inputs(conn, id).await?;
    let ordered = ordered(conn, id).await?;
    let audit = audit(conn, id).await?;
    Ok(Some(Shown { saga, has_engine, inputs, ordered, audit }))
}

async fn inputs(conn: &mut PgConnection, id: SagaId) -> Result<Vec<WaitingInput>, Error> {
    let rows: Vec<(String, String, i32, f64)> = sqlx::query_as(
        "SELECT input::text, reason, attempts, extract(epoch FROM now() - inserted_at)::float8
         FROM tailrace.saga_input WHERE saga_id = $1 ORDER BY id LIMIT $2",
    )
    .bind(id.as_uuid())
    .bind(ROWS_MAX)
    .fetch_all(conn)
    .await
    .map_err(unread)?;
    let told = |(input, reason, attempts, age): (String, String, i32, f64)| WaitingInput {
        what: serde_json::from_str(&input)
            .map_or_else(|_| "unknown".to_owned(), |input| said(&input)),
        reason,
        attempts: u32::try_from(attempts).unwrap_or_default(),
        age: seconds(age),
    };
    Ok(rows.into_iter().map(told).collect())
}

/// What an input is, without its data.
fn said(input: &Input) -> String {
    match input {
        Input::Start => "the start".to_owned(),
        Input::Reply { correlation, answer, .. } => format!(
            "{} of {} is {}",
            correlation.operation.as_str(),
            correlation.step,
            answer.as_str()
        ),
        Input::Failed { correlation, .. } => {
            format!("{} of {} has failed", correlation.operation.as_str(), correlation.step)
        }
        Input::Tick(_) => "a timer".to_owned(),
        Input::Signal { signal_type, .. } => format!("the signal {signal_type}"),
        Input::Held { step, .. } => format!("it holds the lock {step}"),
        Input::Cancel => "cancel".to_owned(),
        Input::Part(of) => format!("{} for its whole", of.correlation.operation.as_str()),
        Input::Operator { by, verb } => match verb.step() {
            Some(step) => format!("{} {step}, says {by}", verb.as_str()),
            None => format!("{}, says {by}", verb.as_str()),
        },
    }
}

async fn ordered(conn: &mut PgConnection, id: SagaId) -> Result<Option<Ordered>, Error> {
    let row: Option<(String, i64, String, f64, Option<String>)> = sqlx::query_as(
        "SELECT definition, version, actor, extract(epoch FROM now() - inserted_at)::float8, refused
         FROM tailrace.saga_migration WHERE saga_id = $1",
    )
    .bind(id.as_uuid())
    .fetch_optional(conn)
    .await
    .map_err(unread)?;
    Ok(row.map(|(definition, version, actor, age, refused)| Ordered {
        to: format!("{definition}/{version}"),
        actor,
        age: seconds(age),
        refused,
    }))
}

async fn audit(conn: &mut PgConnection, id: SagaId) -> Result<Vec<Audited>, Error> {
    let rows = sqlx::query(
        "SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), actor, action, step, note, query
         FROM (SELECT * FROM tailrace.saga_audit WHERE saga_id = $1 ORDER BY id DESC LIMIT $2) AS newest
         ORDER BY id",
    )
    .bind(id.as_uuid())
    .bind(AUDITED_MAX)
    .fetch_all(conn)
    .await
    .map_err(unread)?;
    let audited = |row: &sqlx::postgres::PgRow| {
        Ok(Audited {
            at: row.try_get(0)?,
            actor: row.try_get(1)?,
            action: row.try_get(2)?,
            step: row.try_get(3)?,
            note: row.try_get(4)?,
            query: row.try_get(5)?,
        })
    };
    rows.iter().map(audited).collect::<Result<_, _>>().map_err(unread)
}

/// What happened to a saga, in order: the journal of its orchestrator. At most 10,000 inputs.
///
/// # Errors
/// [`Kind::Schema`] where a newer release has written it; what Postgres answers.
pub async fn journal(conn: &mut PgConnection, id: SagaId) -> Result<Vec<Moment>, Error> {
    let rows: Vec<(i64, i64, String)> = sqlx::query_as(
        "SELECT (extract(epoch FROM at) * 1000000)::bigint, revision, entries::text
         FROM tailrace.saga_journal WHERE saga_id = $1 ORDER BY id LIMIT $2",
    )
    .bind(id.as_uuid())
    .bind(ROWS_MAX)
    .fetch_all(conn)
    .await
    .map_err(unread)?;
    rows.into_iter()
        .map(|(at, revision, entries)| {
            let entries = serde_json::from_str(&entries).map_err(|error| {
                let place = format!("line {}, column {}", error.line(), error.column());
                Error::new(Kind::Schema, "the journal has what this version does not know")
                    .caused_by(place)
            })?;
            let micros = Duration::from_micros(u64::try_from(at).unwrap_or_default());
            let revision = u64::try_from(revision).unwrap_or_default();
            Ok(Moment { at: SystemTime::UNIX_EPOCH + micros, revision, entries })
        })
        .collect()
}
