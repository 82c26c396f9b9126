//! A message that was set aside, as an operator sees it.

use std::fmt;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::{Filter, Place, unread};
use crate::error::{Error, Kind};

/// How a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Parked behind another message of its key.
    Queued,
    /// Parked, to be tried again at a time.
    Waiting,
    /// Its call to another service is being made, or was broken off with the process that made it.
    Calling,
    /// Parked, tried often enough: a person decides.
    Stuck,
    /// Parked and given up by a person; its consumer makes a dead letter of it.
    Discard,
    /// A dead letter.
    Dead,
}

impl State {
    const ALL: [Self; 6] =
        [Self::Queued, Self::Waiting, Self::Calling, Self::Stuck, Self::Discard, Self::Dead];

    /// The word for it in the tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Waiting => "waiting",
            Self::Calling => "calling",
            Self::Stuck => "stuck",
            Self::Discard => "discard",
            Self::Dead => "dead",
        }
    }

    /// The state of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A parked message or a dead letter.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Entry {
    /// Where it is kept.
    pub place: Place,
    /// Whose it is.
    pub consumer: String,
    /// The topic of its record.
    pub topic: String,
    /// The partition of its record.
    pub partition: i32,
    /// The offset of its record.
    pub offset: i64,
    /// The key, if it has one.
    pub key: Option<Vec<u8>>,
    /// The message's id, if it had a readable one.
    pub message_id: Option<Uuid>,
    /// The message's type, if it had a readable one.
    pub message_type: Option<String>,
    /// How it stands.
    pub state: State,
    /// Why it was set aside, as a code. None for a message that is only behind another one.
    pub reason: Option<String>,
    /// What the handler or the consumer said.
    pub detail: Option<String>,
    /// How often it was tried.
    pub attempts: u32,
    /// How long ago it was set aside.
    pub age: Duration,
    /// When it is tried again, for one that waits; zero if that is due.
    pub retry_in: Option<Duration>,
    /// Seconds since 1970 of when its record was written.
    pub written_at: Option<f64>,
    /// The size of the payload; none if there is none.
    pub payload_bytes: Option<u64>,
    /// The headers of its record, in their order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// The payload, if it was asked for: [`get`].
    pub payload: Option<Vec<u8>>,
    /// Whether no other message of its key is parked before it.
    pub is_first: bool,
    /// How many messages of its key are parked behind it.
    pub behind: u64,
    /// How often a person has retried it.
    pub hand_retries: u32,
    /// Whether what its call is made with is stored already.
    pub is_prepared: bool,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No payload and no header: they may be secret.
        f.debug_struct("Entry")
            .field("place", &self.place)
            .field("message_id", &self.message_id)
            .field("state", &self.state)
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

// Messages without a key park singly. Keys are compared by their hash first, as the index has them.
const COLUMNS: &str = r#"SELECT id, consumer, topic, partition, "offset", key, message_id, message_type, header_names,
    header_values, state, is_prepared, reason, detail, attempts, octet_length(payload) AS payload_bytes,
    extract(epoch FROM now() - since)::float8 AS age, extract(epoch FROM retry_at - now())::float8 AS retry_in,
    extract(epoch FROM written_at)::float8 AS written_at,
    NOT EXISTS (SELECT FROM tailrace.parked_message AS other
                WHERE other.consumer = entry.consumer AND other.topic = entry.topic
                  AND other.partition = entry.partition AND sha256(other.key) = sha256(entry.key)
                  AND other.key = entry.key AND other."offset" < entry."offset") AS is_first,
    (SELECT count(*) FROM tailrace.parked_message AS other
     WHERE other.consumer = entry.consumer AND other.topic = entry.topic
       AND other.partition = entry.partition AND sha256(other.key) = sha256(entry.key)
       AND other.key = entry.key AND other."offset" > entry."offset") AS behind,
    (SELECT count(*) FROM tailrace.inbox_audit AS audit
     WHERE audit.consumer = entry.consumer AND audit.topic = entry.topic
       AND audit.partition = entry.partition AND audit."offset" = entry."offset"
       AND audit.action = 'retry') AS hand_retries"#;

/// The messages that fit, oldest first, at most so many, without their payloads.
///
/// # Errors
/// What Postgres answers.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    limit: u32,
) -> Result<Vec<Entry>, Error> {
    let tail = r#"ORDER BY since, consumer, topic, partition, "offset", id LIMIT $10"#;
    let rows = filter
        .query(&format!("{COLUMNS}, NULL::bytea AS payload"), tail)
        .bind(i64::from(limit))
        .fetch_all(conn)
        .await
        .map_err(unread)?;
    rows.iter().map(read).collect::<Result<_, _>>().map_err(unread)
}

/// How many fit.
///
/// # Errors
/// What Postgres answers.
pub async fn count(conn: &mut PgConnection, filter: &Filter) -> Result<u64, Error> {
    let row = filter.query("SELECT count(*)", "").fetch_one(conn).await.map_err(unread)?;
    let count: i64 = row.try_get(0).map_err(unread)?;
    Ok(u64::try_from(count).unwrap_or_default())
}

/// One message with its payload.
///
/// # Errors
/// [`Kind::Conflict`] if there is none at that place.
pub async fn get(conn: &mut PgConnection, place: &Place) -> Result<Entry, Error> {
    let (filter, offset, id) = match place {
        Place::Parked { consumer, topic, partition, offset } => {
            let filter = Filter::default().consumer(consumer).topic(topic).partition(*partition);
            (filter, Some(*offset), None)
        }
        Place::Dead(id) => (Filter::default(), None, Some(*id)),
    };
    let tail = r#"AND (id = $11 OR id IS NULL AND "offset" = $10)"#;
    let row = filter
        .query(&format!("{COLUMNS}, payload"), tail)
        .bind(offset)
        .bind(id)
        .fetch_optional(conn)
        .await
        .map_err(unread)?;
    match row {
        Some(row) => read(&row).map_err(unread),
        None => Err(Error::new(Kind::Conflict, format!("there is no message at {place}"))
            .mended_by(
                "see `tailrace inbox list`: its consumer may have applied it, or it was pruned",
            )),
    }
}

/// What a person did with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Done {
    /// When, in UTC: `2026-11-21 12:34:56`.
    pub at: String,
    /// Who.
    pub actor: String,
    /// What: `retry`, `discard`, `edit`.
    pub action: String,
    /// Why, if that was said.
    pub note: Option<String>,
}

/// What was done by hand with a message, oldest first; the newest hundred.
///
/// # Errors
/// What Postgres answers.
pub async fn history(conn: &mut PgConnection, entry: &Entry) -> Result<Vec<Done>, Error> {
    let rows: Vec<(String, String, String, Option<String>)> = sqlx::query_as(
        r#"SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), actor, action, note
           FROM (SELECT * FROM tailrace.inbox_audit
                 WHERE consumer = $1 AND topic = $2 AND partition = $3 AND "offset" = $4 AND action <> 'seek'
                 ORDER BY id DESC LIMIT 100) AS newest
           ORDER BY id"#,
    )
    .bind(&entry.consumer)
    .bind(&entry.topic)
    .bind(entry.partition)
    .bind(entry.offset)
    .fetch_all(conn)
    .await
    .map_err(unread)?;
    let done = |(at, actor, action, note)| Done { at, actor, action, note };
    Ok(rows.into_iter().map(done).collect())
}

fn read(row: &PgRow) -> Result<Entry, sqlx::Error> {
    let id: Option<i64> = row.try_get("id")?;
    let (consumer, topic): (String, String) = (row.try_get("consumer")?, row.try_get("topic")?);
    let (partition, offset): (i32, i64) = (row.try_get("partition")?, row.try_get("offset")?);
    let place = match id {
        Some(id) => Place::Dead(id),
        None => {
            Place::Parked { consumer: consumer.clone(), topic: topic.clone(), partition, offset }
        }
    };
    let names: Vec<String> = row.try_get("header_names")?;
    let values: Vec<Option<Vec<u8>>> = row.try_get("header_values")?;
    let payload_bytes: Option<i32> = row.try_get("payload_bytes")?;
    let behind: i64 = row.try_get("behind")?;
    let hand_retries: i64 = row.try_get("hand_retries")?;
    let attempts: i32 = row.try_get("attempts")?;
    let state: String = row.try_get("state")?;
    Ok(Entry {
        place,
        consumer,
        topic,
        partition,
        offset,
        key: row.try_get("key")?,
        message_id: row.try_get("message_id")?,
        message_type: row.try_get("message_type")?,
        // The table's check knows the same, but for the dead.
        state: State::named(&state).unwrap_or(State::Stuck),
        reason: row.try_get("reason")?,
        detail: row.try_get("detail")?,
        attempts: u32::try_from(attempts).unwrap_or_default(),
        age: duration(row.try_get("age")?),
        retry_in: row.try_get::<Option<f64>, _>("retry_in")?.map(duration),
        written_at: row.try_get("written_at")?,
        payload_bytes: payload_bytes.map(|bytes| u64::try_from(bytes).unwrap_or_default()),
        headers: names.into_iter().zip(values).collect(),
        payload: row.try_get("payload")?,
        is_first: row.try_get("is_first")?,
        behind: u64::try_from(behind).unwrap_or_default(),
        is_prepared: row.try_get("is_prepared")?,
        hand_retries: u32::try_from(hand_retries).unwrap_or(u32::MAX),
    })
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default()
}
