//! The state of a relay at one moment, in a form to be shown.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use super::histogram::Distribution;
use super::{CURRENT_MAX, JUDGED_MAX, Shared, State, Told, since_micros};
use crate::lsn::Lsn;
use crate::slot_health::SlotHealth;

/// What part a relay plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Role {
    /// On its way to lead, at first or after an error.
    Starting,
    /// Another relay leads; this one is ready to take over.
    #[serde(rename = "standby")]
    StandingBy,
    /// Publishes.
    Leading,
    /// Leads, and reads no further until it is resumed.
    Paused,
    /// On its way to its end.
    Stopping,
}

/// What a relay was doing at one moment.
///
/// As JSON, which `/status` answers with: positions as text, durations in seconds.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// What part it plays.
    pub role: Role,
    /// Why it is not ready; `None` when it is.
    pub not_ready: Option<String>,
    /// Its name in Kafka, once that is known.
    pub relay_id: Option<String>,
    /// Its replication slot.
    pub slot: String,
    /// The slot's life, once the relay has led.
    pub incarnation: Option<u32>,
    /// The release of the relay.
    pub version: &'static str,
    /// Since it was made.
    #[serde(rename = "uptime_seconds", serialize_with = "as_seconds")]
    pub uptime: Duration,
    /// Everything that committed before this was received.
    #[serde(serialize_with = "as_text")]
    pub received: Lsn,
    /// How far the newest checkpoint goes, be it durable or under way.
    #[serde(serialize_with = "as_text")]
    pub sealed: Lsn,
    /// How far the newest durable checkpoint goes, and with it the slot.
    #[serde(serialize_with = "as_text")]
    pub flushed: Lsn,
    /// The end of the server's log; `None` when it does not answer.
    #[serde(serialize_with = "as_text_too")]
    pub source_end: Option<Lsn>,
    /// Log between that end and what is flushed. Not all of it is ours: it counts what other
    /// databases write.
    pub lag_bytes: Option<u64>,
    /// Age of the oldest message that was received and is not durable in Kafka; where nothing is
    /// heard of the stream, the time since. By the clocks of both machines.
    #[serde(rename = "lag_seconds", serialize_with = "as_seconds")]
    pub lag: Duration,
    /// When the newest published source transaction was committed, milliseconds since 1970.
    pub newest_published_unix_ms: Option<u64>,
    /// Messages that are durable in Kafka, dead letters among them, since the relay was made.
    pub messages: u64,
    /// Bytes of their records.
    pub message_bytes: u64,
    /// Messages that became dead letters.
    pub dead_letters: u64,
    /// Of these without their payload, which was longer than a record may be.
    pub dead_letters_cut: u64,
    /// Messages that were ignored: they stood outside any transaction, or rows alone are
    /// published.
    pub ignored: u64,
    /// Whether large transactions are received while they are in progress.
    pub streaming: bool,
    /// What of them is in memory.
    pub streamed_in_memory_bytes: u64,
    /// What of them is in files.
    pub spooled_bytes: u64,
    /// Sessions that could keep no more of them, so that the next one went on without streaming.
    pub spool_full: u64,
    /// Batches of at least one message.
    pub batches: u64,
    /// How often it came to lead.
    pub sessions: u64,
    /// Sessions that its watchdog ended.
    pub watchdog_restarts: u64,
    /// From a batch's seal until Kafka has committed it.
    pub kafka_commit: Distribution,
    /// From the commit in Postgres of a batch's oldest message until its commit in Kafka.
    pub delivery: Distribution,
    /// What the newest probe took through the whole path.
    #[serde(rename = "probe_seconds", serialize_with = "as_seconds_too")]
    pub probe: Option<Duration>,
    /// The slot, as the server last told.
    pub slot_health: Option<SlotHealth>,
    /// What an operator has to know about the slot.
    pub slot_warning: Option<String>,
    /// The last errors, newest first.
    pub errors: Vec<PastError>,
}

/// An error that ended a session, or an attempt at one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PastError {
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// Its kind.
    pub kind: &'static str,
    /// What happened. Names, never payloads.
    pub text: String,
    /// How to mend it.
    pub mend: Option<String>,
}

pub(super) fn snapshot(shared: &Shared) -> Snapshot {
    let now = Instant::now();
    let counts = &shared.counts;
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let paused = *shared.paused.borrow();
    let told = shared.told.lock().expect("no panic while it is held");
    let (role, mut not_ready) = readiness(&told, paused);
    let judged = shared.elapsed(read(&counts.judged), now);
    if told.state == State::Leading && judged.is_some_and(|judged| judged >= JUDGED_MAX) {
        not_ready = Some("the relay's own thread is stuck".to_owned());
    }
    let flushed = Lsn(read(&counts.flushed));
    let source_end = told.source.map(|source| source.end);
    let published = read(&counts.newest_published);
    Snapshot {
        role,
        not_ready,
        relay_id: told.relay_id.clone(),
        slot: shared.slot.clone(),
        incarnation: told.incarnation.map(|incarnation| incarnation.0),
        version: env!("CARGO_PKG_VERSION"),
        uptime: now.saturating_duration_since(shared.began),
        received: Lsn(read(&counts.received)),
        sealed: Lsn(read(&counts.sealed)),
        flushed,
        source_end,
        lag_bytes: source_end.and_then(|end| lag_bytes(&told, end, flushed)),
        lag: lag(shared, told.state, now),
        newest_published_unix_ms: (published > 0).then_some(published / 1_000),
        messages: read(&counts.messages),
        message_bytes: read(&counts.bytes),
        dead_letters: read(&counts.dead_letters),
        dead_letters_cut: read(&counts.dead_letters_cut),
        ignored: read(&counts.ignored),
        streaming: told.state == State::Leading && told.streaming,
        streamed_in_memory_bytes: read(&counts.in_memory),
        spooled_bytes: read(&counts.spooled),
        spool_full: read(&counts.spool_full),
        batches: read(&counts.batches),
        sessions: read(&counts.sessions),
        watchdog_restarts: read(&counts.restarts),
        kafka_commit: shared.commit.read(),
        delivery: shared.delivery.read(),
        probe: told.probe_took,
        slot_warning: told.slot.as_ref().and_then(SlotHealth::warning),
        slot_health: told.slot.clone(),
        errors: told.errors.iter().rev().cloned().collect(),
    }
}

/// The role, and why a relay in it is not ready.
fn readiness(told: &Told, paused: bool) -> (Role, Option<String>) {
    match told.state {
        State::Stopping => (Role::Stopping, Some("it stops".to_owned())),
        State::Starting => {
            let why = told.errors.back().map_or("it starts", |error| &error.text);
            (Role::Starting, Some(why.to_owned()))
        }
        State::StandingBy => (Role::StandingBy, None),
        State::Leading => {
            let role = if paused { Role::Paused } else { Role::Leading };
            (role, told.red.map(|cause| cause.text().to_owned()))
        }
    }
}

/// A relay that never led knows of no position of its own.
fn lag_bytes(told: &Told, end: Lsn, flushed: Lsn) -> Option<u64> {
    told.incarnation.map(|_| end.0.saturating_sub(flushed.0))
}

fn lag(shared: &Shared, state: State, now: Instant) -> Duration {
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let pending = match read(&shared.counts.oldest_pending) {
        0 => Duration::ZERO,
        oldest => since_micros(oldest),
    };
    // Of what it does not read a relay can not tell how old it is.
    let unheard = match state {
        State::StandingBy => None,
        _ => shared.elapsed(read(&shared.counts.heard), now),
    };
    pending.max(unheard.filter(|unheard| *unheard >= CURRENT_MAX).unwrap_or_default())
}

fn as_text<S: Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(lsn)
}

fn as_text_too<S: Serializer>(lsn: &Option<Lsn>, serializer: S) -> Result<S::Ok, S::Error> {
    match lsn {
        Some(lsn) => serializer.collect_str(lsn),
        None => serializer.serialize_none(),
    }
}

fn as_seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

fn as_seconds_too<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => serializer.serialize_f64(duration.as_secs_f64()),
        None => serializer.serialize_none(),
    }
}
