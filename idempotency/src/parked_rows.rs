//! The rows of `tailrace.parked_message`, as the owner of a partition reads and writes them.

use std::time::Duration;

use sqlx::query_builder::Separated;
use sqlx::{PgConnection, Postgres, QueryBuilder};

use crate::error::{Error, Kind};
use crate::failure::Cause;
use crate::parking::Queue;
use crate::position::Offset;
use crate::progress::Partition;
use crate::record::Stored;

/// Rows of one statement; each has fourteen parameters of the 65,535 that Postgres takes.
const ROWS_MAX: usize = 1000;

/// Where a message stands in its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Behind another one.
    Queued,
    /// Next, after this time.
    Waiting(Duration),
    /// Next, when a person says so.
    Stuck,
}

impl State {
    /// After a failure: `wait` is none when it was tried often enough.
    pub(crate) fn after(wait: Option<Duration>) -> Self {
        wait.map_or(Self::Stuck, Self::Waiting)
    }

    pub(crate) fn wait(self) -> Option<Duration> {
        match self {
            Self::Waiting(wait) => Some(wait),
            Self::Queued | Self::Stuck => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Waiting(_) => "waiting",
            Self::Stuck => "stuck",
        }
    }

    fn wait_seconds(self) -> Option<f64> {
        self.wait().map(|wait| wait.as_secs_f64())
    }
}

/// A message that is parked.
#[derive(Debug)]
pub(crate) struct NewRow {
    pub(crate) stored: Stored,
    pub(crate) state: State,
    pub(crate) attempts: u32,
    pub(crate) cause: Option<Cause>,
}

/// A parked message as it was read.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) stored: Stored,
    pub(crate) attempts: u32,
    pub(crate) parked_for: Duration,
    /// A person gave it up.
    pub(crate) discarded: bool,
    /// Its call was begun, which counts as an attempt, and how it ended is not recorded.
    pub(crate) calling: bool,
    /// It may be tried now.
    pub(crate) ready: bool,
    /// The time until then, while it is not stuck.
    pub(crate) wait: Option<Duration>,
    /// What its call is made with, once that is prepared.
    pub(crate) intent: Option<Vec<u8>>,
}

/// The first row of a queue, without what is in it.
#[derive(Debug)]
pub(crate) struct First {
    pub(crate) offset: Offset,
    pub(crate) message_type: String,
    /// The time until it may be tried; none while it is stuck.
    pub(crate) wait: Option<Duration>,
}

/// A head that may be seen to now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    pub(crate) offset: Offset,
    /// It was given up, or taken away.
    pub(crate) over: bool,
}

/// Whose rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table<'a> {
    pub(crate) consumer: &'a str,
    pub(crate) partition: &'a Partition,
}

impl Table<'_> {
    /// The heads of all queues of the partition.
    pub(crate) async fn heads(
        &self,
        conn: &mut PgConnection,
    ) -> Result<Vec<(Queue, First)>, Error> {
        let rows: Vec<HeadColumns> = sqlx::query_as(
            r#"SELECT DISTINCT ON (key, CASE WHEN key IS NULL THEN "offset" END)
                   key, "offset", message_type, state = 'stuck', extract(epoch FROM retry_at - now())::float8
               FROM tailrace.parked_message
               WHERE consumer = $1 AND topic = $2 AND partition = $3
               ORDER BY key, CASE WHEN key IS NULL THEN "offset" END, "offset""#,
        )
        .bind(self.consumer)
        .bind(&*self.partition.topic)
        .bind(self.partition.number)
        .fetch_all(conn)
        .await
        .map_err(unread)?;
        let heads = rows.into_iter().map(|(key, offset, message_type, stuck, seconds)| {
            let offset = Offset::new(offset);
            let wait = (!stuck).then(|| until(seconds));
            (Queue::of(key.as_deref(), offset), First { offset, message_type, wait })
        });
        Ok(heads.collect())
    }

    /// Messages that wait to be tried and are none of these heads: a person has put them back.
    pub(crate) async fn put_back(
        &self,
        conn: &mut PgConnection,
        heads: &[Offset],
    ) -> Result<Vec<(Queue, First)>, Error> {
        let heads: Vec<i64> = heads.iter().map(|head| head.get()).collect();
        let rows: Vec<(Option<Vec<u8>>, i64, String)> = sqlx::query_as(
            r#"SELECT key, "offset", message_type FROM tailrace.parked_message
               WHERE consumer = $1 AND topic = $2 AND partition = $3 AND state = 'waiting' AND "offset" <> ALL ($4)
               ORDER BY "offset" LIMIT 1000"#,
        )
        .bind(self.consumer)
        .bind(&*self.partition.topic)
        .bind(self.partition.number)
        .bind(heads)
        .fetch_all(conn)
        .await
        .map_err(unread)?;
        let first = |(key, offset, message_type): (Option<Vec<u8>>, i64, String)| {
            let (offset, wait) = (Offset::new(offset), Some(Duration::ZERO));
            (Queue::of(key.as_deref(), offset), First { offset, message_type, wait })
        };
        Ok(rows.into_iter().map(first).collect())
    }

    /// Those of the heads that may be tried or given up now, or that a person has taken away.
    pub(crate) async fn ready(
        &self,
        conn: &mut PgConnection,
        heads: &[Offset],
    ) -> Result<Vec<Ready>, Error> {
        let heads: Vec<i64> = heads.iter().map(|head| head.get()).collect();
        let ready: Vec<(i64, bool)> = sqlx::query_as(
            r#"SELECT asked.head, coalesce(parked.state = 'discard', true) FROM unnest($4::bigint[]) AS asked (head)
               LEFT JOIN tailrace.parked_message AS parked
                   ON parked.consumer = $1 AND parked.topic = $2 AND parked.partition = $3
                      AND parked."offset" = asked.head
               WHERE parked.state IS NULL OR parked.state IN ('discard', 'queued', 'calling')
                  OR (parked.state = 'waiting' AND parked.retry_at <= now())
               ORDER BY asked.head"#,
        )
        .bind(self.consumer)
        .bind(&*self.partition.topic)
        .bind(self.partition.number)
        .bind(heads)
        .fetch_all(conn)
        .await
        .map_err(unread)?;
        let ready = ready.into_iter();
        Ok(ready.map(|(offset, over)| Ready { offset: Offset::new(offset), over }).collect())
    }

    /// The first messages of a queue, locked against the command line.
    pub(crate) async fn read(
        &self,
        conn: &mut PgConnection,
        queue: &Queue,
        rows_max: usize,
    ) -> Result<Vec<Row>, Error> {
        let mut query = self.rows();
        of_queue(&mut query, queue);
        query
            .push(r#" ORDER BY "offset" LIMIT "#)
            .push_bind(i64::try_from(rows_max).unwrap_or(i64::MAX));
        locked(query, conn).await
    }

    /// The messages at these offsets, as far as they are there, locked against the command line.
    pub(crate) async fn read_at(
        &self,
        conn: &mut PgConnection,
        offsets: &[Offset],
    ) -> Result<Vec<Row>, Error> {
        let mut query = self.rows_at(offsets);
        query.push(r#" ORDER BY "offset""#);
        locked(query, conn).await
    }

    /// Those of the messages at these offsets that are the first of their queues, locked against the command line.
    pub(crate) async fn read_heads(
        &self,
        conn: &mut PgConnection,
        offsets: &[Offset],
    ) -> Result<Vec<Row>, Error> {
        let mut query = self.rows_at(offsets);
        query.push(
            r#" AND NOT EXISTS (
                SELECT FROM tailrace.parked_message AS before
                WHERE before.consumer = parked.consumer AND before.topic = parked.topic
                  AND before.partition = parked.partition AND sha256(before.key) = sha256(parked.key)
                  AND before.key = parked.key AND before."offset" < parked."offset")
               ORDER BY "offset""#,
        );
        locked(query, conn).await
    }

    /// The partition's rows; conditions follow.
    fn rows(&self) -> QueryBuilder<Postgres> {
        let mut query = QueryBuilder::new(
            r#"SELECT "offset", key, message_id, message_type, payload, header_names, header_values,
                   (extract(epoch FROM written_at) * 1000)::bigint, attempts, state,
                   state IN ('discard', 'queued', 'calling') OR (state = 'waiting' AND retry_at <= now()),
                   extract(epoch FROM retry_at - now())::float8, intent,
                   extract(epoch FROM now() - parked_at)::float8
               FROM tailrace.parked_message AS parked WHERE consumer = "#,
        );
        query.push_bind(self.consumer);
        query.push(" AND topic = ").push_bind(&*self.partition.topic);
        query.push(" AND partition = ").push_bind(self.partition.number);
        query
    }

    fn rows_at(&self, offsets: &[Offset]) -> QueryBuilder<Postgres> {
        let offsets: Vec<i64> = offsets.iter().map(|offset| offset.get()).collect();
        let mut query = self.rows();
        query.push(r#" AND "offset" = ANY("#).push_bind(offsets).push(")");
        query
    }

    /// Parks messages.
    pub(crate) async fn insert(
        &self,
        conn: &mut PgConnection,
        rows: &[NewRow],
    ) -> Result<(), Error> {
        for rows in rows.chunks(ROWS_MAX) {
            let mut query = QueryBuilder::<Postgres>::new(
                r#"INSERT INTO tailrace.parked_message
                       (consumer, topic, partition, "offset", key, message_id, message_type, payload,
                        header_names, header_values, written_at, state, retry_at, attempts, reason, detail) "#,
            );
            query.push_values(rows, |mut values, row| {
                values.push_bind(self.consumer);
                values.push_bind(&*self.partition.topic).push_bind(self.partition.number);
                push_stored(&mut values, &row.stored);
                values.push_bind(row.state.name());
                values.push("now() + interval '1 second' * ");
                values.push_bind_unseparated(row.state.wait_seconds());
                values.push_bind(i32::try_from(row.attempts).unwrap_or(i32::MAX));
                values.push_bind(row.cause.as_ref().map(|cause| cause.reason.code()));
                values.push_bind(row.cause.as_ref().and_then(|cause| cause.detail.as_deref()));
            });
            // What was applied without a claim may come again after progress was set back by hand.
            query.push(
                r#" ON CONFLICT (consumer, topic, partition, "offset") DO UPDATE SET state = excluded.state,
                        retry_at = excluded.retry_at
                    WHERE tailrace.parked_message.message_id = excluded.message_id"#,
            );
            let parked = query.build().persistent(false).execute(&mut *conn).await;
            let parked = parked.map_err(unwritten)?.rows_affected();
            if parked != rows.len() as u64 {
                let text = "another message is parked at the offset of one that is to be parked";
                return Err(Error::new(Kind::Database, text).mended_by(
                    "the topic was made anew: see what is parked, and clear it before going on",
                ));
            }
        }
        Ok(())
    }

    /// A message failed again.
    pub(crate) async fn postpone(
        &self,
        conn: &mut PgConnection,
        offset: Offset,
        state: State,
        attempts: u32,
        cause: &Cause,
    ) -> Result<(), Error> {
        sqlx::query(
            r#"UPDATE tailrace.parked_message
               SET state = $5, retry_at = now() + interval '1 second' * $6, attempts = $7, reason = $8,
                   detail = $9
               WHERE consumer = $1 AND topic = $2 AND partition = $3 AND "offset" = $4"#,
        )
        .bind(self.consumer)
        .bind(&*self.partition.topic)
        .bind(self.partition.number)
        .bind(offset.get())
        .bind(state.name())
        .bind(state.wait_seconds())
        .bind(i32::try_from(attempts).unwrap_or(i32::MAX))
        .bind(cause.reason.code())
        .bind(&cause.detail)
        .execute(conn)
        .await
        .map_err(unwritten)?;
        Ok(())
    }

    /// The calls of messages are about to be made with these. It counts as an attempt from now on: a call that takes its
    /// process along says nothing of itself afterwards.
    pub(crate) async fn calling(
        &self,
        conn: &mut PgConnection,
        offsets: &[Offset],
        intents: &[&[u8]],
    ) -> Result<(), Error> {
        let offsets: Vec<i64> = offsets.iter().map(|offset| offset.get()).collect();
        sqlx::query(
            r#"UPDATE tailrace.parked_message AS parked
               SET state = 'calling', retry_at = NULL, intent = prepared.intent, attempts = attempts + 1
               FROM unnest($4::bigint[], $5::bytea[]) AS prepared ("offset", intent)
               WHERE consumer = $1 AND topic = $2 AND partition = $3 AND parked."offset" = prepared."offset""#,
        )
        .bind(self.consumer)
        .bind(&*self.partition.topic)
        .bind(self.partition.number)
        .bind(offsets)
        .bind(intents)
        .execute(conn)
        .await
        .map_err(unwritten)?;
        Ok(())
    }

    /// Messages that have had their effect or became dead letters leave.
    pub(crate) async fn delete(
        &self,
        conn: &mut PgConnection,
        offsets: &[Offset],
    ) -> Result<(), Error> {
        let offsets: Vec<i64> = offsets.iter().map(|offset| offset.get()).collect();
        sqlx::query(
            r#"DELETE FROM tailrace.parked_message
               WHERE consumer = $1 AND topic = $2 AND partition = $3 AND "offset" = ANY($4)"#,
        )
        .bind(self.consumer)
        .bind(&*self.partition.topic)
        .bind(self.partition.number)
        .bind(offsets)
        .execute(conn)
        .await
        .map_err(unwritten)?;
        Ok(())
    }

    /// The message that is next in a queue after others have left is tried at once; none when the queue is empty.
    pub(crate) async fn promote(
        &self,
        conn: &mut PgConnection,
        queue: &Queue,
    ) -> Result<Option<First>, Error> {
        let Some(next) = self.read(conn, queue, 1).await?.into_iter().next() else {
            return Ok(None);
        };
        let offset = Offset::new(next.stored.offset);
        sqlx::query(
            r#"UPDATE tailrace.parked_message SET state = 'waiting', retry_at = now()
               WHERE consumer = $1 AND topic = $2 AND partition = $3 AND "offset" = $4 AND state = 'queued'"#,
        )
        .bind(self.consumer)
        .bind(&*self.partition.topic)
        .bind(self.partition.number)
        .bind(offset.get())
        .execute(conn)
        .await
        .map_err(unwritten)?;
        let wait = Some(Duration::ZERO);
        Ok(Some(First { offset, message_type: next.stored.message_type, wait }))
    }

    /// The messages that are next in these queues after others have left, by key: they are tried at once. A queue that
    /// is empty is not among them.
    pub(crate) async fn promote_all(
        &self,
        conn: &mut PgConnection,
        keys: &[&[u8]],
    ) -> Result<Vec<(Vec<u8>, First)>, Error> {
        let next: Vec<(Vec<u8>, i64, String)> = sqlx::query_as(
            r#"WITH next AS MATERIALIZED (
                   SELECT asked.key, first."offset", first.message_type
                   FROM unnest($4::bytea[]) AS asked (key)
                   CROSS JOIN LATERAL (
                       SELECT parked."offset", parked.message_type FROM tailrace.parked_message AS parked
                       WHERE parked.consumer = $1 AND parked.topic = $2 AND parked.partition = $3
                         AND sha256(parked.key) = sha256(asked.key) AND parked.key = asked.key
                       ORDER BY parked."offset" LIMIT 1) AS first
               ), promoted AS (
                   UPDATE tailrace.parked_message AS parked SET state = 'waiting', retry_at = now()
                   FROM next
                   WHERE parked.consumer = $1 AND parked.topic = $2 AND parked.partition = $3
                     AND parked."offset" = next."offset" AND parked.state = 'queued'
               )
               SELECT key, "offset", message_type FROM next"#,
        )
        .bind(self.consumer)
        .bind(&*self.partition.topic)
        .bind(self.partition.number)
        .bind(keys)
        .fetch_all(conn)
        .await
        .map_err(unwritten)?;
        let next = next.into_iter().map(|(key, offset, message_type)| {
            let wait = Some(Duration::ZERO);
            (key, First { offset: Offset::new(offset), message_type, wait })
        });
        Ok(next.collect())
    }
}

fn of_queue(query: &mut QueryBuilder<Postgres>, queue: &Queue) {
    match queue {
        // The index holds a hash: a key may be larger than an entry of an index.
        Queue::Key(key) => query
            .push(" AND sha256(key) = sha256(")
            .push_bind(key)
            .push(") AND key = ")
            .push_bind(key),
        Queue::Single(offset) => query.push(r#" AND "offset" = "#).push_bind(offset.get()),
    };
}

async fn locked(
    mut query: QueryBuilder<Postgres>,
    conn: &mut PgConnection,
) -> Result<Vec<Row>, Error> {
    query.push(" FOR UPDATE");
    let rows: Vec<Columns> = query.build_query_as().fetch_all(conn).await.map_err(unread)?;
    Ok(rows.into_iter().map(Row::from).collect())
}

type HeadColumns = (Option<Vec<u8>>, i64, String, bool, Option<f64>);

type Columns = (
    i64,
    Option<Vec<u8>>,
    uuid::Uuid,
    String,
    Option<Vec<u8>>,
    Vec<String>,
    Vec<Option<Vec<u8>>>,
    Option<i64>,
    i32,
    String,
    bool,
    Option<f64>,
    Option<Vec<u8>>,
    Option<f64>,
);

impl From<Columns> for Row {
    fn from(columns: Columns) -> Self {
        let (offset, key, message_id, message_type, payload, header_names, header_values, rest) = (
            columns.0,
            columns.1,
            columns.2,
            columns.3,
            columns.4,
            columns.5,
            columns.6,
            (columns.7, columns.8, columns.9, columns.10, columns.11, columns.12, columns.13),
        );
        let (written_at_ms, attempts, state, ready, seconds, intent, parked_for) = rest;
        let stored = Stored {
            offset,
            key,
            message_id,
            message_type,
            payload,
            header_names,
            header_values,
            written_at_ms,
        };
        Self {
            stored,
            attempts: u32::try_from(attempts).unwrap_or_default(),
            parked_for: until(parked_for),
            discarded: state == "discard",
            calling: state == "calling",
            ready,
            wait: (state != "stuck").then(|| until(seconds)),
            intent,
        }
    }
}

/// The columns that a parked message and a dead letter share.
pub(crate) fn push_stored(values: &mut Separated<'_, Postgres, &'static str>, stored: &Stored) {
    values.push_bind(stored.offset);
    values.push_bind(&stored.key);
    values.push_bind(stored.message_id);
    values.push_bind(&stored.message_type);
    values.push_bind(&stored.payload);
    values.push_bind(&stored.header_names);
    values.push_bind(&stored.header_values);
    values.push("to_timestamp(");
    values.push_bind_unseparated(stored.written_at_ms);
    values.push_unseparated("::float8 / 1000)");
}

fn until(seconds: Option<f64>) -> Duration {
    Duration::try_from_secs_f64(seconds.unwrap_or_default().max(0.0)).unwrap_or(Duration::ZERO)
}

fn unread(error: sqlx::Error) -> Error {
    Error::database("parked messages cannot be read", error)
}

fn unwritten(error: sqlx::Error) -> Error {
    Error::database("messages cannot be parked or released", error)
}
