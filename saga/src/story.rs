//! The story of sagas, as the records of all services tell it.
//!
//! An `Observer` is a consumer that keeps what each command, reply and event says of its saga, without its payload, in
//! a table of its own database. [`timeline`] reads that table by the saga's id, and never a topic. Orchestrated and
//! choreographed sagas look the same in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use crate::barrier::rows;
use crate::correlation::{Answer, Operation, SagaId};
use crate::error::{Error, Kind};
use crate::transition::Entry as Noted;

mod inner;
#[cfg(feature = "kafka")]
mod observer;
mod render;

pub use inner::Inner;
use inner::Place;

#[cfg(feature = "kafka")]
pub use observer::Observer;
#[cfg(test)]
#[cfg(feature = "kafka")]
pub(crate) use observer::keep;

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

/// No story is read any further.
pub const ENTRIES_MAX: u32 = 10_000;

/// What is known of a saga, from its first message on; without an entry where nobody has heard of it. At most
/// [`ENTRIES_MAX`] entries. Where the journal of its orchestrator is in the same database, and may be read, what no message
/// tells of stands between them: its start, its local steps, its end.
///
/// # Errors
/// [`Kind::Database`]; [`Kind::Schema`] where the table holds what this version does not know.
pub async fn timeline(conn: &mut PgConnection, saga: SagaId) -> Result<Timeline, Error> {
    let entries = entries(conn, saga).await?;
    let journal = inner::journal(conn, saga).await?;
    Ok(Timeline::new(saga, entries).with(&journal))
}

/// The messages alone.
pub(crate) async fn entries(conn: &mut PgConnection, saga: SagaId) -> Result<Vec<Entry>, Error> {
    let rows = sqlx::query(
        "SELECT message_id, (extract(epoch FROM at) * 1000000)::bigint, topic, source, type, definition, step,
             operation, outcome, cause
         FROM tailrace.saga_story WHERE saga_id = $1 ORDER BY at, message_id LIMIT $2",
    )
    .bind(saga.as_uuid())
    .bind(i64::from(ENTRIES_MAX))
    .fetch_all(&mut *conn)
    .await
    .map_err(|error| Error::database("the story of a saga cannot be read", error))?;
    rows.iter().map(Entry::of_row).collect()
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
    /// What stands between them, each behind so many of them.
    inner: Vec<(Place, Inner)>,
}

/// A line of a story.
enum Line<'t> {
    Message(&'t Entry),
    Inner(&'t Inner),
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
        Self { saga, entries: ordered, inner: Vec::new() }
    }

    /// With what no message tells of.
    pub(crate) fn with(mut self, journal: &[Noted]) -> Self {
        self.inner = inner::inner(journal, &self.entries);
        self
    }

    /// The saga.
    pub fn saga(&self) -> SagaId {
        self.saga
    }

    /// Its messages.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What its orchestrator has done without a message.
    pub fn inner(&self) -> impl Iterator<Item = &Inner> {
        self.inner.iter().map(|(_, inner)| inner)
    }

    /// All of it in order.
    fn lines(&self) -> Vec<Line<'_>> {
        let mut inner = self.inner.iter().peekable();
        let mut lines = Vec::with_capacity(self.entries.len() + self.inner.len());
        for place in 0..=self.entries.len() {
            while let Some((_, own)) = inner.next_if(|(at, _)| *at <= place) {
                lines.push(Line::Inner(own));
            }
            lines.extend(self.entries.get(place).map(Line::Message));
        }
        lines
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
#[cfg(feature = "kafka")]
mod tests;
