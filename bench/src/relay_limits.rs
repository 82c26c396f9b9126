//! What bounds a relay from either side, each alone on the same servers.

use std::error::Error;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use tailrace_cdc_relay::limits::{self, commit_transaction};
use tailrace_cdc_relay::{Config, Lsn};
use tokio::process::Command;
use tokio::time::timeout;
use uuid::Uuid;

use crate::relay_backlog::{self, KEYS};
use crate::relay_process::Usage;
use crate::relay_reader::blocking;

type Failure = Box<dyn Error + Send + Sync>;

/// Records of a Kafka transaction: as many as the relay puts into one under backlog.
const TRANSACTION_RECORDS: u64 = 10_000;

/// The longest wait for one answer of the broker.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long one of them may take, whatever it does.
const LIMIT: Duration = Duration::from_secs(600);

/// What one of them reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alone {
    pub(crate) messages_per_second: f64,
    pub(crate) cpu_us_per_message: f64,
}

impl Alone {
    fn new(messages: u64, elapsed: Duration, cpu: Duration) -> Self {
        Alone {
            messages_per_second: messages as f64 / elapsed.as_secs_f64(),
            cpu_us_per_message: cpu.as_secs_f64() * 1e6 / messages as f64,
        }
    }
}

/// The relay's own reading of a slot that holds so many messages, without anything that follows.
pub(crate) async fn read(url: &str, slot: &str, messages: u64) -> Result<Alone, Failure> {
    let config = Config::new(url, "unused:9092").slot(slot);
    blocking(move || {
        // One thread that reads: with several, each piece that arrives would wake two of them,
        // and what is measured would be that.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let before = Usage::own()?;
        let read = async { timeout(LIMIT, limits::read_slot(&config, messages)).await };
        let elapsed = runtime.block_on(read)??;
        Ok(Alone::new(messages, elapsed, Usage::own()?.cpu - before.cpu))
    })
    .await
}

/// Postgres' own client reading the slot, where it is installed. Messages per second of its whole
/// run, the log-in included.
pub(crate) async fn recvlogical(
    url: &str,
    slot: &str,
    end: Lsn,
    messages: u64,
) -> Result<Option<f64>, Failure> {
    let began = Instant::now();
    let spawned = Command::new("pg_recvlogical")
        .args(["-d", url, "--slot", slot, "--start", "--no-loop", "-f", "/dev/null"])
        .args(["-o", "proto_version=2", "-o", "publication_names=tailrace", "-o", "messages=true"])
        .args(["-o", "binary=true", "--endpos", &end.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let Ok(mut child) = spawned else { return Ok(None) };
    let status = timeout(LIMIT, child.wait()).await??;
    Ok(status.success().then(|| messages as f64 / began.elapsed().as_secs_f64()))
}

/// A transactional producer with the relay's settings and records, which it has in memory.
pub(crate) async fn produce(brokers: &str, topic: &str, messages: u64) -> Result<Alone, Failure> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    blocking(move || {
        let producer = producer(&brokers)?;
        let records = records()?;
        let payload = relay_backlog::message(&topic)?.payload().unwrap_or_default().to_vec();
        producer.init_transactions(ANSWER_MAX)?;
        producer.begin_transaction()?;
        let before = Usage::own()?;
        let began = Instant::now();
        for (number, kept) in (1..=messages).zip(records.iter().cycle()) {
            send(&producer, &topic, kept, &payload)?;
            if number % TRANSACTION_RECORDS == 0 || number == messages {
                commit_transaction(producer.client(), ANSWER_MAX).map_err(KafkaError::Global)?;
                producer.begin_transaction()?;
            }
        }
        let elapsed = began.elapsed();
        let alone = Alone::new(messages, elapsed, Usage::own()?.cpu - before.cpu);
        producer.abort_transaction(ANSWER_MAX)?;
        Ok(alone)
    })
    .await
}

type Client = ThreadedProducer<DefaultProducerContext>;

fn producer(brokers: &str) -> Result<Client, Failure> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("transactional.id", format!("tailrace-bench-{}", Uuid::new_v4()))
        .set("transaction.timeout.ms", "15000")
        .set("message.timeout.ms", "10000")
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("delivery.report.only.error", "true")
        .set("queue.buffering.max.kbytes", "32768")
        .create()?)
}

/// A record's key, and its headers by the wire contract.
struct Kept {
    key: String,
    headers: Vec<(&'static str, String)>,
}

fn records() -> Result<Vec<Kept>, Failure> {
    let message = relay_backlog::message("unused")?;
    let record = |number: u64| {
        let headers = vec![
            ("ce_specversion", "1.0".to_owned()),
            ("ce_id", Uuid::new_v4().to_string()),
            ("ce_type", message.r#type().to_owned()),
            ("ce_source", message.source().to_owned()),
            ("content-type", message.content_type().to_owned()),
            (
                "ce_sequence",
                format!("tailrace_exactly_once_0:0068f5a3c1000000{number:08x}00000000"),
            ),
        ];
        Kept { key: format!("{number:08}"), headers }
    };
    Ok((0..KEYS).map(record).collect())
}

fn send(producer: &Client, topic: &str, kept: &Kept, payload: &[u8]) -> Result<(), Failure> {
    let mut headers = OwnedHeaders::new_with_capacity(kept.headers.len());
    for (key, value) in &kept.headers {
        headers = headers.insert(Header { key, value: Some(value.as_bytes()) });
    }
    let mut record = BaseRecord::to(topic).key(&kept.key).payload(payload).headers(headers);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), full)) => {
                // The queue is the buffer between this thread and the client's: one batch less.
                std::thread::sleep(Duration::from_millis(1));
                record = full;
            }
            Err((error, _)) => return Err(error.into()),
        }
    }
}
