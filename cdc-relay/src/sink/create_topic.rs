//! Makes topics that are missing.

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::types::RDKafkaErrorCode;

use super::cluster::{ANSWER_TIMEOUT, Cluster, Context};
use super::right::Right;
use crate::error::Error;

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
    let admin: AdminClient<Context> = cluster
        .config()
        .create_with_context(cluster.context())
        .map_err(|error| cluster.error(&what, error))?;
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
            Err((_, code)) => {
                let right = Right::on_topic("Create", wanted.name);
                let error = right.error(cluster, &what, code);
                return Err(error.hint(format!(
                    "create the topic yourself, or let the relay: {}",
                    right.command(cluster)
                )));
            }
        }
    }
    Ok(made)
}
