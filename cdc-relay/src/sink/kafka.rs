//! Kafka, in the delivery mode of choice.

use super::at_least_once::AtLeastOnce;
use super::checkpoint_topic;
use super::cluster::Cluster;
use super::exactly_once::ExactlyOnce;
use super::{Connect, Obstacle, Saved, Sink};
use crate::checkpoint;
use crate::config::{Config, Delivery, NewTopics};
use crate::error::Error;
use crate::record::Record;

/// Connects to the brokers of a [`Config`].
#[derive(Clone, Debug)]
pub struct Kafka {
    cluster: Cluster,
    slot: String,
    delivery: Delivery,
    new_topics: NewTopics,
}

impl Kafka {
    /// The brokers, the mode and the Kafka settings of these settings.
    pub fn of(config: &Config) -> Self {
        Kafka {
            cluster: config.cluster(),
            slot: config.slot_name().to_owned(),
            delivery: config.delivery_mode(),
            new_topics: config.new_topics().clone(),
        }
    }
}

impl Connect for Kafka {
    type Sink = KafkaSink;

    async fn connect(&self, relay_id: &str) -> Result<KafkaSink, Error> {
        let Kafka { cluster, slot, delivery, new_topics } = self;
        Ok(KafkaSink(match delivery {
            Delivery::ExactlyOnce => Mode::ExactlyOnce(Box::new(
                ExactlyOnce::connect(cluster, relay_id, slot, new_topics).await?,
            )),
            Delivery::AtLeastOnce => Mode::AtLeastOnce(Box::new(
                AtLeastOnce::connect(cluster, relay_id, slot, new_topics).await?,
            )),
        }))
    }

    async fn saved(&self, relay_id: &str) -> Result<Option<Saved>, Error> {
        let (cluster, topic) = (self.cluster.clone(), checkpoint::topic(relay_id));
        let peek = move || checkpoint_topic::peek(&cluster, &topic);
        tokio::task::spawn_blocking(peek).await.expect("reading does not panic")
    }
}

/// A session's producers.
#[derive(Debug)]
pub struct KafkaSink(Mode);

#[derive(Debug)]
enum Mode {
    ExactlyOnce(Box<ExactlyOnce>),
    AtLeastOnce(Box<AtLeastOnce>),
}

impl Sink for KafkaSink {
    async fn take_over(&mut self) -> Result<Saved, Error> {
        match &mut self.0 {
            Mode::ExactlyOnce(sink) => sink.take_over().await,
            Mode::AtLeastOnce(sink) => sink.take_over().await,
        }
    }

    fn produce(&mut self, record: &Record<'_>) -> Result<(), Obstacle> {
        match &mut self.0 {
            Mode::ExactlyOnce(sink) => sink.produce(record),
            Mode::AtLeastOnce(sink) => sink.produce(record),
        }
    }

    async fn overcome(&mut self, obstacle: Obstacle, record: &Record<'_>) -> Result<(), Error> {
        match &mut self.0 {
            Mode::ExactlyOnce(sink) => sink.overcome(obstacle, record).await,
            Mode::AtLeastOnce(sink) => sink.overcome(obstacle, record).await,
        }
    }

    async fn seal(&mut self, entries: &[(&str, &[u8])]) -> Result<(), Error> {
        match &mut self.0 {
            Mode::ExactlyOnce(sink) => sink.seal(entries).await,
            Mode::AtLeastOnce(sink) => sink.seal(entries).await,
        }
    }

    async fn confirmed(&mut self) -> Result<(), Error> {
        match &mut self.0 {
            Mode::ExactlyOnce(sink) => sink.confirmed().await,
            Mode::AtLeastOnce(sink) => sink.confirmed().await,
        }
    }

    async fn abort(&mut self) -> Result<(), Error> {
        match &mut self.0 {
            Mode::ExactlyOnce(sink) => sink.abort().await,
            Mode::AtLeastOnce(sink) => sink.abort().await,
        }
    }
}
