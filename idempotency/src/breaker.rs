//! The circuit breaker around calls, as a service configures and watches it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::circuit::{BreakerState, Circuit, Ended, Generation, SlidingWindow, Thresholds};

/// A circuit breaker: while what is called fails or is slow, it is not called.
///
/// Closed, it counts. At its thresholds it opens: no call is made, and messages wait in Postgres with no attempt
/// counted. After a wait it is half open: a few calls are made, and by the same thresholds they close it or open it
/// again. What counts as a failure: an error, a panic and a time-out; neither [`Answer::Retry`](crate::Answer::Retry)
/// nor [`Answer::Reject`](crate::Answer::Reject), since who says so works.
///
/// A clone is a handle to the same breaker, for types that call the same service, and to watch its state. Options are
/// named as those of Resilience4j, and are set before the first call.
#[derive(Clone)]
pub struct Breaker(Arc<Mutex<Circuit>>);

impl Default for Breaker {
    fn default() -> Self {
        Self::new()
    }
}

impl Breaker {
    /// A closed breaker with the defaults.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Circuit::new(Thresholds {
            failure_rate: 50.0,
            slow_call_rate: 100.0,
            slow_call_duration: Duration::from_secs(5),
            sliding_window: SlidingWindow::CountBased(100),
            minimum_number_of_calls: 20,
            wait_duration_in_open_state: Duration::from_secs(60),
            permitted_number_of_calls_in_half_open_state: 10,
        }))))
    }

    /// The percentage of failed calls at which it opens, above 0 and up to 100. Default: 50.
    #[must_use]
    pub fn failure_rate_threshold(self, percent: f64) -> Self {
        self.with(|thresholds| thresholds.failure_rate = percent)
    }

    /// The percentage of slow calls at which it opens, above 0 and up to 100. Default: 100.
    #[must_use]
    pub fn slow_call_rate_threshold(self, percent: f64) -> Self {
        self.with(|thresholds| thresholds.slow_call_rate = percent)
    }

    /// A call that takes as long is slow. Default: 5 s.
    #[must_use]
    pub fn slow_call_duration_threshold(self, duration: Duration) -> Self {
        self.with(|thresholds| thresholds.slow_call_duration = duration)
    }

    /// Which calls the rates are counted over. Default: the last 100.
    #[must_use]
    pub fn sliding_window(self, window: SlidingWindow) -> Self {
        self.with(|thresholds| thresholds.sliding_window = window)
    }

    /// Below this number of calls in the window the rates say nothing. Default: 20, since with a hundred calls that
    /// each wait for their time-out it would take minutes to open.
    #[must_use]
    pub fn minimum_number_of_calls(self, calls: usize) -> Self {
        self.with(|thresholds| thresholds.minimum_number_of_calls = calls)
    }

    /// How long it is open before it is half open. Default: 60 s.
    #[must_use]
    pub fn wait_duration_in_open_state(self, wait: Duration) -> Self {
        self.with(|thresholds| thresholds.wait_duration_in_open_state = wait)
    }

    /// How many calls are made while it is half open. Default: 10.
    #[must_use]
    pub fn permitted_number_of_calls_in_half_open_state(self, calls: usize) -> Self {
        self.with(|thresholds| thresholds.permitted_number_of_calls_in_half_open_state = calls)
    }

    fn with(self, set: impl FnOnce(&mut Thresholds)) -> Self {
        set(self.lock().thresholds());
        self
    }

    /// Whether it lets calls through now.
    pub fn state(&self) -> BreakerState {
        self.lock().state(Instant::now())
    }

    /// Makes a call of the service's own through it: for what is to fall back on something else, rather than to wait as
    /// messages do. An error is a failure; bound the call's time inside of it.
    ///
    /// # Errors
    /// [`NotDone::Open`] where the call was not made, and [`NotDone::Failed`] with its own error.
    pub async fn call<T, E>(
        &self,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, NotDone<E>> {
        let began = Instant::now();
        let Some(permit) = self.permit(began) else { return Err(NotDone::Open) };
        let done = call.await;
        permit.ended(done.is_err(), began.elapsed());
        done.map_err(NotDone::Failed)
    }

    /// Everything wrong with its options.
    pub(crate) fn faults(&self) -> Vec<&'static str> {
        let mut circuit = self.lock();
        let thresholds = circuit.thresholds();
        let percent = |rate: f64| rate > 0.0 && rate <= 100.0;
        let window = match thresholds.sliding_window {
            SlidingWindow::CountBased(size) => size > 0,
            SlidingWindow::TimeBased(time) => !time.is_zero(),
        };
        [
            (
                percent(thresholds.failure_rate),
                "failure_rate_threshold must be above 0 and up to 100",
            ),
            (
                percent(thresholds.slow_call_rate),
                "slow_call_rate_threshold must be above 0 and up to 100",
            ),
            (window, "sliding_window must not be empty"),
            (
                thresholds.permitted_number_of_calls_in_half_open_state > 0,
                "permitted_number_of_calls_in_half_open_state must not be zero",
            ),
        ]
        .into_iter()
        .filter_map(|(good, fault)| (!good).then_some(fault))
        .collect()
    }

    /// When a call may be permitted; none while that depends on calls that are being made.
    pub(crate) fn free_at(&self, now: Instant) -> Option<Instant> {
        self.lock().free_at(now)
    }

    pub(crate) fn permit(&self, now: Instant) -> Option<Permit> {
        let generation = self.lock().permit(now)?;
        Some(Permit { breaker: self.clone(), generation: Some(generation) })
    }

    fn lock(&self) -> MutexGuard<'_, Circuit> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a [`Breaker::call`] has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotDone<E> {
    /// The breaker lets nothing through now.
    Open,
    /// It was made, and failed.
    Failed(E),
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// What a breaker has said yes to. Dropped without an outcome, it is given back.
#[derive(Debug)]
pub(crate) struct Permit {
    breaker: Breaker,
    generation: Option<Generation>,
}

/// What the end of a call means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) slow: bool,
    pub(crate) opened: bool,
}

impl Permit {
    pub(crate) fn ended(mut self, failed: bool, took: Duration) -> Told {
        let mut circuit = self.breaker.lock();
        let slow = took >= circuit.thresholds().slow_call_duration;
        let opened = self.generation.take().is_some_and(|generation| {
            circuit.ended(generation, Ended { failed, slow }, Instant::now())
        });
        drop(circuit);
        Told { slow, opened }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(generation) = self.generation.take() {
            self.breaker.lock().release(generation);
        }
    }
}
