//! Steps and compensations of a choreography whose effect lies outside Postgres.

use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tailrace_idempotency::{BoxError, CallCx, CallHandler};

use super::reaction::{Reaction, Running, decoded};
use crate::correlation::Operation;
use crate::error::Error;
use crate::participant::outside::{
    Answered, AnyCall, Calling, Intent, Limits, Outside, Outwardly, own, read, written,
};
use crate::participant::{BoxFuture, Cx};

/// The first step of an [`Outside`] in a choreography: any
/// `async fn(Cx<'_, S>, E) -> Result<Result<I, Reaction>, impl Into<BoxError>>`.
///
/// It answers with all that the call needs; or with what has come of the step, where no call is needed for that.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not prepare a call about `{E}` with `{I}`",
    note = "it is an `async fn(Cx<'_, State>, Event) -> Result<Result<Intent, Reaction>, Error>`"
)]
pub trait PrepareReaction<'a, S, E, I>: Send + Sync {
    /// Its error.
    type Error: Into<BoxError>;
    /// The running step.
    type Future: Future<Output = Result<Result<I, Reaction>, Self::Error>> + Send + 'a;

    /// Starts it.
    fn run(&self, cx: Cx<'a, S>, event: E) -> Self::Future;
}

impl<'a, S, E, I, F, Fut, Err> PrepareReaction<'a, S, E, I> for F
where
    S: 'a,
    F: Fn(Cx<'a, S>, E) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Result<I, Reaction>, Err>> + Send + 'a,
    Err: Into<BoxError>,
{
    type Error = Err;
    type Future = Fut;

    fn run(&self, cx: Cx<'a, S>, event: E) -> Fut {
        self(cx, event)
    }
}

/// The third step of an [`Outside`] in a choreography: any
/// `async fn(Cx<'_, S>, I, A) -> Result<Reaction, impl Into<BoxError>>`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not record `{A}` as what has come of a step",
    note = "it is an `async fn(Cx<'_, State>, Intent, Answered) -> Result<Reaction, Error>`"
)]
pub trait RecordReaction<'a, S, I, A>: Send + Sync {
    /// Its error.
    type Error: Into<BoxError>;
    /// The running step.
    type Future: Future<Output = Result<Reaction, Self::Error>> + Send + 'a;

    /// Starts it.
    fn run(&self, cx: Cx<'a, S>, intent: I, answered: A) -> Self::Future;
}

impl<'a, S, I, A, F, Fut, Err> RecordReaction<'a, S, I, A> for F
where
    S: 'a,
    F: Fn(Cx<'a, S>, I, A) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Reaction, Err>> + Send + 'a,
    Err: Into<BoxError>,
{
    type Error = Err;
    type Future = Fut;

    fn run(&self, cx: Cx<'a, S>, intent: I, answered: A) -> Fut {
        self(cx, intent, answered)
    }
}

/// A call that is due about an event, as it is stored.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Due {
    /// The step that is done or undone.
    pub(super) step: Box<str>,
    pub(super) operation: Operation,
    pub(super) intent: Intent,
}

/// What a step has come to in its first step.
pub(super) type Begun = Result<Intent, Reaction>;

/// An [`Outside`] without its types.
pub(super) trait Outward<S>: AnyCall<S> {
    /// Fails where the payload is none for it.
    fn prepare<'a>(
        &self,
        cx: Cx<'a, S>,
        payload: &[u8],
    ) -> Result<BoxFuture<'a, Result<Begun, BoxError>>, Error>;

    /// Fails where intent and answer are none of its own.
    fn record<'a>(
        &self,
        cx: Cx<'a, S>,
        intent: &RawValue,
        answered: Answered,
    ) -> Result<Running<'a>, Error>;
}

/// An [`Outside`] with its types, and that of its event.
pub(super) struct About<E, I, A, P, K, R> {
    steps: Outwardly<I, A, P, K, R>,
    event: PhantomData<fn() -> E>,
}

impl<E, I, A, P, K, R> About<E, I, A, P, K, R> {
    pub(super) fn new(steps: Outside<P, K, R>) -> Self {
        Self { steps: Outwardly::new(steps), event: PhantomData }
    }
}

impl<S, E, I, A, P, K, R> AnyCall<S> for About<E, I, A, P, K, R>
where
    S: Sync + 'static,
    I: DeserializeOwned + Send + 'static,
    A: Send + Sync + 'static,
    P: Send + Sync,
    K: for<'a> CallHandler<'a, S, I, A>,
    R: Send + Sync,
{
    fn call<'a>(&self, cx: CallCx<'a, S>, intent: &RawValue) -> Result<Calling<'a>, Error> {
        self.steps.call(cx, intent)
    }

    fn limits(&self) -> Limits {
        AnyCall::<S>::limits(&self.steps)
    }
}

impl<S, E, I, A, P, K, R> Outward<S> for About<E, I, A, P, K, R>
where
    S: Sync + 'static,
    E: DeserializeOwned + 'static,
    I: Serialize + DeserializeOwned + Send + 'static,
    A: Send + Sync + 'static,
    P: for<'a> PrepareReaction<'a, S, E, I>,
    K: for<'a> CallHandler<'a, S, I, A>,
    R: for<'a> RecordReaction<'a, S, I, A>,
{
    fn prepare<'a>(
        &self,
        cx: Cx<'a, S>,
        payload: &[u8],
    ) -> Result<BoxFuture<'a, Result<Begun, BoxError>>, Error> {
        let running = self.steps.prepare.run(cx, decoded(payload)?);
        Ok(Box::pin(async move {
            Ok(match running.await.map_err(Into::into)? {
                Ok(intent) => Ok(written(&intent)?),
                Err(reaction) => Err(reaction),
            })
        }))
    }

    fn record<'a>(
        &self,
        cx: Cx<'a, S>,
        intent: &RawValue,
        answered: Answered,
    ) -> Result<Running<'a>, Error> {
        let running = self.steps.record.run(cx, read(intent)?, own(answered)?);
        Ok(Box::pin(async move { running.await.map_err(Into::into) }))
    }
}
