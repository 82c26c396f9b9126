//! The start of a choreographed saga, its deadline, and its end, in the database of the service that starts it.

use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, PgPool, Row};
use tailrace_idempotency::Ending;
use tailrace_outbox::Message;
use uuid::Uuid;

use super::decide::{self, Course, Status};
use super::metrics::Counters;
use super::react::{Cause, Voice};
use super::reaction::Emitted;
use super::{Choreography, Map, epoch};
use crate::barrier::rows;
use crate::barrier::{Decision, Ended};
use crate::correlation::{Answer, Correlation, Operation, SagaId};
use crate::engine::Started;
use crate::error::{Error, Kind};
use crate::known;

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
    pub(super) counters: Counters,
}

/// What a saga begins with.
struct Begins {
    correlation: Correlation,
    payload: Vec<u8>,
    message: Message,
    within: Duration,
}

/// A saga as the service sees it that has started it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standing {
    /// The saga.
    pub saga: SagaId,
    /// The name and the version of its declaration.
    pub definition: String,
    /// How it stands.
    pub status: Status,
    /// When it was started.
    pub started_at: SystemTime,
    /// By when it has to have ended.
    pub due_at: SystemTime,
    /// When it has ended, if it has.
    pub ended_at: Option<SystemTime>,
    /// Which of the events that end it have come.
    pub heard: Vec<String>,
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
        let begins = self.begins(SagaId::mint(), payload, &cause)?;
        self.begin(conn, begins).await
    }

    /// What a saga begins with: all that can be found to be wrong before anything is written.
    fn begins(
        &self,
        saga: SagaId,
        payload: &impl Serialize,
        cause: &Cause,
    ) -> Result<Begins, Error> {
        let map = self.map.map();
        let (Some((_, step)), Some(expiry)) = (map.start(), &map.expiry) else {
            return Err(Error::definition("nothing starts it"));
        };
        if step.service != self.voice.service {
            let text = format!("{} starts it, and not {}", step.service, self.voice.service);
            return Err(Error::definition(text));
        }
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
        let message = self.voice.message(&self.map, emitted, &correlation, Answer::Done, cause)?;
        Ok(Begins { correlation, payload, message, within: expiry.within })
    }

    async fn begin(&self, conn: &mut PgConnection, begins: Begins) -> Result<SagaId, Error> {
        let Begins { correlation, payload, message, within } = begins;
        let (map, saga) = (self.map.map(), correlation.saga);
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
        .bind(micros(within))
        .bind(payload)
        .execute(conn)
        .await
        .map_err(|error| Error::database("the deadline of a saga cannot be stored", error))?;
        self.counters.turned(&map.name, Status::Running, 1);
        Ok(saga)
    }

    /// As [`start_caused_by`](Self::start_caused_by), once for a key of the business, such as an order's number: the same
    /// wish twice is the same saga, also where both come at once. Which one it is, is answered with whether it begins now.
    ///
    /// The key is known for as long as the saga is kept.
    ///
    /// # Errors
    /// As there. [`Kind::Conflict`] for a key of more than 1,024 bytes, or with NUL in it.
    pub async fn start_once(
        &self,
        conn: &mut PgConnection,
        key: &str,
        payload: &impl Serialize,
        cause: Vec<(String, String)>,
    ) -> Result<(SagaId, Started), Error> {
        let wanted = SagaId::mint();
        // Behind the claim only Postgres can fail, with which the key goes too.
        let begins = self.begins(wanted, payload, &cause)?;
        let saga = known::claim(conn, self.map.name(), key, wanted).await?;
        if saga != wanted {
            return Ok((saga, Started::Before));
        }
        Ok((self.begin(conn, begins).await?, Started::Now))
    }

    /// How a saga stands, where it was started here and is not forgotten.
    ///
    /// # Errors
    /// [`Kind::Database`].
    pub async fn find(
        &self,
        conn: &mut PgConnection,
        saga: SagaId,
    ) -> Result<Option<Standing>, Error> {
        let row = sqlx::query(
            "SELECT saga_id, definition, status, (extract(epoch FROM started_at) * 1000000)::bigint,
                 (extract(epoch FROM due_at) * 1000000)::bigint,
                 (extract(epoch FROM ended_at) * 1000000)::bigint, heard
             FROM tailrace.saga_choreography WHERE saga_id = $1 AND name = $2",
        )
        .bind(saga.as_uuid())
        .bind(self.map.name())
        .fetch_optional(conn)
        .await
        .map_err(unread)?;
        row.map(|row| Standing::of_row(&row)).transpose()
    }

    /// As [`find`](Self::find), by the key that [`start_once`](Self::start_once) was given.
    ///
    /// # Errors
    /// As there.
    pub async fn find_by_key(
        &self,
        conn: &mut PgConnection,
        key: &str,
    ) -> Result<Option<Standing>, Error> {
        match known::find(conn, self.map.name(), key).await? {
            Some(saga) => self.find(conn, saga).await,
            None => Ok(None),
        }
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
        self.counters.turned(&map.name, status, u64::try_from(sagas.len()).unwrap_or_default());
        tracing::info!(sagas = sagas.len(), definition = %map.definition(), "deadlines of sagas have passed");
        Ok(sagas.len())
    }

    /// Emits expiries until told to end. An error of the database passes, or the consumer beside it ends with it.
    pub(super) async fn keep_time(self, pool: PgPool, mut ends: Ending) {
        let mut looked: Option<Instant> = None;
        loop {
            let round = async {
                let mut conn = pool.acquire().await.map_err(unread)?;
                // Before the look, so that one that fails each time keeps no saga from its expiry.
                let mut left = PORTIONS_MAX;
                while left > 0 && self.expire(&mut conn).await? == TAKE_MAX as usize {
                    left -= 1;
                }
                if looked.is_none_or(|at| at.elapsed() >= OVERDUE_EVERY) {
                    self.look(&mut conn).await?;
                    looked = Some(Instant::now());
                }
                Ok::<_, Error>(left)
            };
            let wait = match round.await {
                // There is more: it is told to end in between, and looks at what is overdue.
                Ok(0) => Duration::ZERO,
                Ok(_) => LOOK_EVERY,
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

impl Starter {
    /// How many sagas are overdue, and for how long, by an index in which nothing else is; more than 10,000 are not counted.
    async fn look(&self, conn: &mut PgConnection) -> Result<(), Error> {
        let (overdue, oldest): (i64, f64) = sqlx::query_as(
            "SELECT count(*), coalesce(extract(epoch FROM now() - min(due_at)), 0)::float8
             FROM (SELECT due_at FROM tailrace.saga_choreography
                 WHERE status = 'expiring' AND name = $1 ORDER BY due_at LIMIT 10000) AS overdue",
        )
        .bind(self.map.name())
        .fetch_one(conn)
        .await
        .map_err(unread)?;
        let oldest = Duration::try_from_secs_f64(oldest.max(0.0)).unwrap_or_default();
        self.counters.look(self.map.name(), u32::try_from(overdue).unwrap_or(u32::MAX), oldest);
        Ok(())
    }

    /// What stands still, for people.
    pub(super) fn degraded(&self) -> Vec<String> {
        match self.counters.report().overdue {
            0 => Vec::new(),
            overdue => vec![format!(
                "{overdue} sagas of {} are overdue: Starter::overdue lists them",
                self.map.name()
            )],
        }
    }
}

/// Deletes what the first service keeps of sagas that have ended and began before this time, at most `rows_max` rows, and
/// says how many; with them the keys by which they were started. The service does so by itself, by
/// [`Service::keep`](super::Service::keep); this is for whoever wants it at a time of his own, until it answers with 0.
///
/// # Errors
/// [`Kind::Database`].
pub async fn forget(
    conn: &mut PgConnection,
    begun_before: SystemTime,
    rows_max: u32,
) -> Result<u64, Error> {
    let deleted: i64 = sqlx::query_scalar(
        "WITH ended AS (
             DELETE FROM tailrace.saga_choreography AS old USING (
                 SELECT saga_id FROM tailrace.saga_choreography
                 WHERE saga_id < $1 AND status IN ('completed', 'undone')
                 ORDER BY saga_id LIMIT $2 FOR UPDATE SKIP LOCKED) AS ended
             WHERE old.saga_id = ended.saga_id RETURNING old.saga_id),
         keys AS (DELETE FROM tailrace.saga_key WHERE saga_id IN (SELECT saga_id FROM ended))
         SELECT count(*) FROM ended",
    )
    .bind(rows::first_id_of(begun_before))
    .bind(i64::from(rows_max))
    .fetch_one(conn)
    .await
    .map_err(|error| Error::database("sagas that have ended cannot be deleted", error))?;
    Ok(u64::try_from(deleted).unwrap_or_default())
}

/// Between two looks at what is due.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two looks at what is overdue.
const OVERDUE_EVERY: Duration = Duration::from_secs(15);
/// After an error of the database.
const ERROR_WAIT: Duration = Duration::from_secs(1);
/// What is taken in one transaction.
const TAKE_MAX: i64 = 200;
/// Transactions in a round.
const PORTIONS_MAX: u32 = 20;

/// Notes one of the events that end a saga, and says how it stands if that has changed.
pub(super) async fn hears(
    conn: &mut PgConnection,
    map: &Map,
    saga: SagaId,
    event: &str,
) -> Result<Option<Status>, Error> {
    change(conn, saga, |course| course.hears(map, event)).await
}

/// Notes that a saga has failed, and says how it stands if that has changed.
pub(super) async fn fails(conn: &mut PgConnection, saga: SagaId) -> Result<Option<Status>, Error> {
    change(conn, saga, Course::fails).await
}

/// A saga whose row is gone has ended long ago.
async fn change(
    conn: &mut PgConnection,
    saga: SagaId,
    change: impl FnOnce(Course) -> Course,
) -> Result<Option<Status>, Error> {
    let mut row = locked(conn, saga).await?;
    if row.is_none() {
        start_is_over(conn, saga).await?;
        row = locked(conn, saga).await?;
    }
    let Some(row) = row else { return Ok(None) };
    let status: String = row.try_get(0).map_err(unread)?;
    let heard: Vec<String> = row.try_get(1).map_err(unread)?;
    let status = parsed(&status)?;
    let before = Course { status, heard: heard.into_iter().map(String::into_boxed_str).collect() };
    let after = change(before.clone());
    if after == before {
        return Ok(None);
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
    .map_err(unread)?;
    Ok((after.status != before.status).then_some(after.status))
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

fn parsed(status: &str) -> Result<Status, Error> {
    Status::parse(status).ok_or_else(|| {
        let text = "tailrace.saga_choreography has a status that this version does not know";
        Error::new(Kind::Schema, text)
    })
}

impl Standing {
    fn of_row(row: &PgRow) -> Result<Self, Error> {
        let status: String = row.try_get(2).map_err(unread)?;
        let at = |column| -> Result<Option<SystemTime>, Error> {
            let micros: Option<i64> = row.try_get::<_, usize>(column).map_err(unread)?;
            let since = |micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0));
            Ok(micros.map(|micros| SystemTime::UNIX_EPOCH + since(micros)))
        };
        Ok(Self {
            saga: SagaId::from_uuid(row.try_get(0).map_err(unread)?),
            definition: row.try_get(1).map_err(unread)?,
            status: parsed(&status)?,
            started_at: at(3)?.unwrap_or(SystemTime::UNIX_EPOCH),
            due_at: at(4)?.unwrap_or(SystemTime::UNIX_EPOCH),
            ended_at: at(5)?,
            heard: row.try_get(6).map_err(unread)?,
        })
    }
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
