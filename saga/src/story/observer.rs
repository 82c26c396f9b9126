//! The consumer that keeps the story.

use std::collections::BTreeSet;
use std::time::SystemTime;

use sqlx::PgConnection;
use tailrace_idempotency::{
    BatchCx, BatchHandler, BoxError, Codec, Config, Consumer, Item, Outcome, Report,
};
use uuid::Uuid;

use super::Entry;
use crate::choreography::Choreography;
use crate::correlation::{Answer, Correlation, SagaId};
use crate::definition::Definition;
use crate::error::Error;
#[cfg(doc)]
use crate::error::Kind;
use crate::participant::BoxFuture;
use crate::schema;
use crate::transition::{PART_TYPE, REPLY_TYPE};

/// Keeps the story of sagas.
///
/// ```no_run
/// # use tailrace_saga::{Choreography, Error, Saga, story::Observer};
/// # use tailrace_idempotency::Config;
/// # async fn run(
/// #     pool: sqlx::PgPool, create_order: Choreography, book_trip: Saga<()>, stop: impl Future<Output = ()>,
/// # ) -> Result<(), Error> {
/// Observer::new()
///     .choreography(&create_order)
///     .saga(&book_trip)
///     .run(Config::new("saga-observer", "localhost:9092", pool), stop)
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
#[must_use = "an observer does nothing until it runs or has joined a consumer"]
pub struct Observer {
    prefix: String,
    topics: BTreeSet<String>,
    types: BTreeSet<String>,
}

impl Observer {
    /// An observer of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps the events of a choreography.
    pub fn choreography(mut self, choreography: &Choreography) -> Self {
        for (event, service) in choreography.events() {
            self.types.insert(event.to_owned());
            self.topics.insert(choreography.topic_of(service).to_owned());
        }
        self
    }

    /// Keeps the commands and replies of an orchestrated saga, and of those that are steps of it.
    pub fn saga(mut self, saga: &impl AsRef<Definition>) -> Self {
        let definition = saga.as_ref();
        self.topics.insert(definition.replies().to_owned());
        self.types.extend([REPLY_TYPE.to_owned(), PART_TYPE.to_owned()]);
        for (topic, command) in definition.steps().filter_map(|step| step.command()) {
            self.topics.insert(topic.to_owned());
            self.types.insert(command.to_owned());
        }
        definition.steps().filter_map(|step| step.part()).fold(self, Self::saga)
    }

    /// What stands before the name of every topic, for environments that share brokers. Default: nothing.
    pub fn topic_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Adds topics and handlers to a consumer that has no handlers of the same messages.
    pub fn join<S: Send + Sync + 'static>(self, consumer: Consumer<S>) -> Consumer<S> {
        let Self { prefix, topics, types } = self;
        let topics = topics.into_iter().map(|topic| format!("{prefix}{topic}"));
        let consumer = topics.fold(consumer, Consumer::topic).starts_if(schema::look);
        types.into_iter().fold(consumer, |consumer, message_type| {
            consumer.on_batch_with::<Unread>(Unread, message_type, Keep)
        })
    }

    /// Runs as a consumer of its own until `stop` resolves: see [`Consumer::run`]. The name in the configuration is that
    /// of the consumer.
    ///
    /// # Errors
    /// [`Kind::Schema`] where the tables are missing; otherwise what [`Consumer::run`] says.
    pub async fn run<S: Send + Sync + 'static>(
        self,
        config: Config<S>,
        stop: impl Future<Output = ()>,
    ) -> Result<Report, Error> {
        self.join(Consumer::new(config)).run(stop).await.map_err(Error::of_consumer)
    }
}

/// A payload that is nobody's business here.
struct Unread;

impl Codec<Self> for Unread {
    fn decode(&self, _: Option<&[u8]>) -> Result<Self, BoxError> {
        Ok(Self)
    }
}

struct Keep;

impl<'a, S> BatchHandler<'a, S, Unread> for Keep {
    type Error = BoxError;
    type Future = BoxFuture<'a, Result<Outcome, BoxError>>;

    fn call(&self, cx: BatchCx<'a, S>, messages: Vec<Item<'a, Unread>>) -> Self::Future {
        Box::pin(async move {
            // What belongs to no saga has no story, and what says so wrongly is a dead letter where it is taken.
            let entries: Vec<(SagaId, Entry)> =
                messages.iter().filter_map(Entry::of_item).collect();
            keep(cx.conn, &entries).await?;
            Ok(Outcome::Done)
        })
    }
}

impl Entry {
    fn of_item(item: &Item<'_, Unread>) -> Option<(SagaId, Self)> {
        let meta = item.meta;
        let header = |name: &str| meta.header(name);
        let text = |name: &str| header(name).and_then(|value| str::from_utf8(value).ok());
        let correlation = Correlation::read(header).ok().flatten()?;
        let entry = Self {
            message_id: meta.message_id().to_string(),
            at: meta.timestamp().unwrap_or(SystemTime::UNIX_EPOCH),
            topic: meta.position().topic.to_string(),
            source: meta.source().unwrap_or_default().to_owned(),
            message_type: meta.message_type().to_owned(),
            definition: correlation.definition.into(),
            step: correlation.step.into(),
            operation: correlation.operation,
            outcome: Answer::read(header).ok(),
            cause: text("ce_causationid").map(str::to_owned),
        };
        Some((correlation.saga, entry))
    }
}

pub(crate) async fn keep(
    conn: &mut PgConnection,
    entries: &[(SagaId, Entry)],
) -> Result<(), Error> {
    let column = |of: fn(&Entry) -> &str| -> Vec<&str> {
        entries.iter().map(|(_, entry)| of(entry)).collect()
    };
    let sagas: Vec<Uuid> = entries.iter().map(|(saga, _)| *saga.as_uuid()).collect();
    let times: Vec<i64> = entries.iter().map(|(_, entry)| micros(entry.at)).collect();
    let outcomes: Vec<Option<&str>> =
        entries.iter().map(|(_, entry)| entry.outcome.map(Answer::as_str)).collect();
    let causes: Vec<Option<&str>> =
        entries.iter().map(|(_, entry)| entry.cause.as_deref()).collect();
    sqlx::query(
        "INSERT INTO tailrace.saga_story
             (saga_id, message_id, at, topic, source, type, definition, step, operation, outcome, cause)
         SELECT saga_id, message_id, timestamptz 'epoch' + at * interval '1 microsecond', topic, source, type,
             definition, step, operation, outcome, cause
         FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[],
             $8::text[], $9::text[], $10::text[], $11::text[])
             AS told (saga_id, message_id, at, topic, source, type, definition, step, operation, outcome, cause)
         ORDER BY saga_id, message_id
         ON CONFLICT DO NOTHING",
    )
    .bind(sagas)
    .bind(column(|entry| &entry.message_id))
    .bind(times)
    .bind(column(|entry| &entry.topic))
    .bind(column(|entry| &entry.source))
    .bind(column(|entry| &entry.message_type))
    .bind(column(|entry| &entry.definition))
    .bind(column(|entry| &entry.step))
    .bind(column(|entry| entry.operation.as_str()))
    .bind(outcomes)
    .bind(causes)
    .execute(conn)
    .await
    .map(drop)
    .map_err(|error| Error::database("the story of sagas cannot be stored", error))
}

fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
