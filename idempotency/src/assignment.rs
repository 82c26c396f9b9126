//! The client's side of group membership: rebalances are queued here and answered by the intake's loop.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;

use crate::position::Position;
use crate::repeated::Repeated;

/// What the group's coordinator wants; the client waits for the answer.
#[derive(Debug)]
pub(crate) enum Rebalance {
    Assigned(TopicPartitionList),
    Revoked(TopicPartitionList),
}

/// The callbacks of the Kafka client.
///
/// They run on the intake's thread inside `poll`. A rebalance is only noted there, so that the one loop acts
/// on it with everything it owns; the default of the client library would ignore errors of the assignment.
#[derive(Debug, Default)]
pub(crate) struct Group {
    rebalances: Mutex<VecDeque<Rebalance>>,
    complaint: Mutex<Option<String>>,
    repeated: Repeated,
    is_classic: bool,
    closing: AtomicBool,
    /// Rebalances since then.
    answered: AtomicUsize,
}

impl Group {
    /// Of a client that joins by the classic protocol, or by the newer one.
    pub(crate) fn new(is_classic: bool) -> Self {
        Self { is_classic, ..Self::default() }
    }

    pub(crate) fn is_classic(&self) -> bool {
        self.is_classic
    }

    pub(crate) fn next_rebalance(&self) -> Option<Rebalance> {
        self.rebalances.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// The client's last error in its own words, which names the partition where its code does not.
    pub(crate) fn complaint(&self) -> Option<String> {
        self.complaint.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Tells of an error of one partition that the consumer survives, such as a fetch that failed: it comes with each
    /// attempt.
    pub(crate) fn survived(&self, error: &KafkaError, reason: Option<&str>, at: &Position) {
        let about = format!("{error} {} {}", at.topic, at.partition);
        if let Some(repeated) = self.repeated.say(&about, Instant::now()) {
            let reason = reason.unwrap_or_default();
            tracing::warn!(
                %error, topic = %at.topic, partition = at.partition, repeated, "kafka: {reason}"
            );
        }
    }

    /// From now on nobody looks at the queue: rebalances are answered on the spot.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// How many were answered on the spot.
    pub(crate) fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Answers a rebalance without looking at it.
    pub(crate) fn answer(&self, client: &BaseConsumer<Self>, rebalance: &Rebalance) {
        let answered = match rebalance {
            Rebalance::Assigned(_) => client.incremental_assign(&TopicPartitionList::new()),
            Rebalance::Revoked(list) => client.incremental_unassign(list),
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "a rebalance during the shutdown was not answered");
        }
        self.answered.fetch_add(1, Ordering::Relaxed);
    }
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        let repeated = || {
            // Ports, times and counts differ each time.
            let about: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
            self.repeated.say(&about, Instant::now())
        };
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => {
                if let Some(repeated) = repeated() {
                    tracing::error!(target: "librdkafka", facility, repeated, "{text}");
                }
            }
            RDKafkaLogLevel::Warning => {
                if let Some(repeated) = repeated() {
                    tracing::warn!(target: "librdkafka", facility, repeated, "{text}");
                }
            }
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(target: "librdkafka", facility, "{text}");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{text}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if let Some(repeated) = self.repeated.say(&error.to_string(), Instant::now()) {
            tracing::warn!(target: "librdkafka", %error, repeated, "{reason}");
        }
        *self.complaint.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }
}

impl ConsumerContext for Group {
    fn rebalance(
        &self,
        client: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let rebalance = match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                Rebalance::Assigned(partitions.clone())
            }
            _ => Rebalance::Revoked(partitions.clone()),
        };
        if self.closing.load(Ordering::Relaxed) {
            return self.answer(client, &rebalance);
        }
        self.rebalances.lock().unwrap_or_else(PoisonError::into_inner).push_back(rebalance);
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!(%error, "kafka did not take the committed offsets; they are only a hint");
        }
    }
}
