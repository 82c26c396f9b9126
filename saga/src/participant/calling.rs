//! One command whose action, or whose compensation, lies outside Postgres: prepared, called, recorded.

use std::sync::Arc;

use tailrace_idempotency::{
    BoxError, Call, CallCx, CallHandler, Consumer, Handler, Outcome, Prepared, RecordHandler,
};

use super::carry_out::{Asked, Said, Voice, keep_or_undo, release, savepoint, undo};
use super::handler::{AnyAction, AnyUndo, BoxFuture, Cx, Ran};
use super::outside::{Answered, Calling, Intent, Limits, OutwardAction, OutwardUndo, key, within};
use crate::command::Command;
use crate::correlation::{Correlation, Operation};
use crate::error::{Error, Kind};

/// How an action is done.
pub(super) enum Acting<S, C: Command> {
    Within(Arc<dyn AnyAction<S, C>>),
    Outside(Arc<dyn OutwardAction<S, C>>),
}

/// How it is undone.
pub(super) enum Undoing<S, C: Command> {
    Never,
    Within(Arc<dyn AnyUndo<S, C>>),
    Outside(Arc<dyn OutwardUndo<S, C>>),
}

/// A command with its operations, of which one at least is a call.
pub(super) struct Outward<S, C: Command> {
    pub(super) acting: Acting<S, C>,
    pub(super) undoing: Undoing<S, C>,
    pub(super) voice: Arc<Voice>,
}

/// The handle of each of its three steps.
struct Shared<S, C: Command>(Arc<Outward<S, C>>);

impl<S, C: Command> Clone for Shared<S, C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Send + Sync + 'static, C: Command> Outward<S, C> {
    pub(super) fn join(self, consumer: Consumer<S>) -> Consumer<S> {
        let limits: Vec<Limits> = self.limits().into_iter().flatten().collect();
        let shared = Shared(Arc::new(self));
        let mut call = Call::new(shared.clone(), shared.clone(), shared);
        // A message makes one call of the two.
        if let Some(time_out) = limits.iter().map(|limits| limits.time_out).max() {
            call = call.time_out(time_out);
        }
        if let Some(first) = limits.into_iter().next() {
            call = call.breaker(first.breaker);
        }
        consumer.on_call::<C, Intent, Answered>(C::TYPE, call)
    }

    fn limits(&self) -> [Option<Limits>; 2] {
        let acting = match &self.acting {
            Acting::Within(_) => None,
            Acting::Outside(outside) => Some(outside.limits()),
        };
        let undoing = match &self.undoing {
            Undoing::Never | Undoing::Within(_) => None,
            Undoing::Outside(outside) => Some(outside.limits()),
        };
        [acting, undoing]
    }

    /// What needs no call is settled here.
    async fn prepare(
        &self,
        cx: tailrace_idempotency::Cx<'_, S>,
        command: C,
    ) -> Result<Prepared<Intent>, BoxError> {
        let cause = cx.cause();
        let tailrace_idempotency::Cx { conn, meta, state, .. } = cx;
        let asked = match Asked::read(conn, meta).await? {
            Ok(asked) => asked,
            Err(outcome) => return Ok(Prepared::End(outcome)),
        };
        let said = match (asked.settled(), asked.request.operation) {
            (Some(said), _) => said,
            (None, Operation::Action) => {
                savepoint(conn).await?;
                let running = Cx::new(&mut *conn, &asked.instruction.correlation, meta, state);
                let ran: Ran<C> = match &self.acting {
                    Acting::Within(action) => action.run(running, command).await,
                    Acting::Outside(outside) => match outside.prepare(running, command).await? {
                        Ok(intent) => {
                            release(conn).await?;
                            asked.calls(conn, meta).await?;
                            return Ok(Prepared::Call(intent));
                        }
                        Err(refusal) => Ok(Err(refusal)),
                    },
                };
                keep_or_undo::<C>(conn, ran).await?
            }
            (None, Operation::Compensation) => {
                let within = match &self.undoing {
                    Undoing::Never => None,
                    Undoing::Within(undo) => Some(&**undo),
                    Undoing::Outside(outside) => {
                        let output = asked.output()?;
                        let correlation = &asked.instruction.correlation;
                        let running = Cx::new(&mut *conn, correlation, meta, state);
                        let intent = outside.prepare(running, command, output).await?;
                        asked.calls(conn, meta).await?;
                        return Ok(Prepared::Call(intent));
                    }
                };
                match undo(within, &asked, conn, meta, state, command).await? {
                    Ok(said) => said,
                    Err(outcome) => return Ok(Prepared::End(outcome)),
                }
            }
        };
        self.voice.answer(conn, &asked, said, cause).await?;
        Ok(Prepared::End(Outcome::Done))
    }

    /// The call, with the step's key in place of the message's.
    fn call<'a>(&self, mut cx: CallCx<'a, S>, intent: &Intent) -> Result<Calling<'a>, Error> {
        // It was read when the call was prepared.
        let of = Correlation::read(|name| cx.meta.header(name))?
            .ok_or_else(|| Error::new(Kind::Record, "a call is made for no saga"))?;
        cx.key = key(&of).unwrap_or(cx.key);
        let (running, limits) = match (of.operation, &self.acting, &self.undoing) {
            (Operation::Action, Acting::Outside(outside), _) => {
                (outside.call(cx, intent)?, outside.limits())
            }
            (Operation::Compensation, _, Undoing::Outside(outside)) => {
                (outside.call(cx, intent)?, outside.limits())
            }
            _ => return Err(Error::definition("the step has become one without a call")),
        };
        let both = self.limits().iter().all(Option::is_some);
        // Alone it has its time-out from the consumer, which tells it for what it is.
        if !both {
            return Ok(running);
        }
        Ok(Box::pin(within(limits.time_out, running)))
    }

    async fn record(
        &self,
        cx: tailrace_idempotency::Cx<'_, S>,
        intent: &Intent,
        answered: Answered,
    ) -> Result<(), BoxError> {
        let cause = cx.cause();
        let tailrace_idempotency::Cx { conn, meta, state, .. } = cx;
        let Some(asked) = Asked::called(conn, meta).await? else {
            let text = "a call was made for a step that does not wait for it";
            return Err(Error::new(Kind::Record, text).into());
        };
        let correlation = &asked.instruction.correlation;
        let said = match (correlation.operation, &self.acting, &self.undoing) {
            (Operation::Action, Acting::Outside(outside), _) => {
                savepoint(conn).await?;
                let running = Cx::new(&mut *conn, correlation, meta, state);
                let ran = outside.record(running, intent, answered)?.await;
                keep_or_undo::<C>(conn, ran).await?
            }
            (Operation::Compensation, _, Undoing::Outside(outside)) => {
                let running = Cx::new(&mut *conn, correlation, meta, state);
                outside.record(running, intent, answered)?.await?;
                Said::UNDONE
            }
            _ => return Err(Error::definition("the step has become one without a call").into()),
        };
        self.voice.answer(conn, &asked, said, cause).await
    }
}

impl<'a, S, C> Handler<'a, S, C, Prepared<Intent>> for Shared<S, C>
where
    S: Send + Sync + 'static,
    C: Command,
{
    type Error = BoxError;
    type Future = BoxFuture<'a, Result<Prepared<Intent>, BoxError>>;

    fn call(&self, cx: tailrace_idempotency::Cx<'a, S>, command: C) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.0.prepare(cx, command).await })
    }
}

impl<'a, S, C> CallHandler<'a, S, Intent, Answered> for Shared<S, C>
where
    S: Send + Sync + 'static,
    C: Command,
{
    type Error = BoxError;
    type Future = Calling<'a>;

    fn call(&self, cx: CallCx<'a, S>, intent: Intent) -> Self::Future {
        match self.0.call(cx, &intent) {
            Ok(running) => running,
            Err(error) => Box::pin(async { Err(error.into()) }),
        }
    }
}

impl<'a, S, C> RecordHandler<'a, S, Intent, Answered> for Shared<S, C>
where
    S: Send + Sync + 'static,
    C: Command,
{
    type Error = BoxError;
    type Future = BoxFuture<'a, Result<(), BoxError>>;

    fn record(
        &self,
        cx: tailrace_idempotency::Cx<'a, S>,
        intent: Intent,
        answered: Answered,
    ) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.0.record(cx, &intent, answered).await })
    }
}
