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

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Finds and runs handlers; the lane behind it knows neither their state nor their payloads' types.
pub(crate) trait Dispatch: Send + Sync {
    fn handles(&self, message_type: &str) -> bool;

    fn handle<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        record: &'a Record,
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

    fn handle<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        record: &'a Record,
    ) -> BoxFuture<'a, Result<Outcome, Error>> {
        Box::pin(async move {
            let meta = &record.meta;
            let failed = match caught(self.run(conn, record)).await {
                Ok(Ok(outcome)) => return Ok(outcome),
                Ok(Err(error)) => error,
                Err(Panicked) => {
                    let text = format!("the handler of {} panicked", meta.message_type());
                    Error::new(Kind::Handler, text)
                }
            };
            Err(failed.at(meta.position()).about(meta.message_id()))
        })
    }
}

impl<S: Send + Sync + 'static> Routes<S> {
    async fn run(&self, conn: &mut PgConnection, record: &Record) -> Result<Outcome, Error> {
        let meta = &record.meta;
        let route = self.by_type.get(meta.message_type()).ok_or_else(|| {
            Error::new(Kind::Internal, "a record without a handler was dispatched")
        })?;
        let cx = Cx { conn, meta, state: &self.state };
        let running =
            route.start(cx, record.payload.as_deref()).map_err(|error| undecodable(&error))?;
        running.await.map_err(|error| {
            let text = format!("the handler of {} failed", meta.message_type());
            Error::new(Kind::Handler, text).caused_by(error)
        })
    }
}

type Handling<'a> = BoxFuture<'a, Result<Outcome, BoxError>>;

/// One registered handler.
pub(crate) trait Route<S>: Send + Sync {
    fn start<'a>(
        &'a self,
        cx: Cx<'a, S>,
        payload: Option<&[u8]>,
    ) -> Result<Handling<'a>, serde_json::Error>;
}

/// A handler whose payload is JSON.
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
    fn start<'a>(
        &'a self,
        cx: Cx<'a, S>,
        payload: Option<&[u8]>,
    ) -> Result<Handling<'a>, serde_json::Error> {
        // A tombstone is JSON's null: a handler of `Option<E>` sees it as `None`.
        let message = serde_json::from_slice(payload.unwrap_or(b"null"))?;
        let running = self.handler.call(cx, message);
        Ok(Box::pin(async move { running.await.map_err(Into::into) }))
    }
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
