//! Explores every order of events around several relays, and shows that none loses, doubles or
//! reorders a message; and that without any one of the protocol's rules some order does.
//!
//! The relays are the shipped ones as far as they decide: [`Progress`](crate::progress::Progress)
//! (what is discarded, sealed, flushed), [`Turns`](crate::sink::turns::Turns) (which producer is
//! filled, which commits), `resume` (where to go on, and whether), `Watch` (who may take the slot),
//! `Stored` with the checkpoint's own bytes, and the reaction to an error. The steps between two
//! decisions, which shipped code does in straight lines of `await`, are written again in
//! `session.rs`; a change of their order there is to be made here too.
//!
//! **What is modelled.** One slot with its place, its holder and a stream that goes on for a holder
//! that was deposed without knowing it. Kafka as its protocol promises: per transactional id the
//! newest epoch, records of open and committed transactions in the order of their arrival, a last
//! stable offset, initialisation that aborts or has completed what it finds, and requests that
//! arrive after their sender is gone. Relays that die, lose the slot, lose an answer or are timed
//! out by the brokers at any moment, and come back.
//!
//! **What is left out, and why nothing is hidden by it.**
//!
//! - Time. Linger, ages and pauses only choose among the orders that are explored anyway; limits of
//!   bytes and counts are small instead.
//! - A death and a session that is given up for an uncertain outcome are one event: a relay keeps
//!   nothing across either. The slot is free at once; that it may be held for a while longer only
//!   delays the others, which every order allows for.
//! - A lost answer is an answer that nobody takes before the session ends; a lost request is one
//!   that has not arrived when its epoch is fenced. Requests that are fenced vanish: no broker
//!   carries them out.
//! - Epochs are not counted. A session knows whether its own is the newest, all that a broker asks.
//! - Aborted records vanish at once, and a commit is seen as soon as it is certain. Markers that are
//!   late delay a reader, and what a reader does is explored at every later moment too. A relay
//!   waits for them, up to the high watermark; that it must is one of the rules.
//! - Relays are alike, so their order in a state does not count.
//! - With [`Arrivals::AtOnce`] a record arrives when it is handed over, which can be at any moment.
//!   An arrival that is late could be seen only if the same session did something else in between:
//!   filled another producer, or committed, and both wait for every acknowledgement. The world
//!   with [`Arrivals::Later`] does without this step.
//! - The log is written beforehand, and its server is never restored, failed over or meddled with:
//!   `resume::tests` and tests on real servers are about that. So in here every refusal is wrong.
//! - The at-least-once mode, a stop by request and dead letters are left to tests on real servers.
//!   That a batch may be cut anywhere around a refused record is modelled.
//!
//! That everything is published in the end is asked of every state in which nothing is left to do.
//! An endless chase would escape that question, so beside it stands that a relay that nothing has
//! befallen is never fenced.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use stateright::{Model, Property};

use crate::checkpoint::{CHECKPOINT_KEY, Checkpoint, INTENT_KEY, Intent, Source};
use crate::error::Reaction;
use crate::leadership::{Next, Sight, Watch};
use crate::lsn::Lsn;
use crate::position::Incarnation;
use crate::progress::Limits;
use crate::resume::{Server, Slot};
use crate::sink::Saved;
use crate::sink::turns::Turn;

use kafka::{Entry, Kafka, Request};
use rule::Broken;
use session::{Session, Step, World};
use wal::Wal;

mod kafka;
mod properties;
mod rule;
mod session;
mod tests;
mod wal;

const TURNS: [Turn; 3] = Turn::ALL;
/// Keys, each in a partition of its own.
const KEYS: [usize; 2] = [0, 1];

/// What is explored.
#[derive(Clone, Debug)]
struct Relays {
    relays: usize,
    /// Deaths, uncertain outcomes, lost slots and time-outs in one run.
    faults_max: u8,
    wal: Wal,
    limits: Limits,
    /// Whether the slot is there at the beginning, made by an intent.
    has_slot: bool,
    arrivals: Arrivals,
    /// Whether batches are also cut before they are due, as around a record that was refused.
    cuts: bool,
    broken: Option<Broken>,
}

/// When a record that was handed over arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrivals {
    Later,
    AtOnce,
}

/// The world at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// Up to where the slot was flushed, if it exists.
    slot: Option<Lsn>,
    kafka: Kafka,
    /// In an order that does not depend on who is who.
    relays: Vec<Relay>,
    faults_left: u8,
}

/// A relay's process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Relay {
    /// Between two sessions, or standing by.
    Idle,
    Active(Box<Session>),
    /// It has ended: nothing but a person can mend what it met.
    Refused,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Does(usize, Step),
    /// The oldest request under way of a relay's producer arrives.
    Arrives(usize, Turn),
    /// A request arrives whose sender is gone.
    ArrivesLate(Turn),
    /// An initialisation arrives whose sender is gone.
    InitialisesLate(Turn),
    /// The brokers abort what a relay that is gone left open.
    Expires(Turn),
    Befalls(Fault),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fault {
    /// A relay dies, or gives its session up for an uncertain outcome.
    Ends(usize),
    /// A relay's walsender is ended; the relay goes on with what it was sent.
    LosesTheSlot(usize),
    /// The brokers abort a transaction that is still being filled.
    TimesOut(Turn),
    /// With a rule switched off: a commit has no answer, and the relay makes do.
    MakesDo(usize),
}

/// Time stands still: what is due is due by number.
fn now() -> Instant {
    static NOW: LazyLock<Instant> = LazyLock::new(Instant::now);
    *NOW
}

fn server(flushed: Lsn) -> Server {
    let Source { system_identifier, timeline, database, .. } = source();
    Server { system_identifier, timeline, database, flushed }
}

fn slot(confirmed: Lsn) -> Slot {
    Slot {
        name: source().slot,
        plugin: "pgoutput".to_owned(),
        database: source().database,
        two_phase: false,
        confirmed_flush: Some(confirmed),
        wal_status: "reserved".to_owned(),
    }
}

fn source() -> Source {
    Source {
        system_identifier: "74".to_owned(),
        timeline: 1,
        database: "shop".to_owned(),
        slot: "tailrace".to_owned(),
        incarnation: Incarnation(7),
    }
}

/// What a sink answers with.
fn encoded(checkpoint: Option<Checkpoint>, intent: Option<Intent>) -> Saved {
    let checkpoint = checkpoint.map(|saved| (CHECKPOINT_KEY.to_owned(), saved.encode(0)));
    let intent = intent.map(|saved| (INTENT_KEY.to_owned(), saved.encode(0)));
    checkpoint.into_iter().chain(intent).collect()
}

impl State {
    fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.relays.iter().filter_map(|relay| match relay {
            Relay::Active(session) => Some(session.as_ref()),
            Relay::Idle | Relay::Refused => None,
        })
    }

    fn is_slot_free(&self) -> bool {
        self.slot.is_some() && !self.sessions().any(Session::holds)
    }

    /// Whether the newest epoch of an id is a living session's.
    fn is_owned(&self, turn: Turn) -> bool {
        self.sessions().any(|session| session.owns(turn))
    }

    /// What a standby does that looks at the slot, and again after a pause in which its holder was
    /// not heard of.
    fn standby(&self) -> Next {
        let holder = self.sessions().any(Session::holds).then_some(1);
        let sight = Sight { holder, replied: holder.map(|_| "then".to_owned()) };
        let mut watch = Watch::default();
        watch.look(sight.clone(), now());
        watch.look(sight, now() + Duration::from_secs(2))
    }

    /// An id has a new epoch, which fences every older one.
    fn has_new_epoch(&mut self, turn: Turn) {
        self.kafka.abort(turn);
        for relay in &mut self.relays {
            if let Relay::Active(session) = relay {
                session.is_fenced_on(turn);
            }
        }
    }

    fn ends(&mut self, at: usize) {
        if let Relay::Active(session) = std::mem::replace(&mut self.relays[at], Relay::Idle) {
            session.end(&mut self.kafka);
        }
    }

    fn normal(mut self) -> Self {
        for at in 0..self.relays.len() {
            if matches!(&self.relays[at], Relay::Active(session) if session.is_spent()) {
                self.ends(at);
            }
        }
        self.relays.sort_by_cached_key(|relay| {
            let mut hasher = DefaultHasher::new();
            relay.hash(&mut hasher);
            hasher.finish()
        });
        self
    }
}

impl Relays {
    fn is(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }

    /// What relays and brokers do unless something befalls them.
    fn orderly(&self, state: &State, actions: &mut Vec<Action>) {
        // That it can happen at other times too makes no difference to anybody.
        if !state.kafka.is_settled() && state.sessions().any(Session::reads) {
            let left = |turn: &Turn| state.kafka.has_open(*turn) && !state.is_owned(*turn);
            actions.extend(TURNS.into_iter().filter(left).map(Action::Expires));
        }
        let mut steps = Vec::new();
        for (at, relay) in state.relays.iter().enumerate() {
            match relay {
                Relay::Refused => {}
                Relay::Idle => {
                    let early = self.is(Broken::InitialisesBeforeItHoldsTheSlot);
                    if early || state.standby() == Next::Take {
                        actions.push(Action::Does(at, Step::Begin));
                    }
                }
                Relay::Active(session) => {
                    session.steps(self, state, &mut steps);
                    actions.extend(steps.drain(..).map(|step| Action::Does(at, step)));
                    let awaited = TURNS.into_iter().filter(|turn| session.awaits(*turn));
                    actions.extend(awaited.map(|turn| Action::Arrives(at, turn)));
                }
            }
        }
    }

    fn late(state: &State, actions: &mut Vec<Action>) {
        for turn in TURNS {
            if !state.kafka.orphans.of(turn).is_empty() {
                actions.push(Action::ArrivesLate(turn));
            }
            if *state.kafka.orphan_inits.of(turn) > 0 {
                actions.push(Action::InitialisesLate(turn));
            }
        }
    }

    fn faults(&self, state: &State, actions: &mut Vec<Action>) {
        let makes_do = self.is(Broken::TakesUncertainForCommitted)
            || self.is(Broken::KeepsProducersAfterUncertain);
        let mut befalls = |fault| actions.push(Action::Befalls(fault));
        for (at, relay) in state.relays.iter().enumerate() {
            let Relay::Active(session) = relay else { continue };
            befalls(Fault::Ends(at));
            if session.holds() {
                assert_eq!(state.standby(), Next::End(1), "it is not heard of");
                befalls(Fault::LosesTheSlot(at));
            }
            if makes_do && session.is_uncertain() {
                befalls(Fault::MakesDo(at));
            }
        }
        for turn in TURNS {
            if state.kafka.has_open(turn) && state.is_owned(turn) {
                befalls(Fault::TimesOut(turn));
            }
        }
    }

    fn does(&self, state: &mut State, at: usize, step: Step) {
        let State { slot, kafka, relays, .. } = state;
        let taken = match &mut relays[at] {
            Relay::Refused => unreachable!("it has ended"),
            idle @ Relay::Idle => {
                *idle = Relay::Active(Box::new(Session::begin(self, *slot)));
                return;
            }
            Relay::Active(session) => session.take_step(step, self, World { slot, kafka }),
        };
        match taken {
            Ok(true) if self.arrivals == Arrivals::AtOnce => self.settles(state, at),
            Ok(true) => {}
            Ok(false) => state.ends(at),
            Err(error) => {
                state.ends(at);
                if error.reaction() == Reaction::Stop {
                    state.relays[at] = Relay::Refused;
                }
            }
        }
    }

    /// Records arrive at once, and a batch whose records have is committed.
    fn settles(&self, state: &mut State, at: usize) {
        let Relay::Active(session) = &mut state.relays[at] else { return };
        for turn in TURNS {
            while let Some(request) = session.pop_record(turn) {
                self.carried_out(&mut state.kafka, turn, request);
            }
        }
        let mut steps = Vec::new();
        if let Relay::Active(session) = &state.relays[at] {
            session.steps(self, state, &mut steps);
        }
        if steps.contains(&Step::Commit) {
            self.does(state, at, Step::Commit);
        }
    }

    fn arrives(&self, state: &mut State, at: usize, turn: Turn) {
        let Relay::Active(session) = &mut state.relays[at] else { return };
        let request = session.pop(turn);
        match request {
            Request::InitProducerId => {
                state.has_new_epoch(turn);
                if let Relay::Active(session) = &mut state.relays[at] {
                    session.is_initialised(turn, self);
                }
                return;
            }
            Request::Commit => session.is_answered(turn),
            _ => {}
        }
        self.carried_out(&mut state.kafka, turn, request);
    }

    /// The brokers carry a request of the newest epoch out.
    fn carried_out(&self, kafka: &mut Kafka, turn: Turn, request: Request) {
        match request {
            Request::InitProducerId => unreachable!("its epoch is not there yet"),
            Request::Produce(number) => {
                kafka.append(turn, number, self.wal.messages[usize::from(number)].key);
            }
            Request::Save(entry) => kafka.save(turn, entry),
            Request::SavePlainly(entry) => kafka.save_plainly(entry),
            Request::Commit => kafka.commit(turn),
        }
        // One that is older matters only to a reader who does not see the newest.
        kafka.compact(if self.is(Broken::ReadsToTheLastStableOffset) { 2 } else { 1 });
    }

    fn befalls(&self, state: &mut State, fault: Fault) {
        state.faults_left -= 1;
        match fault {
            Fault::Ends(at) => state.ends(at),
            Fault::TimesOut(turn) => state.has_new_epoch(turn),
            Fault::LosesTheSlot(at) | Fault::MakesDo(at) => {
                let Relay::Active(session) = &mut state.relays[at] else { return };
                match fault {
                    Fault::MakesDo(_) => session.make_do(self),
                    _ => session.depose(),
                }
            }
        }
    }

    fn holds(&self, state: &State, number: usize) -> bool {
        let key = self.wal.messages[number].key;
        state.kafka.holds(u8::try_from(number).expect("a short log"), key)
    }

    /// Whether every message is there, and the slot at the end of the log.
    fn is_complete(&self, state: &State) -> bool {
        state.slot == Some(self.wal.end)
            && (0..self.wal.messages.len()).all(|number| self.holds(state, number))
    }
}

impl Model for Relays {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut kafka = Kafka::default();
        if self.has_slot {
            kafka.save_plainly(Entry::Intent);
        }
        vec![State {
            slot: self.has_slot.then_some(self.wal.start),
            kafka,
            relays: vec![Relay::Idle; self.relays],
            faults_left: self.faults_max,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.orderly(state, actions);
        Self::late(state, actions);
        if state.faults_left > 0 {
            self.faults(state, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Does(at, step) => self.does(&mut state, at, step),
            Action::Arrives(at, turn) => self.arrives(&mut state, at, turn),
            Action::ArrivesLate(turn) => {
                let request = state.kafka.orphans.of_mut(turn).remove(0);
                self.carried_out(&mut state.kafka, turn, request);
            }
            Action::InitialisesLate(turn) => {
                *state.kafka.orphan_inits.of_mut(turn) -= 1;
                state.has_new_epoch(turn);
            }
            Action::Expires(turn) => state.has_new_epoch(turn),
            Action::Befalls(fault) => self.befalls(&mut state, fault),
        }
        Some(state.normal())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}
