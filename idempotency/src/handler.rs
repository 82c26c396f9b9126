//! The shape of a handler, and the registry that finds one for a record.

use std::borrow::Cow;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use sqlx::PgConnection;
use tracing::Span;

use crate::error::BoxError;
use crate::record::Meta;

/// What a handler works with: the transaction, the record's meta data and the service's shared state.
#[derive(Debug)]
#[non_exhaustive]
pub struct Cx<'a, S = ()> {
    /// The connection inside the batch's transaction. Savepoints (`conn.begin()`) are allowed, a few at a time;
    /// to commit or to roll back is not and halts the consumer. A statement that failed has aborted the transaction: pass
    /// its error on, or put the statement behind a savepoint.
    pub conn: &'a mut PgConnection,
    /// What the record says about itself.
    pub meta: &'a Meta,
    /// The state given to [`Config::state`](crate::Config::state).
    pub state: &'a S,
}

impl<S> Cx<'_, S> {
    /// The headers that tie a message written by this handler to the one that caused it.
    ///
    /// `ce_correlationid` is that of the record, or the record's own message id where it began the
    /// conversation; `ce_causationid` is the record's message id; `traceparent` and `tracestate` follow where
    /// present, and name the handler's own span where [traces](crate::trace) are kept. Pass the pairs to the outbox:
    /// `Message::…caused_by(cx.cause())`.
    pub fn cause(&self) -> Vec<(String, String)> {
        self.meta.cause()
    }
}

/// How a handler ended.
///
/// A handler of batches says it of all of its messages. Where it is not [`Done`](Self::Done), or an error, the batch
/// is halved until the messages that it is meant for stand alone, unless the handler has said which one it is by
/// [`Apart::one`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The effect is in the transaction.
    Done,
    /// Not yet: what the handler did is rolled back, and the message is parked and handed in again after this time,
    /// before the later ones of its key. It counts as an attempt.
    Retry {
        /// The time until the next attempt. What is longer than 365 days is taken for 365 days.
        after: Duration,
    },
    /// Not yet, and by no failure: it waits for another message of this consumer. What the handler did is rolled back,
    /// and the message is parked and handed in again, before the later ones of its key. It is no attempt, so that it
    /// waits for as long as that takes: the other one has to end, by itself or by a person.
    ///
    /// It waits as long again as it has been parked, between the waits of [`parked_wait`](crate::Config::parked_wait) and
    /// 30 s at most: by default 1, 1, 2, 4, 8, 16, 30, 30 … seconds.
    Wait {
        /// For people, stored while it waits: what it waits for. It must not repeat the payload.
        reason: Cow<'static, str>,
    },
    /// Never: what the handler did is rolled back, and the message becomes a dead letter. Its key goes on.
    Reject {
        /// For people, stored with the dead letter; it must not repeat the payload.
        reason: Cow<'static, str>,
    },
}

impl Outcome {
    /// [`Outcome::Retry`].
    pub fn retry(after: Duration) -> Self {
        Self::Retry { after }
    }

    /// [`Outcome::Wait`].
    pub fn wait(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Wait { reason: reason.into() }
    }

    /// [`Outcome::Reject`].
    pub fn reject(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Reject { reason: reason.into() }
    }
}

/// A handler of messages of type `E`: any `async fn(Cx<'_, S>, E) -> Result<Outcome, impl Into<BoxError>>`.
///
/// It may run more than once for one message, since a batch that meets a deadlock or a lost connection is
/// rolled back and repeated. It must therefore touch nothing but [`Cx::conn`].
///
/// An error in which a transient fault of the database is found, as itself or among its
/// [sources](std::error::Error::source), repeats the batch. Any other error (a violated constraint, one of your own),
/// and a panic, is the message's own failure: see [`OnFailure`](crate::OnFailure).
///
/// `O` is what it answers with: [`Outcome`], but for the first step of a [`Call`](crate::Call).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler of `{E}`",
    note = "a handler is an `async fn(Cx<'_, State>, Payload) -> Result<Outcome, Error>` whose `State` is that of the consumer's `Config`"
)]
pub trait Handler<'a, S, E, O = Outcome>: Send + Sync {
    /// The handler's error.
    type Error: Into<BoxError>;
    /// The running handler.
    type Future: Future<Output = Result<O, Self::Error>> + Send + 'a;

    /// Starts the handler.
    fn call(&self, cx: Cx<'a, S>, message: E) -> Self::Future;
}

impl<'a, S, E, O, F, Fut, Err> Handler<'a, S, E, O> for F
where
    S: 'a,
    F: Fn(Cx<'a, S>, E) -> Fut + Send + Sync,
    Fut: Future<Output = Result<O, Err>> + Send + 'a,
    Err: Into<BoxError>,
{
    type Error = Err;
    type Future = Fut;

    fn call(&self, cx: Cx<'a, S>, message: E) -> Fut {
        self(cx, message)
    }
}

/// What a handler of batches works with: the transaction and the service's shared state.
#[derive(Debug)]
#[non_exhaustive]
pub struct BatchCx<'a, S = ()> {
    /// The connection inside the batch's transaction, as in [`Cx::conn`].
    pub conn: &'a mut PgConnection,
    /// The state given to [`Config::state`](crate::Config::state).
    pub state: &'a S,
}

/// A message of a batch.
#[derive(Debug)]
#[non_exhaustive]
pub struct Item<'a, E> {
    /// What the record says about itself.
    pub meta: &'a Meta,
    /// The decoded payload.
    pub message: E,
    pub(crate) span: Span,
}

impl<E> Item<'_, E> {
    /// The headers that tie a message written by the handler to this one: see [`Cx::cause`].
    pub fn cause(&self) -> Vec<(String, String)> {
        self.meta.cause_in(&self.span)
    }

    /// The message's own span: that of a batch is of no trace in particular, so a handler that has spans for its messages
    /// gives them this parent.
    pub fn span(&self) -> &Span {
        &self.span
    }
}

/// A handler of batches of messages of type `E`: any
/// `async fn(BatchCx<'_, S>, Vec<Item<'_, E>>) -> Result<Outcome, impl Into<BoxError>>`.
///
/// It is given the messages of its type that follow one another in a transaction, those that were applied
/// before left out, in the order of their offsets, so that it can apply them by one statement. Several messages
/// of one key can stand in it. Everything else is as with [`Handler`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler of batches of `{E}`",
    note = "a handler of batches is an `async fn(BatchCx<'_, State>, Vec<Item<'_, Payload>>) -> Result<Outcome, Error>` whose `State` is that of the consumer's `Config`"
)]
pub trait BatchHandler<'a, S, E>: Send + Sync {
    /// The handler's error.
    type Error: Into<BoxError>;
    /// The running handler.
    type Future: Future<Output = Result<Outcome, Self::Error>> + Send + 'a;

    /// Starts the handler.
    fn call(&self, cx: BatchCx<'a, S>, messages: Vec<Item<'a, E>>) -> Self::Future;
}

impl<'a, S, E, F, Fut, Err> BatchHandler<'a, S, E> for F
where
    S: 'a,
    E: 'a,
    F: Fn(BatchCx<'a, S>, Vec<Item<'a, E>>) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Outcome, Err>> + Send + 'a,
    Err: Into<BoxError>,
{
    type Error = Err;
    type Future = Fut;

    fn call(&self, cx: BatchCx<'a, S>, messages: Vec<Item<'a, E>>) -> Fut {
        self(cx, messages)
    }
}

/// What a handler of batches answers as its error where that is not about all of its messages.
///
/// ```
/// # use tailrace_idempotency::{Apart, BatchCx, BoxError, Item, Outcome};
/// async fn pay(cx: BatchCx<'_>, payments: Vec<Item<'_, i64>>) -> Result<Outcome, BoxError> {
///     if let Some(place) = payments.iter().position(|payment| payment.message < 0) {
///         return Err(Apart::one(place, Ok(Outcome::reject("it is negative"))).into());
///     }
/// #   drop(cx);
///     Ok(Outcome::Done)
/// }
/// ```
#[derive(Debug)]
pub struct Apart(pub(crate) What);

#[derive(Debug)]
pub(crate) enum What {
    One(usize, Result<Outcome, BoxError>),
    Again,
}

impl Apart {
    /// It is about the message at this place of the batch alone, as if that had been handed in by itself: nothing has to be
    /// halved to find it. What the handler did for the others is rolled back, and they are handed in again without it.
    pub fn one(place: usize, ended: Result<Outcome, BoxError>) -> Self {
        Self(What::One(place, ended))
    }

    /// Nobody's failure: what the handler did is rolled back, and the same messages are handed in once more at once. For a
    /// handler that has found out that it has to go about them in another way.
    pub fn again() -> Self {
        Self(What::Again)
    }
}

impl std::fmt::Display for Apart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            What::One(place, Ok(_)) => {
                write!(f, "message {place} of the batch ends otherwise than the others")
            }
            What::One(place, Err(_)) => write!(f, "message {place} of the batch failed"),
            What::Again => f.write_str("a handler asks for its messages once more"),
        }
    }
}

impl std::error::Error for Apart {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0 {
            What::One(_, Err(error)) => Some(&**error),
            _ => None,
        }
    }
}

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

pub(crate) struct Panicked;

/// Runs a future to its end or its panic, so that a panic can be told with the record that met it.
pub(crate) async fn caught<T>(running: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut running = pin!(running);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
        Err(_) => Poll::Ready(Err(Panicked)),
    })
    .await
}
