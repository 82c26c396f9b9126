//! The story of sagas, as the records of all services tell it.
//!
//! An [`Observer`] is a consumer that keeps what each command, reply and event says of its saga, without its payload, in
//! a table of its own database. [`timeline`] reads that table by the saga's id, and never a topic. Orchestrated and
//! choreographed sagas look the same in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use tailrace_idempotency::{
    BatchCx, BatchHandler, BoxError, Codec, Config, Consumer, Item, Outcome, Report,
};
use uuid::Uuid;

use crate::barrier::rows;
use crate::choreography::Choreography;
use crate::correlation::{Answer, Correlation, Operation, SagaId};
use crate::definition::Definition;
use crate::error::{Error, Kind};
use crate::participant::BoxFuture;
use crate::schema;
use crate::transition::{PART_TYPE, REPLY_TYPE};

mod render;

/// Keeps the story of sagas.
///
/// ```no_run
/// # use tailrace_saga::{Choreography, Error, Saga, story::Observer};
/// # use tailrace_idempotency::Config;
/// # async fn run(
/// #     pool: sqlx::PgPool, create_order: Choreography, book_trip: Saga<()>, stop: impl Future<Output = ()>,
/// # ) -> Result<(), Error> {
/// Observer::new(Config::new("saga-observer", "localhost:9092", pool))
///     .choreography(&create_order)
///     .saga(&book_trip)
///     .run(stop)
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "an observer does nothing until it runs"]
pub struct Observer {
    config: Config,
    prefix: String,
    topics: BTreeSet<String>,
    types: BTreeSet<String>,
}

impl Observer {
    /// An observer of nothing. The name in the configuration is that of its consumer.
    pub fn new(config: Config) -> Self {
        let (topics, types) = (BTreeSet::new(), BTreeSet::new());
        Self { config, prefix: String::new(), topics, types }
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

    /// Runs until `stop` resolves: see [`Consumer::run`].
    ///
    /// # Errors
    /// [`Kind::Schema`] where the tables are missing; otherwise what [`Consumer::run`] says.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<Report, Error> {
        let Self { config, prefix, topics, types } = self;
        schema::check_patiently(config.pool()).await?;
        let topics = topics.into_iter().map(|topic| format!("{prefix}{topic}"));
        let consumer = topics.fold(Consumer::new(config), Consumer::topic);
        types
            .into_iter()
            .fold(consumer, |consumer, message_type| {
                consumer.on_batch_with::<Unread>(Unread, message_type, Keep)
            })
            .run(stop)
            .await
            .map_err(Error::of_consumer)
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

impl<'a> BatchHandler<'a, (), Unread> for Keep {
    type Error = BoxError;
    type Future = BoxFuture<'a, Result<Outcome, BoxError>>;

    fn call(&self, cx: BatchCx<'a>, messages: Vec<Item<'a, Unread>>) -> Self::Future {
        Box::pin(async move {
            // What belongs to no saga has no story, and what says so wrongly is a dead letter where it is taken.
            let entries: Vec<(SagaId, Entry)> =
                messages.iter().filter_map(Entry::of_item).collect();
            keep(cx.conn, &entries).await?;
            Ok(Outcome::Done)
        })
    }
}

/// One message of a saga.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The message's id.
    pub message_id: String,
    /// When it was written, by the clock of who wrote it.
    pub at: SystemTime,
    /// Where it was published.
    pub topic: String,
    /// Who has written it.
    pub source: String,
    /// Its type.
    pub message_type: String,
    /// The name and the version of the saga's definition.
    pub definition: String,
    /// Which step it is about.
    pub step: String,
    /// What of the step.
    pub operation: Operation,
    /// How that has ended; none on a command.
    pub outcome: Option<Answer>,
    /// The id of the message that caused it, where there is one.
    pub cause: Option<String>,
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

    fn of_row(row: &PgRow) -> Result<Self, Error> {
        let unread = |error| Error::database("the story of a saga cannot be read", error);
        let micros: i64 = row.try_get(1).map_err(unread)?;
        let operation: String = row.try_get(7).map_err(unread)?;
        let outcome: Option<String> = row.try_get(8).map_err(unread)?;
        let unknown =
            || Error::new(Kind::Schema, "tailrace.saga_story has what this version does not know");
        Ok(Self {
            message_id: row.try_get(0).map_err(unread)?,
            at: SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0)),
            topic: row.try_get(2).map_err(unread)?,
            source: row.try_get(3).map_err(unread)?,
            message_type: row.try_get(4).map_err(unread)?,
            definition: row.try_get(5).map_err(unread)?,
            step: row.try_get(6).map_err(unread)?,
            operation: Operation::parse(&operation).ok_or_else(unknown)?,
            outcome: match outcome {
                None => None,
                Some(outcome) => Some(Answer::parse(&outcome).ok_or_else(unknown)?),
            },
            cause: row.try_get(9).map_err(unread)?,
        })
    }
}

async fn keep(conn: &mut PgConnection, entries: &[(SagaId, Entry)]) -> Result<(), Error> {
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

/// No story is read any further.
pub const ENTRIES_MAX: u32 = 10_000;

/// What is known of a saga, from its first message on; without an entry where nobody has heard of it. At most
/// [`ENTRIES_MAX`] entries.
///
/// # Errors
/// [`Kind::Database`]; [`Kind::Schema`] where the table holds what this version does not know.
pub async fn timeline(conn: &mut PgConnection, saga: SagaId) -> Result<Timeline, Error> {
    let rows = sqlx::query(
        "SELECT message_id, (extract(epoch FROM at) * 1000000)::bigint, topic, source, type, definition, step,
             operation, outcome, cause
         FROM tailrace.saga_story WHERE saga_id = $1 ORDER BY at, message_id LIMIT $2",
    )
    .bind(saga.as_uuid())
    .bind(i64::from(ENTRIES_MAX))
    .fetch_all(conn)
    .await
    .map_err(|error| Error::database("the story of a saga cannot be read", error))?;
    let entries = rows.iter().map(Entry::of_row).collect::<Result<_, _>>()?;
    Ok(Timeline::new(saga, entries))
}

/// Deletes the stories of sagas that began before this time, at most `rows_max` rows, and says how many. For a task that
/// runs now and then, until it answers with 0.
///
/// # Errors
/// [`Kind::Database`].
pub async fn forget(
    conn: &mut PgConnection,
    begun_before: SystemTime,
    rows_max: u32,
) -> Result<u64, Error> {
    let deleted = sqlx::query(
        "DELETE FROM tailrace.saga_story AS told USING (
             SELECT saga_id, message_id FROM tailrace.saga_story WHERE saga_id < $1
             ORDER BY saga_id, message_id LIMIT $2) AS old
         WHERE told.saga_id = old.saga_id AND told.message_id = old.message_id",
    )
    .bind(rows::first_id_of(begun_before))
    .bind(i64::from(rows_max))
    .execute(conn)
    .await
    .map_err(|error| Error::database("stories of sagas cannot be deleted", error))?;
    Ok(deleted.rows_affected())
}

/// The story of one saga.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    saga: SagaId,
    entries: Vec<Entry>,
}

impl Timeline {
    /// Puts messages in the order of their times, but none before the one that caused it: clocks of services differ.
    pub(crate) fn new(saga: SagaId, mut entries: Vec<Entry>) -> Self {
        entries.sort_by(|one, other| (one.at, &one.message_id).cmp(&(other.at, &other.message_id)));
        let mut waiting: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
        let known: BTreeSet<String> =
            entries.iter().map(|entry| entry.message_id.clone()).collect();
        let mut told: BTreeSet<String> = BTreeSet::new();
        let mut ordered = Vec::with_capacity(entries.len());
        for entry in entries {
            let cause = entry.cause.clone().filter(|cause| known.contains(cause));
            match cause.filter(|cause| !told.contains(cause)) {
                Some(cause) => waiting.entry(cause).or_default().push(entry),
                None => {
                    let mut open = vec![entry];
                    while let Some(entry) = open.pop() {
                        let released = waiting.remove(&entry.message_id).unwrap_or_default();
                        open.extend(released.into_iter().rev());
                        told.insert(entry.message_id.clone());
                        ordered.push(entry);
                    }
                }
            }
        }
        // Messages that caused each other in a circle are none of ours; they are shown all the same.
        ordered.extend(waiting.into_values().flatten());
        Self { saga, entries: ordered }
    }

    /// The saga.
    pub fn saga(&self) -> SagaId {
        self.saga
    }

    /// Its messages.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// A table for people: when since the first message, who, what, about which step, and how that ended.
    pub fn text(&self) -> String {
        render::text(self)
    }

    /// A sequence diagram in Mermaid.
    pub fn sequence(&self) -> String {
        render::sequence(self)
    }
}

#[cfg(test)]
mod tests;
