//! How a saga goes from one state to the next: a pure function, without a clock, a database or Kafka.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::correlation::{Answer, Correlation, Instruction, Operation};
use crate::definition::{Definition, OnRefused, OnTimeout, Step, StepKind, Work};
use crate::error::Error;
use crate::instance::{
    Cause, FORMAT, Instance, Phase, SIGNALS_MAX, StepState, StepStatus, StoredSignal, Trouble,
    micros,
};
use crate::rules::Rules;
use crate::transition::{
    Alert, CommandMessage, Entry, Happening, Input, LocalCall, ReplyMessage, Tick, Timer,
    Transition, Verb, Verdict,
};
use crate::unreadable::Unreadable;

mod attempts;
mod locks;

/// What becomes of a saga when something happens to it.
///
/// Everything in the answer is to be written in one transaction, or nothing of it. The same input given again changes
/// nothing. Who calls it has the instance to himself meanwhile.
///
/// # Errors
/// [`Kind::Definition`](crate::Kind::Definition) where the instance follows another definition, or was written by a
/// newer release: it has to wait for somebody who knows it.
pub fn step(
    definition: &Definition,
    instance: &Instance,
    input: Input,
    now: SystemTime,
) -> Result<Transition, Error> {
    step_by(Rules::SHIPPED, definition, instance, input, now)
}

pub(crate) fn step_by(
    rules: Rules,
    definition: &Definition,
    instance: &Instance,
    input: Input,
    now: SystemTime,
) -> Result<Transition, Error> {
    let mut turn = Turn::begin(rules, definition, instance, now)?;
    turn.take(input);
    Ok(turn.end(instance))
}

/// A saga that was changed from outside goes on from there. Its timers are wished for anew.
pub(crate) fn go_on(
    definition: &Definition,
    instance: &Instance,
    what: Happening,
    now: SystemTime,
) -> Result<Transition, Error> {
    let mut turn = Turn::begin(Rules::SHIPPED, definition, instance, now)?;
    turn.note(None, what);
    for at in 0..instance.steps.len() {
        turn.wish_again(at);
        turn.wish_for_expiry(at);
    }
    if let Some(due) = instance.deadline {
        turn.out.timers.push(Timer { due, tick: Tick::Deadline });
    }
    turn.advance();
    Ok(turn.end(instance))
}

/// One input on its way through a saga.
struct Turn<'d> {
    rules: Rules,
    definition: &'d Definition,
    now: SystemTime,
    out: Transition,
}

/// What happens to one step.
enum Event {
    /// Its turn has come.
    Begin,
    /// Its participant has answered.
    Answer(Operation, Answer, Value),
    /// Its attempt is over, and has failed.
    Failed(Operation, String),
    /// Its timer is due.
    Due,
    /// It was given the lock on this key.
    Held(String),
    /// It is to have no effect.
    Undo,
    /// A person wants it asked for again.
    Retry,
    /// A person passes it over.
    Skip,
}

impl<'d> Turn<'d> {
    fn begin(
        rules: Rules,
        definition: &'d Definition,
        instance: &Instance,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let follows = |(of, step): (&StepState, &Step)| *of.name == *step.name;
        let is_known = instance.format <= FORMAT
            && instance.definition == *definition.identity()
            && instance.data_version <= definition.data_version()
            && instance.steps.len() == definition.steps().len()
            && instance.steps.iter().zip(definition.steps()).all(follows);
        if !is_known {
            return Err(Error::definition(format!(
                "saga {} follows {} ({}) and data version {}, not {} ({})",
                instance.id,
                instance.definition,
                instance.definition.hash,
                instance.data_version,
                definition.identity(),
                definition.identity().hash,
            )));
        }
        let mut instance = instance.clone();
        instance.format = FORMAT;
        for upcast in definition.upcasters_from(instance.data_version) {
            instance.data = upcast(std::mem::take(&mut instance.data));
        }
        instance.data_version = definition.data_version();
        let out = Transition {
            instance,
            verdict: Verdict::Applied,
            commands: Vec::new(),
            locals: Vec::new(),
            replies: Vec::new(),
            locks: Vec::new(),
            timers: Vec::new(),
            journal: Vec::new(),
            alerts: Vec::new(),
        };
        Ok(Self { rules, definition, now: micros::floor(now), out })
    }

    fn end(mut self, before: &Instance) -> Transition {
        if self.out.verdict == Verdict::Applied {
            self.out.instance.revision += 1;
        } else {
            // An input that does nothing does not even bring the data up to date.
            self.out.instance = before.clone();
        }
        self.out
    }

    /// Every input in every phase.
    fn take(&mut self, input: Input) {
        let phase = self.out.instance.phase;
        self.out.verdict = match (phase, input) {
            (Phase::Running, Input::Start) if self.out.instance.revision == 0 => self.start(),
            (_, Input::Start) => Verdict::Duplicate,
            (_, Input::Reply { correlation, answer, payload }) => {
                self.reply(&correlation, answer, payload)
            }
            (
                Phase::Running | Phase::Compensating,
                Input::Failed { correlation, attempt, error },
            ) => self.failed(&correlation, attempt, error),
            (Phase::Running | Phase::Compensating, Input::Tick(tick)) => self.tick(&tick),
            (_, Input::Failed { .. } | Input::Tick(_)) => Verdict::Stale,
            (_, Input::Signal { signal_type, payload }) => self.signal(&signal_type, payload),
            (_, Input::Held { step, key }) => self.held(&step, key),
            (_, Input::Cancel) => self.undo_all(Cause::Cancelled),
            (_, Input::Part(instruction)) => self.part(instruction),
            (_, Input::Operator { by, verb }) => {
                let verdict = self.operate(&verb);
                self.note(None, Happening::Operator { by, verb, verdict });
                verdict
            }
        };
        if self.out.verdict == Verdict::Applied {
            self.advance();
        }
    }

    /// Every event in every state of a step. What is not here can not happen to it, and changes nothing.
    fn fire(&mut self, at: usize, event: Event) -> Verdict {
        use StepStatus as S;
        match (self.state(at).status, event) {
            (S::Pending, Event::Begin) => self.act(at),

            (S::Acting | S::StuckActing, Event::Answer(Operation::Action, answer, payload)) => {
                match (answer, self.spec(at).kind) {
                    (Answer::Done, _) => self.done(at, &payload),
                    (Answer::Refused, StepKind::Retriable) => self.stick(at, Trouble::Refused),
                    (Answer::Refused, _) => self.refused(at, &payload),
                    (Answer::Blocked, _) => self.stick(at, Trouble::Blocked),
                }
            }
            (
                S::Compensating | S::StuckCompensating,
                Event::Answer(Operation::Compensation, answer, _),
            ) => match answer {
                Answer::Done | Answer::Blocked => self.settle(at, S::Compensated),
                Answer::Refused => self.stick(at, Trouble::Refused),
            },
            (_, Event::Answer(..)) => Verdict::Duplicate,

            (S::Acting, Event::Failed(Operation::Action, error))
            | (S::Compensating, Event::Failed(Operation::Compensation, error)) => {
                self.attempt_failed(at, error)
            }
            (_, Event::Failed(..)) => Verdict::Stale,

            (S::Acting, Event::Due) => self.late(at),
            (S::Delayed, Event::Due) => self.ask(at, S::Acting, Operation::Action),
            (S::Compensating, Event::Due) => self.compensation_late(at),

            (S::Acting | S::StuckActing, Event::Held(key)) => self.hold(at, key),
            (_, Event::Held(key)) => self.unwanted(at, key),

            (S::Delayed, Event::Undo) => self.settle(at, S::Refused),
            (S::Acting | S::Done | S::Skipped | S::StuckActing, Event::Undo) => self.undo(at),

            (S::Acting | S::Delayed | S::StuckActing, Event::Retry) => self.act_again(at),
            (S::Compensating | S::StuckCompensating, Event::Retry) => self.undo(at),

            (S::StuckActing, Event::Skip) => self.pass_over(at, S::Skipped),
            (S::StuckCompensating, Event::Skip) => self.pass_over(at, S::Waived),

            (_, Event::Begin | Event::Due | Event::Undo | Event::Retry | Event::Skip) => {
                Verdict::Unfit
            }
        }
    }

    fn start(&mut self) -> Verdict {
        self.note(None, Happening::Started);
        if let Some(due) = self.out.instance.deadline {
            self.out.timers.push(Timer { due, tick: Tick::Deadline });
        }
        Verdict::Applied
    }

    fn reply(&mut self, of: &Correlation, answer: Answer, payload: Value) -> Verdict {
        // Nobody answers for a lock: it is held or it is not.
        let is_asked = |at: &usize| self.spec(*at).lock().is_none();
        let Some(at) =
            self.find(&of.step).filter(is_asked).filter(|_| of.saga == self.out.instance.id)
        else {
            return Verdict::Unfit;
        };
        let epoch = self.state(at).epoch;
        let verdict = if of.epoch < epoch && !self.rules.mixes_epochs() {
            Verdict::Stale
        } else if of.epoch > epoch {
            Verdict::Unfit
        } else if self.out.instance.phase.is_over() {
            Verdict::Duplicate
        } else {
            self.fire(at, Event::Answer(of.operation, answer, payload))
        };
        let (operation, epoch) = (of.operation, of.epoch);
        self.note_first(at, Happening::Answered { operation, epoch, answer, verdict });
        verdict
    }

    fn tick(&mut self, tick: &Tick) -> Verdict {
        match tick {
            Tick::Deadline => self.deadline(),
            Tick::Lock { step } => self.lock_due(step, tick),
            Tick::Step { step, epoch, attempt } => {
                let Some(at) = self.find(step) else { return Verdict::Unfit };
                let state = self.state(at);
                if state.epoch != *epoch || state.attempts != *attempt {
                    return Verdict::Stale;
                }
                match state.due {
                    None => Verdict::Stale,
                    Some(due) if self.now < due => self.early(due, tick),
                    Some(_) => self.fire(at, Event::Due),
                }
            }
        }
    }

    fn deadline(&mut self) -> Verdict {
        match self.out.instance.deadline {
            Some(due) if self.now < due => self.early(due, &Tick::Deadline),
            Some(_) if self.out.instance.phase == Phase::Running && self.can_be_undone() => {
                self.undo_all(Cause::Deadline)
            }
            _ => Verdict::Stale,
        }
    }

    /// The clock of whoever took the timer is ahead of another one's.
    fn early(&mut self, due: SystemTime, tick: &Tick) -> Verdict {
        self.out.timers.push(Timer { due, tick: tick.clone() });
        Verdict::Early
    }

    fn signal(&mut self, signal_type: &str, payload: Value) -> Verdict {
        let waits =
            |(at, step): (usize, &Step)| (step.signal_type() == Some(signal_type)).then_some(at);
        let takers: Vec<usize> = self.definition.steps().enumerate().filter_map(waits).collect();
        let has = |turn: &Self, status: &[StepStatus]| {
            takers.iter().copied().find(|at| status.contains(&turn.state(*at).status))
        };
        let acting = has(self, &[StepStatus::Acting, StepStatus::StuckActing]);
        let signal: Box<str> = signal_type.into();
        let verdict = match acting {
            _ if takers.is_empty() => Verdict::Unfit,
            _ if self.out.instance.phase != Phase::Running => Verdict::TooLate,
            Some(at) => {
                self.note(Some(at), Happening::SignalTaken { signal });
                return self.fire(at, Event::Answer(Operation::Action, Answer::Done, payload));
            }
            None if has(self, &[StepStatus::Pending]).is_none() => Verdict::TooLate,
            None if self.out.instance.signals.len() >= SIGNALS_MAX => Verdict::Full,
            None => {
                let kept = StoredSignal { signal_type: signal.clone(), payload };
                self.out.instance.signals.push(kept);
                self.note(None, Happening::SignalKept { signal });
                return Verdict::Applied;
            }
        };
        self.note(None, Happening::SignalRefused { signal, verdict });
        verdict
    }

    /// What the saga that this one is a step of wants. It wants it again where its answer may be lost.
    fn part(&mut self, instruction: Instruction) -> Verdict {
        let Some(parent) = &mut self.out.instance.parent else { return Verdict::Unfit };
        let (known, asked) = (&parent.correlation, &instruction.correlation);
        if known.saga != asked.saga || known.step != asked.step {
            return Verdict::Unfit;
        }
        if asked.epoch < known.epoch {
            return Verdict::Stale;
        }
        let (operation, epoch) = (asked.operation, asked.epoch);
        parent.correlation = instruction.correlation;
        parent.reply_to = instruction.reply_to;
        self.note(None, Happening::PartAsked { operation, epoch });
        match (operation, self.out.instance.phase) {
            (Operation::Action, Phase::Running | Phase::Compensating) => {}
            (Operation::Compensation, Phase::Running | Phase::Completed) => {
                return self.begin_undoing(Cause::Parent);
            }
            (Operation::Compensation, Phase::Compensating) => {}
            (_, Phase::Completed | Phase::Compensated | Phase::Aborted) => self.answer_parent(),
        }
        Verdict::Applied
    }

    fn operate(&mut self, verb: &Verb) -> Verdict {
        match verb {
            _ if self.out.instance.phase.is_over() => Verdict::TooLate,
            Verb::Retry { step: Some(step) } => self.fire_named(step, Event::Retry),
            Verb::Skip { step } => self.fire_named(step, Event::Skip),
            Verb::Retry { step: None } => {
                let stuck: Vec<usize> = (0..self.out.instance.steps.len())
                    .filter(|at| self.state(*at).status.is_stuck())
                    .collect();
                let verdicts: Vec<Verdict> =
                    stuck.into_iter().map(|at| self.fire(at, Event::Retry)).collect();
                verdicts
                    .into_iter()
                    .max_by_key(|v| *v == Verdict::Applied)
                    .unwrap_or(Verdict::Unfit)
            }
            Verb::Unlock { step } => self.unlock(step),
            Verb::Compensate => self.undo_all(Cause::Cancelled),
            Verb::Abort => {
                self.finish(Phase::Aborted, Happening::Aborted);
                Verdict::Applied
            }
        }
    }

    fn fire_named(&mut self, step: &str, event: Event) -> Verdict {
        self.find(step).map_or(Verdict::Unfit, |at| self.fire(at, event))
    }

    /// Somebody wants the saga undone.
    fn undo_all(&mut self, cause: Cause) -> Verdict {
        match self.out.instance.phase {
            Phase::Running if self.can_be_undone() => self.begin_undoing(cause),
            Phase::Compensating | Phase::Compensated => Verdict::Duplicate,
            Phase::Running | Phase::Completed | Phase::Aborted => {
                self.note(None, Happening::TooLate { cause });
                Verdict::TooLate
            }
        }
    }

    /// The pivot may be done as soon as it was asked for.
    fn can_be_undone(&self) -> bool {
        let states = self.out.instance.steps.iter().zip(self.definition.steps());
        !states.into_iter().any(|(state, step)| {
            step.kind == StepKind::Pivot && state.status != StepStatus::Pending
        })
    }

    fn begin_undoing(&mut self, cause: Cause) -> Verdict {
        self.out.instance.phase = Phase::Compensating;
        self.note(None, Happening::Compensating { cause: cause.clone() });
        self.out.instance.cause = Some(cause);
        Verdict::Applied
    }

    /// What is next, as far as it does not depend on an answer.
    fn advance(&mut self) {
        let groups = self.definition.groups();
        if self.out.instance.phase == Phase::Running {
            self.forward(&groups);
        }
        // A step that is given up on its way turns the saga round.
        if self.out.instance.phase == Phase::Compensating {
            self.backward(&groups);
        }
    }

    fn forward(&mut self, groups: &[Range<usize>]) {
        for group in groups {
            for at in group.clone() {
                if self.state(at).status == StepStatus::Pending {
                    self.fire(at, Event::Begin);
                }
            }
            let is_over =
                |at| matches!(self.state(at).status, StepStatus::Done | StepStatus::Skipped);
            if !group.clone().all(is_over) {
                return;
            }
        }
        self.finish(Phase::Completed, Happening::Completed);
    }

    /// Groups are undone from the last to the first. One that is stuck holds up none before it.
    fn backward(&mut self, groups: &[Range<usize>]) {
        for group in groups.iter().rev() {
            for at in group.clone() {
                self.fire(at, Event::Undo);
            }
            if group.clone().any(|at| self.state(at).status == StepStatus::Compensating) {
                return;
            }
        }
        if self.out.instance.stuck().next().is_none() {
            self.finish(Phase::Compensated, Happening::Compensated);
        }
    }

    fn finish(&mut self, phase: Phase, what: Happening) {
        self.out.instance.phase = phase;
        self.out.instance.signals.clear();
        self.note(None, what);
        self.release_all();
        self.answer_parent();
    }

    fn answer_parent(&mut self) {
        let Some(parent) = &self.out.instance.parent else { return };
        let operation = parent.correlation.operation;
        let (answer, payload) = match (self.out.instance.phase, operation) {
            (Phase::Completed, _) => (Answer::Done, self.out.instance.data.clone()),
            (Phase::Compensated, Operation::Action) => (Answer::Refused, Value::Null),
            (Phase::Compensated, Operation::Compensation) => (Answer::Done, Value::Null),
            // A person has ended it as it was, and has to decide what that means for the whole.
            _ => return,
        };
        self.out.replies.push(ReplyMessage {
            topic: parent.reply_to.clone(),
            correlation: parent.correlation.clone(),
            answer,
            payload,
        });
    }

    /// Begins a step.
    fn act(&mut self, at: usize) -> Verdict {
        let spec = self.spec(at);
        // What was asked for once stays as it was: its participant may have done it.
        if self.state(at).request.is_none() {
            let (saga, data) = (self.out.instance.id, &self.out.instance.data);
            let request = match self.rules.assumes() {
                None => spec.request(saga, data),
                Some(_) => Ok(spec.empty_request()),
            };
            match request {
                Ok(request) => self.state_mut(at).request = request,
                Err(unreadable) => return self.stick_unreadable(at, unreadable),
            }
        }
        if let Err(unreadable) = self.choose_keys(at) {
            return self.stick_unreadable(at, unreadable);
        }
        let verdict = self.ask(at, StepStatus::Acting, Operation::Action);
        if self.has_all_keys(at) {
            return self.settle(at, StepStatus::Done);
        }
        if let Some(signal_type) = spec.signal_type() {
            self.take_kept_signal(at, signal_type);
        }
        verdict
    }

    fn take_kept_signal(&mut self, at: usize, signal_type: &str) {
        let signals = &mut self.out.instance.signals;
        let Some(kept) = signals.iter().position(|kept| *kept.signal_type == *signal_type) else {
            return;
        };
        let kept = signals.remove(kept);
        self.note(Some(at), Happening::SignalTaken { signal: kept.signal_type });
        self.fire(at, Event::Answer(Operation::Action, Answer::Done, kept.payload));
    }

    fn act_again(&mut self, at: usize) -> Verdict {
        self.turn_round(at);
        self.act(at)
    }

    /// Begins the compensation of a step, or begins it again.
    fn undo(&mut self, at: usize) -> Verdict {
        let spec = self.spec(at);
        let status = self.state(at).status;
        let may_have_an_effect = match spec.work {
            Work::Command { .. } | Work::Part { .. } => self.state(at).request.is_some(),
            // What a local step did is committed together with its being done.
            Work::Local { .. } => matches!(
                status,
                StepStatus::Done | StepStatus::Compensating | StepStatus::StuckCompensating
            ),
            Work::Wait { .. } | Work::Lock { .. } => false,
        };
        self.leave(at);
        self.turn_round(at);
        if spec.kind == StepKind::Compensable && may_have_an_effect {
            self.ask(at, StepStatus::Compensating, Operation::Compensation)
        } else {
            self.settle(at, StepStatus::Compensated)
        }
    }

    /// The step goes in another direction, or in the same for another reason: what was answered before is of no
    /// concern any more.
    fn turn_round(&mut self, at: usize) {
        let state = self.state_mut(at);
        state.epoch = state.epoch.next();
        state.attempts = 0;
        state.since = None;
    }

    /// Asks for a step, once more or for the first time.
    fn ask(&mut self, at: usize, status: StepStatus, operation: Operation) -> Verdict {
        let now = self.now;
        let state = self.state_mut(at);
        state.status = status;
        state.trouble = None;
        state.attempts += 1;
        state.since.get_or_insert(now);
        let (epoch, attempt) = (state.epoch, state.attempts);
        self.note(Some(at), Happening::Asked { operation, epoch, attempt });
        self.send(at, operation);
        let spec = self.spec(at);
        let retries = spec.on_timeout == OnTimeout::Retry || operation == Operation::Compensation;
        let wait = match spec.work {
            Work::Wait { .. } | Work::Lock { .. } => spec.timeout,
            _ if retries => spec.timeout + self.backoff(at, operation),
            _ => spec.timeout,
        };
        self.set_timer(at, wait);
        Verdict::Applied
    }

    fn send(&mut self, at: usize, operation: Operation) {
        let instance = &self.out.instance;
        let spec = self.spec(at);
        let state = self.state(at);
        let correlation = Correlation {
            saga: instance.id,
            definition: instance.definition.to_string().into(),
            step: state.name.clone(),
            operation,
            epoch: state.epoch,
        };
        if spec.is_local() {
            self.out.locals.push(LocalCall { correlation, attempt: state.attempts });
        } else if let Some(request) = &state.request {
            let before_pivot = matches!(spec.kind, StepKind::Compensable | StepKind::NoEffect);
            let has_deadline = before_pivot && operation == Operation::Action;
            let deadline = instance.deadline.filter(|_| has_deadline);
            let reply_to = self.definition.replies().into();
            let request = request.clone();
            let instruction = Instruction { correlation, reply_to, deadline };
            self.out.commands.push(CommandMessage { request, instruction });
        } else {
            self.want(at);
        }
    }

    fn set_timer(&mut self, at: usize, wait: Duration) {
        let due = self.now.checked_add(wait).map(micros::floor);
        self.state_mut(at).due = due;
        self.wish_again(at);
    }

    /// The timer of a step that has one.
    fn wish_again(&mut self, at: usize) {
        let state = self.state(at);
        let due = state.due;
        let (step, epoch, attempt) = (state.name.clone(), state.epoch, state.attempts);
        if let Some(due) = due {
            self.out.timers.push(Timer { due, tick: Tick::Step { step, epoch, attempt } });
        }
    }

    fn done(&mut self, at: usize, payload: &Value) -> Verdict {
        let runs = self.rules.assumes().is_none();
        let folded = self.spec(at).on_reply.as_ref().filter(|_| runs).map(|fold| {
            let data = &self.out.instance.data;
            (fold.0)(data, payload)
        });
        match folded {
            Some(Err(unreadable)) => return self.stick_unreadable(at, unreadable),
            Some(Ok(data)) => self.out.instance.data = data,
            None => {}
        }
        self.settle(at, StepStatus::Done)
    }

    /// A refusal without a payload is that of the deadline: there is nothing to decide.
    fn refused(&mut self, at: usize, payload: &Value) -> Verdict {
        let spec = self.spec(at);
        let assumed = self.rules.assumes();
        let runs = assumed.is_none() && !payload.is_null();
        let decided = spec.on_refused.as_ref().filter(|_| runs).map(|decide| {
            let data = &self.out.instance.data;
            (decide.0)(data, payload)
        });
        let then = match decided {
            Some(Err(unreadable)) => return self.stick_unreadable(at, unreadable),
            Some(Ok((data, then))) => {
                self.out.instance.data = data;
                then
            }
            None => assumed.unwrap_or(OnRefused::Abort),
        };
        match then {
            OnRefused::GoOn => self.pass_over(at, StepStatus::Skipped),
            OnRefused::Retry if !self.is_exhausted(at, Operation::Action) => self.delay(at),
            OnRefused::Anew if !self.is_exhausted(at, Operation::Action) => {
                let (saga, data) = (self.out.instance.id, &self.out.instance.data);
                match spec.request(saga, data) {
                    Ok(request) => self.state_mut(at).request = request,
                    Err(unreadable) => return self.stick_unreadable(at, unreadable),
                }
                self.delay(at)
            }
            OnRefused::Retry | OnRefused::Anew | OnRefused::Abort => {
                self.settle(at, StepStatus::Refused);
                self.begin_undoing(Cause::Refused { step: spec.name.clone() })
            }
        }
    }

    /// A refused step is asked for again later: in a new epoch, since in this one its refusal is the answer.
    fn delay(&mut self, at: usize) -> Verdict {
        let wait = self.backoff(at, Operation::Action);
        let state = self.state_mut(at);
        state.status = StepStatus::Delayed;
        state.epoch = state.epoch.next();
        self.set_timer(at, wait);
        Verdict::Applied
    }

    fn pass_over(&mut self, at: usize, status: StepStatus) -> Verdict {
        self.leave(at);
        self.note(Some(at), Happening::Skipped);
        self.settle(at, status)
    }

    /// The step waits for nobody any more.
    fn settle(&mut self, at: usize, status: StepStatus) -> Verdict {
        let state = self.state_mut(at);
        state.status = status;
        state.due = None;
        state.trouble = None;
        Verdict::Applied
    }

    fn stick_unreadable(&mut self, at: usize, unreadable: Unreadable) -> Verdict {
        self.stick(at, Trouble::Unreadable { what: unreadable.what })
    }

    /// A person has to decide about the step. An answer that comes all the same is still welcome.
    fn stick(&mut self, at: usize, trouble: Trouble) -> Verdict {
        let status = self.state(at).status;
        let (status, operation) = match status {
            StepStatus::Compensating | StepStatus::StuckCompensating => {
                (StepStatus::StuckCompensating, Operation::Compensation)
            }
            _ => (StepStatus::StuckActing, Operation::Action),
        };
        let state = self.state_mut(at);
        state.status = status;
        state.due = None;
        state.trouble = Some(trouble.clone());
        let step = state.name.clone();
        self.note(Some(at), Happening::Stuck { trouble: trouble.clone() });
        let saga = self.out.instance.id;
        self.out.alerts.push(Alert { saga, step, operation, trouble });
        Verdict::Applied
    }

    fn find(&self, step: &str) -> Option<usize> {
        self.out.instance.steps.iter().position(|state| *state.name == *step)
    }

    fn spec(&self, at: usize) -> &'d Step {
        self.definition.0.steps.get(at).expect("places are those of the definition's steps")
    }

    fn state(&self, at: usize) -> &StepState {
        self.out.instance.steps.get(at).expect("an instance has its definition's steps")
    }

    fn state_mut(&mut self, at: usize) -> &mut StepState {
        self.out.instance.steps.get_mut(at).expect("an instance has its definition's steps")
    }

    fn entry(&self, at: Option<usize>, what: Happening) -> Entry {
        Entry { at: self.now, step: at.map(|at| self.state(at).name.clone()), what }
    }

    fn note(&mut self, at: Option<usize>, what: Happening) {
        let entry = self.entry(at, what);
        self.out.journal.push(entry);
    }

    /// What caused all that is noted already.
    fn note_first(&mut self, at: usize, what: Happening) {
        let entry = self.entry(Some(at), what);
        self.out.journal.insert(0, entry);
    }
}

#[cfg(test)]
mod tests;
