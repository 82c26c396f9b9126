//! Actions whose effect lies outside Postgres.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tailrace_idempotency::{
    BoxError, Breaker, Call, CallCx, CallHandler, Consumer, Handler, MessageId, Outcome, Prepared,
    RecordHandler,
};

use super::carry_out::{Asked, Voice, keep_or_undo, savepoint, undo};
use super::handler::{AnyUndo, BoxFuture, Cx};
use super::{Acts, Participant};
use crate::command::Command;
use crate::correlation::{Correlation, Operation};
use crate::error::{Error, Kind};

/// An action whose effect lies outside Postgres, such as a payment, in three steps, as a [`Call`] has them.
///
/// - `prepare: async fn(Cx<'_, S>, C) -> Result<Result<Intent, C::Refusal>, _>` runs in a transaction, once. It
///   refuses, or answers with all that the call needs, which is stored.
/// - `call: async fn(CallCx<'_, S>, Intent) -> Result<Answer<Answered>, _>` runs with no transaction open. It has to
///   pass [`CallCx::key`] to the other side as its idempotency key: it stands for saga, step and operation, and is the
///   same for every repetition and for every attempt of the saga.
/// - `record: async fn(Cx<'_, S>, Intent, Answered) -> Result<Result<C::Reply, C::Refusal>, _>` runs in a transaction,
///   once, and says what the answer means for the saga.
///
/// Until the call is recorded neither a repetition of the action nor its compensation is decided: both wait.
#[derive(Debug)]
#[must_use = "it does nothing until a participant has it"]
pub struct Outside<P, K, R> {
    prepare: P,
    call: K,
    record: R,
    time_out: Duration,
    breaker: Breaker,
}

impl<P, K, R> Outside<P, K, R> {
    /// An action of these three steps.
    pub fn new(prepare: P, call: K, record: R) -> Self {
        let time_out = Duration::from_secs(10);
        Self { prepare, call, record, time_out, breaker: Breaker::new() }
    }

    /// How long the call may take. Default: 10 s.
    pub fn time_out(mut self, time_out: Duration) -> Self {
        self.time_out = time_out;
        self
    }

    /// The breaker around the call, as with [`Call::breaker`]. Default: one of its own.
    pub fn breaker(mut self, breaker: Breaker) -> Self {
        self.breaker = breaker;
        self
    }
}

/// The first step of an [`Outside`]: any `async fn(Cx<'_, S>, C) -> Result<Result<I, C::Refusal>, impl Into<BoxError>>`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not prepare the call of `{C}` with `{I}`",
    note = "it is an `async fn(Cx<'_, State>, Command) -> Result<Result<Intent, Command::Refusal>, Error>`"
)]
pub trait Prepare<'a, S, C: Command, I>: Send + Sync {
    /// Its error.
    type Error: Into<BoxError>;
    /// The running step.
    type Future: Future<Output = Result<Result<I, C::Refusal>, Self::Error>> + Send + 'a;

    /// Starts it.
    fn run(&self, cx: Cx<'a, S>, command: C) -> Self::Future;
}

impl<'a, S, C, I, F, Fut, Err> Prepare<'a, S, C, I> for F
where
    S: 'a,
    C: Command,
    F: Fn(Cx<'a, S>, C) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Result<I, C::Refusal>, Err>> + Send + 'a,
    Err: Into<BoxError>,
{
    type Error = Err;
    type Future = Fut;

    fn run(&self, cx: Cx<'a, S>, command: C) -> Fut {
        self(cx, command)
    }
}

/// The third step of an [`Outside`]: any
/// `async fn(Cx<'_, S>, I, A) -> Result<Result<C::Reply, C::Refusal>, impl Into<BoxError>>`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not record `{A}` as what became of `{C}`",
    note = "it is an `async fn(Cx<'_, State>, Intent, Answered) -> Result<Result<Command::Reply, Command::Refusal>, Error>`"
)]
pub trait Record<'a, S, C: Command, I, A>: Send + Sync {
    /// Its error.
    type Error: Into<BoxError>;
    /// The running step.
    type Future: Future<Output = Result<Result<C::Reply, C::Refusal>, Self::Error>> + Send + 'a;

    /// Starts it.
    fn run(&self, cx: Cx<'a, S>, intent: I, answered: A) -> Self::Future;
}

impl<'a, S, C, I, A, F, Fut, Err> Record<'a, S, C, I, A> for F
where
    S: 'a,
    C: Command,
    F: Fn(Cx<'a, S>, I, A) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Result<C::Reply, C::Refusal>, Err>> + Send + 'a,
    Err: Into<BoxError>,
{
    type Error = Err;
    type Future = Fut;

    fn run(&self, cx: Cx<'a, S>, intent: I, answered: A) -> Fut {
        self(cx, intent, answered)
    }
}

/// Of the command, the intent and the result.
type Types<C, I, A> = PhantomData<fn() -> (C, I, A)>;

/// An [`Outside`] with the types of its command, its intent and its result.
pub(super) struct Outwardly<C, I, A, P, K, R> {
    pub(super) steps: Outside<P, K, R>,
    pub(super) types: Types<C, I, A>,
}

impl<S, C, I, A, P, K, R> Acts<S, C> for Outwardly<C, I, A, P, K, R>
where
    S: Send + Sync + 'static,
    C: Command,
    I: Serialize + DeserializeOwned + Send + 'static,
    A: Send + Sync + 'static,
    P: for<'a> Prepare<'a, S, C, I> + 'static,
    K: for<'a> CallHandler<'a, S, I, A> + 'static,
    R: for<'a> Record<'a, S, C, I, A> + 'static,
{
    fn join(
        self: Box<Self>,
        undo: Option<Arc<dyn AnyUndo<S, C>>>,
        voice: Arc<Voice>,
        consumer: Consumer<S>,
    ) -> Consumer<S> {
        let Outside { prepare, call, record, time_out, breaker } = self.steps;
        let prepare = Preparing {
            prepare: Arc::new(prepare),
            undo,
            voice: Arc::clone(&voice),
            types: PhantomData,
        };
        let record = Recording { record: Arc::new(record), voice, types: PhantomData };
        let call = Call::new(prepare, Calling(call), record).time_out(time_out).breaker(breaker);
        consumer.on_call::<C, I, A>(C::TYPE, call)
    }
}

impl<S: Send + Sync + 'static> Participant<S> {
    /// Registers the action of a command whose effect lies outside Postgres.
    pub fn call<C, I, A>(
        self,
        steps: Outside<
            impl for<'a> Prepare<'a, S, C, I> + 'static,
            impl for<'a> CallHandler<'a, S, I, A> + 'static,
            impl for<'a> Record<'a, S, C, I, A> + 'static,
        >,
    ) -> super::Handling<S, C>
    where
        C: Command,
        I: Serialize + DeserializeOwned + Send + 'static,
        A: Send + Sync + 'static,
    {
        self.acts(Box::new(Outwardly { steps, types: PhantomData }))
    }
}

/// The first step: what needs no call is settled here.
struct Preparing<S, C: Command, I, P> {
    prepare: Arc<P>,
    undo: Option<Arc<dyn AnyUndo<S, C>>>,
    voice: Arc<Voice>,
    types: PhantomData<fn() -> I>,
}

impl<'a, S, C, I, P> Handler<'a, S, C, Prepared<I>> for Preparing<S, C, I, P>
where
    S: Send + Sync + 'static,
    C: Command,
    I: Send + 'static,
    P: for<'b> Prepare<'b, S, C, I> + 'static,
{
    type Error = BoxError;
    type Future = BoxFuture<'a, Result<Prepared<I>, BoxError>>;

    fn call(&self, cx: tailrace_idempotency::Cx<'a, S>, command: C) -> Self::Future {
        let (steps, compensation, voice) =
            (Arc::clone(&self.prepare), self.undo.clone(), Arc::clone(&self.voice));
        Box::pin(async move {
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
                    match steps.run(running, command).await.map_err(Into::into)? {
                        Ok(intent) => {
                            asked.calls(conn).await?;
                            return Ok(Prepared::Call(intent));
                        }
                        Err(refusal) => keep_or_undo::<C>(conn, Ok(Err(refusal))).await?,
                    }
                }
                (None, Operation::Compensation) => {
                    let undone =
                        undo(compensation.as_deref(), &asked, conn, meta, state, command).await?;
                    match undone {
                        Ok(said) => said,
                        Err(outcome) => return Ok(Prepared::End(outcome)),
                    }
                }
            };
            voice.answer(conn, &asked, said, cause).await?;
            Ok(Prepared::End(Outcome::Done))
        })
    }
}

/// The second step, with the step's key in place of the message's.
struct Calling<K>(K);

impl<'a, S, I, A, K> CallHandler<'a, S, I, A> for Calling<K>
where
    S: 'a,
    I: Send + 'a,
    K: CallHandler<'a, S, I, A>,
{
    type Error = K::Error;
    type Future = K::Future;

    fn call(&self, mut cx: CallCx<'a, S>, intent: I) -> Self::Future {
        // It was read when the call was prepared.
        if let Ok(Some(correlation)) = Correlation::read(|name| cx.meta.header(name)) {
            cx.key = key(&correlation).unwrap_or(cx.key);
        }
        self.0.call(cx, intent)
    }
}

/// The key of an operation: each attempt of a saga is another message, and has the same one.
fn key(of: &Correlation) -> Option<MessageId> {
    format!("{}/{}/{}", of.saga, of.step, of.operation.as_str()).parse().ok()
}

/// The third step.
struct Recording<C, R> {
    record: Arc<R>,
    voice: Arc<Voice>,
    types: PhantomData<fn() -> C>,
}

impl<'a, S, C, I, A, R> RecordHandler<'a, S, I, A> for Recording<C, R>
where
    S: Send + Sync + 'static,
    C: Command,
    I: Send + 'static,
    A: Send + 'static,
    R: for<'b> Record<'b, S, C, I, A> + 'static,
{
    type Error = BoxError;
    type Future = BoxFuture<'a, Result<(), BoxError>>;

    fn record(&self, cx: tailrace_idempotency::Cx<'a, S>, intent: I, answered: A) -> Self::Future {
        let (record, voice) = (Arc::clone(&self.record), Arc::clone(&self.voice));
        Box::pin(async move {
            let cause = cx.cause();
            let tailrace_idempotency::Cx { conn, meta, state, .. } = cx;
            let Some(asked) = Asked::called(conn, meta).await? else {
                let text = "a call was made for a step that does not wait for it";
                return Err(Error::new(Kind::Record, text).into());
            };
            savepoint(conn).await?;
            let running = Cx::new(&mut *conn, &asked.instruction.correlation, meta, state);
            let ran = record.run(running, intent, answered).await.map_err(Into::into);
            let said = keep_or_undo::<C>(conn, ran).await?;
            voice.answer(conn, &asked, said, cause).await
        })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::correlation::{Epoch, SagaId};

    #[test]
    fn the_key_of_a_call_is_that_of_the_step_and_not_of_the_attempt() {
        let of = |operation, epoch| Correlation {
            saga: SagaId::from_uuid(Uuid::from_u128(7)),
            definition: "create-order/4".into(),
            step: "capture-payment".into(),
            operation,
            epoch: Epoch::new(epoch),
        };

        let first = key(&of(Operation::Action, 1)).unwrap();

        assert_eq!(key(&of(Operation::Action, 3)).unwrap(), first);
        assert_ne!(key(&of(Operation::Compensation, 1)).unwrap(), first);
    }
}
