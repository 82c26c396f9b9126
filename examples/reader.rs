//! Who reads a topic and is none of ours.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// A broker answers within this time, or the example fails.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The payloads of a topic with one partition, as they stand there.
pub(crate) fn read(
    brokers: &str,
    topic: &str,
) -> Result<Vec<String>, Box<dyn std::error::Error + Send + Sync>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", topic)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .create()?;
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_offset(topic, 0, Offset::Beginning)?;
    consumer.assign(&partitions)?;
    let mut payloads = Vec::new();
    loop {
        match consumer.poll(ANSWER_MAX).ok_or("Kafka does not answer")? {
            Ok(record) => {
                let payload = record.payload().unwrap_or_default();
                payloads.push(String::from_utf8_lossy(payload).into_owned());
            }
            Err(KafkaError::PartitionEOF(_)) => return Ok(payloads),
            Err(error) => return Err(error.into()),
        }
    }
}
