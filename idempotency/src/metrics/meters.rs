//! What goes to the process' recorder, by name.

use std::time::{Duration, Instant, SystemTime};

use metrics::{Counter, Gauge, Histogram, Unit};

use super::Report;
use crate::circuit::BreakerState;
use crate::progress::Partition;

/// Label of every metric: the consumer's name.
pub const CONSUMER: &str = "consumer";
/// Label of the metrics of a partition: its topic.
pub const TOPIC: &str = "topic";
/// Label of the metrics of a partition: its number.
pub const PARTITION: &str = "partition";
/// Label of [`BREAKER_STATE`]: `postgres`, or the type of the messages that make the calls.
pub const BREAKER: &str = "breaker";

/// Counts messages whose effect was committed.
pub const PROCESSED: &str = "tailrace_consumer_processed_total";
/// Counts records whose effect was there already.
pub const DUPLICATES: &str = "tailrace_consumer_duplicates_total";
/// Counts records of types without a handler.
pub const SKIPPED: &str = "tailrace_consumer_skipped_total";
/// Counts transactions that were repeated at a transient fault.
pub const RETRIES: &str = "tailrace_consumer_retries_total";
/// Counts attempts of messages that failed by their own fault.
pub const FAILED_ATTEMPTS: &str = "tailrace_consumer_failed_attempts_total";
/// Counts messages that were parked.
pub const PARKED: &str = "tailrace_consumer_parked_total";
/// Counts messages that became dead letters.
pub const DEAD_LETTERED: &str = "tailrace_consumer_dead_lettered_total";
/// Counts messages that were too old or from the future.
pub const OUT_OF_HORIZON: &str = "tailrace_consumer_out_of_horizon_total";
/// Counts how often a partition had a newer owner.
pub const FENCED: &str = "tailrace_consumer_fenced_total";
/// Counts how often Postgres was found to be away.
pub const OUTAGES: &str = "tailrace_consumer_outages_total";
/// Messages of a transaction.
pub const BATCH_MESSAGES: &str = "tailrace_consumer_batch_messages";
/// How long a handler took, for one message or for a batch.
pub const HANDLER: &str = "tailrace_consumer_handler_seconds";
/// From the timestamp of a transaction's first record until it was committed.
pub const AGE: &str = "tailrace_consumer_age_seconds";
/// Offsets of a partition that are not applied yet.
pub const LAG: &str = "tailrace_consumer_lag_records";
/// Age of the oldest record of a partition that is at hand and not applied yet.
pub const LAG_SECONDS: &str = "tailrace_consumer_lag_seconds";
/// Keys of a partition that are parked.
pub const PARKED_KEYS: &str = "tailrace_consumer_parked_keys";
/// 0 while a breaker is closed, 1 while it is half open, 2 while it is open.
pub const BREAKER_STATE: &str = "tailrace_consumer_breaker_state";
/// Days after today for which claims have a partition; fewer than two are an alarm.
pub const DAYS_AHEAD: &str = "tailrace_consumer_claim_days_ahead";
/// For how long Kafka has not answered; 0 while it does.
pub const KAFKA_SILENT: &str = "tailrace_consumer_kafka_silent_seconds";
/// 1 while it is ready: see [`Health::faults`](crate::Health::faults).
pub const READY: &str = "tailrace_consumer_ready";

/// Bounds of the buckets of the metrics in seconds, for an exporter that wants to be told.
pub const SECONDS_BUCKETS: [f64; 15] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 30.0, 300.0];
/// Bounds of the buckets of [`BATCH_MESSAGES`].
pub const MESSAGES_BUCKETS: [f64; 9] =
    [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0];

type Read = fn(&Report) -> u64;

const COUNTERS: [(&str, Read, &str); 10] = [
    (PROCESSED, |report| report.applied, "Messages whose effect was committed"),
    (DUPLICATES, |report| report.duplicates, "Records whose effect was there already"),
    (SKIPPED, |report| report.skipped, "Records of types without a handler"),
    (RETRIES, |report| report.retried_batches, "Transactions repeated at a transient fault"),
    (FAILED_ATTEMPTS, |report| report.failed_attempts, "Attempts that failed by their own fault"),
    (PARKED, |report| report.parked, "Messages that were parked"),
    (DEAD_LETTERED, |report| report.dead_lettered, "Messages that became dead letters"),
    (OUT_OF_HORIZON, |report| report.out_of_horizon, "Messages too old or from the future"),
    (FENCED, |report| report.fenced, "How often a partition had a newer owner"),
    (OUTAGES, |report| report.outages, "How often Postgres was found to be away"),
];

const HISTOGRAMS: [(&str, Unit, &str); 3] = [
    (BATCH_MESSAGES, Unit::Count, "Messages of a transaction"),
    (HANDLER, Unit::Seconds, "How long a handler took, for one message or for a batch"),
    (AGE, Unit::Seconds, "From the timestamp of a transaction's first record to its commit"),
];

const GAUGES: [(&str, Unit, &str); 7] = [
    (LAG, Unit::Count, "Offsets of a partition that are not applied yet"),
    (LAG_SECONDS, Unit::Seconds, "Age of the oldest record at hand that is not applied yet"),
    (PARKED_KEYS, Unit::Count, "Keys of a partition that are parked"),
    (BREAKER_STATE, Unit::Count, "0 closed, 1 half open, 2 open"),
    (DAYS_AHEAD, Unit::Count, "Days after today for which claims have a partition"),
    (KAFKA_SILENT, Unit::Seconds, "For how long Kafka has not answered"),
    (READY, Unit::Count, "1 while the consumer is ready"),
];

/// Tells the process' recorder what each metric means. A consumer does it when it starts.
pub fn describe() {
    for (name, _, text) in COUNTERS {
        metrics::describe_counter!(name, Unit::Count, text);
    }
    for (name, unit, text) in HISTOGRAMS {
        metrics::describe_histogram!(name, unit, text);
    }
    for (name, unit, text) in GAUGES {
        metrics::describe_gauge!(name, unit, text);
    }
}

/// How a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Standing {
    pub(crate) lag: u64,
    pub(crate) lag_seconds: f64,
    pub(crate) parked_keys: usize,
}

/// Handles to one consumer's metrics, so that nothing is looked up while records are applied.
pub(crate) struct Meters {
    consumer: String,
    counters: Vec<(Counter, Read)>,
    batch_messages: Histogram,
    handler: Histogram,
    age: Histogram,
    days_ahead: Gauge,
    kafka_silent: Gauge,
    ready: Gauge,
}

impl Meters {
    /// Those of the recorder that the process has now.
    pub(crate) fn new(consumer: &str) -> Self {
        describe();
        let named = || consumer.to_owned();
        let counter = |name: &'static str| metrics::counter!(name, CONSUMER => named());
        let histogram = |name: &'static str| metrics::histogram!(name, CONSUMER => named());
        Self {
            consumer: named(),
            counters: COUNTERS.into_iter().map(|(name, read, _)| (counter(name), read)).collect(),
            batch_messages: histogram(BATCH_MESSAGES),
            handler: histogram(HANDLER),
            age: histogram(AGE),
            days_ahead: metrics::gauge!(DAYS_AHEAD, CONSUMER => named()),
            kafka_silent: metrics::gauge!(KAFKA_SILENT, CONSUMER => named()),
            ready: metrics::gauge!(READY, CONSUMER => named()),
        }
    }

    pub(crate) fn counted(&self, report: &Report, is_ready: bool) {
        for (counter, read) in &self.counters {
            counter.absolute(read(report));
        }
        self.ready.set(f64::from(u8::from(is_ready)));
    }

    pub(crate) fn committed(&self, messages: usize, written: Option<SystemTime>) {
        self.batch_messages.record(messages as f64);
        if let Some(age) = written.and_then(|written| written.elapsed().ok()) {
            self.age.record(age.as_secs_f64());
        }
    }

    pub(crate) fn handled(&self, took: Duration) {
        self.handler.record(took.as_secs_f64());
    }

    pub(crate) fn kafka(&self, silent_since: Option<Instant>) {
        let silent = silent_since.map(|since| since.elapsed()).unwrap_or_default();
        self.kafka_silent.set(silent.as_secs_f64());
    }

    pub(crate) fn days_ahead(&self, days: u16) {
        self.days_ahead.set(f64::from(days));
    }

    /// A partition that is not this process' any more stands at nothing, so that sums over processes are right.
    pub(crate) fn stands(&self, partition: &Partition, standing: Standing) {
        let gauge = |name: &'static str| {
            let (topic, number) = (partition.topic.to_string(), partition.number.to_string());
            metrics::gauge!(name, CONSUMER => self.consumer.clone(), TOPIC => topic, PARTITION => number)
        };
        gauge(LAG).set(standing.lag as f64);
        gauge(LAG_SECONDS).set(standing.lag_seconds);
        gauge(PARKED_KEYS).set(standing.parked_keys as f64);
    }

    pub(crate) fn breaker(&self, of: &str, state: BreakerState) {
        let state = match state {
            BreakerState::Closed => 0.0,
            BreakerState::HalfOpen => 1.0,
            BreakerState::Open => 2.0,
        };
        metrics::gauge!(BREAKER_STATE, CONSUMER => self.consumer.clone(), BREAKER => of.to_owned())
            .set(state);
    }
}
