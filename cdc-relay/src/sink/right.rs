//! The rights that the relay's principal needs in Kafka, as an error names them.

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use super::cluster::{Cluster, code_of};
use crate::error::{Error, RefusedRecord};

/// A right on a resource; docs/operating.md has the whole list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Right<'a> {
    operation: &'static str,
    resource: &'static str,
    /// In `kafka-acls.sh`.
    option: &'static str,
    name: &'a str,
}

impl<'a> Right<'a> {
    /// To do this with a topic.
    pub(super) fn on_topic(operation: &'static str, name: &'a str) -> Self {
        Right { operation, resource: "topic", option: "--topic", name }
    }

    /// To publish by a transactional id.
    pub(super) fn on_transactional_id(name: &'a str) -> Self {
        let (resource, option) = ("transactional id", "--transactional-id");
        Right { operation: "Write", resource, option, name }
    }

    /// To see the brokers' settings.
    pub(super) fn to_see_brokers() -> Right<'static> {
        let (resource, option) = ("cluster", "--cluster");
        Right { operation: "DescribeConfigs", resource, option, name: "kafka-cluster" }
    }

    /// The error that follows from a code: of a refused right it says which.
    pub(super) fn error(&self, cluster: &Cluster, what: &str, code: RDKafkaErrorCode) -> Error {
        let error = cluster.code_error(what, code);
        if !is_denial(code) {
            return error;
        }
        let (brokers, lacking) = (cluster.brokers(), self.lacking(cluster));
        let text = format!("kafka at {brokers}: {what}: {lacking}");
        Error::new(error.kind(), text).hint(self.command(cluster))
    }

    /// The error that follows from a failed call.
    pub(super) fn failed(&self, cluster: &Cluster, what: &str, error: KafkaError) -> Error {
        match code_of(&error).filter(|code| is_denial(*code)) {
            Some(code) => self.error(cluster, what, code).caused_by(error),
            None => cluster.error(what, error),
        }
    }

    /// The error of a topic that takes nothing of this principal, for the next session to go
    /// around.
    pub(super) fn whole_topic(&self, cluster: &Cluster, what: &str) -> Error {
        let code = RDKafkaErrorCode::TopicAuthorizationFailed;
        let error = self.error(cluster, what, code);
        let why = error.to_string();
        let topic = self.name.to_owned();
        error.with_refused(RefusedRecord { place: None, topic, whole_topic: true, why })
    }

    /// Who lacks what.
    pub(super) fn lacking(&self, cluster: &Cluster) -> String {
        let Right { operation, resource, name, .. } = self;
        format!("{} lacks {operation} on {resource} {name:?}", cluster.principal())
    }

    /// The command that gives it.
    pub(super) fn command(&self, cluster: &Cluster) -> String {
        let Right { operation, option, name, .. } = self;
        let name = if *option == "--cluster" { String::new() } else { format!(" {name}") };
        format!(
            "kafka-acls.sh --add --allow-principal {} --operation {operation} {option}{name}",
            cluster.principal()
        )
    }
}

/// The topic in the log's line about one that could not be made part of a transaction: the call
/// that fails for it does not say which (`rdkafka_txnmgr.c` of librdkafka 2.12).
pub(super) fn denied_topic(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("Failed to add partition \"")?;
    let (topic, rest) = rest.split_once('"')?;
    rest.ends_with("Topic authorization failed").then_some(topic)
}

/// Whether a code says that a right is missing.
pub(super) fn is_denial(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::TransactionalIdAuthorizationFailed
    )
}

#[cfg(test)]
mod tests {
    use super::denied_topic;

    #[test]
    fn only_a_topic_that_is_denied_is_taken_from_the_log() {
        let line = |why: &str| {
            format!("[thrd:main]: b:1/1: Failed to add partition \"a.b\" [0] to transaction: {why}")
        };

        let denied = line("Broker: Topic authorization failed");
        assert_eq!(denied_topic(&denied), Some("a.b"));
        // It stood beside one that was.
        assert_eq!(denied_topic(&line("Broker: Operation not attempted")), None);
        assert_eq!(denied_topic("Topic authorization failed"), None);
    }
}
