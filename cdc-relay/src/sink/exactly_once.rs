//! Transactional producers in turn: records and the checkpoint that covers them become visible
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
    producers: [Producer; Turn::ALL.len()],
    turns: Turns,
    committing: Option<Committing>,
    /// Why the commit that was waited for last has failed.
    failed: Option<RDKafkaErrorCode>,
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
        let producer = |turn| Producer::transactional(cluster, &transactional_id(relay_id, turn));
        let [a, b, c] = Turn::ALL.map(producer);
        let producers = [a?, b?, c?];
        let [first, ..] = &producers;
        let topics = Topics::connect(cluster, relay_id, slot, new_topics, first).await?;
        for producer in &producers {
            topics.warm(producer).await;
        }
        let turns = Turns::new();
        Ok(ExactlyOnce { topics, producers, turns, committing: None, failed: None })
    }

    fn of(&self, turn: Turn) -> &Producer {
        let [a, b, c] = &self.producers;
        match turn {
            Turn::A => a,
            Turn::B => b,
            Turn::C => c,
        }
    }

    fn filling(&mut self) -> &mut Producer {
        let [a, b, c] = &mut self.producers;
        match self.turns.filling() {
            Turn::A => a,
            Turn::B => b,
            Turn::C => c,
        }
    }
}

impl Sink for ExactlyOnce {
    async fn take_over(&mut self) -> Result<Saved, Error> {
        // All before the checkpoint is read: what an older relay has under way on any is then
        // certain. In this order, as the first commit will be on the first.
        for turn in Turn::ALL {
            self.of(turn).take_over().await?;
        }
        let [first, ..] = &self.producers;
        self.topics.saved(first).await
    }

    fn produce(&mut self, record: &Record<'_>) -> Result<(), Obstacle> {
        self.topics.admit(record)?;
        self.filling().send(record)
    }

    async fn overcome(&mut self, obstacle: Obstacle, record: &Record<'_>) -> Result<(), Error> {
        match obstacle {
            Obstacle::Full => self.of(self.turns.filling()).flush().await,
            Obstacle::Unprepared => {
                let [first, ..] = &self.producers;
                self.topics.prepare(first, record).await
            }
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
        // Every answer is in before the next producer sends its first record: else records of one
        // key could arrive in the wrong order.
        filling.flush().await?;
        self.confirmed().await?;
        self.topics.look(&self.producers.each_ref()).await;
        let sealed = self.turns.seal().expect("the commit before is certain");
        self.committing = Some(self.of(sealed).commit()?);
        Ok(())
    }

    async fn confirmed(&mut self) -> Result<(), Error> {
        if let Some(answer) = &mut self.committing {
            let answer = answer.taken().await?;
            self.committing = None;
            match answer {
                Ok(()) => self.turns.committed(),
                // Kept, as whoever waits may leave while the reason is asked for, and come again.
                Err(code) => self.failed = Some(code),
            }
        }
        match (self.failed, self.turns.committing()) {
            (Some(code), Some(turn)) => Err(self.of(turn).failed("committing", code).await),
            _ => Ok(()),
        }
    }

    async fn abort(&mut self) -> Result<(), Error> {
        self.confirmed().await?;
        self.of(self.turns.filling()).abort().await
    }
}
