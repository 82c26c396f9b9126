//! One command in its transaction: the barrier, the effect, the reply.

use std::sync::Arc;

use serde::Serialize;
use sqlx::PgConnection;
use tailrace_idempotency::{BoxError, Handler, Meta, Outcome};
use tailrace_outbox::{Message, Outbox};

use crate::barrier::rows::{self, Held};
use crate::barrier::{Decision, Ended, Request};
use crate::command::Command;
use crate::correlation::{Answer, Instruction, Operation};
use crate::error::{Error, Kind};
use crate::participant::handler::{AnyAction, AnyUndo, BoxFuture, Cx};
use crate::participant::savepoint;
use crate::transition::REPLY_TYPE;

/// How a participant answers.
pub(crate) struct Voice {
    pub(crate) source: String,
    pub(crate) outbox: Outbox,
}

/// A command with its operations.
pub(crate) struct Step<S, C: Command> {
    pub(crate) action: Arc<dyn AnyAction<S, C>>,
    pub(crate) undo: Option<Arc<dyn AnyUndo<S, C>>>,
    pub(crate) voice: Arc<Voice>,
}

impl<S, C: Command> Clone for Step<S, C> {
    fn clone(&self) -> Self {
        Self {
            action: Arc::clone(&self.action),
            undo: self.undo.clone(),
            voice: Arc::clone(&self.voice),
        }
    }
}

impl<'a, S: Send + Sync + 'static, C: Command> Handler<'a, S, C> for Step<S, C> {
    type Error = BoxError;
    type Future = BoxFuture<'a, Result<Outcome, BoxError>>;

    fn call(&self, cx: tailrace_idempotency::Cx<'a, S>, command: C) -> Self::Future {
        let step = self.clone();
        Box::pin(async move { step.carry_out(cx, command).await })
    }
}

/// What is to be remembered and said of a command.
struct Said {
    ended: Ended,
    answer: Answer,
    payload: Option<Vec<u8>>,
}

impl<S: Send + Sync + 'static, C: Command> Step<S, C> {
    async fn carry_out(
        &self,
        cx: tailrace_idempotency::Cx<'_, S>,
        command: C,
    ) -> Result<Outcome, BoxError> {
        let instruction = match Instruction::read(|name| cx.meta.header(name)) {
            Ok(Some(instruction)) => instruction,
            Ok(None) => return Ok(Outcome::reject("it is the command of no saga")),
            Err(error) => return Ok(Outcome::reject(error.to_string())),
        };
        let correlation = &instruction.correlation;
        let cause = cx.cause();
        let tailrace_idempotency::Cx { conn, meta, state, .. } = cx;
        let held = rows::lock(conn, correlation, instruction.deadline).await?;
        if held.forgotten {
            // To answer would be to guess whether an effect is there.
            return Ok(Outcome::reject(
                "the saga is older than barrier rows are kept: whether the step was carried out is not known",
            ));
        }
        let Held { barrier, late, .. } = held;
        let request = Request { operation: correlation.operation, epoch: correlation.epoch, late };
        let decision = barrier.decide(request);
        let said = match decision {
            Decision::Wait => return Ok(Outcome::retry(WAIT)),
            Decision::Run => {
                let cx = Running { conn, instruction: &instruction, meta, state };
                match correlation.operation {
                    Operation::Action => self.act(cx, command).await?,
                    Operation::Compensation => {
                        let Some(undo) = &self.undo else {
                            return Ok(Outcome::reject("the command has no compensation here"));
                        };
                        undone(undo.as_ref(), cx, command, held.reply.as_deref()).await?
                    }
                }
            }
            Decision::Void => Said { ended: Ended::Done, answer: Answer::Done, payload: None },
            // Without a refusal of the business: there is nothing for the saga to decide.
            Decision::Miss => {
                Said { ended: Ended::Refused, answer: Answer::Refused, payload: None }
            }
            Decision::Stale => Said { ended: Ended::Done, answer: Answer::Blocked, payload: None },
            Decision::Repeat(answer) => {
                let stored =
                    correlation.operation == Operation::Action && answer != Answer::Blocked;
                let payload = held.reply.clone().filter(|_| stored);
                Said { ended: Ended::Done, answer, payload }
            }
        };
        let message =
            self.voice.reply(&instruction, said.answer, said.payload.as_deref(), cause)?;
        let after = barrier.after(request, decision, said.ended);
        if after == barrier {
            self.voice.outbox.write(conn, &message).await?;
        } else {
            let acted = correlation.operation == Operation::Action;
            let reply = if acted { said.payload } else { held.reply };
            let outbox = &self.voice.outbox;
            rows::remember(conn, outbox, correlation, after, reply.as_deref(), &message).await?;
        }
        Ok(Outcome::Done)
    }

    /// Runs the action behind a savepoint, so that a refusal leaves nothing but itself.
    async fn act(&self, cx: Running<'_, S>, command: C) -> Result<Said, BoxError> {
        let Running { conn, instruction, meta, state } = cx;
        savepoint::set(conn).await?;
        let running = Cx::new(&mut *conn, &instruction.correlation, meta, state);
        match self.action.run(running, command).await? {
            Ok(reply) => {
                savepoint::release(conn).await?;
                let payload = Some(json(&reply, "the reply")?);
                Ok(Said { ended: Ended::Done, answer: Answer::Done, payload })
            }
            Err(refusal) => {
                savepoint::undo(conn).await?;
                let payload = Some(json(&refusal, "the refusal")?);
                Ok(Said { ended: Ended::Refused, answer: Answer::Refused, payload })
            }
        }
    }
}

/// How long a command waits that meets a call of its step.
const WAIT: std::time::Duration = std::time::Duration::from_secs(1);

/// What an operation is run with.
struct Running<'a, S> {
    conn: &'a mut PgConnection,
    instruction: &'a Instruction,
    meta: &'a Meta,
    state: &'a S,
}

async fn undone<S: Sync, C: Command>(
    undo: &dyn AnyUndo<S, C>,
    cx: Running<'_, S>,
    command: C,
    stored: Option<&[u8]>,
) -> Result<Said, BoxError> {
    let Running { conn, instruction, meta, state } = cx;
    let output = serde_json::from_slice(stored.unwrap_or(b"null")).map_err(|error| {
        // The text of the error may quote the reply.
        let place = format!("line {}, column {}", error.line(), error.column());
        Error::new(Kind::Unreadable, "the stored reply of the action does not decode")
            .caused_by(place)
    })?;
    undo.run(Cx::new(conn, &instruction.correlation, meta, state), command, output).await?;
    Ok(Said { ended: Ended::Done, answer: Answer::Done, payload: None })
}

impl Voice {
    fn reply(
        &self,
        instruction: &Instruction,
        answer: Answer,
        payload: Option<&[u8]>,
        cause: Vec<(String, String)>,
    ) -> Result<Message, Error> {
        let correlation = &instruction.correlation;
        Message::builder(&*instruction.reply_to, REPLY_TYPE)
            .source(&self.source)
            .key(correlation.saga.to_string())
            .payload(payload.unwrap_or(b"null"))
            .of_saga(correlation.reply_attributes(answer))
            .caused_by(cause)
            .build()
            .map_err(|error| {
                Error::new(Kind::Outbox, "the reply of a step is no message").caused_by(error)
            })
    }
}

fn json(value: &impl Serialize, what: &str) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| {
        Error::new(Kind::Unreadable, format!("{what} of the action does not encode"))
            .caused_by(error)
    })
}
