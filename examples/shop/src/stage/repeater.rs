//! Trouble: every record is delivered twice. A second producer writes a copy of it into its topic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message as _};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, ThreadedProducer};

use crate::Failure;

/// Marks a copy, so that it is not copied again. Nobody else knows it.
const COPY: &str = "shop-copy";

const POLL_MAX: Duration = Duration::from_millis(100);

/// Copies records while it is switched on.
#[derive(Clone, Default)]
pub(crate) struct Repeater(Arc<Shared>);

#[derive(Default)]
struct Shared {
    on: AtomicBool,
    copies: AtomicU64,
}

impl Repeater {
    pub(super) fn start(brokers: &str, topics: Vec<String>) -> Result<Self, Failure> {
        let repeater = Repeater::default();
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "shop-repeater")
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .create()?;
        let producer: ThreadedProducer<DefaultProducerContext> =
            ClientConfig::new().set("bootstrap.servers", brokers).create()?;
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics)?;
        let copying = repeater.clone();
        std::thread::spawn(move || {
            loop {
                let Some(Ok(record)) = consumer.poll(POLL_MAX) else { continue };
                if copying.is_on() && copy(&producer, &record) {
                    copying.0.copies.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Ok(repeater)
    }

    pub(crate) fn switch(&self, on: bool) {
        self.0.on.store(on, Ordering::Relaxed);
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.on.load(Ordering::Relaxed)
    }

    /// How many records were written a second time.
    pub(crate) fn copies(&self) -> u64 {
        self.0.copies.load(Ordering::Relaxed)
    }
}

/// Whether it is written a second time: with the same id, at a new offset.
fn copy(producer: &ThreadedProducer<DefaultProducerContext>, record: &BorrowedMessage<'_>) -> bool {
    let headers = record.headers().map(rdkafka::message::BorrowedHeaders::detach);
    let headers = headers.unwrap_or_default();
    if headers.iter().any(|header| header.key == COPY) {
        return false;
    }
    let headers = headers.insert(Header { key: COPY, value: Some("1") });
    let key = record.key().unwrap_or_default();
    let copy = BaseRecord::to(record.topic())
        .partition(record.partition())
        .key(key)
        .payload(record.payload().unwrap_or_default())
        .headers(headers);
    producer.send(copy).is_ok()
}
