//! When a breaker lets calls through: decided by the outcomes of the last ones, without a clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Which calls a closed [`Breaker`](crate::Breaker) judges by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlidingWindow {
    /// The last so many calls.
    CountBased(usize),
    /// The calls of the last time, in steps of a tenth of it.
    TimeBased(Duration),
}

/// Whether a [`Breaker`](crate::Breaker) lets calls through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// All.
    Closed,
    /// None.
    Open,
    /// A few, whose outcomes decide.
    HalfOpen,
}

/// The numbers that a circuit decides by, named as in Resilience4j.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Thresholds {
    pub(crate) failure_rate: f64,
    pub(crate) slow_call_rate: f64,
    pub(crate) slow_call_duration: Duration,
    pub(crate) sliding_window: SlidingWindow,
    pub(crate) minimum_number_of_calls: usize,
    pub(crate) wait_duration_in_open_state: Duration,
    pub(crate) permitted_number_of_calls_in_half_open_state: usize,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) failed: bool,
    pub(crate) slow: bool,
}

/// Which state a call was permitted in: what it says counts for that one only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { permits: usize },
}

/// A circuit breaker without its lock.
#[derive(Debug)]
pub(crate) struct Circuit {
    thresholds: Thresholds,
    state: State,
    generation: u64,
    window: Window,
}

impl Circuit {
    pub(crate) fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, state: State::Closed, generation: 0, window: Window::default() }
    }

    pub(crate) fn thresholds(&mut self) -> &mut Thresholds {
        &mut self.thresholds
    }

    /// As of now; an open circuit whose wait is over is half open.
    pub(crate) fn state(&self, now: Instant) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { until } if now < until => BreakerState::Open,
            State::Open { .. } | State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// When a call may be permitted; none while that depends on calls that are being made.
    pub(crate) fn free_at(&self, now: Instant) -> Option<Instant> {
        match self.state {
            State::Closed => Some(now),
            State::Open { until } => Some(until.max(now)),
            State::HalfOpen { permits } => (permits > 0).then_some(now),
        }
    }

    /// Permits a call, or not.
    pub(crate) fn permit(&mut self, now: Instant) -> Option<Generation> {
        if let State::Open { until } = self.state
            && now >= until
        {
            let permits = self.thresholds.permitted_number_of_calls_in_half_open_state;
            self.enter(State::HalfOpen { permits });
        }
        match &mut self.state {
            State::Closed => {}
            State::HalfOpen { permits } if *permits > 0 => *permits -= 1,
            State::Open { .. } | State::HalfOpen { .. } => return None,
        }
        Some(Generation(self.generation))
    }

    /// A permitted call was not made after all.
    pub(crate) fn release(&mut self, generation: Generation) {
        if let State::HalfOpen { permits } = &mut self.state
            && generation.0 == self.generation
        {
            *permits += 1;
        }
    }

    /// A permitted call has ended. Answers whether that opened the circuit.
    pub(crate) fn ended(&mut self, generation: Generation, ended: Ended, now: Instant) -> bool {
        if generation.0 != self.generation {
            return false;
        }
        let (window, enough) = match self.state {
            State::Closed => {
                (self.thresholds.sliding_window, self.thresholds.minimum_number_of_calls)
            }
            State::HalfOpen { .. } => {
                let permitted = self.thresholds.permitted_number_of_calls_in_half_open_state;
                (SlidingWindow::CountBased(permitted), permitted)
            }
            State::Open { .. } => return false,
        };
        self.window.push(ended, window, now);
        // A window that holds fewer calls than are asked for is full of them all the same.
        let enough = match window {
            SlidingWindow::CountBased(size) => enough.min(size),
            SlidingWindow::TimeBased(_) => enough,
        };
        let sum = self.window.sum();
        if sum.calls < enough.max(1) {
            return false;
        }
        let rate = |count: usize| count as f64 * 100.0 / sum.calls as f64;
        let open = rate(sum.failed) >= self.thresholds.failure_rate
            || rate(sum.slow) >= self.thresholds.slow_call_rate;
        if open {
            self.enter(State::Open { until: now + self.thresholds.wait_duration_in_open_state });
        } else if matches!(self.state, State::HalfOpen { .. }) {
            self.enter(State::Closed);
        }
        open
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
        self.window = Window::default();
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    since: Instant,
    calls: usize,
    failed: usize,
    slow: usize,
}

/// The outcomes of the last calls: a bucket for each call, or for each tenth of the window's time.
#[derive(Debug, Default)]
struct Window(VecDeque<Bucket>);

impl Window {
    fn push(&mut self, ended: Ended, window: SlidingWindow, now: Instant) {
        let bucket = Bucket {
            since: now,
            calls: 1,
            failed: usize::from(ended.failed),
            slow: usize::from(ended.slow),
        };
        match window {
            SlidingWindow::CountBased(size) => {
                self.0.push_back(bucket);
                while self.0.len() > size.max(1) {
                    self.0.pop_front();
                }
            }
            SlidingWindow::TimeBased(time) => {
                let age = |bucket: &Bucket| now.saturating_duration_since(bucket.since);
                while self.0.front().is_some_and(|oldest| age(oldest) >= time) {
                    self.0.pop_front();
                }
                match self.0.back_mut().filter(|newest| age(newest) < time / 10) {
                    Some(newest) => {
                        newest.calls += 1;
                        newest.failed += bucket.failed;
                        newest.slow += bucket.slow;
                    }
                    None => self.0.push_back(bucket),
                }
            }
        }
    }

    fn sum(&self) -> Sum {
        self.0.iter().fold(Sum::default(), |sum, bucket| Sum {
            calls: sum.calls + bucket.calls,
            failed: sum.failed + bucket.failed,
            slow: sum.slow + bucket.slow,
        })
    }
}

#[derive(Debug, Default)]
struct Sum {
    calls: usize,
    failed: usize,
    slow: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn thresholds(window: SlidingWindow) -> Thresholds {
        Thresholds {
            failure_rate: 50.0,
            slow_call_rate: 75.0,
            slow_call_duration: SECOND,
            sliding_window: window,
            minimum_number_of_calls: 4,
            wait_duration_in_open_state: 10 * SECOND,
            permitted_number_of_calls_in_half_open_state: 2,
        }
    }

    /// A script of calls, one per second unless a number of seconds stands before it: `.` well, `x` failed, `s` slow,
    /// `-` permitted but not made; `!` one that is not permitted. States afterwards, each second: C, O, H.
    fn check(window: SlidingWindow, script: &str, expected: &str) {
        let mut now = Instant::now();
        let mut circuit = Circuit::new(thresholds(window));
        let mut states = String::new();

        for step in script.chars() {
            if let Some(seconds) = step.to_digit(10) {
                now += SECOND * seconds;
                continue;
            }
            let permit = circuit.permit(now);
            assert_eq!(permit.is_none(), step == '!', "{script}: {step} after {states}");
            if let Some(permit) = permit {
                match step {
                    '-' => circuit.release(permit),
                    _ => {
                        let ended = Ended { failed: step == 'x', slow: step == 's' };
                        circuit.ended(permit, ended, now);
                    }
                }
            }
            states.push(match circuit.state(now) {
                BreakerState::Closed => 'C',
                BreakerState::Open => 'O',
                BreakerState::HalfOpen => 'H',
            });
            now += SECOND;
        }

        assert_eq!(states, expected, "{script}");
    }

    #[test]
    fn a_circuit_opens_at_its_rates_and_closes_by_the_permitted_calls() {
        let four = SlidingWindow::CountBased(4);
        // Fewer than the minimum say nothing; a half that failed is enough.
        check(four, "xxx", "CCC");
        check(four, "x.x.!!", "CCCOOO");
        check(four, "...x...x", "CCCCCCCC");
        // What leaves the window does not count any more.
        check(four, "x...x...", "CCCCCCCC");
        check(four, ".x..x", "CCCCO");
        // Slow calls have a rate of their own.
        check(four, "sss.", "CCCO");
        check(four, "ss..", "CCCC");
        // After the wait two calls decide, and begin a new window.
        check(four, "xxxx99..xxx.", "CCCOHCCCCO");
        check(four, "xxxx99.x!", "CCCOHOO");
        check(four, "xxxx99x.8!9..", "CCCOHOOHC");
        // A permit that is given back is there for another call.
        check(four, "xxxx99-.-.", "CCCOHHHC");
    }

    #[test]
    fn a_window_of_time_forgets_what_is_older() {
        let ten = SlidingWindow::TimeBased(10 * SECOND);
        check(ten, "xxxx", "CCCO");
        check(ten, "xxx9....", "CCCCCCC");
        check(ten, "xxx7.", "CCCC");
        check(ten, "xx..!", "CCCOO");
    }

    #[test]
    fn more_calls_than_permitted_wait_and_calls_of_before_say_nothing() {
        let now = Instant::now();
        let mut circuit = Circuit::new(thresholds(SlidingWindow::CountBased(4)));
        let failed = Ended { failed: true, slow: false };
        let before: Vec<_> = (0..5).map(|_| circuit.permit(now).unwrap()).collect();
        for permit in &before[..4] {
            circuit.ended(*permit, failed, now);
        }
        assert_eq!(circuit.free_at(now), Some(now + 10 * SECOND));
        let later = now + 10 * SECOND;

        let permits = [circuit.permit(later), circuit.permit(later), circuit.permit(later)];
        assert!(permits[0].is_some() && permits[1].is_some() && permits[2].is_none());
        assert_eq!(circuit.free_at(later), None);
        assert!(!circuit.ended(before[4], failed, later));

        assert_eq!(circuit.state(later), BreakerState::HalfOpen);
    }
}
