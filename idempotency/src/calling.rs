//! What the owner of a partition does around a call: it prepares it in one transaction and records it in another.
//!
//! A message that makes a call is parked from the start, so order, ownership and replay are those of parked messages.
//! Its row is the intent: it says `calling` before the call is made, and leaves with what records the call. Between the
//! two no transaction is open; whoever owns the partition next finds the row, and repeats the call with the same key.

use std::time::{Duration, Instant};

use sqlx::PgConnection;

use crate::attempt::{Effects, head_of};
use crate::breaker::Permit;
use crate::call::Answer;
use crate::calls::{Called, Start};
use crate::error::Error;
use crate::failure::{Cause, Fate, Reason};
use crate::lane::{LaneEnd, in_time};
use crate::metrics::Tally;
use crate::parked_rows::{Ready, Row};
use crate::parking::{Head, Queue};
use crate::plan::{Plan, Width};
use crate::position::Offset;
use crate::progress::{self, Fenced};
use crate::replay::{FAULT_WAIT, Replayed};
use crate::retry::OnFailure;
use crate::route::RouteId;
use crate::trial::{Mark, Step, Trial};

impl Effects {
    /// Waits for the calls that are being made and records them.
    pub(crate) async fn finish_calls(&mut self) -> LaneEnd {
        while self.calls.len() > 0 {
            let called = self.calls.next().await;
            if let Err(end) = self.called(called).await {
                return end;
            }
        }
        LaneEnd::Stopped
    }

    /// When a call of this handler may be made; none where the end of another one tells.
    pub(crate) fn free_at(&self, route: RouteId, now: Instant) -> Option<Instant> {
        let limits = self.shared.dispatch.limits(route)?;
        let room = self.calls.len() < self.shared.calls_max;
        limits.breaker.free_at(now).filter(|_| room)
    }

    /// Whether something can be done about a head that is ready.
    pub(crate) fn is_in_turn(&self, ready: Ready, call: Option<RouteId>, now: Instant) -> bool {
        if self.calls.holds(ready.offset) {
            return false;
        }
        let free = |route| self.free_at(route, now).is_some_and(|at| at <= now);
        ready.over || call.is_none_or(free)
    }

    fn permit(&self, route: RouteId) -> Option<Permit> {
        let limits = self.shared.dispatch.limits(route)?;
        let room = self.calls.len() < self.shared.calls_max;
        room.then(|| limits.breaker.permit(Instant::now())).flatten()
    }

    /// The first transaction of a call: its intent is stored, unless it is already.
    pub(crate) async fn prepare_call(
        &self,
        conn: &mut PgConnection,
        queue: &Queue,
        mut row: Row,
        route: RouteId,
        fenced: &Fenced,
    ) -> Result<Replayed, Error> {
        let (offset, attempts) = (Offset::new(row.stored.offset), row.attempts);
        let head = |wait| Some(Head { offset, wait, call: Some(route) });
        let Some(permit) = self.permit(route) else {
            return Ok(Replayed::idle(head(Some(Duration::ZERO))));
        };
        let stored = row.intent.take();
        let work = self.restore(vec![row])?;
        let intent = match stored {
            Some(intent) => intent,
            None => {
                let mut plan = alone();
                let mut trial = Trial::new(&self.shared, &work, Mark::First);
                let until = self.run(conn, &mut trial, &mut plan).await?;
                let open = progress::still_open(conn, fenced);
                in_time("the transaction of a call cannot be checked", open).await?;
                match trial.step {
                    Step::Prepared(intent) if plan.aside(0).is_none() => intent,
                    _ => return self.release(conn, queue, &work, &plan, &[attempts], until).await,
                }
            }
        };
        let table = self.table();
        let storing = table.calling(conn, offset, &intent);
        in_time("the intent of a call cannot be stored", storing).await?;
        let record = work.records.into_iter().next();
        let start = record.map(|record| Start { route, record, intent, permit });
        Ok(Replayed { head: head(None), tally: Tally::default(), start })
    }

    /// A call has ended: the second transaction. A fault of the database leaves the row as it is, so that the call is
    /// repeated with the same key.
    pub(crate) async fn called(&mut self, called: Result<Called, Error>) -> Result<(), LaneEnd> {
        self.give_back();
        let called = called.map_err(LaneEnd::Failed)?;
        let queue = called.queue.clone();
        let (offset, call) = (called.offset, Some(called.route));
        let head = Head { offset, wait: Some(FAULT_WAIT), call };
        let replayed = match self.record_call(called).await {
            Ok(Some(replayed)) => replayed,
            Ok(None) => return Err(LaneEnd::NotOurs),
            Err(error) if error.is_transient() => {
                Replayed::idle(self.postponed(&queue, &error, Some(head)).await?)
            }
            Err(error) => return Err(LaneEnd::Failed(error)),
        };
        self.shared.counters.count_committed(replayed.tally);
        self.parked.set(queue, replayed.head, Instant::now());
        Ok(())
    }

    /// None when the partition has another owner.
    async fn record_call(&self, called: Called) -> Result<Option<Replayed>, Error> {
        let mut tx = self.begin().await?;
        let recorded = self.record_in(&mut tx, called).await;
        self.end(tx, recorded).await
    }

    async fn record_in(
        &self,
        conn: &mut PgConnection,
        called: Called,
    ) -> Result<Option<Replayed>, Error> {
        let Called { queue, offset, intent, answer, .. } = called;
        let holding = progress::hold(conn, &self.shared.consumer, &self.owned);
        let Some(fenced) = in_time("the partition cannot be held", holding).await? else {
            return Ok(None);
        };
        let table = self.table();
        let single = Queue::Single(offset);
        let reading = table.read(conn, &single, 1);
        let rows = in_time("a message whose call was made cannot be read", reading).await?;
        let Some(attempts) = rows.first().map(|row| row.attempts) else {
            let promoting = table.promote(conn, &queue);
            let next = in_time("parked messages cannot be read", promoting).await?;
            return Ok(Some(Replayed::idle(next.map(|next| head_of(&self.shared, next)))));
        };
        let work = self.restore(rows)?;
        let mut plan = alone();
        let mut trial = Trial::new(&self.shared, &work, Mark::First);
        let fate = match answer {
            Ok(Answer::Done(result)) => {
                trial.step = Step::Record { intent, result };
                None
            }
            Ok(Answer::Retry { after }) => Some(Fate::Park(Cause::later(after))),
            Ok(Answer::Reject { reason }) => {
                Some(Fate::Bury(Cause::with_detail(Reason::Rejected, &reason)))
            }
            Err(error) => Some(self.after_failed_call(error)?),
        };
        let attempts = attempts.saturating_add(u32::from(fate.is_some()));
        if let Some(fate) = fate {
            plan.condemn(0, fate);
        }
        let until = self.run(conn, &mut trial, &mut plan).await?;
        let open = progress::still_open(conn, &fenced);
        in_time("the transaction of a call cannot be checked", open).await?;
        self.release(conn, &queue, &work, &plan, &[attempts], until).await.map(Some)
    }

    /// What an error of a call means for its message. No fault of a database is looked for in it: whatever the other
    /// side has said, this database works.
    fn after_failed_call(&self, error: Error) -> Result<Fate, Error> {
        self.shared.counters.count_failure();
        match self.shared.policy.on_failure {
            OnFailure::Park => Ok(Fate::Park(Cause::of(&error))),
            OnFailure::DeadLetter => Ok(Fate::Bury(Cause::of(&error))),
            OnFailure::Halt => Err(error.halting()),
        }
    }
}

/// The plan of one message.
fn alone<'a>() -> Plan<&'a [u8]> {
    Plan::suspicious(vec![None], Width::new(1))
}
