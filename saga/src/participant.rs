//! A service that carries out the commands of sagas.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::{PgConnection, PgPool};
use tailrace_idempotency::{BoxError, CallHandler, Config, Consumer, Report};
use tailrace_outbox::{Outbox, Store};

use crate::barrier::rows;
use crate::command::Command;
use crate::error::Error;
use crate::health::Health;
use crate::retention::{KEEP, KEEP_MIN, Kept};
use crate::schema;
use crate::speaker;

mod calling;
mod carry_out;
mod handler;
pub(crate) mod outside;

use calling::{Acting, Outward, Undoing};
use carry_out::Step;
pub(crate) use handler::BoxFuture;
use handler::Plain;
pub use handler::{Action, Cx, Undo};
use outside::Outwardly;
pub use outside::{Outside, Prepare, PrepareUndo, Record, RecordUndo};

/// Carries out the commands of a topic: each effect at most once per saga and step, and once undone, undone for good.
///
/// It is a set of handlers of a [`Consumer`]. The consumer's transaction holds all of it: the barrier that remembers
/// what was done for the step, the effect, and the reply in the outbox. So
///
/// - a command that comes again is answered as before, and runs nothing,
/// - a compensation whose action never came does nothing, and keeps the action from ever running,
/// - an action that comes after its compensation, or after its deadline, does not run,
/// - a compensation is given what its action had answered, also where the orchestrator never heard of it.
///
/// Needs the tables of [`schema`] and of [`tailrace_idempotency::schema`], and a relay for the replies.
///
/// ```no_run
/// # use serde::{Deserialize, Serialize};
/// use tailrace_idempotency::{BoxError, Config};
/// use tailrace_saga::{Command, Participant, participant::Cx};
///
/// # #[derive(Serialize, Deserialize)] struct ReserveCredit { customer: String, cents: i64 }
/// # #[derive(Serialize, Deserialize)] struct CreditReserved { hold: i64 }
/// # #[derive(Serialize, Deserialize)] struct CreditLimitExceeded;
/// # impl Command for ReserveCredit {
/// #     const TYPE: &'static str = "credit.reserve.v1";
/// #     const TOPIC: &'static str = "customers.commands";
/// #     type Reply = CreditReserved;
/// #     type Refusal = CreditLimitExceeded;
/// # }
/// async fn reserve_credit(
///     cx: Cx<'_>,
///     command: ReserveCredit,
/// ) -> Result<Result<CreditReserved, CreditLimitExceeded>, BoxError> {
///     let hold: Option<(i64,)> = sqlx::query_as(
///         "update customer set free_cents = free_cents - $2
///          where name = $1 and free_cents >= $2 returning $2",
///     )
///     .bind(&command.customer)
///     .bind(command.cents)
///     .fetch_optional(cx.conn)
///     .await?;
///     Ok(hold.map(|(hold,)| CreditReserved { hold }).ok_or(CreditLimitExceeded))
/// }
///
/// async fn release_credit(
///     cx: Cx<'_>,
///     command: ReserveCredit,
///     reserved: CreditReserved,
/// ) -> Result<(), BoxError> {
///     sqlx::query("update customer set free_cents = free_cents + $2 where name = $1")
///         .bind(&command.customer)
///         .bind(reserved.hold)
///         .execute(cx.conn)
///         .await?;
///     Ok(())
/// }
///
/// # async fn run(pool: sqlx::PgPool, stop: impl Future<Output = ()>) -> Result<(), BoxError> {
/// Participant::on("customers.commands")
///     .source("/customers")
///     .handle(reserve_credit)
///     .undo(release_credit)
///     .run(Config::new("customers", "localhost:9092", pool), stop)
///     .await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a participant does nothing until it runs or has joined a consumer"]
pub struct Participant<S = ()> {
    topic: String,
    prefix: String,
    source: String,
    outbox: Outbox,
    keep: Duration,
    health: Health,
    steps: Vec<Box<dyn Registered<S>>>,
}

/// A [`Participant`] whose last action may get a compensation.
#[must_use = "a participant does nothing until it runs or has joined a consumer"]
pub struct Handling<S, C: Command> {
    participant: Participant<S>,
    acting: Acting<S, C>,
}

impl<S: Send + Sync + 'static> Participant<S> {
    /// A participant that listens to this topic, which must exist when it starts.
    pub fn on(topic: impl Into<String>) -> Self {
        let topic = topic.into();
        let source = format!("/{topic}");
        let (prefix, outbox) = (String::new(), Outbox::new(Store::Wal));
        let (keep, health, steps) = (KEEP, Health::default(), Vec::new());
        Self { topic, prefix, source, outbox, keep, health, steps }
    }

    /// What stands before the name of the topic, for environments that share brokers; the engine's is the same. Default:
    /// nothing.
    pub fn topic_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The URI reference of the service, on its replies. Default: the topic's name behind a slash.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = source.into();
        self
    }

    /// Where replies are written. Default: the write-ahead log.
    pub fn outbox(mut self, outbox: Outbox) -> Self {
        self.outbox = outbox;
        self
    }

    /// For how long, from the beginning of a saga, it is remembered what was done for its steps; an hour at least. What is
    /// older is deleted in the background, a bounded number of rows at a time, beside whatever is under way.
    ///
    /// A command of an older saga becomes a dead letter, since nobody knows whether it was carried out. So this is longer
    /// than any saga can last: its deadline, the time for which a compensation is tried, and that for which claims of the
    /// consumer are kept. Of several participants and services on one database all are given the same, since they
    /// remember in one table: the shortest time counts. [`Duration::MAX`] keeps everything. Default: [`KEEP`], 90 days.
    pub fn keep(mut self, keep: Duration) -> Self {
        self.keep = keep.max(KEEP_MIN);
        self
    }

    /// A handle to how it is; it stays valid after it has ended.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Registers the action of a command, by the type of its second argument.
    ///
    /// A compensation of it, unless [`Handling::undo`] follows, becomes a dead letter.
    pub fn handle<C: Command>(
        self,
        action: impl for<'a> Action<'a, S, C> + 'static,
    ) -> Handling<S, C> {
        Handling { participant: self, acting: Acting::Within(Arc::new(Plain(action))) }
    }

    /// Registers the action of a command whose effect lies outside Postgres: see [`Outside`].
    ///
    /// - `prepare: async fn(Cx<'_, S>, C) -> Result<Result<Intent, C::Refusal>, _>`
    /// - `record: async fn(Cx<'_, S>, Intent, Answered) -> Result<Result<C::Reply, C::Refusal>, _>`
    pub fn call<C, I, A>(
        self,
        steps: Outside<
            impl for<'a> Prepare<'a, S, C, I> + 'static,
            impl for<'a> CallHandler<'a, S, I, A> + 'static,
            impl for<'a> Record<'a, S, C, I, A> + 'static,
        >,
    ) -> Handling<S, C>
    where
        C: Command,
        I: Serialize + DeserializeOwned + Send + 'static,
        A: Send + Sync + 'static,
    {
        let outside = Outwardly::<I, A, _, _, _>::new(steps);
        Handling { participant: self, acting: Acting::Outside(Arc::new(outside)) }
    }

    /// Adds topic and handlers to a consumer, which may have others; from then on at most 50 records share one of its
    /// transactions. What would keep the participant from [running](Self::run) ends the consumer when it starts.
    pub fn join(self, consumer: Consumer<S>) -> Consumer<S> {
        let faults = self.faults();
        let Self { topic, prefix, source, outbox, keep, health, steps } = self;
        health.began(consumer.health(), Vec::new);
        let kept = Kept { keep, with_starts: false };
        let of = format!("the participant on {topic}");
        let consumer = consumer
            .topic(format!("{prefix}{topic}"))
            .batch_records_at_most(BATCH_RECORDS_MAX)
            .starts_if(look(of, faults))
            .beside(move |pool, ends| kept.keep(pool, ends));
        let voice = Arc::new(carry_out::Voice { source, outbox });
        steps.into_iter().fold(consumer, |consumer, step| step.join(Arc::clone(&voice), consumer))
    }

    /// Runs as a consumer of its own until `stop` resolves: see [`Consumer::run`].
    ///
    /// At most 50 commands share a transaction, or fewer where the configuration says so: each may be behind a savepoint,
    /// and a transaction with more than 64 of them slows down every reader of the database. A transaction that deadlocks
    /// with another one is repeated with half as many, and later ones grow by one command at a time.
    ///
    /// # Errors
    /// [`Kind::Definition`](crate::Kind::Definition) where a command that it handles is sent to another topic;
    /// [`Kind::Schema`](crate::Kind::Schema) where the tables are missing; otherwise what [`Consumer::run`] says.
    pub async fn run(
        self,
        config: Config<S>,
        stop: impl Future<Output = ()>,
    ) -> Result<Report, Error> {
        self.join(Consumer::new(config)).run(stop).await.map_err(Error::of_consumer)
    }
}

impl<S> Participant<S> {
    /// A source that no reply can have, and commands that never come here, since they are sent elsewhere. A prefix may
    /// stand in the topic's name.
    fn faults(&self) -> Vec<String> {
        let strays = self.steps.iter().filter(|step| !self.topic.ends_with(step.topic()));
        let strays = strays.map(|step| format!("{} is sent to {}", step.command(), step.topic()));
        speaker::fault(&self.source).into_iter().chain(strays).collect()
    }
}

/// For [`Consumer::starts_if`]: whether what is registered is right, and the tables are there.
pub(crate) fn look(
    of: String,
    faults: Vec<String>,
) -> impl Fn(PgPool) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync + 'static {
    move |pool| match faults.is_empty() {
        true => Box::pin(schema::look(pool)),
        false => {
            let wrong = Error::faults(&of, faults.clone());
            Box::pin(async { Err(wrong.into()) })
        }
    }
}

/// Below PGPROC_MAX_CACHED_SUBXIDS of Postgres (`src/include/storage/proc.h`), which is 64.
pub(crate) const BATCH_RECORDS_MAX: usize = 50;

impl<S: Send + Sync + 'static, C: Command> Handling<S, C> {
    /// Registers the compensation of the action before it.
    pub fn undo(self, undo: impl for<'a> Undo<'a, S, C> + 'static) -> Participant<S> {
        self.with(Undoing::Within(Arc::new(Plain(undo))))
    }

    /// Registers the compensation of the action before it, whose effect lies outside Postgres, such as a refund: see
    /// [`Outside`]. Its key is another one than that of the action.
    ///
    /// - `prepare: async fn(Cx<'_, S>, C, C::Reply) -> Result<Intent, _>`
    /// - `record: async fn(Cx<'_, S>, Intent, Answered) -> Result<(), _>`
    pub fn undo_call<I, A>(
        self,
        steps: Outside<
            impl for<'a> PrepareUndo<'a, S, C, I> + 'static,
            impl for<'a> CallHandler<'a, S, I, A> + 'static,
            impl for<'a> RecordUndo<'a, S, I, A> + 'static,
        >,
    ) -> Participant<S>
    where
        I: Serialize + DeserializeOwned + Send + 'static,
        A: Send + Sync + 'static,
    {
        self.with(Undoing::Outside(Arc::new(Outwardly::<I, A, _, _, _>::new(steps))))
    }

    /// The participant as it is; the last action cannot be undone.
    pub fn done(self) -> Participant<S> {
        self.with(Undoing::Never)
    }

    /// As [`Participant::handle`]; the action before it cannot be undone.
    pub fn handle<D: Command>(
        self,
        action: impl for<'a> Action<'a, S, D> + 'static,
    ) -> Handling<S, D> {
        self.with(Undoing::Never).handle(action)
    }

    /// As [`Participant::call`]; the action before it cannot be undone.
    pub fn call<D, I, A>(
        self,
        steps: Outside<
            impl for<'a> Prepare<'a, S, D, I> + 'static,
            impl for<'a> CallHandler<'a, S, I, A> + 'static,
            impl for<'a> Record<'a, S, D, I, A> + 'static,
        >,
    ) -> Handling<S, D>
    where
        D: Command,
        I: Serialize + DeserializeOwned + Send + 'static,
        A: Send + Sync + 'static,
    {
        self.with(Undoing::Never).call(steps)
    }

    /// As [`Participant::join`]; the last action cannot be undone.
    pub fn join(self, consumer: Consumer<S>) -> Consumer<S> {
        self.with(Undoing::Never).join(consumer)
    }

    /// As [`Participant::run`]; the last action cannot be undone.
    ///
    /// # Errors
    /// As there.
    pub async fn run(
        self,
        config: Config<S>,
        stop: impl Future<Output = ()>,
    ) -> Result<Report, Error> {
        self.with(Undoing::Never).run(config, stop).await
    }

    fn with(self, undoing: Undoing<S, C>) -> Participant<S> {
        let Self { mut participant, acting } = self;
        participant.steps.push(Box::new(Operations { acting, undoing }));
        participant
    }
}

/// What is registered for a command.
struct Operations<S, C: Command> {
    acting: Acting<S, C>,
    undoing: Undoing<S, C>,
}

/// [`Operations`] without the type of their command.
trait Registered<S>: Send + Sync {
    fn join(self: Box<Self>, voice: Arc<carry_out::Voice>, consumer: Consumer<S>) -> Consumer<S>;

    fn command(&self) -> &'static str;

    /// Where the command is sent to.
    fn topic(&self) -> &'static str;
}

impl<S: Send + Sync + 'static, C: Command> Registered<S> for Operations<S, C> {
    fn join(self: Box<Self>, voice: Arc<carry_out::Voice>, consumer: Consumer<S>) -> Consumer<S> {
        match *self {
            Self { acting: Acting::Within(action), undoing: Undoing::Within(undo) } => {
                let (undo, care) = (Some(undo), Arc::default());
                consumer.on_batch::<C>(C::TYPE, Step { action, undo, voice, care })
            }
            Self { acting: Acting::Within(action), undoing: Undoing::Never } => {
                let (undo, care) = (None, Arc::default());
                consumer.on_batch::<C>(C::TYPE, Step { action, undo, voice, care })
            }
            Self { acting, undoing } => Outward { acting, undoing, voice }.join(consumer),
        }
    }

    fn command(&self) -> &'static str {
        C::TYPE
    }

    fn topic(&self) -> &'static str {
        C::TOPIC
    }
}

impl<S> std::fmt::Debug for Participant<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let commands: Vec<_> = self.steps.iter().map(|step| step.command()).collect();
        f.debug_struct("Participant")
            .field("topic", &self.topic)
            .field("commands", &commands)
            .finish_non_exhaustive()
    }
}

impl<S, C: Command> std::fmt::Debug for Handling<S, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handling")
            .field("participant", &self.participant)
            .field("last", &C::TYPE)
            .finish_non_exhaustive()
    }
}

/// Deletes what is remembered of sagas that began before this time, at most `rows_max` rows, and says how many.
///
/// A participant does so by itself, by [`Participant::keep`]; this is for whoever wants it at a time of his own, until it
/// answers with 0. Sagas of the last minute, and rows for which a call is made, stay in any case.
///
/// # Errors
/// [`Kind::Database`](crate::Kind::Database).
pub async fn forget(
    conn: &mut PgConnection,
    begun_before: SystemTime,
    rows_max: u32,
) -> Result<u64, Error> {
    rows::forget(conn, begun_before, i64::from(rows_max)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{CapturePayment, QuoteShipping};

    async fn capture(_: Cx<'_>, _: CapturePayment) -> Result<Result<(), ()>, BoxError> {
        Ok(Ok(()))
    }

    async fn quote(_: Cx<'_>, _: QuoteShipping) -> Result<Result<(), ()>, BoxError> {
        Ok(Ok(()))
    }

    #[test]
    fn a_source_that_no_reply_can_have_is_a_fault() {
        let participant: Participant =
            Participant::on("payments.commands").source("a b\n").handle(capture).done();

        let faults = participant.faults();

        assert!(faults.len() == 1 && faults[0].contains("the source \"a b\\n\""), "{faults:?}");
    }

    #[test]
    fn a_command_that_is_sent_elsewhere_is_a_fault() {
        for topic in ["payments.commands", "test.payments.commands"] {
            let participant: Participant =
                Participant::on(topic).handle(capture).handle(quote).done();

            assert_eq!(participant.faults(), ["shipping.quote.v1 is sent to shipping.commands"]);
        }
    }
}
