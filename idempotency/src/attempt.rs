//! A batch is tried until all of it is committed: applied, parked, or a dead letter.

use std::ops::Range;
use std::time::{Duration, Instant, SystemTime};

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, Postgres, Transaction};
use tokio::sync::watch;
use tracing::Instrument as _;

use crate::calling::TOGETHER_MAX;
use crate::calls::Calls;
use crate::consumer::Unhandled;
use crate::dead_letter::{self, Letter};
use crate::error::{Error, Kind, Verdict};
use crate::failure::{Cause, Fate, Reason};
use crate::lane::{LaneEnd, Shared, in_time, stopped};
use crate::metrics::Tally;
use crate::milestone::Milestone;
use crate::parked_rows::{First, NewRow, State, Table};
use crate::parking::{Head, Parked, Queue};
use crate::plan::{Aside, Next, Plan, Width};
use crate::position::Offset;
use crate::progress::{self, Owned, Partition, Settled};
use crate::record::{Delivery, Record};
use crate::replay::REPLAYED_MAX;
use crate::retry::{Backoff, OnFailure, PARKED_WAIT_LIMIT, chance};
use crate::route::RouteId;
use crate::sequence;
use crate::trial::{Blame, Mark, Stumble, Trial, Work, of_handler};
use crate::used::Used;

/// Applies a lane's batches, and knows what the lane has parked.
pub(crate) struct Effects {
    pub(crate) shared: std::sync::Arc<Shared>,
    pub(crate) owned: Owned,
    pub(crate) parked: Parked,
    pub(crate) calls: Calls,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) looked_for_put_back: Instant,
    /// How many calls are recorded in one transaction.
    pub(crate) answers: Width,
    /// How many messages of a queue are replayed in one.
    pub(crate) replays: Width,
    width: Width,
    kept: Option<Kept>,
    was_full: bool,
    /// A handler that was broken off has halted nothing, for once.
    has_spared: bool,
}

/// A connection that goes from one batch to the next. To give it back costs two answers of the server, for the pool
/// looks whether it lives, and looks again when it is taken.
struct Kept {
    conn: PoolConnection<Postgres>,
    since: Instant,
}

/// Then it goes back all the same: others may wait for it where there are fewer connections than lanes.
const KEPT_MAX: Duration = Duration::from_millis(100);

/// A handler that is cut off holds up every key of its lane for the time that it has, and may do so at each replay: it
/// waits for so many times as long, so that a lane stands still for a tenth of its time at most.
const CUT_OFF_WAITS: u32 = 10;

/// A lane that has nothing to apply keeps no connection where fewer than these are left for others.
const SPARE_MIN: usize = 2;

/// A batch whose headers were read.
pub(crate) struct Batch {
    work: Work,
    /// Counts what needs no transaction.
    tally: Tally,
    next_offset: Offset,
}

/// What a transaction comes to, if it commits.
#[derive(Debug)]
struct Sealed {
    until: usize,
    next_offset: Offset,
    tally: Tally,
    parked: Vec<(Queue, Head)>,
}

enum Attempt {
    Committed(Sealed),
    NotOurs,
    /// A message failed without a savepoint, or a handler wants its messages once more: the same with savepoints.
    Again,
    /// The same, where a handler took the transaction along, and whatever it was in the middle of.
    Lost,
    /// The answer to COMMIT was lost.
    Uncertain(Sealed, Error),
}

impl Effects {
    /// Learns what former owners have parked. The epoch must be raised by then, so that they park nothing more.
    pub(crate) async fn open(
        shared: std::sync::Arc<Shared>,
        owned: &Owned,
        mut stop: watch::Receiver<bool>,
    ) -> Result<Self, LaneEnd> {
        let mut patience = Backoff::new(shared.retry_for);
        let heads = loop {
            let permit = shared.gate.turn(&mut stop).await?;
            let heads = heads(&shared, owned).await;
            shared.gate.ended(permit, heads.as_ref().err());
            match heads {
                Ok(heads) => break heads,
                Err(error) => wait_after(&shared, error, &mut patience, &mut stop).await?,
            }
        };
        let mut parked = Parked::default();
        let now = Instant::now();
        for (queue, head) in heads {
            parked.set(queue, Some(head), now);
        }
        let width = Width::new(shared.batch_records_max);
        Ok(Self {
            shared,
            owned: owned.clone(),
            parked,
            calls: Calls::default(),
            stop,
            looked_for_put_back: now,
            answers: Width::new(TOGETHER_MAX),
            replays: Width::new(REPLAYED_MAX),
            width,
            kept: None,
            was_full: false,
            has_spared: false,
        })
    }

    /// Whether so many keys are parked that nothing more is taken, which is told when it begins.
    pub(crate) fn tell_full(&mut self) -> bool {
        let is_full = self.is_full();
        if is_full && !self.was_full {
            let Partition { topic, number } = &self.owned.partition;
            tracing::error!(
                %topic, partition = number, lane = self.owned.lane, keys = self.parked.len(),
                "too many keys are parked: nothing more is taken until fewer are"
            );
        }
        self.was_full = is_full;
        is_full
    }

    pub(crate) fn is_full(&self) -> bool {
        let share = self.shared.policy.parked_keys_max / self.shared.lanes.count();
        self.parked.len() >= share.max(1)
    }

    pub(crate) fn table(&self) -> Table<'_> {
        Table { consumer: &self.shared.consumer, partition: &self.owned.partition }
    }

    /// Tries a batch until it is committed or the lane has to end.
    pub(crate) async fn apply(&mut self, batch: &Batch) -> Result<(), LaneEnd> {
        let keys = batch.work.records.iter().map(|record| record.meta.key()).collect();
        let retries = self.shared.policy.retries;
        let mut plan = Plan::new(keys, |key| self.parked.holds(key), self.width, retries);
        for (at, _) in batch.work.routes.iter().enumerate().filter(|(_, route)| route.is_none()) {
            plan.condemn(at, Fate::Bury(Cause::new(Reason::Unhandled)));
        }
        let mut patience = Backoff::new(self.shared.retry_for);
        let mut uncertain = None;
        while !plan.is_done() {
            if self.shared.gate.is_shut() {
                // From before the database was away, and as dead: found out later it would shut the gate once more.
                self.give_back();
            }
            let permit = self.shared.gate.turn(&mut self.stop).await?;
            let attempt = self.attempt(batch, &mut plan, uncertain.take()).await;
            let fault = match &attempt {
                Ok(Attempt::Uncertain(_, error)) | Err(error) => Some(error),
                Ok(_) => None,
            };
            self.shared.gate.ended(permit, fault);
            let error = match attempt {
                Ok(Attempt::Committed(sealed)) => {
                    plan.committed(sealed.until);
                    self.committed(sealed);
                    patience = Backoff::new(self.shared.retry_for);
                    continue;
                }
                Ok(Attempt::Again | Attempt::Lost) => continue,
                Ok(Attempt::NotOurs) => return Err(LaneEnd::NotOurs),
                Ok(Attempt::Uncertain(sealed, error)) => {
                    uncertain = Some(sealed);
                    error
                }
                Err(error) => error,
            };
            self.failed(&mut plan, error, &mut patience).await?;
        }
        self.width = plan.width();
        Ok(())
    }

    /// A transaction was lost: wait, and perhaps blame the one record that it came down to.
    async fn failed(
        &mut self,
        plan: &mut Plan<&[u8]>,
        error: Error,
        patience: &mut Backoff,
    ) -> Result<(), LaneEnd> {
        let in_handler = error.kind() == Kind::Handler && error.is_transient();
        let collided = in_handler || error.verdict() == Verdict::RetryFewer;
        let tried = plan.tried();
        if in_handler
            && self.shared.policy.on_failure != OnFailure::Halt
            && patience.is_over(Instant::now())
        {
            // The database works, or this error were not a handler's; so it is the message after all.
            if tried == 1 {
                let cause = Cause::of(&error);
                plan.give_up(match self.shared.policy.on_failure {
                    OnFailure::DeadLetter => Fate::Bury(cause),
                    OnFailure::Park | OnFailure::Halt => Fate::Park(cause),
                });
            } else {
                plan.lost(collided);
            }
            return Ok(());
        }
        plan.lost(collided);
        self.shared.counters.count_retry();
        wait_after(&self.shared, error, patience, &mut self.stop).await
    }

    /// There is nothing to apply: keeps the connection for a while where the pool has others to give.
    pub(crate) fn rest(&mut self) {
        let pool = &self.shared.pool;
        let unopened = pool.options().get_max_connections().saturating_sub(pool.size());
        let spare = pool.num_idle() + usize::try_from(unopened).unwrap_or(0);
        if spare < SPARE_MIN {
            self.give_back();
        }
    }

    /// When to give the connection back, though there is still nothing to apply.
    pub(crate) fn rests_until(&self) -> Option<Instant> {
        self.kept.as_ref().map(|kept| kept.since + KEPT_MAX)
    }

    /// Gives the connection back, so that nobody waits for it: neither another lane nor this one, which is to take
    /// another.
    pub(crate) fn give_back(&mut self) {
        self.kept = None;
    }

    async fn connection(&mut self) -> Result<Kept, Error> {
        match self.kept.take() {
            Some(kept) => Ok(kept),
            None => Ok(Kept { conn: acquire(&self.shared).await?, since: Instant::now() }),
        }
    }

    /// One attempt. After an uncertain commit the database is asked first what became of it.
    async fn attempt<'b>(
        &mut self,
        batch: &'b Batch,
        plan: &mut Plan<&'b [u8]>,
        uncertain: Option<Sealed>,
    ) -> Result<Attempt, Error> {
        if let Some(sealed) = uncertain {
            match self.settle(sealed.next_offset).await {
                Ok(Settled::Committed) => return Ok(Attempt::Committed(sealed)),
                Ok(Settled::NotOurs) => return Ok(Attempt::NotOurs),
                Ok(Settled::RolledBack) => {}
                Err(error) => return Ok(Attempt::Uncertain(sealed, error)),
            }
        }
        let unbegun = "a transaction cannot be begun";
        let Kept { conn, since } = in_time(unbegun, self.connection()).await?;
        let mut used = Used::new(conn);
        let tx = in_time(unbegun, async {
            let Shared { rebalance_deadline, entering, .. } = &*self.shared;
            let begun = progress::begin(&mut used, *rebalance_deadline, entering).await;
            begun.map_err(|error| Error::database(unbegun, error))
        });
        let tx = tx.await?;
        let attempt = self.attempt_in(tx, batch, plan).await;
        match &attempt {
            Ok(Attempt::Lost) => return attempt,
            // It may be this process that stood still, and its partition another's by now, which the fence tells.
            Err(error) if self.is_spared(error) => {
                plan.lost(false);
                return Ok(Attempt::Lost);
            }
            Err(error) if error.breaks_off() => return attempt,
            _ => {}
        }
        // After a commit it is as it was before.
        let committed = matches!(attempt, Ok(Attempt::Committed(_)));
        let conn = used.unused();
        self.kept = (committed && since.elapsed() < KEPT_MAX).then_some(Kept { conn, since });
        attempt
    }

    /// Whether what would halt the consumer is tried once more: the first time that a handler is broken off since
    /// something was committed.
    fn is_spared(&mut self, error: &Error) -> bool {
        let halts = error.breaks_off() && error.kind() == Kind::Handler;
        let is_spared = halts && !std::mem::replace(&mut self.has_spared, true);
        if is_spared {
            self.shared.counters.count_retry();
        }
        is_spared
    }

    async fn attempt_in<'b>(
        &self,
        mut tx: Transaction<'_, Postgres>,
        batch: &'b Batch,
        plan: &mut Plan<&'b [u8]>,
    ) -> Result<Attempt, Error> {
        let mut trial = Trial::new(&self.shared, &self.owned, &batch.work, Mark::Open);
        let span = tracing::debug_span!(
            "batch", topic = %self.owned.partition.topic, partition = self.owned.partition.number,
            lane = self.owned.lane, messages = plan.reach().unwrap_or(batch.len()) - plan.start(),
        );
        let transaction = self.transaction(&mut tx, batch, &mut trial, plan).instrument(span);
        match transaction.await {
            Ok(Some(sealed)) => self.commit(tx, sealed, &mut trial, plan).await,
            Ok(None) => {
                roll_back(tx).await;
                Ok(Attempt::NotOurs)
            }
            Err(Stumble::Blame(blame)) => {
                roll_back(tx).await;
                self.blamed(plan, blame);
                Ok(Attempt::Again)
            }
            Err(Stumble::Again) => {
                roll_back(tx).await;
                plan.again();
                Ok(Attempt::Again)
            }
            Err(Stumble::Error(error)) => match trial.overran.clone() {
                Some(call) => self.overran(&mut trial, plan, call, error),
                // Nobody answers, and whatever the handler has asked for is still under way.
                None if error.breaks_off() => Err(error),
                None => {
                    roll_back(tx).await;
                    Err(error)
                }
            },
        }
    }

    /// A handler has failed with which the transaction went, savepoints and all.
    fn overran<'b>(
        &self,
        trial: &mut Trial<'_, 'b>,
        plan: &mut Plan<&'b [u8]>,
        call: Range<usize>,
        error: Error,
    ) -> Result<Attempt, Error> {
        match trial.blame(call, error.of_its_message()) {
            Stumble::Blame(Blame { call, fate, again }) => {
                self.shared.counters.count_failure();
                plan.failed_and_lost(call, fate, again);
                Ok(Attempt::Lost)
            }
            stumble => Err(stumble.into_error()),
        }
    }

    /// A transaction on a connection of the pool.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Postgres>, Error> {
        in_time("a transaction cannot be begun", async {
            let Shared { pool, rebalance_deadline, entering, .. } = &*self.shared;
            let begun = progress::begin_in(pool, *rebalance_deadline, entering).await;
            begun.map_err(|error| Error::database("a transaction cannot be begun", error))
        })
        .await
    }

    pub(crate) fn blamed(&self, plan: &mut Plan<&[u8]>, blame: Blame) {
        let Blame { call, fate, again } = blame;
        if fate.is_failure() {
            self.shared.counters.count_failure();
        }
        tracing::debug!(
            topic = %self.owned.partition.topic, partition = self.owned.partition.number, messages = call.len(),
            again, "messages failed and are tried one by one"
        );
        plan.failed(call, fate, again);
    }

    /// Fence, claims, handlers, what is set aside; none when the partition has another owner. Blame comes out only
    /// where no savepoint was set.
    async fn transaction<'b>(
        &self,
        conn: &mut PgConnection,
        batch: &'b Batch,
        trial: &mut Trial<'_, 'b>,
        plan: &mut Plan<&'b [u8]>,
    ) -> Result<Option<Sealed>, Stumble> {
        let (start, reach) = (plan.start(), plan.reach());
        // Where the transaction will end is not known behind savepoints; then progress is moved on once more.
        let to = reach.unwrap_or(start);
        let at = batch.offset(to);
        let fenced = match reach.map(|reach| start..reach) {
            Some(all) if trial.can_be_fenced_and_claimed(all.clone()) => {
                trial.fence_and_claim(conn, plan, all, at).await?
            }
            _ => self.advance(conn, batch, to).await?,
        };
        let Some(fenced) = fenced else { return Ok(None) };
        self.shared.reached(Milestone::Fenced).await;
        loop {
            match plan.next() {
                Next::Run { records, guarded } => {
                    match trial.run(conn, plan, records, guarded).await {
                        Ok(()) => plan.ran(),
                        Err(Stumble::Blame(blame)) if guarded => self.blamed(plan, blame),
                        Err(stumble) => return Err(stumble),
                    }
                }
                Next::Commit { until } => {
                    self.shared.reached(Milestone::Handled).await;
                    let open = progress::still_open(conn, &fenced);
                    let open = in_time("the batch's transaction cannot be checked", open).await;
                    if let Err(error) = open {
                        return Err(trial.blame(start..until, error));
                    }
                    let sealed = self.seal(conn, batch, trial, plan, until).await?;
                    if sealed.next_offset != at {
                        self.advance(conn, batch, until).await?;
                    }
                    return Ok(Some(sealed));
                }
                Next::Done => {
                    return Err(Error::new(Kind::Internal, "an empty transaction was begun").into());
                }
            }
        }
    }

    /// Moves progress on to the record that stands there in the batch.
    async fn advance(
        &self,
        conn: &mut PgConnection,
        batch: &Batch,
        until: usize,
    ) -> Result<Option<progress::Fenced>, Error> {
        let Shared { consumer, dedupe, .. } = &*self.shared;
        let reached = if dedupe.is_position() { batch.reached(until) } else { Vec::new() };
        let to = batch.offset(until);
        let advanced = progress::advance(conn, consumer, &self.owned, to, &reached);
        in_time("progress cannot be moved on", advanced).await
    }

    /// Writes what was set aside, and counts.
    async fn seal(
        &self,
        conn: &mut PgConnection,
        batch: &Batch,
        trial: &Trial<'_, '_>,
        plan: &Plan<&[u8]>,
        until: usize,
    ) -> Result<Sealed, Error> {
        let next_offset = batch.offset(until);
        let tally = if until == batch.work.records.len() { batch.tally } else { Tally::default() };
        let mut sealed = Sealed { until, next_offset, tally, parked: Vec::new() };
        let (mut rows, mut letters) = (Vec::new(), Vec::new());
        let records = batch.work.records.iter().zip(&trial.marks).enumerate();
        for (at, (record, mark)) in records.skip(plan.start()).take(until - plan.start()) {
            sealed.tally.out_of_horizon += u64::from(*mark == Mark::Outside);
            match plan.aside(at) {
                _ if *mark == Mark::Duplicate => sealed.tally.duplicates += 1,
                None => sealed.tally.applied += 1,
                Some(Aside::Fate(Fate::Bury(cause))) => {
                    letters.push(self.letter(record, cause, plan.failures(at).max(1)));
                }
                Some(Aside::Fate(Fate::Park(cause))) => {
                    rows.push(self.park(record, Some(cause), plan.failures(at), &mut sealed));
                }
                Some(Aside::Behind) => rows.push(self.park(record, None, 0, &mut sealed)),
                Some(Aside::Fate(Fate::Call)) => {
                    sealed.tally.taken_for_call += 1;
                    rows.push(self.park(record, None, 0, &mut sealed));
                }
            }
        }
        sealed.tally.parked = rows.len() as u64 - sealed.tally.taken_for_call;
        sealed.tally.count_letters(&letters);
        if !rows.is_empty() {
            in_time("messages cannot be parked", self.table().insert(conn, &rows)).await?;
        }
        self.bury(conn, &letters).await?;
        Ok(sealed)
    }

    pub(crate) async fn bury(
        &self,
        conn: &mut PgConnection,
        letters: &[Letter],
    ) -> Result<(), Error> {
        if letters.is_empty() {
            return Ok(());
        }
        let topic = self.shared.policy.dead_letter_topic.as_deref();
        let written = dead_letter::write(conn, self.table(), topic, letters);
        in_time("dead letters cannot be written", written).await
    }

    pub(crate) fn letter(&self, record: &Record, cause: &Cause, attempts: u32) -> Letter {
        let Partition { topic, number } = &self.owned.partition;
        let (reason, id) = (cause.reason.code(), record.meta.message_id());
        tracing::warn!(
            %topic, partition = number, offset = record.meta.position().offset.get(), message_id = %id,
            reason, attempts, "a message becomes a dead letter"
        );
        Letter { stored: record.stored(), cause: cause.clone(), attempts }
    }

    fn park(
        &self,
        record: &Record,
        cause: Option<&Cause>,
        attempts: u32,
        sealed: &mut Sealed,
    ) -> NewRow {
        let offset = record.meta.position().offset;
        let queue = Queue::of(record.meta.key(), offset);
        let is_parked = record.meta.key().is_some_and(|key| self.parked.holds(key))
            || sealed.parked.iter().any(|(parked, _)| *parked == queue);
        let state = match cause {
            None if is_parked => State::Queued,
            None => State::Waiting(Duration::ZERO),
            Some(cause) => self.next_state(cause, attempts, Duration::ZERO),
        };
        if !is_parked {
            let call = call_of(&self.shared, record.meta.message_type());
            sealed.parked.push((queue, Head { offset, wait: state.wait(), call }));
        }
        if let Some(cause) = cause {
            self.tell_parked(record, cause, attempts, state);
        }
        NewRow { stored: record.stored(), state, attempts, cause: cause.cloned() }
    }

    /// What follows for a message that has been parked for so long, and stays so by this cause.
    pub(crate) fn next_state(&self, cause: &Cause, attempts: u32, parked_for: Duration) -> State {
        match cause.reason {
            Reason::Waits => State::Waiting(self.shared.policy.waits_on(parked_for)),
            // Time does not mend these.
            Reason::TooOld | Reason::Future | Reason::Unhandled => State::Stuck,
            _ => {
                let wait = self.shared.policy.wait(attempts, cause.after, chance());
                let least = match cause.is_cut_off {
                    true => self.shared.held_up_max().saturating_mul(CUT_OFF_WAITS),
                    false => Duration::ZERO,
                };
                State::after(wait.map(|wait| wait.max(least).min(PARKED_WAIT_LIMIT)))
            }
        }
    }

    pub(crate) fn tell_parked(&self, record: &Record, cause: &Cause, attempts: u32, state: State) {
        let Partition { topic, number } = &self.owned.partition;
        let (offset, id) = (record.meta.position().offset.get(), record.meta.message_id());
        let (reason, message_type) = (cause.reason.code(), record.meta.message_type());
        match state.wait() {
            Some(wait) if !cause.is_failure() => tracing::info!(
                %topic, partition = number, offset, message_id = %id, message_type, reason,
                wait_ms = wait.as_millis(), "a message waits for another one, and its key behind it"
            ),
            Some(wait) => tracing::warn!(
                %topic, partition = number, offset, message_id = %id, message_type, reason, attempts,
                wait_ms = wait.as_millis(), "a message is parked, and its key behind it"
            ),
            None => tracing::error!(
                %topic, partition = number, offset, message_id = %id, message_type, reason, attempts,
                "a message is stuck, and its key behind it, until a person retries or discards it"
            ),
        }
    }

    /// Remembers what is in the database now.
    fn committed(&mut self, sealed: Sealed) {
        self.has_spared = false;
        let now = Instant::now();
        for (queue, head) in sealed.parked {
            self.parked.set(queue, Some(head), now);
        }
        self.shared.counters.count_committed(sealed.tally);
    }

    async fn commit<'b>(
        &self,
        tx: Transaction<'_, Postgres>,
        sealed: Sealed,
        trial: &mut Trial<'_, 'b>,
        plan: &mut Plan<&'b [u8]>,
    ) -> Result<Attempt, Error> {
        let error = match commit(tx).await {
            Ok(()) => {
                self.shared.reached(Milestone::Committed).await;
                return Ok(Attempt::Committed(sealed));
            }
            Err(error) => error,
        };
        if error.is_transient() {
            return Ok(Attempt::Uncertain(sealed, error));
        }
        // Behind savepoints whatever was deferred has been checked before.
        let Some(reach) = plan.reach() else { return Err(error) };
        match trial.blame(plan.start()..reach, of_handler(error)) {
            Stumble::Blame(blame) => {
                self.blamed(plan, blame);
                Ok(Attempt::Again)
            }
            stumble => Err(stumble.into_error()),
        }
    }

    async fn settle(&self, next_offset: Offset) -> Result<Settled, Error> {
        let Self { shared, owned, .. } = self;
        in_time("progress cannot be read", async {
            let mut conn = acquire(shared).await?;
            progress::settle(&mut conn, &shared.consumer, owned, next_offset).await
        })
        .await
    }
}

impl Batch {
    /// How many records are to be applied.
    pub(crate) fn len(&self) -> usize {
        self.work.records.len()
    }

    /// When the first of them was written.
    pub(crate) fn written(&self) -> Option<SystemTime> {
        self.work.records.first().and_then(|record| record.meta.timestamp())
    }

    /// Where progress stands when everything before this record is committed.
    fn offset(&self, until: usize) -> Offset {
        let next = self.work.records.get(until);
        next.map_or(self.next_offset, |record| record.meta.position().offset)
    }

    /// How far the relays have come then.
    fn reached(&self, until: usize) -> Vec<sequence::Reached<'_>> {
        let records = self.work.records.iter().take(until);
        sequence::last_of_each(
            records.map(|record| (record.meta.sequence(), record.meta.position().offset)),
        )
    }
}

/// Reads the headers of a batch and sets aside what has no handler, before a transaction is opened.
pub(crate) fn read(
    shared: &Shared,
    deliveries: Vec<Delivery>,
    behind: u64,
    next_offset: Offset,
) -> Result<Batch, Error> {
    let mut work = Work {
        records: Vec::with_capacity(deliveries.len()),
        routes: Vec::with_capacity(deliveries.len()),
    };
    let mut tally = Tally { duplicates: behind, ..Tally::default() };
    for delivery in deliveries {
        let record = Record::read(delivery, shared.id_from.as_deref())?;
        let route = shared.dispatch.find(record.meta.message_type());
        match shared.unhandled {
            Unhandled::Skip if route.is_none() => {
                tally.skipped += 1;
                continue;
            }
            Unhandled::Halt if route.is_none() => {
                let text = format!("no handler for the type {}", record.meta.message_type());
                return Err(Error::new(Kind::Unhandled, text)
                    .at(record.meta.position())
                    .about(record.meta.message_id())
                    .mended_by(
                        "register a handler, or pass such records over with Unhandled::Skip",
                    ));
            }
            _ => {}
        }
        work.records.push(record);
        work.routes.push(route);
    }
    Ok(Batch { work, tally, next_offset })
}

/// The handler of a type, where it makes calls.
pub(crate) fn call_of(shared: &Shared, message_type: &str) -> Option<RouteId> {
    shared.dispatch.find(message_type).filter(|route| shared.dispatch.limits(*route).is_some())
}

/// What a lane remembers of a queue's first row.
pub(crate) fn head_of(shared: &Shared, first: First) -> Head {
    let call = call_of(shared, &first.message_type);
    Head { offset: first.offset, wait: first.wait, call }
}

/// The heads of the queues that are this lane's.
async fn heads(shared: &Shared, owned: &Owned) -> Result<Vec<(Queue, Head)>, Error> {
    let mut heads = in_time("parked messages cannot be read", async {
        let mut conn = acquire(shared).await?;
        Table { consumer: &shared.consumer, partition: &owned.partition }.heads(&mut conn).await
    })
    .await?;
    let lane = usize::try_from(owned.lane).unwrap_or(0);
    heads.retain(|(queue, head)| shared.lanes.of(queue.key(), head.offset) == lane);
    Ok(heads.into_iter().map(|(queue, first)| (queue, head_of(shared, first))).collect())
}

pub(crate) async fn acquire(shared: &Shared) -> Result<PoolConnection<Postgres>, Error> {
    let acquired = shared.pool.acquire().await;
    acquired.map_err(|error| Error::database("no connection to postgres", error))
}

/// Waits before the next attempt; the lane ends where there is none, or where it is told to meanwhile. A database that is
/// away takes none of the time for retries: that it is tried again is up to its gate.
async fn wait_after(
    shared: &Shared,
    error: Error,
    patience: &mut Backoff,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), LaneEnd> {
    if !error.is_transient() {
        return Err(LaneEnd::Failed(error));
    }
    if error.is_outage() && shared.gate.is_shut() {
        *patience = Backoff::new(shared.retry_for);
        return Ok(());
    }
    let Some(wait) = patience.failed(Instant::now(), chance()) else {
        return Err(LaneEnd::Failed(error));
    };
    tracing::warn!(
        error = %error, code = error.database_code(), cause = error.fault().map(tracing::field::display),
        wait_ms = wait.as_millis(), "a transaction is repeated"
    );
    tokio::select! {
        biased;
        () = stopped(stop) => Err(LaneEnd::Stopped),
        () = tokio::time::sleep(wait) => Ok(()),
    }
}

pub(crate) async fn commit(tx: Transaction<'_, Postgres>) -> Result<(), Error> {
    in_time("the batch cannot be committed", async {
        tx.commit().await.map_err(|error| Error::database("the batch cannot be committed", error))
    })
    .await
}

/// Rolls back so that the next attempt does not wait for this one's locks. Failing is harmless: the server
/// rolls back what loses its connection.
pub(crate) async fn roll_back(tx: Transaction<'_, Postgres>) {
    let rolled_back = in_time("the batch cannot be rolled back", async {
        tx.rollback()
            .await
            .map_err(|error| Error::database("the batch cannot be rolled back", error))
    });
    if let Err(error) = rolled_back.await {
        tracing::debug!(error = %error, "the roll-back is left to the server");
    }
}
