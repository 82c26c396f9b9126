//! The topic that a consumer reads: how it is filled, and how fast it can be polled.

use std::error::Error;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use uuid::Uuid;

use crate::relay_reader::{self, Isolation, blocking};

type Failure = Box<dyn Error + Send + Sync>;

/// Partitions of the topic, hence connections that write.
pub(crate) const PARTITIONS: i32 = 6;

/// Keys of the messages, in turn.
const KEYS: u64 = 10_000;

const LIMIT: Duration = Duration::from_secs(300);

/// The payload of a message, about 200 bytes with its headers.
pub(crate) fn payload(number: u64) -> String {
    format!(
        r#"{{"account":"account-{:05}","cents":{number},"note":"leave it with the neighbour"}}"#,
        number % KEYS
    )
}

/// Fills a topic with messages in the form of the wire contract.
pub(crate) async fn fill(brokers: &str, topic: &str, messages: u64) -> Result<(), Failure> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    blocking(move || {
        let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .create()?;
        for number in 0..messages {
            let (id, key) = (Uuid::now_v7().to_string(), format!("account-{:05}", number % KEYS));
            let sequence = format!("bench:{:08x}{:016x}{:08x}", 1, number + 1, 0);
            let payload = payload(number);
            let headers =
                headers(&id).insert(Header { key: "ce_sequence", value: Some(sequence.as_str()) });
            let mut record = BaseRecord::to(&topic).key(&key).payload(&payload).headers(headers);
            while let Err((error, refused)) = producer.send(record) {
                let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
                if error != full {
                    return Err(error.into());
                }
                producer.flush(LIMIT)?;
                record = refused;
            }
        }
        producer.flush(LIMIT)?;
        Ok(())
    })
    .await
}

/// Polls all messages and does nothing with them; answers with the messages per second from the
/// first on.
pub(crate) async fn poll(brokers: &str, topic: &str, messages: u64) -> Result<f64, Failure> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    blocking(move || {
        let consumer = relay_reader::consumer(&brokers, Isolation::Committed)?;
        let from = vec![0; usize::try_from(PARTITIONS)?];
        relay_reader::assign(&consumer, &topic, &from)?;
        let deadline = Instant::now() + LIMIT;
        let mut first = None;
        for number in 0..messages {
            loop {
                if let Some(record) = consumer.poll(Duration::from_millis(100)) {
                    record?;
                    break;
                }
                if Instant::now() > deadline {
                    return Err(format!("{number} of {messages} messages were polled").into());
                }
            }
            first.get_or_insert_with(Instant::now);
        }
        let elapsed = first.map_or(Duration::MAX, |first| first.elapsed());
        consumer.unsubscribe();
        Ok(messages as f64 / elapsed.as_secs_f64())
    })
    .await
}

/// What a relay puts beside a message of the type that the benchmarks' consumers handle.
pub(crate) fn headers(id: &str) -> OwnedHeaders {
    [
        ("ce_specversion", "1.0"),
        ("ce_id", id),
        ("ce_type", "booked.v1"),
        ("ce_source", "/bench"),
        ("content-type", "application/json"),
    ]
    .into_iter()
    .fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value) })
    })
}
