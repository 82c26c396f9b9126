//! What a Kafka sink knows about topics: its checkpoint topic, and those that records go to.

use std::time::Duration;

use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaErrorCode;

use super::checkpoint_topic;
use super::cluster::{ANSWER_TIMEOUT, Cluster};
use super::create_topic::{Wanted, create};
use super::partitions::Partitions;
use super::producer::Producer;
use super::{Obstacle, Saved};
use crate::checkpoint;
use crate::config::NewTopics;
use crate::error::{Error, Kind};
use crate::record::Record;

/// The topics of a session.
#[derive(Debug)]
pub(super) struct Topics {
    cluster: Cluster,
    checkpoint_topic: String,
    new: NewTopics,
    partitions: Partitions,
    /// Found missing when it was last asked for; asked for anew with each record to it.
    missing: Option<String>,
}

impl Topics {
    /// Makes the checkpoint topic where it is missing.
    pub(super) async fn connect(
        cluster: &Cluster,
        relay_id: &str,
        new: &NewTopics,
        producer: &Producer,
    ) -> Result<Self, Error> {
        let topics = Topics {
            cluster: cluster.clone(),
            checkpoint_topic: checkpoint::topic(relay_id),
            new: new.clone(),
            partitions: Partitions::default(),
            missing: None,
        };
        if topics.partition_count(producer, &topics.checkpoint_topic).await?.is_none() {
            let replicas = new.replication_factor;
            checkpoint_topic::ensure(cluster, &topics.checkpoint_topic, replicas).await?;
            topics.appears(producer, &topics.checkpoint_topic).await?;
        }
        Ok(topics)
    }

    pub(super) fn checkpoint_topic(&self) -> &str {
        &self.checkpoint_topic
    }

    /// What is saved. To be called once every older producer of the relay is fenced.
    pub(super) async fn saved(&mut self, producer: &Producer) -> Result<Saved, Error> {
        let (cluster, topic) = (self.cluster.clone(), self.checkpoint_topic.clone());
        let saved = producer.run(move |_| checkpoint_topic::read(&cluster, &topic)).await??;
        self.partitions.restore(&saved)?;
        Ok(saved)
    }

    /// What the sink itself saves with the batch that is being sealed.
    pub(super) fn entries(&mut self) -> Vec<(String, Vec<u8>)> {
        self.partitions.due()
    }

    /// Whether a record's topic is there: inside a transaction an unknown one would cost more time
    /// than the transaction has.
    pub(super) fn admit(&mut self, record: &Record<'_>) -> Result<(), Obstacle> {
        if self.partitions.knows(record.topic()) {
            return Ok(());
        }
        match self.missing.take() {
            Some(missing) if missing == record.topic() => {
                Err(Obstacle::Refused(format!("topic {missing:?} does not exist")))
            }
            _ => Err(Obstacle::Unprepared),
        }
    }

    /// Finds out about a topic, and makes it where that is allowed.
    pub(super) async fn prepare(&mut self, producer: &Producer, topic: &str) -> Result<(), Error> {
        let count = match self.partition_count(producer, topic).await? {
            Some(count) if count > 0 => count,
            Some(_) => self.appears(producer, topic).await?,
            None if self.new.create => {
                self.make(topic).await?;
                self.appears(producer, topic).await?
            }
            None => {
                self.missing = Some(topic.to_owned());
                return Ok(());
            }
        };
        if let Some(before) = self.partitions.learn(topic, count) {
            tracing::warn!(
                topic,
                before,
                now = count,
                "the number of partitions has changed: records of a key that were published \
                 before are in another partition, and are not in order with what follows"
            );
        }
        Ok(())
    }

    async fn make(&self, name: &str) -> Result<(), Error> {
        let NewTopics { partitions, replication_factor, configs, .. } = &self.new;
        let config = configs.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let config: Vec<_> = config.collect();
        let wanted = Wanted {
            name,
            partitions: *partitions,
            replication_factor: *replication_factor,
            config: &config,
        };
        create(&self.cluster, &wanted).await
    }

    /// How many partitions a topic has: `None` if it does not exist, zero while the brokers do not
    /// say.
    async fn partition_count(
        &self,
        producer: &Producer,
        topic: &str,
    ) -> Result<Option<i32>, Error> {
        let what = format!("asking for topic {topic:?}");
        let name = topic.to_owned();
        let metadata = producer
            .run(move |client| client.client().fetch_metadata(Some(&name), ANSWER_TIMEOUT))
            .await?
            .map_err(|error| self.cluster.error(&what, error))?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(None);
        };
        match found.error().map(RDKafkaErrorCode::from) {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                Ok(None)
            }
            // A topic whose partitions have no leader for the moment does exist.
            None | Some(RDKafkaErrorCode::LeaderNotAvailable) => {
                Ok(Some(i32::try_from(found.partitions().len()).unwrap_or(i32::MAX)))
            }
            Some(code) => Err(self.cluster.code_error(&what, code)),
        }
    }

    /// A topic that was just made reaches the brokers' metadata a moment later.
    async fn appears(&self, producer: &Producer, topic: &str) -> Result<i32, Error> {
        let appears = async {
            loop {
                match self.partition_count(producer, topic).await? {
                    Some(count) if count > 0 => return Ok(count),
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        tokio::time::timeout(ANSWER_TIMEOUT, appears).await.unwrap_or_else(|_| {
            let text = format!("topic {topic:?} exists, but the brokers do not say its partitions");
            Err(Error::new(Kind::Unavailable, text))
        })
    }
}
