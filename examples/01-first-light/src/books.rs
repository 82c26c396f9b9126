//! What is counted where, by readers that know nothing of the toolkit.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sqlx::PgPool;
use tailrace_idempotency::Report;
use tokio::task::JoinHandle;

use crate::print::Bars;
use crate::{ANSWER_MAX, Failure, PARTITIONS};

/// The books at the end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Books {
    pub(crate) committed: u64,
    pub(crate) rolled_back: u64,
    pub(crate) published: u64,
    pub(crate) repeated: u64,
    pub(crate) delivered: u64,
    pub(crate) applied: u64,
    pub(crate) suppressed: u64,
    pub(crate) violations: u64,
}

impl Books {
    /// Asks Postgres for what was committed and applied.
    pub(crate) async fn close(
        pool: &PgPool,
        rolled_back: u64,
        published: u64,
        repeated: u64,
        report: &Report,
    ) -> Result<Self, Failure> {
        Ok(Books {
            committed: committed(pool).await?,
            rolled_back,
            published,
            repeated,
            delivered: report.delivered,
            applied: ask(pool, "select count(*) from shipment").await?,
            suppressed: report.duplicates,
            violations: ask(
                pool,
                "select coalesce(sum(violations), 0)::bigint \
                 + (select count(*) from (select order_id from shipment group by 1 having count(*) > 1) twice) \
                 + (select count(*) from (select id from orders except select order_id from shipment) never) \
                 from shipped",
            )
            .await?,
        })
    }

    /// Whether each committed order was published once and applied once, in order.
    pub(crate) fn agree(&self) -> bool {
        self.committed == self.published
            && self.published == self.applied
            && self.repeated == self.suppressed
            && self.violations == 0
    }
}

/// Orders that were committed.
pub(crate) async fn committed(pool: &PgPool) -> Result<u64, Failure> {
    ask(pool, "select count(*) from orders").await
}

async fn ask(pool: &PgPool, question: &'static str) -> Result<u64, Failure> {
    let (count,): (i64,) = sqlx::query_as(question).fetch_one(pool).await?;
    Ok(u64::try_from(count)?)
}

/// A plain Kafka reader of committed records, beside the consumer.
pub(crate) struct Reader {
    counted: Arc<AtomicU64>,
    finish: Arc<AtomicBool>,
    reading: JoinHandle<Result<u64, Failure>>,
}

impl Reader {
    /// Starts to read the topic from its beginning.
    pub(crate) fn start(brokers: &str, topic: &str, bars: &Bars) -> Result<Self, Failure> {
        let consumer = read_committed(brokers, topic)?;
        let counted = Arc::new(AtomicU64::new(0));
        let finish = Arc::new(AtomicBool::new(false));
        let reading = {
            let (counted, finish) = (Arc::clone(&counted), Arc::clone(&finish));
            let (topic, bars) = (topic.to_owned(), bars.clone());
            tokio::task::spawn_blocking(move || read(&consumer, &topic, &counted, &finish, &bars))
        };
        Ok(Reader { counted, finish, reading })
    }

    /// Waits until this many records were seen.
    pub(crate) async fn reach(&self, records: u64) -> Result<(), Failure> {
        while self.counted.load(Ordering::Relaxed) < records {
            if self.reading.is_finished() {
                return Err("the independent reader ended early".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The number of all records, read up to the end of every partition; to be called when nobody
    /// produces any more.
    pub(crate) async fn read_to_the_end(self) -> Result<u64, Failure> {
        self.finish.store(true, Ordering::Relaxed);
        self.reading.await?
    }
}

/// A consumer of committed records that is assigned all partitions from the beginning.
pub(crate) fn read_committed(brokers: &str, topic: &str) -> Result<BaseConsumer, Failure> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "first-light-reader")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .create()?;
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        partitions.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&partitions)?;
    Ok(consumer)
}

fn read(
    consumer: &BaseConsumer,
    topic: &str,
    counted: &AtomicU64,
    finish: &AtomicBool,
    bars: &Bars,
) -> Result<u64, Failure> {
    let mut ids = HashSet::new();
    let mut ends: Option<Vec<i64>> = None;
    loop {
        // Nobody produces any more: where each partition ends now is where it ends.
        if ends.is_none() && finish.load(Ordering::Relaxed) {
            let end = |partition| Ok(consumer.fetch_watermarks(topic, partition, ANSWER_MAX)?.1);
            ends = Some((0..PARTITIONS).map(end).collect::<Result<_, Failure>>()?);
        }
        if let Some(record) = consumer.poll(Duration::from_millis(50)) {
            if !ids.insert(ce_id(&record?)?) {
                return Err("the relay published a message twice".into());
            }
            bars.published(counted.fetch_add(1, Ordering::Relaxed) + 1);
        }
        if let Some(ends) = &ends
            && reached(consumer, topic, ends)?
        {
            return Ok(counted.load(Ordering::Relaxed));
        }
    }
}

/// Whether the consumer has read every partition up to its end. Transaction markers take offsets
/// too, so the position tells, not the last record.
fn reached(consumer: &BaseConsumer, topic: &str, ends: &[i64]) -> Result<bool, Failure> {
    let positions = consumer.position()?;
    Ok((0..).zip(ends).all(|(partition, end)| {
        let position = positions.find_partition(topic, partition).map(|found| found.offset());
        *end == 0 || matches!(position, Some(Offset::Offset(offset)) if offset >= *end)
    }))
}

/// The message's id, as the record carries it.
pub(crate) fn ce_id(record: &impl Message) -> Result<Vec<u8>, Failure> {
    let headers = record.headers().ok_or("a record came without headers")?;
    let id = headers.iter().find(|header| header.key == "ce_id").and_then(|header| header.value);
    Ok(id.ok_or("a record came without ce_id")?.to_vec())
}
