//! Waits until the slot is free, and takes it from a leader that is dead but still connected.

use std::time::{Duration, Instant};

use crate::config::Config;
use crate::error::{Error, Kind};
use crate::replication::{Client, quote_literal};

/// How often a standby looks at the leader. A takeover can be late by as much.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often it looks right after it has ended the leader's backend, which takes the server
/// milliseconds.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const LOOK_AGAIN_FOR: Duration = Duration::from_millis(50);

/// A backend that is there for so long after it was ended is ended again. It may be about to say so
/// to its relay, which reads nothing: only the second order has it go without a word (seen on 18.6
/// with a backlog; `ProcessClientWriteInterrupt` in Postgres).
const END_AGAIN: Duration = Duration::from_millis(250);

/// A leader reports every 250 ms; one that has not for this long is taken for dead. The server
/// itself would wait for `wal_sender_timeout`, a minute by default.
const SILENT_MAX: Duration = Duration::from_millis(1_500);

/// A leader has reported by then, if its reports can be seen.
const BLIND_MAX: Duration = Duration::from_secs(2);

/// What a standby sees of the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    /// The backend that holds the slot.
    pub(crate) holder: Option<i32>,
    /// When that backend last heard from its relay, as the server writes it; `None` where the
    /// role may not see it.
    pub(crate) replied: Option<String>,
}

/// What a standby does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The leader lives: look again.
    Wait,
    /// Nobody holds the slot.
    Take,
    /// The holder is dead: end its backend, then take the slot.
    End(i32),
}

/// Judges a leader by the standing still of its reports, on the standby's own clock.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    last: Option<(Sight, Instant)>,
    ended: Option<Instant>,
}

impl Watch {
    /// Takes in what is seen now.
    pub(crate) fn look(&mut self, sight: Sight, now: Instant) -> Next {
        let Some(holder) = sight.holder else { return Next::Take };
        let since = |then: Instant| now.saturating_duration_since(then);
        match &self.last {
            Some((last, heard)) if *last == sight => {
                // Without the right to see reports nothing can be said of the leader.
                let is_dead = sight.replied.is_some() && since(*heard) >= SILENT_MAX;
                if !is_dead || self.ended.is_some_and(|ended| since(ended) < END_AGAIN) {
                    return Next::Wait;
                }
                self.ended = Some(now);
                Next::End(holder)
            }
            _ => {
                *self = Watch { last: Some((sight, now)), ended: None };
                Next::Wait
            }
        }
    }

    /// For how long to wait after a look: not beyond the moment at which silence is death, nor for
    /// longer than a backend needs that was told to end.
    pub(crate) fn pause(&self, now: Instant) -> Duration {
        let since = |then: Instant| now.saturating_duration_since(then);
        match (self.ended, &self.last) {
            (Some(ended), _) if since(ended) < LOOK_AGAIN_FOR => LOOK_AGAIN,
            (None, Some((_, heard))) => {
                SILENT_MAX.saturating_sub(since(*heard)).clamp(LOOK_AGAIN, LOOK_EVERY)
            }
            _ => LOOK_EVERY,
        }
    }
}

/// Returns when the slot may be taken, with a connection to take it on: to make another would take
/// time in which nobody leads.
pub(crate) async fn stand_by(config: &Config) -> Result<Client, Error> {
    let mut client = Client::connect(&config.endpoint()?).await?;
    let slot = quote_literal(config.slot_name());
    let question = format!(
        "SELECT s.active_pid, r.reply_time, (r.pid IS NULL OR r.state IS NOT NULL)::text, \
         r.application_name FROM pg_catalog.pg_replication_slots s \
         LEFT JOIN pg_catalog.pg_stat_replication r ON r.pid = s.active_pid \
         WHERE s.slot_name = {slot}"
    );
    let mut watch = Watch::default();
    let (mut blind_since, mut told) = (None, false);
    loop {
        let rows = client.query(&question).await?;
        let row = rows.first();
        let holder = match row.and_then(|row| row.get(0)).map(str::parse) {
            None => None,
            Some(Ok(pid)) => Some(pid),
            Some(Err(error)) => {
                return Err(Error::new(Kind::Server, "active_pid is no number").caused_by(error));
            }
        };
        let replied = row.and_then(|row| row.get(1)).map(str::to_owned);
        let is_blind = holder.is_some() && replied.is_none();
        let since: Instant = blind_since.unwrap_or_else(Instant::now);
        blind_since = is_blind.then_some(since);
        if is_blind && !told && since.elapsed() >= BLIND_MAX {
            told = true;
            // A role that may not look sees of a walsender that it is there, and no more.
            if row.and_then(|row| row.get(2)) == Some("true") {
                tracing::warn!(
                    pid = holder,
                    application_name = row.and_then(|row| row.get(3)),
                    "what holds the slot sends no reports, as a relay does: it is another program, \
                     and is waited for"
                );
            } else {
                tracing::warn!(
                    "the role may not see the leader's reports: one that hangs is waited for until \
                     wal_sender_timeout; GRANT pg_read_all_stats to the role to be faster"
                );
            }
        }
        match watch.look(Sight { holder, replied }, Instant::now()) {
            Next::Take => return Ok(client),
            Next::Wait => tokio::time::sleep(watch.pause(Instant::now())).await,
            Next::End(pid) => {
                tracing::warn!(pid, "the leader is silent: ending its backend");
                // Allowed to the same role; the slot is named again, so that a pid that was
                // given to another backend meanwhile is left alone.
                client
                    .query(&format!(
                        "SELECT pg_catalog.pg_terminate_backend(active_pid) \
                         FROM pg_catalog.pg_replication_slots \
                         WHERE slot_name = {slot} AND active_pid = {pid}"
                    ))
                    .await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Next, Sight, Watch};

    fn sight(holder: i32, replied: Option<&str>) -> Sight {
        Sight { holder: Some(holder), replied: replied.map(str::to_owned) }
    }

    #[test]
    fn only_a_leader_whose_reports_stand_still_is_ended() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut watch = Watch::default();

        assert_eq!(watch.look(sight(7, Some("a")), at(0)), Next::Wait);
        assert_eq!(watch.look(sight(7, Some("b")), at(1_400)), Next::Wait);
        assert_eq!(watch.look(sight(7, Some("b")), at(2_800)), Next::Wait);
        assert_eq!(watch.look(sight(7, Some("b")), at(2_900)), Next::End(7));
        assert_eq!(watch.look(sight(8, Some("b")), at(9_000)), Next::Wait);
        assert_eq!(watch.look(Sight { holder: None, replied: None }, at(9_001)), Next::Take);
    }

    #[test]
    fn a_standby_looks_at_the_moment_of_death_and_right_after_it() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let at = |after| start + ms(after);
        let mut watch = Watch::default();

        assert_eq!(watch.look(sight(7, Some("a")), at(0)), Next::Wait);
        assert_eq!(watch.pause(at(0)), ms(100));
        assert_eq!(watch.look(sight(7, Some("a")), at(1_450)), Next::Wait);
        assert_eq!(watch.pause(at(1_450)), ms(50));
        assert_eq!(watch.look(sight(7, Some("a")), at(1_500)), Next::End(7));
        assert_eq!(watch.look(sight(7, Some("a")), at(1_501)), Next::Wait);
        assert_eq!(watch.pause(at(1_501)), ms(5));
        assert_eq!(watch.pause(at(1_560)), ms(100));
    }

    #[test]
    fn a_backend_that_does_not_end_is_ended_again() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut watch = Watch::default();

        assert_eq!(watch.look(sight(7, Some("a")), at(0)), Next::Wait);
        assert_eq!(watch.look(sight(7, Some("a")), at(1_500)), Next::End(7));
        assert_eq!(watch.look(sight(7, Some("a")), at(1_700)), Next::Wait);
        assert_eq!(watch.look(sight(7, Some("a")), at(1_750)), Next::End(7));
        assert_eq!(watch.look(sight(7, Some("b")), at(2_100)), Next::Wait);
        assert_eq!(watch.look(sight(7, Some("b")), at(3_500)), Next::Wait);
    }

    #[test]
    fn a_leader_that_can_not_be_seen_is_never_ended() {
        let start = Instant::now();
        let mut watch = Watch::default();

        for seconds in 0..100 {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(watch.look(sight(7, None), now), Next::Wait);
        }
    }
}
