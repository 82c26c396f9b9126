//! Looks at a cluster from outside, for the preflight: reads and changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::types::RDKafkaErrorCode;

use super::Saved;
use super::checkpoint_topic;
use super::cluster::{ANSWER_TIMEOUT, Cluster, Context};
use super::create_topic::{Wanted, validate};
use super::partitions;
pub(crate) use super::producer::TRANSACTION_TIMEOUT;
use super::right::Right;
use crate::config::NewTopics;
use crate::error::{Error, Kind};

/// A name that nobody has, to ask whether a topic could be made.
const NO_TOPIC: &str = "tailrace.check.never-made";

/// A client that asks.
pub(crate) struct Inspector {
    cluster: Cluster,
    admin: Arc<AdminClient<Context>>,
}

/// A topic as its metadata tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TopicSight {
    pub(crate) partitions: usize,
    /// Of the partition that has the fewest.
    pub(crate) replicas: usize,
}

impl Inspector {
    pub(crate) fn connect(cluster: Cluster) -> Result<Self, Error> {
        let admin = cluster
            .config()
            .create_with_context(cluster.context())
            .map_err(|error| cluster.error("creating the client", error))?;
        Ok(Inspector { cluster, admin: Arc::new(admin) })
    }

    /// The ids of the brokers that are there.
    pub(crate) async fn brokers(&self) -> Result<Vec<i32>, Error> {
        let metadata = self.metadata(NO_TOPIC, |metadata| {
            metadata.brokers().iter().map(rdkafka::metadata::MetadataBroker::id).collect()
        });
        let mut brokers: Vec<i32> = metadata.await?;
        brokers.sort_unstable();
        Ok(brokers)
    }

    /// The topic, if it exists; `operation` is the right that shows it to the relay.
    pub(crate) async fn topic(
        &self,
        name: &str,
        operation: &'static str,
    ) -> Result<Option<TopicSight>, Error> {
        let topic = name.to_owned();
        let found = self.metadata(name, move |metadata| {
            let found = metadata.topics().iter().find(|found| found.name() == topic)?;
            match found.error().map(RDKafkaErrorCode::from) {
                Some(
                    RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic,
                ) => None,
                None | Some(RDKafkaErrorCode::LeaderNotAvailable) => {
                    let partitions = found.partitions();
                    let replicas =
                        partitions.iter().map(|partition| partition.replicas().len()).min();
                    Some(Ok(TopicSight {
                        partitions: partitions.len(),
                        replicas: replicas.unwrap_or_default(),
                    }))
                }
                Some(code) => Some(Err(code)),
            }
        });
        let right = Right::on_topic(operation, name);
        let refused =
            |code| right.error(&self.cluster, &format!("asking for topic {name:?}"), code);
        found.await?.transpose().map_err(refused)
    }

    /// The settings of a broker.
    pub(crate) async fn broker_settings(&self, id: i32) -> Result<BTreeMap<String, String>, Error> {
        let what = format!("asking for broker {id}");
        self.settings(ResourceSpecifier::Broker(id), &what, Right::to_see_brokers()).await
    }

    /// The settings of a topic.
    pub(crate) async fn topic_settings(
        &self,
        name: &str,
    ) -> Result<BTreeMap<String, String>, Error> {
        let what = format!("asking for topic {name:?}");
        let right = Right::on_topic("DescribeConfigs", name);
        self.settings(ResourceSpecifier::Topic(name), &what, right).await
    }

    /// Whether the brokers would make such a topic.
    pub(crate) async fn may_create(&self, new: &NewTopics) -> Result<(), Error> {
        let config: Vec<_> =
            new.configs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let wanted = Wanted {
            name: NO_TOPIC,
            partitions: new.partitions,
            replication_factor: new.replication_factor,
            config: &config,
        };
        validate(&self.cluster, &wanted).await
    }

    /// Whether the brokers would make the checkpoint topic.
    pub(crate) async fn may_create_checkpoint(
        &self,
        name: &str,
        replication_factor: i32,
    ) -> Result<(), Error> {
        validate(&self.cluster, &checkpoint_topic::wanted(name, replication_factor)).await
    }

    async fn settings(
        &self,
        resource: ResourceSpecifier<'_>,
        what: &str,
        right: Right<'_>,
    ) -> Result<BTreeMap<String, String>, Error> {
        let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
        let answers = self
            .admin
            .describe_configs([&resource], &options)
            .await
            .map_err(|error| self.cluster.error(what, error))?;
        let found = answers
            .into_iter()
            .next()
            .ok_or_else(|| Error::new(Kind::Unavailable, format!("{what}: no answer")))?
            .map_err(|code| right.error(&self.cluster, what, code))?;
        // The client keeps the brokers' error to itself; what may be seen has settings.
        if found.entries.is_empty() {
            return Err(right.error(
                &self.cluster,
                what,
                RDKafkaErrorCode::TopicAuthorizationFailed,
            ));
        }
        let pair = |entry: rdkafka::admin::ConfigEntry| Some((entry.name, entry.value?));
        Ok(found.entries.into_iter().filter_map(pair).collect())
    }

    async fn metadata<T: Send + 'static>(
        &self,
        topic: &str,
        read: impl FnOnce(&rdkafka::metadata::Metadata) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (admin, name) = (Arc::clone(&self.admin), topic.to_owned());
        let cluster = self.cluster.clone();
        let ask = move || cluster.metadata(admin.inner(), &name).map(|found| read(&found));
        tokio::task::spawn_blocking(ask)
            .await
            .expect("asking does not panic")
            .map_err(|error| self.cluster.error("asking for metadata", error))
    }
}

/// The topics that a relay has published to, as it has written them down.
pub(crate) fn known_topics(saved: &Saved) -> Vec<String> {
    saved.keys().filter_map(|key| key.strip_prefix(partitions::KEY)).map(str::to_owned).collect()
}
