//! Actions and compensations whose effect lies outside Postgres.

use std::any::Any;
use std::marker::PhantomData;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tailrace_idempotency::{Answer, BoxError, Breaker, CallCx, CallHandler, MessageId, Outcome};

use super::handler::{BoxFuture, Cx, Ran};
use crate::command::Command;
use crate::correlation::{Correlation, Epoch, Operation};
use crate::error::{Error, Kind};

/// An action or a compensation whose effect lies outside Postgres, such as a payment, in three steps, as a
/// [`Call`](tailrace_idempotency::Call) has them.
///
/// - `prepare` runs in a transaction, once, and answers with all that the call needs, which is stored.
/// - `call: async fn(CallCx<'_, S>, Intent) -> Result<Answer<Answered>, _>` runs with no transaction open. It has to
///   pass [`CallCx::key`] to the other side as its idempotency key: it stands for saga, step and operation, and is the
///   same for every repetition and for every attempt of the saga. An action that was refused and is asked for again has
///   another one, so that a provider which remembers refusals by their keys is asked anew.
/// - `record` runs in a transaction, once, and says what the answer means for the saga.
///
/// What the first and the last one look like says the place that takes it:
/// [`Participant::call`](crate::Participant::call) and [`Handling::undo_call`](super::Handling::undo_call), and of a
/// choreography [`Service::call`](crate::choreography::Service::call) and
/// [`Service::undo_call`](crate::choreography::Service::undo_call).
///
/// Until the call is recorded nothing is decided about its step: repetitions, and what is to happen in the other
/// direction, wait, which is no attempt of theirs ([`Outcome::Wait`]). Where the message that makes the call is stuck or has
/// become a dead letter, that is until a person has it tried again; a dead letter is prepared anew then.
#[derive(Debug)]
#[must_use = "it does nothing until a participant or a service has it"]
pub struct Outside<P, K, R> {
    prepare: P,
    call: K,
    record: R,
    limits: Limits,
}

/// What bounds a call.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) time_out: Duration,
    pub(crate) breaker: Breaker,
}

impl<P, K, R> Outside<P, K, R> {
    /// One of these three steps.
    pub fn new(prepare: P, call: K, record: R) -> Self {
        let limits = Limits { time_out: Duration::from_secs(10), breaker: Breaker::new() };
        Self { prepare, call, record, limits }
    }

    /// How long the call may take. Default: 10 s.
    pub fn time_out(mut self, time_out: Duration) -> Self {
        self.limits.time_out = time_out;
        self
    }

    /// The breaker around the call, as with [`Call::breaker`](tailrace_idempotency::Call::breaker). Where one message can
    /// lead to several calls (an action and its compensation, or several steps of a service about one event), that of the
    /// first one stands around all of them.
    ///
    /// It stands around all that such a message is about, since whether a call is needed is found in the transaction which
    /// prepares it: while it is open, messages of that type wait also where they end without a call. So a compensation
    /// within Postgres of an action that is a call, and what a service does about the event beside a call, are done once
    /// the other side works again, or is tried again. Default: one of its own.
    pub fn breaker(mut self, breaker: Breaker) -> Self {
        self.limits.breaker = breaker;
        self
    }
}

/// The first step of an action: any `async fn(Cx<'_, S>, C) -> Result<Result<I, C::Refusal>, impl Into<BoxError>>`.
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

/// The third step of an action: any
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

/// The first step of a compensation: any `async fn(Cx<'_, S>, C, C::Reply) -> Result<I, impl Into<BoxError>>`.
///
/// It is given the command and what the action has answered, and runs after an action that was done and in no other case.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not prepare the call that undoes `{C}` with `{I}`",
    note = "it is an `async fn(Cx<'_, State>, Command, Command::Reply) -> Result<Intent, Error>`"
)]
pub trait PrepareUndo<'a, S, C: Command, I>: Send + Sync {
    /// Its error.
    type Error: Into<BoxError>;
    /// The running step.
    type Future: Future<Output = Result<I, Self::Error>> + Send + 'a;

    /// Starts it.
    fn run(&self, cx: Cx<'a, S>, command: C, output: C::Reply) -> Self::Future;
}

impl<'a, S, C, I, F, Fut, Err> PrepareUndo<'a, S, C, I> for F
where
    S: 'a,
    C: Command,
    F: Fn(Cx<'a, S>, C, C::Reply) -> Fut + Send + Sync,
    Fut: Future<Output = Result<I, Err>> + Send + 'a,
    Err: Into<BoxError>,
{
    type Error = Err;
    type Future = Fut;

    fn run(&self, cx: Cx<'a, S>, command: C, output: C::Reply) -> Fut {
        self(cx, command, output)
    }
}

/// The third step of a compensation: any `async fn(Cx<'_, S>, I, A) -> Result<(), impl Into<BoxError>>`. It cannot refuse.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not record `{A}` as what became of a compensation",
    note = "it is an `async fn(Cx<'_, State>, Intent, Answered) -> Result<(), Error>`"
)]
pub trait RecordUndo<'a, S, I, A>: Send + Sync {
    /// Its error.
    type Error: Into<BoxError>;
    /// The running step.
    type Future: Future<Output = Result<(), Self::Error>> + Send + 'a;

    /// Starts it.
    fn run(&self, cx: Cx<'a, S>, intent: I, answered: A) -> Self::Future;
}

impl<'a, S, I, A, F, Fut, Err> RecordUndo<'a, S, I, A> for F
where
    S: 'a,
    F: Fn(Cx<'a, S>, I, A) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), Err>> + Send + 'a,
    Err: Into<BoxError>,
{
    type Error = Err;
    type Future = Fut;

    fn run(&self, cx: Cx<'a, S>, intent: I, answered: A) -> Fut {
        self(cx, intent, answered)
    }
}

/// What a call is made with, as it is stored.
pub(crate) type Intent = Box<RawValue>;

/// What a call has answered, without its type.
pub(crate) type Answered = Box<dyn Any + Send + Sync>;

pub(crate) type Calling<'a> = BoxFuture<'a, Result<Answer<Answered>, BoxError>>;

/// The second step, without its types.
pub(crate) trait AnyCall<S>: Send + Sync {
    /// Fails where the intent is none of its own.
    fn call<'a>(&self, cx: CallCx<'a, S>, intent: &RawValue) -> Result<Calling<'a>, Error>;

    fn limits(&self) -> Limits;
}

/// An action in three steps, without their types.
pub(super) trait OutwardAction<S, C: Command>: AnyCall<S> {
    fn prepare<'a>(
        &self,
        cx: Cx<'a, S>,
        command: C,
    ) -> BoxFuture<'a, Result<Result<Intent, C::Refusal>, BoxError>>;

    fn record<'a>(&self, cx: Cx<'a, S>, intent: &RawValue, answered: Answered) -> Recording<'a, C>;
}

/// What an action is recorded as, once that has ended.
pub(super) type Recording<'a, C> = Result<BoxFuture<'a, Ran<C>>, Error>;

/// A compensation in three steps, without their types.
pub(super) trait OutwardUndo<S, C: Command>: AnyCall<S> {
    fn prepare<'a>(
        &self,
        cx: Cx<'a, S>,
        command: C,
        output: C::Reply,
    ) -> BoxFuture<'a, Result<Intent, BoxError>>;

    fn record<'a>(
        &self,
        cx: Cx<'a, S>,
        intent: &RawValue,
        answered: Answered,
    ) -> Result<BoxFuture<'a, Result<(), BoxError>>, Error>;
}

/// An [`Outside`] with the types of its intent and its result.
pub(crate) struct Outwardly<I, A, P, K, R> {
    pub(crate) prepare: P,
    call: K,
    pub(crate) record: R,
    limits: Limits,
    types: PhantomData<fn() -> (I, A)>,
}

impl<I, A, P, K, R> Outwardly<I, A, P, K, R> {
    pub(crate) fn new(steps: Outside<P, K, R>) -> Self {
        let Outside { prepare, call, record, limits } = steps;
        Self { prepare, call, record, limits, types: PhantomData }
    }
}

impl<S, I, A, P, K, R> AnyCall<S> for Outwardly<I, A, P, K, R>
where
    S: Sync + 'static,
    I: DeserializeOwned + Send + 'static,
    A: Send + Sync + 'static,
    P: Send + Sync,
    K: for<'a> CallHandler<'a, S, I, A>,
    R: Send + Sync,
{
    fn call<'a>(&self, cx: CallCx<'a, S>, intent: &RawValue) -> Result<Calling<'a>, Error> {
        let running = self.call.call(cx, read(intent)?);
        Ok(Box::pin(async move {
            let answer = running.await.map_err(Into::into)?;
            Ok(answer.map(|answered| -> Answered { Box::new(answered) }))
        }))
    }

    fn limits(&self) -> Limits {
        self.limits.clone()
    }
}

impl<S, C, I, A, P, K, R> OutwardAction<S, C> for Outwardly<I, A, P, K, R>
where
    S: Sync + 'static,
    C: Command,
    I: Serialize + DeserializeOwned + Send + 'static,
    A: Send + Sync + 'static,
    P: for<'a> Prepare<'a, S, C, I>,
    K: for<'a> CallHandler<'a, S, I, A>,
    R: for<'a> Record<'a, S, C, I, A>,
{
    fn prepare<'a>(
        &self,
        cx: Cx<'a, S>,
        command: C,
    ) -> BoxFuture<'a, Result<Result<Intent, C::Refusal>, BoxError>> {
        let running = self.prepare.run(cx, command);
        Box::pin(async move {
            Ok(match running.await.map_err(Into::into)? {
                Ok(intent) => Ok(written(&intent)?),
                Err(refusal) => Err(refusal),
            })
        })
    }

    fn record<'a>(&self, cx: Cx<'a, S>, intent: &RawValue, answered: Answered) -> Recording<'a, C> {
        let running = self.record.run(cx, read(intent)?, own(answered)?);
        Ok(Box::pin(async move { running.await.map_err(Into::into) }))
    }
}

impl<S, C, I, A, P, K, R> OutwardUndo<S, C> for Outwardly<I, A, P, K, R>
where
    S: Sync + 'static,
    C: Command,
    I: Serialize + DeserializeOwned + Send + 'static,
    A: Send + Sync + 'static,
    P: for<'a> PrepareUndo<'a, S, C, I>,
    K: for<'a> CallHandler<'a, S, I, A>,
    R: for<'a> RecordUndo<'a, S, I, A>,
{
    fn prepare<'a>(
        &self,
        cx: Cx<'a, S>,
        command: C,
        output: C::Reply,
    ) -> BoxFuture<'a, Result<Intent, BoxError>> {
        let running = self.prepare.run(cx, command, output);
        Box::pin(async move { Ok(written(&running.await.map_err(Into::into)?)?) })
    }

    fn record<'a>(
        &self,
        cx: Cx<'a, S>,
        intent: &RawValue,
        answered: Answered,
    ) -> Result<BoxFuture<'a, Result<(), BoxError>>, Error> {
        let running = self.record.run(cx, read(intent)?, own(answered)?);
        Ok(Box::pin(async move { running.await.map_err(Into::into) }))
    }
}

pub(crate) fn written(intent: &impl Serialize) -> Result<Intent, Error> {
    serde_json::value::to_raw_value(intent).map_err(|error| {
        Error::new(Kind::Unreadable, "the intent of a call does not encode").caused_by(error)
    })
}

pub(crate) fn read<I: DeserializeOwned>(intent: &RawValue) -> Result<I, Error> {
    serde_json::from_str(intent.get()).map_err(|error| {
        // The text of the error may quote the intent.
        let place = format!("line {}, column {}", error.line(), error.column());
        Error::new(Kind::Unreadable, "the intent of a call does not decode").caused_by(place)
    })
}

pub(crate) fn own<A: 'static>(answered: Answered) -> Result<A, Error> {
    let own = answered.downcast::<A>();
    own.map(|own| *own).map_err(|_| Error::definition("a call has the answer of another one"))
}

/// The key of an operation: each attempt of a saga is another message, and has the same one.
///
/// An action that was refused and is asked for again, in a higher epoch, is another wish: the other side may remember its
/// refusal by the key, or refuse another body under it. It is made only once the refusal is recorded, so that nothing is
/// there that the old key would find. A compensation cannot be refused, whatever epoch it is asked for in.
pub(crate) fn key(of: &Correlation) -> Option<MessageId> {
    let Correlation { saga, step, operation, epoch, .. } = of;
    let key = format!("{saga}/{step}/{}", operation.as_str());
    let key = match operation {
        Operation::Action if *epoch > Epoch::FIRST => format!("{key}/{epoch}"),
        Operation::Action | Operation::Compensation => key,
    };
    key.parse().ok()
}

/// What becomes of a message that meets a call of its step. The call's message has bounds of its own, and ends, or a person
/// ends it: until then this one is not to be given up, since it may be the only one that undoes what the call does.
pub(crate) fn waits(step: &str) -> Outcome {
    Outcome::wait(format!("a call of {step} was begun and is not recorded yet"))
}

/// Makes one of several calls about a message, which have a time-out together, within its own.
pub(crate) async fn within<T>(
    time_out: Duration,
    call: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    match tokio::time::timeout(time_out, call).await {
        Ok(answer) => answer,
        Err(_) => Err("the call takes longer than its time-out".into()),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::correlation::SagaId;

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

        // Calls of an older release that are under way have this one.
        let text = "00000000-0000-0000-0000-000000000007/capture-payment/action";
        assert_eq!(first, text.parse().unwrap());
        // Whatever the version of the definition that asks.
        let migrated =
            Correlation { definition: "create-order/5".into(), ..of(Operation::Action, 1) };
        assert_eq!(key(&migrated).unwrap(), first);
        let again = key(&of(Operation::Action, 2)).unwrap();
        let once_more = key(&of(Operation::Action, 3)).unwrap();
        assert!(again != first && once_more != first && once_more != again);
        let undone = key(&of(Operation::Compensation, 2)).unwrap();
        assert_ne!(undone, first);
        assert_eq!(key(&of(Operation::Compensation, 3)).unwrap(), undone);
    }
}
