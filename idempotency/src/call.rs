//! Effects outside Postgres: prepared in one transaction, made outside of any, recorded in another.

use std::any::{Any, TypeId};
use std::borrow::Cow;
use std::marker::PhantomData;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;

use crate::breaker::Breaker;
use crate::error::{BoxError, Error, Kind};
use crate::handler::{BoxFuture, Cx, Handler, Outcome};
use crate::message_id::MessageId;
use crate::record::{Meta, Record};
use crate::route::{Decode, Decoder, Outcall, Outside, Route, Started, failed};

/// A handler whose effect lies outside Postgres, in three steps: `prepare`, `call` and `record`.
///
/// - `prepare: async fn(Cx<'_, S>, Message) -> Result<Prepared<Intent>, _>` runs in a transaction, once; a dead
///   letter that a person retries begins anew. It answers with all that the call needs, which is stored as JSON in the
///   same transaction.
/// - `call: async fn(CallCx<'_, S>, Intent) -> Result<Answer<Answered>, _>` runs with no transaction open. It has to
///   pass [`CallCx::key`] to the other side as its idempotency key.
/// - `record: async fn(Cx<'_, S>, Intent, Answered) -> Result<(), _>` runs in a transaction, in which the message
///   counts as applied, once.
///
/// Where the process dies, the partition moves, or recording fails, the call is repeated with the same intent and the
/// same key: it happens at least once, and its effect once where the other side knows the key again. Two processes may
/// make the same call at one time for a moment.
///
/// Messages of a key wait for the call before them; calls of different keys run at once, up to
/// [`Config::calls_max`](crate::Config::calls_max). An error, a panic or the time-out is an attempt of its message that
/// failed, as with any handler ([`OnFailure`](crate::OnFailure)), and a failure to the [`Breaker`].
///
/// What the other side refuses for reasons of the business, such as a card that is declined, is a result to be recorded
/// and no [`Answer::Reject`].
#[derive(Debug)]
#[must_use = "a call does nothing until it is registered by Consumer::on_call"]
pub struct Call<P, C, R> {
    prepare: P,
    call: C,
    record: R,
    limits: Limits,
}

impl<P, C, R> Call<P, C, R> {
    /// A call of these three steps.
    pub fn new(prepare: P, call: C, record: R) -> Self {
        let limits = Limits { time_out: Duration::from_secs(10), breaker: Breaker::new() };
        Self { prepare, call, record, limits }
    }

    /// How long the call may take. Default: 10 s.
    pub fn time_out(mut self, time_out: Duration) -> Self {
        self.limits.time_out = time_out;
        self
    }

    /// The breaker around the call. Give a clone of one to all types that call the same service. Default: one of its
    /// own.
    pub fn breaker(mut self, breaker: Breaker) -> Self {
        self.limits.breaker = breaker;
        self
    }
}

/// What bounds a call.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) time_out: Duration,
    pub(crate) breaker: Breaker,
}

impl Limits {
    pub(crate) fn faults(&self) -> Vec<&'static str> {
        let mut faults = self.breaker.faults();
        if self.time_out.is_zero() {
            faults.push("time_out must not be zero");
        }
        faults
    }
}

/// How the first step of a [`Call`] ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Prepared<I> {
    /// The call is made, with this.
    Call(I),
    /// No call is made: the message ends here, as with a [`Handler`].
    End(Outcome),
}

impl<I> From<Outcome> for Prepared<I> {
    fn from(outcome: Outcome) -> Self {
        Self::End(outcome)
    }
}

/// What a call works with: the idempotency key, the record's meta data and the service's shared state.
#[derive(Debug)]
#[non_exhaustive]
pub struct CallCx<'a, S = ()> {
    /// The message's id, the same whenever this call is made: the idempotency key to pass on.
    pub key: MessageId,
    /// What the record says about itself.
    pub meta: &'a Meta,
    /// The state given to [`Config::state`](crate::Config::state).
    pub state: &'a S,
}

impl<S> Clone for CallCx<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for CallCx<'_, S> {}

/// How the call of a [`Call`] ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer<R> {
    /// It was made, with this result to record.
    Done(R),
    /// Not yet: it is repeated after this time, with the same key. It counts as an attempt, and not as a failure to the
    /// breaker.
    Retry {
        /// The time until the next attempt.
        after: Duration,
    },
    /// Never: the message becomes a dead letter. Its key goes on.
    Reject {
        /// For people, stored with the dead letter; it must not repeat the payload.
        reason: Cow<'static, str>,
    },
}

impl<R> Answer<R> {
    /// [`Answer::Retry`].
    pub fn retry(after: Duration) -> Self {
        Self::Retry { after }
    }

    /// [`Answer::Reject`].
    pub fn reject(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Reject { reason: reason.into() }
    }

    /// The same with another result.
    pub fn map<T>(self, map: impl FnOnce(R) -> T) -> Answer<T> {
        match self {
            Self::Done(result) => Answer::Done(map(result)),
            Self::Retry { after } => Answer::Retry { after },
            Self::Reject { reason } => Answer::Reject { reason },
        }
    }
}

/// The second step of a [`Call`]: any `async fn(CallCx<'_, S>, I) -> Result<Answer<R>, impl Into<BoxError>>`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not call with `{I}` and answer with `{R}`",
    note = "it is an `async fn(CallCx<'_, State>, Intent) -> Result<Answer<Answered>, Error>`, `Intent` as `prepare` answers with it"
)]
pub trait CallHandler<'a, S, I, R>: Send + Sync {
    /// The call's error.
    type Error: Into<BoxError>;
    /// The running call.
    type Future: Future<Output = Result<Answer<R>, Self::Error>> + Send + 'a;

    /// Starts the call.
    fn call(&self, cx: CallCx<'a, S>, intent: I) -> Self::Future;
}

impl<'a, S, I, R, F, Fut, Err> CallHandler<'a, S, I, R> for F
where
    S: 'a,
    F: Fn(CallCx<'a, S>, I) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Answer<R>, Err>> + Send + 'a,
    Err: Into<BoxError>,
{
    type Error = Err;
    type Future = Fut;

    fn call(&self, cx: CallCx<'a, S>, intent: I) -> Fut {
        self(cx, intent)
    }
}

/// The third step of a [`Call`]: any `async fn(Cx<'_, S>, I, R) -> Result<(), impl Into<BoxError>>`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not record `{R}`",
    note = "it is an `async fn(Cx<'_, State>, Intent, Answered) -> Result<(), Error>`, `Answered` as the call answers with it"
)]
pub trait RecordHandler<'a, S, I, R>: Send + Sync {
    /// The handler's error.
    type Error: Into<BoxError>;
    /// The running handler.
    type Future: Future<Output = Result<(), Self::Error>> + Send + 'a;

    /// Starts the handler.
    fn record(&self, cx: Cx<'a, S>, intent: I, result: R) -> Self::Future;
}

impl<'a, S, I, R, F, Fut, Err> RecordHandler<'a, S, I, R> for F
where
    S: 'a,
    F: Fn(Cx<'a, S>, I, R) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), Err>> + Send + 'a,
    Err: Into<BoxError>,
{
    type Error = Err;
    type Future = Fut;

    fn record(&self, cx: Cx<'a, S>, intent: I, result: R) -> Fut {
        self(cx, intent, result)
    }
}

/// A [`Call`] with the types of its message, its intent and its result.
pub(crate) struct TypedCall<E, I, A, P, C, R> {
    decoder: Decoder<E>,
    steps: Call<P, C, R>,
    types: PhantomData<fn() -> (I, A)>,
}

impl<E: 'static, I, A, P, C, R> TypedCall<E, I, A, P, C, R> {
    pub(crate) fn new(decode: Decode<E>, steps: Call<P, C, R>) -> Self {
        Self { decoder: Decoder::new(decode), steps, types: PhantomData }
    }
}

impl<S, E, I, A, P, C, R> Route<S> for TypedCall<E, I, A, P, C, R>
where
    S: Sync + 'static,
    E: Send + 'static,
    I: Serialize + DeserializeOwned + Send + 'static,
    A: Send + Sync + 'static,
    P: for<'a> Handler<'a, S, E, Prepared<I>>,
    C: for<'a> CallHandler<'a, S, I, A>,
    R: for<'a> RecordHandler<'a, S, I, A>,
{
    fn takes_batches(&self) -> bool {
        false
    }

    fn payload_type(&self) -> TypeId {
        TypeId::of::<E>()
    }

    fn upcast(&mut self, message_type: String, decode: Box<dyn Any>) {
        self.decoder.upcast(message_type, decode);
    }

    fn start<'a>(
        &'a self,
        _: &'a mut PgConnection,
        _: &'a S,
        _: &'a [&'a Record],
        _: &'a [tracing::Span],
    ) -> Started<'a> {
        Started::wrongly()
    }

    fn outside(&self) -> Option<&dyn Outside<S>> {
        Some(self)
    }
}

impl<S, E, I, A, P, C, R> Outside<S> for TypedCall<E, I, A, P, C, R>
where
    S: Sync + 'static,
    E: Send + 'static,
    I: Serialize + DeserializeOwned + Send + 'static,
    A: Send + Sync + 'static,
    P: for<'a> Handler<'a, S, E, Prepared<I>>,
    C: for<'a> CallHandler<'a, S, I, A>,
    R: for<'a> RecordHandler<'a, S, I, A>,
{
    fn limits(&self) -> &Limits {
        &self.steps.limits
    }

    fn prepare<'a>(
        &'a self,
        cx: Cx<'a, S>,
        record: &'a Record,
    ) -> BoxFuture<'a, Result<Prepared<Vec<u8>>, Error>> {
        let meta = &record.meta;
        let running =
            self.decoder.decode(record).map(|message| self.steps.prepare.call(cx, message));
        Box::pin(async move {
            match running?.await.map_err(|error| failed(meta, 1).caused_by(error))? {
                Prepared::Call(intent) => serde_json::to_vec(&intent)
                    .map(Prepared::Call)
                    .map_err(|error| failed(meta, 1).caused_by(error)),
                Prepared::End(outcome) => Ok(Prepared::End(outcome)),
            }
        })
    }

    fn call<'a>(
        &'a self,
        meta: &'a Meta,
        state: &'a S,
        intent: &'a [u8],
    ) -> BoxFuture<'a, Result<Answer<Outcall>, Error>> {
        let cx = CallCx { key: meta.message_id(), meta, state };
        let running = read(meta, intent).map(|intent| self.steps.call.call(cx, intent));
        Box::pin(async move {
            let answer = running?.await.map_err(|error| failed(meta, 1).caused_by(error))?;
            Ok(answer.map(|result| -> Outcall { Box::new(result) }))
        })
    }

    fn record<'a>(
        &'a self,
        cx: Cx<'a, S>,
        intent: &'a [u8],
        result: Outcall,
    ) -> BoxFuture<'a, Result<(), Error>> {
        let meta = cx.meta;
        let running = result
            .downcast::<A>()
            .map_err(|_| Error::new(Kind::Internal, "a call has the result of another one"))
            .and_then(|result| {
                let intent = read(meta, intent)?;
                Ok(self.steps.record.record(cx, intent, *result))
            });
        Box::pin(async move { running?.await.map_err(|error| failed(meta, 1).caused_by(error)) })
    }
}

/// What was prepared, perhaps by another version of the service.
fn read<I: DeserializeOwned>(meta: &Meta, intent: &[u8]) -> Result<I, Error> {
    serde_json::from_slice(intent).map_err(|error| {
        let text = format!("the intent of {} does not decode", meta.message_type());
        // The text of the error may quote the intent.
        let place = format!("line {}, column {}", error.line(), error.column());
        Error::new(Kind::Handler, text)
            .caused_by(place)
            .at(meta.position())
            .about(meta.message_id())
    })
}
