//! One command in its transaction: the barrier, the effect, the reply.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;
use tailrace_idempotency::{BoxError, Handler, Meta, Outcome};
use tailrace_outbox::{Message, Outbox};

use crate::barrier::rows::{self, Held};
use crate::barrier::{Barrier, Decision, Ended, Request};
use crate::command::Command;
use crate::correlation::{Answer, Instruction, Operation};
use crate::error::{Error, Kind};
use crate::participant::handler::{AnyAction, AnyUndo, BoxFuture, Cx, Ran};
use crate::transition::REPLY_TYPE;

/// How long a command waits that meets a call of its step.
const WAIT: Duration = Duration::from_secs(30);

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

impl<S: Send + Sync + 'static, C: Command> Step<S, C> {
    async fn carry_out(
        &self,
        cx: tailrace_idempotency::Cx<'_, S>,
        command: C,
    ) -> Result<Outcome, BoxError> {
        let cause = cx.cause();
        let tailrace_idempotency::Cx { conn, meta, state, .. } = cx;
        let asked = match Asked::read(conn, meta).await? {
            Ok(asked) => asked,
            Err(outcome) => return Ok(outcome),
        };
        let said = match (asked.settled(), asked.request.operation) {
            (Some(said), _) => said,
            (None, Operation::Action) => {
                savepoint(conn).await?;
                let cx = Cx::new(&mut *conn, &asked.instruction.correlation, meta, state);
                let ran = self.action.run(cx, command).await;
                keep_or_undo::<C>(conn, ran).await?
            }
            (None, Operation::Compensation) => {
                match undo(self.undo.as_deref(), &asked, conn, meta, state, command).await? {
                    Ok(said) => said,
                    Err(outcome) => return Ok(outcome),
                }
            }
        };
        self.voice.answer(conn, &asked, said, cause).await?;
        Ok(Outcome::Done)
    }
}

/// A command, and what was decided about it.
pub(super) struct Asked {
    pub(super) instruction: Instruction,
    pub(super) request: Request,
    pub(super) barrier: Barrier,
    decision: Decision,
    /// What the action has answered.
    reply: Option<Vec<u8>>,
}

/// What is to be remembered and said of a command.
pub(super) struct Said {
    ended: Ended,
    answer: Answer,
    payload: Option<Vec<u8>>,
}

impl Said {
    /// A compensation that was run.
    pub(super) const UNDONE: Self =
        Self { ended: Ended::Done, answer: Answer::Done, payload: None };
}

impl Asked {
    /// Reads a command and locks its step; an outcome where the command ends with it.
    pub(super) async fn read(
        conn: &mut PgConnection,
        meta: &Meta,
    ) -> Result<Result<Self, Outcome>, BoxError> {
        let instruction = match Instruction::read(|name| meta.header(name)) {
            Ok(Some(instruction)) => instruction,
            Ok(None) => return Ok(Err(Outcome::reject("it is the command of no saga"))),
            Err(error) => return Ok(Err(Outcome::reject(error.to_string()))),
        };
        let correlation = &instruction.correlation;
        let held = rows::lock(conn, correlation, instruction.deadline).await?;
        if held.forgotten {
            // To answer would be to guess whether an effect is there.
            return Ok(Err(Outcome::reject(
                "the saga is older than barrier rows are kept: whether the step was carried out is not known",
            )));
        }
        let (operation, epoch) = (correlation.operation, correlation.epoch);
        let request = Request { operation, epoch, late: held.late };
        let decision = held.decide(request, meta.message_id());
        let Held { barrier, reply, .. } = held;
        if decision == Decision::Wait {
            return Ok(Err(Outcome::retry(WAIT)));
        }
        Ok(Ok(Self { instruction, request, barrier, decision, reply }))
    }

    /// The step of a call that was made; none where it does not wait for it.
    pub(super) async fn called(
        conn: &mut PgConnection,
        meta: &Meta,
    ) -> Result<Option<Self>, BoxError> {
        let Some(instruction) = Instruction::read(|name| meta.header(name))? else {
            return Ok(None);
        };
        let correlation = &instruction.correlation;
        let Held { barrier, reply, .. } = rows::lock(conn, correlation, None).await?;
        let (operation, epoch) = (correlation.operation, correlation.epoch);
        if !barrier.is_calling(operation, epoch) {
            return Ok(None);
        }
        let request = Request { operation, epoch, late: false };
        Ok(Some(Self { instruction, request, barrier, decision: Decision::Run, reply }))
    }

    /// Remembers that the operation is under way outside.
    pub(super) async fn calls(&self, conn: &mut PgConnection, by: &Meta) -> Result<(), Error> {
        let after = self.barrier.after(self.request, self.decision, Ended::Calling);
        rows::calls(conn, &self.instruction.correlation, after, by.message_id(), None).await
    }

    /// What the action has answered, for whatever undoes it.
    pub(super) fn output<R: DeserializeOwned>(&self) -> Result<R, Error> {
        let stored = self.reply.as_deref().unwrap_or(b"null");
        serde_json::from_slice(stored).map_err(|error| {
            // The text of the error may quote the reply.
            let place = format!("line {}, column {}", error.line(), error.column());
            Error::new(Kind::Unreadable, "the stored reply of the action does not decode")
                .caused_by(place)
        })
    }

    /// What is said where nothing is to be run.
    pub(super) fn settled(&self) -> Option<Said> {
        let is_action = self.request.operation == Operation::Action;
        let said = |ended, answer, payload| Some(Said { ended, answer, payload });
        match self.decision {
            Decision::Run | Decision::Wait => None,
            Decision::Void => said(Ended::Done, Answer::Done, None),
            // Without a refusal of the business: there is nothing for the saga to decide.
            Decision::Miss => said(Ended::Refused, Answer::Refused, None),
            Decision::Stale => said(Ended::Done, Answer::Blocked, None),
            Decision::Repeat(answer) => {
                let stored = is_action && answer != Answer::Blocked;
                said(Ended::Done, answer, self.reply.clone().filter(|_| stored))
            }
        }
    }
}

/// Sets what an action goes back to if it is refused.
pub(super) async fn savepoint(conn: &mut PgConnection) -> Result<(), Error> {
    statement(conn, "SAVEPOINT tailrace_step").await
}

/// Lets that go, where it is not refused.
pub(super) async fn release(conn: &mut PgConnection) -> Result<(), Error> {
    statement(conn, "RELEASE SAVEPOINT tailrace_step").await
}

/// What an action has come to: a refusal leaves nothing but itself.
pub(super) async fn keep_or_undo<C: Command>(
    conn: &mut PgConnection,
    ran: Ran<C>,
) -> Result<Said, BoxError> {
    match ran? {
        Ok(reply) => {
            statement(conn, "RELEASE SAVEPOINT tailrace_step").await?;
            let payload = Some(json(&reply, "the reply")?);
            Ok(Said { ended: Ended::Done, answer: Answer::Done, payload })
        }
        Err(refusal) => {
            statement(conn, "ROLLBACK TO SAVEPOINT tailrace_step").await?;
            statement(conn, "RELEASE SAVEPOINT tailrace_step").await?;
            let payload = Some(json(&refusal, "the refusal")?);
            Ok(Said { ended: Ended::Refused, answer: Answer::Refused, payload })
        }
    }
}

/// Undoes the action, with what it had answered.
pub(super) async fn undo<S: Sync, C: Command>(
    undo: Option<&dyn AnyUndo<S, C>>,
    asked: &Asked,
    conn: &mut PgConnection,
    meta: &Meta,
    state: &S,
    command: C,
) -> Result<Result<Said, Outcome>, BoxError> {
    let Some(undo) = undo else {
        return Ok(Err(Outcome::reject("the command has no compensation here")));
    };
    let output = asked.output()?;
    let correlation = &asked.instruction.correlation;
    undo.run(Cx::new(conn, correlation, meta, state), command, output).await?;
    Ok(Ok(Said::UNDONE))
}

impl Voice {
    /// Remembers what was done, and answers.
    pub(super) async fn answer(
        &self,
        conn: &mut PgConnection,
        asked: &Asked,
        said: Said,
        cause: Vec<(String, String)>,
    ) -> Result<(), BoxError> {
        let Asked { instruction, request, barrier, decision, reply } = asked;
        let Said { ended, answer, payload } = said;
        let message = self.reply(instruction, answer, payload.as_deref(), cause)?;
        let after = barrier.after(*request, *decision, ended);
        if after == *barrier {
            self.outbox.write(conn, &message).await?;
            return Ok(());
        }
        let stored = match request.operation {
            Operation::Action => payload.as_deref(),
            Operation::Compensation => reply.as_deref(),
        };
        let correlation = &instruction.correlation;
        Ok(rows::remember(conn, &self.outbox, correlation, after, stored, &message).await?)
    }

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
            .map_err(Error::of_outbox)
    }
}

fn json(value: &impl Serialize, what: &str) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| {
        Error::new(Kind::Unreadable, format!("{what} of the action does not encode"))
            .caused_by(error)
    })
}

async fn statement(conn: &mut PgConnection, text: &'static str) -> Result<(), Error> {
    sqlx::raw_sql(text)
        .execute(conn)
        .await
        .map(drop)
        .map_err(|error| Error::database("a savepoint cannot be set or undone", error))
}
