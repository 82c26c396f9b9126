//! One event in its transaction: for each step that it is about, the barrier, the effect, the events.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::PgConnection;
use tailrace_idempotency::{BoxError, Codec, Handler, Meta, Outcome};
use tailrace_outbox::{Message, Outbox};

use super::reaction::{AnyReact, Emitted, Reaction};
use super::{Choreography, Kind, Role, Step, clock, decide, epoch, savepoint};
use crate::barrier::rows::{self, Held};
use crate::barrier::{Decision, Ended, Request};
use crate::correlation::{Answer, Correlation, Operation, SagaId};
use crate::error::{Error, Kind as Fault};
use crate::participant::{BoxFuture, Cx};

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
        answer: Answer,
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

/// What stands in a record, not yet read.
pub(super) struct Payload(Vec<u8>);

/// Leaves the payload to the handlers: those of one event may read it as different types.
pub(super) struct Raw;

impl Codec<Payload> for Raw {
    fn decode(&self, payload: Option<&[u8]>) -> Result<Payload, BoxError> {
        Ok(Payload(payload.unwrap_or(b"null").to_vec()))
    }
}

/// Everything that a service does about events.
pub(super) struct Reactor<S> {
    pub(super) map: Choreography,
    pub(super) voice: Voice,
    /// By the names of steps and compensations.
    pub(super) handlers: BTreeMap<Box<str>, Box<dyn AnyReact<S>>>,
}

/// The one handler of every event.
pub(super) struct Dispatch<S>(pub(super) Arc<Reactor<S>>);

impl<'a, S: Send + Sync + 'static> Handler<'a, S, Payload> for Dispatch<S> {
    type Error = BoxError;
    type Future = BoxFuture<'a, Result<Outcome, BoxError>>;

    fn call(&self, cx: tailrace_idempotency::Cx<'a, S>, payload: Payload) -> Self::Future {
        let reactor = Arc::clone(&self.0);
        Box::pin(async move { reactor.take(cx, &payload.0).await })
    }
}

/// The event that is being taken.
struct Taken<'a, S> {
    saga: SagaId,
    payload: &'a [u8],
    cause: Cause,
    meta: &'a Meta,
    state: &'a S,
}

/// Whether the next role of an event may be played.
enum Played {
    On,
    Instead(Outcome),
}

impl<S: Send + Sync + 'static> Reactor<S> {
    async fn take(
        &self,
        cx: tailrace_idempotency::Cx<'_, S>,
        payload: &[u8],
    ) -> Result<Outcome, BoxError> {
        let correlation = match Correlation::read(|name| cx.meta.header(name)) {
            Ok(Some(correlation)) => correlation,
            Ok(None) => return Ok(Outcome::reject("it is the event of no saga")),
            Err(error) => return Ok(Outcome::reject(error.to_string())),
        };
        let map = self.map.map();
        if !map.knows(&correlation.definition) {
            // Sagas of another name may speak of the same things.
            return Ok(Outcome::Done);
        }
        let cause = cx.cause();
        let tailrace_idempotency::Cx { conn, meta, state, .. } = cx;
        let taken = Taken { saga: correlation.saga, payload, cause, meta, state };
        let event = meta.message_type();
        for role in map.roles(&self.voice.service, event) {
            let played = match role {
                Role::Act(index) | Role::Undo(index) | Role::CallOff(index) => {
                    let Some(step) = map.steps.get(index) else { continue };
                    self.play(conn, role, step, &correlation.definition, &taken).await?
                }
                Role::Hear => {
                    clock::hears(conn, map, taken.saga, event).await?;
                    Played::On
                }
                Role::Fail => {
                    clock::fails(conn, taken.saga).await?;
                    Played::On
                }
            };
            if let Played::Instead(outcome) = played {
                return Ok(outcome);
            }
        }
        Ok(Outcome::Done)
    }

    async fn play(
        &self,
        conn: &mut PgConnection,
        role: Role,
        step: &Step,
        definition: &str,
        taken: &Taken<'_, S>,
    ) -> Result<Played, BoxError> {
        let operation = match role {
            Role::Act(_) => Operation::Action,
            _ => Operation::Compensation,
        };
        let correlation = Correlation {
            saga: taken.saga,
            definition: definition.into(),
            step: step.name.clone(),
            operation,
            epoch: epoch(operation),
        };
        let held = rows::lock(conn, &correlation, None).await?;
        if held.forgotten {
            // To go on would be to guess whether an effect is there.
            return Ok(Played::Instead(Outcome::reject(
                "the saga is older than barrier rows are kept: what was done for it is not known",
            )));
        }
        let Some((request, decision)) = decide::of_step(role, held.barrier) else {
            return Ok(Played::On);
        };
        let reaction = match (role, decision) {
            (_, Decision::Wait) => return Ok(Played::Instead(Outcome::retry(WAIT))),
            (Role::Act(_), Decision::Run) => {
                let running = Cx::new(&mut *conn, &correlation, taken.meta, taken.state);
                self.act(running, step, taken.payload).await?
            }
            (Role::Undo(_), Decision::Run) => {
                let running = Cx::new(&mut *conn, &correlation, taken.meta, taken.state);
                self.undo(running, step, held.reply.as_deref()).await?
            }
            (Role::CallOff(_), _) => called_off(step, taken.payload),
            _ => Reaction::done(),
        };
        self.keep(conn, &correlation, held, (request, decision), reaction, taken).await?;
        Ok(Played::On)
    }

    /// Runs the step; where it may refuse, behind a savepoint, so that a refusal leaves nothing but itself.
    async fn act(&self, cx: Cx<'_, S>, step: &Step, payload: &[u8]) -> Result<Reaction, BoxError> {
        let Cx { conn, saga, meta, state } = cx;
        let handler = self.handler(&step.name)?;
        if step.refuses.is_empty() {
            let reaction = handler.react(Cx::new(conn, saga, meta, state), payload)?.await?;
            if reaction.refused {
                return Err(
                    Error::definition(format!("{} is not declared to refuse", step.name)).into()
                );
            }
            reaction.must_be(&step.name, step.emits.iter().map(|event| &**event))?;
            return Ok(reaction);
        }
        savepoint::set(conn).await?;
        let reaction = handler.react(Cx::new(&mut *conn, saga, meta, state), payload)?.await?;
        match reaction.refused {
            true => {
                reaction.must_be(&step.name, step.refuses.iter().map(|event| &**event))?;
                savepoint::undo(conn).await?;
            }
            false => {
                reaction.must_be(&step.name, step.emits.iter().map(|event| &**event))?;
                savepoint::release(conn).await?;
            }
        }
        Ok(reaction)
    }

    async fn undo(
        &self,
        cx: Cx<'_, S>,
        step: &Step,
        stored: Option<&[u8]>,
    ) -> Result<Reaction, BoxError> {
        let Some(Kind::Compensated { by, undone }) = &step.kind else {
            return Ok(Reaction::done());
        };
        let reaction = self.handler(by)?.react(cx, stored.unwrap_or(b"null"))?.await?;
        if reaction.refused {
            return Err(
                Error::definition(format!("{by} is a compensation, and cannot refuse")).into()
            );
        }
        reaction.must_be(by, undone.as_deref().into_iter())?;
        Ok(reaction)
    }

    fn handler(&self, name: &str) -> Result<&dyn AnyReact<S>, Error> {
        self.handlers
            .get(name)
            .map(|handler| &**handler)
            .ok_or_else(|| Error::definition(format!("{name} has no handler")))
    }

    /// Remembers what was done, and writes the events beside it.
    async fn keep(
        &self,
        conn: &mut PgConnection,
        correlation: &Correlation,
        held: Held,
        (request, decision): (Request, Decision),
        reaction: Reaction,
        taken: &Taken<'_, S>,
    ) -> Result<(), Error> {
        let ended = match reaction.refused {
            true => Ended::Refused,
            false => Ended::Done,
        };
        let answer = match (reaction.refused, decision) {
            (true, _) => Answer::Refused,
            (false, Decision::Void) => Answer::Blocked,
            (false, _) => Answer::Done,
        };
        let after = held.barrier.after(request, decision, ended);
        // What led to the step is kept for its compensation.
        let stored = match request.operation {
            Operation::Action => Some(taken.payload),
            Operation::Compensation => held.reply.as_deref(),
        };
        let messages = reaction
            .events
            .into_iter()
            .map(|emitted| {
                self.voice.message(&self.map, emitted, correlation, answer, &taken.cause)
            })
            .collect::<Result<Vec<_>, _>>()?;
        rows::remember_all(conn, &self.voice.outbox, correlation, after, stored, &messages).await
    }
}

/// What the pivot's service says when it has blocked the pivot.
fn called_off(step: &Step, expired: &[u8]) -> Reaction {
    let Some(Kind::Pivot { called_off }) = &step.kind else { return Reaction::done() };
    let payload = Ok(expired.to_vec());
    let emitted = Emitted { event: called_off.to_string(), payload, key: None };
    Reaction { refused: false, events: vec![emitted] }
}

/// How long an event waits that meets a call of its step.
const WAIT: std::time::Duration = std::time::Duration::from_secs(1);
