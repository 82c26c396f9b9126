//! The same rows as the engine's, written as one would by hand: every text is made before, and each kind of row is one
//! statement for the whole batch.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use sqlx::{PgConnection, PgPool};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::template::{Stage, Template};
use super::transitions::PARTITIONS;

type Failure = Box<dyn Error + Send + Sync>;

/// Writes what all replies lead to, over as many connections as the topic has partitions; answers with the transitions
/// per second.
pub(crate) async fn write(
    pool: &PgPool,
    template: &Arc<Template>,
    ids: &[Uuid],
    batch: usize,
) -> Result<f64, Failure> {
    let lanes = usize::try_from(PARTITIONS)?;
    let mut running = JoinSet::new();
    let began = Instant::now();
    for lane in 0..PARTITIONS {
        let mine = ids.iter().skip(usize::try_from(lane)?).step_by(lanes);
        let mine: Vec<Uuid> = mine.copied().collect();
        let (pool, template) = (pool.clone(), Arc::clone(template));
        running.spawn(async move {
            let mut conn = pool.acquire().await?;
            begin(&mut conn, lane).await?;
            let mut next_offset = 0;
            for stage in template.stages.iter().skip(1) {
                for ids in mine.chunks(batch) {
                    next_offset += i64::try_from(ids.len())?;
                    let by = ByHand { lane, next_offset, stage };
                    by.apply(&mut conn, ids).await?;
                }
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    let transitions = ids.len() * (template.stages.len() - 1);
    Ok(transitions as f64 / began.elapsed().as_secs_f64())
}

async fn begin(conn: &mut PgConnection, lane: i32) -> Result<(), Failure> {
    sqlx::query(
        "insert into tailrace.consumer_progress (consumer, topic, partition, lane, epoch) \
         values ('by-hand', 'replies', $1, 0, 1)",
    )
    .bind(lane)
    .execute(conn)
    .await?;
    Ok(())
}

/// One batch.
struct ByHand<'a> {
    lane: i32,
    next_offset: i64,
    stage: &'a Stage,
}

impl ByHand<'_> {
    async fn apply(&self, conn: &mut PgConnection, ids: &[Uuid]) -> Result<(), Failure> {
        let names: Vec<String> = ids.iter().map(Uuid::to_string).collect();
        sqlx::raw_sql("begin").execute(&mut *conn).await?;
        self.claim(conn, ids.len()).await?;
        self.update(conn, ids, &names).await?;
        self.note(conn, ids, &names).await?;
        self.set_timers(conn, ids).await?;
        if let Some(frame) = &self.stage.frame {
            let frames: Vec<Vec<u8>> = names.iter().map(|id| frame.message(id)).collect();
            sqlx::query(
                "select count(pg_logical_emit_message(true, 'tailrace', frame)) \
                 from unnest($1::bytea[]) as frame",
            )
            .bind(frames)
            .execute(&mut *conn)
            .await?;
        }
        sqlx::raw_sql("commit").execute(conn).await?;
        Ok(())
    }

    /// Fence and claims of the replies.
    async fn claim(&self, conn: &mut PgConnection, replies: usize) -> Result<(), Failure> {
        let messages: Vec<Uuid> = (0..replies).map(|_| Uuid::now_v7()).collect();
        let fenced = sqlx::query(
            "update tailrace.consumer_progress set next_offset = $2, updated_at = now() \
             where consumer = 'by-hand' and topic = 'replies' and partition = $1 and lane = 0 \
             and epoch = 1",
        )
        .bind(self.lane)
        .bind(self.next_offset)
        .execute(&mut *conn)
        .await?;
        let claimed = sqlx::query(
            "insert into tailrace.processed_message (consumer, message_id) \
             select 'by-hand', id from unnest($1::uuid[]) as id order by id on conflict do nothing",
        )
        .bind(messages)
        .execute(conn)
        .await?;
        if fenced.rows_affected() != 1 || claimed.rows_affected() != u64::try_from(replies)? {
            return Err("a reply of the run by hand was there already".into());
        }
        Ok(())
    }

    /// Whoever decides by what is there reads it under its lock.
    async fn update(
        &self,
        conn: &mut PgConnection,
        ids: &[Uuid],
        names: &[String],
    ) -> Result<(), Failure> {
        let locked = sqlx::query(
            "select id, instance::text from tailrace.saga_instance where id = any ($1) \
             order by id for update",
        )
        .bind(ids)
        .fetch_all(&mut *conn)
        .await?;
        let instances: Result<Vec<String>, Failure> =
            names.iter().map(|id| self.stage.instance.text(id)).collect();
        let updated = sqlx::query(
            "update tailrace.saga_instance as kept \
             set status = $3, revision = $4, instance = given.instance::json, changed_at = now() \
             from unnest($1::uuid[], $2::text[]) as given (id, instance) where kept.id = given.id",
        )
        .bind(ids)
        .bind(instances?)
        .bind(self.stage.status)
        .bind(self.stage.revision)
        .execute(conn)
        .await?;
        if locked.len() != ids.len() || updated.rows_affected() != u64::try_from(ids.len())? {
            return Err("a saga of the run by hand was not there".into());
        }
        Ok(())
    }

    async fn note(
        &self,
        conn: &mut PgConnection,
        ids: &[Uuid],
        names: &[String],
    ) -> Result<(), Failure> {
        let entries: Result<Vec<String>, Failure> =
            names.iter().map(|id| self.stage.entries.text(id)).collect();
        sqlx::query(
            "insert into tailrace.saga_journal (saga_id, revision, entries) \
             select id, $3, entries::json from unnest($1::uuid[], $2::text[]) as given (id, entries)",
        )
        .bind(ids)
        .bind(entries?)
        .bind(self.stage.revision)
        .execute(conn)
        .await?;
        Ok(())
    }

    async fn set_timers(&self, conn: &mut PgConnection, ids: &[Uuid]) -> Result<(), Failure> {
        let Some((due, tick)) = &self.stage.timer else { return Ok(()) };
        let ticks: Vec<&str> = ids.iter().map(|_| tick.as_str()).collect();
        sqlx::query(
            "insert into tailrace.saga_timer (due_at, saga_id, tick) \
             select to_timestamp($3 / 1000000.0), id, tick::json \
             from unnest($1::uuid[], $2::text[]) as given (id, tick)",
        )
        .bind(ids)
        .bind(ticks)
        .bind(due)
        .execute(conn)
        .await?;
        Ok(())
    }
}
