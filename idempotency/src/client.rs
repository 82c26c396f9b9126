//! Small change with the Kafka client: what it reports, and the lists that it works with.

use std::sync::Arc;
use std::thread::Thread;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use crate::assignment::Group;
use crate::config::GroupProtocol;
use crate::error::{Error, Kind};
use crate::intake::Settings;
use crate::position::Offset;
use crate::progress::Partition;

/// A client that has asked to join its group, after brokers have answered that the topics exist; `thread` is unparked
/// when it has something to say.
pub(crate) fn join(
    settings: &Settings,
    protocol: GroupProtocol,
    thread: Thread,
) -> Result<BaseConsumer<Group>, Error> {
    let mut config = settings.client.clone();
    let is_classic = protocol == GroupProtocol::Classic;
    match protocol {
        GroupProtocol::Classic => config
            .set("group.protocol", "classic")
            .set("partition.assignment.strategy", "cooperative-sticky"),
        GroupProtocol::Auto | GroupProtocol::Consumer => config.set("group.protocol", "consumer"),
    };
    let mut client: BaseConsumer<Group> =
        config.create_with_context(Group::new(is_classic)).map_err(|error| {
            // Never its value, which may be a password.
            let text = match &error {
                KafkaError::ClientConfig(_, _, name, _) if !name.is_empty() => {
                    format!("the kafka client refuses the property {name}")
                }
                _ => "the kafka client refuses its properties".to_owned(),
            };
            Error::new(Kind::Config, text).caused_by(error)
        })?;
    client.set_nonempty_callback(move || thread.unpark());
    for topic in &settings.topics {
        exists(&client, topic, &settings.brokers, settings.start_deadline)?;
    }
    let topics: Vec<&str> = settings.topics.iter().map(|topic| &**topic).collect();
    client.subscribe(&topics).map_err(|error| {
        Error::new(Kind::Kafka, "the topics cannot be subscribed").caused_by(error)
    })?;
    Ok(client)
}

/// Whether the brokers answered that they do not serve the group protocol.
pub(crate) fn refuses_protocol(client: &BaseConsumer<Group>) -> bool {
    matches!(
        client.client().fatal_error(),
        Some((RDKafkaErrorCode::UnsupportedVersion | RDKafkaErrorCode::UnsupportedFeature, _))
    )
}

fn exists(
    client: &BaseConsumer<Group>,
    topic: &str,
    brokers: &str,
    deadline: Duration,
) -> Result<(), Error> {
    let metadata = client.fetch_metadata(Some(topic), deadline).map_err(|error| {
        let seconds = deadline.as_secs_f32();
        let text = format!("no broker of {} answered within {seconds} s", brokers);
        Error::new(Kind::Kafka, text)
            .caused_by(error)
            .mended_by("check the brokers' addresses and that they are up")
    })?;
    let missing = metadata
        .topics()
        .iter()
        .find(|found| found.name() == topic)
        .is_none_or(|found| found.error().is_some() || found.partitions().is_empty());
    if missing {
        return Err(Error::new(
            Kind::Kafka,
            format!("the topic {topic} does not exist or cannot be read"),
        )
        .mended_by("create it, or grant the right to read it, before the consumer starts"));
    }
    Ok(())
}

/// The shared name of a topic, so that a record does not carry its own copy.
pub(crate) fn interned(name: &str, topics: &[Arc<str>]) -> Arc<str> {
    topics.iter().find(|topic| ***topic == *name).map_or_else(|| name.into(), Arc::clone)
}

/// Which errors of the client the consumer survives.
pub(crate) fn complain(error: &KafkaError, complaint: Option<String>) -> Result<(), Error> {
    let halt = |kind, text: &str| {
        let detail = complaint.clone().map(|complaint| format!(": {complaint}"));
        Err(Error::new(kind, format!("{text}{}", detail.unwrap_or_default()))
            .caused_by(error.clone()))
    };
    match error {
        KafkaError::MessageConsumptionFatal(_)
        | KafkaError::MessageConsumption(RDKafkaErrorCode::Fatal) => {
            halt(Kind::Kafka, "the kafka client gave up")
        }
        KafkaError::MessageConsumption(
            RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange,
        ) => halt(Kind::OffsetGone, "the offset to go on from is not in the topic any more"),
        KafkaError::MessageConsumption(
            RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed,
        ) => halt(Kind::Kafka, "kafka refuses the topic or the group"),
        // The client connects again by itself.
        _ => Ok(()),
    }
}

pub(crate) fn refused(error: KafkaError) -> Error {
    Error::new(Kind::Kafka, "the kafka client refuses a change of the assignment").caused_by(error)
}

pub(crate) fn list_of(
    partition: &Partition,
    offset: Option<Offset>,
) -> Result<TopicPartitionList, Error> {
    let mut list = TopicPartitionList::new();
    add(&mut list, partition, offset)?;
    Ok(list)
}

pub(crate) fn add(
    list: &mut TopicPartitionList,
    partition: &Partition,
    offset: Option<Offset>,
) -> Result<(), Error> {
    list.add_partition_offset(&partition.topic, partition.number, kafka_offset(offset))
        .map_err(refused)
}

pub(crate) fn kafka_offset(offset: Option<Offset>) -> KafkaOffset {
    offset.map_or(KafkaOffset::Beginning, |offset| KafkaOffset::Offset(offset.get()))
}
