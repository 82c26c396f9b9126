//! Parked messages are tried again by the owner of their partition, queue by queue, head first.
//!
//! A replay is one transaction: the fence, the messages of one queue, their handlers. What succeeds or is given up is
//! deleted instead of claimed, since its claim was made when it was parked. When the last one leaves, the key is free.

use std::time::{Duration, Instant};

use sqlx::PgConnection;

use crate::attempt::{Effects, acquire, commit, roll_back};
use crate::consumer::Unhandled;
use crate::error::{Error, Kind};
use crate::failure::{Cause, Fate, Reason};
use crate::lane::{LaneEnd, in_time};
use crate::metrics::Tally;
use crate::parked_rows::Row;
use crate::parking::{Head, Queue};
use crate::plan::{Aside, Next, Plan, Width};
use crate::position::Offset;
use crate::progress;
use crate::record::Record;
use crate::trial::{Mark, Stumble, Trial, Work};

/// Queues that are replayed before the next batch has its turn.
const QUEUES_MAX: usize = 16;
/// Messages of a queue in one transaction.
const RECORDS_MAX: usize = 100;
/// How long a queue is left alone after the database failed its replay.
const FAULT_WAIT: Duration = Duration::from_secs(1);

/// What a replay did, if it commits.
#[derive(Debug)]
struct Replayed {
    head: Option<Head>,
    tally: Tally,
}

impl Effects {
    /// When to look for parked messages that may be tried; none while nothing is parked.
    pub(crate) fn look_at(&self) -> Option<Instant> {
        self.parked.look_at(Instant::now())
    }

    /// Looks at the table and replays what may be tried now. A fault of the database only postpones it.
    pub(crate) async fn replay(&mut self) -> Result<(), LaneEnd> {
        let ready = match self.ready().await {
            Ok(ready) => ready,
            Err(error) if error.is_transient() => {
                tracing::warn!(error = %error, "parked messages cannot be looked at now");
                self.parked.looked(Instant::now());
                return Ok(());
            }
            Err(error) => return Err(LaneEnd::Failed(error)),
        };
        let queues = self.parked.queues(ready.get(..QUEUES_MAX).unwrap_or(&ready));
        if ready.len() <= QUEUES_MAX {
            self.parked.looked(Instant::now());
        }
        for queue in queues {
            if *self.stop.borrow() {
                return Ok(());
            }
            let replayed = match self.replay_queue(&queue).await {
                Ok(Some(replayed)) => replayed,
                Ok(None) => return Err(LaneEnd::NotOurs),
                Err((error, head)) if error.is_transient() => {
                    let head = self.postponed(&queue, &error, head).await?;
                    Replayed { head, tally: Tally::default() }
                }
                Err((error, _)) => return Err(LaneEnd::Failed(error)),
            };
            if replayed.head.is_none() {
                tracing::info!(
                    topic = %self.owned.partition.topic, partition = self.owned.partition.number,
                    "a key is not parked any more"
                );
            }
            self.shared.counters.count_committed(replayed.tally);
            self.parked.set(queue, replayed.head, Instant::now());
        }
        Ok(())
    }

    /// What is next in a queue whose replay the database failed. In a handler such a fault counts as an attempt, so
    /// that a message that always meets one is stuck in the end.
    async fn postponed(
        &self,
        queue: &Queue,
        error: &Error,
        head: Option<Offset>,
    ) -> Result<Option<Head>, LaneEnd> {
        tracing::warn!(
            error = %error, code = error.database_code(), topic = %self.owned.partition.topic,
            partition = self.owned.partition.number, "a parked queue is replayed later"
        );
        self.shared.counters.count_retry();
        if error.kind() == Kind::Handler {
            match self.note_failure(queue, &Cause::of(error)).await {
                Ok(Some(noted)) => return Ok(noted),
                Ok(None) => return Err(LaneEnd::NotOurs),
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(LaneEnd::Failed(error)),
            }
        }
        Ok(head.map(|offset| Head { offset, wait: Some(FAULT_WAIT) }))
    }

    /// A transaction that only notes a failed attempt of a queue's head; none when the partition has another owner.
    async fn note_failure(
        &self,
        queue: &Queue,
        cause: &Cause,
    ) -> Result<Option<Option<Head>>, Error> {
        let mut tx = self.begin().await?;
        let holding = progress::hold(&mut tx, &self.shared.consumer, &self.owned);
        if in_time("the partition cannot be held", holding).await?.is_none() {
            return Ok(None);
        }
        let table = self.table();
        let noted = in_time("a failed attempt cannot be noted", async {
            let Some(row) = table.read(&mut tx, queue, 1).await?.into_iter().next() else {
                return Ok(None);
            };
            let (offset, attempts) = (Offset::new(row.stored.offset), row.attempts + 1);
            let state = self.next_state(cause, attempts);
            table.postpone(&mut tx, offset, state, attempts, cause).await?;
            Ok(Some(Head { offset, wait: state.wait() }))
        });
        let noted = noted.await?;
        commit(tx).await?;
        Ok(Some(noted))
    }

    async fn ready(&self) -> Result<Vec<Offset>, Error> {
        in_time("parked messages cannot be read", async {
            let mut conn = acquire(&self.shared).await?;
            self.table().ready(&mut conn, &self.parked.heads()).await
        })
        .await
    }

    /// One transaction; none when the partition has another owner. An error comes with the head that the queue has
    /// at least until somebody looks again.
    async fn replay_queue(
        &self,
        queue: &Queue,
    ) -> Result<Option<Replayed>, (Error, Option<Offset>)> {
        let head = self.parked.head(queue);
        let failed = |error| (error, head);
        let mut tx = self.begin().await.map_err(failed)?;
        match self.replay_in(&mut tx, queue).await {
            Ok(Some(replayed)) => {
                // After a commit whose answer was lost the queue is read again, so nothing needs to be settled.
                commit(tx).await.map_err(failed)?;
                Ok(Some(replayed))
            }
            Ok(None) => {
                roll_back(tx).await;
                Ok(None)
            }
            Err(error) => {
                roll_back(tx).await;
                Err(failed(error))
            }
        }
    }

    async fn replay_in(
        &self,
        conn: &mut PgConnection,
        queue: &Queue,
    ) -> Result<Option<Replayed>, Error> {
        let holding = progress::hold(conn, &self.shared.consumer, &self.owned);
        let Some(fenced) = in_time("the partition cannot be held", holding).await? else {
            return Ok(None);
        };
        let table = self.table();
        let reading = table.read(conn, queue, RECORDS_MAX);
        let rows = in_time("parked messages cannot be read", reading).await?;
        let idle = |head| Replayed { head, tally: Tally::default() };
        let Some(first) = rows.first() else { return Ok(Some(idle(None))) };
        if !first.ready {
            let offset = Offset::new(first.stored.offset);
            return Ok(Some(idle(Some(Head { offset, wait: first.wait }))));
        }
        let attempts: Vec<u32> = rows.iter().map(|row| row.attempts).collect();
        let discarded: Vec<bool> = rows.iter().map(|row| row.discarded).collect();
        let work = self.restore(rows)?;
        let keys = work.records.iter().map(|_| Some(&b"one queue"[..])).collect();
        let mut plan = Plan::suspicious(keys, Width::new(RECORDS_MAX));
        for (at, route) in work.routes.iter().enumerate() {
            let fate = match (discarded.get(at), route, self.shared.unhandled) {
                (Some(true), ..) => Fate::Bury(Cause::new(Reason::Discarded)),
                (_, Some(_), _) => continue,
                (_, None, Unhandled::DeadLetter) => Fate::Bury(Cause::new(Reason::Unhandled)),
                (_, None, _) => Fate::Park(Cause::new(Reason::Unhandled)),
            };
            plan.condemn(at, fate);
        }
        let mut trial = Trial::new(&self.shared, &work, Mark::First);
        let until = self.run(conn, &mut trial, &mut plan).await?;
        let open = progress::still_open(conn, &fenced);
        in_time("the replay's transaction cannot be checked", open).await?;
        self.release(conn, queue, &work, &plan, &attempts, until).await.map(Some)
    }

    fn restore(&self, rows: Vec<Row>) -> Result<Work, Error> {
        let mut work = Work { records: Vec::new(), routes: Vec::new() };
        for row in rows {
            let topic = std::sync::Arc::clone(&self.owned.partition.topic);
            let record = Record::restored(row.stored, topic, self.owned.partition.number)?;
            work.routes.push(self.shared.dispatch.find(record.meta.message_type()));
            work.records.push(record);
        }
        Ok(work)
    }

    async fn run<'w>(
        &self,
        conn: &mut PgConnection,
        trial: &mut Trial<'_, 'w>,
        plan: &mut Plan<&'w [u8]>,
    ) -> Result<usize, Error> {
        loop {
            match plan.next() {
                Next::Run { records, guarded } => {
                    match trial.run(conn, plan, records, guarded).await {
                        Ok(()) => plan.ran(),
                        Err(Stumble::Blame(blame)) => self.blamed(plan, blame),
                        Err(Stumble::Error(error)) => return Err(error),
                    }
                }
                Next::Commit { until } => return Ok(until),
                Next::Done => {
                    return Err(Error::new(Kind::Internal, "an empty queue was replayed"));
                }
            }
        }
    }

    /// Takes away what has ended, notes the failure of what has not, and says what is next.
    async fn release(
        &self,
        conn: &mut PgConnection,
        queue: &Queue,
        work: &Work,
        plan: &Plan<&[u8]>,
        attempts: &[u32],
        until: usize,
    ) -> Result<Replayed, Error> {
        let mut tally = Tally::default();
        let (mut gone, mut letters) = (Vec::new(), Vec::new());
        let mut failed = None;
        for (at, (record, before)) in work.records.iter().zip(attempts).enumerate().take(until) {
            let attempts = before.saturating_add(plan.failures(at));
            match plan.aside(at) {
                None => tally.replayed += 1,
                Some(Aside::Fate(Fate::Bury(cause))) => {
                    letters.push(self.letter(record, cause, attempts.max(1)));
                }
                Some(Aside::Fate(Fate::Park(cause))) => {
                    failed = Some((record, cause, attempts));
                    break;
                }
                Some(Aside::Behind) => break,
            }
            gone.push(record.meta.position().offset);
        }
        tally.applied = tally.replayed;
        tally.count_letters(&letters);
        self.bury(conn, &letters).await?;
        let table = self.table();
        let head = in_time("parked messages cannot be released", async {
            if !gone.is_empty() {
                table.delete(conn, &gone).await?;
            }
            let Some((record, cause, attempts)) = failed else {
                return table.promote(conn, queue).await;
            };
            let offset = record.meta.position().offset;
            let state = self.next_state(cause, attempts);
            self.tell_parked(record, cause, attempts, state);
            table.postpone(conn, offset, state, attempts, cause).await?;
            Ok(Some(Head { offset, wait: state.wait() }))
        })
        .await?;
        Ok(Replayed { head, tally })
    }
}
