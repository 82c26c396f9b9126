//! How often and how long something is asked for again.

use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::correlation::{Epoch, SagaId};

/// The most attempts that a policy may have.
pub const ATTEMPTS_MAX: u32 = 10_000;

/// The longest that anything may be waited for, one year.
pub const WAIT_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// When the same is asked again, and when that ends.
///
/// An attempt that gets no answer within the step's time-out is followed by another one after a wait; so is one of a local
/// step that fails, without the time-out. Waits double up
/// to a cap, and up to a half of each is taken off, by saga and attempt, so that many sagas do not ask at once. There
/// is no endless retry: at the number of attempts or at the age, whichever comes first, it is given up, and what
/// happens then is the step's [`OnTimeout`](crate::OnTimeout).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    pub(crate) first: Duration,
    pub(crate) cap: Duration,
    pub(crate) attempts: u32,
    pub(crate) age_max: Duration,
}

impl Retry {
    /// The policy of an action that names none: 1 s doubling to 60 s, 10 attempts, within an hour.
    pub(crate) const ACTION: Self = Self::new(1, 60, 10, 60 * 60);

    /// The policy of a compensation that names none: 1 s doubling to 5 minutes, 100 attempts, within a day.
    pub(crate) const COMPENSATION: Self = Self::new(1, 300, 100, 24 * 60 * 60);

    /// The policy of what follows the pivot and names none: 1 s doubling to 5 minutes, 100 attempts, within a day.
    pub(crate) const RETRIABLE: Self = Self::COMPENSATION;

    const fn new(first_secs: u64, cap_secs: u64, attempts: u32, age_secs: u64) -> Self {
        Self {
            first: Duration::from_secs(first_secs),
            cap: Duration::from_secs(cap_secs),
            attempts,
            age_max: Duration::from_secs(age_secs),
        }
    }

    /// Waits of `first`, twice that, and so on, up to `cap`. 10 attempts within an hour, if nothing else is said.
    pub fn exponential(first: Duration, cap: Duration) -> Self {
        Self { first, cap, ..Self::ACTION }
    }

    /// Waits of the same length. 10 attempts within an hour, if nothing else is said.
    pub fn every(wait: Duration) -> Self {
        Self::exponential(wait, wait)
    }

    /// How often it is asked at most, the first time included: 1 to [`ATTEMPTS_MAX`].
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// No attempt is begun when the first one is this long ago.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.age_max = age;
        self
    }

    /// What is wrong with it.
    pub(crate) fn fault(&self) -> Option<String> {
        if !(1..=ATTEMPTS_MAX).contains(&self.attempts) {
            return Some(format!("{} attempts are not 1 to {ATTEMPTS_MAX}", self.attempts));
        }
        if self.first > self.cap {
            return Some(format!(
                "the first wait {:?} is above the cap {:?}",
                self.first, self.cap
            ));
        }
        if self.cap > WAIT_MAX || self.age_max > WAIT_MAX {
            return Some("it lasts longer than a year".to_owned());
        }
        None
    }

    /// The wait after so many attempts, without what is taken off.
    fn full(&self, attempts: u32) -> Duration {
        let doublings = attempts.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doublings).min(self.cap)
    }

    /// The wait after this attempt.
    pub(crate) fn wait(&self, attempt: &Attempt<'_>) -> Duration {
        let full = self.full(attempt.number);
        full - full.mul_f64(attempt.chance() / 2.0)
    }
}

/// One attempt of one step of one saga: what decides how much of a wait is taken off.
pub(crate) struct Attempt<'a> {
    pub(crate) saga: SagaId,
    pub(crate) step: &'a str,
    pub(crate) epoch: Epoch,
    pub(crate) number: u32,
}

impl Attempt<'_> {
    /// A number from 0 to 1, always the same for the same attempt: a transition that is made again after a crash is
    /// the same transition.
    fn chance(&self) -> f64 {
        let digest = Sha256::new()
            .chain_update(self.saga.as_uuid())
            .chain_update(self.step)
            .chain_update(self.epoch.get().to_be_bytes())
            .chain_update(self.number.to_be_bytes())
            .finalize();
        let number = digest.iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte));
        f64::from(number) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn attempt(saga: u128, number: u32) -> Attempt<'static> {
        let saga = SagaId::from_uuid(Uuid::from_u128(saga));
        Attempt { saga, step: "reserve", epoch: Epoch::FIRST, number }
    }

    #[test]
    fn waits_double_up_to_a_cap_however_many_attempts_there_are() {
        let retry = Retry::exponential(Duration::from_millis(200), Duration::from_secs(1));

        let waits: Vec<_> = [1, 2, 3, 4, 5, ATTEMPTS_MAX].map(|n| retry.full(n).as_millis()).into();

        assert_eq!(waits, [200, 400, 800, 1000, 1000, 1000]);
    }

    #[test]
    fn at_most_half_of_a_wait_is_taken_off_always_the_same_and_another_for_each_saga() {
        let retry = Retry::every(Duration::from_secs(1));

        let waits: Vec<_> = (0..100).map(|saga| retry.wait(&attempt(saga, 1))).collect();

        let half = Duration::from_millis(500);
        assert!(waits.iter().all(|wait| *wait >= half && *wait <= Duration::from_secs(1)));
        assert!(waits.iter().any(|wait| *wait < half.mul_f64(1.2)));
        assert!(waits.iter().any(|wait| *wait > half.mul_f64(1.8)));
        assert_eq!(waits[7], retry.wait(&attempt(7, 1)));
    }

    #[test]
    fn a_policy_without_an_end_is_a_fault() {
        let second = Duration::from_secs(1);
        let good = Retry::every(second);

        assert_eq!(good.fault(), None);
        for (bad, says) in [
            (good.attempts(0), "0 attempts"),
            (good.attempts(ATTEMPTS_MAX + 1), "10001 attempts"),
            (Retry::exponential(second * 2, second), "above the cap"),
            (good.max_age(Duration::MAX), "a year"),
            (Retry::every(Duration::MAX), "a year"),
        ] {
            assert!(bad.fault().unwrap().contains(says), "{bad:?}");
        }
    }
}
