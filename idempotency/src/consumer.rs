//! The consumer: which topics, which types, which handlers; and running it.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgPool;
use tokio::sync::oneshot;

use crate::beside::{Company, Ending};
use crate::call::{Call, CallHandler, Prepared, RecordHandler, TypedCall};
use crate::codec::{Codec, Json};
use crate::config::{self, Config, GroupProtocol, Options};
use crate::error::{BoxError, Error, Kind};
use crate::handler::{BatchHandler, Handler};
use crate::health::Health;
use crate::id_source::IdFrom;
use crate::intake::{Intake, Settings, Stop};
use crate::lane::Shared;
use crate::lanes::Lanes;
use crate::metrics::{Counters, Meters, Report};
use crate::milestone::Hook;
use crate::outage::Gate;
use crate::progress::Takeover;
use crate::reaching;
use crate::retry::{Backoff, chance};
use crate::route::{Dispatch, Many, One, Registry, Routes, Typed, decode_by};
use crate::{dead_letter, retention, schema};

/// How often the partitions of the next days are made, and counted, while the consumer runs.
const PARTITIONS_EVERY: Duration = Duration::from_secs(60 * 60);

/// How long a consumer whose lanes have finished waits for the group to see it off, beyond the time for a shutdown.
const LEAVE_WAIT_MAX: Duration = Duration::from_secs(10);

/// What happens to a record whose type has no handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Unhandled {
    /// It is passed over and counted.
    #[default]
    Skip,
    /// It becomes a dead letter.
    DeadLetter,
    /// The consumer halts with an error that names it.
    Halt,
}

/// Applies the records of Kafka topics, each once, in order per key.
///
/// Records of a partition are applied in the order of their offsets, up to
/// [`batch_records_max`](Config::batch_records_max) in one transaction: ownership check and progress, claims,
/// handlers, commit. Several processes with the same name share the partitions.
///
/// A transient fault of the database repeats the batch. A message that fails by itself is tried again on its own
/// and then parked, with every later message of its key behind it, while the other keys go on; a payload that does
/// not decode becomes a dead letter: see [`OnFailure`](crate::OnFailure). What no record can be blamed for, and a
/// record without an id, ends [`run`](Self::run) with an error; its batch is rolled back, nothing is lost, and a
/// restart goes on at the same place.
///
/// ```no_run
/// # use tailrace_idempotency::{BoxError, Config, Consumer, Cx, Outcome};
/// async fn count(cx: Cx<'_>, order: serde_json::Value) -> Result<Outcome, BoxError> {
///     sqlx::query("update statistics set orders = orders + 1").execute(cx.conn).await?;
///     Ok(Outcome::Done)
/// }
///
/// # async fn run(pool: sqlx::PgPool, stop: impl Future<Output = ()>) -> Result<(), BoxError> {
/// Consumer::new(Config::new("statistics", "localhost:9092", pool))
///     .topic("orders")
///     .on("order.placed.v1", count)
///     .run(stop)
///     .await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a consumer does nothing until it runs"]
pub struct Consumer<S = ()> {
    config: Config<S>,
    topics: Vec<Arc<str>>,
    registry: Registry<S>,
    unhandled: Unhandled,
    id_from: Option<IdFrom>,
    company: Company,
    counters: Counters,
    health: Health,
}

impl<S: Send + Sync + 'static> Consumer<S> {
    /// A consumer without topics and handlers.
    pub fn new(config: Config<S>) -> Self {
        let health = config.options.health.clone();
        Self {
            config,
            topics: Vec::new(),
            registry: Registry::default(),
            unhandled: Unhandled::default(),
            id_from: None,
            company: Company::default(),
            counters: Counters::default(),
            health,
        }
    }

    /// Subscribes to a topic, by its exact name. It must exist when the consumer starts. One that is named again, as by
    /// handlers that join, is one.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        let topic = Arc::from(topic.into());
        if !self.topics.contains(&topic) {
            self.topics.push(topic);
        }
        self
    }

    /// Registers the handler of a message type (`ce_type`). The payload's type is that of the handler's
    /// second argument and is read as JSON; a tombstone reads as JSON's `null`.
    pub fn on<E>(
        self,
        message_type: impl Into<String>,
        handler: impl for<'a> Handler<'a, S, E> + 'static,
    ) -> Self
    where
        E: DeserializeOwned + Send + 'static,
    {
        self.on_with(Json, message_type, handler)
    }

    /// As [`on`](Self::on), with payloads that another codec reads.
    pub fn on_with<E>(
        mut self,
        codec: impl Codec<E>,
        message_type: impl Into<String>,
        handler: impl for<'a> Handler<'a, S, E> + 'static,
    ) -> Self
    where
        E: Send + 'static,
    {
        let route = Typed::new(decode_by(codec), One(handler));
        self.registry.add(message_type.into(), Box::new(route));
        self
    }

    /// Registers a handler that applies many messages of a type at once, for speed: a set-based statement
    /// instead of one per message.
    ///
    /// ```no_run
    /// # use serde::Deserialize;
    /// # use tailrace_idempotency::{BatchCx, BoxError, Config, Consumer, Item, Outcome};
    /// #[derive(Deserialize)]
    /// struct PriceChanged {
    ///     article: i64,
    ///     cents: i64,
    /// }
    ///
    /// async fn reprice(
    ///     cx: BatchCx<'_>,
    ///     prices: Vec<Item<'_, PriceChanged>>,
    /// ) -> Result<Outcome, BoxError> {
    ///     // Of several prices of an article the last one counts.
    ///     let (articles, cents): (Vec<i64>, Vec<i64>) =
    ///         prices.iter().map(|price| (price.message.article, price.message.cents)).unzip();
    ///     sqlx::query(
    ///         "update article set cents = latest.cents from (
    ///              select distinct on (id) id, cents
    ///              from unnest($1::bigint[], $2::bigint[]) with ordinality as given (id, cents, place)
    ///              order by id, place desc) as latest
    ///          where article.id = latest.id",
    ///     )
    ///     .bind(articles)
    ///     .bind(cents)
    ///     .execute(cx.conn)
    ///     .await?;
    ///     Ok(Outcome::Done)
    /// }
    ///
    /// # fn consumer(pool: sqlx::PgPool) -> Consumer {
    /// Consumer::new(Config::new("prices", "localhost:9092", pool))
    ///     .topic("prices")
    ///     .on_batch("price.changed.v1", reprice)
    /// # }
    /// ```
    pub fn on_batch<E>(
        self,
        message_type: impl Into<String>,
        handler: impl for<'a> BatchHandler<'a, S, E> + 'static,
    ) -> Self
    where
        E: DeserializeOwned + Send + 'static,
    {
        self.on_batch_with(Json, message_type, handler)
    }

    /// As [`on_batch`](Self::on_batch), with payloads that another codec reads.
    pub fn on_batch_with<E>(
        mut self,
        codec: impl Codec<E>,
        message_type: impl Into<String>,
        handler: impl for<'a> BatchHandler<'a, S, E> + 'static,
    ) -> Self
    where
        E: Send + 'static,
    {
        let route = Typed::new(decode_by(codec), Many(handler));
        self.registry.add(message_type.into(), Box::new(route));
        self
    }

    /// Registers a handler whose effect lies outside Postgres, such as a payment: it is prepared in one transaction,
    /// made outside of any with the message's id as its idempotency key, and recorded in another.
    ///
    /// ```no_run
    /// # use serde::{Deserialize, Serialize};
    /// # use tailrace_idempotency::*;
    /// #[derive(Serialize, Deserialize)]
    /// struct Payment {
    ///     order: i64,
    ///     cents: i64,
    /// }
    ///
    /// async fn prepare(cx: Cx<'_>, payment: Payment) -> Result<Prepared<Payment>, BoxError> {
    ///     let asked = "insert into payment (order_id, state) values ($1, 'asked')";
    ///     sqlx::query(asked).bind(payment.order).execute(cx.conn).await?;
    ///     Ok(Prepared::Call(payment))
    /// }
    ///
    /// async fn charge(cx: CallCx<'_>, payment: Payment) -> Result<Answer<String>, BoxError> {
    ///     let receipt = provider::charge(cx.key.to_string(), payment.cents).await?;
    ///     Ok(Answer::Done(receipt))
    /// }
    ///
    /// async fn paid(cx: Cx<'_>, payment: Payment, receipt: String) -> Result<(), BoxError> {
    ///     let paid = "update payment set state = 'paid', receipt = $2 where order_id = $1";
    ///     sqlx::query(paid).bind(payment.order).bind(receipt).execute(cx.conn).await?;
    ///     Ok(())
    /// }
    ///
    /// # mod provider {
    /// #     pub async fn charge(key: String, _: i64) -> Result<String, std::io::Error> { Ok(key) }
    /// # }
    /// # fn consumer(pool: sqlx::PgPool) -> Consumer {
    /// Consumer::new(Config::new("payments", "localhost:9092", pool))
    ///     .topic("payments")
    ///     .on_call("payment.requested.v1", Call::new(prepare, charge, paid))
    /// # }
    /// ```
    pub fn on_call<E, I, A>(
        self,
        message_type: impl Into<String>,
        call: Call<
            impl for<'a> Handler<'a, S, E, Prepared<I>> + 'static,
            impl for<'a> CallHandler<'a, S, I, A> + 'static,
            impl for<'a> RecordHandler<'a, S, I, A> + 'static,
        >,
    ) -> Self
    where
        E: DeserializeOwned + Send + 'static,
        I: Serialize + DeserializeOwned + Send + 'static,
        A: Send + Sync + 'static,
    {
        self.on_call_with(Json, message_type, call)
    }

    /// As [`on_call`](Self::on_call), with payloads that another codec reads.
    pub fn on_call_with<E, I, A>(
        mut self,
        codec: impl Codec<E>,
        message_type: impl Into<String>,
        call: Call<
            impl for<'a> Handler<'a, S, E, Prepared<I>> + 'static,
            impl for<'a> CallHandler<'a, S, I, A> + 'static,
            impl for<'a> RecordHandler<'a, S, I, A> + 'static,
        >,
    ) -> Self
    where
        E: Send + 'static,
        I: Serialize + DeserializeOwned + Send + 'static,
        A: Send + Sync + 'static,
    {
        let route = TypedCall::new(decode_by(codec), call);
        self.registry.add(message_type.into(), Box::new(route));
        self
    }

    /// Hands messages of an older type to the handler that was registered last, as what it takes: the older payload
    /// is read as JSON and turned into the newer one.
    pub fn upcast<Old, New>(
        self,
        message_type: impl Into<String>,
        turn: impl Fn(Old) -> New + Send + Sync + 'static,
    ) -> Self
    where
        Old: DeserializeOwned + 'static,
        New: 'static,
    {
        self.upcast_with(Json, message_type, turn)
    }

    /// As [`upcast`](Self::upcast), with older payloads that another codec reads.
    pub fn upcast_with<Old: 'static, New: 'static>(
        mut self,
        codec: impl Codec<Old>,
        message_type: impl Into<String>,
        turn: impl Fn(Old) -> New + Send + Sync + 'static,
    ) -> Self {
        let decode = Box::new(move |payload: Option<&[u8]>| codec.decode(payload).map(&turn));
        self.registry.upcast::<New>(message_type.into(), decode);
        self
    }

    /// What happens to records of other types. Default: [`Unhandled::Skip`].
    pub fn unhandled(mut self, unhandled: Unhandled) -> Self {
        self.unhandled = unhandled;
        self
    }

    /// Where the message id stands in records without the header `ce_id`. Without this, such a record halts the
    /// consumer. Default: nowhere else.
    pub fn id_from(mut self, id_from: IdFrom) -> Self {
        self.id_from = Some(id_from);
        self
    }

    /// At most so many records in a transaction, whatever the configuration says: for handlers that know why, such as
    /// those that set savepoints.
    pub fn batch_records_at_most(mut self, records: usize) -> Self {
        let max = &mut self.config.options.batch_records_max;
        *max = (*max).min(records);
        self
    }

    /// Has something looked at when the consumer starts, before it takes a record: an error ends
    /// [`run`](Self::run). It is the [source](std::error::Error::source) of what that answers, if it is no
    /// [`Error`] itself.
    pub fn starts_if<F>(mut self, look: impl Fn(PgPool) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.company.look(look);
        self
    }

    /// Has a chore done for as long as the consumer runs, in a task beside it: it begins before the first record is
    /// taken, and is to end soon once `Ending` resolves, for which it has 5 seconds. A chore that panics ends the
    /// consumer with an error.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tailrace_idempotency::{Config, Consumer};
    /// # fn consumer(pool: sqlx::PgPool) -> Consumer {
    /// Consumer::new(Config::new("orders", "localhost:9092", pool)).beside(async |pool, mut ending| {
    ///     let mut tick = tokio::time::interval(Duration::from_secs(3600));
    ///     loop {
    ///         tokio::select! {
    ///             () = ending.wait() => return,
    ///             _ = tick.tick() => {
    ///                 let old = sqlx::query("delete from quote where made_at < now() - interval '1 day'");
    ///                 drop(old.execute(&pool).await);
    ///             }
    ///         }
    ///     }
    /// })
    /// # }
    /// ```
    pub fn beside<F>(mut self, chore: impl Fn(PgPool, Ending) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.company.chore(chore);
        self
    }

    /// A handle to the live counters; it stays valid after the consumer has ended.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// A handle to how it is; it stays valid after the consumer has ended.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Runs until `shutdown` resolves; then running batches are finished and committed, the group is left,
    /// and the counts are returned.
    ///
    /// The Kafka client works on a thread of its own; handlers run on the runtime that runs this future.
    /// Dropping the future stops the consumer without finishing its batches, which are rolled back.
    ///
    /// # Errors
    /// At start: faults of the configuration, tables that are missing or old, a database or brokers that do
    /// not answer, a topic that does not exist. Later: the first thing that stands in the way.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<Report, Error> {
        self.validate()?;
        self.into_runner().run(shutdown).await
    }

    fn validate(&self) -> Result<(), Error> {
        config::faults(self.faults())
    }

    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = self.config.faults();
        if self.topics.is_empty() {
            faults.push("no topic is subscribed".to_owned());
        }
        if self.topics.iter().any(|topic| topic.is_empty() || topic.starts_with('^')) {
            faults.push("topics are subscribed by their exact names".to_owned());
        }
        faults.extend(self.registry.faults());
        faults
    }

    /// Whether a handler has effects outside Postgres.
    pub(crate) fn makes_calls(&self) -> bool {
        self.registry.makes_calls()
    }

    pub(crate) fn into_runner(self) -> Runner {
        let Config { state, options } = self.config;
        Runner {
            options,
            topics: self.topics,
            dispatch: Arc::new(Routes { state, registry: self.registry }),
            unhandled: self.unhandled,
            id_from: self.id_from.map(Arc::new),
            company: self.company,
            counters: self.counters,
            health: self.health,
            entering: String::new(),
            group: None,
            hook: None,
        }
    }
}

/// A consumer that has forgotten the types of its handlers, and may run more than once.
#[derive(Clone)]
pub(crate) struct Runner {
    pub(crate) options: Options,
    pub(crate) topics: Vec<Arc<str>>,
    dispatch: Arc<dyn Dispatch>,
    unhandled: Unhandled,
    id_from: Option<Arc<IdFrom>>,
    company: Company,
    pub(crate) counters: Counters,
    health: Health,
    /// A statement with which each transaction of the handlers begins; none if empty.
    pub(crate) entering: String,
    /// The Kafka group, where it is not the consumer's name.
    pub(crate) group: Option<String>,
    pub(crate) hook: Option<Hook>,
}

impl Runner {
    pub(crate) async fn run(self, shutdown: impl Future<Output = ()>) -> Result<Report, Error> {
        let (counters, health) = (self.counters.clone(), self.health.clone());
        let pool = self.options.pool.clone();
        let leave_within = self.options.shutdown_deadline + LEAVE_WAIT_MAX;
        let sends_letters = self.options.policy.dead_letter_topic.is_some();
        let stop = Arc::new(Stop::default());
        let _abandoned_when_dropped = Abandon(Arc::clone(&stop), health.clone());
        prepare(&pool, self.options.start_deadline, sends_letters).await?;
        self.company.may_begin(&pool).await?;
        let mut working = self.company.begin(&pool);

        let meters = Meters::new(&self.options.consumer);
        count_days(&pool, &meters).await;
        let Thread { mut served, left } = self.spawn(Arc::clone(&stop))?;
        let mut shutdown = pin!(shutdown);
        let (mut stopping, mut broken) = (false, false);
        let result = loop {
            tokio::select! {
                served = &mut served => break served,
                () = working.broken(), if !broken => {
                    (stopping, broken) = (true, true);
                    stop.finish();
                }
                () = &mut shutdown, if !stopping => {
                    stopping = true;
                    stop.finish();
                }
                () = tokio::time::sleep(PARTITIONS_EVERY) => {
                    make_partitions(&pool).await;
                    count_days(&pool, &meters).await;
                }
            }
        };
        if tokio::time::timeout(leave_within, left).await.is_err() {
            tracing::warn!("the group was not left in time; its coordinator will notice by itself");
        }
        working.end().await;
        meters.counted(&counters.report(), false);
        match result {
            Ok(Ok(())) if broken => {
                Err(Error::new(Kind::Internal, "what runs beside the consumer has panicked"))
            }
            Ok(served) => served.map(|()| counters.report()),
            Err(_) => Err(Error::new(Kind::Internal, "the intake's thread broke off")),
        }
    }

    fn spawn(self, stop: Arc<Stop>) -> Result<Thread, Error> {
        let options = self.options;
        let mut client = client_config(&options);
        if let Some(group) = &self.group {
            client.set("group.id", group);
        }
        let protocol = match options.group_protocol {
            GroupProtocol::Auto if options.has_classic_properties() => GroupProtocol::Classic,
            protocol => protocol,
        };
        let meters = Meters::new(&options.consumer);
        let handler_time_out = options.handler_time_out();
        let Options { consumer, brokers, pool, .. } = options;
        let shared = Arc::new(Shared {
            consumer,
            pool,
            gate: Gate::new(options.database_breaker, self.counters.clone(), self.health.clone()),
            dispatch: self.dispatch,
            unhandled: self.unhandled,
            id_from: self.id_from,
            entering: self.entering,
            hook: self.hook,
            counters: self.counters,
            meters,
            health: self.health,
            batch_records_max: options.batch_records_max,
            batch_wait: options.batch_wait,
            retry_for: options.retry_for,
            calls_max: options.calls_max,
            policy: options.policy,
            dedupe: options.dedupe,
            unsequenced: options.unsequenced,
            lanes: Lanes::new(options.lanes),
            rebalance_deadline: options.rebalance_deadline,
            handler_time_out,
        });
        let settings = Settings {
            client,
            protocol,
            brokers,
            topics: self.topics,
            start: options.start,
            start_deadline: options.start_deadline,
            drain_deadline: options.shutdown_deadline,
            takeover: Takeover {
                lanes: Lanes::new(options.lanes),
                deadline: options.rebalance_deadline,
                dedupe: options.dedupe,
            },
        };
        let runtime = tokio::runtime::Handle::current();
        let (served_sender, served) = oneshot::channel();
        let (left_sender, left) = oneshot::channel();
        let health = shared.health.clone();
        std::thread::Builder::new()
            .name("tailrace-intake".to_owned())
            .spawn(move || {
                match Intake::open(settings, shared, runtime, stop) {
                    Ok(mut intake) => {
                        health.began();
                        // Nobody may be waiting any more; then there is nobody to tell.
                        drop(served_sender.send(intake.serve()));
                        intake.leave();
                    }
                    Err(error) => drop(served_sender.send(Err(error))),
                }
                left_sender.send(()).unwrap_or_default();
            })
            .map_err(|error| {
                Error::new(Kind::Internal, "the intake's thread cannot be started").caused_by(error)
            })?;
        Ok(Thread { served, left })
    }
}

impl<S> std::fmt::Debug for Consumer<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("config", &self.config)
            .field("topics", &self.topics)
            .field("types", &self.registry)
            .field("unhandled", &self.unhandled)
            .finish_non_exhaustive()
    }
}

/// The intake's thread: it tells how it ended once its lanes are done, and once the group is left.
struct Thread {
    served: oneshot::Receiver<Result<(), Error>>,
    left: oneshot::Receiver<()>,
}

struct Abandon(Arc<Stop>, Health);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.abandon();
        self.1.ended();
    }
}

/// Checks the tables and makes the partitions of the next days, and waits for a database that is away. The pool does so
/// where nobody listens; one that is shutting down, or dies under the first statements, is as much on its way back.
pub(crate) async fn prepare(
    pool: &PgPool,
    deadline: Duration,
    sends_letters: bool,
) -> Result<(), Error> {
    let mut last = None;
    let prepared = async {
        let mut patience = Backoff::new(deadline);
        loop {
            let error = match prepare_once(pool, &mut last, sends_letters).await {
                Err(error) if error.is_transient() => error,
                ended => return ended,
            };
            let Some(wait) = patience.failed(Instant::now(), chance()) else { return Err(error) };
            tracing::warn!(
                error = %error, cause = error.fault().map(tracing::field::display),
                code = error.database_code(), "the start waits for postgres"
            );
            last = Some(error);
            tokio::time::sleep(wait).await;
        }
    };
    match tokio::time::timeout(deadline, prepared).await {
        Ok(prepared) => prepared,
        Err(_) => Err(last.unwrap_or_else(|| reaching::failed(pool, reaching::silence()))),
    }
}

async fn prepare_once(
    pool: &PgPool,
    last: &mut Option<Error>,
    sends_letters: bool,
) -> Result<(), Error> {
    let mut conn = reaching::reach(pool, last).await?;
    schema::check(&mut conn).await?;
    if sends_letters {
        dead_letter::check(&mut conn).await?;
    }
    retention::make_partitions_ahead(&mut conn).await.map(drop)
}

async fn make_partitions(pool: &PgPool) {
    let made = async {
        let mut conn = pool
            .acquire()
            .await
            .map_err(|error| Error::database("no connection to postgres", error))?;
        retention::make_partitions_ahead(&mut conn).await
    };
    if let Err(error) = made.await {
        tracing::warn!(error = %error, "partitions were not made ahead; claims make them on demand");
    }
}

/// Claims make what is missing on demand, at a price; that it comes to this is an alarm.
async fn count_days(pool: &PgPool, meters: &Meters) {
    let counted = async {
        let mut conn = pool
            .acquire()
            .await
            .map_err(|error| Error::database("no connection to postgres", error))?;
        retention::days_ahead(&mut conn).await
    };
    match counted.await {
        Ok(days) => {
            meters.days_ahead(days);
            if days < retention::DAYS_AHEAD_MIN {
                tracing::error!(days, "claims have partitions for fewer than two days ahead");
            }
        }
        Err(error) => tracing::debug!(error = %error, "the days ahead were not counted"),
    }
}

pub(crate) fn client_config(options: &Options) -> ClientConfig {
    let mut client = ClientConfig::new();
    // The client keeps a queue for each partition, and each is bounded for itself. A queue that was full is filled
    // again at once, not after the default second, in which a fast lane would run dry.
    client.set("queued.max.messages.kbytes", "4096").set("fetch.queue.backoff.ms", "5");
    for (name, value) in &options.kafka_properties {
        client.set(name, value);
    }
    client
        .set("bootstrap.servers", &options.brokers)
        .set("group.id", &options.consumer)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "error");
    client
}

#[cfg(test)]
mod tests;
