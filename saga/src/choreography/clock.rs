//! The start of a choreographed saga, its deadline, and its end, in the database of the service that starts it.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, PgPool, Row};
use tailrace_idempotency::Ending;
use uuid::Uuid;

use super::decide::{self, Course, Status};
use super::react::{Cause, Voice};
use super::reaction::Emitted;
use super::{Choreography, Map, epoch};
use crate::barrier::rows;
use crate::barrier::{Decision, Ended};
use crate::correlation::{Answer, Correlation, Operation, SagaId};
use crate::error::{Error, Kind};

/// Starts sagas in transactions of the service.
///
/// ```no_run
/// # use tailrace_saga::{Error, SagaId, choreography::Starter};
/// # #[derive(serde::Serialize)] struct OrderPlaced { order: i64 }
/// # async fn place(starter: Starter, pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tx = pool.begin().await?;
/// sqlx::query("insert into orders (id, state) values (7, 'pending')").execute(&mut *tx).await?;
/// let saga: SagaId = starter.start(&mut tx, &OrderPlaced { order: 7 }).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Starter {
    pub(super) map: Choreography,
    pub(super) voice: Voice,
}

/// A saga whose deadline has passed, and that has not ended: behind its pivot something hangs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Overdue {
    /// The saga.
    pub saga: SagaId,
    /// When it was to have ended.
    pub due_at: SystemTime,
    /// Which of the events that end it have come.
    pub heard: Vec<String>,
}

impl Starter {
    /// Starts a saga: writes the event of its start, and its deadline. What the service does for it besides, it does in
    /// the same transaction.
    ///
    /// # Errors
    /// [`Kind::Database`] and [`Kind::Outbox`]; [`Kind::Definition`] where another service starts it.
    pub async fn start(
        &self,
        conn: &mut PgConnection,
        payload: &impl Serialize,
    ) -> Result<SagaId, Error> {
        self.start_caused_by(conn, payload, Cause::new()).await
    }

    /// As [`start`](Self::start), in a handler: what has caused it, as the handler's context gives it.
    ///
    /// # Errors
    /// As there.
    pub async fn start_caused_by(
        &self,
        conn: &mut PgConnection,
        payload: &impl Serialize,
        cause: Vec<(String, String)>,
    ) -> Result<SagaId, Error> {
        let map = self.map.map();
        let (Some((_, step)), Some(expiry)) = (map.start(), &map.expiry) else {
            return Err(Error::definition("nothing starts it"));
        };
        if step.service != self.voice.service {
            let text = format!("{} starts it, and not {}", step.service, self.voice.service);
            return Err(Error::definition(text));
        }
        let saga = SagaId::mint();
        let correlation = Correlation {
            saga,
            definition: map.definition(),
            step: step.name.clone(),
            operation: Operation::Action,
            epoch: epoch(Operation::Action),
        };
        let event = step.emits.first().map_or("", |event| event);
        let payload = serde_json::to_vec(payload).map_err(|error| {
            Error::new(Kind::Unreadable, "what a saga starts with does not encode").caused_by(error)
        })?;
        let emitted = Emitted { event: event.to_owned(), payload: Ok(payload.clone()), key: None };
        let message = self.voice.message(&self.map, emitted, &correlation, Answer::Done, &cause)?;
        let held = rows::lock(conn, &correlation, None).await?;
        let request = decide::request(Operation::Action);
        let after = held.barrier.after(request, Decision::Run, Ended::Done);
        let outbox = &self.voice.outbox;
        rows::remember(conn, outbox, &correlation, after, Some(&payload), &message).await?;
        sqlx::query(
            "INSERT INTO tailrace.saga_choreography (saga_id, name, definition, due_at, payload)
             VALUES ($1, $2, $3, clock_timestamp() + $4 * interval '1 microsecond', $5)",
        )
        .bind(saga.as_uuid())
        .bind(&*map.name)
        .bind(&*correlation.definition)
        .bind(micros(expiry.within))
        .bind(payload)
        .execute(conn)
        .await
        .map_err(|error| Error::database("the deadline of a saga cannot be stored", error))?;
        Ok(saga)
    }

    /// Sagas that are neither completed nor undone although their deadline has passed, the oldest first, at most `max`.
    ///
    /// Their expiry was emitted and came to nothing: their pivot is done, and what stands behind it is not, or a service
    /// is away. They end when that is mended.
    ///
    /// # Errors
    /// [`Kind::Database`].
    pub async fn overdue(&self, conn: &mut PgConnection, max: u32) -> Result<Vec<Overdue>, Error> {
        let rows = sqlx::query(
            "SELECT saga_id, (extract(epoch FROM due_at) * 1000000)::bigint, heard
             FROM tailrace.saga_choreography
             WHERE status = 'expiring' AND name = $1 ORDER BY due_at LIMIT $2",
        )
        .bind(self.map.name())
        .bind(i64::from(max))
        .fetch_all(conn)
        .await
        .map_err(unread)?;
        rows.iter().map(Overdue::of_row).collect::<Result<_, _>>().map_err(unread)
    }

    /// Emits the expiries that are due, a bounded number in one transaction, and says how many.
    async fn expire(&self, conn: &mut PgConnection) -> Result<usize, Error> {
        let map = self.map.map();
        let (Some((_, step)), Some(expiry)) = (map.start(), &map.expiry) else { return Ok(0) };
        let mut tx = conn.begin().await.map_err(unread)?;
        let due = sqlx::query(
            "SELECT saga_id, definition, payload FROM tailrace.saga_choreography
             WHERE status = 'running' AND name = $1 AND due_at <= now()
             ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED",
        )
        .bind(self.map.name())
        .bind(TAKE_MAX)
        .fetch_all(&mut *tx)
        .await
        .map_err(unread)?;
        if due.is_empty() {
            return Ok(0);
        }
        let mut sagas = Vec::with_capacity(due.len());
        let mut messages = Vec::with_capacity(due.len());
        for row in &due {
            let saga: Uuid = row.try_get(0).map_err(unread)?;
            let definition: String = row.try_get(1).map_err(unread)?;
            let payload = Ok(row.try_get(2).map_err(unread)?);
            let correlation = Correlation {
                saga: SagaId::from_uuid(saga),
                definition: definition.into(),
                step: step.name.clone(),
                operation: Operation::Action,
                epoch: epoch(Operation::Action),
            };
            let emitted = Emitted { event: expiry.event.to_string(), payload, key: None };
            let (answer, cause) = (Answer::Refused, Cause::new());
            sagas.push(saga);
            messages.push(self.voice.message(&self.map, emitted, &correlation, answer, &cause)?);
        }
        let status = Course::BEGUN.expires(map).status;
        sqlx::query(
            "UPDATE tailrace.saga_choreography SET status = $2, ended_at =
                 CASE WHEN $2 = 'expiring' THEN NULL ELSE clock_timestamp() END
             WHERE saga_id = ANY ($1)",
        )
        .bind(&sagas)
        .bind(status.as_str())
        .execute(&mut *tx)
        .await
        .map_err(unread)?;
        self.voice.outbox.write_all(&mut tx, &messages).await.map_err(Error::of_outbox)?;
        tx.commit().await.map_err(unread)?;
        tracing::info!(sagas = sagas.len(), definition = %map.definition(), "deadlines of sagas have passed");
        Ok(sagas.len())
    }

    /// Emits expiries until told to end. An error of the database passes, or the consumer beside it ends with it.
    pub(super) async fn keep_time(self, pool: PgPool, mut ends: Ending) {
        loop {
            let round = async {
                let mut conn = pool.acquire().await.map_err(unread)?;
                while self.expire(&mut conn).await? == TAKE_MAX as usize {}
                Ok::<(), Error>(())
            };
            let wait = match round.await {
                Ok(()) => LOOK_EVERY,
                Err(error) => {
                    tracing::warn!(%error, "deadlines of sagas cannot be looked at, and are tried again");
                    ERROR_WAIT
                }
            };
            tokio::select! {
                biased;
                () = ends.wait() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

/// Deletes what the first service keeps of sagas that have ended and began before this time, at most `rows_max` rows, and
/// says how many. For a task of the service that runs now and then, until it answers with 0, beside
/// [`participant::forget`](crate::participant::forget).
///
/// # Errors
/// [`Kind::Database`].
pub async fn forget(
    conn: &mut PgConnection,
    begun_before: SystemTime,
    rows_max: u32,
) -> Result<u64, Error> {
    let deleted = sqlx::query(
        "DELETE FROM tailrace.saga_choreography AS old USING (
             SELECT saga_id FROM tailrace.saga_choreography
             WHERE saga_id < $1 AND status IN ('completed', 'undone')
             ORDER BY saga_id LIMIT $2 FOR UPDATE SKIP LOCKED) AS ended
         WHERE old.saga_id = ended.saga_id",
    )
    .bind(rows::first_id_of(begun_before))
    .bind(i64::from(rows_max))
    .execute(conn)
    .await
    .map_err(|error| Error::database("sagas that have ended cannot be deleted", error))?;
    Ok(deleted.rows_affected())
}

/// Between two looks at what is due.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After an error of the database.
const ERROR_WAIT: Duration = Duration::from_secs(1);
/// What is taken in one transaction.
const TAKE_MAX: i64 = 200;

/// Notes one of the events that end a saga.
pub(super) async fn hears(
    conn: &mut PgConnection,
    map: &Map,
    saga: SagaId,
    event: &str,
) -> Result<(), Error> {
    change(conn, saga, |course| course.hears(map, event)).await
}

/// Notes that a saga has failed.
pub(super) async fn fails(conn: &mut PgConnection, saga: SagaId) -> Result<(), Error> {
    change(conn, saga, Course::fails).await
}

/// A saga whose row is gone has ended long ago.
async fn change(
    conn: &mut PgConnection,
    saga: SagaId,
    change: impl FnOnce(Course) -> Course,
) -> Result<(), Error> {
    let mut row = locked(conn, saga).await?;
    if row.is_none() {
        start_is_over(conn, saga).await?;
        row = locked(conn, saga).await?;
    }
    let Some(row) = row else { return Ok(()) };
    let status: String = row.try_get(0).map_err(unread)?;
    let heard: Vec<String> = row.try_get(1).map_err(unread)?;
    let status = Status::parse(&status).ok_or_else(|| {
        Error::new(
            Kind::Schema,
            "tailrace.saga_choreography has a status that this version does not know",
        )
    })?;
    let before = Course { status, heard: heard.into_iter().map(String::into_boxed_str).collect() };
    let after = change(before.clone());
    if after == before {
        return Ok(());
    }
    let heard: Vec<&str> = after.heard.iter().map(|event| &**event).collect();
    sqlx::query(
        "UPDATE tailrace.saga_choreography SET status = $2, heard = $3, ended_at =
             CASE WHEN $2 IN ('running', 'expiring') THEN NULL ELSE clock_timestamp() END
         WHERE saga_id = $1",
    )
    .bind(saga.as_uuid())
    .bind(after.status.as_str())
    .bind(heard)
    .execute(conn)
    .await
    .map(drop)
    .map_err(unread)
}

async fn locked(conn: &mut PgConnection, saga: SagaId) -> Result<Option<PgRow>, Error> {
    sqlx::query(
        "SELECT status, heard FROM tailrace.saga_choreography WHERE saga_id = $1 FOR UPDATE",
    )
    .bind(saga.as_uuid())
    .fetch_optional(conn)
    .await
    .map_err(unread)
}

/// Waits for the transaction that starts the saga, if that is not over.
///
/// Postgres sends a commit to its readers before other sessions see it, so that an event may be here before the row that
/// was written with the first one. A row of the same key waits for it; where there is none, it goes at once.
async fn start_is_over(conn: &mut PgConnection, saga: SagaId) -> Result<(), Error> {
    let inserted = sqlx::query(
        "INSERT INTO tailrace.saga_choreography (saga_id, name, definition, due_at, payload)
         VALUES ($1, '', '', 'infinity', '') ON CONFLICT (saga_id) DO NOTHING",
    )
    .bind(saga.as_uuid())
    .execute(&mut *conn)
    .await
    .map_err(unread)?;
    if inserted.rows_affected() > 0 {
        sqlx::query("DELETE FROM tailrace.saga_choreography WHERE saga_id = $1")
            .bind(saga.as_uuid())
            .execute(conn)
            .await
            .map_err(unread)?;
    }
    Ok(())
}

impl Overdue {
    fn of_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let micros: i64 = row.try_get(1)?;
        let since = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
        Ok(Self {
            saga: SagaId::from_uuid(row.try_get(0)?),
            due_at: SystemTime::UNIX_EPOCH + since,
            heard: row.try_get(2)?,
        })
    }
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

fn unread(error: sqlx::Error) -> Error {
    Error::database("where a saga stands cannot be read or stored", error)
}

#[cfg(test)]
mod tests;
