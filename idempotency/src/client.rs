//! Small change with the Kafka client: what it reports, and the lists that it works with.

use std::sync::Arc;
use std::thread::Thread;
use std::time::Duration;

use rdkafka::config::ClientConfig;
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
    let created = config.create_with_context(Group::new(is_classic));
    let mut client: BaseConsumer<Group> =
        created.map_err(|error| refused_properties(&config, &error))?;
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

/// The client takes none of its properties, or not one of them. What it says has their values in it, of which each may be
/// a password, also one under a name that is misspelt: so the cause is not kept.
pub(crate) fn refused_properties(config: &ClientConfig, error: &KafkaError) -> Error {
    let text = match error {
        KafkaError::ClientConfig(_, said, name, value) if !name.is_empty() => {
            let text = format!("the kafka client refuses the property {name}");
            let without_name = said.replace(name.as_str(), "");
            let mut parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
            // Numbers are bounds that it names.
            let is_number = value.parse::<f64>().is_ok();
            match is_number || !parts.any(|part| without_name.contains(part)) {
                true => format!("{text}: {}", said.trim_end()),
                false => text,
            }
        }
        KafkaError::ClientCreation(said) => {
            let properties = config.config_map().into_iter();
            let secrets = properties.filter(|(name, value)| is_secret(name) && !value.is_empty());
            let values = secrets.map(|(_, value)| value);
            let said = values.fold(said.clone(), |said, value| said.replace(value, "(hidden)"));
            format!("the kafka client refuses its properties: {}", said.trim_end())
        }
        _ => "the kafka client refuses its properties".to_owned(),
    };
    Error::new(Kind::Config, text)
}

fn is_secret(name: &str) -> bool {
    const PARTS: &[&str] =
        &["password", "secret", "pem", "jaas", "oauthbearer.config", "token", "credential"];
    let name = name.to_lowercase();
    PARTS.iter().any(|part| name.contains(part))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_of_a_property_is_repeated_in_an_error() {
        for (name, value, said) in [
            ("sasl.pasword", "SECRET", "No such configuration property"),
            ("sasl.jaas.config", "a password=\"SECRET\";", "sasl.jaas.config"),
            // A secret in the place of another setting.
            ("debug", "all,SECRET", "debug"),
            ("security.protocol", "SECRET", "security.protocol"),
            ("linger.ms", "SECRET", "linger.ms"),
            ("linger.ms", "900001000", "outside allowed range"),
            ("ssl.key.pem", "SECRET", "the kafka client refuses its properties: "),
        ] {
            let mut config = ClientConfig::new();
            config.set("security.protocol", "ssl").set(name, value);
            let created: Result<BaseConsumer, KafkaError> = config.create();

            let error = refused_properties(&config, &created.err().unwrap());

            let shown = format!("{error} {error:?}");
            assert!(shown.contains(said) && !shown.contains("SECRET"), "{name}: {shown}");
            assert!(std::error::Error::source(&error).is_none(), "{shown}");
        }
    }
}
