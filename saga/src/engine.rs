//! The orchestrator: takes events and replies, keeps the time, and drives sagas in its own database.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use sqlx::{Connection, PgConnection, PgPool, Postgres, Transaction};
use tailrace_idempotency::{Config, Consumer};
use tailrace_outbox::{Outbox, Store};

use crate::builder::Saga;
use crate::definition::Definition;
use crate::error::{Error, Kind};
use crate::health::Health;
use crate::lock::{self, Ordered};
use crate::operate;
use crate::schema;
use crate::speaker;
use crate::transition::{PART_TYPE, REPLY_TYPE};

mod apply;
mod intake;
pub mod metrics;
mod moves;
mod registry;
mod sagas;
mod sweep;
mod time;

use apply::Applied;
pub(crate) use metrics::Tally;
pub use metrics::{Counters, Report};
pub use registry::Quarantined;
use registry::Registry;
pub use sagas::{Sagas, Started, tell};

/// After so long without a sign of life an engine counts as gone.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Records in one transaction: beyond this a batch is not faster, only later.
const BATCH_RECORDS_MAX: usize = 200;

/// What happens to an answer or a signal for a saga that nobody knows. It is counted in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unknown {
    /// It waits for so long, and is told to the saga if that appears by then.
    Park(Duration),
    /// It becomes a dead letter of the consumer.
    Reject,
}

/// Drives sagas: starts them upon events, asks participants, takes their answers, keeps the time.
///
/// It is a [`Consumer`] of events and replies beside a loop for timers. Any number of processes may run the same engine;
/// each saga is one's at a time, by its row's lock. All that comes of an input is written in one transaction: the saga,
/// its journal, its timers, and the commands in the outbox; so the engine may be killed anywhere.
///
/// Several versions of a definition run side by side, each saga on the one that it began with. New sagas follow a
/// version once every living engine has it, so that a deploy can go forth and back.
///
/// ```no_run
/// # use tailrace_saga::{Engine, Error, Saga};
/// # use tailrace_idempotency::Config;
/// # async fn run(
/// #     pool: sqlx::PgPool, before: Saga<()>, now: Saga<()>, stop: impl Future<Output = ()>,
/// # ) -> Result<(), Error> {
/// Engine::new()
///     .source("/orders")
///     .saga(&before)
///     .saga(&now)
///     .run(Config::new("order-sagas", "localhost:9092", pool), stop)
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "an engine does nothing until it runs or has joined a consumer"]
pub struct Engine {
    source: String,
    outbox: Outbox,
    prefix: String,
    definitions: Vec<Definition>,
    unknown: Unknown,
    strict: bool,
    counters: Counters,
    health: Health,
}

/// What all parts of an engine share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) registry: Registry,
    pub(crate) outbox: Outbox,
    pub(crate) source: String,
    prefix: String,
    pub(crate) unknown: Unknown,
    pub(crate) counters: Counters,
}

impl Core {
    /// A topic as it is called here.
    pub(crate) fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// As definitions know it.
    pub(crate) fn bare_topic<'t>(&self, topic: &'t str) -> &'t str {
        topic.strip_prefix(self.prefix.as_str()).unwrap_or(topic)
    }

    /// How long what nobody knows is kept.
    pub(crate) fn unknown_for_secs(&self) -> f64 {
        match self.unknown {
            Unknown::Park(time) => time.as_secs_f64(),
            Unknown::Reject => 0.0,
        }
    }
}

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine {
    /// An engine without sagas.
    pub fn new() -> Self {
        Self {
            source: "/sagas".to_owned(),
            outbox: Outbox::new(Store::Wal),
            prefix: String::new(),
            definitions: Vec::new(),
            unknown: Unknown::Park(Duration::from_secs(3600)),
            strict: false,
            health: Health::default(),
            counters: Counters::default(),
        }
    }

    /// Runs sagas of this definition and version, and those that are steps of it.
    pub fn saga<D>(self, saga: &Saga<D>) -> Self {
        self.definition(saga.definition())
    }

    /// As [`saga`](Self::saga), where the type of the data is not at hand.
    pub fn definition(mut self, definition: &Definition) -> Self {
        self.definitions.push(definition.clone());
        definition.steps().filter_map(|step| step.part()).fold(self, Self::definition)
    }

    /// The URI reference of the service, on its commands. Default: `/sagas`.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = source.into();
        self
    }

    /// Where commands are written. Default: the write-ahead log.
    pub fn outbox(mut self, outbox: Outbox) -> Self {
        self.outbox = outbox;
        self
    }

    /// What stands before the name of every topic that definitions and commands name, for environments that share
    /// brokers. Default: nothing.
    pub fn topic_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// What happens to what comes for a saga that nobody knows. Default: it waits for an hour.
    pub fn unknown(mut self, unknown: Unknown) -> Self {
        self.unknown = unknown;
        self
    }

    /// Whether the engine refuses to start while there are running sagas that no living engine can run. Otherwise they
    /// wait, are told of by [`Counters::quarantined`], and all others run. Default: false.
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// A handle to what it counts; it stays valid after the engine has ended.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// A handle to how it is; it stays valid after the engine has ended.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// The engine and a handle by which the service itself starts sagas and tells them something.
    ///
    /// # Errors
    /// [`Kind::Definition`] where two definitions are the same version of one name and not the same, where the lock
    /// orders of definitions contradict each other, or where no message can have the source.
    pub fn prepare(self) -> Result<Prepared, Error> {
        let Self { source, outbox, prefix, definitions, unknown, strict, counters, health } = self;
        for definition in &definitions {
            let is_other = |other: &&Definition| {
                let (one, other) = (definition.identity(), other.identity());
                (&one.name, one.version) == (&other.name, other.version) && one != other
            };
            if let Some(other) = definitions.iter().find(is_other) {
                let text = format!("two definitions are {} and differ", other.identity());
                return Err(Error::definition(text));
            }
        }
        if let Some(fault) = speaker::fault(&source) {
            return Err(Error::definition(fault));
        }
        keep_lock_orders(definitions.iter().map(Ordered::new).collect())?;
        let registry = Registry::new(definitions);
        let core = Arc::new(Core { registry, outbox, source, prefix, unknown, counters });
        Ok(Prepared { core, strict, health })
    }

    /// Adds topics and handlers to a consumer, which may have others: see [`Prepared::join`].
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    pub fn join<S: Send + Sync + 'static>(
        self,
        consumer: Consumer<S>,
    ) -> Result<Consumer<S>, Error> {
        Ok(self.prepare()?.join(consumer))
    }

    /// Runs as a consumer of its own until `stop` resolves: see [`Prepared::run`].
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare) and [`Prepared::run`].
    pub async fn run<S: Send + Sync + 'static>(
        self,
        config: Config<S>,
        stop: impl Future<Output = ()>,
    ) -> Result<Report, Error> {
        self.prepare()?.run(config, stop).await
    }
}

/// An engine that is ready to run.
#[derive(Debug)]
#[must_use = "an engine does nothing until it runs or has joined a consumer"]
pub struct Prepared {
    core: Arc<Core>,
    strict: bool,
    health: Health,
}

impl Prepared {
    /// Starts sagas, and tells them something, in transactions of the service.
    pub fn sagas(&self) -> Sagas {
        Sagas::new(Arc::clone(&self.core))
    }

    /// Adds topics and handlers to a consumer, which may have others, and has the time kept beside it. The consumer's
    /// database is that of the orchestrator. What would keep the engine from [running](Self::run) ends the consumer when
    /// it starts.
    pub fn join<S: Send + Sync + 'static>(self, consumer: Consumer<S>) -> Consumer<S> {
        let Self { core, strict, health } = self;
        metrics::describe();
        let counters = core.counters.clone();
        health.began(consumer.health(), move || counters.degraded());
        let (looks, keeps) = (Arc::clone(&core), Arc::clone(&core));
        handlers(consumer.batch_records_at_most(BATCH_RECORDS_MAX), &core)
            .starts_if(move |pool| {
                let core = Arc::clone(&looks);
                async move { Ok(begin(&core, &pool, strict).await?) }
            })
            .beside(move |pool, ends| time::keep(Arc::clone(&keeps), pool, ends))
    }

    /// Runs as a consumer of its own until `stop` resolves; then what is under way is committed. The name in the
    /// configuration is that of the consumer; the database is that of the orchestrator. At most 200 records share a
    /// transaction, whatever the configuration says.
    ///
    /// # Errors
    /// [`Kind::Schema`] where tables are missing, [`Kind::Quarantined`] where it is [strict](Engine::strict) and
    /// somebody's sagas would stand still, [`Kind::Definition`] where its lock orders contradict those of a living engine;
    /// otherwise what [`Consumer::run`] says.
    pub async fn run<S: Send + Sync + 'static>(
        self,
        config: Config<S>,
        stop: impl Future<Output = ()>,
    ) -> Result<Report, Error> {
        let counters = self.core.counters.clone();
        self.join(Consumer::new(config)).run(stop).await.map_err(Error::of_consumer)?;
        Ok(counters.report())
    }
}

async fn begin(core: &Core, pool: &PgPool, strict: bool) -> Result<(), Error> {
    schema::check_patiently(pool).await?;
    let mut conn = pool
        .acquire()
        .await
        .map_err(|error| Error::database("no connection to the orchestrator's database", error))?;
    let mine = core.registry.identities();
    let quarantined = registry::quarantined(&mut conn, SILENCE_MAX, &mine).await?;
    if strict && !quarantined.is_empty() {
        let list: Vec<String> = quarantined
            .iter()
            .map(|it| format!("{} of {} ({})", it.sagas, it.definition, it.definition.hash))
            .collect();
        let text = format!("nobody can run {} sagas", list.join(", "));
        return Err(Error::new(Kind::Quarantined, text)
            .mended_by("register their definition too, or migrate them"));
    }
    core.counters.quarantine(quarantined);
    let structures: Vec<_> = core.registry.all().map(Definition::structure).collect();
    operate::register(&mut conn, &structures).await?;
    core.registry.beat(&mut conn, SILENCE_MAX).await?;
    // After the sign of life: of two engines that begin at the same time, one at least sees the other.
    let kept = keep_lock_orders(registry::lock_orders(&mut conn, SILENCE_MAX).await?);
    if kept.is_err() {
        core.registry.leave(&mut conn).await?;
    }
    kept
}

/// Sagas that take locks in contradicting orders might wait for each other.
fn keep_lock_orders(definitions: Vec<Ordered>) -> Result<(), Error> {
    let faults = lock::contradictions(&definitions);
    if faults.is_empty() { Ok(()) } else { Err(Error::faults("the lock order", faults)) }
}

fn handlers<S: Send + Sync + 'static>(consumer: Consumer<S>, core: &Arc<Core>) -> Consumer<S> {
    let mut topics = BTreeSet::new();
    let mut events = BTreeSet::new();
    for definition in core.registry.all() {
        topics.insert(core.topic(definition.replies()));
        for (topic, message_type) in definition.starts() {
            topics.insert(core.topic(topic));
            events.insert(message_type.to_owned());
        }
        events.extend(definition.steps().filter_map(|step| step.signal_type().map(str::to_owned)));
    }
    let consumer = topics.into_iter().fold(consumer, Consumer::topic);
    events
        .into_iter()
        .fold(consumer, |consumer, event| {
            consumer.on_batch::<serde_json::Value>(event, intake::Events(Arc::clone(core)))
        })
        .on_batch::<serde_json::Value>(REPLY_TYPE, intake::Replies(Arc::clone(core)))
        .on_batch::<serde_json::Value>(PART_TYPE, intake::Parts(Arc::clone(core)))
}

async fn begin_transaction(conn: &mut PgConnection) -> Result<Transaction<'_, Postgres>, Error> {
    conn.begin().await.map_err(|error| Error::database("a transaction cannot be begun", error))
}

/// Counts, and wakes whoever reads the log.
fn report(applied: &Applied) {
    metrics::tell(applied);
    for (definition, alert) in &applied.alerts {
        tracing::error!(saga = %alert.saga, %definition, step = %alert.step, operation = alert.operation.as_str(),
            trouble = ?alert.trouble, "a saga waits for a person");
    }
}

/// What is looked at now and then, for tests of how much that reads.
#[cfg(test)]
pub(crate) async fn look(conn: &mut PgConnection, definitions: &[&str]) -> Result<(), Error> {
    metrics::look(conn, definitions).await?;
    registry::quarantined(conn, SILENCE_MAX, &[]).await.map(drop)
}

struct Panicked;

/// Runs a future to its end or its panic.
async fn caught<T>(running: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut running = pin!(running);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
        Err(_) => Poll::Ready(Err(Panicked)),
    })
    .await
}

#[cfg(test)]
mod tests;
