//! The topics of the suite: made for a run, filled, and deleted.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use uuid::Uuid;

use super::Sample;
use crate::error::BoxError;

/// A broker answers within this time.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// So that several keys share a partition and several partitions have keys.
pub(super) const PARTITIONS: i32 = 2;

pub(super) struct Topics {
    config: ClientConfig,
    admin: AdminClient<DefaultClientContext>,
}

impl Topics {
    pub(super) fn new(brokers: &str) -> Result<Self, BoxError> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("partitioner", "murmur2_random");
        let admin = config.create()?;
        Ok(Self { config, admin })
    }

    pub(super) async fn make(&self) -> Result<String, BoxError> {
        let name = format!("conformance-{}", Uuid::now_v7().simple());
        let topic = NewTopic::new(&name, PARTITIONS, TopicReplication::Fixed(1));
        for made in self.admin.create_topics([&topic], &options()).await? {
            made.map_err(|(_, code)| format!("the topic {name} cannot be made: {code}"))?;
        }
        Ok(name)
    }

    /// Whatever stays behind is a topic that nobody reads.
    pub(super) async fn drop(&self, topic: &str) {
        if let Err(error) = self.admin.delete_topics(&[topic], &options()).await {
            tracing::warn!(%error, topic, "a topic of the suite was not deleted");
        }
    }

    /// Writes the samples in this order.
    pub(super) async fn fill(&self, topic: &str, samples: &[&Sample]) -> Result<(), BoxError> {
        let producer: BaseProducer = self.config.create()?;
        for sample in samples {
            let id = sample.id.to_string();
            let ours = [("ce_id", &*id), ("ce_type", &*sample.message_type)];
            let theirs = sample.headers.iter().map(|(name, value)| (&**name, &**value));
            let headers =
                ours.into_iter().chain(theirs).fold(OwnedHeaders::new(), |all, (key, value)| {
                    all.insert(Header { key, value: Some(value) })
                });
            let record =
                BaseRecord::to(topic).key(&sample.key).payload(&sample.payload).headers(headers);
            producer.send(record).map_err(|(error, _)| error)?;
        }
        // It blocks.
        let flushed = tokio::task::spawn_blocking(move || producer.flush(ANSWER_MAX));
        Ok(flushed.await??)
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(ANSWER_MAX))
}
