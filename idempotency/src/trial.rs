//! The records of a batch inside one transaction: claims, savepoints, handlers.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tracing::{Instrument as _, Span};

use crate::call::Prepared;
use crate::error::{ABORTED, Error, Kind, Verdict};
use crate::failure::{Cause, Fate, Reason};
use crate::guard::fenced::{self, Taken};
use crate::guard::{self, Beyond, Candidate, Claim};
use crate::handler::Outcome;
use crate::lane::{Shared, in_time};
use crate::message_id::MessageId;
use crate::overrun;
use crate::plan::Plan;
use crate::position::Offset;
use crate::progress::{Fenced, Owned};
use crate::record::{Meta, Record};
use crate::retry::{OnFailure, OutOfHorizon};
use crate::route::{About, Handled, Outcall, RouteId};
use crate::trace;

/// Checks what was deferred to the commit, as long as the savepoint is there to go back to.
const RELEASE: &str = "SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED;
     RELEASE SAVEPOINT tailrace_segment";

/// How often a handler may have its records once more behind one savepoint.
const AGAIN_MAX: usize = 3;

/// What a record's claim came to in this transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Not claimed yet.
    Open,
    /// Ours to apply or to set aside.
    First,
    /// To be set aside, because it lies outside the horizon.
    Outside,
    /// Its effect is there already, or it was set aside before.
    Duplicate,
}

/// Records that may be applied, with their handlers.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) records: Vec<Record>,
    pub(crate) routes: Vec<Option<RouteId>>,
}

/// One transaction with records of a batch.
pub(crate) struct Trial<'s, 'a> {
    pub(crate) shared: &'s Shared,
    owned: &'s Owned,
    pub(crate) work: &'a Work,
    pub(crate) marks: Vec<Mark>,
    /// How far the calls of records are; what is not here is to be prepared.
    pub(crate) steps: BTreeMap<usize, Step>,
    /// The call of a handler that has taken longest.
    slowest: Option<(Duration, Range<usize>)>,
    /// The call with which the transaction went. There is no way back to a savepoint then.
    pub(crate) overran: Option<Range<usize>>,
}

/// How far the call of a record is.
pub(crate) enum Step {
    /// Prepared, with what it is made with.
    Prepared(Vec<u8>),
    /// Made, to be recorded.
    Record { intent: Vec<u8>, result: Outcall },
    /// Recorded, or ended without a call.
    Over,
}

/// Why the records of a call have no effect.
#[derive(Debug)]
pub(crate) struct Blame {
    pub(crate) call: Range<usize>,
    pub(crate) fate: Fate,
    /// Whether another try may help.
    pub(crate) again: bool,
}

/// What ended a segment.
#[derive(Debug)]
pub(crate) enum Stumble {
    /// Its records failed by their own fault.
    Blame(Blame),
    /// A handler wants its records once more, by nobody's fault.
    Again,
    /// The transaction is lost, or there is no way on.
    Error(Error),
}

impl Stumble {
    /// Where every message has its savepoint, nobody is blamed outside of it.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Error(error) => error,
            Self::Blame(_) => {
                Error::new(Kind::Internal, "a message was blamed behind its savepoint")
            }
            Self::Again => again_and_again(),
        }
    }
}

impl From<Error> for Stumble {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl<'s, 'a> Trial<'s, 'a> {
    pub(crate) fn new(shared: &'s Shared, owned: &'s Owned, work: &'a Work, mark: Mark) -> Self {
        let marks = vec![mark; work.records.len()];
        Self { shared, owned, work, marks, steps: BTreeMap::new(), slowest: None, overran: None }
    }

    /// Runs the records of a segment that are to be run. After blame behind a savepoint, all that they did is undone.
    pub(crate) async fn run(
        &mut self,
        conn: &mut PgConnection,
        plan: &mut Plan<&'a [u8]>,
        segment: Range<usize>,
        guarded: bool,
    ) -> Result<(), Stumble> {
        match self.run_segment(conn, plan, segment, guarded).await {
            Err(Stumble::Error(error)) => Err(Stumble::Error(self.overrun_in(error))),
            ran => ran,
        }
    }

    async fn run_segment(
        &mut self,
        conn: &mut PgConnection,
        plan: &mut Plan<&'a [u8]>,
        segment: Range<usize>,
        guarded: bool,
    ) -> Result<(), Stumble> {
        self.claim(conn, plan, segment.clone()).await?;
        let runnable = self.runnable(plan, segment);
        let (Some(first), Some(last)) = (runnable.first(), runnable.last()) else { return Ok(()) };
        let all = *first..last + 1;
        if !guarded {
            return self.call_all(conn, plan, &runnable).await;
        }
        savepoint(conn, "SAVEPOINT tailrace_segment").await?;
        for _ in 0..AGAIN_MAX {
            let ran = match self.call_all(conn, plan, &runnable).await {
                Ok(()) => self.release(conn, all.clone()).await,
                Err(stumble) => Err(stumble),
            };
            if let Err(Stumble::Blame(_) | Stumble::Again) = &ran {
                savepoint(conn, "ROLLBACK TO SAVEPOINT tailrace_segment").await?;
            }
            if !matches!(ran, Err(Stumble::Again)) {
                return ran;
            }
        }
        Err(self.blame(all, again_and_again()))
    }

    fn runnable(&self, plan: &Plan<&'a [u8]>, segment: Range<usize>) -> Vec<usize> {
        let ours = |at: &usize| matches!(self.marks.get(*at), Some(Mark::First | Mark::Outside));
        segment.filter(ours).filter(|at| plan.aside(*at).is_none()).collect()
    }

    /// Claims those records of the segment that are not claimed yet.
    async fn claim(
        &mut self,
        conn: &mut PgConnection,
        plan: &mut Plan<&'a [u8]>,
        segment: Range<usize>,
    ) -> Result<(), Error> {
        let (known, open): (Vec<usize>, Vec<usize>) = segment
            .filter(|at| self.marks.get(*at) == Some(&Mark::Open))
            .partition(|at| self.is_known_by_position(*at));
        for at in known {
            self.first(plan, at);
        }
        let (metas, candidates) = self.candidates(&open);
        if metas.is_empty() {
            return Ok(());
        }
        let out_of_horizon = self.shared.policy.out_of_horizon;
        let beyond = match out_of_horizon {
            OutOfHorizon::Process => Beyond::Accept,
            OutOfHorizon::Reject | OutOfHorizon::Park | OutOfHorizon::Halt => Beyond::Tell,
        };
        let claiming = guard::claim_each(conn, &self.shared.consumer, &candidates, beyond);
        let mut claims = in_time("the message ids cannot be claimed", claiming).await?;
        if out_of_horizon != OutOfHorizon::Halt {
            self.claim_outside(conn, &metas, &mut claims).await?;
        }
        self.claimed(plan, open, metas, claims)
    }

    /// Takes the fence and claims these records, which are all that the transaction is to hold, in one round trip; none
    /// where another process owns the partition. What has not come to a claim thereby does so in its turn.
    pub(crate) async fn fence_and_claim(
        &mut self,
        conn: &mut PgConnection,
        plan: &mut Plan<&'a [u8]>,
        records: Range<usize>,
        next_offset: Offset,
    ) -> Result<Option<Fenced>, Error> {
        let open: Vec<usize> = records.collect();
        let (metas, candidates) = self.candidates(&open);
        let consumer = &self.shared.consumer;
        let taking =
            fenced::advance_and_claim(conn, consumer, self.owned, next_offset, &candidates);
        let taken = in_time("progress cannot be moved on", taking).await?;
        let Some(Taken { fenced, claims }) = taken else { return Ok(None) };
        if let Some(claims) = claims {
            self.claimed(plan, open, metas, claims)?;
        }
        Ok(Some(fenced))
    }

    /// Whether the fence and the claims of these records can be one round trip.
    pub(crate) fn can_be_fenced_and_claimed(&self, records: Range<usize>) -> bool {
        let open: Vec<usize> = records.collect();
        !self.shared.dedupe.is_position() && fenced::is_for(&self.candidates(&open).1)
    }

    fn candidates(&self, open: &[usize]) -> (Vec<&'a Meta>, Vec<Candidate>) {
        let work = self.work;
        let metas: Vec<&Meta> =
            open.iter().filter_map(|at| work.records.get(*at)).map(|r| &r.meta).collect();
        let candidate =
            |meta: &&Meta| Candidate::new(meta.message_id()).written_at(meta.timestamp());
        let candidates = metas.iter().map(candidate).collect();
        (metas, candidates)
    }

    /// Takes note of what claims have come to.
    fn claimed(
        &mut self,
        plan: &mut Plan<&'a [u8]>,
        open: Vec<usize>,
        metas: Vec<&Meta>,
        claims: Vec<Claim>,
    ) -> Result<(), Error> {
        let out_of_horizon = self.shared.policy.out_of_horizon;
        for ((at, meta), claim) in open.into_iter().zip(metas).zip(claims) {
            let reason = match claim {
                Claim::First => {
                    self.first(plan, at);
                    continue;
                }
                Claim::Duplicate => {
                    self.mark(at, Mark::Duplicate);
                    continue;
                }
                Claim::TooOld => Reason::TooOld,
                Claim::Future => Reason::Future,
            };
            self.mark(at, Mark::Outside);
            plan.condemn(
                at,
                match out_of_horizon {
                    OutOfHorizon::Halt => return Err(outside(meta, reason)),
                    OutOfHorizon::Park => Fate::Park(Cause::new(reason)),
                    // What may be accepted was claimed.
                    OutOfHorizon::Reject | OutOfHorizon::Process => Fate::Bury(Cause::new(reason)),
                },
            );
        }
        Ok(())
    }

    /// What lies outside the horizon is claimed too: else each time that it comes it were set aside once more, and a
    /// person who retries it had an effect for each.
    async fn claim_outside(
        &self,
        conn: &mut PgConnection,
        metas: &[&Meta],
        claims: &mut [Claim],
    ) -> Result<(), Error> {
        let is_outside = |claim: &Claim| matches!(claim, Claim::TooOld | Claim::Future);
        let told = metas.iter().zip(&*claims).filter(|(_, claim)| is_outside(claim));
        let ids: Vec<MessageId> = told.map(|(meta, _)| meta.message_id()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let claiming = guard::claim_outside(conn, &self.shared.consumer, &ids);
        let known = in_time("the message ids cannot be claimed", claiming).await?;
        for (claim, known) in claims.iter_mut().filter(|claim| is_outside(claim)).zip(known) {
            if known == Claim::Duplicate {
                *claim = known;
            }
        }
        Ok(())
    }

    /// Whether its place in the source tells that it comes for the first time, which was looked at before.
    fn is_known_by_position(&self, at: usize) -> bool {
        let record = self.work.records.get(at).filter(|_| self.shared.dedupe.is_position());
        record.is_some_and(|record| record.meta.has_sequence())
    }

    fn first(&mut self, plan: &mut Plan<&'a [u8]>, at: usize) {
        self.mark(at, Mark::First);
        if self.makes_call(at) {
            plan.condemn(at, Fate::Call);
        }
    }

    fn mark(&mut self, at: usize, mark: Mark) {
        if let Some(place) = self.marks.get_mut(at) {
            *place = mark;
        }
    }

    fn makes_call(&self, at: usize) -> bool {
        let route = self.work.routes.get(at).copied().flatten();
        route.is_some_and(|route| self.shared.dispatch.limits(route).is_some())
    }

    /// Calls the handlers one after another; records of one handler that takes batches at once.
    async fn call_all(
        &mut self,
        conn: &mut PgConnection,
        plan: &mut Plan<&'a [u8]>,
        runnable: &[usize],
    ) -> Result<(), Stumble> {
        let (work, shared) = (self.work, self.shared);
        let route = |at: &usize| work.routes.get(*at).copied().flatten();
        let together = |a: &usize, b: &usize| {
            route(a).is_some_and(|route| shared.dispatch.takes_batches(route))
                && route(a) == route(b)
        };
        for places in runnable.chunk_by(together) {
            let Some(route) = places.first().and_then(route) else {
                let text = "a record without a handler was to be applied";
                return Err(Error::new(Kind::Internal, text).into());
            };
            self.call(conn, plan, route, places).await?;
        }
        Ok(())
    }

    async fn call(
        &mut self,
        conn: &mut PgConnection,
        plan: &mut Plan<&'a [u8]>,
        route: RouteId,
        places: &[usize],
    ) -> Result<(), Stumble> {
        let (Some(first), Some(last)) = (places.first(), places.last()) else { return Ok(()) };
        let records: Vec<&Record> =
            places.iter().filter_map(|at| self.work.records.get(*at)).collect();
        let spans = trace::of_messages(&records);
        let handled = self.handle(conn, route, places, &records, &spans).await;
        match &handled {
            Ok(Handled { ended: Ok(Outcome::Done), .. }) => {}
            Ok(Handled { about: About::One(place), .. }) => {
                spans.get(*place).into_iter().for_each(trace::failed);
            }
            _ => spans.iter().for_each(trace::failed),
        }
        drop(spans);
        let handled = handled?;
        for (place, error) in handled.undecodable {
            if self.shared.policy.on_failure == OnFailure::Halt {
                return Err(error.into());
            }
            if let Some(at) = places.get(place) {
                plan.condemn(*at, Fate::Bury(Cause::of(&error)));
            }
        }
        let whole = *first..last + 1;
        let call = match handled.about {
            About::All => whole,
            About::One(place) => places.get(place).map_or(whole, |at| *at..at + 1),
            About::Again => return Err(Stumble::Again),
        };
        let (fate, again) = match handled.ended {
            Ok(Outcome::Done) => return Ok(()),
            Ok(Outcome::Retry { after }) => (Fate::Park(Cause::later(after)), false),
            Ok(Outcome::Wait { reason }) => {
                (Fate::Park(Cause::with_detail(Reason::Waits, &reason)), false)
            }
            Ok(Outcome::Reject { reason }) => {
                (Fate::Bury(Cause::with_detail(Reason::Rejected, &reason)), false)
            }
            Err(error) => return Err(self.blame(call, error)),
        };
        Err(Stumble::Blame(Blame { call, fate, again }))
    }

    /// Runs a handler, for as long as it may take.
    async fn handle(
        &mut self,
        conn: &mut PgConnection,
        route: RouteId,
        places: &[usize],
        records: &[&'a Record],
        spans: &[Span],
    ) -> Result<Handled, Stumble> {
        let (Some(at), Some(last), Some(first)) = (places.first(), places.last(), records.first())
        else {
            return Ok(Handled::of_all(Vec::new(), Ok(Outcome::Done)));
        };
        let around = spans.first().filter(|_| records.len() == 1).cloned();
        let around = around.unwrap_or_else(Span::current);
        let (shared, began) = (self.shared, Instant::now());
        let watched = shared.health.handles(first.meta.position(), shared.handler_time_out);
        let handling = async {
            match records {
                [record] if shared.dispatch.limits(route).is_some() => {
                    self.step(conn, route, *at, record).await
                }
                records => shared.dispatch.handle(conn, route, records, spans).await,
            }
        };
        let handling = handling.instrument(around);
        let handled = tokio::time::timeout(shared.handler_time_out, handling).await;
        drop(watched);
        let took = began.elapsed();
        shared.meters.handled(took);
        let call = *at..last + 1;
        if self.slowest.as_ref().is_none_or(|(longest, _)| *longest < took) {
            self.slowest = Some((took, call.clone()));
        }
        match handled {
            Ok(handled) => Ok(handled),
            Err(_) => {
                match overrun::cut_off(shared, self.owned, &first.meta, records.len()).await {
                    Ok(error) => {
                        self.overran = Some(call);
                        Err(Stumble::Error(error))
                    }
                    Err(away) => Err(Stumble::Error(away)),
                }
            }
        }
    }

    /// An error that was found after the handlers names whose it may be.
    fn named(&self, call: &Range<usize>, error: Error) -> Error {
        if error.kind() != Kind::Handler || error.position().is_some() {
            return error;
        }
        let records = self.work.records.get(call.clone()).unwrap_or_default();
        match records {
            [] => error,
            [record] => error.at(record.meta.position()).about(record.meta.message_id()),
            [first, .., last] => error.within(first.meta.position(), last.meta.position()),
        }
    }

    /// An error of a session that is gone is that of the handler which let it go.
    fn overrun_in(&mut self, error: Error) -> Error {
        let Some((took, call)) = &self.slowest else { return error };
        let Some(first) = self.work.records.get(call.start) else { return error };
        let is_told = self.overran.is_some() || error.breaks_off();
        if is_told || !overrun::lost_by(&error, *took, self.shared) {
            return error;
        }
        self.overran = Some(call.clone());
        overrun::idled(self.shared, &first.meta, call.len(), error)
    }

    /// The part of a call that belongs into a transaction. What does not decode is told as such.
    async fn step(
        &mut self,
        conn: &mut PgConnection,
        route: RouteId,
        at: usize,
        record: &Record,
    ) -> Handled {
        let dispatch = &self.shared.dispatch;
        let ended = match self.steps.insert(at, Step::Over) {
            None => match dispatch.prepare(conn, route, record).await {
                Ok(Prepared::Call(intent)) => {
                    self.steps.insert(at, Step::Prepared(intent));
                    Ok(Outcome::Done)
                }
                Ok(Prepared::End(outcome)) => Ok(outcome),
                Err(error) if error.kind() == Kind::Payload => {
                    return Handled::of_all(vec![(0, error)], Ok(Outcome::Done));
                }
                Err(error) => Err(error),
            },
            Some(Step::Record { intent, result }) => {
                let recorded = dispatch.record(conn, route, record, &intent, result).await;
                recorded.map(|()| Outcome::Done)
            }
            Some(Step::Prepared(_) | Step::Over) => {
                Err(Error::new(Kind::Internal, "a step of a call was made twice"))
            }
        };
        Handled::of_all(Vec::new(), ended)
    }

    /// What an error in these records means.
    pub(crate) fn blame(&mut self, call: Range<usize>, error: Error) -> Stumble {
        let error = self.overrun_in(error);
        let error = self.named(&call, error);
        let fate = match self.shared.policy.on_failure {
            _ if error.verdict() != Verdict::Message => return Stumble::Error(error),
            OnFailure::Halt => return Stumble::Error(error),
            OnFailure::Park => Fate::Park(Cause::of(&error)),
            OnFailure::DeadLetter => Fate::Bury(Cause::of(&error)),
        };
        Stumble::Blame(Blame { call, fate, again: true })
    }

    /// Keeps what the segment did, unless a handler left the transaction in no state to.
    async fn release(&mut self, conn: &mut PgConnection, all: Range<usize>) -> Result<(), Stumble> {
        let released = in_time("a savepoint cannot be released", async {
            let released = sqlx::raw_sql(RELEASE).execute(conn).await;
            released.map_err(|error| Error::database("a savepoint cannot be released", error))
        });
        match released.await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.blame(all, of_handler(error))),
        }
    }
}

fn again_and_again() -> Error {
    Error::new(Kind::Handler, "a handler asks for its messages again and again")
}

fn outside(meta: &Meta, reason: Reason) -> Error {
    let (text, mend) = match reason {
        Reason::Future => (
            "the message id was minted more than one day ahead of the database's clock",
            "correct the producer's clock, or say by Config::out_of_horizon what to do with it",
        ),
        _ => (
            "the message is older than its claim would be known",
            "whether it was applied before is not known: say by Config::out_of_horizon what to do with it",
        ),
    };
    Error::new(Kind::MessageId, text).mended_by(mend).at(meta.position()).about(meta.message_id())
}

/// What a handler did to its transaction, told by a statement of ours that failed in it.
pub(crate) fn of_handler(error: Error) -> Error {
    let code = error.database_code();
    match code.as_deref() {
        Some("25P01" | "3B001") => {
            Error::new(Kind::Handler, "a handler ended the transaction of its batch")
                .caused_by(error)
                .mended_by("handlers must neither commit nor roll back what they were given")
                .halting()
        }
        Some(ABORTED) => Error::new(
            Kind::Handler,
            "a handler kept a failed statement to itself, which aborted the transaction of its batch",
        )
        .caused_by(error)
        .mended_by("return the error, or put the statement behind a savepoint"),
        Some("25P03") => error,
        Some(_) => Error::new(Kind::Handler, "a constraint that was deferred does not hold")
            .caused_by(error),
        None => error,
    }
}

async fn savepoint(conn: &mut PgConnection, statement: &'static str) -> Result<(), Error> {
    in_time("a savepoint cannot be set or undone", async {
        match sqlx::raw_sql(statement).execute(conn).await {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::database("a savepoint cannot be set or undone", error)),
        }
    })
    .await
}
