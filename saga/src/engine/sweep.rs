//! Timers of sagas that are over: they would say nothing, but a deadline of days would be kept for days.

use sqlx::PgConnection;

use crate::error::Error;

/// Timers that are looked at in one statement.
const PORTION_TIMERS: i64 = 1_000;
/// Statements in one round, while they find something.
const PORTIONS_MAX: u32 = 20;

/// Goes through the timers that are not due about now, in the order in which they are due, a bounded number at a time, and
/// begins anew at the end. So it costs the same however many there are, and no index but the one by which they are taken.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// From which time on it goes on, in microseconds.
    after: Option<i64>,
}

/// What a portion came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Swept {
    looked_at: i64,
    deleted: i64,
}

/// What is due about now goes by itself, and what somebody takes at this moment is passed over. What has been due for longer
/// is of a definition that no engine runs any more: if its saga is over, nobody would ever take it.
///
/// Row by row, as in [`store::lock`](crate::store::lock): a join that the planner is free to turn around reads all timers
/// there are to find a thousand of them by where they stand.
const SWEEP: &str = "WITH looked AS MATERIALIZED (
         SELECT due_at, saga_id, at FROM (
             (SELECT due_at, saga_id, ctid AS at FROM tailrace.saga_timer
              WHERE due_at >= coalesce(to_timestamp($1 / 1000000.0), '-infinity')
                AND due_at < now() - interval '1 minute'
              ORDER BY due_at LIMIT $2)
             UNION ALL
             (SELECT due_at, saga_id, ctid FROM tailrace.saga_timer
              WHERE due_at >= greatest(to_timestamp($1 / 1000000.0), now() + interval '1 minute')
              ORDER BY due_at LIMIT $2)) AS not_now
         ORDER BY due_at LIMIT $2),
     over AS MATERIALIZED (
         SELECT looked.at FROM looked
         CROSS JOIN LATERAL (
             SELECT FROM tailrace.saga_instance AS kept
             WHERE kept.id = looked.saga_id AND kept.status IN ('completed', 'compensated', 'aborted') OFFSET 0) AS saga
         CROSS JOIN LATERAL (
             SELECT FROM tailrace.saga_timer AS there WHERE there.ctid = looked.at FOR UPDATE SKIP LOCKED) AS held),
     deleted AS (
         DELETE FROM tailrace.saga_timer WHERE ctid = ANY (ARRAY(SELECT at FROM over)) RETURNING 1)
     SELECT count(*), (SELECT count(*) FROM deleted), (extract(epoch FROM max(due_at)) * 1000000)::bigint
     FROM looked";

impl Sweep {
    /// One portion, and more where they are worth it.
    pub(super) async fn round(&mut self, conn: &mut PgConnection) -> Result<(), Error> {
        for _ in 0..PORTIONS_MAX {
            let Swept { looked_at, deleted } = self.portion(conn, PORTION_TIMERS).await?;
            if looked_at < PORTION_TIMERS || deleted * 10 < looked_at {
                return Ok(());
            }
        }
        Ok(())
    }

    pub(super) async fn portion(
        &mut self,
        conn: &mut PgConnection,
        max: i64,
    ) -> Result<Swept, Error> {
        let (looked_at, deleted, last): (i64, i64, Option<i64>) = sqlx::query_as(SWEEP)
            .bind(self.after)
            .bind(max)
            .fetch_one(conn)
            .await
            .map_err(|error| Error::database("timers of sagas cannot be swept", error))?;
        // Where a whole portion is due at one time, what is left of that is passed over.
        let on = |last| if self.after == Some(last) { last + 1 } else { last };
        self.after = last.filter(|_| looked_at >= max).map(on);
        Ok(Swept { looked_at, deleted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bed::installed;

    #[tokio::test]
    async fn a_sweep_reads_no_table_from_end_to_end() {
        let bed = installed("sweep_plan").await;
        let mut tx = bed.begin().await;
        for statement in [
            "INSERT INTO tailrace.saga_instance (id, definition, version, hash, status, revision, instance)
             SELECT gen_random_uuid(), 'order', 1, 'hash', CASE WHEN number % 10 = 0 THEN 'running' ELSE 'completed' END,
                 4, '{}' FROM generate_series(1, 6000) AS number",
            "INSERT INTO tailrace.saga_timer (due_at, saga_id, tick)
             SELECT now() + interval '1 hour', id, '{}' FROM tailrace.saga_instance, generate_series(1, 3)",
            "ANALYZE tailrace.saga_instance, tailrace.saga_timer",
        ] {
            sqlx::query(statement).execute(&mut *tx).await.unwrap();
        }
        let read = "SELECT sum(seq_tup_read)::bigint FROM pg_stat_xact_user_tables
             WHERE relname IN ('saga_instance', 'saga_timer')";
        let before: i64 = sqlx::query_scalar(read).fetch_one(&mut *tx).await.unwrap();

        let swept = Sweep::default().portion(&mut tx, PORTION_TIMERS).await.unwrap();

        let after: i64 = sqlx::query_scalar(read).fetch_one(&mut *tx).await.unwrap();
        assert_eq!((swept.looked_at, after - before), (PORTION_TIMERS, 0));
        assert!(swept.deleted > 0);
    }
}
