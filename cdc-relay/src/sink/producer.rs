//! A Kafka producer and the thread that its blocking calls run on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseRecord, Producer as _};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::oneshot;

use super::Obstacle;
use super::client::Client;
use super::cluster::{ANSWER_TIMEOUT, Cluster, Context, code_of};
use super::partitions::TOPICS_MAX;
use super::right::Right;
use crate::error::{Error, Kind};
use crate::native::kafka::{self as native, Topic};
use crate::record::Record;

/// What a dead relay leaves open blocks read_committed readers for at most this, plus the broker's
/// own sweep. Longer than [`ANSWER_TIMEOUT`], so that a commit that is waited for can not be
/// overtaken by it.
pub(crate) const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);

/// Memory that waits for acknowledgement; a full queue slows down the reading of the source.
const QUEUE_KBYTES: u32 = 32 * 1024;

/// Records that wait for acknowledgement. The client counts keys and values against the bytes above,
/// and not its own entry and the headers of each, which take some 800 bytes: its default of 100,000
/// records took 80 MB in the middle of a transaction of small rows, and 40,000 more than the goal of
/// 96 MB leaves for them.
const QUEUE_RECORDS: u32 = 20_000;

/// Longest record that is handed over.
const MESSAGE_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// How long an answer is waited for that can as well come the next time.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// How long reports of refused records are waited for once a call has failed.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

type Job = Box<dyn FnOnce(&Client) + Send>;

/// A producer; dropping it leaves what is under way to whoever takes over.
pub(super) struct Producer {
    cluster: Cluster,
    /// The transactional id.
    id: Option<String>,
    client: Arc<Client>,
    topics: HashMap<String, Topic<Context>>,
    /// Transaction calls block: they run on a thread of their own.
    worker: mpsc::SyncSender<Job>,
    /// The code of a call that failed at once; [`Producer::failure`] makes the error of it.
    broken: RDKafkaErrorCode,
}

/// The answer to come of a call on the producer's thread.
#[derive(Debug)]
pub(super) struct Answer<T>(oneshot::Receiver<T>);

impl<T> Answer<T> {
    /// Cancel safe: the answer stays until it is taken.
    pub(super) async fn taken(&mut self) -> Result<T, Error> {
        (&mut self.0).await.map_err(|_| gone())
    }
}

impl Producer {
    /// A producer with a transactional id of its own.
    pub(super) fn transactional(cluster: &Cluster, id: &str) -> Result<Self, Error> {
        let mut config = config(cluster);
        config
            .set("transactional.id", id)
            .set("transaction.timeout.ms", TRANSACTION_TIMEOUT.as_millis().to_string());
        Ok(Producer { id: Some(id.to_owned()), ..Producer::new(cluster, &config)? })
    }

    /// A producer whose records are visible as soon as they arrive, each once.
    pub(super) fn idempotent(cluster: &Cluster) -> Result<Self, Error> {
        let mut config = config(cluster);
        // Nobody seals these batches in time, as in the other mode: a record leaves at once.
        if !cluster.sets("linger.ms") {
            config.set("linger.ms", "0");
        }
        Producer::new(cluster, &config)
    }

    fn new(cluster: &Cluster, config: &ClientConfig) -> Result<Self, Error> {
        let client = Arc::new(Client::new(cluster, config)?);
        let worker = spawn_worker(Arc::clone(&client))?;
        let broken = RDKafkaErrorCode::NoError;
        Ok(Producer {
            cluster: cluster.clone(),
            id: None,
            client,
            topics: HashMap::new(),
            worker,
            broken,
        })
    }

    /// Fences every older producer of the id, completes or aborts what it left, and opens a
    /// transaction.
    pub(super) async fn take_over(&self) -> Result<(), Error> {
        self.run(|client| {
            client.init_transactions(ANSWER_TIMEOUT)?;
            client.begin_transaction()
        })
        .await?
        .map_err(|error| {
            let right = Right::on_transactional_id(self.id.as_deref().unwrap_or_default());
            right.failed(&self.cluster, "taking over the transactional id", error)
        })
    }

    /// Hands a record over; its bytes are copied by the client.
    pub(super) fn send(&mut self, record: &Record<'_>) -> Result<(), Obstacle> {
        let sent = self.topic(record.topic()).and_then(|topic| {
            // What a delivery report brings back of a record without an allocation: its timestamp.
            topic.produce(record, opaque(record.timestamp_ms()))
        });
        match sent {
            Ok(()) => Ok(()),
            Err(RDKafkaErrorCode::QueueFull) => Err(Obstacle::Full),
            Err(RDKafkaErrorCode::MessageSizeTooLarge) => Err(Obstacle::Refused(format!(
                "it has {} bytes, more than the {MESSAGE_BYTES_MAX} that the relay hands over",
                record.size()
            ))),
            Err(code) => {
                self.broken = code;
                Err(Obstacle::Broken)
            }
        }
    }

    fn topic(&mut self, name: &str) -> Result<&Topic<Context>, RDKafkaErrorCode> {
        if !self.topics.contains_key(name) {
            if self.topics.len() >= TOPICS_MAX {
                self.topics.clear();
            }
            let topic = Topic::new(self.client.producer(), name)?;
            self.topics.insert(name.to_owned(), topic);
        }
        self.topics.get(name).ok_or(RDKafkaErrorCode::UnknownTopic)
    }

    /// Puts a small value into the first partition of a topic.
    pub(super) async fn put(&self, topic: &str, key: &str, value: &[u8]) -> Result<(), Error> {
        let record = BaseRecord::with_opaque_to(topic, opaque(0));
        match self.client.send(record.key(key).payload(value).partition(0)) {
            Ok(()) => Ok(()),
            Err((error, _)) => Err(self.failed("producing the checkpoint", code(&error)).await),
        }
    }

    /// Waits until each record that was handed over has its answer. Whether all of them were taken
    /// is for the commit to say.
    pub(super) async fn flush(&self) -> Result<(), Error> {
        match self.run(|client| native::flush(client.client(), ANSWER_TIMEOUT)).await? {
            Ok(()) => Ok(()),
            Err(code) => Err(self.failed("waiting for acknowledgements", code).await),
        }
    }

    /// How many partitions the topics have that this producer has handed records to. To be called
    /// when none is under way: what is handed over next goes by these counts.
    pub(super) async fn partition_counts(&self) -> Result<Vec<(String, i32)>, Error> {
        let counts =
            self.run(|client| native::partition_counts(client.client(), LOOK_TIMEOUT)).await?;
        counts.map_err(|code| self.cluster.code_error("asking for partitions", code))
    }

    /// Begins to commit; once that is certain the next transaction is open.
    pub(super) fn commit(&self) -> Result<Answer<Result<(), RDKafkaErrorCode>>, Error> {
        self.start(|client| {
            native::commit_transaction(client.client(), ANSWER_TIMEOUT)?;
            client.begin_transaction().map_err(|error| code(&error))
        })
    }

    /// Gives up the open transaction.
    pub(super) async fn abort(&self) -> Result<(), Error> {
        self.run(|client| client.abort_transaction(ANSWER_TIMEOUT))
            .await?
            .map_err(|error| self.cluster.error("aborting a transaction", error))
    }

    /// Runs a blocking call on the producer's thread.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Client) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.start(call)?.taken().await
    }

    fn start<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Client) -> T + Send + 'static,
    ) -> Result<Answer<T>, Error> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |client| {
            // The receiver is gone when the session was dropped meanwhile.
            let _ = answer.send(call(client));
        });
        self.worker.try_send(job).map_err(|_| gone())?;
        Ok(Answer(answered))
    }

    /// The error behind [`Obstacle::Broken`].
    pub(super) async fn failure(&self) -> Error {
        self.failed("producing", self.broken).await
    }

    /// The error of the records that did not arrive, if there are any: best of all of one that
    /// was refused.
    pub(super) fn undelivered(&self) -> Option<Error> {
        let refusal = self.client.context().refusal();
        let refused = refusal.map(|refusal| refusal.error(&self.cluster));
        let lost = || self.client.context().lost();
        refused.or_else(|| Some(self.cluster.code_error("producing", lost()?)))
    }

    /// The error that follows from a failed call: the refusal of a record behind it, if there is
    /// one, since the call itself only says that the transaction is broken.
    pub(super) async fn failed(&self, what: &str, code: RDKafkaErrorCode) -> Error {
        // The reports of a refused batch may still be under way; a flush waits for all of them.
        let flushed = self.run(|client| native::flush(client.client(), REPORT_TIMEOUT)).await;
        tracing::debug!(?flushed, "waited for delivery reports");
        // A fenced producer answers later calls with no more than that its state is wrong.
        let fatal = self.client.client().fatal_error().map(|(fatal, _)| fatal);
        let context = self.client.context();
        match (context.refusal(), context.denied()) {
            (Some(refusal), _) => refusal.error(&self.cluster),
            (None, Some(topic)) => {
                Right::on_topic("Write", &topic).whole_topic(&self.cluster, what)
            }
            (None, None) => self.cluster.code_error(what, fatal.unwrap_or(code)),
        }
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

fn config(cluster: &Cluster) -> ClientConfig {
    let mut config = cluster.config();
    config
        // For the watermarks of the checkpoint topic.
        .set("isolation.level", "read_uncommitted")
        .set("message.timeout.ms", ANSWER_TIMEOUT.as_millis().to_string())
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("delivery.report.only.error", "true")
        .set("queue.buffering.max.kbytes", QUEUE_KBYTES.to_string())
        .set("queue.buffering.max.messages", QUEUE_RECORDS.to_string())
        // The topic's own limit decides; librdkafka's default is below the brokers'.
        .set("message.max.bytes", MESSAGE_BYTES_MAX.to_string());
    config
}

fn spawn_worker(client: Arc<Client>) -> Result<mpsc::SyncSender<Job>, Error> {
    // The sink runs one call at a time; a second may wait where a session was cancelled.
    let (sender, jobs) = mpsc::sync_channel::<Job>(4);
    std::thread::Builder::new()
        .name("kafka-producer".to_owned())
        .spawn(move || {
            for job in jobs {
                job(&client);
            }
        })
        .map_err(|error| {
            Error::new(Kind::Unavailable, "no thread for the kafka producer").caused_by(error)
        })?;
    Ok(sender)
}

fn gone() -> Error {
    Error::new(Kind::Unavailable, "the thread of the kafka producer has ended")
}

fn opaque(timestamp_ms: i64) -> usize {
    // The relay is built for 64 bits; elsewhere only the naming of a refused record suffers.
    timestamp_ms.cast_unsigned() as usize
}

fn code(error: &KafkaError) -> RDKafkaErrorCode {
    code_of(error).unwrap_or(RDKafkaErrorCode::Fail)
}
