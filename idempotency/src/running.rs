//! A partition as the intake sees it: where its records come from, its lanes, and how far they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant, SystemTime};

use rdkafka::error::RDKafkaErrorCode;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::flow::{self, Flow};
use crate::known::Inspector;
use crate::lane::LaneEnd;
use crate::lanes::{AppliedBefore, Lanes};
use crate::metrics::Standing;
use crate::native::{Complaint, PartitionQueue};
use crate::position::Offset;
use crate::progress::Epoch;
use crate::record::Delivery;

/// Records on their way to a lane, in the order of their offsets.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) deliveries: Vec<Delivery>,
    bytes: usize,
    /// All records of the lane below this offset stand here or before.
    pub(crate) passed: Option<Offset>,
}

/// What intake and lane know of each other while the lane runs.
#[derive(Debug)]
pub(crate) struct Gauge {
    queued: AtomicUsize,
    queued_bytes: AtomicUsize,
    /// Set while the intake waits for the lane to have room.
    full: AtomicBool,
    intake: Thread,
    /// The lane's progress as committed in Postgres; negative before the first commit.
    pub(crate) committed: AtomicI64,
    parked: AtomicUsize,
    /// So many keys are parked that it takes nothing more.
    held_back: AtomicBool,
    /// When the oldest record in hand was written, in milliseconds; 0 while there is none.
    oldest: AtomicU64,
}

impl Gauge {
    /// The gauge of a lane whose intake works on this thread.
    pub(crate) fn new(intake: Thread) -> Self {
        Self {
            queued: AtomicUsize::new(0),
            queued_bytes: AtomicUsize::new(0),
            full: AtomicBool::new(false),
            intake,
            committed: AtomicI64::new(-1),
            parked: AtomicUsize::new(0),
            held_back: AtomicBool::new(false),
            oldest: AtomicU64::new(0),
        }
    }

    pub(crate) fn parked(&self, keys: usize, held_back: bool) {
        self.parked.store(keys, Ordering::Relaxed);
        self.held_back.store(held_back, Ordering::Relaxed);
    }

    /// The lane has records in hand, of which the oldest was written then, or has committed them.
    pub(crate) fn applying(&self, written: Option<SystemTime>) {
        let since = written.and_then(|written| written.duration_since(SystemTime::UNIX_EPOCH).ok());
        let written = since.and_then(|since| u64::try_from(since.as_millis()).ok());
        self.oldest.store(written.unwrap_or(0), Ordering::Relaxed);
    }

    /// The lane has taken a chunk over.
    pub(crate) fn taken(&self, chunk: &Chunk) {
        let records = self.queued.fetch_sub(chunk.deliveries.len(), Ordering::SeqCst);
        let bytes = self.queued_bytes.fetch_sub(chunk.bytes, Ordering::SeqCst);
        let (records, bytes) = (records - chunk.deliveries.len(), bytes - chunk.bytes);
        if self.full.load(Ordering::SeqCst) && flow::has_drained(records, bytes) {
            self.intake.unpark();
        }
    }
}

/// A running lane, seen from the intake.
pub(crate) struct RunningLane {
    pub(crate) began_at: Option<Offset>,
    pub(crate) queue: mpsc::Sender<Chunk>,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) task: JoinHandle<LaneEnd>,
    next: Chunk,
    flow: Flow,
    /// Up to here the lane knows what is its own.
    told: Option<Offset>,
}

impl RunningLane {
    pub(crate) fn new(
        began_at: Option<Offset>,
        queue: mpsc::Sender<Chunk>,
        gauge: Arc<Gauge>,
        task: JoinHandle<LaneEnd>,
    ) -> Self {
        let next = Chunk::default();
        Self { began_at, queue, gauge, task, next, flow: Flow::Open, told: began_at }
    }

    fn push(&mut self, delivery: Delivery) {
        self.next.bytes += delivery.bytes();
        self.told = Some(delivery.position.offset.next());
        self.next.deliveries.push(delivery);
    }

    /// Hands over what was gathered. What finds no place waits for the next time.
    fn hand_over(&mut self) {
        if self.next.deliveries.is_empty() && self.next.passed.is_none() {
            return;
        }
        let chunk = std::mem::take(&mut self.next);
        self.gauge.queued.fetch_add(chunk.deliveries.len(), Ordering::SeqCst);
        self.gauge.queued_bytes.fetch_add(chunk.bytes, Ordering::SeqCst);
        match self.queue.try_send(chunk) {
            // A lane that has ended is found out about when it is looked after.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(chunk)) => {
                self.gauge.queued.fetch_sub(chunk.deliveries.len(), Ordering::SeqCst);
                self.gauge.queued_bytes.fetch_sub(chunk.bytes, Ordering::SeqCst);
                self.next = chunk;
            }
        }
    }

    fn pass(&mut self, seen: Offset) {
        if self.told < Some(seen) {
            self.told = Some(seen);
            self.next.passed = Some(seen);
        }
        self.hand_over();
    }

    fn has_room(&mut self) -> bool {
        let room = |lane: &Self| {
            let queued = lane.gauge.queued.load(Ordering::SeqCst);
            lane.flow.after(queued, lane.gauge.queued_bytes.load(Ordering::SeqCst))
        };
        let before = self.flow;
        self.flow = room(self);
        if self.flow != before {
            self.gauge.full.store(self.flow == Flow::Full, Ordering::SeqCst);
            // The lane may have drained before it could know that somebody waits.
            self.flow = room(self);
        }
        self.flow == Flow::Open && self.next.deliveries.is_empty()
    }

    fn reached(&self) -> Option<Offset> {
        let committed = self.gauge.committed.load(Ordering::Acquire);
        self.began_at.max((committed >= 0).then(|| Offset::new(committed)))
    }
}

/// A partition whose lanes run.
pub(crate) struct Running {
    pub(crate) epoch: Epoch,
    pub(crate) lanes: Vec<RunningLane>,
    pub(crate) stop: watch::Sender<bool>,
    /// What Kafka was told last.
    pub(crate) hinted: Option<Offset>,
    fetched: PartitionQueue,
    count: Lanes,
    applied_before: AppliedBefore,
    /// Where messages are known by their position.
    inspector: Option<Inspector>,
    /// The offset after the last record that arrived.
    seen: Option<Offset>,
    /// The client has told that the partition ends there, and nothing has arrived since.
    at_end: bool,
    /// What is told once everything before it is applied, or then.
    halt: Option<(Error, Instant)>,
}

/// How long lanes may take over what stands before a record at which the consumer halts. Whoever passes over that record
/// by hand would pass over them too.
const HALT_WAIT_MAX: Duration = Duration::from_secs(10);

/// What one visit to a partition's queue brought.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) delivered: u64,
    /// Applied while there was another number of lanes.
    pub(crate) applied_before: u64,
    pub(crate) complaint: Option<Complaint>,
}

impl Running {
    pub(crate) fn new(
        epoch: Epoch,
        lanes: Vec<RunningLane>,
        stop: watch::Sender<bool>,
        fetched: PartitionQueue,
        count: Lanes,
        applied_before: AppliedBefore,
        inspector: Option<Inspector>,
    ) -> Self {
        Self {
            epoch,
            lanes,
            stop,
            hinted: None,
            fetched,
            count,
            applied_before,
            inspector,
            seen: None,
            at_end: false,
            halt: None,
        }
    }

    /// Hands records over to the lanes, if all have room: behind a lane that is full others wait as well, since
    /// records of all of them lie in one queue.
    pub(crate) fn take(&mut self) -> Taken {
        let mut taken = Taken::default();
        if let Some((_, until)) = &self.halt {
            let is_over = self.reached() >= self.seen || Instant::now() >= *until;
            self.pass();
            let halt = self.halt.take_if(|_| is_over);
            taken.complaint = halt.map(|(error, _)| Complaint::Record(error));
            return taken;
        }
        let mut room = true;
        for lane in &mut self.lanes {
            room &= lane.has_room();
        }
        if !room {
            for lane in &mut self.lanes {
                lane.hand_over();
            }
            return taken;
        }
        let Self { fetched, lanes, count, applied_before, inspector, seen, at_end, halt, .. } =
            self;
        fetched.take(|fetched| {
            let delivery = match fetched {
                Ok(delivery) => delivery,
                // Told where the client is asked to: what lies before is here, or was no record.
                Err(Complaint::Kafka(RDKafkaErrorCode::PartitionEOF, _, end)) => {
                    *seen = (*seen).max(Some(end));
                    *at_end = true;
                    return;
                }
                Err(complaint) => {
                    taken.complaint.get_or_insert(complaint);
                    return;
                }
            };
            *at_end = false;
            // What follows a record that cannot be taken over must not be applied before it.
            if halt.is_some() || taken.complaint.as_ref().is_some_and(Complaint::is_about_a_record)
            {
                return;
            }
            taken.delivered += 1;
            let offset = delivery.position.offset;
            if applied_before.holds(delivery.key.as_deref(), offset) {
                *seen = Some(offset.next());
                taken.applied_before += 1;
                return;
            }
            if let Some(Err(error)) = inspector.as_mut().map(|it| it.admit(&delivery)) {
                *halt = Some((error, Instant::now() + HALT_WAIT_MAX));
                return;
            }
            *seen = Some(offset.next());
            if let Some(lane) = lanes.get_mut(count.of(delivery.key.as_deref(), offset)) {
                lane.push(delivery);
            }
        });
        for lane in lanes {
            lane.hand_over();
        }
        taken
    }

    /// Tells lanes that have had no record for a while that what came since was not theirs. Else their progress, and
    /// with it that of the partition, would stand still, and a restart would read everything since again.
    pub(crate) fn pass(&mut self) {
        if let Some(seen) = self.seen {
            for lane in &mut self.lanes {
                lane.pass(seen);
            }
        }
    }

    /// Whether the last thing that the client told of the partition is that it ends.
    pub(crate) fn is_at_end(&self) -> bool {
        self.at_end
    }

    /// Everything below has arrived here, or was not to.
    pub(crate) fn arrived_until(&self) -> Option<Offset> {
        self.seen.or(self.began_at())
    }

    /// Everything below is applied.
    pub(crate) fn reached(&self) -> Option<Offset> {
        self.lanes.iter().map(RunningLane::reached).min().flatten()
    }

    /// How it is, where the topic ends there.
    pub(crate) fn standing(&self, end: Option<i64>, now: SystemTime) -> Standing {
        let reached = self.reached().or(self.began_at()).map_or(0, Offset::get);
        let behind = end.map_or(0, |end| end.saturating_sub(reached));
        let oldest = self.lanes.iter().map(|lane| lane.gauge.oldest.load(Ordering::Relaxed));
        let oldest = oldest.filter(|written| *written > 0).min();
        let written = oldest.map(|written| SystemTime::UNIX_EPOCH + Duration::from_millis(written));
        let age = written.and_then(|written| now.duration_since(written).ok());
        let parked = self.lanes.iter().map(|lane| lane.gauge.parked.load(Ordering::Relaxed));
        Standing {
            lag: u64::try_from(behind).unwrap_or(0),
            lag_seconds: age.unwrap_or_default().as_secs_f64(),
            parked_keys: parked.sum(),
        }
    }

    /// Whether a lane takes nothing more for all that is parked.
    pub(crate) fn is_held_back(&self) -> bool {
        self.lanes.iter().any(|lane| lane.gauge.held_back.load(Ordering::Relaxed))
    }

    pub(crate) fn began_at(&self) -> Option<Offset> {
        self.lanes.iter().map(|lane| lane.began_at).min().flatten()
    }

    pub(crate) fn has_committed(&self) -> bool {
        self.lanes.iter().any(|lane| lane.gauge.committed.load(Ordering::Acquire) >= 0)
    }

    /// Whether a lane has come to its end.
    pub(crate) fn has_ended(&self) -> bool {
        self.lanes.iter().any(|lane| lane.task.is_finished())
    }
}
