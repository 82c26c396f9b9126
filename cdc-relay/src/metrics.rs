//! The relay's metrics, by name, through the facade of the crate `metrics`.
//!
//! They go to whatever recorder the process has installed before [`Relay::run`](crate::Relay::run);
//! without one they cost next to nothing. The sidecar installs one for Prometheus. All carry the
//! label [`SLOT`]. They are updated per batch, or once a second.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Unit};

use crate::error::Kind;

/// Label of every metric: the relay's replication slot.
pub const SLOT: &str = "slot";
/// Label of [`SESSION_ERRORS`]: the error's kind, in snake case.
pub const KIND: &str = "kind";
/// Label of [`RESTARTS`]: what stood still, `source` or `kafka`.
pub const CAUSE: &str = "cause";

/// Counts messages that are durable in Kafka, dead letters among them.
pub const MESSAGES: &str = "cdc_relay_messages_total";
/// Counts the bytes of their records.
pub const MESSAGE_BYTES: &str = "cdc_relay_message_bytes_total";
/// Counts messages that could not be published and became dead letters.
pub const DEAD_LETTERS: &str = "cdc_relay_dead_letters_total";
/// Counts dead letters without their payload, which was longer than a record may be.
pub const DEAD_LETTERS_CUT: &str = "cdc_relay_dead_letters_cut_total";
/// Counts messages that were ignored: outside any transaction, or where rows alone are published.
pub const IGNORED: &str = "cdc_relay_ignored_messages_total";
/// Counts changes of the number of partitions of a topic that the relay publishes to.
pub const PARTITION_CHANGES: &str = "cdc_relay_partition_changes_total";
/// Counts sessions that could keep no more of transactions in progress.
pub const SPOOL_FULL: &str = "cdc_relay_spool_full_total";
/// 1 while large transactions are received in progress.
pub const STREAMING: &str = "cdc_relay_streaming";
/// Bytes of transactions in progress that are kept in memory.
pub const STREAM_MEMORY: &str = "cdc_relay_stream_memory_bytes";
/// Bytes of transactions in progress that are kept in files.
pub const SPOOL_BYTES: &str = "cdc_relay_spool_bytes";
/// Counts batches with messages that are durable in Kafka.
pub const BATCHES: &str = "cdc_relay_batches_total";
/// Counts how often this relay came to lead.
pub const SESSIONS: &str = "cdc_relay_sessions_total";
/// Counts sessions, or attempts at one, that ended with an error.
pub const SESSION_ERRORS: &str = "cdc_relay_session_errors_total";
/// Counts sessions that the watchdog ended.
pub const RESTARTS: &str = "cdc_relay_watchdog_restarts_total";
/// From the seal of a batch until Kafka has committed it.
pub const COMMIT: &str = "cdc_relay_kafka_commit_seconds";
/// From the commit in Postgres of a batch's oldest message until its commit in Kafka.
pub const DELIVERY: &str = "cdc_relay_delivery_seconds";
/// From the writing of a probe until a checkpoint covered it.
pub const PROBE: &str = "cdc_relay_probe_seconds";
/// Messages of a batch.
pub const BATCH_MESSAGES: &str = "cdc_relay_batch_messages";
/// 1 while this relay leads.
pub const LEADING: &str = "cdc_relay_leading";
/// 1 while it is ready, as `/readyz` says.
pub const READY: &str = "cdc_relay_ready";
/// 1 while it is paused.
pub const PAUSED: &str = "cdc_relay_paused";
/// Bytes of the log between the server's end and what is flushed to the slot.
pub const LAG_BYTES: &str = "cdc_relay_lag_bytes";
/// Age of the oldest message that was received and is not durable in Kafka.
pub const LAG: &str = "cdc_relay_lag_seconds";
/// 1 while the source answers on a connection of its own.
pub const SOURCE_UP: &str = "cdc_relay_source_up";
/// Bytes of the log that the slot keeps on the server's disk.
pub const SLOT_RETAINED: &str = "cdc_relay_slot_retained_bytes";
/// Bytes that can still be written before the slot is lost; absent where there is no limit.
pub const SLOT_SAFE: &str = "cdc_relay_slot_safe_bytes";
/// How long nobody has read from the slot; 0 while somebody does.
pub const SLOT_INACTIVE: &str = "cdc_relay_slot_inactive_seconds";
/// 1 when the slot is lost: it can not be read any more.
pub const SLOT_LOST: &str = "cdc_relay_slot_lost";
/// 1 when the slot is in danger of being lost.
pub const SLOT_WARNING: &str = "cdc_relay_slot_warning";

/// Bounds of the buckets of the metrics in seconds, for an exporter that wants to be told.
pub const SECONDS_BUCKETS: [f64; 15] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
/// Bounds of the buckets of [`BATCH_MESSAGES`].
pub const MESSAGES_BUCKETS: [f64; 9] =
    [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0];

const COUNTERS: [(&str, Unit, &str); 11] = [
    (MESSAGES, Unit::Count, "Messages durable in Kafka, dead letters among them"),
    (MESSAGE_BYTES, Unit::Bytes, "Bytes of records durable in Kafka"),
    (DEAD_LETTERS, Unit::Count, "Messages that could not be published and became dead letters"),
    (DEAD_LETTERS_CUT, Unit::Count, "Dead letters without their payload, which was too long"),
    (BATCHES, Unit::Count, "Batches with messages that are durable in Kafka"),
    (IGNORED, Unit::Count, "Messages outside any transaction, or where rows alone are published"),
    (PARTITION_CHANGES, Unit::Count, "Changes of the number of partitions of a topic in use"),
    (SPOOL_FULL, Unit::Count, "Sessions that could keep no more of transactions in progress"),
    (SESSIONS, Unit::Count, "How often this relay came to lead"),
    (SESSION_ERRORS, Unit::Count, "Sessions, or attempts at one, that ended with an error"),
    (RESTARTS, Unit::Count, "Sessions that the watchdog ended"),
];

const HISTOGRAMS: [(&str, Unit, &str); 4] = [
    (COMMIT, Unit::Seconds, "From the seal of a batch until Kafka has committed it"),
    (DELIVERY, Unit::Seconds, "From the commit in Postgres to that in Kafka, oldest of a batch"),
    (PROBE, Unit::Seconds, "From the writing of a probe until a checkpoint covered it"),
    (BATCH_MESSAGES, Unit::Count, "Messages of a batch"),
];

const GAUGES: [(&str, Unit, &str); 14] = [
    (LEADING, Unit::Count, "1 while this relay leads"),
    (READY, Unit::Count, "1 while it is ready, as /readyz says"),
    (PAUSED, Unit::Count, "1 while it is paused"),
    (STREAMING, Unit::Count, "1 while large transactions are received in progress"),
    (STREAM_MEMORY, Unit::Bytes, "Transactions in progress that are kept in memory"),
    (SPOOL_BYTES, Unit::Bytes, "Transactions in progress that are kept in files"),
    (LAG_BYTES, Unit::Bytes, "Log between the server's end and what is flushed to the slot"),
    (LAG, Unit::Seconds, "Age of the oldest message that was received and is not in Kafka"),
    (SOURCE_UP, Unit::Count, "1 while the source answers on a connection of its own"),
    (SLOT_RETAINED, Unit::Bytes, "Log that the slot keeps on the server's disk"),
    (SLOT_SAFE, Unit::Bytes, "Log that can still be written before the slot is lost"),
    (SLOT_INACTIVE, Unit::Seconds, "How long nobody has read from the slot"),
    (SLOT_LOST, Unit::Count, "1 when the slot can not be read any more"),
    (SLOT_WARNING, Unit::Count, "1 when the slot is in danger of being lost"),
];

/// Tells the process' recorder what each metric means. [`Relay::run`](crate::Relay::run) does it.
pub fn describe() {
    for (name, unit, text) in COUNTERS {
        metrics::describe_counter!(name, unit, text);
    }
    for (name, unit, text) in HISTOGRAMS {
        metrics::describe_histogram!(name, unit, text);
    }
    for (name, unit, text) in GAUGES {
        metrics::describe_gauge!(name, unit, text);
    }
}

/// Handles to one relay's metrics, so that nothing is looked up when one changes.
pub(crate) struct Meters {
    slot: String,
    pub(crate) messages: Counter,
    pub(crate) message_bytes: Counter,
    pub(crate) dead_letters: Counter,
    pub(crate) dead_letters_cut: Counter,
    pub(crate) ignored: Counter,
    pub(crate) spool_full: Counter,
    pub(crate) batches: Counter,
    pub(crate) sessions: Counter,
    pub(crate) commit: Histogram,
    pub(crate) delivery: Histogram,
    pub(crate) probe: Histogram,
    pub(crate) batch_messages: Histogram,
    pub(crate) leading: Gauge,
    pub(crate) ready: Gauge,
    pub(crate) paused: Gauge,
    pub(crate) streaming: Gauge,
    pub(crate) stream_memory: Gauge,
    pub(crate) spool_bytes: Gauge,
    pub(crate) lag_bytes: Gauge,
    pub(crate) lag: Gauge,
    pub(crate) source_up: Gauge,
}

impl Meters {
    /// Those of the relay of this slot, in the recorder that the process has now.
    pub(crate) fn new(slot: &str) -> Self {
        describe();
        let counter = |name: &'static str| metrics::counter!(name, SLOT => slot.to_owned());
        let gauge = |name: &'static str| metrics::gauge!(name, SLOT => slot.to_owned());
        let histogram = |name: &'static str| metrics::histogram!(name, SLOT => slot.to_owned());
        Meters {
            slot: slot.to_owned(),
            messages: counter(MESSAGES),
            message_bytes: counter(MESSAGE_BYTES),
            dead_letters: counter(DEAD_LETTERS),
            dead_letters_cut: counter(DEAD_LETTERS_CUT),
            ignored: counter(IGNORED),
            spool_full: counter(SPOOL_FULL),
            batches: counter(BATCHES),
            sessions: counter(SESSIONS),
            commit: histogram(COMMIT),
            delivery: histogram(DELIVERY),
            probe: histogram(PROBE),
            batch_messages: histogram(BATCH_MESSAGES),
            leading: gauge(LEADING),
            ready: gauge(READY),
            paused: gauge(PAUSED),
            streaming: gauge(STREAMING),
            stream_memory: gauge(STREAM_MEMORY),
            spool_bytes: gauge(SPOOL_BYTES),
            lag_bytes: gauge(LAG_BYTES),
            lag: gauge(LAG),
            source_up: gauge(SOURCE_UP),
        }
    }

    /// A session, or an attempt at one, ended with an error.
    pub(crate) fn session_failed(&self, kind: Kind) {
        let (slot, kind) = (self.slot.clone(), kind.name());
        metrics::counter!(SESSION_ERRORS, SLOT => slot, KIND => kind).increment(1);
    }

    /// The watchdog ended a session.
    pub(crate) fn restarted(&self, cause: &'static str) {
        metrics::counter!(RESTARTS, SLOT => self.slot.clone(), CAUSE => cause).increment(1);
    }

    /// A value about the slot that not every server can tell.
    pub(crate) fn about_slot(&self, name: &'static str, value: f64) {
        metrics::gauge!(name, SLOT => self.slot.clone()).set(value);
    }
}

/// 1 or 0, as gauges have it.
pub(crate) fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// Whole seconds and their parts.
pub(crate) fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
