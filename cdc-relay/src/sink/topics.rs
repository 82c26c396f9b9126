//! What a Kafka sink knows about topics: its checkpoint topic, and those that records go to.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaErrorCode;

use super::checkpoint_topic;
use super::client::Client;
use super::cluster::{ANSWER_TIMEOUT, Cluster};
use super::create_topic::{Wanted, create};
use super::partitions::{Partitions, TOPICS_MAX};
use super::producer::Producer;
use super::right::Right;
use super::topic_rules::TopicRules;
use super::{Obstacle, Saved};
use crate::checkpoint;
use crate::config::NewTopics;
use crate::error::{Error, Kind};
use crate::metrics::{PARTITION_CHANGES, SLOT};
use crate::publisher::unix_ms;
use crate::record::Record;

/// A topic of dead letters takes whatever a producer hands over, and keeps it until a person has
/// seen it.
const DEAD_LETTERS: [(&str, &str); 3] =
    [("cleanup.policy", "delete"), ("retention.ms", "-1"), ("max.message.bytes", "17000000")];

/// How long a topic that takes no records is not asked for again: a flood of messages for it is not
/// to hold up the others by a question each.
const CLOSED: Duration = Duration::from_secs(1);

/// How often the brokers are asked for the partitions of the topics in use, and for each topic how
/// much more seldom.
const LOOK_AFTER: Duration = Duration::from_secs(5);
const LOOK_AFTER_PER_TOPIC: Duration = Duration::from_millis(10);

/// The topics of a session.
#[derive(Debug)]
pub(super) struct Topics {
    cluster: Cluster,
    checkpoint_topic: String,
    new: NewTopics,
    partitions: Partitions,
    /// Of the topics that are known in this session.
    rules: HashMap<String, TopicRules>,
    /// Topics that take no records: since when it is known, and why.
    closed: HashMap<String, (Instant, String)>,
    looked: Instant,
    /// The relay's slot, which its metrics are named after.
    slot: String,
}

impl Topics {
    /// Makes the checkpoint topic where it is missing.
    pub(super) async fn connect(
        cluster: &Cluster,
        relay_id: &str,
        slot: &str,
        new: &NewTopics,
        producer: &Producer,
    ) -> Result<Self, Error> {
        let topics = Topics {
            slot: slot.to_owned(),
            looked: Instant::now(),
            cluster: cluster.clone(),
            checkpoint_topic: checkpoint::topic(relay_id),
            new: new.clone(),
            partitions: Partitions::default(),
            rules: HashMap::new(),
            closed: HashMap::new(),
        };
        if topics.partition_count(producer, &topics.checkpoint_topic).await?.is_none() {
            let replicas = new.replication_factor;
            checkpoint_topic::ensure(cluster, &topics.checkpoint_topic, replicas).await?;
            topics.appears(producer, &topics.checkpoint_topic).await?;
        }
        Ok(topics)
    }

    /// Waits until a producer is connected. `init_transactions` finds its coordinator at once then,
    /// and otherwise tries again only after half a second.
    ///
    /// A broker that does not answer is no obstacle here: another may lead in a moment.
    pub(super) async fn warm(&self, producer: &Producer) {
        let (cluster, topic) = (self.cluster.clone(), self.checkpoint_topic.clone());
        let ask = move |client: &Client| checkpoint_topic::watermarks(&cluster, &topic, client);
        match producer.run(ask).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) | Err(error) => tracing::debug!(%error, "not connected yet"),
        }
    }

    pub(super) fn checkpoint_topic(&self) -> &str {
        &self.checkpoint_topic
    }

    /// What is saved. To be called once every older producer of the relay is fenced.
    pub(super) async fn saved(&mut self, producer: &Producer) -> Result<Saved, Error> {
        let (cluster, topic) = (self.cluster.clone(), self.checkpoint_topic.clone());
        let read = move |client: &Client| checkpoint_topic::read(&cluster, &topic, client);
        let saved = producer.run(read).await??;
        self.partitions.restore(&saved)?;
        Ok(saved)
    }

    /// What the sink itself saves with the batch that is being sealed.
    pub(super) fn entries(&mut self) -> Vec<(String, Vec<u8>)> {
        self.partitions.due()
    }

    /// Whether a record's topic is there and takes it: inside a transaction an unknown topic would
    /// cost more time than the transaction has, and a refused record costs all of it.
    pub(super) fn admit(&mut self, record: &Record<'_>) -> Result<(), Obstacle> {
        let topic = record.topic();
        if let Some(rules) = self.rules.get(topic) {
            let fault = rules.fault(record, unix_ms_signed());
            return fault.map_or(Ok(()), |why| Err(Obstacle::Refused(why)));
        }
        match self.closed.get(topic) {
            Some((since, why)) if since.elapsed() < CLOSED => Err(Obstacle::Refused(why.clone())),
            _ => Err(Obstacle::Unprepared),
        }
    }

    /// Finds out about a record's topic, and makes it where that is allowed.
    pub(super) async fn prepare(
        &mut self,
        producer: &Producer,
        record: &Record<'_>,
    ) -> Result<(), Error> {
        let topic = record.topic();
        let count = match self.found_or_made(producer, record).await {
            Ok(Some(count)) => count,
            Ok(None) => {
                self.close(topic, format!("topic {topic:?} does not exist"));
                return Ok(());
            }
            // Others are not held up by a topic that is not for this principal, or that the brokers
            // will not have: its name may be anybody's choice.
            Err(error) if matches!(error.kind(), Kind::Permission | Kind::Rejected) => {
                self.close(topic, error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.closed.remove(topic);
        if self.rules.len() >= TOPICS_MAX {
            self.rules.clear();
        }
        self.rules.insert(topic.to_owned(), TopicRules::ask(&self.cluster, topic).await);
        self.learn(topic, count);
        Ok(())
    }

    /// Asks now and then whether somebody has changed the partitions of a topic in use.
    ///
    /// Each producer learns the counts by it and goes by them from then on. So all of a session's
    /// are asked at once, and when they have nothing under way: else the records of one key could
    /// go to one partition by one of them and to another by the other, for as long as their own
    /// times of asking differ.
    pub(super) async fn look(&mut self, producers: &[&Producer]) {
        let known = u32::try_from(self.rules.len()).unwrap_or(u32::MAX);
        if self.looked.elapsed() < LOOK_AFTER + LOOK_AFTER_PER_TOPIC * known {
            return;
        }
        for producer in producers {
            match producer.partition_counts().await {
                Ok(counts) => {
                    for (topic, count) in counts {
                        if self.rules.contains_key(&topic) {
                            self.learn(&topic, count);
                        }
                    }
                }
                Err(error) => tracing::debug!(%error, "partitions are asked for another time"),
            }
        }
        self.looked = Instant::now();
    }

    fn learn(&mut self, topic: &str, count: i32) {
        let Some(before) = self.partitions.learn(topic, count) else { return };
        metrics::counter!(PARTITION_CHANGES, SLOT => self.slot.clone()).increment(1);
        tracing::warn!(
            topic,
            before,
            now = count,
            "the number of partitions has changed: records of a key that were published before \
             may be in another partition, and are not in order with what follows"
        );
    }

    fn close(&mut self, topic: &str, why: String) {
        if self.closed.len() >= TOPICS_MAX {
            self.closed.clear();
        }
        self.closed.insert(topic.to_owned(), (Instant::now(), why));
    }

    async fn found_or_made(
        &self,
        producer: &Producer,
        record: &Record<'_>,
    ) -> Result<Option<i32>, Error> {
        let topic = record.topic();
        match self.partition_count(producer, topic).await? {
            Some(count) if count > 0 => Ok(Some(count)),
            Some(_) => self.appears(producer, topic).await.map(Some),
            None if self.new.create => {
                self.make(topic, record.is_dead_letter()).await?;
                self.appears(producer, topic).await.map(Some)
            }
            None => Ok(None),
        }
    }

    async fn make(&self, name: &str, is_dead_letter: bool) -> Result<(), Error> {
        let NewTopics { partitions, replication_factor, configs, .. } = &self.new;
        let configs = configs.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let configs: Vec<_> = configs.collect();
        let wanted = Wanted {
            name,
            partitions: if is_dead_letter { -1 } else { *partitions },
            replication_factor: *replication_factor,
            config: if is_dead_letter { &DEAD_LETTERS } else { &configs },
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
        let (cluster, name) = (self.cluster.clone(), topic.to_owned());
        let metadata = producer
            .run(move |client| cluster.metadata(client.client(), &name))
            .await?
            .map_err(|error| Right::on_topic("Write", topic).failed(&self.cluster, &what, error))?;
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
            // Who may write may see it too.
            Some(code) => Err(Right::on_topic("Write", topic).error(&self.cluster, &what, code)),
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

fn unix_ms_signed() -> i64 {
    i64::try_from(unix_ms()).unwrap_or(i64::MAX)
}
