//! The barrier's rows.

use std::time::{SystemTime, UNIX_EPOCH};

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use tailrace_idempotency::MessageId;
use tailrace_outbox::{Message, Outbox};
use uuid::Uuid;

use super::{Barrier, Decision, Ended, Past, Request};
use crate::correlation::{Correlation, Epoch};
use crate::error::{Error, Kind};

/// One round trip: the row is made where it is missing, locked, and read; with it, whether the deadline has passed by the
/// clock of the database, which all processes of a participant share, how far back rows are kept, and whether the saga
/// is old enough for its rows to be gone.
const LOCK: &str = "INSERT INTO tailrace.saga_barrier AS held (saga_id, step, definition)
     VALUES ($1, $2, $3)
     ON CONFLICT (saga_id, step) DO UPDATE SET definition = held.definition
     RETURNING action_epoch, action_outcome, reply, compensation_epoch,
         coalesce($4 < (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, false),
         held.saga_id < (SELECT horizon.saga_id FROM tailrace.saga_barrier_horizon AS horizon),
         compensation_calling, caller,
         held.saga_id < (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint - 60000), 12, '0')
             || repeat('0', 20))::uuid";

/// How far back rows are kept, for whoever has made one.
const HORIZON: &str = "SELECT saga_id FROM tailrace.saga_barrier_horizon";

const REMEMBER: &str = "UPDATE tailrace.saga_barrier
     SET action_epoch = $3, action_outcome = $4, reply = $5, compensation_epoch = $6,
         compensation_calling = NULL, caller = NULL
     WHERE saga_id = $1 AND step = $2";

const CALLS: &str = "UPDATE tailrace.saga_barrier
     SET action_epoch = $3, action_outcome = $4, compensation_calling = $5, caller = $6, reply = coalesce($7, reply)
     WHERE saga_id = $1 AND step = $2";

/// The locked row of a step.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) barrier: Barrier,
    /// The reply or the refusal of the action.
    pub(crate) reply: Option<Vec<u8>>,
    /// Whether the deadline has passed.
    pub(crate) late: bool,
    /// Whether what was done for this saga may be forgotten, so that nothing can be decided.
    pub(crate) forgotten: bool,
    /// The id of the message that makes a call for the step.
    pub(super) caller: Option<String>,
}

impl Held {
    /// As [`Barrier::decide`], for this message: one that was given up with its call, and that a person has tried again,
    /// begins the call anew, since everybody else waits for it. The other side knows the key again.
    pub(crate) fn decide(&self, request: Request, by: MessageId) -> Decision {
        let is_mine = || self.caller.as_deref() == Some(&*by.to_string());
        let is_calling = self.barrier.is_calling(request.operation, request.epoch);
        match self.barrier.decide(request) {
            Decision::Wait if is_calling && is_mine() => Decision::Run,
            decision => decision,
        }
    }
}

/// Locks the row of a step until the transaction ends.
pub(crate) async fn lock(
    conn: &mut PgConnection,
    correlation: &Correlation,
    deadline: Option<SystemTime>,
) -> Result<Held, Error> {
    let saga = correlation.saga.as_uuid();
    let row = sqlx::query(LOCK)
        .bind(saga)
        .bind(&*correlation.step)
        .bind(&*correlation.definition)
        .bind(deadline.map(micros))
        .fetch_one(&mut *conn)
        .await
        .map_err(failed)?;
    let (barrier, reply) = barrier_of(&row)?;
    let late = row.try_get(4).map_err(failed)?;
    let (mut beyond, is_old): (bool, bool) =
        (row.try_get(5).map_err(failed)?, row.try_get(8).map_err(failed)?);
    // The statement may have begun before the horizon rose and have waited for whoever deleted the row. What it has made
    // itself is there now, so that whatever was deleted before was so below a horizon that can be seen.
    if !beyond && is_old && barrier == Barrier::default() {
        beyond = *saga < horizon(conn).await?;
    }
    let caller = row.try_get("caller").map_err(failed)?;
    Ok(Held { barrier, reply, late, forgotten: is_forgotten(*saga, beyond), caller })
}

/// Of which sagas rows may be gone, as it can be seen now.
pub(super) async fn horizon(conn: &mut PgConnection) -> Result<Uuid, Error> {
    sqlx::query_scalar(HORIZON).fetch_one(conn).await.map_err(failed)
}

/// What a row says whose first columns are those of [`LOCK`].
pub(super) fn barrier_of(row: &PgRow) -> Result<(Barrier, Option<Vec<u8>>), Error> {
    let (action_epoch, action_outcome): (Option<i64>, Option<String>) =
        (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
    let compensation: Option<i64> = row.try_get(3).map_err(failed)?;
    let undoing: Option<i64> = row.try_get("compensation_calling").map_err(failed)?;
    let barrier = Barrier {
        action: past(action_epoch, action_outcome.as_deref())?,
        compensation: compensation.map(epoch).transpose()?,
        undoing: undoing.map(epoch).transpose()?,
    };
    Ok((barrier, row.try_get(2).map_err(failed)?))
}

/// Rows of other ids are never deleted: they say nothing of their time.
pub(super) fn is_forgotten(saga: Uuid, is_beyond_horizon: bool) -> bool {
    is_beyond_horizon && saga.get_version_num() == 7
}

/// Stores what is remembered from now on, and writes the answer along with it.
pub(crate) async fn remember(
    conn: &mut PgConnection,
    outbox: &Outbox,
    correlation: &Correlation,
    barrier: Barrier,
    reply: Option<&[u8]>,
    answer: &Message,
) -> Result<(), Error> {
    bound(outbox.merge(REMEMBER), correlation, barrier, reply)
        .message(answer)
        .execute(conn)
        .await
        .map(drop)
        .map_err(|error| {
            Error::new(Kind::Outbox, "what was done for a step cannot be stored and answered")
                .caused_by(error)
        })
}

/// As [`remember`], with any number of messages.
pub(crate) async fn remember_all(
    conn: &mut PgConnection,
    outbox: &Outbox,
    correlation: &Correlation,
    barrier: Barrier,
    reply: Option<&[u8]>,
    messages: &[Message],
) -> Result<(), Error> {
    if let [message] = messages {
        return remember(conn, outbox, correlation, barrier, reply, message).await;
    }
    sqlx::query(REMEMBER)
        .bind(correlation.saga.as_uuid())
        .bind(&*correlation.step)
        .bind(barrier.action.map(|past| i64::from(past.epoch.get())))
        .bind(barrier.action.map(|past| past.ended.as_str()))
        .bind(reply)
        .bind(barrier.compensation.map(|epoch| i64::from(epoch.get())))
        .execute(&mut *conn)
        .await
        .map_err(|error| Error::database("what was done for a step cannot be stored", error))?;
    outbox.write_all(conn, messages).await.map(drop).map_err(Error::of_outbox)
}

/// Stores that a message makes a call for the step, where there is nothing to answer yet; with what is to be kept beside
/// it, if anything is.
pub(crate) async fn calls(
    conn: &mut PgConnection,
    correlation: &Correlation,
    barrier: Barrier,
    caller: MessageId,
    kept: Option<&[u8]>,
) -> Result<(), Error> {
    sqlx::query(CALLS)
        .bind(*correlation.saga.as_uuid())
        .bind(&*correlation.step)
        .bind(barrier.action.map(|past| i64::from(past.epoch.get())))
        .bind(barrier.action.map(|past| past.ended.as_str()))
        .bind(barrier.undoing.map(|epoch| i64::from(epoch.get())))
        .bind(caller.to_string())
        .bind(kept)
        .execute(conn)
        .await
        .map(drop)
        .map_err(|error| Error::database("what is done for a step cannot be stored", error))
}

fn bound<'o>(
    merge: tailrace_outbox::Merge<'o>,
    correlation: &Correlation,
    barrier: Barrier,
    reply: Option<&[u8]>,
) -> tailrace_outbox::Merge<'o> {
    merge
        .bind(*correlation.saga.as_uuid())
        .bind(&*correlation.step)
        .bind(barrier.action.map(|past| i64::from(past.epoch.get())))
        .bind(barrier.action.map(|past| past.ended.as_str()))
        .bind(reply)
        .bind(barrier.compensation.map(|epoch| i64::from(epoch.get())))
}

/// Deletes the rows of sagas that began before this time, a bounded number of them, and says how many. Before the first
/// one goes, the horizon is there: a later command of such a saga is not decided. Sagas of the last minute stay in any
/// case, and so does a row for which a call is made: what is recorded then has to find it.
///
/// # Errors
/// What Postgres answers.
pub(crate) async fn forget(
    conn: &mut PgConnection,
    before: SystemTime,
    rows_max: i64,
) -> Result<u64, Error> {
    let failed = |error| Error::database("old barrier rows cannot be deleted", error);
    // By the clock by which `lock` asks whether a saga is old.
    let horizon: Uuid = sqlx::query_scalar(
        "SELECT least($1, (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint - 60000), 12, '0')
             || repeat('0', 20))::uuid)",
    )
    .bind(first_id_of(before))
    .fetch_one(&mut *conn)
    .await
    .map_err(failed)?;
    sqlx::query("UPDATE tailrace.saga_barrier_horizon SET saga_id = $1 WHERE saga_id < $1")
        .bind(horizon)
        .execute(&mut *conn)
        .await
        .map_err(failed)?;
    let deleted = sqlx::query(
        "DELETE FROM tailrace.saga_barrier AS held USING (
             SELECT saga_id, step FROM tailrace.saga_barrier
             WHERE saga_id < $1 AND substr(saga_id::text, 15, 1) = '7'
               AND action_outcome IS DISTINCT FROM 'calling' AND compensation_calling IS NULL
             ORDER BY saga_id, step LIMIT $2 FOR UPDATE SKIP LOCKED) AS old
         WHERE held.saga_id = old.saga_id AND held.step = old.step",
    )
    .bind(horizon)
    .bind(rows_max)
    .execute(conn)
    .await
    .map_err(failed)?;
    Ok(deleted.rows_affected())
}

/// The least id of version 7 that is minted at this time.
pub(crate) fn first_id_of(time: SystemTime) -> Uuid {
    let milliseconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    Uuid::from_u128(milliseconds << 80)
}

pub(super) fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn past(epoch: Option<i64>, outcome: Option<&str>) -> Result<Option<Past>, Error> {
    let (Some(number), Some(outcome)) = (epoch, outcome) else { return Ok(None) };
    Ok(Some(Past { epoch: self::epoch(number)?, ended: Ended::parse(outcome)? }))
}

fn epoch(number: i64) -> Result<Epoch, Error> {
    u32::try_from(number).map(Epoch::new).map_err(|_| unreadable("an epoch"))
}

impl Ended {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Calling => "calling",
        }
    }

    fn parse(text: &str) -> Result<Self, Error> {
        [Self::Done, Self::Refused, Self::Calling]
            .into_iter()
            .find(|ended| ended.as_str() == text)
            .ok_or_else(|| unreadable("an outcome"))
    }
}

fn unreadable(what: &str) -> Error {
    Error::new(
        Kind::Schema,
        format!("tailrace.saga_barrier has {what} that this version does not know"),
    )
}

pub(super) fn failed(error: sqlx::Error) -> Error {
    Error::database("what was done for a step cannot be read", error)
}

#[cfg(test)]
mod tests;
