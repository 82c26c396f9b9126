//! The database half of a consumer as one would write it by hand: fence, claims, rows, commit.

use std::error::Error;
use std::time::Instant;

use sqlx::{PgConnection, PgPool};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::consumer::{BATCH_RECORDS, Booked, Variant};
use crate::consumer_topic::{self, PARTITIONS};

type Failure = Box<dyn Error + Send + Sync>;

/// Writes so many messages over as many connections as the topic has partitions; answers with the
/// messages per second.
pub(crate) async fn write(pool: &PgPool, variant: Variant, messages: u64) -> Result<f64, Failure> {
    let lanes = u64::try_from(PARTITIONS)?;
    let mut payloads = Vec::new();
    for lane in 0..lanes {
        let own = (lane..messages).step_by(usize::try_from(lanes)?);
        let own: Vec<(Uuid, String)> =
            own.map(|number| (Uuid::now_v7(), consumer_topic::payload(number))).collect();
        payloads.push(own);
    }
    let began = Instant::now();
    let mut running = JoinSet::new();
    for (lane, own) in (0..).zip(payloads) {
        let pool = pool.clone();
        running.spawn(async move {
            let mut connection = pool.acquire().await?;
            begin(&mut connection, lane).await?;
            let mut next_offset = 0;
            for batch in own.chunks(BATCH_RECORDS) {
                next_offset += i64::try_from(batch.len())?;
                apply(&mut connection, variant, lane, next_offset, batch).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(messages as f64 / began.elapsed().as_secs_f64())
}

async fn begin(connection: &mut PgConnection, lane: i32) -> Result<(), Failure> {
    sqlx::query(
        "insert into tailrace.consumer_progress (consumer, topic, partition, lane, epoch) \
         values ('by-hand', 'consumer', $1, 0, 1)",
    )
    .bind(lane)
    .execute(connection)
    .await?;
    Ok(())
}

async fn apply(
    connection: &mut PgConnection,
    variant: Variant,
    lane: i32,
    next_offset: i64,
    batch: &[(Uuid, String)],
) -> Result<(), Failure> {
    let decoded: Result<Vec<Booked>, _> =
        batch.iter().map(|(_, payload)| serde_json::from_str(payload)).collect();
    let decoded = decoded?;
    let ids: Vec<Uuid> = batch.iter().map(|(id, _)| *id).collect();
    sqlx::raw_sql("begin").execute(&mut *connection).await?;
    match variant {
        Variant::Position => known_by_position(connection, lane, next_offset).await?,
        Variant::Batch | Variant::Each => known_by_ids(connection, lane, next_offset, &ids).await?,
    }
    match variant {
        Variant::Batch | Variant::Position => {
            let all: Vec<&Booked> = decoded.iter().collect();
            book_all(connection, &ids, &all).await?;
        }
        Variant::Each => {
            for (id, booked) in ids.iter().zip(&decoded) {
                book(connection, id, booked).await?;
            }
        }
    }
    sqlx::raw_sql("commit").execute(connection).await?;
    Ok(())
}

/// Fence and claims.
async fn known_by_ids(
    connection: &mut PgConnection,
    lane: i32,
    next_offset: i64,
    ids: &[Uuid],
) -> Result<(), Failure> {
    let fenced = sqlx::query(
        "update tailrace.consumer_progress set next_offset = $2, updated_at = now() \
         where consumer = 'by-hand' and topic = 'consumer' and partition = $1 and lane = 0 \
         and epoch = 1",
    )
    .bind(lane)
    .bind(next_offset)
    .execute(&mut *connection)
    .await?;
    let claimed = sqlx::query(
        "insert into tailrace.processed_message (consumer, message_id) \
         select 'by-hand', id from unnest($1::uuid[]) as id order by id \
         on conflict do nothing",
    )
    .bind(ids)
    .execute(&mut *connection)
    .await?;
    if fenced.rows_affected() != 1 || claimed.rows_affected() != ids.len() as u64 {
        return Err("a message of the run by hand was there already".into());
    }
    Ok(())
}

/// Fence and highest sequence.
async fn known_by_position(
    connection: &mut PgConnection,
    lane: i32,
    next_offset: i64,
) -> Result<(), Failure> {
    let fenced = sqlx::query(
        "with fenced as ( \
             update tailrace.consumer_progress set next_offset = $2, updated_at = now() \
             where consumer = 'by-hand' and topic = 'consumer' and partition = $1 and lane = 0 \
             and epoch = 1 returning epoch) \
         insert into tailrace.consumer_position as known \
             (consumer, topic, partition, lane, relay, sequence, \"offset\") \
         select 'by-hand', 'consumer', $1, 0, 'bench', $3, $2 from fenced \
         on conflict (consumer, topic, partition, lane, relay) do update \
             set sequence = excluded.sequence, \"offset\" = excluded.\"offset\" \
             where known.sequence < excluded.sequence",
    )
    .bind(lane)
    .bind(next_offset)
    .bind(format!("{next_offset:032x}"))
    .execute(&mut *connection)
    .await?;
    if fenced.rows_affected() != 1 {
        return Err("a message of the run by hand was there already".into());
    }
    Ok(())
}

/// The effect of many messages.
pub(crate) async fn book_all(
    connection: &mut PgConnection,
    ids: &[Uuid],
    messages: &[&Booked],
) -> Result<(), sqlx::Error> {
    let accounts: Vec<&str> = messages.iter().map(|message| message.account.as_str()).collect();
    let cents: Vec<i64> = messages.iter().map(|message| message.cents).collect();
    sqlx::query(
        "insert into booking (message_id, account, cents) \
         select * from unnest($1::uuid[], $2::text[], $3::bigint[])",
    )
    .bind(ids)
    .bind(accounts)
    .bind(cents)
    .execute(connection)
    .await?;
    Ok(())
}

/// The effect of one message.
pub(crate) async fn book(
    connection: &mut PgConnection,
    id: &Uuid,
    message: &Booked,
) -> Result<(), sqlx::Error> {
    sqlx::query("insert into booking (message_id, account, cents) values ($1, $2, $3)")
        .bind(id)
        .bind(&message.account)
        .bind(message.cents)
        .execute(connection)
        .await?;
    Ok(())
}
