//! The registry that finds a handler for a record, decodes its payload and runs it.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;

use sqlx::PgConnection;
use tracing::Span;

use crate::breaker::Breaker;
use crate::call::{Answer, Limits, Prepared};
use crate::codec::Codec;
use crate::error::{BoxError, Error, Kind};
use crate::handler::{
    Apart, BatchCx, BatchHandler, BoxFuture, Cx, Handler, Item, Outcome, Panicked, What, caught,
};
use crate::record::{Meta, Record};

/// The place of a handler in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RouteId(usize);

#[cfg(test)]
impl RouteId {
    pub(crate) fn new(place: usize) -> Self {
        Self(place)
    }
}

/// Finds and runs handlers; the lane behind it knows neither their state nor their payloads' types.
pub(crate) trait Dispatch: Send + Sync {
    /// The handler of a type.
    fn find(&self, message_type: &str) -> Option<RouteId>;

    /// Whether the handler takes records that follow one another all at once.
    fn takes_batches(&self, route: RouteId) -> bool;

    /// Runs a handler: with one record, unless it takes batches. There is a span for each, or none at all.
    fn handle<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        route: RouteId,
        records: &'a [&'a Record],
        spans: &'a [Span],
    ) -> BoxFuture<'a, Handled>;

    /// Bounds of the calls that a handler makes outside Postgres; none where it makes none.
    fn limits(&self, route: RouteId) -> Option<&Limits>;

    /// The breakers around calls, by the type of the messages that make them.
    fn breakers(&self) -> Vec<(&str, &Breaker)>;

    /// The first step of a call, inside a transaction.
    fn prepare<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        route: RouteId,
        record: &'a Record,
    ) -> BoxFuture<'a, Result<Prepared<Vec<u8>>, Error>>;

    /// The second step, outside of any.
    fn call<'a>(
        &'a self,
        route: RouteId,
        record: &'a Record,
        intent: &'a [u8],
    ) -> BoxFuture<'a, Result<Answer<Outcall>, Error>>;

    /// The third step, inside a transaction again.
    fn record<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        route: RouteId,
        record: &'a Record,
        intent: &'a [u8],
        result: Outcall,
    ) -> BoxFuture<'a, Result<(), Error>>;
}

/// What a call brought, on its way from the second step to the third.
pub(crate) type Outcall = Box<dyn Any + Send + Sync>;

/// What came of a call.
#[derive(Debug)]
pub(crate) struct Handled {
    /// Those whose payload does not decode, by their place in the call; the handler has not seen them.
    pub(crate) undecodable: Vec<(usize, Error)>,
    pub(crate) about: About,
    pub(crate) ended: Result<Outcome, Error>,
}

/// Which records of a call an end is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum About {
    #[default]
    All,
    /// The one at this place in the call.
    One(usize),
    /// None of them: all are to be handed in once more.
    Again,
}

impl Handled {
    pub(crate) fn of_all(undecodable: Vec<(usize, Error)>, ended: Result<Outcome, Error>) -> Self {
        Self { undecodable, about: About::All, ended }
    }

    /// What a handler's error says.
    fn failed(undecodable: Vec<(usize, Error)>, records: &[&Record], error: BoxError) -> Self {
        let Some(first) = records.first() else {
            return Self::of_all(undecodable, Ok(Outcome::Done));
        };
        let apart = match error.downcast::<Apart>() {
            Ok(apart) => apart.0,
            Err(error) => {
                let error = failed(&first.meta, records.len()).caused_by(error);
                return Self::of_all(undecodable, Err(error));
            }
        };
        let What::One(place, ended) = apart else {
            return Self { undecodable, about: About::Again, ended: Ok(Outcome::Done) };
        };
        // The handler has not seen those that do not decode.
        let is_seen = |place: &usize| undecodable.iter().all(|(bad, _)| bad != place);
        let found = (0..records.len()).filter(is_seen).nth(place);
        let Some((place, record)) = found.and_then(|place| Some((place, records.get(place)?)))
        else {
            let text = format!("a handler names message {place} of {}", records.len());
            return Self::of_all(
                undecodable,
                Err(placed(Error::new(Kind::Handler, text), &first.meta)),
            );
        };
        let ended = ended.map_err(|error| failed(&record.meta, 1).caused_by(error));
        Self { undecodable, about: About::One(place), ended }
    }
}

/// The handlers by message type, with the state they share.
pub(crate) struct Routes<S> {
    pub(crate) state: S,
    pub(crate) registry: Registry<S>,
}

impl<S: Send + Sync + 'static> Dispatch for Routes<S> {
    fn find(&self, message_type: &str) -> Option<RouteId> {
        self.registry.by_type.get(message_type).copied()
    }

    fn takes_batches(&self, route: RouteId) -> bool {
        self.registry.routes.get(route.0).is_some_and(|route| route.takes_batches())
    }

    fn handle<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        route: RouteId,
        records: &'a [&'a Record],
        spans: &'a [Span],
    ) -> BoxFuture<'a, Handled> {
        Box::pin(async move {
            let (Some(route), Some(first)) = (self.registry.routes.get(route.0), records.first())
            else {
                let text = "a record without a handler was dispatched";
                return Handled::of_all(Vec::new(), Err(Error::new(Kind::Internal, text)));
            };
            let mut undecodable = Vec::new();
            let running = async {
                let Started { bad, running } = route.start(conn, &self.state, records, spans);
                undecodable = bad;
                match running {
                    Some(running) => running.await,
                    None => Ok(Outcome::Done),
                }
            };
            match caught(running).await {
                Ok(Ok(outcome)) => Handled::of_all(undecodable, Ok(outcome)),
                Ok(Err(error)) => Handled::failed(undecodable, records, error),
                Err(Panicked) => Handled::of_all(undecodable, Err(panicked(&first.meta))),
            }
        })
    }

    fn limits(&self, route: RouteId) -> Option<&Limits> {
        Some(self.registry.routes.get(route.0)?.outside()?.limits())
    }

    fn breakers(&self) -> Vec<(&str, &Breaker)> {
        let types = self.registry.by_type.iter();
        types.filter_map(|(of, route)| Some((of.as_str(), &self.limits(*route)?.breaker))).collect()
    }

    fn prepare<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        route: RouteId,
        record: &'a Record,
    ) -> BoxFuture<'a, Result<Prepared<Vec<u8>>, Error>> {
        Box::pin(async move {
            let cx = Cx { conn, meta: &record.meta, state: &self.state };
            let running = async { self.outside(route)?.prepare(cx, record).await };
            whole(&record.meta, caught(running).await)
        })
    }

    fn call<'a>(
        &'a self,
        route: RouteId,
        record: &'a Record,
        intent: &'a [u8],
    ) -> BoxFuture<'a, Result<Answer<Outcall>, Error>> {
        Box::pin(async move {
            let running = async {
                let outside = self.outside(route)?;
                outside.call(&record.meta, &self.state, intent).await
            };
            whole(&record.meta, caught(running).await)
        })
    }

    fn record<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        route: RouteId,
        record: &'a Record,
        intent: &'a [u8],
        result: Outcall,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let cx = Cx { conn, meta: &record.meta, state: &self.state };
            let running = async { self.outside(route)?.record(cx, intent, result).await };
            whole(&record.meta, caught(running).await)
        })
    }
}

impl<S> Routes<S> {
    fn outside(&self, route: RouteId) -> Result<&dyn Outside<S>, Error> {
        let outside = self.registry.routes.get(route.0).and_then(|route| route.outside());
        outside.ok_or_else(|| Error::new(Kind::Internal, "a call without its handlers was made"))
    }
}

fn whole<T>(meta: &Meta, ran: Result<Result<T, Error>, Panicked>) -> Result<T, Error> {
    ran.unwrap_or_else(|Panicked| Err(panicked(meta)))
}

fn panicked(meta: &Meta) -> Error {
    let text = format!("the handler of {} panicked", meta.message_type());
    placed(Error::new(Kind::Handler, text), meta)
}

pub(crate) fn failed(first: &Meta, records: usize) -> Error {
    let mut text = format!("the handler of {} failed", first.message_type());
    if records > 1 {
        text = format!("{text} for {records} messages, of which the first is named");
    }
    placed(Error::new(Kind::Handler, text), first)
}

fn placed(error: Error, meta: &Meta) -> Error {
    error.at(meta.position()).about(meta.message_id())
}

/// What a service has registered.
pub(crate) struct Registry<S> {
    routes: Vec<Box<dyn Route<S>>>,
    by_type: HashMap<String, RouteId>,
    faults: Vec<String>,
}

impl<S> Default for Registry<S> {
    fn default() -> Self {
        Self { routes: Vec::new(), by_type: HashMap::new(), faults: Vec::new() }
    }
}

impl<S> Registry<S> {
    pub(crate) fn add(&mut self, message_type: String, route: Box<dyn Route<S>>) {
        if let Some(outside) = route.outside() {
            let faults = outside.limits().faults();
            self.faults.extend(faults.into_iter().map(|fault| format!("{message_type}: {fault}")));
        }
        let id = RouteId(self.routes.len());
        self.routes.push(route);
        self.name(message_type, id);
    }

    /// Another type for the handler that was registered last.
    pub(crate) fn upcast<E: 'static>(&mut self, message_type: String, decode: Decode<E>) {
        let Some(last) = self.routes.last_mut() else {
            self.faults.push(format!("the upcast of {message_type} stands before any handler"));
            return;
        };
        if last.payload_type() != TypeId::of::<E>() {
            self.faults.push(format!(
                "the upcast of {message_type} does not make what the handler before it takes"
            ));
            return;
        }
        last.upcast(message_type.clone(), Box::new(decode));
        let id = RouteId(self.routes.len() - 1);
        self.name(message_type, id);
    }

    fn name(&mut self, message_type: String, id: RouteId) {
        if self.by_type.insert(message_type.clone(), id).is_some() {
            self.faults.push(format!("the type {message_type} has two handlers"));
        }
    }

    /// Whether a handler has effects outside Postgres.
    pub(crate) fn makes_calls(&self) -> bool {
        self.routes.iter().any(|route| route.outside().is_some())
    }

    /// Everything wrong with it.
    pub(crate) fn faults(&self) -> Vec<String> {
        let none = self.routes.is_empty().then(|| "no handler is registered".to_owned());
        none.into_iter().chain(self.faults.iter().cloned()).collect()
    }
}

impl<S> fmt::Debug for Registry<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.by_type.keys()).finish()
    }
}

/// Makes a handler's payload of a record's value.
pub(crate) type Decode<E> = Box<dyn Fn(Option<&[u8]>) -> Result<E, BoxError> + Send + Sync>;

pub(crate) fn decode_by<E: 'static>(codec: impl Codec<E>) -> Decode<E> {
    Box::new(move |payload| codec.decode(payload))
}

type Handling<'a> = BoxFuture<'a, Result<Outcome, BoxError>>;

/// A call that has begun, unless no payload decodes.
pub(crate) struct Started<'a> {
    bad: Vec<(usize, Error)>,
    running: Option<Handling<'a>>,
}

impl Started<'_> {
    /// Of a handler that is not called in this way.
    pub(crate) fn wrongly() -> Self {
        let text = "a handler that makes calls was run inside a transaction";
        let error = BoxError::from(Error::new(Kind::Internal, text));
        Self { bad: Vec::new(), running: Some(Box::pin(async move { Err(error) })) }
    }
}

/// One registered handler.
pub(crate) trait Route<S>: Send + Sync {
    fn takes_batches(&self) -> bool;

    fn payload_type(&self) -> TypeId;

    /// `decode` is a [`Decode`] of the payload's type.
    fn upcast(&mut self, message_type: String, decode: Box<dyn Any>);

    fn start<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        state: &'a S,
        records: &'a [&'a Record],
        spans: &'a [Span],
    ) -> Started<'a>;

    /// The three steps of a handler that makes calls outside Postgres.
    fn outside(&self) -> Option<&dyn Outside<S>> {
        None
    }
}

/// A handler whose effect lies outside Postgres, in three steps.
pub(crate) trait Outside<S>: Send + Sync {
    fn limits(&self) -> &Limits;

    fn prepare<'a>(
        &'a self,
        cx: Cx<'a, S>,
        record: &'a Record,
    ) -> BoxFuture<'a, Result<Prepared<Vec<u8>>, Error>>;

    fn call<'a>(
        &'a self,
        meta: &'a Meta,
        state: &'a S,
        intent: &'a [u8],
    ) -> BoxFuture<'a, Result<Answer<Outcall>, Error>>;

    fn record<'a>(
        &'a self,
        cx: Cx<'a, S>,
        intent: &'a [u8],
        result: Outcall,
    ) -> BoxFuture<'a, Result<(), Error>>;
}

/// The decoders of what a handler takes.
pub(crate) struct Decoder<E> {
    decode: Decode<E>,
    upcasts: HashMap<String, Decode<E>>,
}

impl<E: 'static> Decoder<E> {
    pub(crate) fn new(decode: Decode<E>) -> Self {
        Self { decode, upcasts: HashMap::new() }
    }

    pub(crate) fn upcast(&mut self, message_type: String, decode: Box<dyn Any>) {
        if let Ok(decode) = decode.downcast::<Decode<E>>() {
            self.upcasts.insert(message_type, *decode);
        }
    }

    pub(crate) fn decode(&self, record: &Record) -> Result<E, Error> {
        let decode = self.upcasts.get(record.meta.message_type()).unwrap_or(&self.decode);
        // The codec's text is its own word that it repeats nothing of the payload.
        decode(record.payload.as_deref()).map_err(|error| {
            placed(Error::new(Kind::Payload, format!("the payload {error}")), &record.meta)
        })
    }
}

/// A handler with the decoders of what it takes.
pub(crate) struct Typed<E, C> {
    decoder: Decoder<E>,
    call: C,
}

impl<E: 'static, C> Typed<E, C> {
    pub(crate) fn new(decode: Decode<E>, call: C) -> Self {
        Self { decoder: Decoder::new(decode), call }
    }
}

/// How a handler is called: with one message or with many.
pub(crate) trait Call<S, E>: Send + Sync {
    const TAKES_BATCHES: bool;

    /// `items` are never empty, and one where batches are not taken.
    fn call<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        state: &'a S,
        items: Vec<Item<'a, E>>,
    ) -> Handling<'a>;
}

impl<S, E, C> Route<S> for Typed<E, C>
where
    S: Sync + 'static,
    E: Send + 'static,
    C: Call<S, E>,
{
    fn takes_batches(&self) -> bool {
        C::TAKES_BATCHES
    }

    fn payload_type(&self) -> TypeId {
        TypeId::of::<E>()
    }

    fn upcast(&mut self, message_type: String, decode: Box<dyn Any>) {
        self.decoder.upcast(message_type, decode);
    }

    fn start<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        state: &'a S,
        records: &'a [&'a Record],
        spans: &'a [Span],
    ) -> Started<'a> {
        let mut items = Vec::with_capacity(records.len());
        let mut bad = Vec::new();
        for (place, record) in records.iter().enumerate() {
            match self.decoder.decode(record) {
                Ok(message) => {
                    let span = spans.get(place).cloned().unwrap_or_else(Span::none);
                    items.push(Item { meta: &record.meta, message, span });
                }
                Err(error) => bad.push((place, error)),
            }
        }
        let running = (!items.is_empty()).then(|| self.call.call(conn, state, items));
        Started { bad, running }
    }
}

/// A handler of single messages.
pub(crate) struct One<H>(pub(crate) H);

impl<S, E, H> Call<S, E> for One<H>
where
    S: Sync + 'static,
    E: Send + 'static,
    H: for<'a> Handler<'a, S, E>,
{
    const TAKES_BATCHES: bool = false;

    fn call<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        state: &'a S,
        items: Vec<Item<'a, E>>,
    ) -> Handling<'a> {
        let mut items = items.into_iter();
        let (Some(Item { meta, message, .. }), None) = (items.next(), items.next()) else {
            unreachable!("single messages are dispatched one by one")
        };
        let running = self.0.call(Cx { conn, meta, state }, message);
        Box::pin(async move { running.await.map_err(Into::into) })
    }
}

/// A handler of batches.
pub(crate) struct Many<H>(pub(crate) H);

impl<S, E, H> Call<S, E> for Many<H>
where
    S: Sync + 'static,
    E: Send + 'static,
    H: for<'a> BatchHandler<'a, S, E>,
{
    const TAKES_BATCHES: bool = true;

    fn call<'a>(
        &'a self,
        conn: &'a mut PgConnection,
        state: &'a S,
        items: Vec<Item<'a, E>>,
    ) -> Handling<'a> {
        let running = self.0.call(BatchCx { conn, state }, items);
        Box::pin(async move { running.await.map_err(Into::into) })
    }
}
