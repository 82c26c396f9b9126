//! The client's side of group membership: rebalances are queued here and answered by the intake's loop.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};

/// A client whose brokers are away tries them several times a second and says so each time. The log hears of it so often.
const AWAY_AGAIN_AFTER: Duration = Duration::from_secs(30);

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
    /// When the log was told last that brokers are away.
    told_away: Mutex<Option<Instant>>,
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
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => tracing::error!(target: "librdkafka", facility, "{text}"),
            RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", facility, "{text}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(target: "librdkafka", facility, "{text}");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{text}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let mut told_away = self.told_away.lock().unwrap_or_else(PoisonError::into_inner);
        match is_of_brokers_away(&error) && !is_due(&mut told_away, Instant::now()) {
            true => tracing::debug!(target: "librdkafka", %error, "{reason}"),
            false => tracing::warn!(target: "librdkafka", %error, "{reason}"),
        }
        *self.complaint.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }
}

/// Whether it says no more than that brokers cannot be reached, which passes by itself.
pub(crate) fn is_of_brokers_away(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure)
    )
}

/// Whether the log is to hear of it again, which is noted.
fn is_due(told: &mut Option<Instant>, now: Instant) -> bool {
    let is_due = told.is_none_or(|told| now.saturating_duration_since(told) >= AWAY_AGAIN_AFTER);
    if is_due {
        *told = Some(now);
    }
    is_due
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_that_stay_away_are_told_at_once_and_then_now_and_then() {
        let (mut told, start) = (None, Instant::now());

        let due = [0, 1, 29, 30, 31, 60].map(|second| {
            let now = start + Duration::from_secs(second);
            is_due(&mut told, now)
        });

        assert_eq!(due, [true, false, false, true, false, true]);
    }
}
