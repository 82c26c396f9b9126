//! What a handler of a choreography answers, and its shape.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tailrace_idempotency::BoxError;

use crate::error::{Error, Kind};
use crate::participant::{BoxFuture, Cx};

/// What has come of a step, and the events that say so.
///
/// Each event is one that the [declaration](super::Declaration) knows of the step. It is written in the transaction of the step, with
/// what ties it to its saga and to what caused it.
#[derive(Debug)]
#[must_use = "a reaction says nothing unless the handler returns it"]
pub struct Reaction {
    pub(super) refused: bool,
    pub(super) events: Vec<Emitted>,
}

#[derive(Debug)]
pub(super) struct Emitted {
    pub(super) event: String,
    pub(super) payload: Result<Vec<u8>, serde_json::Error>,
    pub(super) key: Option<Vec<u8>>,
}

impl Reaction {
    /// It is done, and this says so. The payload is written as JSON.
    pub fn emit(event: impl Into<String>, payload: &impl Serialize) -> Self {
        Self { refused: false, events: vec![Emitted::new(event.into(), payload)] }
    }

    /// Another event that says so.
    pub fn and(mut self, event: impl Into<String>, payload: &impl Serialize) -> Self {
        self.events.push(Emitted::new(event.into(), payload));
        self
    }

    /// It cannot be done, for reasons of the business: what the handler changed is rolled back, and the saga is undone.
    pub fn refuse(event: impl Into<String>, payload: &impl Serialize) -> Self {
        Self { refused: true, events: vec![Emitted::new(event.into(), payload)] }
    }

    /// It is done, and nobody is told: of compensations that declare no event.
    pub fn done() -> Self {
        Self { refused: false, events: Vec::new() }
    }

    /// The key of the last event. Default: the saga's id, so that all events of a saga in a topic have one order.
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        if let Some(emitted) = self.events.last_mut() {
            emitted.key = Some(key.into());
        }
        self
    }

    /// The events have to be these, each of them once; of a refusal, one of them.
    pub(super) fn must_be<'e>(
        &self,
        step: &str,
        declared: impl Iterator<Item = &'e str>,
    ) -> Result<(), Error> {
        let mut expected: Vec<&str> = declared.collect();
        let mut emitted: Vec<&str> = self.events.iter().map(|emitted| &*emitted.event).collect();
        expected.sort_unstable();
        emitted.sort_unstable();
        let fits = match self.refused {
            true => emitted.iter().all(|event| expected.contains(event)),
            false => emitted == expected,
        };
        if fits {
            return Ok(());
        }
        let list = |events: Vec<&str>| match events.is_empty() {
            true => "nothing".to_owned(),
            false => events.join(", "),
        };
        Err(Error::definition(format!(
            "{step} has emitted {}, and is declared to emit {}",
            list(emitted),
            list(expected)
        )))
    }
}

impl Emitted {
    fn new(event: String, payload: &impl Serialize) -> Self {
        Self { event, payload: serde_json::to_vec(payload), key: None }
    }
}

/// The handler of a step, or of a compensation: any
/// `async fn(Cx<'_, S>, E) -> Result<Reaction, impl Into<BoxError>>`.
///
/// A step is given the event that led to it; a compensation is given the event that had led to the step which it undoes,
/// whatever has failed. It runs once per saga, after a step that was done and in no other case; it cannot refuse. Which
/// failure it was is the type of the message in [`Cx::meta`].
///
/// An error is no refusal: the transaction is rolled back, and the event is tried again, as with any
/// [handler](tailrace_idempotency::Handler).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler of `{E}` in a choreography",
    note = "it is an `async fn(Cx<'_, State>, Event) -> Result<Reaction, Error>` whose `State` is that of the consumer's `Config`"
)]
pub trait React<'a, S, E>: Send + Sync {
    /// The handler's error.
    type Error: Into<BoxError>;
    /// The running handler.
    type Future: Future<Output = Result<Reaction, Self::Error>> + Send + 'a;

    /// Starts the handler.
    fn react(&self, cx: Cx<'a, S>, event: E) -> Self::Future;
}

impl<'a, S, E, F, Fut, Err> React<'a, S, E> for F
where
    S: 'a,
    F: Fn(Cx<'a, S>, E) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Reaction, Err>> + Send + 'a,
    Err: Into<BoxError>,
{
    type Error = Err;
    type Future = Fut;

    fn react(&self, cx: Cx<'a, S>, event: E) -> Fut {
        self(cx, event)
    }
}

/// A [`React`] without its own type and that of its event.
pub(super) trait AnyReact<S>: Send + Sync {
    /// Fails where the payload is none for this handler.
    fn react<'a>(&self, cx: Cx<'a, S>, payload: &[u8]) -> Result<Running<'a>, Error>;
}

pub(super) type Running<'a> = BoxFuture<'a, Result<Reaction, BoxError>>;

/// A function with the type of its event.
pub(super) struct Typed<F, E> {
    react: F,
    event: PhantomData<fn() -> E>,
}

impl<F, E> Typed<F, E> {
    pub(super) fn new(react: F) -> Self {
        Self { react, event: PhantomData }
    }
}

impl<S: 'static, E: DeserializeOwned, F: for<'a> React<'a, S, E>> AnyReact<S> for Typed<F, E> {
    fn react<'a>(&self, cx: Cx<'a, S>, payload: &[u8]) -> Result<Running<'a>, Error> {
        let running = self.react.react(cx, decoded(payload)?);
        Ok(Box::pin(async move { running.await.map_err(Into::into) }))
    }
}

pub(super) fn decoded<E: DeserializeOwned>(payload: &[u8]) -> Result<E, Error> {
    serde_json::from_slice(payload).map_err(|error| {
        // The text of the error may quote the payload.
        let (line, column) = (error.line(), error.column());
        Error::new(
            Kind::Unreadable,
            format!("the event does not fit the handler's type (line {line}, column {column})"),
        )
    })
}
