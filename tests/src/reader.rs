//! An independent reader of Kafka, which shares no code with the product.

use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};

use crate::site::Site;

/// The longest wait for one answer of the broker.
const ANSWER_MAX: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(100);

/// A record as a reader with `isolation.level=read_committed` sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its place in the partition.
    pub offset: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers, in their order.
    pub headers: Vec<(String, String)>,
}

impl Seen {
    /// The value of a header, empty where it is missing.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(found, _)| found == name);
        found.map_or("", |(_, value)| value.as_str())
    }
}

impl Site {
    /// Reads the topics of this site from their beginning until `enough` says so of all that was
    /// read. Runs on a thread that may block.
    ///
    /// # Panics
    ///
    /// When that is not so, and nothing has come for `limit`; with what was read of each partition.
    pub async fn read_until(
        &self,
        limit: Duration,
        enough: impl Fn(&[Seen]) -> bool + Send + 'static,
    ) -> Vec<Seen> {
        let (config, topics) = (self.kafka(), self.topics.clone());
        let read = move || {
            let consumer = consumer(&config, "read_committed");
            assign_all(&consumer, &topics);
            let mut deadline = Instant::now() + limit;
            let mut seen = Vec::new();
            let mut before = 0;
            while !enough(&seen) {
                if seen.len() > before {
                    before = seen.len();
                    deadline = Instant::now() + limit;
                }
                assert!(
                    Instant::now() < deadline,
                    "{before} records are not enough, and none came for {limit:?}; {}",
                    standing(&config, &consumer, &topics)
                );
                // What is there is taken at once; only the end of it is judged.
                let mut wait = POLL;
                while let Some(record) = poll(&consumer, wait) {
                    seen.push(record);
                    wait = Duration::ZERO;
                }
            }
            seen
        };
        tokio::task::spawn_blocking(read).await.expect("the reader does not panic")
    }

    /// Everything that a read_committed reader finds in the topics of this site, up to the end of
    /// what has been written in any way. For a time when nobody writes.
    ///
    /// # Panics
    ///
    /// When an open transaction hides the end for long.
    pub async fn read_to_end(&self) -> Vec<Seen> {
        self.read_topics_to_end(self.topics.clone()).await
    }

    /// As [`Site::read_to_end`], for more than fits into memory: each record is shown to the judge
    /// and forgotten. Answers with what the judge has become.
    ///
    /// # Panics
    ///
    /// When the end is not reached within `limit`.
    pub async fn read_each<J: Send + 'static>(
        &self,
        limit: Duration,
        mut judge: J,
        look: fn(&mut J, &Seen),
    ) -> J {
        let (config, topics) = (self.kafka(), self.topics.clone());
        let read = move || {
            let ends = ends(&config, &topics);
            let consumer = consumer(&config, "read_committed");
            drain_within(limit, &consumer, &ends, &mut |record| look(&mut judge, &record));
            judge
        };
        tokio::task::spawn_blocking(read).await.expect("the reader does not panic")
    }

    /// How far the relay's last committed checkpoint says that the source is published.
    ///
    /// # Panics
    ///
    /// When the checkpoint is not in the form of the wire contract.
    pub async fn checkpoint(&self) -> Option<u64> {
        let topic = format!("tailrace.checkpoint.{}", self.relay_id);
        let (config, name) = (self.kafka(), topic.clone());
        let read = move || {
            let consumer = consumer(&config, "read_committed");
            let metadata = consumer.fetch_metadata(Some(&name), ANSWER_MAX).ok()?;
            let partitions = metadata.topics().first()?.partitions().len();
            if partitions == 0 {
                return None;
            }
            // A dead relay's transaction may stay open: read what is stable, and no further.
            let (_, stable) =
                consumer.fetch_watermarks(&name, 0, ANSWER_MAX).expect("the broker answers");
            let seen = drain(&consumer, &[(name, 0, stable)]);
            let last = seen.iter().rfind(|seen| seen.key.as_deref() == Some(b"checkpoint"))?;
            let value = last.value.as_deref().expect("a checkpoint is never deleted");
            let value: serde_json::Value = serde_json::from_slice(value).expect("it is json");
            let lsn = value.get("flush_lsn").and_then(serde_json::Value::as_str);
            Some(lsn_bytes(lsn.expect("it has a flush_lsn")))
        };
        tokio::task::spawn_blocking(read).await.expect("the reader does not panic")
    }

    /// Everything in the relay's checkpoint topic that was committed. For a time when no relay runs.
    ///
    /// # Panics
    ///
    /// When an open transaction hides the end for long.
    pub async fn read_checkpoint_topic(&self) -> Vec<Seen> {
        self.read_topics_to_end(vec![format!("tailrace.checkpoint.{}", self.relay_id)]).await
    }

    /// Checks the rule that keeps a crash from losing anything: the slot is never flushed beyond
    /// a committed checkpoint.
    ///
    /// # Panics
    ///
    /// When it is.
    pub async fn slot_is_not_above_the_checkpoint(&self) {
        // In this order: the checkpoint only grows. A commit is decided before its markers are
        // written, so what the relay knows may be hidden from readers for a moment.
        let Some(confirmed) = self.confirmed_flush().await else { return };
        let deadline = Instant::now() + ANSWER_MAX;
        loop {
            let checkpoint = self.checkpoint().await;
            // Before the first checkpoint the slot stands where it was created.
            let Some(published) = checkpoint else { return };
            if confirmed <= published {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "slot {} is flushed to {confirmed}, above the checkpoint {published}",
                self.slot
            );
        }
    }

    async fn read_topics_to_end(&self, topics: Vec<String>) -> Vec<Seen> {
        let config = self.kafka();
        let read = move || drain(&consumer(&config, "read_committed"), &ends(&config, &topics));
        tokio::task::spawn_blocking(read).await.expect("the reader does not panic")
    }
}

/// The end of each partition.
fn ends(config: &rdkafka::config::ClientConfig, topics: &[String]) -> Vec<(String, i32, i64)> {
    // A read_committed handle would answer with the last stable offset instead.
    let uncommitted = consumer(config, "read_uncommitted");
    let of_topic = |topic: &String| -> Vec<(String, i32, i64)> {
        let end = |partition| {
            let ends = uncommitted.fetch_watermarks(topic, partition, ANSWER_MAX);
            (topic.clone(), partition, ends.expect("the broker answers").1)
        };
        partitions(&uncommitted, topic).into_iter().map(end).collect()
    };
    topics.iter().flat_map(of_topic).collect()
}

/// How far a reader is in each partition, how far it may read, and what is there.
fn standing(
    config: &rdkafka::config::ClientConfig,
    reader: &BaseConsumer,
    topics: &[String],
) -> String {
    let position = reader.position().expect("an assigned consumer has a position");
    let tell = |(topic, partition, end): (String, i32, i64)| {
        let found = position.find_partition(&topic, partition).map(|found| found.offset());
        let stable = reader.fetch_watermarks(&topic, partition, ANSWER_MAX);
        let stable = stable.expect("the broker answers").1;
        format!("{topic}/{partition}: at {found:?}, stable up to {stable}, ends at {end}")
    };
    let told: Vec<String> = ends(config, topics).into_iter().map(tell).collect();
    told.join("; ")
}

/// Reads each partition from its beginning up to its end.
fn drain(consumer: &BaseConsumer, ends: &[(String, i32, i64)]) -> Vec<Seen> {
    let mut seen = Vec::new();
    drain_within(ANSWER_MAX, consumer, ends, &mut |record| seen.push(record));
    seen
}

fn drain_within(
    limit: Duration,
    consumer: &BaseConsumer,
    ends: &[(String, i32, i64)],
    each: &mut impl FnMut(Seen),
) {
    let mut assignment = TopicPartitionList::new();
    for (topic, partition, end) in ends {
        if *end > 0 {
            assignment
                .add_partition_offset(topic, *partition, Offset::Beginning)
                .expect("an offset is valid");
        }
    }
    consumer.assign(&assignment).expect("the partitions can be assigned");
    let deadline = Instant::now() + limit;
    let mut read = 0;
    loop {
        let position = consumer.position().expect("an assigned consumer has a position");
        // Transaction markers take offsets too, so the end is told by the position alone.
        let reached = |(topic, partition, end): &(String, i32, i64)| {
            *end == 0
                || position.find_partition(topic, *partition).is_some_and(
                    |found| matches!(found.offset(), Offset::Offset(offset) if offset >= *end),
                )
        };
        if ends.iter().all(reached) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "an open transaction hides the end: {read} records read, {position:?} of {ends:?}"
        );
        let mut wait = POLL;
        while let Some(record) = poll(consumer, wait) {
            each(record);
            read += 1;
            wait = Duration::ZERO;
        }
    }
}

fn consumer(config: &rdkafka::config::ClientConfig, isolation: &str) -> BaseConsumer {
    let mut config = config.clone();
    config
        .set("isolation.level", isolation)
        // Demanded by the client, never joined: partitions are assigned by hand.
        .set("group.id", "reader")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        .set("fetch.wait.max.ms", "20");
    config.create().expect("the settings are valid")
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> Vec<i32> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_MAX).expect("the broker answers");
    let found = metadata.topics().first().expect("the topic that was asked for is answered");
    found.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect()
}

fn assign_all(consumer: &BaseConsumer, topics: &[String]) {
    let mut assignment = TopicPartitionList::new();
    for topic in topics {
        for partition in partitions(consumer, topic) {
            assignment
                .add_partition_offset(topic, partition, Offset::Beginning)
                .expect("an offset is valid");
        }
    }
    consumer.assign(&assignment).expect("the partitions can be assigned");
}

fn poll(consumer: &BaseConsumer, wait: Duration) -> Option<Seen> {
    match consumer.poll(wait)? {
        Ok(record) => {
            let headers = record.headers().map_or_else(Vec::new, |headers| {
                headers
                    .iter()
                    .map(|header| {
                        let value = String::from_utf8_lossy(header.value.unwrap_or_default());
                        (header.key.to_owned(), value.into_owned())
                    })
                    .collect()
            });
            Some(Seen {
                topic: record.topic().to_owned(),
                partition: record.partition(),
                offset: record.offset(),
                key: record.key().map(<[u8]>::to_vec),
                value: record.payload().map(<[u8]>::to_vec),
                headers,
            })
        }
        // A broker that is away comes back, or the caller's deadline passes.
        Err(
            KafkaError::PartitionEOF(_) | KafkaError::MessageConsumption(_) | KafkaError::Global(_),
        ) => None,
        Err(error) => panic!("the reader fails: {error}"),
    }
}

/// The number behind a log position as Postgres writes it, `16/B374D848`.
fn lsn_bytes(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("a log position has a slash");
    let part = |text| u64::from_str_radix(text, 16).expect("it is hexadecimal");
    part(high) << 32 | part(low)
}
