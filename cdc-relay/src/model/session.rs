//! A relay's life from the slot to the next error.
//!
//! Each step is what `session.rs`, `setup.rs`, `publisher.rs` and `sink/exactly_once.rs` do between
//! two waits. What is decided on the way is decided by the shipped functions.

use super::kafka::{Entry, Kafka, PerTurn, Request};
use super::rule::Broken;
use super::wal::Event;
use super::{Relays, State, TURNS, encoded, now, server, slot, source};
use crate::checkpoint::{Checkpoint, Intent, Published, Reads, Stored};
use crate::error::Error;
use crate::lsn::Lsn;
use crate::progress::{Progress, Verdict};
use crate::resume;
use crate::sink::turns::{Turn, Turns};

/// The one that is fenced last.
const LAST: Turn = Turn::C;

/// What a session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    AskTheSlot,
    /// The producer of this id is being initialised.
    Fence(Turn),
    Read,
    Decide,
    /// The first checkpoint of a slot becomes durable.
    First,
    Stream,
    /// The intent becomes durable.
    Intend,
    CreateTheSlot,
    /// With a rule switched off: everything but the slot is there.
    HoldLate,
}

/// What a session has of a transactional id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Epoch {
    #[default]
    None,
    Newest,
    /// Somebody has been initialised since, or the transaction has timed out: whatever it asks is
    /// refused.
    Stale,
}

/// What is saved with the batch, and what progress says of it; nothing while it has no place yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sealing {
    entry: Entry,
    due: Option<Published>,
}

/// A commit that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Commit {
    turn: Turn,
    entry: Entry,
    answered: bool,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Session {
    stage: Stage,
    /// It makes the slot, and ends then.
    creates: bool,
    /// Its walsender runs.
    holds: bool,
    /// Its walsender was ended, which it does not know; what was sent before can still be read.
    deposed: bool,
    epochs: PerTurn<Epoch>,
    /// Requests under way, in their order per producer.
    queues: PerTurn<Vec<Request>>,
    turns: Turns,
    /// The next event of its stream.
    at: usize,
    /// What the server said of the slot.
    confirmed: Lsn,
    /// What the checkpoint topic said: the newest checkpoint, and whether there is an intent.
    read: (Option<Published>, bool),
    progress: Option<Progress>,
    sealing: Option<Sealing>,
    /// More than one only with a rule switched off.
    commits: Vec<Commit>,
    /// By change LSN, with a rule switched off: what is discarded, and what was published last.
    discarded_to: Lsn,
    last_change: Option<Lsn>,
}

/// What a relay can do by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// Takes the slot, or finds it missing.
    Begin,
    AskTheSlot,
    Read,
    /// With a rule switched off: while the marker of the newest commit is not visible yet.
    ReadTooLittle,
    Decide,
    CreateTheSlot,
    Take,
    Seal,
    /// Seals before it is due, be it inside a transaction, to tell a refused record from others.
    Cut,
    Commit,
    Confirm,
    /// Learns that it was fenced, or that its walsender is gone.
    Notice,
    /// With a rule switched off: takes the slot last.
    Hold,
}

/// What all relays share.
#[derive(Debug)]
pub(super) struct World<'s> {
    pub(super) slot: &'s mut Option<Lsn>,
    pub(super) kafka: &'s Kafka,
}

impl World<'_> {
    /// A status update, which the server hears from the holder's walsender alone.
    fn flush(&mut self, lsn: Lsn, session_holds: bool) {
        if let Some(confirmed) = self.slot.as_mut().filter(|_| session_holds) {
            *confirmed = lsn.max(*confirmed);
        }
    }
}

impl Session {
    /// A session begins: with the slot, or with making it.
    pub(super) fn begin(model: &Relays, slot: Option<Lsn>) -> Self {
        let mut turns = Turns::new();
        if model.is(Broken::FirstCommitsOnB) {
            turns.seal();
            turns.committed();
        }
        let mut session = Session {
            stage: Stage::AskTheSlot,
            creates: slot.is_none(),
            holds: false,
            deposed: false,
            epochs: PerTurn::default(),
            queues: PerTurn::default(),
            turns,
            at: 0,
            confirmed: Lsn(0),
            read: (None, false),
            progress: None,
            sealing: None,
            commits: Vec::new(),
            discarded_to: Lsn(0),
            last_change: None,
        };
        let holds_first = !model.is(Broken::InitialisesBeforeItHoldsTheSlot);
        if let Some(confirmed) = slot.filter(|_| holds_first) {
            session.hold(model, confirmed);
        }
        if !session.holds || model.is(Broken::AsksTheSlotLast) {
            session.fence(TURNS[0]);
        }
        session
    }

    fn hold(&mut self, model: &Relays, confirmed: Lsn) {
        self.holds = true;
        self.at = model.wal.first_after(confirmed);
    }

    fn fence(&mut self, turn: Turn) {
        self.stage = Stage::Fence(turn);
        self.queues.of_mut(turn).push(Request::InitProducerId);
    }

    /// Its producer of this id has the newest epoch.
    pub(super) fn is_initialised(&mut self, turn: Turn, model: &Relays) {
        *self.epochs.of_mut(turn) = Epoch::Newest;
        let next = TURNS.into_iter().skip_while(|it| *it != turn).nth(1);
        let reads_early = model.is(Broken::ReadsBeforeAllAreInitialised);
        match next {
            Some(next) if reads_early && next == LAST => self.stage = Stage::Read,
            Some(next) => self.fence(next),
            None if reads_early => self.stage = Stage::Decide,
            None => self.stage = Stage::Read,
        }
    }

    /// The newest epoch of an id is somebody else's.
    pub(super) fn is_fenced_on(&mut self, turn: Turn) {
        if self.owns(turn) {
            *self.epochs.of_mut(turn) = Epoch::Stale;
            self.queues.of_mut(turn).clear();
        }
    }

    /// Its walsender is ended.
    pub(super) fn depose(&mut self) {
        self.holds = false;
        self.deposed = true;
    }

    pub(super) fn holds(&self) -> bool {
        self.holds
    }

    pub(super) fn owns(&self, turn: Turn) -> bool {
        *self.epochs.of(turn) == Epoch::Newest
    }

    fn is_stale(&self, turn: Turn) -> bool {
        *self.epochs.of(turn) == Epoch::Stale
    }

    pub(super) fn is_fenced(&self) -> bool {
        TURNS.iter().any(|turn| self.is_stale(*turn))
    }

    pub(super) fn is_zombie(&self) -> bool {
        self.deposed && self.commits.iter().any(|commit| commit.answered)
    }

    /// Whether it waits until everything below the end of the checkpoint topic is certain.
    pub(super) fn reads(&self) -> bool {
        self.stage == Stage::Read
    }

    /// Whether the answer to a commit is outstanding.
    pub(super) fn is_uncertain(&self) -> bool {
        !self.commits.is_empty()
    }

    /// Whether a request is under way that will be carried out.
    pub(super) fn awaits(&self, turn: Turn) -> bool {
        !self.queues.of(turn).is_empty() && !self.is_stale(turn)
    }

    pub(super) fn pop(&mut self, turn: Turn) -> Request {
        self.queues.of_mut(turn).remove(0)
    }

    /// Takes out the oldest request of a producer if it is one for a record.
    pub(super) fn pop_record(&mut self, turn: Turn) -> Option<Request> {
        let first = self.queues.of(turn).first()?;
        let is_record = !matches!(first, Request::InitProducerId | Request::Commit);
        (is_record && self.owns(turn)).then(|| self.pop(turn))
    }

    pub(super) fn is_answered(&mut self, turn: Turn) {
        // With a rule switched off the session may have stopped to wait for it.
        if let Some(commit) = self.commits.iter_mut().find(|commit| commit.turn == turn) {
            commit.answered = true;
        }
    }

    /// Whether nothing that it still does can be seen by anybody: the producer that it fills is
    /// fenced, and so is what is under way. Then it ends at once, for it will sooner or later.
    pub(super) fn is_spent(&self) -> bool {
        self.writes()
            && self.is_stale(self.turns.filling())
            && self.commits.iter().all(|commit| !commit.answered && self.is_stale(commit.turn))
    }

    /// It ends: what is under way may still arrive. Records alone change nothing then, because
    /// whoever reads next has had their transaction aborted before.
    pub(super) fn end(self, kafka: &mut Kafka) {
        for turn in TURNS {
            let queue = self.queues.of(turn);
            if queue.contains(&Request::InitProducerId) {
                *kafka.orphan_inits.of_mut(turn) += 1;
            }
            let counts =
                |request: &Request| matches!(request, Request::Commit | Request::SavePlainly(_));
            if self.owns(turn) && queue.iter().any(counts) {
                kafka.orphans.of_mut(turn).clone_from(queue);
            }
        }
    }

    /// With a rule switched off: a commit has no answer, and the session goes on.
    pub(super) fn make_do(&mut self, model: &Relays) {
        if model.is(Broken::TakesUncertainForCommitted) {
            for commit in &mut self.commits {
                commit.answered = true;
                self.queues.of_mut(commit.turn).retain(|request| *request != Request::Commit);
            }
        } else {
            self.commits.clear();
            self.turns = Turns::new();
            self.progress = None;
            self.sealing = None;
            self.at = 0;
            self.stage = Stage::Read;
        }
    }
}

/// What it can do.
impl Session {
    pub(super) fn steps(&self, model: &Relays, state: &State, steps: &mut Vec<Step>) {
        // A fence is met by who writes, a lost slot by who listens.
        if (self.writes() && self.is_fenced()) || (self.stage == Stage::Stream && self.deposed) {
            steps.push(Step::Notice);
        }
        match self.stage {
            Stage::AskTheSlot => steps.push(Step::AskTheSlot),
            Stage::Fence(_) => {}
            Stage::Read => {
                if state.kafka.is_settled() {
                    steps.push(Step::Read);
                }
                if model.is(Broken::ReadsToTheLastStableOffset) {
                    steps.push(Step::ReadTooLittle);
                }
            }
            Stage::Decide => steps.push(Step::Decide),
            Stage::HoldLate if state.is_slot_free() => steps.push(Step::Hold),
            Stage::HoldLate => {}
            Stage::CreateTheSlot => steps.push(Step::CreateTheSlot),
            Stage::First | Stage::Intend => self.closing(model, steps),
            Stage::Stream => {
                self.closing(model, steps);
                self.streaming(model, steps);
            }
        }
    }

    fn writes(&self) -> bool {
        matches!(self.stage, Stage::First | Stage::Intend | Stage::Stream)
    }

    /// The steps from a sealed batch to a certain commit.
    fn closing(&self, model: &Relays, steps: &mut Vec<Step>) {
        let filled = self.queues.of(self.turns.filling());
        let is_acked = filled.is_empty() || model.is(Broken::FillsBeforeAllAcks);
        let is_certain = { self.turns }.seal().is_some();
        if self.sealing.is_some() && is_acked && is_certain && self.can_fill() {
            steps.push(Step::Commit);
        }
        if self.commits.iter().any(|commit| commit.answered) {
            steps.push(Step::Confirm);
        }
    }

    /// The steps of the relay's loop: what is due is sealed before more is taken in; what is due
    /// only when the stream has nothing to give for the moment may be.
    fn streaming(&self, model: &Relays, steps: &mut Vec<Step>) {
        if self.sealing.is_some() || !self.can_fill() {
            return;
        }
        let progress = self.progress.as_ref().expect("who streams has a place");
        let is_due = progress.due(now(), false).is_some();
        if !is_due && self.at < model.wal.events.len() {
            steps.push(Step::Take);
        }
        if progress.due(now(), true).is_some() && !progress.is_committing() {
            steps.push(Step::Seal);
        } else if model.cuts && progress.cut().is_some() && !progress.is_committing() {
            steps.push(Step::Cut);
        }
    }

    /// Whether the producer that is filled can take more: it is not fenced, nor is a commit of its
    /// own under way.
    fn can_fill(&self) -> bool {
        let filling = self.turns.filling();
        self.owns(filling) && self.commits.iter().all(|commit| commit.turn != filling)
    }
}

/// What it does.
impl Session {
    /// Takes a step; `false` when the session has come to its end.
    pub(super) fn take_step(
        &mut self,
        step: Step,
        model: &Relays,
        mut world: World<'_>,
    ) -> Result<bool, Error> {
        let there = "the slot is there";
        match step {
            Step::Begin => unreachable!("the session has begun"),
            Step::AskTheSlot => {
                self.confirmed = world.slot.expect(there);
                self.fence(TURNS[0]);
            }
            Step::Read | Step::ReadTooLittle => {
                let hidden = usize::from(step == Step::ReadTooLittle);
                self.read = (world.kafka.checkpoints().nth(hidden), world.kafka.has_intent());
                self.has_read(model);
            }
            Step::Hold => {
                self.confirmed = world.slot.expect(there);
                self.hold(model, self.confirmed);
                self.stage = Stage::Decide;
            }
            Step::Decide if self.creates => return self.decide_to_create(model, &world),
            Step::Decide => self.decide_to_resume(model, &mut world)?,
            Step::CreateTheSlot => {
                world.slot.get_or_insert(model.wal.start);
                return Ok(false);
            }
            Step::Take => self.take(model, &mut world)?,
            Step::Seal | Step::Cut => self.seal(model),
            Step::Commit => self.commit(model, &mut world),
            Step::Confirm => self.confirm(model, &mut world),
            Step::Notice => return Ok(false),
        }
        Ok(true)
    }

    fn has_read(&mut self, model: &Relays) {
        let holds_late = model.is(Broken::InitialisesBeforeItHoldsTheSlot) && !self.creates;
        if model.is(Broken::ReadsBeforeAllAreInitialised) {
            self.fence(LAST);
        } else if holds_late {
            self.stage = Stage::HoldLate;
        } else {
            self.stage = Stage::Decide;
        }
    }

    /// What the checkpoint topic holds, by way of its bytes.
    fn stored(&self) -> Result<Stored, Error> {
        let (checkpoint, has_intent) = self.read;
        let checkpoint = checkpoint.map(|progress| Checkpoint {
            source: source(),
            progress,
            reads: Reads::default(),
        });
        Stored::read(&encoded(checkpoint, has_intent.then(|| Intent { source: source() })))
    }

    fn decide_to_create(&mut self, model: &Relays, world: &World<'_>) -> Result<bool, Error> {
        // Another relay may have made it since this one looked.
        if world.slot.is_some() {
            return Ok(false);
        }
        let Intent { source } = resume::create(
            &server(model.wal.end),
            &slot(Lsn(0)).name,
            &self.stored()?,
            source().incarnation,
        )?;
        assert_eq!(source, self::source());
        if model.is(Broken::CreatesTheSlotBeforeTheIntent) {
            self.stage = Stage::CreateTheSlot;
        } else {
            self.stage = Stage::Intend;
            self.put(Entry::Intent, None, model);
        }
        Ok(true)
    }

    fn decide_to_resume(&mut self, model: &Relays, world: &mut World<'_>) -> Result<(), Error> {
        if model.is(Broken::AsksTheSlotLast) {
            self.confirmed = world.slot.expect("it was held");
        }
        let server = server(model.wal.end);
        let start = resume::resume(&server, &slot(self.confirmed), &self.stored()?, |_| None)?;
        if start.first {
            self.stage = Stage::First;
            self.put(Entry::Checkpoint(start.progress), None, model);
        } else {
            self.stream(start.progress, model, world);
        }
        Ok(())
    }

    fn stream(&mut self, from: Published, model: &Relays, world: &mut World<'_>) {
        let whole = Published { flush_lsn: self.confirmed, partial: None };
        let known = match model.broken {
            Some(Broken::ForgetsTheCheckpoint) => whole,
            Some(Broken::ForgetsThePartial) => Published { partial: None, ..from },
            Some(Broken::DiscardsByChangeLsn) => {
                self.discarded_to = from.flush_lsn;
                whole
            }
            _ => from,
        };
        let incarnation = source().incarnation;
        self.progress = Some(Progress::new(incarnation, known, model.limits, now()));
        self.stage = Stage::Stream;
        world.flush(known.flush_lsn, self.holds);
        // Of no use from here on: states that differ in it alone are the same.
        self.confirmed = Lsn(0);
        self.read = (None, false);
    }

    /// Takes in what the stream brings, up to a change that is new or the end of a transaction.
    fn take(&mut self, model: &Relays, world: &mut World<'_>) -> Result<(), Error> {
        let progress = self.progress.as_mut().expect("who streams has a place");
        loop {
            let event = model.wal.events[self.at];
            self.at += 1;
            match event {
                Event::Change { commit_lsn, lsn, begins, message } => {
                    if begins {
                        progress.begin(commit_lsn)?;
                    }
                    let Verdict::Fresh(position) = progress.change(lsn)? else { continue };
                    let Some(number) = message else { return Ok(()) };
                    assert_eq!(position.place(), model.wal.messages[usize::from(number)].place);
                    if lsn <= self.discarded_to {
                        continue;
                    }
                    self.queues.of_mut(self.turns.filling()).push(Request::Produce(number));
                    progress.produced(position, lsn, 1, now());
                    if model.is(Broken::DiscardsByChangeLsn) {
                        self.last_change = Some(lsn);
                    }
                }
                Event::Commit { commit_lsn, end_lsn } => progress.commit(commit_lsn, end_lsn)?,
                Event::Keepalive { wal_end } => {
                    if model.is(Broken::FlushesIdleLogAtOnce) && progress.is_drained() {
                        world.flush(wal_end, self.holds);
                    }
                    progress.keepalive(wal_end, false);
                }
            }
            return Ok(());
        }
    }

    fn seal(&mut self, model: &Relays) {
        let progress = self.progress.as_ref().expect("who streams has a place");
        let due = progress.due(now(), true).or_else(|| progress.cut()).expect("a batch");
        let saved = match self.last_change.take() {
            Some(flush_lsn) => Published { flush_lsn, partial: None },
            None => due,
        };
        self.put(Entry::Checkpoint(saved), Some(due), model);
    }

    fn put(&mut self, entry: Entry, due: Option<Published>, model: &Relays) {
        let request = if model.is(Broken::SavesTheCheckpointApart) {
            Request::SavePlainly(entry)
        } else {
            Request::Save(entry)
        };
        self.queues.of_mut(self.turns.filling()).push(request);
        self.sealing = Some(Sealing { entry, due });
    }

    fn commit(&mut self, model: &Relays, world: &mut World<'_>) {
        let Sealing { entry, due } = self.sealing.take().expect("sealed before it commits");
        let turn = self.turns.seal().expect("the commit before is certain");
        self.queues.of_mut(turn).push(Request::Commit);
        self.commits.push(Commit { turn, entry, answered: false });
        if let (Some(progress), Some(due)) = (&mut self.progress, due) {
            progress.sealed(due, now());
            if model.is(Broken::CommitsTwiceAtOnce) {
                progress.committed();
                self.turns.committed();
            }
        }
        if let (true, Entry::Checkpoint(saved)) = (model.is(Broken::FlushesWhatIsSealed), entry) {
            world.flush(saved.flush_lsn, self.holds);
        }
    }

    fn confirm(&mut self, model: &Relays, world: &mut World<'_>) {
        let at = self.commits.iter().position(|commit| commit.answered).expect("answered");
        let entry = self.commits.remove(at).entry;
        // With the rule switched off both were told when the commit was asked for.
        let is_told = model.is(Broken::CommitsTwiceAtOnce) && self.stage == Stage::Stream;
        if !is_told {
            self.turns.committed();
        }
        match (self.stage, entry) {
            (Stage::Intend, _) => self.stage = Stage::CreateTheSlot,
            (Stage::First, Entry::Checkpoint(saved)) => self.stream(saved, model, world),
            (Stage::Stream, Entry::Checkpoint(saved)) => {
                let progress = self.progress.as_mut().expect("who streams has a place");
                if !is_told {
                    progress.committed();
                }
                let inside = saved.partial.map(|partial| partial.change_lsn);
                let flush_lsn = match model.broken {
                    Some(Broken::CommitsTwiceAtOnce | Broken::DiscardsByChangeLsn) => {
                        saved.flush_lsn
                    }
                    Some(Broken::FlushesInsideATransaction) => {
                        inside.unwrap_or(progress.flush_lsn())
                    }
                    _ => progress.flush_lsn(),
                };
                world.flush(flush_lsn, self.holds);
            }
            (stage, entry) => unreachable!("{entry:?} was committed at {stage:?}"),
        }
    }
}
