//! One service of a choreography: its handlers, and running them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tailrace_idempotency::{CallHandler, Config, Consumer, Report};
use tailrace_outbox::{Outbox, Store};

use super::clock::Starter;
use super::metrics::{self, Counters};
use super::outward::{About, PrepareReaction, RecordReaction};
use super::react::{Doing, Reactor, Voice};
use super::reaction::{React, Typed};
use super::{Choreography, Step, dispatch};
use crate::error::Error;
use crate::health::Health;
use crate::participant::{self, BATCH_RECORDS_MAX, Outside};
use crate::retention::{KEEP, KEEP_MIN, Kept};
use crate::speaker;

/// A service of a [`Choreography`]: a set of handlers of a [`Consumer`], which is subscribed to what the choreography
/// says, and around whose steps and compensations stands the same barrier as around those of a
/// [`Participant`](crate::Participant). So
///
/// - a step is done at most once per saga, and once undone stays undone,
/// - a failure that overtakes what leads to a step keeps it from running; it emits nothing then,
/// - whatever fails, and however many failures come, what was done is undone once.
///
/// Needs the tables of [`schema`](crate::schema) and of [`tailrace_idempotency::schema`], and a relay for its events.
///
/// ```no_run
/// use serde::{Deserialize, Serialize};
/// use tailrace_idempotency::{BoxError, Config};
/// use tailrace_saga::choreography::Reaction;
/// use tailrace_saga::{Choreography, participant::Cx};
///
/// #[derive(Serialize, Deserialize)]
/// struct OrderPlaced {
///     customer: String,
///     cents: i64,
/// }
///
/// async fn reserve_credit(cx: Cx<'_>, order: OrderPlaced) -> Result<Reaction, BoxError> {
///     let reserved = sqlx::query(
///         "update customer set free_cents = free_cents - $2 where name = $1 and free_cents >= $2",
///     )
///     .bind(&order.customer)
///     .bind(order.cents)
///     .execute(cx.conn)
///     .await?;
///     Ok(match reserved.rows_affected() {
///         0 => Reaction::refuse("credit.refused.v1", &order),
///         _ => Reaction::emit("credit.reserved.v1", &order),
///     })
/// }
///
/// async fn release_credit(cx: Cx<'_>, order: OrderPlaced) -> Result<Reaction, BoxError> {
///     sqlx::query("update customer set free_cents = free_cents + $2 where name = $1")
///         .bind(&order.customer)
///         .bind(order.cents)
///         .execute(cx.conn)
///         .await?;
///     Ok(Reaction::done())
/// }
///
/// # async fn run(
/// #     create_order: Choreography, pool: sqlx::PgPool, stop: impl Future<Output = ()>,
/// # ) -> Result<(), BoxError> {
/// create_order
///     .service("customers")
///     .handle("reserve-credit", reserve_credit)
///     .undo("release-credit", release_credit)
///     .run(Config::new("customers", "localhost:9092", pool), stop)
///     .await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a service does nothing until it runs"]
pub struct Service<S = ()> {
    map: Choreography,
    voice: Voice,
    handlers: BTreeMap<Box<str>, Doing<S>>,
    keep: Duration,
    counters: Counters,
    health: Health,
    faults: Vec<String>,
}

impl<S: Send + Sync + 'static> Service<S> {
    pub(super) fn new(map: Choreography, service: &str) -> Self {
        let voice = Voice {
            service: service.into(),
            source: format!("/{service}"),
            prefix: String::new(),
            outbox: Outbox::new(Store::Wal),
        };
        Self {
            map,
            voice,
            handlers: BTreeMap::new(),
            keep: KEEP,
            counters: Counters::default(),
            health: Health::default(),
            faults: Vec::new(),
        }
    }

    /// The URI reference of the service, on its events. Default: its name behind a slash.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.voice.source = source.into();
        self
    }

    /// Where events are written. Default: the write-ahead log.
    pub fn outbox(mut self, outbox: Outbox) -> Self {
        self.voice.outbox = outbox;
        self
    }

    /// What stands before the name of every topic, for environments that share brokers. Default: nothing.
    pub fn topic_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.voice.prefix = prefix.into();
        self
    }

    /// The handler of a step, by the name that is declared. The step that starts the saga has none.
    pub fn handle<E: DeserializeOwned + 'static>(
        self,
        step: &str,
        handler: impl for<'a> React<'a, S, E> + 'static,
    ) -> Self {
        self.with(step, Doing::Within(Box::new(Typed::new(handler))))
    }

    /// The handler of a compensation, by the name that is declared. It is given the event that had led to the step; that
    /// of the first step is given what the saga was started with.
    pub fn undo<E: DeserializeOwned + 'static>(
        self,
        compensation: &str,
        handler: impl for<'a> React<'a, S, E> + 'static,
    ) -> Self {
        self.with(compensation, Doing::Within(Box::new(Typed::new(handler))))
    }

    /// The handler of a step whose effect lies outside Postgres, such as a payment: see [`Outside`].
    ///
    /// - `prepare: async fn(Cx<'_, S>, E) -> Result<Result<Intent, Reaction>, _>` answers with what the call needs; or with
    ///   what has come of the step, where no call is needed for that.
    /// - `record: async fn(Cx<'_, S>, Intent, Answered) -> Result<Reaction, _>`
    ///
    /// A failure of the saga that comes while the call is made waits for it, for as long as that takes.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use serde::{Deserialize, Serialize};
    /// use tailrace_idempotency::{Answer, BoxError, CallCx};
    /// use tailrace_saga::Choreography;
    /// use tailrace_saga::choreography::{Reaction, Service};
    /// use tailrace_saga::participant::{Cx, Outside};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Order {
    ///     cents: i64,
    /// }
    ///
    /// async fn prepare(_: Cx<'_>, order: Order) -> Result<Result<Order, Reaction>, BoxError> {
    ///     Ok(Ok(order))
    /// }
    ///
    /// async fn charge(cx: CallCx<'_>, order: Order) -> Result<Answer<bool>, BoxError> {
    ///     let charged = provider::charge(cx.key.to_string(), order.cents).await?;
    ///     Ok(Answer::Done(charged))
    /// }
    ///
    /// async fn record(_: Cx<'_>, order: Order, charged: bool) -> Result<Reaction, BoxError> {
    ///     Ok(match charged {
    ///         true => Reaction::emit("payment.captured.v1", &order),
    ///         false => Reaction::refuse("payment.refused.v1", &order),
    ///     })
    /// }
    ///
    /// # mod provider {
    /// #     pub async fn charge(_: String, _: i64) -> Result<bool, std::io::Error> { Ok(true) }
    /// # }
    /// fn payments(create_order: &Choreography) -> Service {
    ///     let charge = Outside::new(prepare, charge, record).time_out(Duration::from_secs(5));
    ///     create_order.service("payments").call("capture-payment", charge)
    /// }
    /// ```
    pub fn call<E, I, A>(
        self,
        step: &str,
        steps: Outside<
            impl for<'a> PrepareReaction<'a, S, E, I> + 'static,
            impl for<'a> CallHandler<'a, S, I, A> + 'static,
            impl for<'a> RecordReaction<'a, S, I, A> + 'static,
        >,
    ) -> Self
    where
        E: DeserializeOwned + 'static,
        I: Serialize + DeserializeOwned + Send + 'static,
        A: Send + Sync + 'static,
    {
        let about = About::<E, I, A, _, _, _>::new(steps);
        self.with(step, Doing::Outside(Box::new(about)))
    }

    /// The handler of a compensation whose effect lies outside Postgres, such as a refund: as [`call`](Self::call), and
    /// given what [`undo`](Self::undo) is given. Its key is another one than that of the step.
    pub fn undo_call<E, I, A>(
        self,
        compensation: &str,
        steps: Outside<
            impl for<'a> PrepareReaction<'a, S, E, I> + 'static,
            impl for<'a> CallHandler<'a, S, I, A> + 'static,
            impl for<'a> RecordReaction<'a, S, I, A> + 'static,
        >,
    ) -> Self
    where
        E: DeserializeOwned + 'static,
        I: Serialize + DeserializeOwned + Send + 'static,
        A: Send + Sync + 'static,
    {
        self.call(compensation, steps)
    }

    /// For how long, from the beginning of a saga, it is remembered what was done for it; an hour at least. What is older is
    /// deleted in the background, as with [`Participant::keep`](crate::Participant::keep), and in the service that starts
    /// sagas what is kept of those that have ended. Default: [`KEEP`], 90 days.
    pub fn keep(mut self, keep: Duration) -> Self {
        self.keep = keep.max(KEEP_MIN);
        self
    }

    /// A handle to what it counts; it stays valid after the service has ended.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// A handle to how it is; it stays valid after the service has ended.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    fn with(mut self, name: &str, handler: Doing<S>) -> Self {
        if self.handlers.insert(name.into(), handler).is_some() {
            self.faults.push(format!("{name} has two handlers"));
        }
        self
    }

    /// Starts sagas, in the service where they start. It speaks as is said of the service before.
    pub fn starter(&self) -> Starter {
        let (map, voice, counters) = (&self.map, &self.voice, &self.counters);
        Starter { map: map.clone(), voice: voice.clone(), counters: counters.clone() }
    }

    fn is_first(&self) -> bool {
        let start = self.map.map().start();
        start.is_some_and(|(_, start)| start.service == self.voice.service)
    }

    /// What its faults are about.
    fn of(&self) -> String {
        format!("{} in {}", self.voice.service, self.map.map().definition())
    }

    fn faults(&self) -> Vec<String> {
        let steps = self.map.map().steps.iter();
        let mine: Vec<&Step> = steps.filter(|step| step.service == self.voice.service).collect();
        let mut faults = self.faults.clone();
        faults.extend(speaker::fault(&self.voice.source));
        if mine.is_empty() {
            let services: Vec<&str> = self.map.services().into_iter().collect();
            faults.push(format!(
                "{} is no service of it; these are: {}",
                self.voice.service,
                services.join(", ")
            ));
        }
        let actions = mine.iter().filter(|step| step.on.is_some()).map(|step| &*step.name);
        let compensations = mine.iter().filter_map(|step| step.compensation());
        let declared: BTreeSet<&str> = actions.chain(compensations).collect();
        for name in declared.iter().filter(|name| !self.handlers.contains_key(**name)) {
            faults.push(format!("{name} has no handler"));
        }
        for name in self.handlers.keys().filter(|name| !declared.contains(&***name)) {
            faults.push(format!("{name} has a handler, and is nothing that this service does"));
        }
        faults
    }

    /// Adds topics and handlers to a consumer, which may have others, but none of the same events; from then on at most 50
    /// records share one of its transactions. What would keep the service from [running](Self::run) ends the consumer when
    /// it starts.
    pub fn join(self, consumer: Consumer<S>) -> Consumer<S> {
        metrics::describe();
        let of = self.of();
        let starter = self.is_first().then(|| self.starter());
        let kept = Kept { keep: self.keep, with_starts: starter.is_some() };
        let consumer = consumer
            .batch_records_at_most(BATCH_RECORDS_MAX)
            .starts_if(participant::look(of, self.faults()))
            .beside(move |pool, ends| kept.keep(pool, ends));
        let looks = starter.clone();
        self.health.began(consumer.health(), move || {
            looks.as_ref().map(Starter::degraded).unwrap_or_default()
        });
        let consumer = match starter {
            None => consumer,
            Some(starter) => {
                consumer.beside(move |pool, ends| starter.clone().keep_time(pool, ends))
            }
        };
        self.handlers(consumer)
    }

    /// Runs as a consumer of its own until `stop` resolves: see [`Consumer::run`]. The service in which the sagas start also
    /// watches over their deadlines.
    ///
    /// As with a [participant](crate::Participant::run), at most 50 events share a transaction.
    ///
    /// # Errors
    /// [`Kind::Definition`](crate::Kind::Definition) with all of what has no handler, or has one and is not declared;
    /// [`Kind::Schema`](crate::Kind::Schema) where the tables are missing; otherwise what [`Consumer::run`] says.
    pub async fn run(
        self,
        config: Config<S>,
        stop: impl Future<Output = ()>,
    ) -> Result<Report, Error> {
        // Before the consumer finds that it has nothing to listen to.
        let faults = self.faults();
        if !faults.is_empty() {
            return Err(Error::faults(&self.of(), faults));
        }
        self.join(Consumer::new(config)).run(stop).await.map_err(Error::of_consumer)
    }

    fn handlers(self, consumer: Consumer<S>) -> Consumer<S> {
        let Self { map, voice, handlers, counters, .. } = self;
        let reactor = Arc::new(Reactor { map, voice, handlers, counters });
        let (map, voice) = (&reactor.map, &reactor.voice);
        let taken = map.subscriptions(&voice.service);
        let topics: BTreeSet<&str> = taken.values().map(|service| map.topic_of(service)).collect();
        let consumer =
            topics.into_iter().fold(consumer, |consumer, topic| consumer.topic(voice.topic(topic)));
        taken.keys().fold(consumer, |consumer, event| dispatch::register(consumer, event, &reactor))
    }
}

impl<S> std::fmt::Debug for Service<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service")
            .field("voice", &self.voice)
            .field("handlers", &self.handlers.keys())
            .finish_non_exhaustive()
    }
}
