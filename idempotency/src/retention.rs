//! The daily partitions of the processed-message table: made ahead, and dropped after the horizon.
//!
//! Ids are UUIDs of version 7, so a UTC day is a range of ids, and a day's ids leave by dropping one table.
//!
//! ```no_run
//! # async fn example(mut conn: sqlx::PgConnection) -> Result<(), tailrace_idempotency::Error> {
//! use std::time::Duration;
//! use tailrace_idempotency::retention::{self, Horizon};
//!
//! // Once an hour, from as many places as you like, by the owner of the tables.
//! let horizon = Horizon::new(Duration::from_secs(14 * 86_400));
//! let report = retention::maintain(&mut conn, &horizon).await?;
//! println!("made {:?}, dropped {:?}", report.made, report.dropped);
//! # Ok(())
//! # }
//! ```
//!
//! # What is dropped when
//! A day goes once nothing was claimed in it for the whole horizon. Claims of ids that are at most a day
//! older than their day are the rule and leave no trace, so a day counts as claimed until the end of the day
//! after it. A claim that comes later (a lag, a replay, a consumer that reads a long history) leaves a mark in
//! `tailrace.processed_message_day`, once an hour and day, in its own transaction; so no counter that a
//! crash or a failover resets decides. That a day was dropped is written down with the drop, and the
//! [guard](crate::guard) answers [`TooOld`](crate::guard::Claim::TooOld) for its ids from then on.
//!
//! Opaque ids have no day. They stand in two tables, of this generation and of the one before; when this one
//! is as old as the horizon, the older table is dropped and a new one begun. So they are known for one
//! horizon at least, and for two at most.
//!
//! The horizon must be longer than the longest time after which a message may come again: the retention of the
//! topics if they are ever read anew, else the longest outage of a consumer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::{Connection, PgConnection};

use crate::error::{Error, Kind};
use crate::message_id::Day;

mod report;

pub use report::{Maintained, PartitionDay, Status};

/// How many days after today have their partition made at start.
pub const DAYS_AHEAD: i32 = 2;

/// Fewer days ahead than this are an alarm: claims will soon have to make their partition themselves, at the
/// price of a lock in the middle of their transaction.
pub const DAYS_AHEAD_MIN: u16 = 2;

/// How long claims are known unless the horizon says otherwise: 7 days.
pub const HORIZON: Duration = Duration::from_secs(7 * 86_400);

/// The function that makes partitions makes no more.
const DAYS_AHEAD_MAX: u16 = 7;

/// No horizon is longer; beyond it times end.
const HORIZON_MAX: Duration = Duration::from_secs(100 * 366 * 86_400);

/// An age in seconds, for Postgres: nothing is older than 100 years.
pub(crate) fn age_seconds(age: Duration) -> f64 {
    age.min(HORIZON_MAX).as_secs_f64()
}

/// While a drop waits for its lock, new claims wait behind it.
const LOCK_WAIT: Duration = Duration::from_millis(100);

/// How often a drop asks for its lock in one run, and the longest pause before it asks again.
const ATTEMPTS_MAX: u32 = 5;
const PAUSE_SECONDS_MAX: f64 = 0.5;

/// One call drops no more: what is left, the next one drops.
const DROPS_MAX: i64 = 500;

/// How long claims are known, and how far ahead there are partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Horizon {
    keep: Duration,
    days_ahead: u16,
    lock_wait: Duration,
}

impl Default for Horizon {
    /// [`HORIZON`].
    fn default() -> Self {
        Self::new(HORIZON)
    }
}

impl Horizon {
    /// Claims are known for this long; at most 100 years.
    pub fn new(keep: Duration) -> Self {
        Self { keep: keep.min(HORIZON_MAX), days_ahead: 3, lock_wait: LOCK_WAIT }
    }

    /// Has partitions for so many days after today, at most 7. Default: 3.
    ///
    /// More than the days between two calls of [`maintain`].
    #[must_use]
    pub fn days_ahead(mut self, days: u16) -> Self {
        self.days_ahead = days.min(DAYS_AHEAD_MAX);
        self
    }

    /// How long a drop waits for transactions that have claimed, while new claims wait behind it. Default:
    /// 100 ms, which is asked for five times in a call.
    ///
    /// To be raised where transactions that claim are so long and so many that days are always postponed.
    #[must_use]
    pub fn lock_wait(mut self, wait: Duration) -> Self {
        self.lock_wait = wait.clamp(Duration::from_millis(1), Duration::from_secs(60));
        self
    }

    fn seconds(&self) -> f64 {
        self.keep.as_secs_f64()
    }
}

/// Makes the partitions of the next days, and drops the days that nothing was claimed in for the whole
/// horizon.
///
/// Call it from where you like and as often as you like, also from several places at once: an advisory lock
/// lets one of them drop, and the others answer that it is done [elsewhere](Maintained::elsewhere). It needs
/// the owner of the tables, or a role with the right to execute the functions of migration 4, and a connection
/// without an open transaction: each day is a transaction of its own, so that no lock is held from one to the
/// next.
///
/// Making a partition lets claims go on. Dropping one needs the table for a moment and waits for
/// transactions that have claimed, at most [`Horizon::lock_wait`]; then it is
/// [postponed](Maintained::postponed).
///
/// # Errors
/// What Postgres answers; what was done before stays done.
pub async fn maintain(conn: &mut PgConnection, horizon: &Horizon) -> Result<Maintained, Error> {
    let mut report = Maintained { made: make_ahead(conn, horizon).await?, ..Maintained::default() };
    for day in due(conn, horizon).await? {
        match step(conn, horizon, Step::Drop(day.day)).await? {
            Stepped::Done => report.dropped.push(day.name),
            Stepped::Nothing => {}
            Stepped::Postponed => report.postponed.push(day.name),
            Stepped::Elsewhere => {
                report.elsewhere = true;
                break;
            }
        }
    }
    if !report.elsewhere && opaque_due(conn, horizon).await? {
        match step(conn, horizon, Step::TurnOpaque).await? {
            Stepped::Done => report.opaque_turned = true,
            Stepped::Nothing => {}
            Stepped::Postponed => report.postponed.push("processed_opaque".to_owned()),
            Stepped::Elsewhere => report.elsewhere = true,
        }
    }
    forget_old_days(conn).await?;
    report.days_ahead = days_ahead(conn).await?;
    Ok(report)
}

/// What [`maintain`] would drop now, and how far ahead there are partitions; changes nothing.
///
/// For whoever is about to shorten the horizon, and for a check: see [`Status::faults`].
///
/// # Errors
/// What Postgres answers.
pub async fn status(conn: &mut PgConnection, horizon: &Horizon) -> Result<Status, Error> {
    let rows: Vec<(i32, String, i64, f64, bool)> = sqlx::query_as(
        "SELECT day - date '1970-01-01', name, bytes, extract(epoch FROM quiet_since)::float8,
                quiet_since + make_interval(secs => $1) <= clock_timestamp()
         FROM tailrace.processed_message_partition ORDER BY day",
    )
    .bind(horizon.seconds())
    .fetch_all(&mut *conn)
    .await
    .map_err(cannot_read)?;
    let partitions = rows
        .into_iter()
        .map(|(day, name, bytes, quiet_since, is_due)| PartitionDay {
            day: Day(day),
            name,
            bytes: u64::try_from(bytes).unwrap_or_default(),
            quiet_since: time(quiet_since),
            is_due,
        })
        .collect();
    Ok(Status {
        partitions,
        days_ahead: days_ahead(conn).await?,
        is_opaque_due: opaque_due(conn, horizon).await?,
    })
}

/// For how many days in a row after today there are partitions; fewer than [`DAYS_AHEAD_MIN`] are an alarm.
///
/// # Errors
/// What Postgres answers.
pub async fn days_ahead(conn: &mut PgConnection) -> Result<u16, Error> {
    let days: i32 = sqlx::query_scalar(
        "SELECT coalesce(min(ahead) FILTER (WHERE to_regclass('tailrace.processed_message_'
             || to_char((clock_timestamp() AT TIME ZONE 'UTC')::date + ahead, 'YYYYMMDD')) IS NULL), 9) - 1
         FROM generate_series(1, 9) AS ahead",
    )
    .fetch_one(conn)
    .await
    .map_err(cannot_read)?;
    u16::try_from(days)
        .map_err(|error| Error::new(Kind::Internal, "a negative number of days").caused_by(error))
}

/// Makes the partitions of today and of the next [`DAYS_AHEAD`] days, by the database's clock in UTC, and
/// answers how many were missing.
///
/// Call it at start and once a day, or [`maintain`]; a consumer does so by itself. When it was not called for
/// days, claims make what they need, at the price of a lock in the middle of their transaction.
///
/// # Errors
/// What Postgres answers: the tables may be missing, or the role may lack the right to execute
/// `tailrace.make_processed_message_partitions`.
pub async fn make_partitions_ahead(conn: &mut PgConnection) -> Result<u32, Error> {
    let made: i32 = sqlx::query_scalar(
        "SELECT tailrace.make_processed_message_partitions(
             ARRAY(SELECT (now() AT TIME ZONE 'UTC')::date + ahead FROM generate_series(0, $1) AS ahead))",
    )
    .bind(DAYS_AHEAD)
    .fetch_one(conn)
    .await
    .map_err(cannot_make)?;
    counted(made)
}

pub(crate) async fn make_partitions(conn: &mut PgConnection, days: &[Day]) -> Result<u32, Error> {
    let days: Vec<i32> = days.iter().map(|day| day.0).collect();
    let made: i32 = sqlx::query_scalar(
        "SELECT tailrace.make_processed_message_partitions(
             ARRAY(SELECT date '1970-01-01' + day FROM unnest($1::int[]) AS day))",
    )
    .bind(days)
    .fetch_one(conn)
    .await
    .map_err(cannot_make)?;
    counted(made)
}

/// Leaves the mark that days of long ago are claimed, in the transaction of the claim.
pub(crate) async fn note_late_claims(conn: &mut PgConnection, days: &[Day]) -> Result<(), Error> {
    if days.is_empty() {
        return Ok(());
    }
    let days: Vec<i32> = days.iter().map(|day| day.0).collect();
    let noted = sqlx::query("SELECT tailrace.note_late_claims($1)").bind(days).execute(conn).await;
    noted.map_err(|error| Error::database("a late claim cannot be noted", error))?;
    Ok(())
}

/// One by one, each in a transaction of its own.
async fn make_ahead(conn: &mut PgConnection, horizon: &Horizon) -> Result<Vec<String>, Error> {
    let missing: Vec<(i32, String)> = sqlx::query_as(
        "SELECT day - date '1970-01-01', name
         FROM generate_series(0, $1) AS ahead,
              LATERAL (SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date + ahead AS day) AS wanted,
              LATERAL (SELECT 'processed_message_' || to_char(day, 'YYYYMMDD') AS name) AS named
         WHERE to_regclass('tailrace.' || name) IS NULL ORDER BY day",
    )
    .bind(i32::from(horizon.days_ahead))
    .fetch_all(&mut *conn)
    .await
    .map_err(cannot_read)?;
    let mut made = Vec::new();
    for (day, name) in missing {
        if make_partitions(conn, &[Day(day)]).await? > 0 {
            made.push(name);
        }
    }
    Ok(made)
}

async fn due(conn: &mut PgConnection, horizon: &Horizon) -> Result<Vec<Due>, Error> {
    let rows: Vec<(i32, String)> = sqlx::query_as(
        "SELECT day - date '1970-01-01', name FROM tailrace.processed_message_partition
         WHERE quiet_since + make_interval(secs => $1) <= clock_timestamp() ORDER BY day LIMIT $2",
    )
    .bind(horizon.seconds())
    .bind(DROPS_MAX)
    .fetch_all(conn)
    .await
    .map_err(cannot_read)?;
    Ok(rows.into_iter().map(|(day, name)| Due { day: Day(day), name }).collect())
}

struct Due {
    day: Day,
    name: String,
}

/// Whether a generation of opaque ids has lasted for the horizon and there is something to forget.
async fn opaque_due(conn: &mut PgConnection, horizon: &Horizon) -> Result<bool, Error> {
    sqlx::query_scalar(
        "SELECT began_at + make_interval(secs => $1) <= clock_timestamp()
                AND (EXISTS (SELECT FROM tailrace.processed_opaque)
                     OR EXISTS (SELECT FROM tailrace.processed_opaque_before))
         FROM tailrace.opaque_generation",
    )
    .bind(horizon.seconds())
    .fetch_one(conn)
    .await
    .map_err(cannot_read)
}

/// A day that no partition can be made for any more needs nothing to say that it was dropped.
async fn forget_old_days(conn: &mut PgConnection) -> Result<(), Error> {
    sqlx::query(
        "DELETE FROM tailrace.processed_message_day AS known
         WHERE day < (clock_timestamp() AT TIME ZONE 'UTC')::date - 410
           AND to_regclass('tailrace.processed_message_' || to_char(day, 'YYYYMMDD')) IS NULL",
    )
    .execute(conn)
    .await
    .map_err(|error| Error::database("old days cannot be forgotten", error))?;
    Ok(())
}

#[derive(Clone, Copy)]
enum Step {
    Drop(Day),
    TurnOpaque,
}

enum Stepped {
    Done,
    /// Another call had done it before, or a claim came in between.
    Nothing,
    Postponed,
    Elsewhere,
}

/// A step, asked for a few times: a lock that is not to be had now may be in a moment.
async fn step(conn: &mut PgConnection, horizon: &Horizon, step: Step) -> Result<Stepped, Error> {
    for attempt in 1.. {
        match try_step(conn, horizon, step).await {
            Ok(stepped) => return Ok(stepped),
            Err(error) if !is_busy(&error) => return Err(cannot_drop(error)),
            Err(_) if attempt == ATTEMPTS_MAX => break,
            Err(_) => {
                sqlx::query("SELECT pg_sleep(random() * $1)")
                    .bind(PAUSE_SECONDS_MAX)
                    .execute(&mut *conn)
                    .await
                    .map_err(cannot_drop)?;
            }
        }
    }
    Ok(Stepped::Postponed)
}

async fn try_step(
    conn: &mut PgConnection,
    horizon: &Horizon,
    step: Step,
) -> Result<Stepped, sqlx::Error> {
    let mut tx = conn.begin().await?;
    let alone: bool = sqlx::query_scalar(
        "SELECT pg_try_advisory_xact_lock(hashtextextended('tailrace.retention', 0))
         FROM set_config('lock_timeout', $1, true) AS wait, set_config('statement_timeout', '60s', true) AS bound",
    )
    .bind(format!("{}ms", horizon.lock_wait.as_millis()))
    .fetch_one(&mut *tx)
    .await?;
    if !alone {
        return Ok(Stepped::Elsewhere);
    }
    let done: bool = match step {
        Step::Drop(day) => sqlx::query_scalar(
            "SELECT tailrace.drop_processed_message_day(date '1970-01-01' + $1, $2)",
        )
        .bind(day.0),
        Step::TurnOpaque => sqlx::query_scalar("SELECT tailrace.turn_opaque_generation($1)"),
    }
    .bind(horizon.seconds())
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(if done { Stepped::Done } else { Stepped::Nothing })
}

/// A lock was not to be had in time, or others came in between.
fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|fault| fault.code());
    matches!(code.as_deref(), Some("55P03" | "57014" | "40P01"))
}

fn time(seconds: f64) -> SystemTime {
    UNIX_EPOCH + Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

fn cannot_make(error: sqlx::Error) -> Error {
    Error::database("partitions of tailrace.processed_message cannot be made", error)
}

fn cannot_drop(error: sqlx::Error) -> Error {
    Error::database("claims beyond the horizon cannot be dropped", error)
}

fn cannot_read(error: sqlx::Error) -> Error {
    Error::database("the partitions of tailrace.processed_message cannot be read", error)
}

fn counted(made: i32) -> Result<u32, Error> {
    u32::try_from(made).map_err(|error| {
        Error::new(Kind::Internal, "a negative number of partitions").caused_by(error)
    })
}

#[cfg(test)]
#[cfg(feature = "kafka")]
mod tests;
