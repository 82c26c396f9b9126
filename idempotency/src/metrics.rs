//! What a consumer has done so far.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
    retried_batches: AtomicU64,
    fenced: AtomicU64,
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
    /// Batches that were rolled back at a transient fault and repeated.
    pub retried_batches: u64,
    /// Times that a partition turned out to have a newer owner.
    pub fenced: u64,
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
            retried_batches: read(&self.0.retried_batches),
            fenced: read(&self.0.fenced),
        }
    }

    pub(crate) fn count_delivered(&self, records: u64) {
        self.0.delivered.fetch_add(records, Ordering::Relaxed);
    }

    pub(crate) fn count_retry(&self) {
        self.0.retried_batches.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_fenced(&self) {
        self.0.fenced.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_committed(&self, tally: Tally) {
        self.0.applied.fetch_add(tally.applied, Ordering::Relaxed);
        self.0.duplicates.fetch_add(tally.duplicates, Ordering::Relaxed);
        self.0.skipped.fetch_add(tally.skipped, Ordering::Relaxed);
    }
}

/// What one batch comes to, if it commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    pub(crate) applied: u64,
    pub(crate) duplicates: u64,
    pub(crate) skipped: u64,
}
