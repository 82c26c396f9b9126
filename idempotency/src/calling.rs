//! What the owner of a partition does around calls: it prepares them in one transaction and records them in another.
//!
//! A message that makes a call is parked from the start, so order, ownership and replay are those of parked messages.
//! Its row is the intent: it says `calling` before the call is made, and leaves with what records the call. Between the
//! two no transaction is open; whoever owns the partition next finds the row, and repeats the call with the same key.
//! The attempt counts from when the call begins. A call that was broken off twice is put off as one that has failed, so
//! that one which takes its process along is stuck in the end, and the calls beside it are made without it meanwhile.
//!
//! Calls of several keys share a transaction, since its commit costs more than all else that is done here: those that
//! are due are prepared together, and those that have ended meanwhile are recorded together.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sqlx::PgConnection;

use crate::attempt::{Effects, call_of, commit, head_of, roll_back};
use crate::breaker::Permit;
use crate::call::Answer;
use crate::calls::{Called, Start};
use crate::error::{Error, Kind, Verdict};
use crate::failure::{Cause, Fate, Reason};
use crate::lane::{LaneEnd, in_time};
use crate::metrics::Tally;
use crate::parked_rows::Row;
use crate::parking::{Head, Queue};
use crate::plan::{Aside, Plan, SAVEPOINTS_MAX, Width};
use crate::position::Offset;
use crate::progress::{self, Fenced};
use crate::replay::FAULT_WAIT;
use crate::retry::OnFailure;
use crate::route::RouteId;
use crate::trial::{Mark, Step, Stumble, Trial, Work};

/// Messages whose calls are prepared, or recorded, in one transaction: as many as may have a savepoint each.
pub(crate) const TOGETHER_MAX: usize = SAVEPOINTS_MAX;

/// What a transaction with the heads of several queues comes to, if it commits.
#[derive(Default)]
struct Together {
    tally: Tally,
    heads: Vec<(Queue, Option<Head>)>,
    /// The calls to be made then.
    starts: Vec<(Queue, Start)>,
    /// Queues whose first message is another one than was thought, or was given up.
    others: Vec<Queue>,
}

/// What is said of a call that may have had its effect.
const BROKEN_OFF: &str = "its call was begun and how it ended is not known: its process may have died, lost the \
     partition, or not have reached the database";

/// Calls that were broken off so often are repeated at once: most processes die of something else.
const BROKEN_OFF_AT_ONCE_MAX: u32 = 1;

/// The head of a queue that is worked at.
struct Chosen {
    queue: Queue,
    route: RouteId,
    attempts: u32,
    parked_for: Duration,
    /// Its call was begun, and nobody makes it any more.
    broken_off: bool,
}

/// What follows for it.
enum End {
    /// Its call is made with this.
    Calls(Vec<u8>),
    Applied,
    Buried(Cause, u32),
    Fails(Cause, u32),
}

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

    /// When calls can be prepared; none while none is due, the end of one that is being made will tell, or the database
    /// is away, of which a look at the table finds the end.
    pub(crate) fn call_at(&self) -> Option<Instant> {
        let now = Instant::now();
        let room = self.calls.len() < self.shared.calls_max && !self.shared.gate.is_shut();
        room.then(|| self.parked.call_at(|route| self.free_at(route, now))).flatten()
    }

    /// When the breaker of a handler lets a call through; none where the end of another one tells.
    fn free_at(&self, route: RouteId, now: Instant) -> Option<Instant> {
        self.shared.dispatch.limits(route)?.breaker.free_at(now)
    }

    fn permit(&self, route: RouteId) -> Option<Permit> {
        self.shared.dispatch.limits(route)?.breaker.permit(Instant::now())
    }

    /// Prepares the calls that are due, as many as may be made, and makes them.
    ///
    /// Where one of them fails they are prepared again behind savepoints, and where the database gives the transaction
    /// up for the sake of a handler, one by one.
    pub(crate) async fn prepare_calls(&mut self) -> Result<(), LaneEnd> {
        self.give_back();
        let now = Instant::now();
        let room = self.shared.calls_max.saturating_sub(self.calls.len()).min(TOGETHER_MAX);
        let is_free = |route| self.free_at(route, now).is_some_and(|at| at <= now);
        let queues = self.parked.due_calls(now, is_free, room);
        if queues.is_empty() {
            return Ok(());
        }
        for guarded in [false, true] {
            match self.prepare(&queues, guarded).await {
                Ok(Some(together)) => return self.settled(together).await,
                Ok(None) => return Err(LaneEnd::NotOurs),
                Err(Stumble::Blame(_) | Stumble::Again) => {}
                // Behind savepoints it were cut off once more, and the others with it.
                Err(Stumble::Error(error)) if in_handler(&error) && error.breaks_off() => break,
                Err(Stumble::Error(error))
                    if in_handler(&error) || error.verdict() == Verdict::RetryFewer => {}
                Err(Stumble::Error(error)) => {
                    let heads = queues.into_iter().map(|queue| (self.parked.head(&queue), queue));
                    let heads = heads.filter_map(|(head, queue)| Some((queue, head?))).collect();
                    return self.put_off(heads, error);
                }
            }
        }
        for queue in queues {
            if *self.stop.borrow() {
                return Ok(());
            }
            match self.prepare(std::slice::from_ref(&queue), true).await {
                Ok(Some(together)) => self.settled(together).await?,
                Ok(None) => return Err(LaneEnd::NotOurs),
                Err(stumble) => {
                    let error = stumble.into_error();
                    if !error.is_transient() {
                        return Err(LaneEnd::Failed(error));
                    }
                    let head = self.postponed(&queue, error, self.parked.head(&queue)).await?;
                    self.parked.set(queue, head, Instant::now());
                }
            }
        }
        Ok(())
    }

    /// One transaction; none when the partition has another owner.
    async fn prepare(&self, queues: &[Queue], guarded: bool) -> Result<Option<Together>, Stumble> {
        let mut tx = self.begin().await?;
        match self.prepare_in(&mut tx, queues, guarded).await {
            Ok(Some(together)) => {
                // After a commit whose answer was lost the rows are read again, and say what is prepared.
                commit(tx).await?;
                Ok(Some(together))
            }
            other => {
                roll_back(tx).await;
                other
            }
        }
    }

    async fn prepare_in(
        &self,
        conn: &mut PgConnection,
        queues: &[Queue],
        guarded: bool,
    ) -> Result<Option<Together>, Stumble> {
        let Some(fenced) = self.hold(conn).await? else { return Ok(None) };
        let heads: Vec<Offset> =
            queues.iter().filter_map(|queue| Some(self.parked.head(queue)?.offset)).collect();
        let table = self.table();
        let reading = table.read_heads(conn, &heads);
        let rows = in_time("parked messages cannot be read", reading).await?;
        let mut together = Together { others: queues.to_vec(), ..Together::default() };
        let (mut chosen, mut permits, mut intents, mut kept) =
            (Vec::new(), Vec::new(), BTreeMap::new(), Vec::new());
        for mut row in rows {
            let Some((head, permit)) = self.choose(&row, &mut together) else { continue };
            if let Some(intent) = row.intent.take() {
                intents.insert(chosen.len(), intent);
            }
            chosen.push(head);
            permits.push(permit);
            kept.push(row);
        }
        let work = self.restore(kept)?;
        let ends = self.prepared(conn, &work, &chosen, intents, guarded, &fenced).await?;
        self.write(conn, &chosen, &work, &ends, &mut together).await?;
        let parts = chosen.into_iter().zip(permits).zip(work.records).zip(ends);
        for (((Chosen { queue, route, .. }, permit), record), end) in parts {
            if let End::Calls(intent) = end {
                together.starts.push((queue, Start { route, record, intent, permit }));
            }
        }
        Ok(Some(together))
    }

    /// Whether the call of a head is prepared now. What is not, and is no matter of another one, is said to `together`.
    fn choose(&self, row: &Row, together: &mut Together) -> Option<(Chosen, Permit)> {
        let offset = Offset::new(row.stored.offset);
        let queue = Queue::of(row.stored.key.as_deref(), offset);
        let route = call_of(&self.shared, &row.stored.message_type);
        let route = route.filter(|_| !row.discarded)?;
        together.others.retain(|other| *other != queue);
        let head = |wait| Some(Head { offset, wait, call: Some(route) });
        if !row.ready || self.calls.holds(offset) {
            together.heads.push((queue, head(row.wait.filter(|_| !row.ready))));
            return None;
        }
        let Some(permit) = self.permit(route) else {
            together.heads.push((queue, head(Some(Duration::ZERO))));
            return None;
        };
        let Row { attempts, parked_for, calling: broken_off, .. } = *row;
        Some((Chosen { queue, route, attempts, parked_for, broken_off }, permit))
    }

    /// Runs the first step of those calls that have no intent yet.
    async fn prepared(
        &self,
        conn: &mut PgConnection,
        work: &Work,
        chosen: &[Chosen],
        intents: BTreeMap<usize, Vec<u8>>,
        guarded: bool,
        fenced: &Fenced,
    ) -> Result<Vec<End>, Stumble> {
        let count = chosen.len();
        let mut plan = match guarded {
            true => Plan::each(count),
            false => Plan::new(vec![None; count], |_: &&[u8]| false, Width::new(count.max(1)), 0),
        };
        let mut trial = Trial::new(&self.shared, &self.owned, work, Mark::First);
        for (at, intent) in intents {
            let broken_off = chosen.get(at).filter(|chosen| chosen.broken_off);
            plan.condemn(at, broken_off.map_or(Fate::Call, |chosen| self.after_break(chosen)));
            trial.steps.insert(at, Step::Prepared(intent));
        }
        if count > 0 {
            self.run(conn, &mut trial, &mut plan).await?;
        }
        let open = progress::still_open(conn, fenced);
        if let Err(error) = in_time("the transaction of calls cannot be checked", open).await {
            return Err(trial.blame(0..count, error));
        }
        Ok(ends(chosen, &plan, trial.steps))
    }

    /// A call has ended: the second transaction, with those that have ended meanwhile. A fault of the database leaves
    /// the rows as they are, so that the calls are repeated with the same keys.
    pub(crate) async fn called(&mut self, first: Result<Called, Error>) -> Result<(), LaneEnd> {
        self.give_back();
        let mut called = vec![first.map_err(LaneEnd::Failed)?];
        while called.len() < self.answers.now()
            && let Some(next) = self.calls.next_ended()
        {
            called.push(next.map_err(LaneEnd::Failed)?);
        }
        let count = called.len();
        let head = |called: &Called| {
            let (offset, call) = (called.offset, Some(called.route));
            (called.queue.clone(), Head { offset, wait: Some(FAULT_WAIT), call })
        };
        let mut heads: Vec<(Queue, Head)> = called.iter().map(head).collect();
        let error = match self.record_calls(called).await {
            Ok(Some(together)) => {
                self.answers.grow(count);
                return self.settled(together).await;
            }
            Ok(None) => return Err(LaneEnd::NotOurs),
            Err(stumble) => stumble.into_error(),
        };
        // In company nobody knows whose fault it was.
        if in_handler(&error)
            && count == 1
            && let Some((queue, head)) = heads.pop()
        {
            let head = self.postponed(&queue, error, Some(head)).await?;
            self.parked.set(queue, head, Instant::now());
            return Ok(());
        }
        self.answers.halve(count);
        self.put_off(heads, error)
    }

    /// Several heads are tried again later, by a fault that is none of theirs.
    fn put_off(&mut self, heads: Vec<(Queue, Head)>, error: Error) -> Result<(), LaneEnd> {
        if !error.is_transient() {
            return Err(LaneEnd::Failed(error));
        }
        tracing::warn!(
            error = %error, code = error.database_code(), topic = %self.owned.partition.topic,
            partition = self.owned.partition.number, calls = heads.len(), "calls are put off"
        );
        self.shared.counters.count_retry();
        let now = Instant::now();
        for (queue, head) in heads {
            self.parked.set(queue, Some(Head { wait: Some(FAULT_WAIT), ..head }), now);
        }
        Ok(())
    }

    /// Remembers what is in the database now, and makes the calls.
    async fn settled(&mut self, together: Together) -> Result<(), LaneEnd> {
        let now = Instant::now();
        self.shared.counters.count_committed(together.tally);
        for (queue, head) in together.heads {
            self.parked.set(queue, head, now);
        }
        for (queue, start) in together.starts {
            self.calls.start(std::sync::Arc::clone(&self.shared), queue, start);
        }
        for queue in together.others {
            self.replay_one(queue).await?;
        }
        Ok(())
    }

    /// None when the partition has another owner.
    async fn record_calls(&self, called: Vec<Called>) -> Result<Option<Together>, Stumble> {
        let mut tx = self.begin().await?;
        match self.record_in(&mut tx, called).await {
            Ok(Some(together)) => {
                // After a commit whose answer was lost the calls are repeated, and find their rows gone.
                commit(tx).await?;
                Ok(Some(together))
            }
            other => {
                roll_back(tx).await;
                other
            }
        }
    }

    async fn record_in(
        &self,
        conn: &mut PgConnection,
        called: Vec<Called>,
    ) -> Result<Option<Together>, Stumble> {
        let Some(fenced) = self.hold(conn).await? else { return Ok(None) };
        let offsets: Vec<Offset> = called.iter().map(|called| called.offset).collect();
        let table = self.table();
        let reading = table.read_at(conn, &offsets);
        let rows = in_time("messages whose calls were made cannot be read", reading).await?;
        let mut called: BTreeMap<Offset, Called> =
            called.into_iter().map(|called| (called.offset, called)).collect();
        let (mut chosen, mut answers) = (Vec::new(), Vec::new());
        for row in &rows {
            let Some(called) = called.remove(&Offset::new(row.stored.offset)) else { continue };
            let (queue, route) = (called.queue.clone(), called.route);
            // The attempt that has ended was counted when it began.
            let attempts = row.attempts.saturating_sub(1);
            let parked_for = row.parked_for;
            chosen.push(Chosen { queue, route, attempts, parked_for, broken_off: false });
            let given_up = row.discarded && !matches!(called.answer, Ok(Answer::Done(_)));
            answers.push((called, given_up));
        }
        // A person has taken away what is left over.
        let others = called.into_values().map(|called| called.queue).collect();
        let mut together = Together { others, ..Together::default() };
        let work = self.restore(rows)?;
        let ends = self.recorded(conn, &work, &mut chosen, answers, &fenced).await?;
        self.write(conn, &chosen, &work, &ends, &mut together).await?;
        Ok(Some(together))
    }

    /// Runs the last step of calls, each behind a savepoint: what a call has brought is there once.
    async fn recorded(
        &self,
        conn: &mut PgConnection,
        work: &Work,
        chosen: &mut [Chosen],
        answers: Vec<(Called, bool)>,
        fenced: &Fenced,
    ) -> Result<Vec<End>, Stumble> {
        let mut plan = Plan::each(chosen.len());
        let mut trial = Trial::new(&self.shared, &self.owned, work, Mark::First);
        for (at, ((called, given_up), chosen)) in answers.into_iter().zip(&mut *chosen).enumerate()
        {
            let Called { intent, answer, .. } = called;
            let fate = match answer {
                // A person has given it up meanwhile. What it has done all the same is recorded.
                _ if given_up => Fate::Bury(Cause::new(Reason::Discarded)),
                Ok(Answer::Done(result)) => {
                    trial.steps.insert(at, Step::Record { intent, result });
                    continue;
                }
                Ok(Answer::Retry { after }) => Fate::Park(Cause::later(after)),
                Ok(Answer::Reject { reason }) => {
                    Fate::Bury(Cause::with_detail(Reason::Rejected, &reason))
                }
                Err(error) => self.after_failed_call(error)?,
            };
            chosen.attempts = chosen.attempts.saturating_add(1);
            plan.condemn(at, fate);
        }
        if !chosen.is_empty() {
            self.run(conn, &mut trial, &mut plan).await?;
        }
        let open = progress::still_open(conn, fenced);
        in_time("the transaction of calls cannot be checked", open).await?;
        Ok(ends(chosen, &plan, trial.steps))
    }

    /// What becomes of a call that was broken off.
    fn after_break(&self, chosen: &Chosen) -> Fate {
        let policy = &self.shared.policy;
        let is_last = chosen.attempts >= policy.attempts_max;
        let cause = Cause::with_detail(Reason::BrokenOff, BROKEN_OFF);
        match policy.on_failure {
            _ if !is_last && chosen.attempts <= BROKEN_OFF_AT_ONCE_MAX => Fate::Call,
            OnFailure::DeadLetter if is_last => Fate::Bury(cause),
            OnFailure::Park | OnFailure::DeadLetter | OnFailure::Halt => Fate::Park(cause),
        }
    }

    async fn hold(&self, conn: &mut PgConnection) -> Result<Option<Fenced>, Error> {
        let holding = progress::hold(conn, &self.shared.consumer, &self.owned);
        in_time("the partition cannot be held", holding).await
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

    /// Stores intents, takes away what has ended, notes what failed, and says what is next in each queue.
    async fn write(
        &self,
        conn: &mut PgConnection,
        chosen: &[Chosen],
        work: &Work,
        ends: &[End],
        together: &mut Together,
    ) -> Result<(), Error> {
        let table = self.table();
        let (mut calling, mut intents) = (Vec::new(), Vec::new());
        let (mut gone, mut letters, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for ((Chosen { queue, route, parked_for, .. }, record), end) in
            chosen.iter().zip(&work.records).zip(ends)
        {
            let offset = record.meta.position().offset;
            match end {
                End::Calls(intent) => {
                    calling.push(offset);
                    intents.push(intent.as_slice());
                    let head = Head { offset, wait: None, call: Some(*route) };
                    together.heads.push((queue.clone(), Some(head)));
                    continue;
                }
                End::Fails(cause, attempts) => {
                    let state = self.next_state(cause, *attempts, *parked_for);
                    self.tell_parked(record, cause, *attempts, state);
                    let postponing = table.postpone(conn, offset, state, *attempts, cause);
                    in_time("a failed attempt cannot be noted", postponing).await?;
                    let head = Head { offset, wait: state.wait(), call: Some(*route) };
                    together.heads.push((queue.clone(), Some(head)));
                    continue;
                }
                End::Buried(cause, attempts) => letters.push(self.letter(record, cause, *attempts)),
                End::Applied => together.tally.replayed += 1,
            }
            gone.push(offset);
            together.heads.push((queue.clone(), None));
            keys.extend(queue.key());
        }
        together.tally.applied = together.tally.replayed;
        together.tally.count_letters(&letters);
        self.bury(conn, &letters).await?;
        let next = in_time("calls cannot be stored or released", async {
            if !calling.is_empty() {
                table.calling(conn, &calling, &intents).await?;
            }
            if gone.is_empty() {
                return Ok(Vec::new());
            }
            table.delete(conn, &gone).await?;
            if keys.is_empty() { Ok(Vec::new()) } else { table.promote_all(conn, &keys).await }
        });
        for (key, first) in next.await? {
            together.heads.push((Queue::Key(key), Some(head_of(&self.shared, first))));
        }
        Ok(())
    }
}

/// What each of them came to.
fn ends(chosen: &[Chosen], plan: &Plan<&[u8]>, mut steps: BTreeMap<usize, Step>) -> Vec<End> {
    let end = |(at, chosen): (usize, &Chosen)| {
        let attempts = chosen.attempts.saturating_add(plan.failures(at));
        match (plan.aside(at), steps.remove(&at)) {
            (None | Some(Aside::Fate(Fate::Call)), Some(Step::Prepared(intent))) => {
                End::Calls(intent)
            }
            (Some(Aside::Fate(Fate::Bury(cause))), _) => {
                End::Buried(cause.clone(), attempts.max(1))
            }
            (Some(Aside::Fate(Fate::Park(cause))), _) => End::Fails(cause.clone(), attempts),
            // Nobody stands behind another one here.
            (None | Some(Aside::Behind | Aside::Fate(Fate::Call)), _) => End::Applied,
        }
    };
    chosen.iter().enumerate().map(end).collect()
}

/// A fault that a handler met, and that may be its own.
fn in_handler(error: &Error) -> bool {
    error.kind() == Kind::Handler && error.is_transient()
}
