//! Whether Kafka answers: of a consumer that hears nothing nobody sees whether there is anybody to hear.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, ClientContext};

use crate::Failure;
use crate::order::FACTS;

/// Between two questions.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Brokers that do not answer by then are away.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// What this client has to complain of, the consumers beside it have told the log.
struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "{reason}");
    }
}

impl ConsumerContext for Quiet {}

/// Since when no broker has answered; none while one does.
#[derive(Clone, Default)]
pub(super) struct Brokers(Arc<Mutex<Option<SystemTime>>>);

impl Brokers {
    /// Asks them again and again, as long as the program runs.
    pub(super) fn watch(addresses: &str) -> Result<Self, Failure> {
        let client: BaseConsumer<Quiet> =
            ClientConfig::new().set("bootstrap.servers", addresses).create_with_context(Quiet)?;
        let brokers = Brokers::default();
        let seen = brokers.clone();
        std::thread::spawn(move || {
            loop {
                let asked_at = SystemTime::now();
                let answers = client.fetch_metadata(Some(FACTS), ANSWER_MAX).is_ok();
                let mut since = seen.since();
                *since = if answers { None } else { since.or(Some(asked_at)) };
                drop(since);
                std::thread::sleep(ASK_EVERY);
            }
        });
        Ok(brokers)
    }

    /// The same in milliseconds since 1970, for the page.
    pub(super) fn away_since_ms(&self) -> Option<u64> {
        let since = self.since().and_then(|since| since.duration_since(UNIX_EPOCH).ok())?;
        u64::try_from(since.as_millis()).ok()
    }

    fn since(&self) -> MutexGuard<'_, Option<SystemTime>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
