//! The real machine, remembered: the same saga that meets the same again does the same.

use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::correlation::{Answer, Correlation, Operation, SagaId};
use crate::definition::{Definition, OnRefused, StepKind};
use crate::instance::{Instance, LockState, Phase, StepStatus};
use crate::machine::step_by;
use crate::rules::{Code, Rules};
use crate::transition::{Input, LocalCall, Tick, Transition, Verb, Verdict};

use super::hash::Map;
use super::line;
use super::message::{Message, Messages, Set, TooMany};
use super::{Broken, Stop};

/// What a saga may meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Stimulus {
    Start,
    Reply(u8),
    Tick(usize),
    Deadline,
    Cancel,
    Signal(usize),
    Retry,
    Held(usize),
    Expire(usize),
}

/// One way in which it can go on.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) saga: u32,
    pub(super) sent: Set,
    /// What local steps did in the same transaction.
    pub(super) effects: Vec<(usize, i8)>,
    /// What it does in the lines before its locks.
    pub(super) lines: Vec<(usize, line::Step)>,
}

pub(super) struct Orchestrator<'d> {
    pub(super) definition: &'d Definition,
    rules: Rules,
    /// Whether each attempt is another message to its participant.
    pub(super) tells_attempts: bool,
    instances: Vec<Instance>,
    numbers: Map<Key, u32>,
    known: Map<(u32, Stimulus), Rc<[Outcome]>>,
    pub(super) messages: Messages,
}

/// What of an instance decides what it does: everything but the data and the times.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    phase: Phase,
    has_begun: bool,
    signals: usize,
    steps: Vec<(StepStatus, u32, u32, bool, bool)>,
    locks: Vec<Option<LockState>>,
}

impl Key {
    fn of(instance: &Instance) -> Self {
        let steps = instance.steps.iter().map(|step| {
            let has_timer = step.due.is_some();
            (step.status, step.epoch.get(), step.attempts, has_timer, step.request.is_some())
        });
        Self {
            phase: instance.phase,
            has_begun: instance.revision > 0,
            signals: instance.signals.len(),
            steps: steps.collect(),
            locks: instance.steps.iter().map(|step| step.lock.clone()).collect(),
        }
    }
}

/// Time stands still: a tick may come at any moment.
const NOW: SystemTime = UNIX_EPOCH;

impl<'d> Orchestrator<'d> {
    pub(super) fn new(definition: &'d Definition, rules: Rules, tells_attempts: bool) -> Self {
        let saga = SagaId::from_uuid(uuid::Uuid::nil());
        let mut this = Self {
            definition,
            rules,
            tells_attempts,
            instances: Vec::new(),
            numbers: Map::default(),
            known: Map::default(),
            messages: Messages::default(),
        };
        this.intern(Instance::new(definition, saga, Value::Null, NOW));
        this
    }

    /// The saga before it begins.
    pub(super) const FIRST: u32 = 0;

    pub(super) fn instance(&self, saga: u32) -> &Instance {
        let at = usize::try_from(saga).unwrap_or(usize::MAX);
        self.instances.get(at).expect("sagas have the numbers of instances")
    }

    pub(super) fn intern(&mut self, mut instance: Instance) -> u32 {
        instance.revision = instance.revision.min(1);
        for step in &mut instance.steps {
            step.since = step.since.map(|_| NOW);
            step.due = step.due.map(|_| NOW);
            if let Some(lock) = &mut step.lock {
                lock.expires_at = lock.expires_at.map(|_| NOW);
            }
            // Of what is over nobody asks how many attempts it took.
            if step.operation().is_none() {
                step.attempts = 0;
            }
        }
        if let Some(deadline) = &mut instance.deadline {
            *deadline = NOW;
        }
        let key = Key::of(&instance);
        if let Some(number) = self.numbers.get(&key) {
            return *number;
        }
        let number = u32::try_from(self.instances.len()).expect("fewer states than memory has");
        self.numbers.insert(key, number);
        self.instances.push(instance);
        number
    }

    /// Every way in which the saga can go on.
    pub(super) fn react(&mut self, saga: u32, stimulus: Stimulus) -> Result<Rc<[Outcome]>, Stop> {
        if let Some(known) = self.known.get(&(saga, stimulus)) {
            return Ok(Rc::clone(known));
        }
        let mut outcomes = Vec::new();
        for then in self.decisions(stimulus) {
            let rules = Rules { code: Code::Assume(then), ..self.rules };
            let before = self.instance(saga).clone();
            let input = self.input(&before, stimulus);
            let turn = self.step(rules, &before, input.clone())?;
            self.expect_once(rules, &before, &input, &turn)?;
            self.run_locals(
                rules,
                turn,
                &mut outcomes,
                Outcome { saga, sent: Set::default(), effects: Vec::new(), lines: Vec::new() },
            )?;
        }
        let outcomes: Rc<[Outcome]> = outcomes.into();
        self.known.insert((saga, stimulus), Rc::clone(&outcomes));
        Ok(outcomes)
    }

    /// What the user's code may decide about a refusal.
    fn decisions(&self, stimulus: Stimulus) -> Vec<OnRefused> {
        let Stimulus::Reply(number) = stimulus else { return vec![OnRefused::Abort] };
        let reply = self.messages.get(number);
        let decides = self.definition.0.steps.get(reply.step).is_some_and(|step| {
            step.on_refused.is_some()
                && matches!(step.kind, StepKind::Compensable | StepKind::NoEffect)
        });
        match reply.answer {
            Some(Answer::Refused) if decides => {
                vec![OnRefused::Abort, OnRefused::Retry, OnRefused::GoOn]
            }
            _ => vec![OnRefused::Abort],
        }
    }

    fn input(&self, instance: &Instance, stimulus: Stimulus) -> Input {
        match stimulus {
            Stimulus::Start => Input::Start,
            Stimulus::Reply(number) => {
                let reply = self.messages.get(number);
                let answer = reply.answer.expect("a reply has an answer");
                let correlation = self.correlation(instance, &reply);
                Input::Reply { correlation, answer, payload: Value::Null }
            }
            Stimulus::Tick(at) => {
                let step = instance.steps.get(at).expect("ticks are of steps");
                let (epoch, attempt) = (step.epoch, step.attempts);
                Input::Tick(Tick::Step { step: step.name.clone(), epoch, attempt })
            }
            Stimulus::Deadline => Input::Tick(Tick::Deadline),
            Stimulus::Held(at) => Input::Held { step: self.name_of(at), key: String::new() },
            Stimulus::Expire(at) => Input::Tick(Tick::Lock { step: self.name_of(at) }),
            Stimulus::Cancel => Input::Cancel,
            Stimulus::Signal(at) => {
                let signal_type = self.definition.0.steps.get(at).and_then(|s| s.signal_type());
                let signal_type = signal_type.expect("signals are of steps that wait").into();
                Input::Signal { signal_type, payload: Value::Null }
            }
            Stimulus::Retry => Input::Operator { by: "".into(), verb: Verb::Retry { step: None } },
        }
    }

    fn name_of(&self, at: usize) -> Box<str> {
        self.definition.0.steps.get(at).expect("locks are of steps").name.clone()
    }

    fn correlation(&self, instance: &Instance, message: &Message) -> Correlation {
        let step = instance.steps.get(message.step).expect("messages are of steps");
        Correlation {
            saga: instance.id,
            definition: "".into(),
            step: step.name.clone(),
            operation: message.operation,
            epoch: message.epoch,
        }
    }

    fn step(&self, rules: Rules, before: &Instance, input: Input) -> Result<Transition, Stop> {
        step_by(rules, self.definition, before, input, NOW)
            .map_err(|error| Stop::Broken(Broken::Refused(error.to_string())))
    }

    /// A reply or a tick that comes twice does nothing the second time, and one of an older epoch never does.
    fn expect_once(
        &self,
        rules: Rules,
        before: &Instance,
        input: &Input,
        turn: &Transition,
    ) -> Result<(), Stop> {
        if rules.mixes_epochs() {
            return Ok(());
        }
        let is_stale = match input {
            Input::Reply { correlation, .. } => {
                before.step(&correlation.step).is_some_and(|step| correlation.epoch < step.epoch)
            }
            _ => false,
        };
        if is_stale && turn.verdict == Verdict::Applied {
            return Err(Stop::Broken(Broken::OldEpoch));
        }
        for (before, after) in before.steps.iter().zip(&turn.instance.steps) {
            let was_over = before.operation().is_none() && before.status != StepStatus::Pending;
            let begins_again = was_over && after.operation().is_some();
            if after.epoch < before.epoch || begins_again && after.epoch == before.epoch {
                return Err(Stop::Broken(Broken::EpochKept(after.name.to_string())));
            }
        }
        let comes_again =
            matches!(input, Input::Reply { .. } | Input::Tick(_) | Input::Held { .. });
        if turn.verdict == Verdict::Applied && comes_again {
            let mut after = turn.instance.clone();
            for step in &mut after.steps {
                step.due = step.due.map(|_| NOW);
                if let Some(lock) = &mut step.lock {
                    lock.expires_at = lock.expires_at.map(|_| NOW);
                }
            }
            let again = self.step(rules, &after, input.clone())?;
            if again.verdict == Verdict::Applied {
                return Err(Stop::Broken(Broken::Twice));
            }
        }
        Ok(())
    }

    /// Local steps run in the same transaction: each may do its work, refuse it, or fail and leave it to its timer.
    fn run_locals(
        &mut self,
        rules: Rules,
        mut turn: Transition,
        outcomes: &mut Vec<Outcome>,
        mut so_far: Outcome,
    ) -> Result<(), Stop> {
        for command in &turn.commands {
            let of = &command.instruction.correlation;
            let number = self.sent(&turn.instance, of).map_err(|TooMany| Stop::TooLarge)?;
            so_far.sent = so_far.sent.with(number);
        }
        for moved in turn.locks.drain(..) {
            let (step, name) = line::Step::of(&moved);
            so_far.lines.push((self.place_of(&turn.instance, name), step));
        }
        let Some(LocalCall { correlation, .. }) = turn.locals.pop() else {
            so_far.saga = self.intern(turn.instance);
            outcomes.push(so_far);
            return Ok(());
        };
        turn.commands.clear();
        let at = self.place(&turn.instance, &correlation);
        let is_action = correlation.operation == Operation::Action;
        let kind = self.definition.0.steps.get(at).map(|step| step.kind);
        let refuses = is_action && kind != Some(StepKind::Retriable);
        let answers = [(Answer::Done, if is_action { 1 } else { -1 }), (Answer::Refused, 0)];
        for (answer, effect) in answers.into_iter().take(if refuses { 2 } else { 1 }) {
            let payload = Value::Null;
            let input = Input::Reply { correlation: correlation.clone(), answer, payload };
            let mut next = self.step(rules, &turn.instance, input)?;
            next.locals.append(&mut turn.locals.clone());
            let mut so_far = so_far.clone();
            if effect != 0 {
                so_far.effects.push((at, effect));
            }
            self.run_locals(rules, next, outcomes, so_far)?;
        }
        self.run_locals(rules, turn, outcomes, so_far)
    }

    fn sent(&mut self, instance: &Instance, of: &Correlation) -> Result<u8, TooMany> {
        let step = self.place(instance, of);
        let attempt = match self.tells_attempts {
            true => instance.steps.get(step).map_or(0, |state| state.attempts),
            false => 0,
        };
        let (operation, epoch) = (of.operation, of.epoch);
        self.messages.number(Message { step, operation, epoch, answer: None, attempt })
    }

    fn place(&self, instance: &Instance, of: &Correlation) -> usize {
        self.place_of(instance, &of.step)
    }

    fn place_of(&self, instance: &Instance, step: &str) -> usize {
        let place = instance.steps.iter().position(|state| *state.name == *step);
        place.expect("a saga asks for its own steps")
    }
}
