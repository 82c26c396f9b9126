//! Many sagas in one transaction: what they are told, and all that comes of it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use sqlx::PgConnection;
use tailrace_idempotency::{BoxError, trace};
use tailrace_outbox::{BATCH_MESSAGES_MAX, Message};
use tracing::{Instrument as _, Span};

use crate::correlation::{Answer, Correlation, SagaId};
use crate::definition::Definition;
use crate::engine::metrics::{self, StepEnded};
use crate::engine::{Core, Tally};
use crate::error::{Error, is_transient};
use crate::instance::{Instance, Status};
use crate::local::{self, LocalCx};
use crate::lock;
use crate::machine;
use crate::store::{self, Cause, Changed, Deferred, Kept, Noted, Reason};
use crate::transition::{
    Alert, CommandMessage, Input, LocalCall, LockKey, LockMove, REPLY_TYPE, ReplyMessage, Timer,
    Transition, Verdict,
};

/// The most local steps that follow upon one input: a definition has fewer steps.
const LOCALS_MAX: usize = 1_000;

/// Of what a failed local step says, the characters that are kept.
const ERROR_CHARS_MAX: usize = 500;

/// What a saga is told.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) saga: SagaId,
    pub(crate) input: Input,
    /// Of the messages that come of it.
    pub(crate) cause: Cause,
    /// Its row, where it has waited.
    pub(crate) ticket: Option<i64>,
}

/// A saga that begins.
#[derive(Debug, Clone)]
pub(crate) struct Begun {
    pub(crate) instance: Instance,
    pub(crate) definition: Definition,
    pub(crate) cause: Cause,
}

/// All that a transaction is going to write.
#[derive(Debug, Default)]
struct Sheet {
    changed: Vec<Changed>,
    noted: Vec<Noted>,
    timers: Vec<(SagaId, Timer)>,
    released: Vec<(SagaId, LockKey)>,
    messages: Vec<Message>,
    alerts: Vec<(Box<str>, Alert)>,
    tally: Tally,
    turned: Vec<(Box<str>, Status)>,
    steps: Vec<StepEnded>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Applied {
    /// What could not be told; nothing has come of it.
    pub(crate) deferred: Vec<Deferred>,
    /// Counts, once the transaction has committed.
    pub(crate) tally: Tally,
    /// With the name of the definition.
    pub(crate) alerts: Vec<(Box<str>, Alert)>,
    /// Sagas that stand otherwise than before, by the name of their definition.
    pub(crate) turned: Vec<(Box<str>, Status)>,
    pub(crate) steps: Vec<StepEnded>,
}

/// Why nothing came of an input.
enum Spoilt {
    /// By itself: others go on.
    Input(String),
    /// The transaction is lost.
    Transaction(BoxError),
}

impl From<Error> for Spoilt {
    fn from(error: Error) -> Self {
        Self::Transaction(error.into())
    }
}

/// Tells sagas that are there, and begins others, in the transaction that is open.
///
/// An input that fails (the service's code panics, a message is too large) changes nothing and is handed back; the
/// others are applied.
pub(crate) async fn apply(
    core: &Core,
    conn: &mut PgConnection,
    begun: Vec<Begun>,
    told: Vec<Told>,
    now: SystemTime,
) -> Result<Applied, BoxError> {
    let mut sheet = Sheet::default();
    let mut deferred: Vec<Deferred> = Vec::new();
    for Begun { instance, definition, cause } in begun {
        let mut saga = Turn { core, definition: &definition, instance, origin: &cause, now };
        match saga.take(conn, &mut sheet, Input::Start, &cause).await {
            Ok(()) => {}
            Err(Spoilt::Transaction(error)) => return Err(error),
            // Nothing is there yet that could be handed back: the message that starts it has failed.
            Err(Spoilt::Input(text)) => return Err(text.into()),
        }
        let instance = saga.instance;
        sheet.changed.push(Changed { instance, begun: Some(cause) });
    }
    let mut by_saga: BTreeMap<SagaId, Vec<Told>> = BTreeMap::new();
    for told in told {
        by_saga.entry(told.saga).or_default().push(told);
    }
    let ids: Vec<SagaId> = by_saga.keys().copied().collect();
    let mut kept = if ids.is_empty() { BTreeMap::new() } else { store::lock(conn, &ids).await? };
    for (id, inputs) in by_saga {
        let runnable = kept.remove(&id).map(|Kept { identity, instance, origin }| {
            let definition = core.registry.find(&identity);
            definition.zip(instance).map(|found| (found, origin))
        });
        let ((definition, instance), origin) = match runnable {
            Some(Some(runnable)) => runnable,
            Some(None) => {
                deferred.extend(inputs.into_iter().map(|told| told.deferred(Reason::Foreign)));
                continue;
            }
            None => {
                deferred.extend(inputs.into_iter().map(|told| told.deferred(Reason::Unknown)));
                continue;
            }
        };
        let before = instance.revision();
        let mut saga = Turn { core, definition, instance, origin: &origin, now };
        for told in inputs {
            match saga.take(conn, &mut sheet, told.input.clone(), &told.cause).await {
                Ok(()) => {}
                Err(Spoilt::Transaction(error)) => return Err(error),
                Err(Spoilt::Input(text)) => {
                    tracing::error!(saga = %id, definition = %definition.identity(), cause = %text,
                        "what a saga is told fails, and waits");
                    deferred.push(told.deferred(Reason::Failed));
                }
            }
        }
        if saga.instance.revision() != before {
            let instance = saga.instance;
            sheet.changed.push(Changed { instance, begun: None });
        }
    }
    sheet.write(core, conn).await?;
    let Sheet { mut tally, alerts, turned, steps, .. } = sheet;
    let of = |reason| deferred.iter().filter(|deferred| deferred.reason == reason).count() as u64;
    tally.unknown += of(Reason::Unknown);
    tally.foreign += of(Reason::Foreign);
    tally.failed += of(Reason::Failed);
    Ok(Applied { deferred, tally, alerts, turned, steps })
}

/// A saga that was changed from outside, and how it goes on from there.
#[derive(Debug)]
pub(crate) struct Moved {
    pub(crate) before: Instance,
    pub(crate) origin: Cause,
    /// The definition that it follows from now on.
    pub(crate) definition: Definition,
    pub(crate) turn: Transition,
}

/// Has sagas go on, in the transaction that is open, and says which of them can not, and why.
pub(crate) async fn go_on(
    core: &Core,
    conn: &mut PgConnection,
    moved: Vec<Moved>,
    now: SystemTime,
) -> Result<(Applied, Vec<(SagaId, String)>), BoxError> {
    let mut sheet = Sheet::default();
    let mut refused = Vec::new();
    for Moved { before, origin, definition, turn } in moved {
        let id = before.id();
        let mut saga =
            Turn { core, definition: &definition, instance: before, origin: &origin, now };
        match saga.follow(conn, &mut sheet, Ok(turn), &Cause::new()).await {
            Ok(()) => {
                let instance = saga.instance;
                sheet.changed.push(Changed { instance, begun: None });
            }
            Err(Spoilt::Transaction(error)) => return Err(error),
            Err(Spoilt::Input(text)) => refused.push((id, text)),
        }
    }
    sheet.write(core, conn).await?;
    let Sheet { tally, alerts, turned, steps, .. } = sheet;
    Ok((Applied { deferred: Vec::new(), tally, alerts, turned, steps }, refused))
}

impl Told {
    fn deferred(self, reason: Reason) -> Deferred {
        let Self { saga, input, cause, ticket } = self;
        Deferred { saga, input, cause, reason, ticket }
    }
}

impl Sheet {
    async fn write(&self, core: &Core, conn: &mut PgConnection) -> Result<(), BoxError> {
        store::write(conn, &self.changed, &self.noted, &self.timers).await?;
        lock::rows::release(conn, &self.released).await?;
        for messages in self.messages.chunks(BATCH_MESSAGES_MAX) {
            core.outbox.write_all(conn, messages).await?;
        }
        Ok(())
    }
}

/// One saga in this transaction.
struct Turn<'a> {
    core: &'a Core,
    definition: &'a Definition,
    instance: Instance,
    origin: &'a Cause,
    now: SystemTime,
}

/// What has come of one input so far.
#[derive(Default)]
struct Draft {
    /// The saga, once it has changed.
    instance: Option<Instance>,
    noted: Vec<Noted>,
    timers: Vec<Timer>,
    released: Vec<LockKey>,
    messages: Vec<Message>,
    alerts: Vec<Alert>,
    tally: Tally,
    has_savepoint: bool,
}

impl Draft {
    /// What is done to tables from here on can be undone with the input.
    async fn set_savepoint(&mut self, conn: &mut PgConnection) -> Result<(), Spoilt> {
        if !self.has_savepoint {
            statement(conn, "SAVEPOINT tailrace_saga").await?;
            self.has_savepoint = true;
        }
        Ok(())
    }
}

impl Turn<'_> {
    /// Gives it one input: see [`follow`](Self::follow).
    async fn take(
        &mut self,
        conn: &mut PgConnection,
        sheet: &mut Sheet,
        input: Input,
        cause: &Cause,
    ) -> Result<(), Spoilt> {
        let first = self.step(&self.instance, input);
        self.follow(conn, sheet, first, cause).await
    }

    /// Does what a transition asks for, and gives its local steps what they ask for. All of it counts, or nothing.
    async fn follow(
        &mut self,
        conn: &mut PgConnection,
        sheet: &mut Sheet,
        first: Result<Transition, Spoilt>,
        cause: &Cause,
    ) -> Result<(), Spoilt> {
        let mut draft = Draft::default();
        let played = match first {
            Ok(first) => self.play(conn, &mut draft, first, cause).await,
            Err(spoilt) => Err(spoilt),
        };
        match played {
            Ok(()) => {
                if draft.has_savepoint {
                    statement(conn, "RELEASE SAVEPOINT tailrace_saga").await?;
                }
                if let Some(after) = draft.instance.take() {
                    count_status(&self.instance, &after, &mut draft.tally);
                    let (is, begins) = (after.status(), self.instance.revision() == 0);
                    if is != self.instance.status() || begins {
                        sheet.turned.push((after.definition().name.clone(), is));
                    }
                    metrics::steps(&self.instance, &after, self.now, &mut sheet.steps);
                    self.instance = after;
                }
                let id = self.instance.id();
                sheet.noted.append(&mut draft.noted);
                sheet.timers.extend(draft.timers.into_iter().map(|timer| (id, timer)));
                sheet.released.extend(draft.released.into_iter().map(|lock| (id, lock)));
                sheet.messages.append(&mut draft.messages);
                let definition = &self.instance.definition().name;
                let alerts = draft.alerts.drain(..);
                sheet.alerts.extend(alerts.map(|alert| (definition.clone(), alert)));
                sheet.tally += draft.tally;
                Ok(())
            }
            Err(Spoilt::Input(text)) => {
                if draft.has_savepoint {
                    statement(conn, "ROLLBACK TO SAVEPOINT tailrace_saga").await?;
                    statement(conn, "RELEASE SAVEPOINT tailrace_saga").await?;
                }
                Err(Spoilt::Input(text))
            }
            Err(lost) => Err(lost),
        }
    }

    async fn play(
        &self,
        conn: &mut PgConnection,
        draft: &mut Draft,
        mut turn: Transition,
        cause: &Cause,
    ) -> Result<(), Spoilt> {
        let mut inputs = Vec::new();
        for _ in 0..LOCALS_MAX {
            draft.tally.transitions += u64::from(turn.verdict == Verdict::Applied);
            draft.tally.stale += u64::from(turn.verdict == Verdict::Stale);
            draft.tally.duplicates += u64::from(turn.verdict == Verdict::Duplicate);
            for command in &turn.commands {
                draft.messages.push(self.command(command, cause)?);
            }
            for reply in &turn.replies {
                draft.messages.push(self.reply(reply, cause)?);
            }
            let Transition { instance, locals, locks, timers, journal, alerts, .. } = turn;
            if !journal.is_empty() {
                let (saga, revision) = (instance.id(), instance.revision());
                draft.noted.push(Noted { saga, revision, entries: journal });
            }
            // A local step that has failed in this transaction is not waited for until its time-out.
            draft.timers.retain(|old| timers.iter().all(|new| new.tick != old.tick));
            draft.timers.extend(timers);
            draft.alerts.extend(alerts);
            for moved in locks {
                inputs.extend(self.lock(conn, draft, moved).await?);
            }
            for call in locals {
                draft.set_savepoint(conn).await?;
                inputs.push(self.local(conn, call, &instance, cause).await?);
            }
            let next = inputs.pop().map(|input| self.step(&instance, input));
            draft.instance = Some(instance);
            let Some(next) = next else { return Ok(()) };
            turn = next?;
        }
        Err(Spoilt::Input("its local steps come to no end".to_owned()))
    }

    /// The service's code runs in it: what panics there is the input's own failure.
    fn step(&self, instance: &Instance, input: Input) -> Result<Transition, Spoilt> {
        let step = || machine::step(self.definition, instance, input, self.now);
        match catch_unwind(AssertUnwindSafe(step)) {
            Ok(turn) => turn.map_err(|error| Spoilt::Input(error.to_string())),
            Err(_) => Err(Spoilt::Input("the saga's code panicked".to_owned())),
        }
    }

    /// Stands in line for a lock, and answers with it where it is the saga's at once. What is given back is so with
    /// all else that is written.
    async fn lock(
        &self,
        conn: &mut PgConnection,
        draft: &mut Draft,
        moved: LockMove,
    ) -> Result<Option<Input>, Spoilt> {
        match moved {
            LockMove::Take { lock, ttl } => {
                draft.set_savepoint(conn).await?;
                let is_held = lock::rows::take(conn, self.instance.id(), &lock, ttl).await?;
                Ok(is_held.then_some(Input::Held { step: lock.name, key: lock.key }))
            }
            LockMove::Release(lock) => {
                draft.released.push(lock);
                Ok(None)
            }
        }
    }

    /// The span of a local step, in the trace of what has caused it, and what it hands on.
    fn within(&self, of: &Correlation, cause: &Cause) -> (Span, Vec<(String, String)>) {
        let span = tracing::debug_span!(
            parent: None, "local step",
            otel.name = %format_args!("local {}", of.step),
            saga = %of.saga, step = %of.step, operation = of.operation.as_str(),
        );
        trace::follow(&span, cause.iter().map(|(name, value)| (&**name, &**value)));
        let owned = cause.iter().map(|(name, value)| (name.clone(), value.clone()));
        let handed_on = trace::hand_on(&span, owned);
        (span, handed_on)
    }

    /// Runs a local step behind a savepoint. How it went is what the saga is told next.
    async fn local(
        &self,
        conn: &mut PgConnection,
        call: LocalCall,
        instance: &Instance,
        cause: &Cause,
    ) -> Result<Input, Spoilt> {
        let LocalCall { correlation, attempt } = call;
        let of = &correlation;
        statement(conn, "SAVEPOINT tailrace_local").await?;
        let (span, cause) = self.within(of, &self.cause(cause));
        let cx = LocalCx { conn: &mut *conn, saga: self.instance.id(), of, instance, cause };
        let running = local::run(self.definition, &of.step, of.operation, instance.data(), cx);
        let ran = super::caught(running.instrument(span))
            .await
            .unwrap_or_else(|super::Panicked| Err("it panicked".into()));
        match ran {
            Ok((answer, payload)) => {
                if answer == Answer::Refused {
                    statement(conn, "ROLLBACK TO SAVEPOINT tailrace_local").await?;
                }
                statement(conn, "RELEASE SAVEPOINT tailrace_local").await?;
                Ok(Input::Reply { correlation, answer, payload })
            }
            Err(error) if is_transient(&*error) => Err(Spoilt::Transaction(error)),
            Err(error) => {
                statement(conn, "ROLLBACK TO SAVEPOINT tailrace_local").await?;
                statement(conn, "RELEASE SAVEPOINT tailrace_local").await?;
                let error = told(&*error);
                tracing::warn!(saga = %of.saga, step = %of.step, operation = of.operation.as_str(), attempt, %error,
                    "a local step failed");
                Ok(Input::Failed { correlation, attempt, error: kept(&error) })
            }
        }
    }

    fn command(&self, command: &CommandMessage, cause: &Cause) -> Result<Message, Spoilt> {
        let CommandMessage { request, instruction } = command;
        let mut instruction = instruction.clone();
        instruction.reply_to = self.core.topic(&instruction.reply_to).into();
        Message::builder(self.core.topic(&request.topic), &*request.message_type)
            .source(&self.core.source)
            .key(request.key.as_str())
            .json(&request.payload)
            .of_saga(instruction.attributes())
            .caused_by(self.cause(cause))
            .build()
            .map_err(|error| Spoilt::Input(format!("a command is no message: {error}")))
    }

    fn reply(&self, reply: &ReplyMessage, cause: &Cause) -> Result<Message, Spoilt> {
        let correlation = &reply.correlation;
        // Its topic is as the command said it, prefix and all.
        Message::builder(&*reply.topic, REPLY_TYPE)
            .source(&self.core.source)
            .key(correlation.saga.to_string())
            .json(&reply.payload)
            .of_saga(correlation.reply_attributes(reply.answer))
            .caused_by(self.cause(cause))
            .build()
            .map_err(|error| Spoilt::Input(format!("a reply is no message: {error}")))
    }

    /// All messages of a saga are of one conversation and one trace; a timer knows neither.
    fn cause(&self, cause: &Cause) -> Cause {
        let mut of = self.origin.clone();
        of.remove(tailrace_outbox::header::CAUSATION_ID);
        of.extend(cause.iter().map(|(name, value)| (name.clone(), value.clone())));
        if let Some(conversation) = self.origin.get(tailrace_outbox::header::CORRELATION_ID) {
            of.insert(tailrace_outbox::header::CORRELATION_ID.to_owned(), conversation.clone());
        }
        of
    }
}

fn count_status(before: &Instance, after: &Instance, tally: &mut Tally) {
    let (was, is) = (before.status(), after.status());
    tally.started += u64::from(before.revision() == 0 && after.revision() > 0);
    if was == is {
        return;
    }
    match is {
        Status::Completed => tally.completed += 1,
        Status::Compensated => tally.compensated += 1,
        Status::Parked => tally.parked += 1,
        Status::Aborted => tally.aborted += 1,
        Status::Running | Status::Compensating => {}
    }
}

/// An error without what Postgres quotes of a row.
pub(super) fn told(error: &(dyn std::error::Error + 'static)) -> String {
    match error.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Database(error)) => {
            format!("SQLSTATE {}", error.code().unwrap_or_default())
        }
        _ => error.to_string(),
    }
}

/// As much of an error as is kept with the saga, without what JSON in Postgres can not hold.
fn kept(error: &str) -> String {
    let shown = |it: char| if it.is_control() { ' ' } else { it };
    error.chars().map(shown).take(ERROR_CHARS_MAX).collect()
}

async fn statement(conn: &mut PgConnection, text: &'static str) -> Result<(), Spoilt> {
    match sqlx::raw_sql(text).execute(conn).await {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(Spoilt::from(Error::database("a savepoint cannot be set or undone", error)))
        }
    }
}
