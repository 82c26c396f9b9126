//! What a relay is doing, for whoever wants to look: endpoints, metrics, the service around it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::error::Error;
use crate::lsn::Lsn;
use crate::metrics::{self, Meters, flag, seconds};
use crate::position::Incarnation;
use crate::publication::Seen;
use crate::publisher::unix_ms;
use crate::slot_health::{Look, SlotHealth};
use crate::watchdog::{Cause, Sight, SourceSight, Verdict};

mod histogram;
mod snapshot;

pub use histogram::Distribution;
pub use snapshot::{PastError, Role, Snapshot};

use histogram::Histogram;

/// Errors that are remembered.
const ERRORS_MAX: usize = 20;

/// Where the watchdog has not looked for so long, the relay's thread does nothing else either.
const JUDGED_MAX: Duration = Duration::from_secs(5);

/// A relay that has said nothing of its stream for so long may be behind without knowing it.
const CURRENT_MAX: Duration = Duration::from_secs(2);

/// A handle to what a relay is doing; cheap to clone, and valid after the relay's end.
///
/// ```no_run
/// # use tailrace_cdc_relay::{Config, Relay};
/// # async fn run(relay: Relay) -> Result<(), tailrace_cdc_relay::Error> {
/// let status = relay.status();
/// tokio::spawn(relay.run(std::future::pending()));
/// let now = status.snapshot();
/// println!("{} messages, {:?} behind", now.messages, now.lag);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Status(Arc<Shared>);

struct Shared {
    slot: String,
    began: Instant,
    meters: OnceLock<Meters>,
    counts: Counts,
    commit: Histogram,
    delivery: Histogram,
    told: Mutex<Told>,
    paused: watch::Sender<bool>,
    /// The session that the watchdog wants ended, and why.
    ended: watch::Sender<Option<(u64, Cause)>>,
}

/// What changes with the work; read and written without a lock.
#[derive(Default)]
struct Counts {
    messages: AtomicU64,
    bytes: AtomicU64,
    dead_letters: AtomicU64,
    dead_letters_cut: AtomicU64,
    ignored: AtomicU64,
    spool_full: AtomicU64,
    /// Of transactions in progress, in memory and in files.
    in_memory: AtomicU64,
    spooled: AtomicU64,
    batches: AtomicU64,
    checkpoints: AtomicU64,
    sessions: AtomicU64,
    restarts: AtomicU64,
    received: AtomicU64,
    sealed: AtomicU64,
    flushed: AtomicU64,
    /// Times on the clock of `Shared::at`, 0 for never.
    heard: AtomicU64,
    judged: AtomicU64,
    held_up: AtomicU64,
    unconfirmed: AtomicU64,
    /// Commit times in the source, microseconds since 1970, 0 for none.
    oldest_pending: AtomicU64,
    newest_published: AtomicU64,
}

/// What changes seldom.
#[derive(Default)]
struct Told {
    state: State,
    /// Whether it has stood by or led: then the source was as it must be.
    settled: bool,
    relay_id: Option<String>,
    incarnation: Option<Incarnation>,
    streaming: bool,
    arrived: Option<Arc<AtomicU64>>,
    source: Option<SourceSight>,
    slot: Option<SlotHealth>,
    /// How the publication was seen last by the relay that leads.
    publication: Option<Seen>,
    /// Why the lookout wants a session ended, with its number.
    fault: Option<(u64, Error)>,
    probe: Option<(String, Instant)>,
    probe_took: Option<Duration>,
    red: Option<Cause>,
    errors: VecDeque<PastError>,
}

/// Where a relay stands, apart from being paused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Starting,
    StandingBy,
    Leading,
    Stopping,
}

/// What became durable in Kafka with one checkpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delivered {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    pub(crate) dead_letters: usize,
    /// Of these without their payload.
    pub(crate) dead_letters_cut: usize,
    /// Commit times in the source, microseconds since 1970.
    pub(crate) oldest: u64,
    pub(crate) newest: u64,
    /// Of the batch that is filled meanwhile; 0 when that is empty.
    pub(crate) oldest_left: u64,
    /// From its seal on.
    pub(crate) took: Duration,
}

/// The stream of a session.
#[derive(Debug)]
pub(crate) struct Line {
    /// Counts its bytes.
    pub(crate) arrived: Arc<AtomicU64>,
    /// Whether it brings transactions in progress.
    pub(crate) in_progress: bool,
}

impl Status {
    pub(crate) fn new(slot: &str) -> Self {
        Status(Arc::new(Shared {
            slot: slot.to_owned(),
            began: Instant::now(),
            meters: OnceLock::new(),
            counts: Counts::default(),
            commit: Histogram::default(),
            delivery: Histogram::default(),
            told: Mutex::default(),
            paused: watch::Sender::new(false),
            ended: watch::Sender::new(None),
        }))
    }

    /// What the relay does now.
    pub fn snapshot(&self) -> Snapshot {
        snapshot::snapshot(&self.0)
    }

    /// Asks the relay to finish its batch and to read no further. It stays the leader, and goes
    /// on with [`Status::resume`]; what is committed meanwhile stays in the source's log.
    pub fn pause(&self) {
        if !self.0.paused.send_replace(true) {
            tracing::info!("paused");
        }
    }

    /// Ends a pause.
    pub fn resume(&self) {
        if self.0.paused.send_replace(false) {
            tracing::info!("resumed");
        }
    }

    pub(crate) fn paused(&self) -> watch::Receiver<bool> {
        self.0.paused.subscribe()
    }

    pub(crate) fn meters(&self) -> &Meters {
        self.0.meters.get_or_init(|| Meters::new(&self.0.slot))
    }

    /// A relay begins to run, be it after another one that stopped.
    pub(crate) fn begins(&self) {
        self.told().state = State::Starting;
    }

    pub(crate) fn stands_by(&self) {
        // What is still to be published is the leader's now.
        self.0.counts.oldest_pending.store(0, Ordering::Relaxed);
        let mut told = self.told();
        told.settled = true;
        if told.state != State::Stopping {
            told.state = State::StandingBy;
        }
    }

    pub(crate) fn stops(&self) {
        self.told().state = State::Stopping;
    }

    /// A session leads. Answers with its number.
    pub(crate) fn leads(
        &self,
        relay_id: &str,
        incarnation: Incarnation,
        flushed: Lsn,
        stream: Line,
    ) -> u64 {
        let counts = &self.0.counts;
        for at in [&counts.received, &counts.sealed, &counts.flushed] {
            at.store(flushed.0, Ordering::Relaxed);
        }
        counts.held_up.store(0, Ordering::Relaxed);
        counts.unconfirmed.store(0, Ordering::Relaxed);
        self.heard(Instant::now());
        self.meters().sessions.increment(1);
        let mut told = self.told();
        if told.state != State::Stopping {
            told.state = State::Leading;
        }
        told.settled = true;
        told.relay_id = Some(relay_id.to_owned());
        told.incarnation = Some(incarnation);
        told.streaming = stream.in_progress;
        told.arrived = Some(stream.arrived);
        told.probe = None;
        told.red = None;
        counts.sessions.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A session, or an attempt at one, is over.
    pub(crate) fn failed(&self, error: &Error) {
        self.meters().session_failed(error.kind());
        self.streamed(0, 0);
        let mut told = self.told();
        if told.state != State::Stopping {
            told.state = State::Starting;
        }
        drop(told);
        self.remember(error);
    }

    /// Shows an error among those that were.
    pub(crate) fn remember(&self, error: &Error) {
        let mut told = self.told();
        if told.errors.len() >= ERRORS_MAX {
            told.errors.pop_front();
        }
        told.errors.push_back(PastError {
            unix_ms: unix_ms(),
            kind: error.kind().name(),
            text: error.to_string(),
            mend: error.mend().map(str::to_owned),
        });
    }

    /// Something came from the stream.
    pub(crate) fn heard(&self, now: Instant) {
        self.0.counts.heard.store(self.0.at(now), Ordering::Relaxed);
    }

    /// Everything up to here was received. Only the relay's loop calls it, so that nothing comes
    /// between the look and the change.
    pub(crate) fn received(&self, lsn: Lsn) {
        let received = &self.0.counts.received;
        if received.load(Ordering::Relaxed) < lsn.0 {
            received.store(lsn.0, Ordering::Relaxed);
        }
    }

    /// A first message is in the batch that is being filled.
    pub(crate) fn pending(&self, commit_micros: u64) {
        let counts = &self.0.counts;
        if counts.oldest_pending.load(Ordering::Relaxed) == 0 {
            counts.oldest_pending.store(commit_micros, Ordering::Relaxed);
        }
    }

    /// The relay waits for Kafka before it reads on, until [`Status::goes_on`].
    pub(crate) fn held_up(&self) {
        let now = self.0.at(Instant::now());
        self.0.counts.held_up.store(now, Ordering::Relaxed);
    }

    pub(crate) fn goes_on(&self) {
        self.0.counts.held_up.store(0, Ordering::Relaxed);
    }

    /// A batch is handed over to be committed, with a checkpoint up to here.
    pub(crate) fn sealing(&self, lsn: Lsn) {
        let counts = &self.0.counts;
        counts.sealed.store(lsn.0, Ordering::Relaxed);
        counts.unconfirmed.store(self.0.at(Instant::now()), Ordering::Relaxed);
    }

    /// A batch is durable with its checkpoint, which lets the slot be flushed up to here.
    pub(crate) fn delivered(&self, flushed: Lsn, batch: Delivered) {
        let Shared { counts, commit, delivery, .. } = &*self.0;
        let add = |count: &AtomicU64, number: usize| {
            count.fetch_add(number as u64, Ordering::Relaxed);
        };
        add(&counts.checkpoints, 1);
        add(&counts.messages, batch.messages);
        add(&counts.bytes, batch.bytes);
        add(&counts.dead_letters, batch.dead_letters);
        add(&counts.dead_letters_cut, batch.dead_letters_cut);
        counts.flushed.store(flushed.0, Ordering::Relaxed);
        counts.unconfirmed.store(0, Ordering::Relaxed);
        counts.oldest_pending.store(batch.oldest_left, Ordering::Relaxed);
        let meters = self.meters();
        commit.record(batch.took);
        meters.commit.record(seconds(batch.took));
        if batch.messages == 0 {
            return;
        }
        counts.newest_published.store(batch.newest, Ordering::Relaxed);
        add(&counts.batches, 1);
        let took = since_micros(batch.oldest);
        delivery.record(took);
        meters.delivery.record(seconds(took));
        meters.batches.increment(1);
        meters.messages.increment(batch.messages as u64);
        meters.message_bytes.increment(batch.bytes as u64);
        meters.dead_letters.increment(batch.dead_letters as u64);
        meters.dead_letters_cut.increment(batch.dead_letters_cut as u64);
        meters.batch_messages.record(batch.messages as f64);
    }

    /// A message was ignored: it stood outside any transaction, or rows alone are published.
    pub(crate) fn ignored(&self) {
        self.0.counts.ignored.fetch_add(1, Ordering::Relaxed);
        self.meters().ignored.increment(1);
    }

    /// What transactions in progress take.
    pub(crate) fn streamed(&self, in_memory: u64, spooled: u64) {
        self.0.counts.in_memory.store(in_memory, Ordering::Relaxed);
        self.0.counts.spooled.store(spooled, Ordering::Relaxed);
    }

    /// A session ended because it could keep no more of transactions in progress.
    pub(crate) fn gave_up_streaming(&self) {
        self.0.counts.spool_full.fetch_add(1, Ordering::Relaxed);
        self.meters().spool_full.increment(1);
    }

    pub(crate) fn has_settled(&self) -> bool {
        self.told().settled
    }

    /// What the source said on its own connection; `None` when it did not answer.
    pub(crate) fn source(&self, look: Option<Look>) {
        let meters = self.meters();
        meters.source_up.set(flag(look.is_some()));
        let Some(Look { end, at_work, health }) = look else {
            self.told().source = None;
            return;
        };
        let amount = |amount: Option<u64>| amount.map_or(f64::NAN, |amount| amount as f64);
        meters.about_slot(metrics::SLOT_RETAINED, amount(health.retained_bytes));
        if health.safe_bytes.is_some() {
            meters.about_slot(metrics::SLOT_SAFE, amount(health.safe_bytes));
        }
        if !health.active && health.inactive_seconds.is_some() {
            meters.about_slot(metrics::SLOT_INACTIVE, amount(health.inactive_seconds));
        } else if health.active {
            meters.about_slot(metrics::SLOT_INACTIVE, 0.0);
        }
        meters.about_slot(metrics::SLOT_LOST, flag(health.is_lost()));
        let warning = health.warning();
        meters.about_slot(metrics::SLOT_WARNING, flag(warning.is_some()));
        let mut told = self.told();
        let before = told.slot.as_ref().and_then(SlotHealth::warning);
        if let Some(warning) = &warning
            && before.is_none()
        {
            tracing::warn!(slot = self.0.slot, warning, "the slot is in danger");
        }
        told.source = Some(SourceSight { end, at_work, gives_up: health.is_going() });
        told.slot = Some(health);
    }

    /// The publication, as it was seen last.
    pub(crate) fn publication(&self) -> Option<Seen> {
        self.told().publication.clone()
    }

    /// A session begins with the publication as it is now.
    pub(crate) fn begins_with(&self, publication: Seen) {
        self.told().publication = Some(publication);
    }

    /// The session that leads, and the publication as it was seen last in it.
    pub(crate) fn publication_of_leader(&self) -> Option<(u64, Seen)> {
        let told = self.told();
        let session = self.0.counts.sessions.load(Ordering::Relaxed);
        let seen = told.publication.clone()?;
        (told.state == State::Leading).then_some((session, seen))
    }

    /// The publication is still as it was, for a session.
    pub(crate) fn publication_stays(&self, session: u64, seen: Seen) {
        let mut told = self.told();
        if self.0.counts.sessions.load(Ordering::Relaxed) == session {
            told.publication = Some(seen);
        }
    }

    /// A session must not go on: what it reads is not what it is to publish.
    pub(crate) fn refuses(&self, session: u64, fault: Error) {
        self.told().fault = Some((session, fault));
        self.0.ended.send_replace(Some((session, Cause::Publication)));
    }

    /// Why this session must not go on, if that was said.
    pub(crate) fn fault_of(&self, session: u64) -> Option<Error> {
        let (refused, fault) = self.told().fault.take()?;
        (refused == session).then_some(fault)
    }

    /// Whether a probe may be written now: the relay leads and no other is on its way.
    pub(crate) fn wants_probe(&self) -> bool {
        let told = self.told();
        told.state == State::Leading && told.probe.is_none() && !*self.0.paused.borrow()
    }

    /// A probe with this content is about to be written.
    pub(crate) fn probe_leaves(&self, content: &str) {
        self.told().probe = Some((content.to_owned(), Instant::now()));
    }

    /// The probe on its way could not be written.
    pub(crate) fn probe_failed(&self) {
        self.told().probe = None;
    }

    /// Whether this is the content of the probe that is on its way.
    pub(crate) fn is_probe(&self, content: &[u8]) -> bool {
        self.told().probe.as_ref().is_some_and(|(sent, _)| sent.as_bytes() == content)
    }

    /// A checkpoint covers the probe.
    pub(crate) fn probe_returned(&self) {
        let mut told = self.told();
        let Some((_, sent)) = told.probe.take() else { return };
        let took = sent.elapsed();
        told.probe_took = Some(took);
        self.meters().probe.record(seconds(took));
    }

    /// What the watchdog is to judge; `None` while the relay does not lead.
    pub(crate) fn sight(&self, now: Instant) -> Option<Sight> {
        let told = self.told();
        let Told { state: State::Leading, arrived: Some(arrived), .. } = &*told else {
            return None;
        };
        let Counts { sessions, received, checkpoints, held_up, unconfirmed, .. } = &self.0.counts;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Some(Sight {
            now,
            session: read(sessions),
            paused: *self.0.paused.borrow(),
            arrived: read(arrived),
            received: Lsn(read(received)),
            checkpoints: read(checkpoints),
            held_up: self.0.elapsed(read(held_up), now),
            unconfirmed: self.0.elapsed(read(unconfirmed), now),
            probe_out: told.probe.is_some(),
            source: told.source,
        })
    }

    /// Takes in what the watchdog says of the session that it saw.
    pub(crate) fn judged(&self, session: u64, verdict: Verdict) {
        let red = match verdict {
            Verdict::Healthy => None,
            Verdict::Red(cause) | Verdict::End(cause) => Some(cause),
        };
        let before = std::mem::replace(&mut self.told().red, red);
        match red {
            Some(cause) if before != red => tracing::warn!(reason = cause.text(), "not ready"),
            None if before.is_some() => tracing::info!("ready again"),
            _ => {}
        }
        if let Verdict::End(cause) = verdict
            && self.0.ended.send_replace(Some((session, cause))) != Some((session, cause))
        {
            self.0.counts.restarts.fetch_add(1, Ordering::Relaxed);
            self.meters().restarted(cause.label());
        }
    }

    /// Resolves when the watchdog wants this session ended, with why.
    pub(crate) async fn end_of(&self, session: u64) -> Cause {
        let mut ended = self.0.ended.subscribe();
        let wanted =
            ended.wait_for(|ended| ended.is_some_and(|(wanted, _)| wanted == session)).await;
        match wanted.ok().and_then(|wanted| *wanted) {
            Some((_, cause)) => cause,
            // The sender lives as long as `self`.
            None => std::future::pending().await,
        }
    }

    /// Sets the metrics that follow from the time of day.
    pub(crate) fn publish_gauges(&self) {
        self.0.counts.judged.store(self.0.at(Instant::now()), Ordering::Relaxed);
        let now = self.snapshot();
        let meters = self.meters();
        meters.leading.set(flag(matches!(now.role, Role::Leading | Role::Paused)));
        meters.paused.set(flag(*self.0.paused.borrow()));
        meters.ready.set(flag(now.not_ready.is_none()));
        meters.lag.set(seconds(now.lag));
        meters.streaming.set(flag(now.streaming));
        meters.stream_memory.set(now.streamed_in_memory_bytes as f64);
        meters.spool_bytes.set(now.spooled_bytes as f64);
        if let Some(bytes) = now.lag_bytes {
            meters.lag_bytes.set(bytes as f64);
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.told.lock().expect("no panic while it is held")
    }
}

impl Shared {
    /// Milliseconds on the relay's own clock, never 0.
    fn at(&self, now: Instant) -> u64 {
        let millis = now.saturating_duration_since(self.began).as_millis();
        u64::try_from(millis).unwrap_or(u64::MAX).max(1)
    }

    /// How long ago that was; `None` when it never was.
    fn elapsed(&self, at: u64, now: Instant) -> Option<Duration> {
        (at > 0).then(|| Duration::from_millis(self.at(now).saturating_sub(at)))
    }
}

/// How long ago that was by the clock on the wall, of which the source has another.
fn since_micros(unix_micros: u64) -> Duration {
    Duration::from_micros(unix_ms().saturating_mul(1_000).saturating_sub(unix_micros))
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Status").field("slot", &self.0.slot).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
