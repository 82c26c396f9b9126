//! The progress rows: taking ownership, the fence, and what holds after an uncertain commit.

use sqlx::{Connection, PgConnection};

use crate::error::{Error, Kind};
use crate::position::Offset;

/// This version has one lane per partition.
pub(crate) const LANE: i32 = 0;

/// Counts the owners of a partition; only the holder of the newest can commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epoch(pub(crate) i64);

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Partition {
    pub(crate) topic: std::sync::Arc<str>,
    pub(crate) number: i32,
}

/// A partition that this process owns from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owned {
    pub(crate) partition: Partition,
    pub(crate) epoch: Epoch,
    pub(crate) next_offset: Option<Offset>,
}

// A former owner that is stopped inside its transaction holds the row; it is given up by the server after
// `idle_in_transaction_session_timeout` (see `BEGIN`), and the caller repeats until then.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '5s'";

/// Begins a batch's transaction. A process that is stopped within it holds its rows no longer than this.
pub(crate) const BEGIN: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = '20s'";

/// The partitions among these for which nothing is stored.
pub(crate) async fn unstored(
    conn: &mut PgConnection,
    consumer: &str,
    partitions: &[Partition],
) -> Result<Vec<Partition>, Error> {
    let (topics, numbers) = columns(partitions);
    let rows: Vec<(String, i32)> = sqlx::query_as(
        "SELECT topic, number FROM unnest($2::text[], $3::int[]) AS asked (topic, number)
         WHERE NOT EXISTS (
             SELECT FROM tailrace.consumer_progress AS stored
             WHERE stored.consumer = $1 AND stored.topic = asked.topic
               AND stored.partition = asked.number AND stored.lane = $4
               AND stored.next_offset IS NOT NULL)",
    )
    .bind(consumer)
    .bind(topics)
    .bind(numbers)
    .bind(LANE)
    .fetch_all(conn)
    .await
    .map_err(|error| Error::database("progress cannot be read", error))?;
    Ok(rows.into_iter().map(|(topic, number)| Partition { topic: topic.into(), number }).collect())
}

/// Makes this process the owner: raises the epoch of all given partitions in one statement, and inserts the
/// rows that are missing. A start in `starts` counts where nothing is stored.
///
/// It must be over before the first record is fetched: from then on no former owner can commit, so what is
/// read here as `next_offset` stays true.
pub(crate) async fn take(
    conn: &mut PgConnection,
    consumer: &str,
    partitions: &[Partition],
    starts: &[Option<Offset>],
) -> Result<Vec<Owned>, Error> {
    let failed =
        |error| Error::database("the epoch of assigned partitions cannot be raised", error);
    let (topics, numbers) = columns(partitions);
    let starts: Vec<Option<i64>> = starts.iter().map(|start| start.map(Offset::get)).collect();
    let mut tx = conn.begin().await.map_err(failed)?;
    sqlx::query(LOCK_TIMEOUT).execute(&mut *tx).await.map_err(failed)?;
    let rows: Vec<(String, i32, i64, Option<i64>)> = sqlx::query_as(
        "INSERT INTO tailrace.consumer_progress AS stored
             (consumer, topic, partition, lane, epoch, next_offset)
         SELECT $1, topic, number, $5, 1, start
         FROM unnest($2::text[], $3::int[], $4::bigint[]) AS asked (topic, number, start)
         ORDER BY topic, number
         ON CONFLICT (consumer, topic, partition, lane) DO UPDATE
             SET epoch = stored.epoch + 1,
                 next_offset = coalesce(stored.next_offset, excluded.next_offset),
                 updated_at = now()
         RETURNING topic, partition, epoch, next_offset",
    )
    .bind(consumer)
    .bind(topics)
    .bind(numbers)
    .bind(starts)
    .bind(LANE)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    Ok(rows
        .into_iter()
        .map(|(topic, number, epoch, next_offset)| Owned {
            partition: Partition { topic: topic.into(), number },
            epoch: Epoch(epoch),
            next_offset: next_offset.map(Offset::new),
        })
        .collect())
}

fn columns(partitions: &[Partition]) -> (Vec<String>, Vec<i32>) {
    partitions.iter().map(|partition| (partition.topic.to_string(), partition.number)).unzip()
}

/// Proof that the transaction holds the fence: its id, to be shown again before the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fenced(String);

/// The first statement of a batch's transaction: moves progress on, if the epoch is still ours. No row means
/// that another process owns the partition, and that nothing may be committed.
pub(crate) async fn advance(
    conn: &mut PgConnection,
    consumer: &str,
    partition: &Partition,
    epoch: Epoch,
    next_offset: Offset,
) -> Result<Option<Fenced>, Error> {
    let row: Option<String> = sqlx::query_scalar(
        "UPDATE tailrace.consumer_progress SET next_offset = $6, updated_at = now()
         WHERE consumer = $1 AND topic = $2 AND partition = $3 AND lane = $4 AND epoch = $5
         RETURNING pg_current_xact_id()::text",
    )
    .bind(consumer)
    .bind(&*partition.topic)
    .bind(partition.number)
    .bind(LANE)
    .bind(epoch.0)
    .bind(next_offset.get())
    .fetch_optional(conn)
    .await
    .map_err(|error| Error::database("progress cannot be moved on", error))?;
    Ok(row.map(Fenced))
}

/// The first statement of a transaction that moves no progress, such as a replay of parked messages: the same fence.
pub(crate) async fn hold(
    conn: &mut PgConnection,
    consumer: &str,
    partition: &Partition,
    epoch: Epoch,
) -> Result<Option<Fenced>, Error> {
    let row: Option<String> = sqlx::query_scalar(
        "UPDATE tailrace.consumer_progress SET updated_at = now()
         WHERE consumer = $1 AND topic = $2 AND partition = $3 AND lane = $4 AND epoch = $5
         RETURNING pg_current_xact_id()::text",
    )
    .bind(consumer)
    .bind(&*partition.topic)
    .bind(partition.number)
    .bind(LANE)
    .bind(epoch.0)
    .fetch_optional(conn)
    .await
    .map_err(|error| Error::database("the partition cannot be held", error))?;
    Ok(row.map(Fenced))
}

/// The last statement before the commit: is this still the transaction that took the fence?
///
/// Postgres answers COMMIT in an aborted transaction with a roll-back and no error, so a handler that swallows
/// a failed statement would lose its whole batch silently; this statement fails then. It also finds a handler
/// that ended the transaction by itself.
pub(crate) async fn still_open(conn: &mut PgConnection, fenced: &Fenced) -> Result<(), Error> {
    let current: Option<String> = sqlx::query_scalar("SELECT pg_current_xact_id_if_assigned()::text")
        .fetch_one(conn)
        .await
        .map_err(|error| match &error {
            sqlx::Error::Database(cause) if cause.code().as_deref() == Some("25P02") => {
                Error::new(Kind::Handler, "a handler kept a failed statement to itself, which aborted the transaction of its batch")
                    .caused_by(error)
                    .mended_by("return the error, or put the statement behind a savepoint")
            }
            _ => Error::database("the batch's transaction cannot be checked", error),
        })?;
    if current.as_ref() == Some(&fenced.0) {
        return Ok(());
    }
    Err(Error::new(Kind::Handler, "a handler ended the transaction of its batch")
        .mended_by("handlers must neither commit nor roll back what they were given")
        .halting())
}

/// What an uncertain commit turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The batch is in the database.
    Committed,
    /// It is not: do it again.
    RolledBack,
    /// Another process owns the partition.
    NotOurs,
}

/// Reads the row after a commit whose answer was lost. Taking the row's lock waits for a server process that
/// is still at that commit.
pub(crate) async fn settle(
    conn: &mut PgConnection,
    consumer: &str,
    partition: &Partition,
    epoch: Epoch,
    next_offset: Offset,
) -> Result<Settled, Error> {
    let row: Option<(i64, Option<i64>)> = sqlx::query_as(
        "SELECT epoch, next_offset FROM tailrace.consumer_progress
         WHERE consumer = $1 AND topic = $2 AND partition = $3 AND lane = $4
         FOR UPDATE",
    )
    .bind(consumer)
    .bind(&*partition.topic)
    .bind(partition.number)
    .bind(LANE)
    .fetch_optional(conn)
    .await
    .map_err(|error| Error::database("progress cannot be read", error))?;
    Ok(settled(row.map(|(epoch, next)| (Epoch(epoch), next.map(Offset::new))), epoch, next_offset))
}

fn settled(row: Option<(Epoch, Option<Offset>)>, mine: Epoch, next_offset: Offset) -> Settled {
    match row {
        Some((epoch, Some(stored))) if epoch == mine && stored >= next_offset => Settled::Committed,
        Some((epoch, _)) if epoch == mine => Settled::RolledBack,
        _ => Settled::NotOurs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(row: Option<(i64, Option<i64>)>, expected: Settled) {
        let row = row.map(|(epoch, next)| (Epoch(epoch), next.map(Offset::new)));

        assert_eq!(settled(row, Epoch(7), Offset::new(100)), expected);
    }

    #[test]
    fn the_database_says_what_an_uncertain_commit_was() {
        check(Some((7, Some(100))), Settled::Committed);
        check(Some((7, Some(60))), Settled::RolledBack);
        check(Some((7, None)), Settled::RolledBack);
        check(Some((8, Some(100))), Settled::NotOurs);
        check(None, Settled::NotOurs);
    }
}
