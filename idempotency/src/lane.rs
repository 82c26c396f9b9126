//! A lane applies the records of one partition, batch by batch, each in one transaction.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::sync::{mpsc, watch};

use crate::attempt::{Effects, read};
use crate::batch::Batch;
use crate::consumer::Unhandled;
use crate::dedupe::{Dedupe, Unsequenced};
use crate::error::Error;
use crate::health::Health;
use crate::id_source::IdFrom;
use crate::lanes::Lanes;
use crate::metrics::{Counters, Meters, Tally};
use crate::milestone::{Hook, Milestone};
use crate::outage::Gate;
use crate::position::Offset;
use crate::progress::Owned;
use crate::record::Delivery;
use crate::retry::Policy;
use crate::route::Dispatch;
use crate::running::{Chunk, Gauge};

/// The longest wait for one answer of Postgres to a statement of ours. Handlers are not bounded by it.
const DATABASE_WAIT_MAX: Duration = Duration::from_secs(30);

/// What all lanes of a consumer share.
pub(crate) struct Shared {
    pub(crate) consumer: String,
    pub(crate) pool: PgPool,
    pub(crate) gate: Gate,
    pub(crate) dispatch: Arc<dyn Dispatch>,
    pub(crate) unhandled: Unhandled,
    pub(crate) id_from: Option<Arc<IdFrom>>,
    /// A statement with which each transaction begins; none if empty.
    pub(crate) entering: String,
    pub(crate) hook: Option<Hook>,
    pub(crate) counters: Counters,
    pub(crate) meters: Meters,
    pub(crate) health: Health,
    pub(crate) batch_records_max: usize,
    pub(crate) batch_wait: Duration,
    pub(crate) retry_for: Duration,
    /// Calls of a lane that are made at once.
    pub(crate) calls_max: usize,
    pub(crate) policy: Policy,
    pub(crate) dedupe: Dedupe,
    pub(crate) unsequenced: Unsequenced,
    pub(crate) lanes: Lanes,
    pub(crate) rebalance_deadline: Duration,
    pub(crate) handler_time_out: Duration,
}

impl Shared {
    /// How long a handler can hold up its lane that waits for something else than a statement.
    pub(crate) fn held_up_max(&self) -> Duration {
        self.handler_time_out.min(self.rebalance_deadline)
    }

    pub(crate) async fn reached(&self, milestone: Milestone) {
        if let Some(hook) = &self.hook {
            hook(milestone).await;
        }
    }
}

/// Why a lane came to its end.
#[derive(Debug)]
pub(crate) enum LaneEnd {
    /// It was told to; everything up to its progress is committed.
    Stopped,
    /// Another process owns the partition.
    NotOurs,
    /// A record or the database stands in the way.
    Failed(Error),
}

pub(crate) struct Lane {
    pub(crate) shared: Arc<Shared>,
    pub(crate) owned: Owned,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) gauge: Arc<Gauge>,
}

impl Lane {
    /// Runs until told to stop, until another owner shows up, or until something stands in the way.
    ///
    /// The next batch is gathered while the database works at the current one.
    pub(crate) async fn run(mut self, queue: mpsc::Receiver<Chunk>) -> LaneEnd {
        let mut inlet = Inlet::new(queue, &self);
        let opened = Effects::open(Arc::clone(&self.shared), &self.owned, self.stop.clone()).await;
        let mut effects = match opened {
            Ok(effects) => effects,
            Err(end) => return end,
        };
        let mut batch = Batch::new(self.owned.next_offset, self.shared.batch_records_max);
        loop {
            let (call_at, look_at) = (effects.call_at(), effects.look_at());
            let rests_until = effects.rests_until();
            let is_full = effects.tell_full();
            self.gauge.parked(effects.parked.len(), is_full);
            let gathered = tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return effects.finish_calls().await,
                called = effects.calls.next() => effects.called(called).await.map(|()| false),
                () = reached(call_at) => effects.prepare_calls().await.map(|()| false),
                () = reached(look_at) => effects.replay().await.map(|()| false),
                () = reached(rests_until) => {
                    effects.give_back();
                    Ok(false)
                }
                gathered = inlet.gather(&mut batch), if !is_full => {
                    if gathered.is_none() {
                        return effects.finish_calls().await;
                    }
                    Ok(true)
                }
            };
            match gathered {
                Ok(true) => {}
                // Calls that end again and again leave the others their turn.
                Ok(false) => match effects.replay_if_due().await {
                    Ok(()) if !effects.is_full() && inlet.gather_now(&mut batch) => {}
                    Ok(()) => continue,
                    Err(end) => return end,
                },
                Err(end) => return end,
            }
            let (deliveries, behind, next_offset) = batch.into_parts();
            batch = Batch::new(next_offset, self.shared.batch_records_max);
            let Some(next_offset) = next_offset.filter(|_| next_offset != self.owned.next_offset)
            else {
                let tally = Tally { duplicates: behind, ..Tally::default() };
                self.shared.counters.count_committed(tally);
                continue;
            };
            let work = match read(&self.shared, deliveries, behind, next_offset) {
                Ok(work) => work,
                Err(error) => return LaneEnd::Failed(error),
            };
            let written = work.written();
            self.gauge.applying(written);
            let applied = tokio::select! {
                biased;
                applied = effects.apply(&work) => applied,
                never = inlet.gather_on(&mut batch) => match never {},
            };
            if let Err(end) = applied {
                return end;
            }
            self.gauge.applying(None);
            if batch.is_empty() {
                effects.rest();
            }
            self.shared.meters.committed(work.len(), written);
            self.owned.next_offset = Some(next_offset);
            self.gauge.committed.store(next_offset.get(), Ordering::Release);
        }
    }
}

/// Where a lane's records come from.
struct Inlet {
    queue: mpsc::Receiver<Chunk>,
    stop: watch::Receiver<bool>,
    gauge: Arc<Gauge>,
    /// What a chunk held beyond the last batch.
    rest: std::vec::IntoIter<Delivery>,
    /// What that chunk said at its end.
    passed: Option<Offset>,
    /// When the batch that is being filled got its first record.
    since: Option<Instant>,
    wait: Duration,
}

impl Inlet {
    fn new(queue: mpsc::Receiver<Chunk>, lane: &Lane) -> Self {
        Self {
            queue,
            stop: lane.stop.clone(),
            gauge: Arc::clone(&lane.gauge),
            rest: Vec::new().into_iter(),
            passed: None,
            since: None,
            wait: lane.shared.batch_wait,
        }
    }

    /// Fills a batch until it is full or has waited for more; none when told to stop. What was gathered until then
    /// is dropped and will be delivered again.
    async fn gather(&mut self, batch: &mut Batch) -> Option<()> {
        loop {
            self.pour(batch);
            if batch.is_full() {
                self.since = None;
                return Some(());
            }
            let deadline = self.since.map(|since| since + self.wait);
            let chunk = tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return None,
                chunk = self.queue.recv() => chunk?,
                () = reached(deadline) => {
                    self.since = None;
                    return Some(());
                }
            };
            self.accept(batch, chunk);
        }
    }

    /// Fills a batch with what is there, and answers whether it holds anything.
    fn gather_now(&mut self, batch: &mut Batch) -> bool {
        loop {
            self.pour(batch);
            if batch.is_full() {
                break;
            }
            match self.queue.try_recv() {
                Ok(chunk) => self.accept(batch, chunk),
                Err(_) => break,
            }
        }
        self.since.take().is_some()
    }

    /// Fills a batch as far as it goes. Whoever has something better to do drops this.
    async fn gather_on(&mut self, batch: &mut Batch) -> Infallible {
        loop {
            self.pour(batch);
            if batch.is_full() {
                return std::future::pending().await;
            }
            match self.queue.recv().await {
                Some(chunk) => self.accept(batch, chunk),
                None => return std::future::pending().await,
            }
        }
    }

    fn accept(&mut self, batch: &mut Batch, chunk: Chunk) {
        self.gauge.taken(&chunk);
        self.rest = chunk.deliveries.into_iter();
        self.passed = chunk.passed;
        self.pour(batch);
    }

    fn pour(&mut self, batch: &mut Batch) {
        while !batch.is_full() {
            match self.rest.next() {
                Some(delivery) => {
                    self.since.get_or_insert_with(Instant::now);
                    batch.push(delivery);
                }
                None => {
                    if let Some(passed) = self.passed.take() {
                        self.since.get_or_insert_with(Instant::now);
                        batch.pass(passed);
                    }
                    return;
                }
            }
        }
    }
}

pub(crate) async fn in_time<T>(
    doing: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(DATABASE_WAIT_MAX, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::database_silent(doing, DATABASE_WAIT_MAX)),
    }
}

pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the intake is gone, which is a reason to stop as well.
    drop(stop.wait_for(|stop| *stop).await);
}

async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
