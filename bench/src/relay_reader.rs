//! What a consumer of Kafka sees, and when.

use std::error::Error;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::sync::oneshot;

type Failure = Box<dyn Error + Send + Sync>;

/// The longest wait for one answer of the broker.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Which records a reader sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// Those of committed transactions.
    Committed,
    /// Each, once the broker has it.
    Uncommitted,
}

/// A consumer without a group, which answers as soon as there is a record.
pub(crate) fn consumer(brokers: &str, isolation: Isolation) -> Result<BaseConsumer, Failure> {
    let isolation = match isolation {
        Isolation::Committed => "read_committed",
        Isolation::Uncommitted => "read_uncommitted",
    };
    Ok(ClientConfig::new()
        .set("bootstrap.servers", brokers)
        // The client demands one; nothing is ever committed to it.
        .set("group.id", "tailrace-bench")
        .set("enable.auto.commit", "false")
        .set("isolation.level", isolation)
        .set("fetch.min.bytes", "1")
        .set("fetch.wait.max.ms", "50")
        .create()?)
}

/// Where each partition ends, open transactions included.
pub(crate) fn ends(brokers: &str, topic: &str, partitions: i32) -> Result<Vec<i64>, Failure> {
    // A read_committed client is told the end of what is committed instead.
    let consumer = consumer(brokers, Isolation::Uncommitted)?;
    let end = |partition| Ok(consumer.fetch_watermarks(topic, partition, ANSWER_MAX)?.1);
    (0..partitions).map(end).collect()
}

/// Has a consumer read a topic from these offsets on, one for each partition.
pub(crate) fn assign(consumer: &BaseConsumer, topic: &str, offsets: &[i64]) -> Result<(), Failure> {
    let mut assignment = TopicPartitionList::new();
    for (partition, offset) in (0..).zip(offsets) {
        assignment.add_partition_offset(topic, partition, Offset::Offset(*offset))?;
    }
    Ok(consumer.assign(&assignment)?)
}

/// A topic of one partition, looked at from its present end on.
pub(crate) struct Lookout {
    consumer: BaseConsumer,
}

impl Lookout {
    pub(crate) async fn open(
        brokers: &str,
        topic: &str,
        isolation: Isolation,
    ) -> Result<Self, Failure> {
        let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
        blocking(move || {
            let consumer = consumer(&brokers, isolation)?;
            assign(&consumer, &topic, &ends(&brokers, &topic, 1)?)?;
            Ok(Lookout { consumer })
        })
        .await
    }

    /// Waits for the next record, on a thread of its own, and says when it was seen.
    pub(crate) async fn next(self, limit: Duration) -> Result<Instant, Failure> {
        let (answer, answered) = oneshot::channel();
        // Not one of the runtime's: nobody waits for it where the relay fails first.
        std::thread::Builder::new().name("lookout".to_owned()).spawn(move || {
            // The receiver is gone when the relay failed first.
            answer.send(self.look(limit)).ok();
        })?;
        answered.await?
    }

    fn look(&self, limit: Duration) -> Result<Instant, Failure> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(record) = self.consumer.poll(Duration::from_millis(100)) {
                record?;
                return Ok(Instant::now());
            }
        }
        Err(format!("no record was seen within {limit:?}").into())
    }
}

/// How many records a read_committed reader finds from these offsets to the end.
pub(crate) async fn count(
    brokers: &str,
    topic: &str,
    from: Vec<i64>,
    limit: Duration,
) -> Result<u64, Failure> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    blocking(move || {
        let ends = ends(&brokers, &topic, i32::try_from(from.len())?)?;
        let consumer = consumer(&brokers, Isolation::Committed)?;
        assign(&consumer, &topic, &from)?;
        let deadline = Instant::now() + limit;
        let mut records = 0;
        loop {
            // The marks of transactions take offsets too, so the end is told by the position.
            while let Some(record) = consumer.poll(Duration::from_millis(20)) {
                record?;
                records += 1;
            }
            let position = consumer.position()?;
            let at = |partition| match position.find_partition(&topic, partition)?.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            };
            let reached = |(partition, (end, from)): (i32, (&i64, &i64))| {
                end == from || at(partition).is_some_and(|offset| offset >= *end)
            };
            if (0..).zip(ends.iter().zip(&from)).all(reached) {
                return Ok(records);
            }
            if Instant::now() > deadline {
                return Err(format!("{records} records were counted in {limit:?}").into());
            }
        }
    })
    .await
}

/// Runs what blocks on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await?
}
