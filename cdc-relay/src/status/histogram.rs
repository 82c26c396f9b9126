//! Counts durations by their size.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Bounds of the buckets, in milliseconds; one more bucket takes what is longer.
const BOUNDS: [u64; 15] =
    [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000];

/// A live distribution; adding to it takes no lock.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
}

/// How many durations were of which size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Distribution {
    /// Upper bounds of the buckets, in milliseconds.
    pub bounds_ms: Vec<u64>,
    /// How many were at most as long as the bound and longer than the one before; the last counts
    /// those that were longer than every bound.
    pub counts: Vec<u64>,
}

impl Histogram {
    pub(super) fn record(&self, duration: Duration) {
        let at = BOUNDS.partition_point(|bound| Duration::from_millis(*bound) < duration);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self) -> Distribution {
        Distribution {
            bounds_ms: BOUNDS.to_vec(),
            counts: self.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Histogram;

    #[test]
    fn each_duration_is_counted_once_at_its_bound() {
        let histogram = Histogram::default();
        for millis in [0, 1, 2, 60_000, 60_001] {
            histogram.record(Duration::from_millis(millis));
        }

        let counts = histogram.read().counts;
        assert_eq!(counts.iter().sum::<u64>(), 5);
        assert_eq!((counts[0], counts[1], counts[14], counts[15]), (2, 1, 1, 1));
    }
}
