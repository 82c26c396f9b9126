//! Makes topics that are missing.

use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::types::RDKafkaErrorCode;

use super::admin::Admin;
use super::cluster::{ANSWER_TIMEOUT, Cluster};
use super::right::{Right, is_denial};
use crate::error::{Error, Kind};

/// A topic to be made: the broker's defaults decide what is not said here (KIP-464).
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    /// -1 for the broker's default.
    pub(super) partitions: i32,
    /// -1 for the broker's default.
    pub(super) replication_factor: i32,
    pub(super) config: &'a [(&'a str, &'a str)],
}

/// Makes a topic unless it exists. Whoever is first wins; the others find it made.
pub(super) async fn create(cluster: &Cluster, wanted: &Wanted<'_>) -> Result<(), Error> {
    if ask(cluster, wanted, false).await? {
        tracing::info!(topic = wanted.name, "created topic");
    }
    Ok(())
}

/// Whether the brokers would make the topic.
pub(super) async fn validate(cluster: &Cluster, wanted: &Wanted<'_>) -> Result<(), Error> {
    ask(cluster, wanted, true).await.map(drop)
}

/// Whether it was made just now.
async fn ask(cluster: &Cluster, wanted: &Wanted<'_>, only_asks: bool) -> Result<bool, Error> {
    let what = format!("creating topic {:?}", wanted.name);
    let admin = Admin::new(cluster).map_err(|error| cluster.error(&what, error))?;
    let mut topic = NewTopic::new(
        wanted.name,
        wanted.partitions,
        TopicReplication::Fixed(wanted.replication_factor),
    );
    for (name, value) in wanted.config {
        topic = topic.set(name, value);
    }
    let options = AdminOptions::new()
        .request_timeout(Some(ANSWER_TIMEOUT))
        .operation_timeout(Some(ANSWER_TIMEOUT))
        .validate_only(only_asks);
    let answers = admin
        .create_topics([&topic], &options)
        .await
        .map_err(|error| cluster.error(&what, error))?;
    let mut made = false;
    for answer in answers {
        match answer {
            Ok(_) => made = true,
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(refused(cluster, wanted, &what, code)),
        }
    }
    Ok(made)
}

/// The error of a topic that the brokers do not make.
///
/// What is [`Kind::Rejected`] or [`Kind::Permission`] is about this topic and says nothing of
/// others; what is [`Kind::Server`] is about how the relay makes topics.
fn refused(cluster: &Cluster, wanted: &Wanted<'_>, what: &str, code: RDKafkaErrorCode) -> Error {
    let right = Right::on_topic("Create", wanted.name);
    let error = right.error(cluster, what, code);
    let text = |why: &str| format!("kafka at {}: {what}: {why}", cluster.brokers());
    match code {
        code if is_denial(code) => error.hint(format!(
            "create the topic yourself, or let the relay: {}",
            right.command(cluster)
        )),
        // Whether a name could be a topic's at all is asked of the message before.
        RDKafkaErrorCode::InvalidTopic => Error::new(
            Kind::Rejected,
            text(
                "its name collides with that of a topic which exists: kafka takes '.' and '_' for \
                 the same",
            ),
        )
        .hint("let the writer name the topic that exists, or one that differs in more"),
        RDKafkaErrorCode::PolicyViolation => Error::new(
            Kind::Rejected,
            text("the brokers' policy for new topics refuses it (create.topic.policy.class.name)"),
        )
        .hint(
            "create the topic yourself as the policy wants it, or say by topics.partitions, \
             topics.replication_factor and topics.configs how topics are made",
        ),
        RDKafkaErrorCode::InvalidReplicationFactor => error.hint(match wanted.replication_factor {
            ..0 => "set topics.replication_factor to no more than there are brokers: their \
                    default.replication.factor is more; or bring back those that are away"
                .to_owned(),
            factor => format!(
                "topics.replication_factor is {factor}: set it to no more than there are brokers, \
                 or bring back those that are away"
            ),
        }),
        RDKafkaErrorCode::InvalidPartitions => {
            error.hint("set topics.partitions to what the brokers take")
        }
        RDKafkaErrorCode::InvalidConfig => {
            let names: Vec<&str> = wanted.config.iter().map(|(name, _)| *name).collect();
            error.hint(format!(
                "mend topics.configs: the brokers do not know one of {}, or not its value",
                names.join(", ")
            ))
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::types::RDKafkaErrorCode;

    use super::super::cluster::Cluster;
    use super::{Wanted, refused};
    use crate::error::Kind;

    #[test]
    fn a_topic_that_is_not_made_is_a_fault_of_the_message_or_of_a_setting_that_is_named() {
        let cluster = Cluster::new("b:1", &[]);
        let config = [("retention.mss", "1")];
        let wanted = Wanted { name: "a_b", partitions: 1, replication_factor: 3, config: &config };
        for (code, kind, text, mend) in [
            (RDKafkaErrorCode::InvalidTopic, Kind::Rejected, "collides", "that exists"),
            (RDKafkaErrorCode::PolicyViolation, Kind::Rejected, "policy", "create the topic"),
            (RDKafkaErrorCode::TopicAuthorizationFailed, Kind::Permission, "Create", "kafka-acls"),
            (
                RDKafkaErrorCode::InvalidReplicationFactor,
                Kind::Server,
                "ReplicationFactor",
                "topics.replication_factor is 3",
            ),
            (RDKafkaErrorCode::InvalidPartitions, Kind::Server, "", "topics.partitions"),
            (RDKafkaErrorCode::InvalidConfig, Kind::Server, "", "retention.mss"),
        ] {
            let error = refused(&cluster, &wanted, "creating topic \"a_b\"", code);

            assert_eq!(error.kind(), kind, "{code}");
            assert!(error.to_string().contains(text), "{error}");
            assert!(error.to_string().contains("creating topic \"a_b\""), "{error}");
            assert!(error.mend().unwrap().contains(mend), "{error:?}");
        }
    }
}
