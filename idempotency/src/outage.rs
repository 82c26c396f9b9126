//! A database that is down is tried now and then by one lane, and by all again once it answers.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::breaker::{Breaker, Permit};
use crate::circuit::{BreakerState, SlidingWindow};
use crate::error::Error;
use crate::health::Health;
use crate::lane::{LaneEnd, stopped};
use crate::metrics::Counters;

/// How long a lane rests while another one tries the database.
const REST: Duration = Duration::from_millis(50);

/// The breaker that stands around a database by default: it opens at the second of four attempts that finds nobody, and
/// lets one through each second.
pub(crate) fn breaker() -> Breaker {
    Breaker::new()
        .sliding_window(SlidingWindow::CountBased(4))
        .minimum_number_of_calls(2)
        .slow_call_duration_threshold(Duration::MAX)
        .wait_duration_in_open_state(Duration::from_secs(1))
        .permitted_number_of_calls_in_half_open_state(1)
}

/// The way of all lanes to the database.
#[derive(Debug)]
pub(crate) struct Gate {
    breaker: Breaker,
    /// Since when the database is away.
    away: Mutex<Option<Instant>>,
    counters: Counters,
    health: Health,
}

impl Gate {
    pub(crate) fn new(breaker: Breaker, counters: Counters, health: Health) -> Self {
        Self { breaker, away: Mutex::default(), counters, health }
    }

    pub(crate) fn state(&self) -> BreakerState {
        self.breaker.state()
    }

    /// Whether nothing is tried now, or by one lane alone.
    pub(crate) fn is_shut(&self) -> bool {
        self.state() != BreakerState::Closed
    }

    pub(crate) fn permit(&self) -> Option<Permit> {
        self.breaker.permit(Instant::now())
    }

    /// Waits for leave to try; the lane ends where it is told to meanwhile.
    pub(crate) async fn turn(&self, stop: &mut watch::Receiver<bool>) -> Result<Permit, LaneEnd> {
        loop {
            let now = Instant::now();
            if let Some(permit) = self.breaker.permit(now) {
                return Ok(permit);
            }
            let at = self.breaker.free_at(now).unwrap_or(now).max(now + REST);
            tokio::select! {
                biased;
                () = stopped(stop) => return Err(LaneEnd::Stopped),
                () = tokio::time::sleep_until(at.into()) => {}
            }
        }
    }

    /// How an attempt ended that was permitted.
    pub(crate) fn ended(&self, permit: Permit, error: Option<&Error>) {
        let fault = error.filter(|error| error.is_outage());
        let told = permit.ended(fault.is_some(), Duration::ZERO);
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        match fault {
            Some(error) if told.opened && away.is_none() => {
                *away = Some(Instant::now());
                self.health.away(*away);
                self.counters.count_outage();
                tracing::error!(
                    error = %error, code = error.database_code(),
                    cause = error.fault().map(tracing::field::display),
                    "postgres is away: nothing is applied until it is back, and it is tried now and then"
                );
            }
            None if !self.is_shut() => {
                if let Some(since) = away.take() {
                    self.health.away(None);
                    tracing::info!(away_ms = since.elapsed().as_millis(), "postgres is back");
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down() -> Error {
        Error::database_silent("progress cannot be moved on", Duration::from_secs(30))
    }

    #[test]
    fn the_second_attempt_that_finds_nobody_shuts_the_gate_and_one_at_a_time_tries_again() {
        let gate = Gate::new(
            breaker().wait_duration_in_open_state(Duration::ZERO),
            Counters::default(),
            Health::default(),
        );
        let attempt = |error: Option<&Error>| gate.ended(gate.permit().unwrap(), error);
        gate.health.began();
        gate.health.joined();
        let is_well = || gate.health.faults().is_empty();
        for _ in 0..10 {
            attempt(None);
        }
        let deadlock = Error::new(crate::error::Kind::Database, "40P01");
        attempt(Some(&deadlock));
        attempt(Some(&down()));
        assert!(!gate.is_shut() && is_well());

        attempt(Some(&down()));
        assert!(gate.is_shut() && !is_well());
        let one = gate.permit().unwrap();
        assert!(gate.permit().is_none());
        gate.ended(one, Some(&down()));
        assert!(gate.is_shut());
        attempt(None);

        assert!(!gate.is_shut() && is_well());
        assert_eq!(gate.counters.report().outages, 1);
    }
}
