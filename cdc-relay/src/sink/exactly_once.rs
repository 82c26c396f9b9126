//! Two transactional producers in turn: records and the checkpoint that covers them become visible
//! together.

use rdkafka::types::RDKafkaErrorCode;

use super::cluster::Cluster;
use super::producer::{Answer, Producer};
use super::topics::Topics;
use super::turns::{Turn, Turns, transactional_id};
use super::{Obstacle, Saved, Sink};
use crate::config::NewTopics;
use crate::error::Error;
use crate::record::Record;

/// The sink of the exactly-once mode.
#[derive(Debug)]
pub(super) struct ExactlyOnce {
    topics: Topics,
    a: Producer,
    b: Producer,
    turns: Turns,
    committing: Option<Committing>,
}

type Committing = Answer<Result<(), RDKafkaErrorCode>>;

impl ExactlyOnce {
    /// Connects, and makes the checkpoint topic where it is missing.
    pub(super) async fn connect(
        cluster: &Cluster,
        relay_id: &str,
        slot: &str,
        new_topics: &NewTopics,
    ) -> Result<Self, Error> {
        let a = Producer::transactional(cluster, &transactional_id(relay_id, Turn::A))?;
        let b = Producer::transactional(cluster, &transactional_id(relay_id, Turn::B))?;
        let topics = Topics::connect(cluster, relay_id, slot, new_topics, &a).await?;
        topics.warm(&a).await;
        topics.warm(&b).await;
        Ok(ExactlyOnce { topics, a, b, turns: Turns::new(), committing: None })
    }

    fn of(&self, turn: Turn) -> &Producer {
        match turn {
            Turn::A => &self.a,
            Turn::B => &self.b,
        }
    }

    fn filling(&mut self) -> &mut Producer {
        match self.turns.filling() {
            Turn::A => &mut self.a,
            Turn::B => &mut self.b,
        }
    }
}

impl Sink for ExactlyOnce {
    async fn take_over(&mut self) -> Result<Saved, Error> {
        // Both before the checkpoint is read: what an older relay has under way on either is then
        // certain. In this order, as the first commit will be on the first.
        for turn in Turn::BOTH {
            self.of(turn).take_over().await?;
        }
        self.topics.saved(&self.a).await
    }

    fn produce(&mut self, record: &Record<'_>) -> Result<(), Obstacle> {
        self.topics.admit(record)?;
        self.filling().send(record)
    }

    async fn overcome(&mut self, obstacle: Obstacle, record: &Record<'_>) -> Result<(), Error> {
        match obstacle {
            Obstacle::Full => self.of(self.turns.filling()).flush().await,
            Obstacle::Unprepared => self.topics.prepare(&self.a, record).await,
            Obstacle::Refused(_) | Obstacle::Broken => {
                Err(self.of(self.turns.filling()).failure().await)
            }
        }
    }

    async fn seal(&mut self, entries: &[(&str, &[u8])]) -> Result<(), Error> {
        let own = self.topics.entries();
        let own = own.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        let filling = self.of(self.turns.filling());
        for (key, value) in entries.iter().copied().chain(own) {
            filling.put(self.topics.checkpoint_topic(), key, value).await?;
        }
        // Every answer is in before the other producer sends its first record: else records of one
        // key could arrive in the wrong order.
        filling.flush().await?;
        self.confirmed().await?;
        self.topics.look(&[&self.a, &self.b]).await;
        let sealed = self.turns.seal().expect("the commit before is certain");
        self.committing = Some(self.of(sealed).commit()?);
        Ok(())
    }

    async fn confirmed(&mut self) -> Result<(), Error> {
        let Some(answer) = &mut self.committing else { return Ok(()) };
        let answer = answer.taken().await?;
        self.committing = None;
        match (answer, self.turns.committing()) {
            (Err(code), Some(turn)) => Err(self.of(turn).failed("committing", code).await),
            _ => {
                self.turns.committed();
                Ok(())
            }
        }
    }

    async fn abort(&mut self) -> Result<(), Error> {
        self.confirmed().await?;
        self.of(self.turns.filling()).abort().await
    }
}
