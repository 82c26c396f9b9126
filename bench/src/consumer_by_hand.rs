//! A consumer as one would write it by hand, and its database half alone: fence, claims, rows, commit.

use std::error::Error;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::message::{BorrowedMessage, Headers as _};
use sqlx::{PgConnection, PgPool};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::consumer::{BATCH_RECORDS, Booked, LIMIT, Variant};
use crate::consumer_topic::{self, PARTITIONS};
use crate::relay_reader::{self, Isolation, blocking};

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

/// Records of one partition, and the offset behind them.
struct Batch {
    next_offset: i64,
    records: Vec<(Uuid, String)>,
}

/// Batches of a partition that wait for its connection.
const WAITING_MAX: usize = 2;

/// Reads all messages of a topic and writes the same rows: one thread polls, and each partition has a
/// connection. Answers with the messages per second from the first record to the last commit.
pub(crate) async fn consume(
    pool: &PgPool,
    brokers: &str,
    topic: &str,
    variant: Variant,
    messages: u64,
) -> Result<f64, Failure> {
    let mut running = JoinSet::new();
    let mut lanes = Vec::new();
    for lane in 0..PARTITIONS {
        let (sender, mut batches) = mpsc::channel::<Batch>(WAITING_MAX);
        lanes.push(sender);
        let pool = pool.clone();
        running.spawn(async move {
            let mut connection = pool.acquire().await?;
            begin(&mut connection, lane).await?;
            while let Some(Batch { next_offset, records }) = batches.recv().await {
                apply(&mut connection, variant, lane, next_offset, &records).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    let began = blocking(move || poll(&brokers, &topic, messages, &lanes)).await?;
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(messages as f64 / began.elapsed().as_secs_f64())
}

/// Hands the records of a topic to their lanes, and says when the first one came.
fn poll(
    brokers: &str,
    topic: &str,
    messages: u64,
    lanes: &[mpsc::Sender<Batch>],
) -> Result<Instant, Failure> {
    let consumer = relay_reader::consumer(brokers, Isolation::Committed)?;
    relay_reader::assign(&consumer, topic, &vec![0; lanes.len()])?;
    let empty = || Batch { next_offset: 0, records: Vec::with_capacity(BATCH_RECORDS) };
    let mut filling: Vec<Batch> = lanes.iter().map(|_| empty()).collect();
    let deadline = Instant::now() + LIMIT;
    let (mut first, mut seen) = (None, 0);
    while seen < messages {
        let Some(record) = consumer.poll(Duration::from_millis(100)) else {
            if Instant::now() > deadline {
                return Err(format!("{seen} of {messages} messages were polled").into());
            }
            continue;
        };
        let record = record?;
        first.get_or_insert_with(Instant::now);
        seen += 1;
        let lane = usize::try_from(record.partition())?;
        let (Some(batch), Some(lane)) = (filling.get_mut(lane), lanes.get(lane)) else {
            return Err(format!("partition {lane} is one too many").into());
        };
        batch.next_offset = record.offset() + 1;
        batch.records.push((message_id(&record)?, text(&record)?));
        if batch.records.len() == BATCH_RECORDS {
            lane.blocking_send(std::mem::replace(batch, empty()))?;
        }
    }
    for (batch, lane) in filling.into_iter().zip(lanes) {
        if !batch.records.is_empty() {
            lane.blocking_send(batch)?;
        }
    }
    first.ok_or_else(|| "there are no messages".into())
}

fn message_id(record: &BorrowedMessage<'_>) -> Result<Uuid, Failure> {
    let headers = record.headers().ok_or("a record has no headers")?;
    let id = headers.iter().find(|header| header.key == "ce_id").and_then(|header| header.value);
    Ok(Uuid::try_parse_ascii(id.ok_or("a record has no id")?)?)
}

fn text(record: &BorrowedMessage<'_>) -> Result<String, Failure> {
    Ok(std::str::from_utf8(record.payload().unwrap_or_default())?.to_owned())
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
