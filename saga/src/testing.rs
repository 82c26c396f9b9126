//! A saga in a test: without a database or Kafka, in virtual time.
//!
//! ```
//! # use serde::{Deserialize, Serialize};
//! # use std::time::Duration;
//! # use tailrace_saga::{Command, Compensable, Saga};
//! # #[derive(Serialize, Deserialize)] struct Order { hold: Option<i64> }
//! # #[derive(Serialize, Deserialize)] struct Reserve {}
//! # #[derive(Serialize, Deserialize)] struct Reserved { hold: i64 }
//! # impl Command for Reserve {
//! #     const TYPE: &'static str = "reserve.v1";
//! #     const TOPIC: &'static str = "commands";
//! #     type Reply = Reserved;
//! #     type Refusal = ();
//! # }
//! # impl Compensable for Reserve {}
//! # #[derive(Serialize, Deserialize)] struct Pay {}
//! # impl Command for Pay {
//! #     const TYPE: &'static str = "pay.v1";
//! #     const TOPIC: &'static str = "commands";
//! #     type Reply = ();
//! #     type Refusal = String;
//! # }
//! # fn create_order() -> Result<Saga<Order>, tailrace_saga::Error> {
//! #     Saga::define("create-order", 1)
//! #         .step("reserve", |_: &Order| Reserve {})
//! #         .on_reply(|order, reply| order.hold = Some(reply.hold))
//! #         .compensate()
//! #         .pivot("pay", |_: &Order| Pay {})
//! #         .build()
//! # }
//! use tailrace_saga::Status;
//! use tailrace_saga::testing::Scenario;
//!
//! Scenario::given(&create_order()?, &Order { hold: None })
//!     .then_asks(&["do reserve"])
//!     .when_done("reserve", &Reserved { hold: 3 })
//!     .then_data(|order| assert_eq!(order.hold, Some(3)))
//!     .then_asks(&["do pay"])
//!     .when_refused("pay", &"no money")
//!     .then_asks(&["undo reserve"])
//!     .when_undone("reserve")
//!     .then_is(Status::Compensated);
//! # Ok::<(), tailrace_saga::Error>(())
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use crate::builder::{Saga, Signal};
use crate::correlation::{Answer, Correlation, Operation, SagaId};
use crate::definition::{Definition, StepKind};
use crate::instance::{Instance, Status};
use crate::machine::step;
use crate::transition::{
    Alert, CommandMessage, Entry, Input, LockKey, LockMove, Timer, Transition, Verb, Verdict,
};

/// How many inputs a script gives at most: a saga that takes more does not end.
const INPUTS_MAX: usize = 10_000;

/// A saga that is told one thing after another, and what comes of each.
///
/// Everything that begins with `when_` tells it something, everything that begins with `then_` looks at what has come
/// of that, and panics where it is not as it should be. Local steps do not run: they are answered for, as
/// participants are.
pub struct Scenario<D> {
    saga: Saga<D>,
    instance: Instance,
    now: SystemTime,
    timers: BTreeSet<Timer>,
    asked: Vec<String>,
    commands: Vec<CommandMessage>,
    wanted: BTreeSet<LockKey>,
    held: BTreeSet<LockKey>,
    verdict: Verdict,
    journal: Vec<Entry>,
    alerts: Vec<Alert>,
    last: Option<Input>,
    repeats: bool,
}

impl<D> fmt::Debug for Scenario<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scenario").field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl<D: Serialize + DeserializeOwned + 'static> Scenario<D> {
    /// A saga that has just begun. Its clock stands still.
    ///
    /// # Panics
    /// Where the data can not be written as JSON.
    #[must_use]
    pub fn given(saga: &Saga<D>, data: &D) -> Self {
        Self::given_at(saga, data, UNIX_EPOCH + Duration::from_secs(1_700_000_000))
    }

    fn given_at(saga: &Saga<D>, data: &D, now: SystemTime) -> Self {
        let id = SagaId::from_uuid(Uuid::from_u128(0x018B_CFE5_6800_7000_8000_0000_0000_0001));
        let instance = saga.instance(id, data, now).expect("the data can be written as JSON");
        let scenario = Self {
            saga: saga.clone(),
            instance,
            now,
            timers: BTreeSet::new(),
            asked: Vec::new(),
            commands: Vec::new(),
            wanted: BTreeSet::new(),
            held: BTreeSet::new(),
            verdict: Verdict::Applied,
            journal: Vec::new(),
            alerts: Vec::new(),
            last: None,
            repeats: false,
        };
        scenario.when(Input::Start)
    }

    /// From now on everything comes twice, and must do nothing the second time.
    #[must_use]
    pub fn repeating(mut self) -> Self {
        self.repeats = true;
        self
    }

    /// Something happens to the saga.
    ///
    /// # Panics
    /// Where the machine does not take it, or where it is repeated and does something twice.
    #[must_use]
    pub fn when(mut self, input: Input) -> Self {
        let turn = self.step(&input);
        self.take(turn);
        if self.repeats {
            let again = self.step(&input);
            assert_ne!(again.verdict, Verdict::Applied, "{input:?} does something again");
        }
        self.last = Some(input);
        self
    }

    fn step(&self, input: &Input) -> Transition {
        step(self.saga.definition(), &self.instance, input.clone(), self.now)
            .expect("the instance follows the definition")
    }

    fn take(&mut self, turn: Transition) {
        let correlations = turn
            .commands
            .iter()
            .map(|command| &command.instruction.correlation)
            .chain(turn.locals.iter().map(|local| &local.correlation));
        self.asked = correlations.map(asked).collect();
        turn.locks.into_iter().for_each(|moved| self.line(moved));
        self.commands = turn.commands;
        self.instance = turn.instance;
        self.verdict = turn.verdict;
        self.timers.extend(turn.timers);
        self.journal.extend(turn.journal);
        self.alerts.extend(turn.alerts);
    }

    fn line(&mut self, moved: LockMove) {
        match moved {
            LockMove::Take { lock, .. } => {
                self.asked.push(format!("lock {}", lock.name));
                if !self.held.contains(&lock) {
                    self.wanted.insert(lock);
                }
            }
            LockMove::Release(lock) => {
                self.wanted.remove(&lock);
                self.held.remove(&lock);
            }
        }
    }

    /// The saga is given the lock for which it stands in line. Until then it waits.
    ///
    /// # Panics
    /// Where it does not stand in line for this lock.
    #[must_use]
    pub fn when_held(mut self, lock: &str) -> Self {
        let wanted = self.wanted.iter().find(|wanted| *wanted.name == *lock).cloned();
        let wanted = wanted.unwrap_or_else(|| panic!("{lock} is not waited for"));
        self.wanted.remove(&wanted);
        self.held.insert(wanted.clone());
        self.when(Input::Held { step: wanted.name, key: wanted.key })
    }

    /// What happened last happens again.
    #[must_use]
    pub fn when_repeated(self) -> Self {
        let last = self.last.clone().expect("something has happened");
        self.when(last)
    }

    /// The step that is under way is done, in the direction in which it is.
    ///
    /// # Panics
    /// Where the step is not under way.
    #[must_use]
    pub fn when_done(self, step: &str, reply: &impl Serialize) -> Self {
        let payload = serde_json::to_value(reply).expect("the reply can be written as JSON");
        self.when_answered(step, Answer::Done, payload)
    }

    /// The step that is under way is refused.
    ///
    /// # Panics
    /// Where the step is not under way.
    #[must_use]
    pub fn when_refused(self, step: &str, refusal: &impl Serialize) -> Self {
        let payload = serde_json::to_value(refusal).expect("the refusal can be written as JSON");
        self.when_answered(step, Answer::Refused, payload)
    }

    /// The step that is being compensated is so.
    ///
    /// # Panics
    /// Where the step is not under way.
    #[must_use]
    pub fn when_undone(self, step: &str) -> Self {
        self.when_answered(step, Answer::Done, Value::Null)
    }

    fn when_answered(self, step: &str, answer: Answer, payload: Value) -> Self {
        let correlation = self.correlation(step);
        self.when(Input::Reply { correlation, answer, payload })
    }

    /// The saga, step, direction and epoch of a step that is under way: for an answer that is to come later.
    ///
    /// # Panics
    /// Where the step is not under way.
    #[must_use]
    pub fn correlation(&self, step: &str) -> Correlation {
        let state = self.instance.step(step).unwrap_or_else(|| panic!("there is no step {step}"));
        let operation = state.operation();
        let operation =
            operation.unwrap_or_else(|| panic!("{step} is not under way: {:?}", state.status()));
        Correlation {
            saga: self.instance.id(),
            definition: self.instance.definition().to_string().into(),
            step: step.into(),
            operation,
            epoch: state.epoch(),
        }
    }

    /// Time passes. Timers that are due meanwhile come in their order, each when it is due; what the saga asks for
    /// upon them is not answered.
    #[must_use]
    pub fn when_time_passes(mut self, time: Duration) -> Self {
        let until = self.now + time;
        let mut asked = Vec::new();
        let mut commands = Vec::new();
        while let Some(timer) = self.timers.first().filter(|timer| timer.due <= until).cloned() {
            self.timers.remove(&timer);
            self.now = self.now.max(timer.due);
            self = self.when(Input::Tick(timer.tick));
            asked.append(&mut self.asked);
            commands.append(&mut self.commands);
        }
        self.now = until;
        self.asked = asked;
        self.commands = commands;
        self
    }

    /// A signal comes.
    #[must_use]
    pub fn when_signal<S: Signal>(self, signal: &S) -> Self {
        let payload = serde_json::to_value(signal).expect("the signal can be written as JSON");
        self.when(Input::Signal { signal_type: S::TYPE.into(), payload })
    }

    /// Somebody wants it undone.
    #[must_use]
    pub fn when_cancelled(self) -> Self {
        self.when(Input::Cancel)
    }

    /// A person wants something.
    #[must_use]
    pub fn when_operator(self, by: &str, verb: Verb) -> Self {
        self.when(Input::Operator { by: by.into(), verb })
    }

    /// What was asked for upon the last input, in its order: `do STEP`, `undo STEP` or `lock NAME`.
    ///
    /// # Panics
    /// Where it is something else.
    pub fn then_asks(self, asked: &[&str]) -> Self {
        assert_eq!(self.asked, asked, "what is asked for");
        self
    }

    /// The messages that were sent upon the last input.
    pub fn then_commands(self, look: impl FnOnce(&[CommandMessage])) -> Self {
        look(&self.commands);
        self
    }

    /// The locks that the saga has now, as `NAME KEY`.
    ///
    /// # Panics
    /// Where they are others.
    pub fn then_holds(self, locks: &[&str]) -> Self {
        assert_eq!(said(&self.held), locks, "what it holds");
        self
    }

    /// The locks for which the saga stands in line, as `NAME KEY`.
    ///
    /// # Panics
    /// Where they are others.
    pub fn then_stands_in_line(self, locks: &[&str]) -> Self {
        assert_eq!(said(&self.wanted), locks, "for what it stands in line");
        self
    }

    /// Whether the last input did anything.
    ///
    /// # Panics
    /// Where it is something else.
    pub fn then_verdict(self, verdict: Verdict) -> Self {
        assert_eq!(self.verdict, verdict, "the verdict");
        self
    }

    /// The data as it is now.
    ///
    /// # Panics
    /// Where it can not be read, or where the look panics.
    pub fn then_data(self, look: impl FnOnce(&D)) -> Self {
        look(&self.saga.data(&self.instance).expect("the data can be read"));
        self
    }

    /// The steps about which a person has to decide, and has been told.
    ///
    /// # Panics
    /// Where they are others.
    pub fn then_stuck(self, steps: &[&str]) -> Self {
        let stuck: Vec<&str> = self.instance.stuck().map(|step| step.name()).collect();
        assert_eq!(stuck, steps, "what is stuck");
        for step in steps {
            let told = self.alerts.iter().any(|alert| &*alert.step == *step);
            assert!(told, "{step} is stuck without an alert");
        }
        self
    }

    /// How the saga stands.
    ///
    /// # Panics
    /// Where it stands otherwise.
    pub fn then_is(self, status: Status) -> Self {
        assert_eq!(self.instance.status(), status, "{:#?}", self.instance.steps());
        self
    }

    /// The saga as it is now.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// What somebody was woken for.
    pub fn alerts(&self) -> &[Alert] {
        &self.alerts
    }

    /// Everything that has happened to it.
    pub fn journal(&self) -> &[Entry] {
        &self.journal
    }
}

/// What a participant is asked for, in words.
fn asked(correlation: &Correlation) -> String {
    let verb = match correlation.operation {
        Operation::Action => "do",
        Operation::Compensation => "undo",
    };
    format!("{verb} {}", correlation.step)
}

fn said(locks: &BTreeSet<LockKey>) -> Vec<String> {
    locks.iter().map(|lock| format!("{} {}", lock.name, lock.key)).collect()
}

/// A fault at one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// Its action is refused.
    Refused,
    /// Its action is never answered; its lock is never given.
    Silent,
    /// Its compensation is never answered.
    NotUndone,
}

/// How participants answer, so that a saga runs to its end by itself.
#[derive(Debug, Clone, Default)]
pub struct Script {
    replies: BTreeMap<String, Value>,
    refusals: BTreeMap<String, Value>,
    faults: BTreeMap<String, BTreeSet<Fault>>,
    signals: Vec<Input>,
    repeats: bool,
}

/// How a scripted saga has ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The faults that it met.
    pub faults: Vec<(String, Fault)>,
    /// The saga.
    pub instance: Instance,
    /// What was asked for, in its order: `do STEP`, `undo STEP` or `lock NAME`.
    pub asked: Vec<String>,
}

impl Script {
    /// Everybody answers with nothing, `()`, and nobody else has a lock.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What a step answers when it is done.
    ///
    /// # Panics
    /// Where it can not be written as JSON.
    #[must_use]
    pub fn reply(mut self, step: &str, reply: &impl Serialize) -> Self {
        let reply = serde_json::to_value(reply).expect("the reply can be written as JSON");
        self.replies.insert(step.to_owned(), reply);
        self
    }

    /// What a step answers where it is [`Fault::Refused`].
    ///
    /// # Panics
    /// Where it can not be written as JSON.
    #[must_use]
    pub fn refusal(mut self, step: &str, refusal: &impl Serialize) -> Self {
        let refusal = serde_json::to_value(refusal).expect("the refusal can be written as JSON");
        self.refusals.insert(step.to_owned(), refusal);
        self
    }

    /// A signal that comes at the beginning.
    ///
    /// # Panics
    /// Where it can not be written as JSON.
    #[must_use]
    pub fn signal<S: Signal>(mut self, signal: &S) -> Self {
        let payload = serde_json::to_value(signal).expect("the signal can be written as JSON");
        self.signals.push(Input::Signal { signal_type: S::TYPE.into(), payload });
        self
    }

    /// A step meets a fault.
    #[must_use]
    pub fn inject(mut self, step: &str, fault: Fault) -> Self {
        self.faults.entry(step.to_owned()).or_default().insert(fault);
        self
    }

    /// Everything comes twice.
    #[must_use]
    pub fn repeating(mut self) -> Self {
        self.repeats = true;
        self
    }

    /// Runs a saga until it has ended or waits for a person.
    ///
    /// # Panics
    /// Where it does neither.
    pub fn run<D: Serialize + DeserializeOwned + 'static>(
        &self,
        saga: &Saga<D>,
        data: &D,
    ) -> Ended {
        let mut scenario = Scenario::given(saga, data);
        scenario.repeats = self.repeats;
        let mut left = std::mem::take(&mut scenario.asked);
        let mut all = left.clone();
        for signal in &self.signals {
            scenario = scenario.when(signal.clone());
            left.append(&mut scenario.asked);
        }
        for _ in 0..INPUTS_MAX {
            let next = if left.is_empty() { None } else { Some(left.remove(0)) };
            scenario = match next {
                Some(asked) => self.answer(scenario, &asked),
                None if is_at_rest(&scenario) => return self.ended(scenario, all),
                None => pass_to_next_timer(scenario),
            };
            all.extend(scenario.asked.iter().cloned());
            left.append(&mut scenario.asked);
        }
        panic!("the saga does not end: {:#?}", scenario.instance.steps());
    }

    /// Runs a saga once for each step and each fault that the step can meet, and once with every message twice.
    ///
    /// # Panics
    /// Where one of them neither ends nor waits for a person.
    pub fn run_with_each_fault<D: Serialize + DeserializeOwned + 'static>(
        &self,
        saga: &Saga<D>,
        data: &D,
    ) -> Vec<Ended> {
        let mut all = vec![self.clone().repeating().run(saga, data)];
        for (step, fault) in faults(saga.definition()) {
            let mut script = self.clone().inject(step, fault);
            // What can not be undone is only seen where something is to be undone.
            if fault == Fault::NotUndone
                && let Some(last) = refusable(saga.definition()).last()
            {
                script = script.inject(last, Fault::Refused);
            }
            all.push(script.run(saga, data));
        }
        all
    }

    fn answer<D: Serialize + DeserializeOwned + 'static>(
        &self,
        mut scenario: Scenario<D>,
        asked: &str,
    ) -> Scenario<D> {
        let (verb, step) = asked.split_once(' ').expect("asked for with a verb");
        let has = |fault| self.faults.get(step).is_some_and(|faults| faults.contains(&fault));
        let is_under_way =
            scenario.instance.step(step).is_some_and(|state| state.operation().is_some());
        scenario.asked.clear();
        let silent = !is_under_way
            || verb != "undo" && has(Fault::Silent)
            || verb == "undo" && has(Fault::NotUndone);
        if silent {
            return scenario;
        }
        let given = |payloads: &BTreeMap<String, Value>| payloads.get(step).cloned();
        match verb {
            "undo" => scenario.when_undone(step),
            "lock" => scenario.when_held(step),
            _ if has(Fault::Refused) => {
                let refusal = given(&self.refusals).unwrap_or_default();
                scenario.when_answered(step, Answer::Refused, refusal)
            }
            _ => {
                let reply = given(&self.replies).unwrap_or_default();
                scenario.when_answered(step, Answer::Done, reply)
            }
        }
    }

    fn ended<D>(&self, scenario: Scenario<D>, asked: Vec<String>) -> Ended {
        let faults = self
            .faults
            .iter()
            .flat_map(|(step, faults)| faults.iter().map(|fault| (step.clone(), *fault)));
        Ended { faults: faults.collect(), instance: scenario.instance, asked }
    }
}

/// The saga is over, or nobody but a person can go on with it.
fn is_at_rest<D>(scenario: &Scenario<D>) -> bool {
    let instance = &scenario.instance;
    instance.status().is_over() || instance.steps().iter().all(|step| step.due().is_none())
}

fn pass_to_next_timer<D: Serialize + DeserializeOwned + 'static>(
    scenario: Scenario<D>,
) -> Scenario<D> {
    let due = scenario.timers.first().map(|timer| timer.due);
    let due = due.expect("a saga that is under way has a timer");
    let time = due.duration_since(scenario.now).unwrap_or_default();
    scenario.when_time_passes(time)
}

/// The steps that somebody can refuse.
fn refusable(definition: &Definition) -> impl Iterator<Item = &str> {
    let can = |kind| kind != StepKind::Retriable;
    let steps = definition.steps().filter(move |step| can(step.kind()));
    steps
        .filter(|step| step.signal_type().is_none() && step.lock().is_none())
        .map(|step| step.name())
}

fn faults(definition: &Definition) -> Vec<(&str, Fault)> {
    let refused = refusable(definition).map(|step| (step, Fault::Refused));
    let silent = definition.steps().map(|step| (step.name(), Fault::Silent));
    let kept = definition.steps().filter(|step| step.kind() == StepKind::Compensable);
    refused.chain(silent).chain(kept.map(|step| (step.name(), Fault::NotUndone))).collect()
}
