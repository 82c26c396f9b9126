//! Judges whether a relay gets on, from what is seen of it once a second.
//!
//! Red is for people and load balancers, and early. A session is ended late, and only where a new
//! one can help: when no byte comes from the source, or Kafka owes an answer. A backlog, however
//! long, is no reason for either as long as it moves.

use std::time::{Duration, Instant};

use crate::lsn::Lsn;

/// How often it looks.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The source is asked to answer every second (`replication/status.rs`).
const SILENT_RED: Duration = Duration::from_secs(5);
const SILENT_END: Duration = Duration::from_secs(10);

/// A commit of a healthy cluster takes milliseconds.
const KAFKA_RED: Duration = Duration::from_secs(5);
/// A fast shutdown of Postgres waits for its walsenders, and they for us: a relay that can not
/// publish must not keep a source from stopping.
const KAFKA_END: Duration = Duration::from_secs(10);
/// A topic that is new to the relay takes several calls, each with a deadline of its own.
const HELD_UP_END: Duration = Duration::from_secs(30);

/// Something is to be published and nothing moves.
const STALL_RED: Duration = Duration::from_secs(5);

/// The source refuses connections while the relay is paused: it may be waiting for us to go.
const PAUSED_END: Duration = Duration::from_secs(3);

/// The server is about to give up the slot that a paused relay holds. It ends its walsender for
/// that and waits for the end, while the walsender waits for us to read: then nothing else is
/// checkpointed either, and the log grows.
const GIVEN_UP_END: Duration = Duration::from_secs(10);

/// More than the answers that were asked for come to in a second.
const BULK_BYTES: u64 = 4 * 1024;

/// What is seen of a leading relay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight {
    pub(crate) now: Instant,
    /// Counts the sessions; clocks start anew with each.
    pub(crate) session: u64,
    pub(crate) paused: bool,
    /// Bytes that have come from the source in this session.
    pub(crate) arrived: u64,
    pub(crate) received: Lsn,
    /// Checkpoints that became durable.
    pub(crate) checkpoints: u64,
    /// For how long the relay has waited for Kafka before it reads on; `None` when it reads.
    pub(crate) held_up: Option<Duration>,
    /// How long ago a batch was sealed that Kafka has not confirmed; `None` when there is none.
    pub(crate) unconfirmed: Option<Duration>,
    /// Whether a probe was written that no checkpoint covers yet.
    pub(crate) probe_out: bool,
    /// What the source says on a connection of its own; `None` when it does not answer.
    pub(crate) source: Option<SourceSight>,
}

/// What is seen of the source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SourceSight {
    /// The end of its log.
    pub(crate) end: Lsn,
    /// Whether the process that serves the slot works in silence: it skips over a long
    /// transaction that has nothing for us, and then does not answer for up to half of
    /// `wal_sender_timeout`. A new session would have it begin again.
    pub(crate) at_work: bool,
    /// Whether the slot keeps log that it has no right to any more.
    pub(crate) gives_up: bool,
}

/// What stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// No byte comes from the source.
    Silent,
    /// Kafka owes an answer.
    Kafka,
    /// There is something to publish, both servers answer, and nothing moves.
    Stalled,
    /// The source is gone while the relay is paused.
    SourceGone,
    /// The relay is paused, and the source is about to give up its slot.
    SlotGoes,
    /// Rows of messages are not in the stream any more. The watchdog does not see it: the lookout
    /// does.
    Publication,
}

/// What follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Healthy,
    /// Not ready.
    Red(Cause),
    /// Not ready, and only a new session can help.
    End(Cause),
}

/// Since when each thing has stood still, on one clock.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    last: Sight,
    /// A byte came, or none could be taken.
    heard: Instant,
    /// Something moved, or there was nothing to move.
    moved: Instant,
    /// The source answered on its own connection.
    seen: Instant,
    /// The slot was in no danger.
    kept: Instant,
}

/// Watches one relay while it leads.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    clocks: Option<Clocks>,
}

impl Watchdog {
    /// The relay does not lead: nothing is expected of it.
    pub(crate) fn rest(&mut self) {
        self.clocks = None;
    }

    /// Judges what is seen now.
    pub(crate) fn look(&mut self, sight: Sight) -> Verdict {
        let now = sight.now;
        let fresh = Clocks { last: sight, heard: now, moved: now, seen: now, kept: now };
        let clocks = match &mut self.clocks {
            Some(clocks) if clocks.last.session == sight.session => clocks,
            clocks => clocks.insert(fresh),
        };
        let last = std::mem::replace(&mut clocks.last, sight);
        let at_work = sight.source.is_some_and(|source| source.at_work);
        if sight.arrived != last.arrived || sight.held_up.is_some() || sight.paused {
            clocks.heard = now;
        }
        if sight.source.is_some() {
            clocks.seen = now;
        }
        if !sight.source.is_some_and(|source| source.gives_up) {
            clocks.kept = now;
        }
        if sight.moved_since(&last) || !sight.has_work() || sight.paused || at_work {
            clocks.moved = now;
        }
        let since = |then: Instant| now.saturating_duration_since(then);
        let silent = since(clocks.heard);
        if sight.unconfirmed >= Some(KAFKA_END) || sight.held_up >= Some(HELD_UP_END) {
            return Verdict::End(Cause::Kafka);
        }
        if sight.paused && since(clocks.seen) >= PAUSED_END {
            return Verdict::End(Cause::SourceGone);
        }
        if sight.paused && since(clocks.kept) >= GIVEN_UP_END {
            return Verdict::End(Cause::SlotGoes);
        }
        if silent >= SILENT_END && !at_work {
            return Verdict::End(Cause::Silent);
        }
        if sight.unconfirmed.max(sight.held_up) >= Some(KAFKA_RED) {
            return Verdict::Red(Cause::Kafka);
        }
        if silent >= SILENT_RED && !at_work {
            return Verdict::Red(Cause::Silent);
        }
        if since(clocks.moved) >= STALL_RED {
            return Verdict::Red(Cause::Stalled);
        }
        Verdict::Healthy
    }
}

impl Sight {
    /// Whether there is something that must move.
    fn has_work(&self) -> bool {
        self.probe_out || self.source.is_some_and(|source| source.end > self.received)
    }

    fn moved_since(&self, last: &Sight) -> bool {
        self.checkpoints != last.checkpoints
            || self.arrived.saturating_sub(last.arrived) >= BULK_BYTES
            // Positions alone come with answers too, and say nothing about what is published.
            || (self.received != last.received && !self.probe_out)
    }
}

impl Cause {
    /// In words, for people.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Cause::Silent => "no bytes come from postgres",
            Cause::Kafka => "kafka does not confirm a batch",
            Cause::Stalled => "nothing is published though the source has moved on",
            Cause::SourceGone => "postgres does not answer while the relay is paused",
            Cause::SlotGoes => "postgres is about to give up the slot while the relay is paused",
            Cause::Publication => "the publication was changed",
        }
    }

    /// As the label of a metric.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Cause::Kafka => "kafka",
            Cause::Silent | Cause::Stalled | Cause::SourceGone | Cause::SlotGoes => "source",
            Cause::Publication => "publication",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{BULK_BYTES, Cause, Sight, SourceSight, Verdict, Watchdog};
    use crate::lsn::Lsn;

    const SECOND: Duration = Duration::from_secs(1);
    const SOURCE: SourceSight = SourceSight { end: Lsn(100), at_work: false, gives_up: false };

    /// A relay that has caught up with a source at rest.
    fn calm() -> Sight {
        Sight {
            now: Instant::now(),
            session: 1,
            paused: false,
            arrived: 0,
            received: Lsn(100),
            checkpoints: 0,
            held_up: None,
            unconfirmed: None,
            probe_out: false,
            source: Some(SOURCE),
        }
    }

    /// Looks once a second for half a minute, each time as `change` makes it of what went before;
    /// answers with the seconds of the first red and the first end.
    fn watch(change: impl Fn(u64, &mut Sight)) -> (Option<u64>, Option<u64>) {
        let mut watchdog = Watchdog::default();
        let mut sight = calm();
        let (mut red, mut end) = (None, None);
        for second in 0..30 {
            change(second, &mut sight);
            match watchdog.look(sight) {
                Verdict::Healthy => {}
                Verdict::Red(_) => red = red.or(Some(second)),
                Verdict::End(_) => end = end.or(Some(second)),
            }
            sight.now += SECOND;
        }
        (red, end)
    }

    /// What each second brings on a line that lives.
    fn answers(sight: &mut Sight) {
        sight.arrived += 23;
    }

    #[test]
    fn a_line_that_answers_is_healthy_and_a_silent_one_is_ended() {
        assert_eq!(watch(|_, sight| answers(sight)), (None, None));
        assert_eq!(watch(|_, _| {}), (Some(5), Some(10)));
    }

    #[test]
    fn a_backlog_that_moves_is_healthy_however_late_its_probe() {
        let behind = |sight: &mut Sight| {
            sight.probe_out = true;
            sight.source = Some(SourceSight { end: Lsn(1_000_000), ..SOURCE });
        };
        let by_checkpoints = watch(|second, sight| {
            behind(sight);
            answers(sight);
            sight.checkpoints += u64::from(second % 4 == 0);
        });
        assert_eq!(by_checkpoints, (None, None));

        // One record of a gigabyte.
        let by_bytes = watch(|_, sight| {
            behind(sight);
            sight.arrived += BULK_BYTES;
        });
        assert_eq!(by_bytes, (None, None));
    }

    #[test]
    fn a_source_that_moves_on_without_us_is_red_and_not_ended() {
        let moves_on = watch(|second, sight| {
            answers(sight);
            sight.source = Some(SourceSight { end: Lsn(100 + second), ..SOURCE });
        });
        // From the first second in which it was ahead.
        assert_eq!(moves_on, (Some(5), None));

        // Positions come and the probe does not.
        let probe_is_lost = watch(|second, sight| {
            answers(sight);
            sight.received = Lsn(100 + second);
            sight.probe_out = true;
        });
        assert_eq!(probe_is_lost, (Some(5), None));
    }

    #[test]
    fn a_server_that_works_in_silence_is_left_to_work() {
        let at_work = watch(|_, sight| {
            sight.source = Some(SourceSight { end: Lsn(1_000_000), at_work: true, ..SOURCE });
        });
        assert_eq!(at_work, (None, None));
    }

    #[test]
    fn kafka_is_red_before_the_session_ends_and_its_delay_is_not_the_sources() {
        let hung = watch(|second, sight| {
            sight.held_up = Some(SECOND * u32::try_from(second).unwrap());
            sight.unconfirmed = sight.held_up;
        });
        assert_eq!(hung, (Some(5), Some(10)));
        let topic_is_made = watch(|second, sight| {
            sight.held_up = Some(SECOND * u32::try_from(second).unwrap());
        });
        assert_eq!(topic_is_made, (Some(5), None));
        let mut watchdog = Watchdog::default();
        let late = Sight { unconfirmed: Some(SECOND * 10), ..calm() };
        assert_eq!(watchdog.look(late), Verdict::End(Cause::Kafka));
    }

    #[test]
    fn a_paused_relay_is_healthy_until_the_source_is_gone() {
        let paused = |sight: &mut Sight| {
            sight.paused = true;
            sight.probe_out = true;
        };
        assert_eq!(watch(|_, sight| paused(sight)), (None, None));
        let gone = watch(|_, sight| {
            paused(sight);
            sight.source = None;
        });
        assert_eq!(gone, (None, Some(3)));
    }

    #[test]
    fn a_paused_relay_lets_go_of_a_slot_that_is_given_up() {
        let given_up = |sight: &mut Sight| {
            sight.source = Some(SourceSight { gives_up: true, ..SOURCE });
        };
        let paused = watch(|_, sight| {
            given_up(sight);
            sight.paused = true;
        });
        assert_eq!(paused, (None, Some(10)));
        // What is read may still be saved.
        let read = watch(|_, sight| {
            given_up(sight);
            answers(sight);
        });
        assert_eq!(read, (None, None));
    }

    #[test]
    fn a_new_session_starts_with_new_clocks() {
        let restarts = watch(|second, sight| sight.session = second / 4);

        assert_eq!(restarts, (None, None));
    }
}
