//! The shape of a handler, and the registry that finds one for a record.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::Poll;

use serde::de::DeserializeOwned;
use sqlx::PgConnection;

use crate::error::{BoxError, Error, Kind};
use crate::record::{Meta, Record};

/// What a handler works with: the transaction, the record's meta data and the service's shared state.
#[derive(Debug)]
#[non_exhaustive]
pub struct Cx<'a, S = ()> {
    /// The connection inside the batch's transaction. Savepoints (`conn.begin()`) are allowed; to commit or
    /// to roll back is not and halts the consumer. A statement that failed has aborted the transaction: pass
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
    /// present. Pass the pairs to the outbox: `Message::…caused_by(cx.cause())`.
    pub fn cause(&self) -> Vec<(String, String)> {
        self.meta.cause()
    }
}

/// How a handler ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The effect is in the transaction.
    Done,
}

/// A handler of messages of type `E`: any `async fn(Cx<'_, S>, E) -> Result<Outcome, impl Into<BoxError>>`.
///
/// It may run more than once for one message, since a batch that meets a deadlock or a lost connection is
/// rolled back and repeated. It must therefore touch nothing but [`Cx::conn`].
///
/// An error in which a transient fault of the database is found, as itself or among its
/// [sources](std::error::Error::source), repeats the batch. Any other error, and a panic, halts the consumer.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler of `{E}`",
    note = "a handler is an `async fn(Cx<'_, State>, Payload) -> Result<Outcome, Error>` whose `State` is that of the consumer's `Config`"
)]
pub trait Handler<'a, S, E>: Send + Sync {
    /// The handler's error.
    type Error: Into<BoxError>;
    /// The running handler.
    type Future: Future<Output = Result<Outcome, Self::Error>> + Send + 'a;

    /// Starts the handler.
    fn call(&self, cx: Cx<'a, S>, message: E) -> Self::Future;
}

impl<'a, S, E, F, Fut, Err> Handler<'a, S, E> for F
where
    S: 'a,
    F: Fn(Cx<'a, S>, E) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Outcome, Err>> + Send + 'a,
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
}

impl<E> Item<'_, E> {
    /// The headers that tie a message written by the handler to this one: see [`Cx::cause`].
    pub fn cause(&self) -> Vec<(String, String)> {
        self.meta.cause()
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

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Finds and runs handlers; the lane behind it knows neither their state nor their payloads' types.
pub(crate) trait Dispatch: Send + Sync {
    fn handles(&self, message_type: &str) -> bool;

    /// Whether the handler takes records of the type that follow one another all at once.
    fn takes_batches(&self, message_type: &str) -> bool;

    /// Runs the handler of records of one type: of one record, unless it takes batches.
    fn handle<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        records: &'a [&'a Record],
    ) -> BoxFuture<'a, Result<Outcome, Error>>;
}

/// The handlers by message type, with the state they share.
pub(crate) struct Routes<S> {
    pub(crate) state: S,
    pub(crate) by_type: HashMap<String, Box<dyn Route<S>>>,
}

impl<S> fmt::Debug for Routes<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.by_type.keys()).finish()
    }
}

impl<S: Send + Sync + 'static> Dispatch for Routes<S> {
    fn handles(&self, message_type: &str) -> bool {
        self.by_type.contains_key(message_type)
    }

    fn takes_batches(&self, message_type: &str) -> bool {
        self.by_type.get(message_type).is_some_and(|route| route.takes_batches())
    }

    fn handle<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        records: &'a [&'a Record],
    ) -> BoxFuture<'a, Result<Outcome, Error>> {
        Box::pin(async move {
            let first = records.first().ok_or_else(undispatched)?;
            match caught(self.run(conn, &first.meta, records)).await {
                Ok(ended) => ended,
                Err(Panicked) => {
                    let text = format!("the handler of {} panicked", first.meta.message_type());
                    Err(placed(Error::new(Kind::Handler, text), &first.meta))
                }
            }
        })
    }
}

impl<S: Send + Sync + 'static> Routes<S> {
    async fn run<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        first: &'a Meta,
        records: &'a [&'a Record],
    ) -> Result<Outcome, Error> {
        let route = self.by_type.get(first.message_type()).ok_or_else(undispatched)?;
        let running = route
            .start(conn, &self.state, records)
            .map_err(|Undecodable { meta, error }| placed(undecodable(&error), meta))?;
        running.await.map_err(|error| {
            let mut text = format!("the handler of {} failed", first.message_type());
            if records.len() > 1 {
                text =
                    format!("{text} for {} messages, of which the first is named", records.len());
            }
            placed(Error::new(Kind::Handler, text).caused_by(error), first)
        })
    }
}

fn undispatched() -> Error {
    Error::new(Kind::Internal, "a record without a handler was dispatched")
}

fn placed(error: Error, meta: &Meta) -> Error {
    error.at(meta.position()).about(meta.message_id())
}

type Handling<'a> = BoxFuture<'a, Result<Outcome, BoxError>>;

/// A payload that does not decode, and whose it is.
pub(crate) struct Undecodable<'a> {
    meta: &'a Meta,
    error: serde_json::Error,
}

/// One registered handler.
pub(crate) trait Route<S>: Send + Sync {
    fn takes_batches(&self) -> bool;

    fn start<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        state: &'a S,
        records: &'a [&'a Record],
    ) -> Result<Handling<'a>, Undecodable<'a>>;
}

/// A handler of single messages whose payload is JSON.
pub(crate) struct JsonRoute<H, E> {
    handler: H,
    payload: PhantomData<fn() -> E>,
}

impl<H, E> JsonRoute<H, E> {
    pub(crate) fn new(handler: H) -> Self {
        Self { handler, payload: PhantomData }
    }
}

impl<S, E, H> Route<S> for JsonRoute<H, E>
where
    S: Sync + 'static,
    E: DeserializeOwned + Send + 'static,
    H: for<'a> Handler<'a, S, E>,
{
    fn takes_batches(&self) -> bool {
        false
    }

    fn start<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        state: &'a S,
        records: &'a [&'a Record],
    ) -> Result<Handling<'a>, Undecodable<'a>> {
        let [record] = records else { unreachable!("single messages are dispatched one by one") };
        let message = decode(record)?;
        let running = self.handler.call(Cx { conn, meta: &record.meta, state }, message);
        Ok(Box::pin(async move { running.await.map_err(Into::into) }))
    }
}

/// A handler of batches whose payloads are JSON.
pub(crate) struct JsonBatchRoute<H, E> {
    handler: H,
    payload: PhantomData<fn() -> E>,
}

impl<H, E> JsonBatchRoute<H, E> {
    pub(crate) fn new(handler: H) -> Self {
        Self { handler, payload: PhantomData }
    }
}

impl<S, E, H> Route<S> for JsonBatchRoute<H, E>
where
    S: Sync + 'static,
    E: DeserializeOwned + Send + 'static,
    H: for<'a> BatchHandler<'a, S, E>,
{
    fn takes_batches(&self) -> bool {
        true
    }

    fn start<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        state: &'a S,
        records: &'a [&'a Record],
    ) -> Result<Handling<'a>, Undecodable<'a>> {
        let item = |record: &&'a Record| Ok(Item { meta: &record.meta, message: decode(record)? });
        let items = records.iter().map(item).collect::<Result<Vec<_>, _>>()?;
        let running = self.handler.call(BatchCx { conn, state }, items);
        Ok(Box::pin(async move { running.await.map_err(Into::into) }))
    }
}

/// A tombstone is JSON's null: a handler of `Option<E>` sees it as `None`.
fn decode<E: DeserializeOwned>(record: &Record) -> Result<E, Undecodable<'_>> {
    serde_json::from_slice(record.payload.as_deref().unwrap_or(b"null"))
        .map_err(|error| Undecodable { meta: &record.meta, error })
}

/// The decoder's own text repeats what it stumbled over, so only its class and place go on.
fn undecodable(error: &serde_json::Error) -> Error {
    let class = match error.classify() {
        serde_json::error::Category::Syntax | serde_json::error::Category::Eof => "is not JSON",
        serde_json::error::Category::Data | serde_json::error::Category::Io => {
            "does not fit the handler's type"
        }
    };
    let (line, column) = (error.line(), error.column());
    Error::new(Kind::Payload, format!("the payload {class} (line {line}, column {column})"))
}

struct Panicked;

/// Runs a future to its end or its panic, so that a panic can be told with the record that met it.
async fn caught<T>(running: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut running = pin!(running);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
        Err(_) => Poll::Ready(Err(Panicked)),
    })
    .await
}
