//! The second accident: somebody puts every record into the topic again.

use std::collections::HashSet;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::types::RDKafkaErrorCode;

use crate::Failure;
use crate::books::{ce_id, read_committed};

/// Produces a copy of each of the first `records` records: the same key, headers and `ce_id`, a
/// new offset. Returns how many.
pub(crate) async fn all(brokers: &str, topic: &str, records: u64) -> Result<u64, Failure> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || copy(&brokers, &topic, records)).await?
}

fn copy(brokers: &str, topic: &str, records: u64) -> Result<u64, Failure> {
    let consumer = read_committed(brokers, topic)?;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .create()?;
    let mut copied = 0;
    let mut seen = HashSet::new();
    while copied < records {
        let Some(polled) = consumer.poll(Duration::from_secs(10)) else {
            return Err("the topic holds fewer records than were counted".into());
        };
        let record = polled?.detach();
        // The copies come to this reader too.
        if seen.insert(ce_id(&record)?) {
            send(&producer, topic, &record)?;
            copied += 1;
        }
    }
    producer.flush(Duration::from_secs(30))?;
    Ok(copied)
}

fn send(producer: &BaseProducer, topic: &str, record: &OwnedMessage) -> Result<(), Failure> {
    let mut copy: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic);
    if let Some(key) = record.key() {
        copy = copy.key(key);
    }
    if let Some(value) = record.payload() {
        copy = copy.payload(value);
    }
    if let Some(headers) = record.headers() {
        copy = copy.headers(headers.clone());
    }
    loop {
        match producer.send(copy) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                producer.poll(Duration::from_millis(10));
                copy = back;
            }
            Err((error, _)) => return Err(error.into()),
        }
    }
}
