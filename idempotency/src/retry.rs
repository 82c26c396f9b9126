//! How long to wait before the same attempt again.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

const FIRST_WAIT: Duration = Duration::from_millis(20);
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Waits that double from 20 ms to 2 s, each shortened by up to a half at random so that lanes which failed
/// together do not come back together, until the time for retries is used up.
#[derive(Debug)]
pub(crate) struct Backoff {
    retry_for: Duration,
    first_failure: Option<Instant>,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(retry_for: Duration) -> Self {
        Self { retry_for, first_failure: None, failures: 0 }
    }

    /// The wait before the next attempt; none when the time is used up. `chance` is any random number.
    pub(crate) fn failed(&mut self, now: Instant, chance: u64) -> Option<Duration> {
        let first = *self.first_failure.get_or_insert(now);
        if now.saturating_duration_since(first) >= self.retry_for {
            return None;
        }
        let full = FIRST_WAIT.saturating_mul(1 << self.failures.min(10)).min(WAIT_MAX);
        self.failures += 1;
        let share = u32::try_from(chance % 1000).unwrap_or(0);
        Some(full - full / 2000 * share)
    }
}

/// A random number from the standard library's seeded hasher; only spreads waits.
pub(crate) fn chance() -> u64 {
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_cap_and_end_with_the_time_for_retries() {
        let start = Instant::now();
        let mut backoff = Backoff::new(Duration::from_secs(10));

        let waits: Vec<_> = (0..8).map(|_| backoff.failed(start, 0).unwrap().as_millis()).collect();

        assert_eq!(waits, [20, 40, 80, 160, 320, 640, 1280, 2000]);
        assert_eq!(backoff.failed(start + Duration::from_secs(10), 0), None);
    }

    #[test]
    fn jitter_takes_half_at_most() {
        let mut backoff = Backoff::new(Duration::from_secs(10));

        let wait = backoff.failed(Instant::now(), 999).unwrap();

        assert!(wait >= FIRST_WAIT / 2 && wait < FIRST_WAIT, "{wait:?}");
    }
}
