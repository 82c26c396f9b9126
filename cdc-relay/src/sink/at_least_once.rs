//! An idempotent producer for the records, and a transactional one for the checkpoint alone.
//!
//! A record is visible to every reader as soon as it arrives. The checkpoint follows once all
//! records that it covers have been acknowledged; after a crash what came after it is published
//! again. The checkpoint keeps its transaction, because that is what fences a relay that has been
//! followed by another: it can still double records, but never set the checkpoint back.

use rdkafka::types::RDKafkaErrorCode;

use super::cluster::Cluster;
use super::producer::{Answer, Producer};
use super::topics::Topics;
use super::turns::{Turn, transactional_id};
use super::{Obstacle, Saved, Sink};
use crate::config::NewTopics;
use crate::error::Error;
use crate::record::Record;

/// The sink of the at-least-once mode.
#[derive(Debug)]
pub(super) struct AtLeastOnce {
    topics: Topics,
    records: Producer,
    checkpoint: Producer,
    /// The other ids of the exactly-once mode, to fence a relay that ran in it.
    others: Vec<Producer>,
    committing: Option<Answer<Result<(), RDKafkaErrorCode>>>,
}

impl AtLeastOnce {
    /// Connects, and makes the checkpoint topic where it is missing.
    pub(super) async fn connect(
        cluster: &Cluster,
        relay_id: &str,
        slot: &str,
        new_topics: &NewTopics,
    ) -> Result<Self, Error> {
        let checkpoint = Producer::transactional(cluster, &transactional_id(relay_id, Turn::A))?;
        let others = [Turn::B, Turn::C].map(|turn| transactional_id(relay_id, turn));
        let others = others.iter().map(|id| Producer::transactional(cluster, id));
        let others = others.collect::<Result<Vec<_>, _>>()?;
        let records = Producer::idempotent(cluster)?;
        let topics = Topics::connect(cluster, relay_id, slot, new_topics, &checkpoint).await?;
        topics.warm(&checkpoint).await;
        for other in &others {
            topics.warm(other).await;
        }
        Ok(AtLeastOnce { topics, records, checkpoint, others, committing: None })
    }
}

impl Sink for AtLeastOnce {
    async fn take_over(&mut self) -> Result<Saved, Error> {
        self.checkpoint.take_over().await?;
        for other in std::mem::take(&mut self.others) {
            other.take_over().await?;
        }
        self.topics.saved(&self.checkpoint).await
    }

    fn produce(&mut self, record: &Record<'_>) -> Result<(), Obstacle> {
        self.topics.admit(record)?;
        self.records.send(record)
    }

    async fn overcome(&mut self, obstacle: Obstacle, record: &Record<'_>) -> Result<(), Error> {
        match obstacle {
            Obstacle::Full => self.records.flush().await,
            Obstacle::Unprepared => self.topics.prepare(&self.records, record).await,
            Obstacle::Refused(_) | Obstacle::Broken => Err(self.records.failure().await),
        }
    }

    async fn seal(&mut self, entries: &[(&str, &[u8])]) -> Result<(), Error> {
        self.records.flush().await?;
        // An answer may be an error, and then the checkpoint would cover what is not there.
        if let Some(error) = self.records.undelivered() {
            return Err(error);
        }
        self.confirmed().await?;
        self.topics.look(&[&self.records]).await;
        let own = self.topics.entries();
        let own = own.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        for (key, value) in entries.iter().copied().chain(own) {
            self.checkpoint.put(self.topics.checkpoint_topic(), key, value).await?;
        }
        self.committing = Some(self.checkpoint.commit()?);
        Ok(())
    }

    async fn confirmed(&mut self) -> Result<(), Error> {
        let Some(answer) = &mut self.committing else { return Ok(()) };
        let answer = answer.taken().await?;
        self.committing = None;
        match answer {
            Ok(()) => Ok(()),
            Err(code) => Err(self.checkpoint.failed("committing", code).await),
        }
    }

    async fn abort(&mut self) -> Result<(), Error> {
        self.confirmed().await?;
        self.checkpoint.abort().await
    }
}
