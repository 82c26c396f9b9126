//! How long to wait before the same attempt again, and how often a failing message is tried.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

const FIRST_WAIT: Duration = Duration::from_millis(20);
const WAIT_MAX: Duration = Duration::from_secs(2);

/// No message that waits for another one is left alone longer.
const WAITING_MAX: Duration = Duration::from_secs(30);

/// No parked message waits longer, whatever its handler asks for; times of Postgres have an end.
pub(crate) const PARKED_WAIT_LIMIT: Duration = Duration::from_secs(365 * 86_400);

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

    /// Whether the next failure would be the last.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        let first = self.first_failure.unwrap_or(now);
        self.first_failure.is_some() && now.saturating_duration_since(first) >= self.retry_for
    }

    /// The wait before the next attempt; none when the time is used up. `chance` is any random number.
    pub(crate) fn failed(&mut self, now: Instant, chance: u64) -> Option<Duration> {
        let first = *self.first_failure.get_or_insert(now);
        if now.saturating_duration_since(first) >= self.retry_for {
            return None;
        }
        let full = FIRST_WAIT.saturating_mul(1 << self.failures.min(10)).min(WAIT_MAX);
        self.failures += 1;
        Some(shortened(full, chance))
    }
}

/// What happens to a message that keeps failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnFailure {
    /// It is parked, and every later message of its key behind it; other keys go on. It is tried again by
    /// schedule, and after [`attempts_max`](crate::Config::attempts_max) attempts a person decides.
    #[default]
    Park,
    /// It becomes a dead letter, and its key goes on without it.
    DeadLetter,
    /// The consumer halts at its first failure with an error that names it; nothing of its batch is committed.
    Halt,
}

/// What happens to a message that is older than claims are kept, or whose id is from the future, so that the claim
/// cannot tell whether it was applied before: see [the horizon](crate::guard#the-horizon).
///
/// What becomes a dead letter or is parked is claimed with that: however often it comes again within the horizon, it is
/// set aside once, a person who retries it has its effect once, and after the clock of its producer was mended it is a
/// duplicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OutOfHorizon {
    /// It becomes a dead letter.
    #[default]
    Reject,
    /// It is parked until a person decides, and every later message of its key behind it.
    Park,
    /// It is claimed and applied all the same, once from now on. What had been applied before it was forgotten is
    /// applied again. An id more than seven days from the future becomes a dead letter even so.
    Process,
    /// The consumer halts with an error that names it.
    Halt,
}

/// What to do with messages that fail.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) on_failure: OnFailure,
    pub(crate) out_of_horizon: OutOfHorizon,
    /// Immediate repetitions of a failing message before it is set aside.
    pub(crate) retries: u32,
    /// The wait before the first attempt of a parked message; it doubles with each attempt.
    pub(crate) parked_wait: Duration,
    pub(crate) parked_wait_max: Duration,
    /// Attempts after which a parked message is stuck.
    pub(crate) attempts_max: u32,
    /// Parked keys of a partition at which its intake stops.
    pub(crate) parked_keys_max: usize,
    pub(crate) dead_letter_topic: Option<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            on_failure: OnFailure::default(),
            out_of_horizon: OutOfHorizon::default(),
            retries: 1,
            parked_wait: Duration::from_secs(1),
            parked_wait_max: Duration::from_secs(300),
            attempts_max: 20,
            parked_keys_max: 1000,
            dead_letter_topic: None,
        }
    }
}

impl Policy {
    /// How long a parked message waits after so many attempts; none when it is stuck. A wait that its handler
    /// asked for counts as it is.
    pub(crate) fn wait(
        &self,
        attempts: u32,
        asked: Option<Duration>,
        chance: u64,
    ) -> Option<Duration> {
        if attempts >= self.attempts_max {
            return None;
        }
        let doublings = attempts.saturating_sub(1).min(20);
        let full = self.parked_wait.saturating_mul(1 << doublings).min(self.parked_wait_max);
        Some(asked.unwrap_or_else(|| shortened(full, chance)).min(PARKED_WAIT_LIMIT))
    }

    /// How long a message waits on that waits for another one and has been parked for so long: as long again, so that
    /// neither a short wait takes long nor a long one many transactions. It ends with the other one and not by its own
    /// attempts, of which it has none.
    pub(crate) fn waits_on(&self, parked_for: Duration) -> Duration {
        parked_for.max(self.parked_wait).min(self.parked_wait_max).min(WAITING_MAX)
    }
}

/// Up to a half less, so that what failed together does not come back together.
fn shortened(full: Duration, chance: u64) -> Duration {
    let share = u32::try_from(chance % 1000).unwrap_or(0);
    full - full / 2000 * share
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

    #[test]
    fn a_parked_message_waits_twice_as_long_each_time_and_is_stuck_in_the_end() {
        let policy = Policy { attempts_max: 11, ..Policy::default() };
        let waits: Vec<_> = (1..=11)
            .map(|attempts| policy.wait(attempts, None, 0).map(|wait| wait.as_secs()))
            .collect();

        let expected = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300].map(Some);
        assert_eq!(waits[..10], expected);
        assert_eq!(waits[10], None);
        let asked = Duration::from_secs(7);
        assert_eq!(policy.wait(3, Some(asked), 999), Some(asked));
        assert_eq!(policy.wait(11, Some(asked), 0), None);
        assert_eq!(policy.wait(1, Some(Duration::MAX), 0), Some(PARKED_WAIT_LIMIT));
    }

    #[test]
    fn a_message_that_waits_for_another_one_waits_as_long_again_within_bounds() {
        let waits = |policy: &Policy| {
            let mut parked_for = Duration::ZERO;
            [(); 9].map(|()| {
                let wait = policy.waits_on(parked_for);
                parked_for += wait;
                wait.as_millis()
            })
        };
        let of = |first, max| {
            let [parked_wait, parked_wait_max] = [first, max].map(Duration::from_millis);
            Policy { parked_wait, parked_wait_max, ..Policy::default() }
        };

        let seconds = waits(&Policy::default()).map(|wait| wait / 1000);
        assert_eq!(seconds, [1, 1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(waits(&of(20, 70)), [20, 20, 40, 70, 70, 70, 70, 70, 70]);
        assert_eq!(waits(&of(60_000, 90_000)), [30_000; 9]);
    }
}
