//! The sinks of this crate keep what every sink must.

use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use tailrace_stack::Stack;

use super::Kafka;
use super::conformance::{Promise, check};
use super::memory::Memory;
use crate::config::{Config, Delivery};

/// An answer of the broker takes no longer.
const ANSWER_MAX: Duration = Duration::from_secs(20);

#[tokio::test]
async fn memory_is_a_sink() {
    let memory = Memory::default();
    let read = async |topic: &str| {
        let records = memory.records().into_iter().filter(|record| record.topic == topic);
        records.map(|record| record.value.unwrap_or_default()).collect()
    };

    check(&memory, Promise::ExactlyOnce, "memory", read).await;
}

#[tokio::test]
async fn kafka_is_a_sink_in_both_modes() {
    let stack = Stack::shared().await;
    for (delivery, promise, isolation) in [
        (Delivery::ExactlyOnce, Promise::ExactlyOnce, "read_committed"),
        (Delivery::AtLeastOnce, Promise::AtLeastOnce, "read_uncommitted"),
    ] {
        let topic = stack.kafka().fresh_topic("conformance", 3).await.unwrap();
        let brokers = stack.kafka().brokers().to_owned();
        let kafka = Kafka::of(&Config::new("unused", brokers.clone()).delivery(delivery));
        let read = async |topic: &str| {
            let (brokers, topic) = (brokers.clone(), topic.to_owned());
            let values = move || values(&brokers, &topic, isolation);
            tokio::task::spawn_blocking(values).await.unwrap()
        };

        check(&kafka, promise, &topic, read).await;
    }
}

/// The values of a topic up to its end, partition by partition.
fn values(brokers: &str, topic: &str, isolation: &str) -> Vec<Vec<u8>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "conformance")
        .set("isolation.level", isolation)
        .set("auto.offset.reset", "earliest")
        .set("fetch.wait.max.ms", "10")
        .create()
        .unwrap();
    let mut all = Vec::new();
    for partition in 0..3 {
        // For a read_committed reader the end is the last stable offset.
        let (_, end) = consumer.fetch_watermarks(topic, partition, ANSWER_MAX).unwrap();
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        consumer.assign(&assignment).unwrap();
        let deadline = Instant::now() + ANSWER_MAX;
        loop {
            let position = consumer.position().unwrap();
            let at = position.find_partition(topic, partition).map(|found| found.offset());
            if end == 0 || matches!(at, Some(Offset::Offset(at)) if at >= end) {
                break;
            }
            assert!(Instant::now() < deadline, "{at:?} of {end} in partition {partition}");
            if let Some(record) = consumer.poll(Duration::from_millis(20)) {
                all.push(record.unwrap().payload().unwrap_or_default().to_vec());
            }
        }
    }
    all
}
