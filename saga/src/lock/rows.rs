//! The line before each lock, as rows.
//!
//! Whoever decides whose turn it is has the line to himself, by an advisory lock for as long as his transaction lasts.
//! He never waits for that: a transaction has the rows of its sagas already, and two that waited for each other's lines
//! as well would wait in a circle. Who finds a line taken does his part (stands in it, or leaves it) and leaves a row in
//! `tailrace.saga_lock_look`, upon which somebody looks again ([`look`]). So no turn is ever lost, and none is given
//! twice: an index forbids it besides.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::correlation::SagaId;
use crate::error::Error;
use crate::lock::Lines;
use crate::store::{self, Cause, Deferred, Reason};
use crate::transition::{Input, LockKey};

/// Stands in line, or stays there, and says whether the saga has the lock now. The saga's row is locked.
pub(crate) async fn take(
    conn: &mut PgConnection,
    saga: SagaId,
    lock: &LockKey,
    ttl: Duration,
) -> Result<bool, Error> {
    sqlx::query(
        "INSERT INTO tailrace.saga_lock (saga_id, lock, key, ttl) VALUES ($1, $2, $3, interval '1 s' * $4)
         ON CONFLICT DO NOTHING",
    )
    .bind(*saga.as_uuid())
    .bind(&*lock.name)
    .bind(&lock.key)
    .bind(ttl.as_secs_f64())
    .execute(&mut *conn)
    .await
    .map_err(failed)?;
    settle(conn, std::slice::from_ref(lock), Some(saga)).await?;
    sqlx::query_scalar(
        "SELECT held_at IS NOT NULL FROM tailrace.saga_lock WHERE saga_id = $1 AND lock = $2 AND key = $3",
    )
    .bind(*saga.as_uuid())
    .bind(&*lock.name)
    .bind(&lock.key)
    .fetch_one(conn)
    .await
    .map_err(failed)
}

/// Sagas give locks back, or leave their lines; whoever is next then is told.
///
/// Who is being given a lock at this moment, by another transaction, can not leave the line: he is told, and gives it
/// back then.
pub(crate) async fn release(
    conn: &mut PgConnection,
    released: &[(SagaId, LockKey)],
) -> Result<(), Error> {
    if released.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "WITH given AS (
             SELECT saga_id, lock, key FROM unnest($1::uuid[], $2::text[], $3::text[]) AS given (saga_id, lock, key)
         ), waits AS MATERIALIZED (
             SELECT line.saga_id, line.lock, line.key
             FROM tailrace.saga_lock AS line JOIN given USING (saga_id, lock, key)
             WHERE line.held_at IS NULL
             FOR UPDATE OF line SKIP LOCKED
         )
         DELETE FROM tailrace.saga_lock AS line USING given
         WHERE (line.saga_id, line.lock, line.key) = (given.saga_id, given.lock, given.key)
           AND (line.held_at IS NOT NULL
               OR EXISTS (SELECT FROM waits
                   WHERE (waits.saga_id, waits.lock, waits.key) = (line.saga_id, line.lock, line.key)))",
    )
    .bind(released.iter().map(|(saga, _)| *saga.as_uuid()).collect::<Vec<_>>())
    .bind(released.iter().map(|(_, lock)| &*lock.name).collect::<Vec<_>>())
    .bind(released.iter().map(|(_, lock)| lock.key.as_str()).collect::<Vec<_>>())
    .execute(&mut *conn)
    .await
    .map_err(failed)?;
    let locks: Vec<LockKey> = released.iter().map(|(_, lock)| lock.clone()).collect();
    settle(conn, &locks, None).await.map(drop)
}

/// Whether there is a line to look at again.
pub(crate) async fn has_looks(conn: &mut PgConnection) -> Result<bool, Error> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM tailrace.saga_lock_look)")
        .fetch_one(conn)
        .await
        .map_err(failed)
}

/// Looks again at lines at which two transactions met, a bounded number of them, and says at how many
/// nobody else does.
pub(crate) async fn look(conn: &mut PgConnection, max: u32) -> Result<usize, Error> {
    let rows = sqlx::query(
        "DELETE FROM tailrace.saga_lock_look WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM tailrace.saga_lock_look LIMIT $1 FOR UPDATE SKIP LOCKED))
         RETURNING lock, key",
    )
    .bind(i64::from(max))
    .fetch_all(&mut *conn)
    .await
    .map_err(failed)?;
    let locks = rows.iter().map(|row| key(row, 0)).collect::<Result<Vec<_>, _>>()?;
    let missed = settle(conn, &locks, None).await?;
    Ok(locks.len() - missed)
}

/// How it stands with the locks of each name.
pub(crate) async fn lines(conn: &mut PgConnection) -> Result<Vec<Lines>, Error> {
    let rows = sqlx::query(
        "SELECT lock, count(held_at), count(*) FILTER (WHERE held_at + ttl < now()),
             count(*) FILTER (WHERE held_at IS NULL),
             coalesce(extract(epoch FROM now() - min(wanted_at) FILTER (WHERE held_at IS NULL)), 0)::float8
         FROM tailrace.saga_lock GROUP BY lock ORDER BY lock",
    )
    .fetch_all(conn)
    .await
    .map_err(failed)?;
    rows.iter()
        .map(|row| {
            let count =
                |at| row.try_get::<i64, usize>(at).map(|count| u64::try_from(count).unwrap_or(0));
            let waited: f64 = row.try_get(4).map_err(failed)?;
            Ok(Lines {
                lock: row.try_get(0).map_err(failed)?,
                held: count(1).map_err(failed)?,
                expired: count(2).map_err(failed)?,
                waiting: count(3).map_err(failed)?,
                wait_max: Duration::try_from_secs_f64(waited).unwrap_or_default(),
            })
        })
        .collect()
}

/// Gives each lock that nobody has to whoever is first in its line, and tells him; but not the saga at hand, which sees
/// for itself. Says how many lines others have.
async fn settle(
    conn: &mut PgConnection,
    locks: &[LockKey],
    at_hand: Option<SagaId>,
) -> Result<usize, Error> {
    let mut locks = locks.to_vec();
    locks.sort();
    locks.dedup();
    let (mine, mut missed) = occupy(conn, locks).await?;
    let mut told = Vec::new();
    // By a statement of its own: what others have committed before they left the line can be seen only now.
    for (saga, lock, is_held) in give(conn, &mine).await? {
        if !is_held {
            missed.push(lock);
        } else if Some(saga) != at_hand {
            let LockKey { name: step, key } = lock;
            let input = Input::Held { step, key };
            let (cause, reason) = (Cause::new(), Reason::Told);
            told.push(Deferred { saga, input, cause, reason, ticket: None });
        }
    }
    look_again(conn, &missed).await?;
    store::defer(conn, &told, 0.0).await?;
    Ok(missed.len())
}

/// Takes lines for this transaction; those that somebody else has are the second answer.
async fn occupy(
    conn: &mut PgConnection,
    locks: Vec<LockKey>,
) -> Result<(Vec<LockKey>, Vec<LockKey>), Error> {
    if locks.is_empty() {
        return Ok((locks, Vec::new()));
    }
    let are_mine: Vec<bool> = sqlx::query_scalar(
        "SELECT pg_try_advisory_xact_lock(hashtextextended('tailrace.saga_lock ' || lock || ' ' || key, 0))
         FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS given (lock, key, place) ORDER BY place",
    )
    .bind(locks.iter().map(|lock| &*lock.name).collect::<Vec<_>>())
    .bind(locks.iter().map(|lock| lock.key.as_str()).collect::<Vec<_>>())
    .fetch_all(conn)
    .await
    .map_err(failed)?;
    let (mine, others): (Vec<_>, Vec<_>) =
        locks.into_iter().zip(are_mine).partition(|(_, is_mine)| *is_mine);
    let only = |locks: Vec<(LockKey, bool)>| locks.into_iter().map(|(lock, _)| lock).collect();
    Ok((only(mine), only(others)))
}

/// Who is first in these lines, where nobody has the lock, and whether he has it now. He has not where he is leaving the
/// line in a transaction that is under way.
async fn give(
    conn: &mut PgConnection,
    locks: &[LockKey],
) -> Result<Vec<(SagaId, LockKey, bool)>, Error> {
    if locks.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "WITH first AS MATERIALIZED (
             SELECT first.saga_id, given.lock, given.key
             FROM unnest($1::text[], $2::text[]) AS given (lock, key)
             CROSS JOIN LATERAL (
                 SELECT line.saga_id FROM tailrace.saga_lock AS line
                 WHERE (line.lock, line.key) = (given.lock, given.key) AND line.held_at IS NULL
                 ORDER BY line.ticket LIMIT 1) AS first
             WHERE NOT EXISTS (SELECT FROM tailrace.saga_lock AS line
                 WHERE (line.lock, line.key) = (given.lock, given.key) AND line.held_at IS NOT NULL)
         ), stays AS MATERIALIZED (
             SELECT line.saga_id, line.lock, line.key
             FROM tailrace.saga_lock AS line JOIN first USING (saga_id, lock, key)
             WHERE line.held_at IS NULL
             FOR UPDATE OF line SKIP LOCKED
         ), held AS (
             UPDATE tailrace.saga_lock AS line SET held_at = clock_timestamp() FROM stays
             WHERE (line.saga_id, line.lock, line.key) = (stays.saga_id, stays.lock, stays.key)
             RETURNING line.saga_id, line.lock, line.key
         )
         SELECT first.lock, first.key, first.saga_id, held.saga_id IS NOT NULL
         FROM first LEFT JOIN held USING (saga_id, lock, key)",
    )
    .bind(locks.iter().map(|lock| &*lock.name).collect::<Vec<_>>())
    .bind(locks.iter().map(|lock| lock.key.as_str()).collect::<Vec<_>>())
    .fetch_all(conn)
    .await
    .map_err(failed)?;
    rows.iter()
        .map(|row| {
            let saga: Uuid = row.try_get(2).map_err(failed)?;
            Ok((SagaId::from_uuid(saga), key(row, 0)?, row.try_get(3).map_err(failed)?))
        })
        .collect()
}

async fn look_again(conn: &mut PgConnection, locks: &[LockKey]) -> Result<(), Error> {
    if locks.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO tailrace.saga_lock_look (lock, key) SELECT lock, key FROM unnest($1::text[], $2::text[]) AS given (lock, key)",
    )
    .bind(locks.iter().map(|lock| &*lock.name).collect::<Vec<_>>())
    .bind(locks.iter().map(|lock| lock.key.as_str()).collect::<Vec<_>>())
    .execute(conn)
    .await
    .map(drop)
    .map_err(failed)
}

fn key(row: &PgRow, at: usize) -> Result<LockKey, Error> {
    let name: String = row.try_get(at).map_err(failed)?;
    Ok(LockKey { name: name.into(), key: row.try_get(at + 1).map_err(failed)? })
}

fn failed(error: sqlx::Error) -> Error {
    Error::database("locks of sagas cannot be read or stored", error)
}
