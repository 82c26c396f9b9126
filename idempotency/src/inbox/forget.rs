//! Stored messages leave: by age, or because somebody's data is to be erased.

use std::time::Duration;

use sqlx::{Connection, PgConnection};

use super::change::key_hash;
use super::{Audit, By, Filter, State, count, unchanged, unread};
use crate::error::Error;

/// So many dead letters leave in one transaction.
const ROWS_PER_DELETE: i64 = 5_000;

/// Deletes the dead letters that fit and are older than this, some in each transaction; answers how many.
///
/// For retention, by a timer. The audit keeps that it was done, not what was deleted.
///
/// # Errors
/// What Postgres answers; what was deleted before stays deleted.
pub async fn prune(
    conn: &mut PgConnection,
    filter: &Filter,
    older_than: Duration,
    by: &By,
) -> Result<u64, Error> {
    let filter = filter.clone().state(State::Dead).older_than(older_than);
    let mut pruned = 0;
    loop {
        let mut tx = conn.begin().await.map_err(unchanged)?;
        let chosen = "DELETE FROM tailrace.dead_letter WHERE id IN (SELECT id";
        let row = filter
            .query(chosen, "ORDER BY since LIMIT $10) RETURNING consumer")
            .bind(ROWS_PER_DELETE)
            .fetch_all(&mut *tx)
            .await
            .map_err(unchanged)?;
        let mut consumers: Vec<(String, u64)> = Vec::new();
        for row in &row {
            let consumer: String = sqlx::Row::try_get(row, 0).map_err(unread)?;
            match consumers.iter_mut().find(|(name, _)| *name == consumer) {
                Some((_, rows)) => *rows += 1,
                None => consumers.push((consumer, 1)),
            }
        }
        for (consumer, rows) in &consumers {
            audit("prune", consumer, format!("{{\"dead_letters\": {rows}}}"))
                .write(&mut tx, by)
                .await?;
        }
        tx.commit().await.map_err(unchanged)?;
        pruned += row.len() as u64;
        if (row.len() as u64) < ROWS_PER_DELETE.unsigned_abs() {
            return Ok(pruned);
        }
    }
}

/// How many [`prune`] would delete now.
///
/// # Errors
/// What Postgres answers.
pub async fn plan_prune(
    conn: &mut PgConnection,
    filter: &Filter,
    older_than: Duration,
) -> Result<u64, Error> {
    count(conn, &filter.clone().state(State::Dead).older_than(older_than)).await
}

/// What was erased of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Erased {
    /// Dead letters that were deleted.
    pub dead_letters: u64,
    /// Parked messages that lost payload and headers, and are given up. Their consumer makes dead letters of them,
    /// with the key; erase them afterwards.
    pub parked: u64,
    /// Rows of the audit that lost an old or new payload.
    pub audited: u64,
}

/// Erases what is stored of a key's messages, in one transaction: dead letters, payloads and headers of parked
/// messages, payloads in the audit.
///
/// What was applied, what stands in Kafka, in the write-ahead log and in backups is not touched.
///
/// # Errors
/// What Postgres answers; nothing is erased then.
pub async fn erase(
    conn: &mut PgConnection,
    consumer: &str,
    key: &[u8],
    by: &By,
) -> Result<Erased, Error> {
    let mut tx = conn.begin().await.map_err(unchanged)?;
    let dead_letters =
        sqlx::query("DELETE FROM tailrace.dead_letter WHERE consumer = $1 AND key = $2")
            .bind(consumer)
            .bind(key)
            .execute(&mut *tx)
            .await
            .map_err(unchanged)?
            .rows_affected();
    let parked = sqlx::query(
        "UPDATE tailrace.parked_message
         SET payload = NULL, header_names = '{}', header_values = '{}', detail = NULL,
             state = 'discard', retry_at = NULL
         WHERE consumer = $1 AND key = $2",
    )
    .bind(consumer)
    .bind(key)
    .execute(&mut *tx)
    .await
    .map_err(unchanged)?
    .rows_affected();
    let audited = sqlx::query(
        "UPDATE tailrace.inbox_audit SET before = before - 'payload_hex', after = after - 'payload_hex'
         WHERE consumer = $1 AND before->>'key_sha256' = $2
           AND (before ? 'payload_hex' OR after ? 'payload_hex')",
    )
    .bind(consumer)
    .bind(key_hash(key))
    .execute(&mut *tx)
    .await
    .map_err(unchanged)?
    .rows_affected();
    let erased = Erased { dead_letters, parked, audited };
    let after = format!(
        "{{\"key_sha256\": \"{}\", \"dead_letters\": {dead_letters}, \"parked\": {parked}}}",
        key_hash(key)
    );
    audit("erase", consumer, after).write(&mut tx, by).await?;
    tx.commit().await.map_err(unchanged)?;
    Ok(erased)
}

/// What [`erase`] would erase now.
///
/// # Errors
/// What Postgres answers.
pub async fn plan_erase(
    conn: &mut PgConnection,
    consumer: &str,
    key: &[u8],
) -> Result<Erased, Error> {
    let (dead_letters, parked, audited): (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM tailrace.dead_letter WHERE consumer = $1 AND key = $2),
                (SELECT count(*) FROM tailrace.parked_message WHERE consumer = $1 AND key = $2),
                (SELECT count(*) FROM tailrace.inbox_audit
                 WHERE consumer = $1 AND before->>'key_sha256' = $3
                   AND (before ? 'payload_hex' OR after ? 'payload_hex'))",
    )
    .bind(consumer)
    .bind(key)
    .bind(key_hash(key))
    .fetch_one(conn)
    .await
    .map_err(unread)?;
    let [dead_letters, parked, audited] = [dead_letters, parked, audited].map(i64::unsigned_abs);
    Ok(Erased { dead_letters, parked, audited })
}

fn audit<'a>(action: &'static str, consumer: &'a str, after: String) -> Audit<'a> {
    Audit {
        action,
        consumer,
        topic: None,
        partition: None,
        offset: None,
        before: None,
        after: Some(after),
    }
}
