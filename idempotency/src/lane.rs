//! A lane applies the records of one partition, batch by batch, each in one transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::sync::{mpsc, watch};

use crate::attempt::{Effects, read};
use crate::batch::Batch;
use crate::consumer::Unhandled;
use crate::error::Error;
use crate::metrics::{Counters, Tally};
use crate::progress::Owned;
use crate::record::Delivery;
use crate::retry::Policy;
use crate::route::Dispatch;

/// The longest wait for one answer of Postgres to a statement of ours. Handlers are not bounded by it.
const DATABASE_WAIT_MAX: Duration = Duration::from_secs(30);

/// What all lanes of a consumer share.
pub(crate) struct Shared {
    pub(crate) consumer: String,
    pub(crate) pool: PgPool,
    pub(crate) dispatch: Box<dyn Dispatch>,
    pub(crate) unhandled: Unhandled,
    pub(crate) counters: Counters,
    pub(crate) batch_records_max: usize,
    pub(crate) batch_wait: Duration,
    pub(crate) retry_for: Duration,
    pub(crate) policy: Policy,
}

/// What the intake can see of a running lane.
#[derive(Debug)]
pub(crate) struct Gauge {
    /// Bytes of the records in the lane's queue.
    pub(crate) queued_bytes: AtomicUsize,
    /// The lane's progress as committed in Postgres; negative before the first commit.
    pub(crate) committed: AtomicI64,
}

impl Gauge {
    pub(crate) fn new() -> Self {
        Self { queued_bytes: AtomicUsize::new(0), committed: AtomicI64::new(-1) }
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
    pub(crate) queue: mpsc::Receiver<Delivery>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) gauge: Arc<Gauge>,
}

/// What a lane does next.
enum Gathered {
    Batch(Batch),
    /// Parked messages are to be looked at.
    Parked,
    Stopped,
}

impl Lane {
    /// Runs until told to stop, until another owner shows up, or until something stands in the way.
    pub(crate) async fn run(mut self) -> LaneEnd {
        let opened = Effects::open(Arc::clone(&self.shared), &self.owned, self.stop.clone()).await;
        let mut effects = match opened {
            Ok(effects) => effects,
            Err(end) => return end,
        };
        loop {
            let done = match self.gather(&effects).await {
                Gathered::Stopped => return LaneEnd::Stopped,
                Gathered::Parked => effects.replay().await,
                Gathered::Batch(batch) => self.apply(&mut effects, batch).await,
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    async fn apply(&mut self, effects: &mut Effects, batch: Batch) -> Result<(), LaneEnd> {
        let (deliveries, behind, next_offset) = batch.into_parts();
        let Some(next_offset) = next_offset.filter(|_| !deliveries.is_empty()) else {
            let tally = Tally { duplicates: behind, ..Tally::default() };
            self.shared.counters.count_committed(tally);
            return Ok(());
        };
        let batch = read(&self.shared, deliveries, behind, next_offset).map_err(LaneEnd::Failed)?;
        effects.apply(&batch).await?;
        self.owned.next_offset = Some(next_offset);
        self.gauge.committed.store(next_offset.get(), Ordering::Release);
        Ok(())
    }

    /// The next batch, unless parked messages come first. When told to stop, what was gathered until then is
    /// dropped and will be delivered again.
    async fn gather(&mut self, effects: &Effects) -> Gathered {
        let look_at = effects.look_at();
        if look_at.is_some_and(|at| at <= Instant::now()) {
            return if *self.stop.borrow() { Gathered::Stopped } else { Gathered::Parked };
        }
        let mut batch = Batch::new(self.owned.next_offset, self.shared.batch_records_max);
        let mut ready = Vec::new();
        let mut deadline = None;
        while !batch.is_full() {
            let taken = tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Gathered::Stopped,
                taken = self.queue.recv_many(&mut ready, batch.room()), if !effects.is_full() => taken,
                () = reached(deadline) => break,
                () = reached(look_at), if deadline.is_none() => return Gathered::Parked,
            };
            if taken == 0 {
                return Gathered::Stopped;
            }
            for delivery in ready.drain(..) {
                self.gauge.queued_bytes.fetch_sub(delivery.bytes(), Ordering::Relaxed);
                batch.push(delivery);
            }
            deadline.get_or_insert_with(|| Instant::now() + self.shared.batch_wait);
        }
        Gathered::Batch(batch)
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
