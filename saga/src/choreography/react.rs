//! One event in its transaction: for each step that it is about, the barrier, the effect, the events.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use tailrace_idempotency::{Answer, BoxError, CallCx, Meta, Outcome, Prepared};
use tailrace_outbox::{Message, Outbox};

use super::decide::Status;
use super::metrics::{Counters, Outcomes};
use super::outward::{Due, Outward};
use super::reaction::{AnyReact, Emitted, Reaction};
use super::{Choreography, Kind, Role, Step, clock, decide, epoch, savepoint};
use crate::barrier::rows;
use crate::barrier::{Barrier, Decision, Ended, Request};
use crate::correlation::{Answer as Answering, Correlation, Operation, SagaId};
use crate::error::{Error, Kind as Fault};
use crate::participant::Cx;
use crate::participant::outside::{Answered, Intent, Limits, key, waits, within};

/// How a service speaks.
#[derive(Debug, Clone)]
pub(super) struct Voice {
    pub(super) service: Box<str>,
    pub(super) source: String,
    pub(super) prefix: String,
    pub(super) outbox: Outbox,
}

/// What a record ties its messages to.
pub(super) type Cause = Vec<(String, String)>;

impl Voice {
    /// A topic as it is called here.
    pub(super) fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(super) fn message(
        &self,
        map: &Choreography,
        emitted: Emitted,
        correlation: &Correlation,
        answer: Answering,
        cause: &Cause,
    ) -> Result<Message, Error> {
        let payload = emitted.payload.map_err(|error| {
            Error::new(Fault::Unreadable, "the payload of an event does not encode")
                .caused_by(error)
        })?;
        let topic = self.topic(map.topic_of(&self.service));
        Message::builder(topic, emitted.event)
            .source(&self.source)
            .key(emitted.key.unwrap_or_else(|| correlation.saga.to_string().into_bytes()))
            .payload(payload)
            .of_saga(correlation.reply_attributes(answer))
            .caused_by(cause.iter().cloned())
            .build()
            .map_err(|error| {
                Error::new(Fault::Outbox, "the event of a step is no message").caused_by(error)
            })
    }
}

/// What is registered for a step or a compensation.
pub(super) enum Doing<S> {
    Within(Box<dyn AnyReact<S>>),
    Outside(Box<dyn Outward<S>>),
}

/// Everything that a service does about events.
pub(super) struct Reactor<S> {
    pub(super) map: Choreography,
    pub(super) voice: Voice,
    /// By the names of steps and compensations.
    pub(super) handlers: BTreeMap<Box<str>, Doing<S>>,
    pub(super) counters: Counters,
}

/// The event that is being taken.
struct Taken<'a, S> {
    saga: SagaId,
    definition: Box<str>,
    payload: &'a [u8],
    cause: Cause,
    meta: &'a Meta,
    state: &'a S,
}

impl<S> Taken<'_, S> {
    fn correlation(&self, step: &Step, operation: Operation) -> Correlation {
        Correlation {
            saga: self.saga,
            definition: self.definition.clone(),
            step: step.name.clone(),
            operation,
            epoch: epoch(operation),
        }
    }
}

/// What follows from a role that was played.
enum Played {
    On,
    Call(Due),
    Instead(Outcome),
}

/// What came of a step or a compensation that is to run.
enum Came {
    Reaction(Reaction),
    Call(Intent),
}

impl<S: Send + Sync + 'static> Reactor<S> {
    /// What bounds the calls that an event may lead to; nothing where it leads to none.
    pub(super) fn calls(&self, event: &str) -> Vec<Limits> {
        let steps = &self.map.map().steps;
        let roles = self.map.map().roles(&self.voice.service, event).into_iter();
        let name = |role| match role {
            Role::Act(index) => steps.get(index).map(|step| &*step.name),
            Role::Undo(index) => steps.get(index).and_then(Step::compensation),
            _ => None,
        };
        let limits = |name: &str| match self.handlers.get(name) {
            Some(Doing::Outside(outside)) => Some(outside.limits()),
            _ => None,
        };
        roles.filter_map(name).filter_map(limits).collect()
    }

    /// Plays all roles of an event. What they have to call about is answered with.
    pub(super) async fn take(
        &self,
        cx: tailrace_idempotency::Cx<'_, S>,
        payload: &[u8],
    ) -> Result<Prepared<Vec<Due>>, BoxError> {
        let correlation = match Correlation::read(|name| cx.meta.header(name)) {
            Ok(Some(correlation)) => correlation,
            Ok(None) => {
                return Ok(Prepared::End(Outcome::reject("it is the event of no saga")));
            }
            Err(error) => return Ok(Prepared::End(Outcome::reject(error.to_string()))),
        };
        let map = self.map.map();
        if !map.knows(&correlation.definition) {
            // Sagas of another name may speak of the same things.
            return Ok(Prepared::End(Outcome::Done));
        }
        let cause = cx.cause();
        let tailrace_idempotency::Cx { conn, meta, state, .. } = cx;
        let Correlation { saga, definition, .. } = correlation;
        let taken = Taken { saga, definition, payload, cause, meta, state };
        let event = meta.message_type();
        let mut due = Vec::new();
        for role in map.roles(&self.voice.service, event) {
            let played = match role {
                Role::Act(index) | Role::Undo(index) | Role::CallOff(index) => {
                    let Some(step) = map.steps.get(index) else { continue };
                    self.play(conn, role, step, &taken).await?
                }
                Role::Hear => {
                    self.turned(clock::hears(conn, map, taken.saga, event).await?);
                    Played::On
                }
                Role::Fail => {
                    self.turned(clock::fails(conn, taken.saga).await?);
                    Played::On
                }
            };
            match played {
                Played::On => {}
                Played::Call(call) => due.push(call),
                Played::Instead(outcome) => return Ok(Prepared::End(outcome)),
            }
        }
        Ok(if due.is_empty() { Prepared::End(Outcome::Done) } else { Prepared::Call(due) })
    }

    fn turned(&self, status: Option<Status>) {
        if let Some(status) = status {
            self.counters.turned(self.map.name(), status, 1);
        }
    }

    async fn play(
        &self,
        conn: &mut PgConnection,
        role: Role,
        step: &Step,
        taken: &Taken<'_, S>,
    ) -> Result<Played, BoxError> {
        let operation = match role {
            Role::Act(_) => Operation::Action,
            _ => Operation::Compensation,
        };
        let correlation = taken.correlation(step, operation);
        let held = rows::lock(conn, &correlation, None).await?;
        if held.forgotten {
            // To go on would be to guess whether an effect is there.
            return Ok(Played::Instead(Outcome::reject(
                "the saga is older than barrier rows are kept: what was done for it is not known",
            )));
        }
        let decide = |request| held.decide(request, taken.meta.message_id());
        let Some((request, decision)) = decide::of_step(role, held.barrier, decide) else {
            return Ok(Played::On);
        };
        let running = Cx::new(&mut *conn, &correlation, taken.meta, taken.state);
        let came = match (role, decision) {
            (_, Decision::Wait) => return Ok(Played::Instead(waits(&step.name))),
            (Role::Act(_), Decision::Run) => self.act(running, step, taken.payload).await?,
            (Role::Undo(_), Decision::Run) => {
                self.undo(running, step, held.reply.as_deref()).await?
            }
            (Role::CallOff(_), _) => Came::Reaction(called_off(step, taken.payload)),
            _ => Came::Reaction(Reaction::done()),
        };
        // What led to the step is kept for its compensation.
        let kept = match operation {
            Operation::Action => Some(taken.payload),
            Operation::Compensation => held.reply.as_deref(),
        };
        match came {
            Came::Call(intent) => {
                let after = held.barrier.after(request, decision, Ended::Calling);
                let by = taken.meta.message_id();
                rows::calls(conn, &correlation, after, by, kept).await?;
                self.counters.did(self.map.name(), &step.name, operation, Outcomes::Calling);
                Ok(Played::Call(Due { step: step.name.clone(), operation, intent }))
            }
            Came::Reaction(reaction) => {
                let done = Decided { correlation: &correlation, request, decision };
                self.keep(conn, done, held.barrier, kept, reaction, &taken.cause).await?;
                Ok(Played::On)
            }
        }
    }

    /// Runs the step; where it may refuse, behind a savepoint, so that a refusal leaves nothing but itself.
    async fn act(&self, cx: Cx<'_, S>, step: &Step, payload: &[u8]) -> Result<Came, BoxError> {
        let Cx { conn, saga, meta, state } = cx;
        let may_refuse = !step.refuses.is_empty();
        if may_refuse {
            savepoint::set(conn).await?;
        }
        let running = Cx::new(&mut *conn, saga, meta, state);
        let came = self.began(&step.name, running, payload).await?;
        let refused = match &came {
            Came::Call(_) => false,
            Came::Reaction(reaction) => declared(step, reaction)?,
        };
        match (may_refuse, refused) {
            (true, true) => savepoint::undo(conn).await?,
            (true, false) => savepoint::release(conn).await?,
            (false, _) => {}
        }
        Ok(came)
    }

    async fn undo(
        &self,
        cx: Cx<'_, S>,
        step: &Step,
        stored: Option<&[u8]>,
    ) -> Result<Came, BoxError> {
        let Some(by) = step.compensation() else { return Ok(Came::Reaction(Reaction::done())) };
        let came = self.began(by, cx, stored.unwrap_or(b"null")).await?;
        if let Came::Reaction(reaction) = &came {
            undone(step, reaction)?;
        }
        Ok(came)
    }

    async fn began(&self, name: &str, cx: Cx<'_, S>, payload: &[u8]) -> Result<Came, BoxError> {
        Ok(match self.handler(name)? {
            Doing::Within(handler) => Came::Reaction(handler.react(cx, payload)?.await?),
            Doing::Outside(outside) => match outside.prepare(cx, payload)?.await? {
                Ok(intent) => Came::Call(intent),
                Err(reaction) => Came::Reaction(reaction),
            },
        })
    }

    fn handler(&self, name: &str) -> Result<&Doing<S>, Error> {
        self.handlers.get(name).ok_or_else(|| Error::definition(format!("{name} has no handler")))
    }

    /// The handler of a call that is due, and its step.
    fn called(&self, due: &Due) -> Result<(&Step, &dyn Outward<S>), Error> {
        let gone = || Error::definition(format!("{} makes no call any more", due.step));
        let step = self.map.map().steps.iter().find(|step| step.name == due.step);
        let step = step.ok_or_else(gone)?;
        let name = match due.operation {
            Operation::Action => Some(&*step.name),
            Operation::Compensation => step.compensation(),
        };
        match self.handler(name.ok_or_else(gone)?)? {
            Doing::Outside(outside) => Ok((step, &**outside)),
            Doing::Within(_) => Err(gone()),
        }
    }

    /// Makes the calls that are due about an event, each with the key of its step.
    pub(super) async fn call(
        &self,
        mut cx: CallCx<'_, S>,
        due: &[Due],
    ) -> Result<Answer<Vec<Answered>>, BoxError> {
        let of = Correlation::read(|name| cx.meta.header(name))?
            .ok_or_else(|| Error::new(Fault::Record, "a call is made for no saga"))?;
        // Alone it has its time-out from the consumer, which tells it for what it is. Else that is the sum of all which the
        // event may lead to, and not only of those that are due.
        let is_alone = self.calls(cx.meta.message_type()).len() == 1;
        let mut all = Vec::with_capacity(due.len());
        for call in due {
            let (step, outside) = self.called(call)?;
            let (step, operation) = (step.name.clone(), call.operation);
            let epoch = epoch(operation);
            cx.key = key(&Correlation { step, operation, epoch, ..of.clone() }).unwrap_or(cx.key);
            let running = outside.call(cx, &call.intent)?;
            let answer = match is_alone {
                true => running.await?,
                false => within(outside.limits().time_out, running).await?,
            };
            let Answer::Done(answered) = answer else {
                // The others are repeated with it, by the same keys.
                return Ok(answer.map(|_| Vec::new()));
            };
            all.push(answered);
        }
        Ok(Answer::Done(all))
    }

    /// Records what the calls about an event have answered.
    pub(super) async fn record(
        &self,
        cx: tailrace_idempotency::Cx<'_, S>,
        due: Vec<Due>,
        answered: Vec<Answered>,
    ) -> Result<(), BoxError> {
        let cause = cx.cause();
        let tailrace_idempotency::Cx { conn, meta, state, .. } = cx;
        let of = Correlation::read(|name| meta.header(name))?
            .ok_or_else(|| Error::new(Fault::Record, "a call was made for no saga"))?;
        let Correlation { saga, definition, .. } = of;
        let taken = Taken { saga, definition, payload: &[], cause, meta, state };
        for (call, answered) in due.iter().zip(answered) {
            let (step, outside) = self.called(call)?;
            let correlation = taken.correlation(step, call.operation);
            let held = rows::lock(conn, &correlation, None).await?;
            if !held.barrier.is_calling(call.operation, correlation.epoch) {
                let text = "a call was made for a step that does not wait for it";
                return Err(Error::new(Fault::Record, text).into());
            }
            savepoint::set(conn).await?;
            let running = Cx::new(&mut *conn, &correlation, meta, state);
            let reaction = outside.record(running, &call.intent, answered)?.await?;
            let refused = match call.operation {
                Operation::Action => declared(step, &reaction)?,
                Operation::Compensation => undone(step, &reaction).map(|()| false)?,
            };
            match refused {
                true => savepoint::undo(conn).await?,
                false => savepoint::release(conn).await?,
            }
            let (request, decision) = (decide::request(call.operation), Decision::Run);
            let done = Decided { correlation: &correlation, request, decision };
            self.keep(conn, done, held.barrier, held.reply.as_deref(), reaction, &taken.cause)
                .await?;
        }
        Ok(())
    }

    /// Remembers what was done, and writes the events beside it.
    async fn keep(
        &self,
        conn: &mut PgConnection,
        done: Decided<'_>,
        before: Barrier,
        kept: Option<&[u8]>,
        reaction: Reaction,
        cause: &Cause,
    ) -> Result<(), Error> {
        let Decided { correlation, request, decision } = done;
        let ended = match reaction.refused {
            true => Ended::Refused,
            false => Ended::Done,
        };
        let answer = match (reaction.refused, decision) {
            (true, _) => Answering::Refused,
            (false, Decision::Void) => Answering::Blocked,
            (false, _) => Answering::Done,
        };
        let after = before.after(request, decision, ended);
        let messages = reaction
            .events
            .into_iter()
            .map(|emitted| self.voice.message(&self.map, emitted, correlation, answer, cause))
            .collect::<Result<Vec<_>, _>>()?;
        rows::remember_all(conn, &self.voice.outbox, correlation, after, kept, &messages).await?;
        let outcome = Outcomes::of(answer);
        self.counters.did(self.map.name(), &correlation.step, request.operation, outcome);
        Ok(())
    }
}

/// What was decided about a step.
#[derive(Clone, Copy)]
struct Decided<'a> {
    correlation: &'a Correlation,
    request: Request,
    decision: Decision,
}

/// Whether a step has refused; an error where that, or what it has emitted, is not what is declared of it.
fn declared(step: &Step, reaction: &Reaction) -> Result<bool, Error> {
    if reaction.refused && step.refuses.is_empty() {
        return Err(Error::definition(format!("{} is not declared to refuse", step.name)));
    }
    let events = if reaction.refused { &step.refuses } else { &step.emits };
    reaction.must_be(&step.name, events.iter().map(|event| &**event))?;
    Ok(reaction.refused)
}

/// Whether a compensation has come to what is declared of it.
fn undone(step: &Step, reaction: &Reaction) -> Result<(), Error> {
    let Some(Kind::Compensated { by, undone }) = &step.kind else { return Ok(()) };
    if reaction.refused {
        return Err(Error::definition(format!("{by} is a compensation, and cannot refuse")));
    }
    reaction.must_be(by, undone.as_deref().into_iter())
}

/// What the pivot's service says when it has blocked the pivot.
fn called_off(step: &Step, expired: &[u8]) -> Reaction {
    let Some(Kind::Pivot { called_off }) = &step.kind else { return Reaction::done() };
    let payload = Ok(expired.to_vec());
    let emitted = Emitted { event: called_off.to_string(), payload, key: None };
    Reaction { refused: false, events: vec![emitted] }
}
