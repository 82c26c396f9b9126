//! Parked messages are tried again by the owner of their partition, queue by queue, head first.
//!
//! A replay is one transaction: the fence, the messages of one queue, their handlers. What succeeds or is given up is
//! deleted instead of claimed, since its claim was made when it was parked. When the last one leaves, the key is free.

use std::time::{Duration, Instant};

use sqlx::{PgConnection, Postgres, Transaction};

use crate::attempt::{Effects, acquire, call_of, commit, head_of, roll_back};
use crate::consumer::Unhandled;
use crate::error::{Error, Kind, Verdict};
use crate::failure::{Cause, Fate, Reason};
use crate::lane::{LaneEnd, in_time};
use crate::metrics::Tally;
use crate::parked_rows::{Ready, Row};
use crate::parking::{Head, Queue};
use crate::plan::{Aside, Next, Plan};
use crate::position::Offset;
use crate::progress;
use crate::record::Record;
use crate::retry::OnFailure;
use crate::trial::{Mark, Stumble, Trial, Work};

/// Queues that are replayed before the next batch has its turn.
const QUEUES_MAX: usize = 16;
/// Messages of a queue in one transaction.
pub(crate) const REPLAYED_MAX: usize = 100;
/// How often it is looked whether a person has put dead letters back. The lane knows of its own what it has parked.
const PUT_BACK_EVERY: Duration = Duration::from_secs(5);
/// How long a queue is left alone after the database failed its replay.
pub(crate) const FAULT_WAIT: Duration = Duration::from_secs(1);

/// A replay that failed.
struct Failed {
    error: Error,
    /// The head that the queue has at least until somebody looks again.
    head: Option<Head>,
    /// How many messages the transaction held.
    tried: usize,
}

/// What a replay did, if it commits.
#[derive(Debug)]
pub(crate) struct Replayed {
    pub(crate) head: Option<Head>,
    pub(crate) tally: Tally,
}

impl Replayed {
    /// Nothing was done.
    pub(crate) fn idle(head: Option<Head>) -> Self {
        Self { head, tally: Tally::default() }
    }
}

/// How a message stood before its replay.
struct Before {
    attempts: u32,
    parked_for: Duration,
}

impl Before {
    fn of(row: &Row) -> Self {
        Self { attempts: row.attempts, parked_for: row.parked_for }
    }
}

impl Effects {
    /// When to look for parked messages that may be tried.
    pub(crate) fn look_at(&self) -> Option<Instant> {
        let known = self.parked.look_at(Instant::now());
        let others = self.looked_for_put_back + PUT_BACK_EVERY;
        Some(known.map_or(others, |known| known.min(others)))
    }

    /// Looks at the table and replays what may be tried now. A fault of the database only postpones it.
    pub(crate) async fn replay(&mut self) -> Result<(), LaneEnd> {
        self.give_back();
        let Some(permit) = self.shared.gate.permit() else {
            self.parked.looked(Instant::now());
            // It is looked for later too; else the lane would turn in circles until the gate opens.
            self.looked_for_put_back = Instant::now();
            return Ok(());
        };
        let ready = self.look().await;
        self.shared.gate.ended(permit, ready.as_ref().err());
        let ready = match ready {
            Ok(ready) => ready,
            Err(error) if error.is_transient() => {
                tracing::warn!(error = %error, "parked messages cannot be looked at now");
                self.parked.looked(Instant::now());
                return Ok(());
            }
            Err(error) => return Err(LaneEnd::Failed(error)),
        };
        let calls = self.parked.calls();
        let mut due = Vec::new();
        for Ready { offset, over } in ready {
            match calls.contains(&offset) && !over {
                _ if self.calls.holds(offset) => {}
                // A person may have said so.
                true => self.parked.is_due(offset, Instant::now()),
                false => due.push(offset),
            }
        }
        if due.len() <= QUEUES_MAX {
            self.parked.looked(Instant::now());
        }
        for head in due.into_iter().take(QUEUES_MAX) {
            if *self.stop.borrow() || self.shared.gate.is_shut() {
                return Ok(());
            }
            if let Some(queue) = self.parked.queue(head) {
                self.replay_one(queue).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn replay_if_due(&mut self) -> Result<(), LaneEnd> {
        match self.look_at() {
            Some(at) if at <= Instant::now() => self.replay().await,
            _ => Ok(()),
        }
    }

    /// Replays a queue; a fault of the database only postpones it.
    pub(crate) async fn replay_one(&mut self, queue: Queue) -> Result<(), LaneEnd> {
        let replayed = match self.replay_queue(&queue).await {
            Ok(Some(replayed)) => {
                self.replays.grow(usize::try_from(replayed.tally.replayed).unwrap_or(0));
                replayed
            }
            Ok(None) => return Err(LaneEnd::NotOurs),
            Err(Failed { error, head, tried }) if error.is_transient() => {
                // Of several nobody is set aside for another one's fault: the head goes on alone in the end.
                if error.verdict() == Verdict::RetryFewer || error.kind() == Kind::Handler {
                    self.replays.halve(tried);
                }
                Replayed::idle(self.postponed(&queue, error, head).await?)
            }
            Err(Failed { error, .. }) => return Err(LaneEnd::Failed(error)),
        };
        if replayed.head.is_none() {
            tracing::info!(
                topic = %self.owned.partition.topic, partition = self.owned.partition.number,
                "a key is not parked any more"
            );
        }
        self.shared.counters.count_committed(replayed.tally);
        self.parked.set(queue, replayed.head, Instant::now());
        Ok(())
    }

    /// What is next in a queue whose replay the database failed. In a handler such a fault counts as an attempt, so
    /// that a message that always meets one is stuck in the end; a handler that was broken off has failed like any other.
    pub(crate) async fn postponed(
        &self,
        queue: &Queue,
        error: Error,
        head: Option<Head>,
    ) -> Result<Option<Head>, LaneEnd> {
        tracing::warn!(
            error = %error, code = error.database_code(), topic = %self.owned.partition.topic,
            partition = self.owned.partition.number, "a parked queue is replayed later"
        );
        self.shared.counters.count_retry();
        if error.kind() == Kind::Handler {
            match self.note_failure(queue, error).await {
                Ok(Some(noted)) => return Ok(noted),
                Ok(None) => return Err(LaneEnd::NotOurs),
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(LaneEnd::Failed(error)),
            }
        }
        Ok(head.map(|head| Head { wait: Some(FAULT_WAIT), ..head }))
    }

    /// A transaction that only notes the failure of a queue's head; none when the partition has another owner.
    async fn note_failure(
        &self,
        queue: &Queue,
        error: Error,
    ) -> Result<Option<Option<Head>>, Error> {
        let mut tx = self.begin().await?;
        let holding = progress::hold(&mut tx, &self.shared.consumer, &self.owned);
        if in_time("the partition cannot be held", holding).await?.is_none() {
            return Ok(None);
        }
        let table = self.table();
        let reading = table.read(&mut tx, queue, 1);
        let row = in_time("a failed attempt cannot be noted", reading).await?.into_iter().next();
        let Some(row) = row else { return Ok(Some(None)) };
        let on_failure = self.shared.policy.on_failure;
        if on_failure == OnFailure::Halt && error.breaks_off() {
            return Err(error.halting());
        }
        let offset = Offset::new(row.stored.offset);
        let is_anothers = error.position().is_some_and(|position| position.offset != offset);
        if row.discarded || is_anothers {
            let call = call_of(&self.shared, &row.stored.message_type);
            return Ok(Some(Some(Head { offset, wait: Some(FAULT_WAIT), call })));
        }
        let fate = match on_failure {
            OnFailure::DeadLetter if error.breaks_off() => Fate::Bury(Cause::of(&error)),
            _ => Fate::Park(Cause::of(&error)),
        };
        // A call that was begun is counted already.
        let attempts = row.attempts.saturating_add(u32::from(!row.calling));
        let before = Before { attempts, parked_for: row.parked_for };
        let work = self.restore(vec![row])?;
        let mut plan = Plan::each(1);
        plan.condemn(0, fate);
        let noted = self.release(&mut tx, queue, &work, &plan, &[before], 1).await?;
        commit(tx).await?;
        self.shared.counters.count_failure();
        self.shared.counters.count_committed(noted.tally);
        Ok(Some(noted.head))
    }

    /// Learns of messages that a person has put back: their keys wait behind them from now on.
    async fn take_put_back(&mut self) -> Result<(), Error> {
        let found = in_time("parked messages cannot be read", async {
            let mut conn = acquire(&self.shared).await?;
            self.table().put_back(&mut conn, &self.parked.heads()).await
        });
        let found = found.await?;
        let (now, lane) = (Instant::now(), usize::try_from(self.owned.lane).unwrap_or(0));
        for (queue, first) in found {
            // A key has one call at a time; once that is recorded, the first of its messages is next.
            let calls = self.parked.head(&queue).is_some_and(|head| self.calls.holds(head.offset));
            if !calls && self.shared.lanes.of(queue.key(), first.offset) == lane {
                let head = head_of(&self.shared, first);
                self.parked.set(queue, Some(head), now);
            }
        }
        Ok(())
    }

    /// What may be tried now, and now and then also what others have put into the table.
    async fn look(&mut self) -> Result<Vec<Ready>, Error> {
        if self.looked_for_put_back.elapsed() >= PUT_BACK_EVERY {
            self.looked_for_put_back = Instant::now();
            self.take_put_back().await?;
        }
        if self.parked.len() == 0 { Ok(Vec::new()) } else { self.ready().await }
    }

    async fn ready(&self) -> Result<Vec<Ready>, Error> {
        in_time("parked messages cannot be read", async {
            let mut conn = acquire(&self.shared).await?;
            self.table().ready(&mut conn, &self.parked.heads()).await
        })
        .await
    }

    /// One transaction; none when the partition has another owner.
    async fn replay_queue(&self, queue: &Queue) -> Result<Option<Replayed>, Failed> {
        let head = self.parked.head(queue);
        let mut tried = self.replays.now();
        let replayed = match self.begin().await {
            Ok(mut tx) => {
                let replayed = self.replay_in(&mut tx, queue, &mut tried).await;
                self.end(tx, replayed).await
            }
            Err(error) => Err(error),
        };
        replayed.map_err(|error| Failed { error, head, tried })
    }

    /// Commits what was done, if the partition is still ours.
    async fn end(
        &self,
        tx: Transaction<'static, Postgres>,
        replayed: Result<Option<Replayed>, Error>,
    ) -> Result<Option<Replayed>, Error> {
        match replayed {
            Ok(Some(replayed)) => {
                // After a commit whose answer was lost the queue is read again, so nothing needs to be settled.
                commit(tx).await?;
                Ok(Some(replayed))
            }
            other => {
                roll_back(tx).await;
                other
            }
        }
    }

    async fn replay_in(
        &self,
        conn: &mut PgConnection,
        queue: &Queue,
        tried: &mut usize,
    ) -> Result<Option<Replayed>, Error> {
        let holding = progress::hold(conn, &self.shared.consumer, &self.owned);
        let Some(fenced) = in_time("the partition cannot be held", holding).await? else {
            return Ok(None);
        };
        let table = self.table();
        let reading = table.read(conn, queue, self.replays.now());
        let mut rows = in_time("parked messages cannot be read", reading).await?;
        let Some(first) = rows.first() else { return Ok(Some(Replayed::idle(None))) };
        let offset = Offset::new(first.stored.offset);
        let call = call_of(&self.shared, &first.stored.message_type);
        let first_is_discarded = first.discarded;
        // It was another head that was remembered, where the call of this one is being made.
        if !first.ready || self.calls.holds(offset) {
            let wait = first.wait.filter(|_| !first.ready);
            return Ok(Some(Replayed::idle(Some(Head { offset, wait, call }))));
        }
        if call.is_some() && !first.discarded {
            let wait = Some(Duration::ZERO);
            return Ok(Some(Replayed::idle(Some(Head { offset, wait, call }))));
        }
        let makes_call =
            |row: &Row| !row.discarded && call_of(&self.shared, &row.stored.message_type).is_some();
        rows.truncate(rows.iter().position(makes_call).unwrap_or(rows.len()));
        // Those behind what was given up have a transaction of their own: failing, they were not to hold it back.
        if first_is_discarded {
            rows.truncate(rows.iter().position(|row| !row.discarded).unwrap_or(rows.len()));
        }
        let before: Vec<Before> = rows.iter().map(Before::of).collect();
        let discarded: Vec<bool> = rows.iter().map(|row| row.discarded).collect();
        let work = self.restore(rows)?;
        let keys = work.records.iter().map(|_| Some(&b"one queue"[..])).collect();
        *tried = work.records.len();
        let mut plan = Plan::suspicious(keys, self.replays);
        for (at, route) in work.routes.iter().enumerate() {
            let fate = match (discarded.get(at), route, self.shared.unhandled) {
                (Some(true), ..) => Fate::Bury(Cause::new(Reason::Discarded)),
                (_, Some(_), _) => continue,
                (_, None, Unhandled::DeadLetter) => Fate::Bury(Cause::new(Reason::Unhandled)),
                (_, None, _) => Fate::Park(Cause::new(Reason::Unhandled)),
            };
            plan.condemn(at, fate);
        }
        let mut trial = Trial::new(&self.shared, &self.owned, &work, Mark::First);
        let until = self.run(conn, &mut trial, &mut plan).await.map_err(Stumble::into_error)?;
        let open = progress::still_open(conn, &fenced);
        in_time("the replay's transaction cannot be checked", open).await?;
        self.release(conn, queue, &work, &plan, &before, until).await.map(Some)
    }

    pub(crate) fn restore(&self, rows: Vec<Row>) -> Result<Work, Error> {
        let mut work = Work { records: Vec::new(), routes: Vec::new() };
        for row in rows {
            let topic = std::sync::Arc::clone(&self.owned.partition.topic);
            let record = Record::restored(row.stored, topic, self.owned.partition.number)?;
            work.routes.push(self.shared.dispatch.find(record.meta.message_type()));
            work.records.push(record);
        }
        Ok(work)
    }

    /// Runs a plan up to its first commit. Blame comes out only where no savepoint was set.
    pub(crate) async fn run<'w>(
        &self,
        conn: &mut PgConnection,
        trial: &mut Trial<'_, 'w>,
        plan: &mut Plan<&'w [u8]>,
    ) -> Result<usize, Stumble> {
        loop {
            match plan.next() {
                Next::Run { records, guarded } => {
                    match trial.run(conn, plan, records, guarded).await {
                        Ok(()) => plan.ran(),
                        Err(Stumble::Blame(blame)) if guarded => self.blamed(plan, blame),
                        Err(stumble) => return Err(stumble),
                    }
                }
                Next::Commit { until } => return Ok(until),
                Next::Done => {
                    return Err(Error::new(Kind::Internal, "an empty queue was replayed").into());
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
        before: &[Before],
        until: usize,
    ) -> Result<Replayed, Error> {
        let mut tally = Tally::default();
        let (mut gone, mut letters) = (Vec::new(), Vec::new());
        let mut failed = None;
        for (at, (record, before)) in work.records.iter().zip(before).enumerate().take(until) {
            let attempts = before.attempts.saturating_add(plan.failures(at));
            match plan.aside(at) {
                None => tally.replayed += 1,
                Some(Aside::Fate(Fate::Bury(cause))) => {
                    letters.push(self.letter(record, cause, attempts.max(1)));
                }
                Some(Aside::Fate(Fate::Park(cause))) => {
                    failed = Some((record, cause, attempts, before.parked_for));
                    break;
                }
                Some(Aside::Behind | Aside::Fate(Fate::Call)) => break,
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
            let Some((record, cause, attempts, parked_for)) = failed else {
                let next = table.promote(conn, queue).await?;
                return Ok(next.map(|next| head_of(&self.shared, next)));
            };
            let offset = record.meta.position().offset;
            let state = self.next_state(cause, attempts, parked_for);
            self.tell_parked(record, cause, attempts, state);
            table.postpone(conn, offset, state, attempts, cause).await?;
            let call = call_of(&self.shared, record.meta.message_type());
            Ok(Some(Head { offset, wait: state.wait(), call }))
        })
        .await?;
        Ok(Replayed { head, tally })
    }
}
