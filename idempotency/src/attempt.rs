//! A batch is tried until it is committed.

use std::time::Instant;

use sqlx::{PgConnection, Postgres, Transaction};

use crate::consumer::Unhandled;
use crate::error::{Error, Kind, Verdict};
use crate::guard::{self, Claim};
use crate::handler::Outcome;
use crate::lane::{Lane, LaneEnd, Shared, in_time, stopped};
use crate::message_id::MessageId;
use crate::metrics::Tally;
use crate::position::Offset;
use crate::progress::{self, Settled};
use crate::record::{Delivery, Record};
use crate::retry::{Backoff, chance};

/// A batch that was read and may be tried more than once.
pub(crate) struct Work {
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
    /// Tries a batch until it is committed or the lane has to end.
    pub(crate) async fn apply(&mut self, work: &Work) -> Result<Tally, LaneEnd> {
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
            let begun = progress::begin(&self.shared.pool, self.shared.rebalance_deadline).await;
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
        let advanced = progress::advance(conn, consumer, &self.owned, work.next_offset);
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
        in_time("progress cannot be read", async {
            let acquired = self.shared.pool.acquire().await;
            let mut conn =
                acquired.map_err(|error| Error::database("progress cannot be read", error))?;
            progress::settle(&mut conn, &self.shared.consumer, &self.owned, work.next_offset).await
        })
        .await
    }
}

/// Reads the headers of a batch and sets aside what has no handler, before a transaction is opened.
pub(crate) fn read(
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
