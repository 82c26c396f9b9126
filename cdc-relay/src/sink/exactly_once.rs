//! One transactional producer: records and the checkpoint that covers them become visible together.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::oneshot;

use super::checkpoint_topic;
use super::commit::commit_transaction;
use super::kafka::{ANSWER_TIMEOUT, Cluster, Context};
use super::partitions::Partitions;
use super::topics::{Wanted, create};
use crate::checkpoint::{
    self, CHECKPOINT_KEY, Checkpoint, INTENT_KEY, Intent, Stored, encode_partitions,
};
use crate::error::{Error, Kind};
use crate::position::Place;
use crate::record::{Record, skippable};

/// What a dead relay leaves open blocks read_committed readers for at most this, plus the broker's
/// own sweep. Longer than [`ANSWER_TIMEOUT`], so that a commit that is waited for can not be
/// overtaken by it.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);

/// Memory that waits for acknowledgement; a full queue slows down the reading of the source.
const QUEUE_KBYTES: u32 = 32 * 1024;

/// Longest record that is handed over.
const MESSAGE_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// How long reports of refused records are waited for once a call has failed.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

type Client = ThreadedProducer<Context>;
type Job = Box<dyn FnOnce(&Client) + Send>;

/// What became of a record that was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Produced {
    /// It is in the open transaction.
    Queued,
    /// The queue is full: wait for [`ExactlyOnce::room`], then hand it over again.
    Full,
    /// Its topic is not known yet: see [`ExactlyOnce::prepare`], then hand it over again.
    UnknownTopic,
}

/// The sink of the exactly-once mode.
///
/// After any error its outcome is uncertain: it is dropped, and a new session begins with
/// [`ExactlyOnce::take_over`], which fences what the old one may still have under way.
pub(crate) struct ExactlyOnce {
    cluster: Cluster,
    checkpoint_topic: String,
    create_topics: bool,
    producer: Arc<Client>,
    /// Transaction calls block: they run on a thread of their own.
    worker: mpsc::SyncSender<Job>,
    partitions: Partitions,
}

impl ExactlyOnce {
    /// Connects, and makes the checkpoint topic where it is missing.
    pub(crate) async fn connect(
        cluster: &Cluster,
        relay_id: &str,
        create_topics: bool,
    ) -> Result<Self, Error> {
        let producer = Arc::new(producer(cluster, relay_id)?);
        let worker = spawn_worker(Arc::clone(&producer))?;
        let mut sink = ExactlyOnce {
            cluster: cluster.clone(),
            checkpoint_topic: checkpoint::topic(relay_id),
            create_topics,
            producer,
            worker,
            partitions: Partitions::default(),
        };
        let topic = sink.checkpoint_topic.clone();
        if sink.partition_count(&topic).await?.is_none() {
            checkpoint_topic::ensure(&sink.cluster, &topic).await?;
            sink.await_topic(&topic).await?;
        }
        Ok(sink)
    }

    /// Fences every older producer of this relay, completes what it left, and opens a transaction.
    /// Only the holder of the slot may call it, or who creates it.
    pub(crate) async fn take_over(&mut self) -> Result<(), Error> {
        self.run(|producer| {
            producer.init_transactions(ANSWER_TIMEOUT)?;
            producer.begin_transaction()
        })
        .await?
        .map_err(|error| self.cluster.error("taking over the transactional id", error))
    }

    /// What is durable. To be called after [`ExactlyOnce::take_over`].
    pub(crate) async fn stored(&mut self) -> Result<Stored, Error> {
        let (cluster, topic) = (self.cluster.clone(), self.checkpoint_topic.clone());
        let stored = self.run(move |_| checkpoint_topic::read(&cluster, &topic)).await??;
        self.partitions.restore(stored.partitions.clone());
        Ok(stored)
    }

    /// Hands a record over; its bytes are copied by the client.
    pub(crate) async fn produce(
        &mut self,
        record: &Record<'_>,
        at: Place,
    ) -> Result<Produced, Error> {
        if !self.partitions.knows(record.topic()) {
            return Ok(Produced::UnknownTopic);
        }
        let mut headers = Some(OwnedHeaders::new_with_capacity(8));
        record.each_header(|key, value| {
            headers = headers.take().map(|list| list.insert(Header { key, value: Some(value) }));
        });
        let timestamp_ms = record.timestamp_ms();
        let mut out: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(record.topic(), opaque(timestamp_ms));
        out = out.timestamp(timestamp_ms);
        if let Some(headers) = headers {
            out = out.headers(headers);
        }
        if let Some(key) = record.key() {
            out = out.key(key);
        }
        if let Some(value) = record.value() {
            out = out.payload(value);
        }
        match self.producer.send(out) {
            Ok(()) => Ok(Produced::Queued),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                Ok(Produced::Full)
            }
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge), _)) => {
                let text = format!(
                    "the message at {at} has {} bytes, more than message.max.bytes",
                    record.size()
                );
                Err(skippable(Kind::Rejected, text, at))
            }
            Err((error, _)) => {
                let what = format!("producing to topic {:?}", record.topic());
                Err(self.failed(&what, code(&error)).await)
            }
        }
    }

    /// Waits until the queue has room again.
    pub(crate) async fn room(&mut self) -> Result<(), Error> {
        match self.run(|producer| producer.flush(ANSWER_TIMEOUT)).await? {
            Ok(()) => Ok(()),
            Err(error) => Err(self.failed("waiting for acknowledgements", code(&error)).await),
        }
    }

    /// Makes sure that a topic exists before the first record goes to it: inside a transaction an
    /// unknown topic would cost more time than the transaction has.
    pub(crate) async fn prepare(&mut self, topic: &str, at: Place) -> Result<(), Error> {
        let count = self.partition_count(topic).await?;
        if count.is_none() {
            if !self.create_topics {
                let text = format!("topic {topic:?} of the message at {at} does not exist");
                return Err(Error::new(Kind::Rejected, text)
                    .hint("create it, or let the relay do so by leaving out --no-create-topics"));
            }
            create(&self.cluster, &Wanted { name: topic, partitions: -1, config: &[] }).await?;
        }
        let count = match count {
            Some(count) if count > 0 => count,
            _ => self.await_topic(topic).await?,
        };
        if let Some(before) = self.partitions.learn(topic, count) {
            tracing::warn!(
                topic,
                before,
                now = count,
                "the number of partitions has changed: records of a key that were published \
                 before are in another partition, and are not in order with what follows"
            );
        }
        Ok(())
    }

    /// Commits everything handed over together with the checkpoint, and opens the next
    /// transaction.
    pub(crate) async fn commit(
        &mut self,
        checkpoint: &Checkpoint,
        time_ms: u64,
    ) -> Result<(), Error> {
        for (topic, count) in self.partitions.due() {
            let (key, value) = encode_partitions(&topic, count, time_ms);
            self.put(&key, &value).await?;
        }
        self.put(CHECKPOINT_KEY, &checkpoint.encode(time_ms)).await?;
        self.end_transaction().await
    }

    /// Commits the intent to create a slot.
    pub(crate) async fn commit_intent(
        &mut self,
        intent: &Intent,
        time_ms: u64,
    ) -> Result<(), Error> {
        self.put(INTENT_KEY, &intent.encode(time_ms)).await?;
        self.end_transaction().await
    }

    /// Gives up what was handed over since the last commit, so that no reader waits for it.
    pub(crate) async fn abort(&mut self) -> Result<(), Error> {
        self.run(|producer| producer.abort_transaction(ANSWER_TIMEOUT))
            .await?
            .map_err(|error| self.cluster.error("aborting a transaction", error))
    }

    async fn end_transaction(&mut self) -> Result<(), Error> {
        let committed = self
            .run(|producer| {
                commit_transaction(producer, ANSWER_TIMEOUT)?;
                let next = producer.begin_transaction();
                next.map_err(|error| code(&error))
            })
            .await?;
        match committed {
            Ok(()) => Ok(()),
            Err(code) => Err(self.failed("committing", code).await),
        }
    }

    async fn put(&mut self, key: &str, value: &[u8]) -> Result<(), Error> {
        let record = BaseRecord::with_opaque_to(&self.checkpoint_topic, opaque(0));
        let record = record.key(key).payload(value).partition(0);
        match self.producer.send(record) {
            Ok(()) => Ok(()),
            Err((error, _)) => Err(self.failed("producing the checkpoint", code(&error)).await),
        }
    }

    /// The error that follows from a failed call: the refusal of a record behind it, if there is
    /// one, since the call itself only says that the transaction is broken.
    async fn failed(&mut self, what: &str, code: RDKafkaErrorCode) -> Error {
        // The reports of a refused batch may still be under way; a flush waits for all of them.
        let flushed = self.run(|producer| producer.flush(REPORT_TIMEOUT)).await;
        tracing::debug!(?flushed, "waited for delivery reports");
        // A fenced producer answers later calls with no more than that its state is wrong.
        let fatal = self.producer.client().fatal_error().map(|(fatal, _)| fatal);
        match self.producer.context().refusal() {
            Some(refusal) => refusal.error(&self.cluster),
            None => self.cluster.code_error(what, fatal.unwrap_or(code)),
        }
    }

    /// How many partitions a topic has: `None` if it does not exist, zero while the brokers do not
    /// say.
    async fn partition_count(&mut self, topic: &str) -> Result<Option<i32>, Error> {
        let name = topic.to_owned();
        let metadata = self
            .run(move |producer| producer.client().fetch_metadata(Some(&name), ANSWER_TIMEOUT))
            .await?
            .map_err(|error| self.cluster.error(&format!("asking for topic {topic:?}"), error))?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(None);
        };
        match found.error().map(RDKafkaErrorCode::from) {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                Ok(None)
            }
            // A topic whose partitions have no leader for the moment does exist.
            None | Some(RDKafkaErrorCode::LeaderNotAvailable) => {
                Ok(Some(i32::try_from(found.partitions().len()).unwrap_or(i32::MAX)))
            }
            Some(code) => {
                Err(self.cluster.code_error(&format!("asking for topic {topic:?}"), code))
            }
        }
    }

    /// A topic that was just made reaches the brokers' metadata a moment later.
    async fn await_topic(&mut self, topic: &str) -> Result<i32, Error> {
        let appears = async {
            loop {
                match self.partition_count(topic).await? {
                    Some(count) if count > 0 => return Ok(count),
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        tokio::time::timeout(ANSWER_TIMEOUT, appears).await.unwrap_or_else(|_| {
            let text = format!("topic {topic:?} exists, but the brokers do not say its partitions");
            Err(Error::new(Kind::Unavailable, text))
        })
    }

    async fn run<T: Send + 'static>(
        &mut self,
        call: impl FnOnce(&Client) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |producer| {
            // The receiver is gone when the session was dropped meanwhile.
            let _ = answer.send(call(producer));
        });
        let gone = || Error::new(Kind::Unavailable, "the thread of the kafka producer has ended");
        self.worker.try_send(job).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

impl std::fmt::Debug for ExactlyOnce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExactlyOnce").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// What a delivery report brings back of a record without an allocation: its timestamp.
fn opaque(timestamp_ms: i64) -> usize {
    // The relay is built for 64 bits; elsewhere only the naming of a refused record suffers.
    timestamp_ms.cast_unsigned() as usize
}

fn code(error: &KafkaError) -> RDKafkaErrorCode {
    match error {
        KafkaError::Transaction(error) => error.code(),
        error => error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail),
    }
}

fn producer(cluster: &Cluster, relay_id: &str) -> Result<Client, Error> {
    let mut config = cluster.config();
    config
        // One of a pair: the second producer of the relay ends in `.b`.
        .set("transactional.id", format!("tailrace.relay.{relay_id}.a"))
        .set("transaction.timeout.ms", TRANSACTION_TIMEOUT.as_millis().to_string())
        .set("message.timeout.ms", ANSWER_TIMEOUT.as_millis().to_string())
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("delivery.report.only.error", "true")
        .set("queue.buffering.max.kbytes", QUEUE_KBYTES.to_string())
        // The topic's own limit decides; librdkafka's default is below the brokers'.
        .set("message.max.bytes", MESSAGE_BYTES_MAX.to_string());
    config
        .create_with_context(Context::default())
        .map_err(|error| cluster.error("creating the producer", error))
}

fn spawn_worker(producer: Arc<Client>) -> Result<mpsc::SyncSender<Job>, Error> {
    // The sink runs one call at a time; a second may wait where a session was cancelled.
    let (sender, jobs) = mpsc::sync_channel::<Job>(4);
    std::thread::Builder::new()
        .name("kafka-transactions".to_owned())
        .spawn(move || {
            for job in jobs {
                job(&producer);
            }
        })
        .map_err(|error| {
            Error::new(Kind::Unavailable, "no thread for the kafka producer").caused_by(error)
        })?;
    Ok(sender)
}
