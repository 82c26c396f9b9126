//! Reads the end of a relay's checkpoint topic.

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::Producer as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;

use super::Saved;
use super::client::Client;
use super::cluster::{ANSWER_TIMEOUT, Cluster, Context, code_of};
use super::create_topic::{Wanted, create};
use super::partitions::REPEAT_AFTER;
use super::right::Right;
use crate::checkpoint::CHECKPOINT_KEY;
use crate::error::{Error, Kind};

/// Offsets that are read in the first try; each further try reads four times as many.
///
/// A commit takes two offsets, one for the checkpoint and one for its marker, so this holds the
/// partition counts too, with room for transactions that were aborted.
const FIRST_SPAN: i64 = 4 * REPEAT_AFTER as i64;

/// How long the last stable offset may stay below the end: a dead relay's transaction is ended by
/// `init_transactions`, which has returned, so it stays there only for a moment.
const STABLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Makes the topic unless it exists: one partition, compacted, in small segments so that
/// compaction keeps it short.
pub(super) async fn ensure(
    cluster: &Cluster,
    topic: &str,
    replication_factor: i32,
) -> Result<(), Error> {
    create(cluster, &wanted(topic, replication_factor)).await.map_err(|error| {
        // Of a message it would be the writer's affair; this name is the operator's.
        if error.kind() != Kind::Rejected {
            return error;
        }
        let hint = "choose another --relay-id, or make the topic yourself, compacted and with one \
                    partition";
        Error::new(Kind::Config, error.to_string()).hint(hint)
    })
}

/// The topic as it has to be.
pub(super) fn wanted(name: &str, replication_factor: i32) -> Wanted<'_> {
    let config = &[("cleanup.policy", "compact"), ("segment.bytes", "8388608")];
    Wanted { name, partitions: 1, replication_factor, config }
}

/// What the topic holds. To be called after `init_transactions` has returned for every
/// transactional id of the relay: then nothing of ours is left open, and the read must reach the
/// high watermark. Blocks.
pub(super) fn read(cluster: &Cluster, topic: &str, client: &Client) -> Result<Saved, Error> {
    let (low, high) = watermarks(cluster, topic, client)?;
    let committed = consumer(cluster).map_err(|error| failed(cluster, topic, error))?;
    read_between(committed, cluster, topic, (low, high))
}

/// What is committed so far, for people who look on: a leader may be about to commit more. Blocks.
/// `None` where there is no such topic.
pub(crate) fn peek(cluster: &Cluster, topic: &str) -> Result<Option<Saved>, Error> {
    let failed = |error| failed(cluster, topic, error);
    let consumer = consumer(cluster).map_err(failed)?;
    let metadata = cluster.metadata(consumer.client(), topic).map_err(failed)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    match found.map(|found| found.error().map(RDKafkaErrorCode::from)) {
        None
        | Some(Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)) => {
            Ok(None)
        }
        Some(Some(code)) => {
            let right = Right::on_topic("Read", topic);
            Err(right.error(cluster, "reading the checkpoint topic", code))
        }
        Some(None) => {
            // Asked by this client, the end is the last stable offset.
            let ends = consumer.fetch_watermarks(topic, 0, ANSWER_TIMEOUT).map_err(failed)?;
            read_between(consumer, cluster, topic, ends).map(Some)
        }
    }
}

fn failed(cluster: &Cluster, topic: &str, error: KafkaError) -> Error {
    let what = format!("reading the checkpoint topic {topic:?}");
    Right::on_topic("Read", topic).failed(cluster, &what, error)
}

/// Reads the end of the topic, by growing spans.
fn read_between(
    committed: BaseConsumer<Context>,
    cluster: &Cluster,
    topic: &str,
    (low, high): (i64, i64),
) -> Result<Saved, Error> {
    let mut span = FIRST_SPAN;
    let saved = loop {
        let from = low.max(high.saturating_sub(span));
        let saved = read_range(&committed, topic, from, high, cluster)?;
        if saved.contains_key(CHECKPOINT_KEY) || from == low {
            break saved;
        }
        span = span.saturating_mul(4);
    };
    // To close a consumer takes 100 ms, which no start has to wait for.
    std::thread::spawn(move || drop(committed));
    Ok(saved)
}

/// The first offset of the topic and the one after its last. Blocks.
///
/// A producer of the relay asks, whose isolation level is set for it: a read_committed client
/// would be told the last stable offset instead.
pub(super) fn watermarks(
    cluster: &Cluster,
    topic: &str,
    client: &Client,
) -> Result<(i64, i64), Error> {
    let asked = client.client().fetch_watermarks(topic, 0, ANSWER_TIMEOUT);
    asked.map_err(|error| cluster.error(&format!("asking for the end of {topic:?}"), error))
}

fn consumer(cluster: &Cluster) -> Result<BaseConsumer<Context>, KafkaError> {
    let mut config: ClientConfig = cluster.config();
    config
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        // Demanded by the client, never joined: partitions are assigned by hand.
        .set("group.id", "cdc-relay");
    config.create_with_context(cluster.context())
}

fn read_range(
    consumer: &BaseConsumer<Context>,
    topic: &str,
    from: i64,
    high: i64,
    cluster: &Cluster,
) -> Result<Saved, Error> {
    let failed = |error| failed(cluster, topic, error);
    let mut saved = Saved::new();
    if from >= high {
        return Ok(saved);
    }
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, 0, Offset::Offset(from)).map_err(failed)?;
    consumer.assign(&assignment).map_err(failed)?;
    let deadline = Instant::now() + STABLE_TIMEOUT;
    let mut last = None;
    while Instant::now() < deadline {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(record)) => {
                if let (Some(key), Some(value)) = (record.key(), record.payload()) {
                    saved.insert(String::from_utf8_lossy(key).into_owned(), value.to_vec());
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            // The client looks for the coordinator of a group that it never joins.
            Some(Err(error))
                if code_of(&error) == Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {}
            Some(Err(error)) => match failed(error) {
                // One broker of several that is away is no obstacle as long as another answers.
                passing if passing.kind() == Kind::Unavailable => last = Some(passing),
                error => return Err(error),
            },
        }
        // Transaction markers take offsets too, so the end is told by the position alone.
        let position = consumer.position().map_err(failed)?;
        let reached = position.find_partition(topic, 0).map(|partition| partition.offset());
        if matches!(reached, Some(Offset::Offset(offset)) if offset >= high) {
            return Ok(saved);
        }
    }
    if let Some(error) = last {
        return Err(error);
    }
    Err(Error::new(
        Kind::Unavailable,
        format!(
            "kafka at {}: an open transaction hides the end of the checkpoint topic {topic:?}",
            cluster.brokers()
        ),
    )
    .hint(
        "a broker that died inside a commit can leave one behind for good (KAFKA-20734): find it with \
         kafka-transactions.sh find-hanging and end it with its abort command, as the manual on \
         operating says",
    ))
}
