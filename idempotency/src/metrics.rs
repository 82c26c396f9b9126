//! What a consumer has done so far, and its metrics, through the facade of the crate `metrics`.
//!
//! They go to whatever recorder the process has installed before [`Consumer::run`](crate::Consumer::run); without one
//! they cost next to nothing. All carry the label [`CONSUMER`]. Counters and gauges are updated once a second,
//! histograms with each transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::breaker::Told;
use crate::dead_letter::Letter;
use crate::failure::Reason;

mod meters;

pub use meters::{
    AGE, BATCH_MESSAGES, BREAKER, BREAKER_STATE, CONSUMER, DAYS_AHEAD, DEAD_LETTERED, DUPLICATES,
    FAILED_ATTEMPTS, FENCED, HANDLER, KAFKA_SILENT, LAG, LAG_SECONDS, MESSAGES_BUCKETS,
    OUT_OF_HORIZON, OUTAGES, PARKED, PARKED_KEYS, PARTITION, PROCESSED, READY, RETRIES,
    SECONDS_BUCKETS, SKIPPED, TOPIC, describe,
};
pub(crate) use meters::{Meters, Standing};

/// A cheap handle to a consumer's live counters, for a progress bar or a metrics exporter.
///
/// `delivered` rises as records arrive, the others with the commit of their batch.
#[derive(Debug, Clone, Default)]
pub struct Counters(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    delivered: AtomicU64,
    applied: AtomicU64,
    duplicates: AtomicU64,
    skipped: AtomicU64,
    parked: AtomicU64,
    replayed: AtomicU64,
    dead_lettered: AtomicU64,
    rejected: AtomicU64,
    out_of_horizon: AtomicU64,
    failed_attempts: AtomicU64,
    taken_for_call: AtomicU64,
    calls: AtomicU64,
    failed_calls: AtomicU64,
    slow_calls: AtomicU64,
    breaker_openings: AtomicU64,
    retried_batches: AtomicU64,
    fenced: AtomicU64,
    outages: AtomicU64,
}

/// Counts of one consumer, as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Report {
    /// Records that arrived from Kafka.
    pub delivered: u64,
    /// Records whose effect was committed.
    pub applied: u64,
    /// Records whose effect was there already, by their message id or by their offset.
    pub duplicates: u64,
    /// Records of a type without a handler that were passed over.
    pub skipped: u64,
    /// Records that were parked: those that failed, and those behind them.
    pub parked: u64,
    /// Parked messages, and those that made a call, whose effect was committed later; they count as `applied` too.
    pub replayed: u64,
    /// Messages that became dead letters, for whatever reason.
    pub dead_lettered: u64,
    /// Dead letters that a handler asked for by [`Outcome::Reject`](crate::Outcome::Reject).
    pub rejected: u64,
    /// Records whose message id was too old or from the future, whatever became of them.
    pub out_of_horizon: u64,
    /// Attempts of messages that failed by their own fault, in a batch or while parked.
    pub failed_attempts: u64,
    /// Records that were taken over for their call ([`Consumer::on_call`](crate::Consumer::on_call)); once it is made
    /// and recorded they count as `applied` too.
    pub taken_for_call: u64,
    /// Calls that have ended.
    pub calls: u64,
    /// Those that ended with an error, a panic or their time-out.
    pub failed_calls: u64,
    /// Those that took as long as their breaker calls slow.
    pub slow_calls: u64,
    /// Times that a circuit breaker opened; whether one is open now says [`Breaker::state`](crate::Breaker::state).
    pub breaker_openings: u64,
    /// Batches that were rolled back at a transient fault and repeated.
    pub retried_batches: u64,
    /// Times that a partition turned out to have a newer owner.
    pub fenced: u64,
    /// Times that Postgres was found to be away: see
    /// [`Config::database_breaker`](crate::Config::database_breaker).
    pub outages: u64,
}

impl Counters {
    /// The counts as of now.
    pub fn report(&self) -> Report {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Report {
            delivered: read(&self.0.delivered),
            applied: read(&self.0.applied),
            duplicates: read(&self.0.duplicates),
            skipped: read(&self.0.skipped),
            parked: read(&self.0.parked),
            replayed: read(&self.0.replayed),
            dead_lettered: read(&self.0.dead_lettered),
            rejected: read(&self.0.rejected),
            out_of_horizon: read(&self.0.out_of_horizon),
            failed_attempts: read(&self.0.failed_attempts),
            taken_for_call: read(&self.0.taken_for_call),
            calls: read(&self.0.calls),
            failed_calls: read(&self.0.failed_calls),
            slow_calls: read(&self.0.slow_calls),
            breaker_openings: read(&self.0.breaker_openings),
            retried_batches: read(&self.0.retried_batches),
            fenced: read(&self.0.fenced),
            outages: read(&self.0.outages),
        }
    }

    pub(crate) fn count_delivered(&self, records: u64) {
        self.0.delivered.fetch_add(records, Ordering::Relaxed);
    }

    pub(crate) fn count_failure(&self) {
        self.0.failed_attempts.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_call(&self, failed: bool, told: Told) {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        self.0.failed_calls.fetch_add(u64::from(failed), Ordering::Relaxed);
        self.0.slow_calls.fetch_add(u64::from(told.slow), Ordering::Relaxed);
        self.0.breaker_openings.fetch_add(u64::from(told.opened), Ordering::Relaxed);
    }

    pub(crate) fn count_retry(&self) {
        self.0.retried_batches.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_fenced(&self) {
        self.0.fenced.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_outage(&self) {
        self.0.outages.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_committed(&self, tally: Tally) {
        let add = |count: &AtomicU64, more| count.fetch_add(more, Ordering::Relaxed);
        add(&self.0.replayed, tally.replayed);
        add(&self.0.applied, tally.applied);
        add(&self.0.duplicates, tally.duplicates);
        add(&self.0.skipped, tally.skipped);
        add(&self.0.parked, tally.parked);
        add(&self.0.taken_for_call, tally.taken_for_call);
        add(&self.0.dead_lettered, tally.dead_lettered);
        add(&self.0.rejected, tally.rejected);
        add(&self.0.out_of_horizon, tally.out_of_horizon);
    }
}

impl Tally {
    pub(crate) fn count_letters(&mut self, letters: &[Letter]) {
        let rejected = letters.iter().filter(|letter| letter.cause.reason == Reason::Rejected);
        self.rejected += rejected.count() as u64;
        self.dead_lettered += letters.len() as u64;
    }
}

/// What one batch comes to, if it commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    pub(crate) applied: u64,
    pub(crate) duplicates: u64,
    pub(crate) skipped: u64,
    pub(crate) parked: u64,
    pub(crate) taken_for_call: u64,
    pub(crate) replayed: u64,
    pub(crate) dead_lettered: u64,
    pub(crate) rejected: u64,
    pub(crate) out_of_horizon: u64,
}
