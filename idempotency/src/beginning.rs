//! Where a partition begins for a consumer that has no progress in it, and which topic it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use crate::assignment::Group;
use crate::error::{Error, Kind};
use crate::native::{Described, TopicIds};
use crate::position::Offset;
use crate::progress::Partition;

/// How long a broker may take to tell where a partition ends, or what a topic's id is.
pub(crate) const BROKER_WAIT_MAX: Duration = Duration::from_secs(10);

/// What the brokers know of topics, by their names.
pub(crate) fn described(
    client: &Arc<BaseConsumer<Group>>,
    topics: &[Arc<str>],
) -> Result<BTreeMap<String, Described>, Error> {
    let asked = TopicIds::ask(client, topics, BROKER_WAIT_MAX)?;
    match asked.answer(BROKER_WAIT_MAX * 2) {
        Some(Ok(answered)) => Ok(answered.topics),
        Some(Err(code)) => Err(Error::new(Kind::Kafka, "the topics cannot be described")
            .caused_by(rdkafka::error::KafkaError::AdminOp(code))),
        None => Err(Error::new(Kind::Kafka, "no broker describes the topics")),
    }
}

/// Where the partitions of a topic end for a reader of committed records.
pub(crate) fn ends(
    client: &BaseConsumer<Group>,
    topic: &Arc<str>,
) -> Result<Vec<(Partition, Offset)>, Error> {
    let unknown = |error| {
        let text = format!("the ends of the partitions of {topic} are not known");
        Error::new(Kind::Kafka, text).caused_by(error)
    };
    let metadata = client.fetch_metadata(Some(topic), BROKER_WAIT_MAX).map_err(unknown)?;
    let found = metadata.topics().iter().filter(|found| found.name() == &**topic);
    let mut ends = Vec::new();
    for partition in found.flat_map(|found| found.partitions()) {
        let number = partition.id();
        let (_, end) = client.fetch_watermarks(topic, number, BROKER_WAIT_MAX).map_err(unknown)?;
        ends.push((Partition { topic: Arc::clone(topic), number }, Offset::new(end)));
    }
    Ok(ends)
}

/// What the group has committed in Kafka, where it has.
pub(crate) fn committed(
    client: &BaseConsumer<Group>,
    partitions: &[Partition],
) -> Result<BTreeMap<Partition, Offset>, Error> {
    let unknown = |error| {
        Error::new(Kind::Kafka, "what the group has committed in kafka is not known")
            .caused_by(error)
    };
    let mut asked = TopicPartitionList::new();
    for partition in partitions {
        asked.add_partition(&partition.topic, partition.number);
    }
    let answer = client.committed_offsets(asked, BROKER_WAIT_MAX).map_err(unknown)?;
    let mut committed = BTreeMap::new();
    for partition in partitions {
        let element = answer.find_partition(&partition.topic, partition.number);
        if let Some(KafkaOffset::Offset(offset)) = element.map(|element| element.offset()) {
            committed.insert(partition.clone(), Offset::new(offset));
        }
    }
    Ok(committed)
}
