//! Ends a transaction that the brokers have left open.
//!
//! Brokers can take a transaction for complete that has no end in some of its partitions: one that died between the
//! decision and the markers, and found no leader for them when it came back (KAFKA-20734). Read_committed readers then
//! wait for ever, this relay for its own checkpoint among them, and `init_transactions` finds nothing to end.
//!
//! The marker of a later transaction ends it too, where that is of the same producer id and has touched the partition.
//! So each producer of the relay, one of which wrote it, puts an empty record into each of these partitions and aborts.
//! Where the brokers have kept their promise and committed it, it stays committed, and the checkpoint that covers it is
//! aborted nevertheless. What is visible without a checkpoint is therefore written down first, in [`Visible`], and not
//! published again. Killed at any point in between, the next session finds the checkpoint topic as it was, and does the
//! same.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::checkpoint_topic::{self, Isolation};
use super::cluster::{ANSWER_TIMEOUT, Cluster, Context};
use super::partitions;
use super::producer::Producer;
use super::visible::Visible;
use super::{Saved, right::Right};
use crate::checkpoint::{Checkpoint, Stored};
use crate::error::{Error, Kind};
use crate::position::Position;
use crate::record::SEQUENCE;

/// How long what was written may take to become stable.
const STABLE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long nothing may come while the ends of the topics are looked through.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How long all of them may take.
const LOOK_MAX: Duration = Duration::from_secs(600);

/// Offsets of each partition that are looked through in the first try; each further try looks at eight times as many.
const FIRST_SPAN: i64 = 4_096;

/// Records after which it is looked whether all are read.
const POSITION_EVERY: usize = 10_000;

/// Empty records that a producer has under way at a time.
const TOGETHER: usize = 1_000;

/// Whose record it is, for people who look at what was aborted.
const KEY: &str = "cdc-relay";

/// A partition, and how far it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct End {
    topic: String,
    partition: i32,
    low: i64,
    /// Nothing from here on is read by who reads what is committed.
    stable: i64,
    high: i64,
}

impl End {
    fn is_hidden(&self) -> bool {
        self.stable < self.high
    }
}

/// Ends what hides the end of the checkpoint topic. To be called once `init_transactions` has returned for each of these
/// producers, which are all of the relay and have an empty transaction open; afterwards they have one again.
pub(super) async fn end(
    cluster: &Cluster,
    relay_id: &str,
    checkpoint_topic: &str,
    producers: &[&Producer],
) -> Result<(), Error> {
    let looker = Looker { cluster: cluster.clone(), checkpoint_topic: checkpoint_topic.to_owned() };
    let sight = looker.clone().run(|looker| looker.sight()).await?;
    let hidden: Vec<End> = sight.records.iter().filter(|end| end.is_hidden()).cloned().collect();
    tracing::warn!(
        partitions = hidden.len() + 1,
        "the brokers have left a transaction of this relay open; it is ended as aborted"
    );
    abort(producers, &hidden).await?;
    let wait = move |looker: &Looker| looker.wait_until_stable(&hidden);
    looker.clone().run(wait).await?;

    // Everything is certain now but the checkpoint, which alone makes a session do this: it comes last.
    let (ends, prefix) = (sight.records, format!("{relay_id}:"));
    let covered = sight.checkpoint;
    let look = move |looker: &Looker| looker.visible(&ends, &prefix, covered.as_ref());
    let visible = looker.clone().run(look).await?;
    tracing::info!(records = visible.len(), "found what is committed without a checkpoint");
    let entries = Visible::entries(&visible);
    if !entries.is_empty() {
        // Not inside of a transaction: the marker of one might be that of the checkpoint which is to be aborted.
        let plain = Producer::idempotent(cluster)?;
        for (key, value) in &entries {
            plain.put(checkpoint_topic, key, value).await?;
        }
        plain.flush().await?;
        if let Some(error) = plain.undelivered() {
            return Err(error);
        }
    }
    let own = [sight.own];
    abort(producers, &own).await?;
    looker.run(move |looker| looker.wait_until_stable(&own)).await
}

/// Has each producer touch each of these partitions, and abort.
async fn abort(producers: &[&Producer], ends: &[End]) -> Result<(), Error> {
    if ends.is_empty() {
        return Ok(());
    }
    for producer in producers {
        for some in ends.chunks(TOGETHER) {
            for End { topic, partition, .. } in some {
                producer.put_into(topic, *partition, KEY, b"").await?;
            }
            producer.flush().await?;
        }
        producer.begin_again().await?;
    }
    Ok(())
}

/// What the relay has to do with.
struct Sight {
    checkpoint: Option<Checkpoint>,
    /// The end of the checkpoint topic.
    own: End,
    /// The ends of the topics that records went to.
    records: Vec<End>,
}

/// Looks at topics. Its calls block.
#[derive(Clone)]
struct Looker {
    cluster: Cluster,
    checkpoint_topic: String,
}

impl Looker {
    async fn run<T: Send + 'static>(
        self,
        look: impl FnOnce(&Looker) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let looked = tokio::task::spawn_blocking(move || look(&self)).await;
        looked.map_err(|error| {
            Error::new(Kind::Unavailable, "looking at the topics broke off").caused_by(error)
        })?
    }

    fn consumer(&self, isolation: Isolation) -> Result<BaseConsumer<Context>, Error> {
        checkpoint_topic::consumer(&self.cluster, isolation)
            .map_err(|error| self.failed(&self.checkpoint_topic, error))
    }

    fn failed(&self, topic: &str, error: KafkaError) -> Error {
        let what = format!("reading topic {topic:?}");
        Right::on_topic("Read", topic).failed(&self.cluster, &what, error)
    }

    /// The topics are those whose partition counts are saved, as of all that records go to.
    fn sight(&self) -> Result<Sight, Error> {
        let committed = self.consumer(Isolation::Committed)?;
        let all = self.consumer(Isolation::Uncommitted)?;
        let own = self.end(&committed, &all, &self.checkpoint_topic, 0)?;
        let saved = checkpoint_topic::peek(&self.cluster, &self.checkpoint_topic)?;
        let saved = saved.unwrap_or_default();
        let checkpoint = Stored::read(&saved)?.checkpoint;
        let mut topics = BTreeSet::new();
        let mut learn = |saved: &Saved| {
            let named = saved.keys().filter_map(|key| key.strip_prefix(partitions::KEY));
            topics.extend(named.map(str::to_owned));
        };
        learn(&saved);
        // Those that the open transaction is the first to know of.
        self.read(&all, &[(&own, own.stable)], &mut |record| {
            learn(&Saved::from([(record.key, Vec::new())]));
        })?;
        let mut records = Vec::new();
        for topic in &topics {
            let metadata = self.cluster.metadata(all.client(), topic);
            let metadata = metadata.map_err(|error| self.failed(topic, error))?;
            let found = metadata.topics().iter().find(|found| found.name() == topic);
            for partition in found.into_iter().flat_map(|found| found.partitions()) {
                records.push(self.end(&committed, &all, topic, partition.id())?);
            }
        }
        Ok(Sight { checkpoint, own, records })
    }

    fn end(
        &self,
        committed: &BaseConsumer<Context>,
        all: &BaseConsumer<Context>,
        topic: &str,
        partition: i32,
    ) -> Result<End, Error> {
        let ask = |consumer: &BaseConsumer<Context>| {
            let ends = consumer.fetch_watermarks(topic, partition, ANSWER_TIMEOUT);
            ends.map_err(|error| self.failed(topic, error))
        };
        // In this order: the end that both tell is the same one, unless it is hidden.
        let (low, high) = ask(all)?;
        let (_, stable) = ask(committed)?;
        Ok(End { topic: topic.to_owned(), partition, low, stable: stable.min(high), high })
    }

    /// Waits until everything is certain that is there already. Another's transaction may be open in the same place.
    fn wait_until_stable(&self, ends: &[End]) -> Result<(), Error> {
        let committed = self.consumer(Isolation::Committed)?;
        let deadline = Instant::now() + STABLE_TIMEOUT;
        for End { topic, partition, high, .. } in ends {
            loop {
                let stable = committed.fetch_watermarks(topic, *partition, ANSWER_TIMEOUT);
                let (_, stable) = stable.map_err(|error| self.failed(topic, error))?;
                if stable >= *high {
                    break;
                }
                if Instant::now() >= deadline {
                    return Err(checkpoint_topic::hidden(&self.cluster, topic));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// The places of records of the relay that are committed and that no checkpoint covers.
    fn visible(
        &self,
        ends: &[End],
        prefix: &str,
        covered: Option<&Checkpoint>,
    ) -> Result<BTreeSet<String>, Error> {
        let committed = self.consumer(Isolation::Committed)?;
        let since = Instant::now();
        let mut visible = BTreeSet::new();
        let mut left: Vec<&End> = ends.iter().collect();
        let mut span = FIRST_SPAN;
        while !left.is_empty() {
            if since.elapsed() > LOOK_MAX {
                let text = format!(
                    "kafka at {}: what is committed of a transaction that was left open is not found within {LOOK_MAX:?}",
                    self.cluster.brokers()
                );
                return Err(Error::new(Kind::Unavailable, text).hint(checkpoint_topic::HIDDEN_HINT));
            }
            let from = |end: &End| end.low.max(end.high.saturating_sub(span));
            let ranges: Vec<(&End, i64)> = left.iter().map(|end| (*end, from(end))).collect();
            let mut reached = BTreeSet::new();
            self.read(&committed, &ranges, &mut |record| {
                let position = record.sequence.strip_prefix(prefix);
                let Some(position) = position.and_then(Position::of_sequence) else { return };
                match covered.is_some_and(|checkpoint| checkpoint.covers(&position)) {
                    // What stands before it in the partition is covered too.
                    true => drop(reached.insert((record.topic, record.partition))),
                    false => drop(visible.insert(record.sequence)),
                }
            })?;
            left.retain(|end| {
                from(end) > end.low && !reached.contains(&(end.topic.clone(), end.partition))
            });
            span = span.saturating_mul(8);
        }
        Ok(visible)
    }

    /// Reads each of these partitions from there up to its end.
    fn read(
        &self,
        consumer: &BaseConsumer<Context>,
        ranges: &[(&End, i64)],
        each: &mut dyn FnMut(Found),
    ) -> Result<(), Error> {
        let mut assignment = TopicPartitionList::new();
        let open = ranges.iter().filter(|(end, from)| *from < end.high);
        let open: Vec<&End> = open
            .map(|(end, from)| {
                let at = Offset::Offset(*from);
                let added = assignment.add_partition_offset(&end.topic, end.partition, at);
                added.map(|()| *end).map_err(|error| self.failed(&end.topic, error))
            })
            .collect::<Result<_, Error>>()?;
        let failed = |error| self.failed(&self.checkpoint_topic, error);
        consumer.assign(&assignment).map_err(failed)?;
        let mut heard = Instant::now();
        loop {
            let position = consumer.position().map_err(failed)?;
            let is_read = |end: &&End| {
                let at = position.find_partition(&end.topic, end.partition);
                matches!(at.map(|at| at.offset()), Some(Offset::Offset(offset)) if offset >= end.high)
            };
            if open.iter().all(is_read) {
                return Ok(());
            }
            let mut wait = Duration::from_millis(100);
            for _ in 0..POSITION_EVERY {
                match consumer.poll(wait) {
                    Some(Ok(record)) => each(Found::of(&record)),
                    Some(Err(KafkaError::PartitionEOF(_))) => {}
                    Some(Err(error)) if checkpoint_topic::is_of_no_group(&error) => {}
                    Some(Err(error)) => return Err(failed(error)),
                    None => break,
                }
                heard = Instant::now();
                wait = Duration::ZERO;
            }
            if heard.elapsed() > SILENCE_MAX {
                return Err(checkpoint_topic::hidden(&self.cluster, &self.checkpoint_topic));
            }
        }
    }
}

/// What matters of a record.
struct Found {
    topic: String,
    partition: i32,
    key: String,
    /// `relay id:position`; empty where it has none.
    sequence: String,
}

impl Found {
    fn of(record: &BorrowedMessage<'_>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = record.headers();
        let header =
            headers.and_then(|headers| headers.iter().find(|header| header.key == SEQUENCE));
        Found {
            topic: record.topic().to_owned(),
            partition: record.partition(),
            key: record.key().map(text).unwrap_or_default(),
            sequence: header.and_then(|header| header.value).map(text).unwrap_or_default(),
        }
    }
}
