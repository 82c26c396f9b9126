//! A lane applies the records of one partition, batch by batch, each in one transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use tokio::sync::{mpsc, watch};

use crate::batch::Batch;
use crate::consumer::Unhandled;
use crate::error::{Error, Kind, Verdict};
use crate::guard::{self, Claim};
use crate::handler::{Dispatch, Outcome};
use crate::message_id::MessageId;
use crate::metrics::{Counters, Tally};
use crate::position::Offset;
use crate::progress::{self, Owned, Settled};
use crate::record::{Delivery, Record};
use crate::retry::{Backoff, chance};

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

/// A batch that was read and may be tried more than once.
struct Work {
    records: Vec<Record>,
    ids: Vec<MessageId>,
    /// Counts what needs no claim.
    tally: Tally,
    next_offset: Offset,
}

enum Attempt {
    Committed(Tally),
    NotOurs,
    /// The answer to COMMIT was lost.
    Uncertain(Tally, Error),
}

impl Lane {
    /// Runs until told to stop, until another owner shows up, or until something stands in the way.
    pub(crate) async fn run(mut self) -> LaneEnd {
        loop {
            let Some(batch) = self.gather().await else { return LaneEnd::Stopped };
            let (deliveries, behind, next_offset) = batch.into_parts();
            let Some(next_offset) = next_offset.filter(|_| !deliveries.is_empty()) else {
                self.shared
                    .counters
                    .count_committed(Tally { duplicates: behind, ..Tally::default() });
                continue;
            };
            let work = match read(&self.shared, deliveries, behind, next_offset) {
                Ok(work) => work,
                Err(error) => return LaneEnd::Failed(error),
            };
            match self.apply(&work).await {
                Ok(tally) => self.shared.counters.count_committed(tally),
                Err(end) => return end,
            }
            self.owned.next_offset = Some(next_offset);
            self.gauge.committed.store(next_offset.get(), Ordering::Release);
        }
    }

    /// The next batch; none when told to stop. What was gathered until then is dropped and will be delivered
    /// again.
    async fn gather(&mut self) -> Option<Batch> {
        let mut batch = Batch::new(self.owned.next_offset, self.shared.batch_records_max);
        let mut ready = Vec::new();
        let mut deadline = None;
        while !batch.is_full() {
            let taken = tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return None,
                taken = self.queue.recv_many(&mut ready, batch.room()) => taken,
                () = reached(deadline) => break,
            };
            if taken == 0 {
                return None;
            }
            for delivery in ready.drain(..) {
                self.gauge.queued_bytes.fetch_sub(delivery.bytes(), Ordering::Relaxed);
                batch.push(delivery);
            }
            deadline.get_or_insert_with(|| Instant::now() + self.shared.batch_wait);
        }
        Some(batch)
    }

    /// Tries a batch until it is committed or the lane has to end.
    async fn apply(&mut self, work: &Work) -> Result<Tally, LaneEnd> {
        let mut backoff = Backoff::new(self.shared.retry_for);
        let mut uncertain = None;
        loop {
            let error = match self.attempt(work, uncertain).await {
                Ok(Attempt::Committed(tally)) => return Ok(tally),
                Ok(Attempt::NotOurs) => return Err(LaneEnd::NotOurs),
                Ok(Attempt::Uncertain(tally, error)) => {
                    uncertain = Some(tally);
                    error
                }
                Err(error) => error,
            };
            if error.verdict() == Verdict::Stop {
                return Err(LaneEnd::Failed(error));
            }
            let Some(wait) = backoff.failed(Instant::now(), chance()) else {
                return Err(LaneEnd::Failed(error));
            };
            tracing::warn!(
                error = %error, cause = error.cause().map(tracing::field::display),
                topic = %self.owned.partition.topic, partition = self.owned.partition.number,
                wait_ms = wait.as_millis(), "the batch is repeated"
            );
            self.shared.counters.count_retry();
            tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Err(LaneEnd::Stopped),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One attempt. After an uncertain commit the database is asked first what became of it.
    async fn attempt(&self, work: &Work, uncertain: Option<Tally>) -> Result<Attempt, Error> {
        if let Some(tally) = uncertain {
            match self.settle(work).await? {
                Settled::Committed => return Ok(Attempt::Committed(tally)),
                Settled::NotOurs => return Ok(Attempt::NotOurs),
                Settled::RolledBack => {}
            }
        }
        let mut tx = in_time("a transaction cannot be begun", async {
            let begun = self.shared.pool.begin_with(progress::BEGIN).await;
            begun.map_err(|error| Error::database("a transaction cannot be begun", error))
        })
        .await?;
        match self.effect(&mut tx, work).await {
            Ok(Some(tally)) => commit(tx, tally).await,
            Ok(None) => {
                roll_back(tx).await;
                Ok(Attempt::NotOurs)
            }
            Err(error) => {
                roll_back(tx).await;
                Err(error)
            }
        }
    }

    /// Fence, claims, handlers; none when the partition has another owner.
    async fn effect(&self, conn: &mut PgConnection, work: &Work) -> Result<Option<Tally>, Error> {
        let Shared { consumer, dispatch, .. } = &*self.shared;
        let Owned { partition, epoch, .. } = &self.owned;
        let advanced = progress::advance(conn, consumer, partition, *epoch, work.next_offset);
        let Some(fenced) = in_time("progress cannot be moved on", advanced).await? else {
            return Ok(None);
        };
        let claims = guard::claim_all(conn, consumer, &work.ids);
        let claims = in_time("the message ids cannot be claimed", claims)
            .await
            .map_err(|error| placed(error, &work.records))?;
        let claimed = work.records.iter().zip(claims).filter(|(_, claim)| *claim == Claim::First);
        let first: Vec<&Record> = claimed.map(|(record, _)| record).collect();
        let mut tally = work.tally;
        tally.duplicates += (work.records.len() - first.len()) as u64;
        let same = |a: &&Record, b: &&Record| {
            let (a, b) = (a.meta.message_type(), b.meta.message_type());
            a == b && dispatch.takes_batches(a)
        };
        for records in first.chunk_by(same) {
            match dispatch.handle(conn, records).await? {
                Outcome::Done => tally.applied += records.len() as u64,
            }
        }
        let open = progress::still_open(conn, &fenced);
        in_time("the batch's transaction cannot be checked", open).await?;
        Ok(Some(tally))
    }

    async fn settle(&self, work: &Work) -> Result<Settled, Error> {
        let Owned { partition, epoch, .. } = &self.owned;
        in_time("progress cannot be read", async {
            let acquired = self.shared.pool.acquire().await;
            let mut conn =
                acquired.map_err(|error| Error::database("progress cannot be read", error))?;
            progress::settle(&mut conn, &self.shared.consumer, partition, *epoch, work.next_offset)
                .await
        })
        .await
    }
}

/// Reads the headers of a batch and sets aside what has no handler, before a transaction is opened.
fn read(
    shared: &Shared,
    deliveries: Vec<Delivery>,
    behind: u64,
    next_offset: Offset,
) -> Result<Work, Error> {
    let mut records = Vec::with_capacity(deliveries.len());
    let mut tally = Tally { duplicates: behind, ..Tally::default() };
    for delivery in deliveries {
        let record = Record::read(delivery)?;
        match shared.unhandled {
            _ if shared.dispatch.handles(record.meta.message_type()) => records.push(record),
            Unhandled::Skip => tally.skipped += 1,
            Unhandled::Halt => {
                let text = format!("no handler for the type {}", record.meta.message_type());
                return Err(Error::new(Kind::Unhandled, text)
                    .at(record.meta.position())
                    .about(record.meta.message_id())
                    .mended_by(
                        "register a handler, or pass such records over with Unhandled::Skip",
                    ));
            }
        }
    }
    let ids = records.iter().map(|record| record.meta.message_id()).collect();
    Ok(Work { records, ids, tally, next_offset })
}

/// The guard names the message id; the lane knows where its record stands.
fn placed(error: Error, records: &[Record]) -> Error {
    let found = error
        .message_id()
        .and_then(|id| records.iter().find(|record| record.meta.message_id() == id));
    match found {
        Some(record) => error.at(record.meta.position()),
        None => error,
    }
}

async fn commit(tx: Transaction<'static, Postgres>, tally: Tally) -> Result<Attempt, Error> {
    let committed = in_time("the batch cannot be committed", async {
        tx.commit().await.map_err(|error| Error::database("the batch cannot be committed", error))
    });
    match committed.await {
        Ok(()) => Ok(Attempt::Committed(tally)),
        // A deferred constraint or a serialization failure is a clear answer too, but asking again costs
        // little and needs no list of codes.
        Err(error) if error.verdict() == Verdict::Retry => Ok(Attempt::Uncertain(tally, error)),
        Err(error) => Err(error),
    }
}

/// Rolls back so that the next attempt does not wait for this one's locks. Failing is harmless: the server
/// rolls back what loses its connection.
async fn roll_back(tx: Transaction<'static, Postgres>) {
    let rolled_back = in_time("the batch cannot be rolled back", async {
        tx.rollback()
            .await
            .map_err(|error| Error::database("the batch cannot be rolled back", error))
    });
    if let Err(error) = rolled_back.await {
        tracing::debug!(error = %error, "the roll-back is left to the server");
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

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the intake is gone, which is a reason to stop as well.
    drop(stop.wait_for(|stop| *stop).await);
}

async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
