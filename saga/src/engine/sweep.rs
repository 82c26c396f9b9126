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
         SELECT timer.ctid AS at FROM looked
         JOIN tailrace.saga_instance AS saga ON saga.id = looked.saga_id
         JOIN tailrace.saga_timer AS timer ON timer.ctid = looked.at
         WHERE saga.status IN ('completed', 'compensated', 'aborted')
         FOR UPDATE OF timer SKIP LOCKED),
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
