//! One command in its transaction: the barrier, the effect, the reply.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;
use tailrace_idempotency::{
    Apart, BatchCx, BatchHandler, BoxError, Item, MessageId, Meta, Outcome,
};
use tailrace_outbox::{Message, Outbox};
use tracing::Instrument as _;

use crate::barrier::many::Many;
use crate::barrier::rows::{self, Held};
use crate::barrier::{Barrier, Decision, Ended, Request};
use crate::command::Command;
use crate::correlation::{Answer, Instruction, Operation};
use crate::error::{Error, Kind};
use crate::participant::handler::{AnyAction, AnyUndo, BoxFuture, Cx, Ran};
use crate::participant::outside::waits;
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
    pub(crate) care: Arc<Care>,
}

impl<S, C: Command> Clone for Step<S, C> {
    fn clone(&self) -> Self {
        Self {
            action: Arc::clone(&self.action),
            undo: self.undo.clone(),
            voice: Arc::clone(&self.voice),
            care: Arc::clone(&self.care),
        }
    }
}

/// Whether actions are behind savepoints.
///
/// A refusal leaves nothing of what its action changed, so that there has to be something to go back to. Where actions are
/// hardly ever refused, a savepoint for each is two round trips in five for nothing: there the transaction is rolled back
/// upon a refusal, and its commands are carried out once more, with savepoints, as are the next [`CAREFUL_FOR`].
#[derive(Debug, Default)]
pub(crate) struct Care(AtomicU32);

/// So many commands are carried out behind savepoints after one that was refused.
const CAREFUL_FOR: u32 = 1_000;

impl Care {
    /// Whether the next command is to be behind a savepoint.
    fn is_due(&self) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok()
    }

    fn begins(&self) {
        self.0.store(CAREFUL_FOR, Ordering::Relaxed);
    }
}

impl<'a, S: Send + Sync + 'static, C: Command> BatchHandler<'a, S, C> for Step<S, C> {
    type Error = BoxError;
    type Future = BoxFuture<'a, Result<Outcome, BoxError>>;

    fn call(&self, cx: BatchCx<'a, S>, commands: Vec<Item<'a, C>>) -> Self::Future {
        let step = self.clone();
        Box::pin(async move { step.carry_out(cx, commands).await })
    }
}

impl<S: Send + Sync + 'static, C: Command> Step<S, C> {
    /// One after another; what is asked of the database besides is asked for all at once.
    async fn carry_out(
        &self,
        cx: BatchCx<'_, S>,
        commands: Vec<Item<'_, C>>,
    ) -> Result<Outcome, BoxError> {
        let BatchCx { conn, state, .. } = cx;
        let mut instructions = Vec::with_capacity(commands.len());
        for (place, command) in commands.iter().enumerate() {
            match instruction(command.meta) {
                Ok(instruction) => instructions.push(instruction),
                Err(outcome) => return Err(Apart::one(place, Ok(outcome)).into()),
            }
        }
        let mut rows = Many::lock(conn, &instructions).await?;
        let mut answers = Vec::with_capacity(commands.len());
        for (place, (item, instruction)) in commands.into_iter().zip(instructions).enumerate() {
            let (cause, meta, span) = (item.cause(), item.meta, item.span().clone());
            let held = rows.held(&instruction)?;
            let ended = match Asked::decide(instruction, held, meta.message_id()) {
                Ok(asked) => {
                    let cx = Running { conn: &mut *conn, meta, state };
                    // What the action writes is of the trace of its command.
                    self.one(cx, asked, item.message).instrument(span).await
                }
                Err(outcome) => Ok(Err(outcome)),
            };
            match ended {
                Ok(Ok((asked, said))) => {
                    let (answer, left) = self.voice.answered(&asked, said, cause)?;
                    if let Some((barrier, reply)) = left {
                        rows.leave(&asked.instruction.correlation, barrier, reply.as_deref())?;
                    }
                    answers.push(answer);
                }
                Ok(Err(outcome)) => return Err(Apart::one(place, Ok(outcome)).into()),
                Err(error) if error.is::<Apart>() => return Err(error),
                Err(error) => return Err(Apart::one(place, Err(error)).into()),
            }
        }
        rows.remember(conn, &self.voice.outbox, &answers).await?;
        Ok(Outcome::Done)
    }

    /// Runs what is to be run for a command.
    async fn one(
        &self,
        cx: Running<'_, S>,
        asked: Asked,
        command: C,
    ) -> Result<Result<(Asked, Said), Outcome>, BoxError> {
        let Running { conn, meta, state } = cx;
        let said = match (asked.settled(), asked.request.operation) {
            (Some(said), _) => said,
            (None, Operation::Action) => {
                let is_guarded = self.care.is_due();
                if is_guarded {
                    savepoint(conn).await?;
                }
                let cx = Cx::new(&mut *conn, &asked.instruction.correlation, meta, state);
                match self.action.run(cx, command).await {
                    ran if is_guarded => keep_or_undo::<C>(conn, ran).await?,
                    Ok(Err(_)) => {
                        self.care.begins();
                        return Err(Apart::again().into());
                    }
                    Err(error) => return Err(error),
                    Ok(Ok(reply)) => Said::done(&reply)?,
                }
            }
            (None, Operation::Compensation) => {
                match undo(self.undo.as_deref(), &asked, conn, meta, state, command).await? {
                    Ok(said) => said,
                    Err(outcome) => return Ok(Err(outcome)),
                }
            }
        };
        Ok(Ok((asked, said)))
    }
}

/// What a command runs in.
struct Running<'a, S> {
    conn: &'a mut PgConnection,
    meta: &'a Meta,
    state: &'a S,
}

/// What a record asks for; an outcome where it ends with that.
fn instruction(meta: &Meta) -> Result<Instruction, Outcome> {
    match Instruction::read(|name| meta.header(name)) {
        Ok(Some(instruction)) => Ok(instruction),
        Ok(None) => Err(Outcome::reject("it is the command of no saga")),
        Err(error) => Err(Outcome::reject(error.to_string())),
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

/// What a command leaves in its step's row: with the barrier the reply of the action.
type Left = (Barrier, Option<Vec<u8>>);

impl Said {
    /// A compensation that was run.
    pub(super) const UNDONE: Self =
        Self { ended: Ended::Done, answer: Answer::Done, payload: None };

    /// Of an action that has this reply.
    fn done(reply: &impl Serialize) -> Result<Self, Error> {
        let payload = Some(json(reply, "the reply")?);
        Ok(Self { ended: Ended::Done, answer: Answer::Done, payload })
    }
}

impl Asked {
    /// Reads a command and locks its step; an outcome where the command ends with it.
    pub(super) async fn read(
        conn: &mut PgConnection,
        meta: &Meta,
    ) -> Result<Result<Self, Outcome>, BoxError> {
        let instruction = match instruction(meta) {
            Ok(instruction) => instruction,
            Err(outcome) => return Ok(Err(outcome)),
        };
        let held = rows::lock(conn, &instruction.correlation, instruction.deadline).await?;
        Ok(Self::decide(instruction, held, meta.message_id()))
    }

    /// Decides about a command by what its step's row holds.
    fn decide(instruction: Instruction, held: Held, by: MessageId) -> Result<Self, Outcome> {
        let correlation = &instruction.correlation;
        if held.forgotten {
            // To answer would be to guess whether an effect is there.
            return Err(Outcome::reject(
                "the saga is older than barrier rows are kept: whether the step was carried out is not known",
            ));
        }
        let (operation, epoch) = (correlation.operation, correlation.epoch);
        let request = Request { operation, epoch, late: held.late };
        let decision = held.decide(request, by);
        let Held { barrier, reply, .. } = held;
        if decision == Decision::Wait {
            return Err(waits(&correlation.step));
        }
        Ok(Self { instruction, request, barrier, decision, reply })
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
            Ok(Said::done(&reply)?)
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
        let (message, left) = self.answered(asked, said, cause)?;
        let Some((after, stored)) = left else {
            self.outbox.write(conn, &message).await?;
            return Ok(());
        };
        let correlation = &asked.instruction.correlation;
        let stored = stored.as_deref();
        Ok(rows::remember(conn, &self.outbox, correlation, after, stored, &message).await?)
    }

    /// The answer, and what is remembered beside it, where that is something else than before.
    fn answered(
        &self,
        asked: &Asked,
        said: Said,
        cause: Vec<(String, String)>,
    ) -> Result<(Message, Option<Left>), Error> {
        let Asked { instruction, request, barrier, decision, reply } = asked;
        let Said { ended, answer, payload } = said;
        let message = self.reply(instruction, answer, payload.as_deref(), cause)?;
        let after = barrier.after(*request, *decision, ended);
        let stored = match request.operation {
            Operation::Action => payload,
            Operation::Compensation => reply.clone(),
        };
        Ok((message, (after != *barrier).then_some((after, stored))))
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
