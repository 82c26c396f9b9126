//! What a topic takes, asked of the brokers before the first record goes to it.
//!
//! A record that the brokers refuse costs its whole Kafka transaction, and finding it costs
//! several sessions; so what can be known beforehand is.

use rdkafka::admin::{AdminOptions, ConfigResource, ResourceSpecifier};

use super::admin::Admin;
use super::cluster::{ANSWER_TIMEOUT, Cluster};
use crate::record::Record;

/// The settings of a topic that decide about a record. What is not known is not checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TopicRules {
    /// `max.message.bytes`, for a batch as it is sent.
    pub(super) bytes_max: Option<usize>,
    /// Whether records need a key (`cleanup.policy=compact`).
    pub(super) compacted: bool,
    /// How much older than the broker's clock a record may be (`message.timestamp.before.max.ms`).
    pub(super) older_ms_max: Option<i64>,
    /// How much newer (`message.timestamp.after.max.ms`).
    pub(super) newer_ms_max: Option<i64>,
}

impl TopicRules {
    /// Asks for the rules of a topic.
    ///
    /// The right to ask (DescribeConfigs) is not demanded: without an answer nothing is checked, and
    /// the brokers decide.
    pub(super) async fn ask(cluster: &Cluster, topic: &str) -> Self {
        let admin = match Admin::new(cluster) {
            Ok(admin) => admin,
            Err(error) => {
                let error = cluster.error("creating the client", error);
                tracing::debug!(topic, %error, "no client to ask for a topic's settings");
                return TopicRules::default();
            }
        };
        let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
        let resource = ResourceSpecifier::Topic(topic);
        match admin.describe_configs([&resource], &options).await.map(|mut answers| answers.pop()) {
            Ok(Some(Ok(found))) => TopicRules::of(&found, cluster.compresses()),
            unknown => {
                tracing::debug!(topic, ?unknown, "a topic's settings can not be asked for");
                TopicRules::default()
            }
        }
    }

    fn of(found: &ConfigResource, compresses: bool) -> Self {
        let text = |name: &str| found.get(name).and_then(|entry| entry.value.as_deref());
        let number = |name: &str| text(name).and_then(|value| value.parse().ok());
        // Brokers before 3.6 have one bound for both.
        let either = number("message.timestamp.difference.max.ms");
        // With the broker's own time in place of the record's there is nothing to check.
        let own_time = text("message.timestamp.type") != Some("LogAppendTime");
        TopicRules {
            // How long a compressed batch becomes only the client knows.
            bytes_max: text("max.message.bytes")
                .filter(|_| !compresses)
                .and_then(|value| value.parse().ok()),
            compacted: text("cleanup.policy").is_some_and(|policy| policy.contains("compact")),
            older_ms_max: number("message.timestamp.before.max.ms").or(either).filter(|_| own_time),
            newer_ms_max: number("message.timestamp.after.max.ms").or(either).filter(|_| own_time),
        }
    }

    /// Why the topic would not take a record, if it would not.
    pub(super) fn fault(&self, record: &Record<'_>, now_ms: i64) -> Option<String> {
        let bytes = record.size();
        // Less than what it will take in a batch; what is just below the bound is the brokers' affair.
        if let Some(max) = self.bytes_max
            && bytes > max
        {
            return Some(format!(
                "it has {bytes} bytes, more than the topic's max.message.bytes of {max}"
            ));
        }
        if self.compacted && record.key().is_none() {
            return Some("it has no key, and its topic is compacted".to_owned());
        }
        let age = now_ms.saturating_sub(record.timestamp_ms());
        if let Some(max) = self.older_ms_max
            && age > max
        {
            return Some(format!(
                "it is {age} ms old, more than the topic's message.timestamp.before.max.ms of {max}"
            ));
        }
        if let Some(max) = self.newer_ms_max
            && age.saturating_neg() > max
        {
            let early = age.saturating_neg();
            return Some(format!(
                "its time is {early} ms in the future, more than the topic's \
                 message.timestamp.after.max.ms of {max}"
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use tailrace_outbox::Message;
    use tailrace_outbox::frame::{Frame, encode};

    use super::TopicRules;
    use crate::record::Record;

    fn fault(rules: &TopicRules, key: Option<&str>, time_ms: i64) -> Option<String> {
        let builder = Message::builder("t", "t.v1").source("/t").payload("1234567890");
        let builder = builder.time_micros(time_ms * 1_000);
        let builder = match key {
            Some(key) => builder.key(key),
            None => builder,
        };
        let message = builder.build().unwrap();
        let frame = encode(&message);
        rules.fault(&Record::new(Frame::decode(&frame).unwrap(), "s"), 10_000)
    }

    #[test]
    fn what_a_topic_would_not_take_is_known_before_it_is_sent() {
        let none = TopicRules::default();
        let small = TopicRules { bytes_max: Some(9), ..none.clone() };
        let compacted = TopicRules { compacted: true, ..none.clone() };
        let timed = TopicRules { older_ms_max: Some(100), newer_ms_max: Some(50), ..none.clone() };

        assert_eq!(fault(&none, None, i64::MAX / 1_000), None);
        assert!(fault(&small, None, 0).unwrap().contains("max.message.bytes of 9"));
        assert!(fault(&compacted, None, 0).unwrap().contains("compacted"));
        assert_eq!(fault(&compacted, Some("k"), 0), None);
        for (time_ms, wrong) in [(9_900, false), (9_899, true), (10_050, false), (10_051, true)] {
            assert_eq!(fault(&timed, None, time_ms).is_some(), wrong, "{time_ms}");
        }
    }
}
