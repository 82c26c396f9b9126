//! The progress rows: taking ownership, the fence, and what holds after an uncertain commit.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Postgres, Transaction};

use crate::dedupe::Dedupe;
use crate::error::{ABORTED, Error, Kind};
use crate::known::{self, Before};
use crate::lanes::{Lanes, Plan, Reached, Stored, plan};
use crate::position::Offset;
use crate::sequence::{self, Sequences};

/// Counts the owners of a partition; only the holder of the newest can commit. All its lanes share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epoch(pub(crate) i64);

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Partition {
    pub(crate) topic: std::sync::Arc<str>,
    pub(crate) number: i32,
}

/// A lane of a partition that this process owns from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owned {
    pub(crate) partition: Partition,
    pub(crate) lane: i32,
    pub(crate) epoch: Epoch,
    pub(crate) next_offset: Option<Offset>,
}

/// A partition to own.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) partition: Partition,
    /// Counts where nothing is stored; none is the beginning.
    pub(crate) start: Option<Offset>,
    /// Kafka's id of the topic, where known.
    pub(crate) topic_id: Option<String>,
    /// How many partitions the topic has, where known.
    pub(crate) partitions: Option<i32>,
}

/// A partition that this process owns from now on.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) partition: Partition,
    pub(crate) plan: Plan,
    /// What lanes have applied before, and would be delivered again.
    pub(crate) before: Vec<Reached>,
    /// How far the relays have come.
    pub(crate) sequences: Sequences,
}

/// How a new owner treats the former one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Takeover {
    pub(crate) lanes: Lanes,
    /// A former owner that is stopped inside its transaction holds the partition up no longer than this.
    pub(crate) deadline: Duration,
    pub(crate) dedupe: Dedupe,
}

/// Begins a batch's transaction. The server gives up a process that is stopped within it after the time in which
/// a new owner has to get hold of the partition; that holds even where the new owner may not end sessions. `entering`
/// is its first statement, if there is one.
pub(crate) async fn begin<'c>(
    conn: &'c mut PgConnection,
    deadline: Duration,
    entering: &str,
) -> Result<Transaction<'c, Postgres>, sqlx::Error> {
    entered(conn.begin_with(AssertSqlSafe(begin_text(deadline))).await?, entering).await
}

/// The same on a connection of the pool.
pub(crate) async fn begin_in(
    pool: &PgPool,
    deadline: Duration,
    entering: &str,
) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    // In a task of its own: a client that is given up while it waits for the answer to BEGIN would go back to the pool
    // with its transaction open, and whoever is given it next would write into that.
    let (pool, begin) = (pool.clone(), begin_text(deadline));
    let begun = tokio::spawn(async move { pool.begin_with(AssertSqlSafe(begin)).await });
    entered(begun.await.map_err(|_| sqlx::Error::WorkerCrashed)??, entering).await
}

/// Not sent along with BEGIN: where it fails the client would leave the transaction open.
async fn entered<'c>(
    mut tx: Transaction<'c, Postgres>,
    entering: &str,
) -> Result<Transaction<'c, Postgres>, sqlx::Error> {
    if !entering.is_empty() {
        sqlx::raw_sql(AssertSqlSafe(entering.to_owned())).execute(&mut *tx).await?;
    }
    Ok(tx)
}

fn begin_text(deadline: Duration) -> String {
    format!("BEGIN ISOLATION LEVEL READ COMMITTED; {}", idle_timeout(deadline))
}

fn idle_timeout(deadline: Duration) -> String {
    format!("SET LOCAL idle_in_transaction_session_timeout = {}", deadline.as_millis())
}

/// The partitions among these for which nothing is stored.
pub(crate) async fn unstored(
    conn: &mut PgConnection,
    consumer: &str,
    partitions: &[Partition],
) -> Result<Vec<Partition>, Error> {
    let (topics, numbers) = columns(partitions);
    let rows: Vec<(String, i32)> = sqlx::query_as(
        "SELECT topic, number FROM unnest($2::text[], $3::int[]) AS asked (topic, number)
         WHERE NOT EXISTS (
             SELECT FROM tailrace.consumer_progress AS stored
             WHERE stored.consumer = $1 AND stored.topic = asked.topic
               AND stored.partition = asked.number AND stored.next_offset IS NOT NULL)",
    )
    .bind(consumer)
    .bind(topics)
    .bind(numbers)
    .fetch_all(conn)
    .await
    .map_err(|error| Error::database("progress cannot be read", error))?;
    Ok(rows.into_iter().map(|(topic, number)| Partition { topic: topic.into(), number }).collect())
}

/// The topics among these in which nothing is stored of any partition.
pub(crate) async fn unmet(
    conn: &mut PgConnection,
    consumer: &str,
    topics: &[&str],
) -> Result<Vec<String>, Error> {
    sqlx::query_scalar(
        "SELECT topic FROM unnest($2::text[]) AS asked (topic)
         WHERE NOT EXISTS (
             SELECT FROM tailrace.consumer_progress AS stored
             WHERE stored.consumer = $1 AND stored.topic = asked.topic AND stored.next_offset IS NOT NULL)",
    )
    .bind(consumer)
    .bind(topics)
    .fetch_all(conn)
    .await
    .map_err(|error| Error::database("progress cannot be read", error))
}

/// Stores where partitions begin, in one statement: of several members that meet a topic at once, one decides.
pub(crate) async fn begin_at(
    conn: &mut PgConnection,
    consumer: &str,
    begins: &[(Partition, Offset)],
) -> Result<(), Error> {
    let (topics, numbers) = columns(begins.iter().map(|(partition, _)| partition));
    let offsets: Vec<i64> = begins.iter().map(|(_, offset)| offset.get()).collect();
    sqlx::query(
        "INSERT INTO tailrace.consumer_progress AS stored
             (consumer, topic, partition, lane, epoch, next_offset)
         SELECT $1, topic, number, 0, 1, next_offset
         FROM unnest($2::text[], $3::int[], $4::bigint[]) AS asked (topic, number, next_offset)
         ORDER BY topic, number
         ON CONFLICT (consumer, topic, partition, lane) DO UPDATE
             SET next_offset = excluded.next_offset WHERE stored.next_offset IS NULL",
    )
    .bind(consumer)
    .bind(topics)
    .bind(numbers)
    .bind(offsets)
    .execute(conn)
    .await
    .map_err(|error| Error::database("where partitions begin cannot be stored", error))?;
    Ok(())
}

/// Makes this process the owner: raises the epoch of all lanes of all wanted partitions in one statement, and
/// inserts the rows that are missing.
///
/// It must be over before the first record is fetched: from then on no former owner can commit, so what is
/// read here as `next_offset` stays true.
pub(crate) async fn take(
    conn: &mut PgConnection,
    consumer: &str,
    wanted: &[Wanted],
    takeover: Takeover,
) -> Result<Vec<Taken>, Error> {
    let failed =
        |error| Error::database("the epoch of assigned partitions cannot be raised", error);
    let mut tx = conn.begin().await.map_err(failed)?;
    let patience = format!(
        "{}; SET LOCAL lock_timeout = {}",
        idle_timeout(takeover.deadline),
        // The rest is for ending the holder's session and for asking again.
        takeover.deadline.as_millis() / 4
    );
    sqlx::raw_sql(AssertSqlSafe(patience)).execute(&mut *tx).await.map_err(failed)?;
    let mut found = lock(&mut tx, consumer, wanted).await.map_err(failed)?;
    for wanted in wanted {
        let Some(found) = found.get_mut(&wanted.partition) else { continue };
        if found.forget_other_topic(wanted) && takeover.dedupe.is_position() {
            known::detach(&mut tx, consumer, &wanted.partition).await.map_err(failed)?;
        }
    }
    let mut remembered = known::remember(&mut tx, consumer, takeover.dedupe, wanted).await?;
    let (mut taken, mut befores) = (Vec::new(), Vec::new());
    let mut fewer = false;
    for wanted in wanted {
        let Found { stored, topic_id, before, .. } =
            found.remove(&wanted.partition).unwrap_or_default();
        same_topic(wanted, &stored, topic_id.as_deref())?;
        fewer |= stored.next_offsets.len() > takeover.lanes.count();
        let before = before.of_lanes(&stored.next_offsets, takeover.lanes);
        let counts = remembered.is_by_offset(&wanted.partition.topic);
        taken.push(Taken {
            partition: wanted.partition.clone(),
            plan: plan(&stored, takeover.lanes, wanted.start),
            before: if counts { before.reached() } else { Vec::new() },
            sequences: remembered.sequences(&wanted.partition),
        });
        befores.push(before);
    }
    raise(&mut tx, consumer, wanted, &taken, &befores).await.map_err(failed)?;
    if fewer {
        drop_lanes(&mut tx, consumer, wanted, takeover.lanes).await.map_err(failed)?;
    }
    tx.commit().await.map_err(failed)?;
    Ok(taken)
}

/// What the rows of a partition hold.
#[derive(Debug, Default)]
struct Found {
    stored: Stored,
    topic_id: Option<String>,
    before: Before,
    before_topic_id: Option<String>,
}

impl Found {
    /// What lanes had reached in a topic that has since been made anew says nothing about this one.
    fn forget_other_topic(&mut self, wanted: &Wanted) -> bool {
        let is_other = matches!(
            (&self.before_topic_id, &wanted.topic_id), (Some(before), Some(now)) if before != now
        );
        if is_other {
            self.before = Before::default();
        }
        is_other
    }
}

type ProgressRow = (
    String,
    i32,
    i32,
    i64,
    Option<i64>,
    Option<String>,
    Option<String>,
    Option<i64>,
    Option<String>,
    Option<String>,
);

/// Locks the rows of all lanes, so that what is decided over them is decided by one owner at a time.
async fn lock(
    conn: &mut PgConnection,
    consumer: &str,
    wanted: &[Wanted],
) -> Result<BTreeMap<Partition, Found>, sqlx::Error> {
    let (topics, numbers) = columns(wanted.iter().map(|wanted| &wanted.partition));
    // Two first owners at once would not see each other without a row to wait for.
    let first: Vec<(String, i32)> = sqlx::query_as(
        "INSERT INTO tailrace.consumer_progress (consumer, topic, partition, lane, epoch)
         SELECT $1, topic, number, 0, 1 FROM unnest($2::text[], $3::int[]) AS asked (topic, number)
         ORDER BY topic, number
         ON CONFLICT DO NOTHING
         RETURNING topic, partition",
    )
    .bind(consumer)
    .bind(&topics)
    .bind(&numbers)
    .fetch_all(&mut *conn)
    .await?;
    let rows: Vec<ProgressRow> = sqlx::query_as(
        "SELECT topic, partition, lane, epoch, next_offset, topic_id, former_lanes::text,
                applied_below, former_applied::text, applied_topic_id
         FROM tailrace.consumer_progress
         WHERE consumer = $1
           AND (topic, partition) IN (SELECT * FROM unnest($2::text[], $3::int[]))
         ORDER BY topic, partition, lane
         FOR UPDATE",
    )
    .bind(consumer)
    .bind(topics)
    .bind(numbers)
    .fetch_all(conn)
    .await?;
    let mut found: BTreeMap<Partition, Found> = BTreeMap::new();
    for (topic, number, lane, epoch, next, topic_id, former, below, former_applied, about) in rows {
        let partition = Partition { topic: topic.into(), number };
        let known = found.entry(partition).or_default();
        // A lane whose row somebody removed has reached nothing.
        let lane = usize::try_from(lane).unwrap_or(0);
        put(&mut known.stored.next_offsets, lane, next);
        put(&mut known.before.below, lane, below);
        known.stored.epoch = known.stored.epoch.max(epoch);
        if let Some(former) = former {
            known.stored.former = reached(&former)?;
        }
        if let Some(former) = former_applied {
            known.before.former = reached(&former)?;
        }
        known.topic_id = known.topic_id.take().or(topic_id);
        known.before_topic_id = known.before_topic_id.take().or(about);
    }
    for (topic, number) in first {
        // Nobody has owned it yet.
        found.remove(&Partition { topic: topic.into(), number });
    }
    Ok(found)
}

fn put(offsets: &mut Vec<Option<Offset>>, lane: usize, offset: Option<i64>) {
    offsets.resize(offsets.len().max(lane + 1), None);
    if let Some(place) = offsets.get_mut(lane) {
        *place = offset.map(Offset::new);
    }
}

fn reached(stored: &str) -> Result<Vec<Reached>, sqlx::Error> {
    serde_json::from_str(stored).map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// An offset says nothing about a topic that only has the name of the one it was counted in.
fn same_topic(wanted: &Wanted, stored: &Stored, stored_id: Option<&str>) -> Result<(), Error> {
    let begun = stored.next_offsets.iter().any(Option::is_some);
    match (stored_id, &wanted.topic_id) {
        (Some(stored_id), Some(topic_id)) if begun && stored_id != topic_id => {
            Err(replaced(&wanted.partition))
        }
        _ => Ok(()),
    }
}

/// The error about a topic that has the name of another one.
pub(crate) fn replaced(Partition { topic, number }: &Partition) -> Error {
    let text = format!(
        "the topic {topic} was deleted and made anew, what is stored for its partition {number} is about the former one"
    );
    Error::new(Kind::TopicReplaced, text).mended_by(
        "see whether records of the former topic are missing, then set where to go on with `tailrace inbox seek`",
    )
}

async fn raise(
    conn: &mut PgConnection,
    consumer: &str,
    wanted: &[Wanted],
    taken: &[Taken],
    befores: &[Before],
) -> Result<(), sqlx::Error> {
    let (mut topics, mut numbers, mut lanes) = (Vec::new(), Vec::new(), Vec::new());
    let (mut epochs, mut nexts, mut ids, mut formers) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut belows, mut formers_applied) = (Vec::new(), Vec::new());
    for ((wanted, Taken { partition, plan, .. }), before) in wanted.iter().zip(taken).zip(befores) {
        for (lane, next) in (0i32..).zip(&plan.next_offsets) {
            let below = usize::try_from(lane).ok().and_then(|lane| before.below.get(lane));
            topics.push(&*partition.topic);
            numbers.push(partition.number);
            lanes.push(lane);
            epochs.push(plan.epoch);
            nexts.push(next.map(Offset::get));
            ids.push(wanted.topic_id.as_deref());
            formers.push((lane == 0).then(|| former(&plan.former)).flatten());
            belows.push(
                below.copied().flatten().filter(|below| Some(*below) > *next).map(Offset::get),
            );
            formers_applied.push((lane == 0).then(|| former(&before.former)).flatten());
        }
    }
    sqlx::query(
        "INSERT INTO tailrace.consumer_progress AS stored
             (consumer, topic, partition, lane, epoch, next_offset, topic_id, former_lanes, applied_below,
              former_applied)
         SELECT $1, topic, number, lane, epoch, next_offset, topic_id, former::jsonb, below, former_applied::jsonb
         FROM unnest($2::text[], $3::int[], $4::int[], $5::bigint[], $6::bigint[], $7::text[], $8::text[],
                     $9::bigint[], $10::text[])
             AS planned (topic, number, lane, epoch, next_offset, topic_id, former, below, former_applied)
         ORDER BY topic, number, lane
         ON CONFLICT (consumer, topic, partition, lane) DO UPDATE
             SET epoch = excluded.epoch,
                 next_offset = excluded.next_offset,
                 topic_id = coalesce(excluded.topic_id, stored.topic_id),
                 former_lanes = excluded.former_lanes,
                 applied_below = excluded.applied_below,
                 former_applied = excluded.former_applied,
                 applied_topic_id = coalesce(excluded.topic_id, stored.applied_topic_id),
                 updated_at = now()",
    )
    .bind(consumer)
    .bind(topics)
    .bind(numbers)
    .bind(lanes)
    .bind(epochs)
    .bind(nexts)
    .bind(ids)
    .bind(formers)
    .bind(belows)
    .bind(formers_applied)
    .execute(conn)
    .await?;
    Ok(())
}

fn former(former: &[Reached]) -> Option<String> {
    (!former.is_empty()).then(|| serde_json::json!(former).to_string())
}

async fn drop_lanes(
    conn: &mut PgConnection,
    consumer: &str,
    wanted: &[Wanted],
    lanes: Lanes,
) -> Result<(), sqlx::Error> {
    let (topics, numbers) = columns(wanted.iter().map(|wanted| &wanted.partition));
    sqlx::query(
        "DELETE FROM tailrace.consumer_progress
         WHERE consumer = $1 AND lane >= $4
           AND (topic, partition) IN (SELECT * FROM unnest($2::text[], $3::int[]))",
    )
    .bind(consumer)
    .bind(topics)
    .bind(numbers)
    .bind(i32::try_from(lanes.count()).unwrap_or(i32::MAX))
    .execute(conn)
    .await?;
    Ok(())
}

/// Ends the sessions that hold rows of these partitions and answers with how many they were.
///
/// Nobody but an owner holds them, and for a batch's time only: what still holds them when a new owner's patience
/// ends is a former one that is stopped, or so slow that its partition has moved on. Its transaction rolls back.
/// A row names the transaction that holds it (`xmax`), and that one's lock on itself names its process; a process
/// id that the holder had stored would not be readable before its commit.
pub(crate) async fn end_holders(
    conn: &mut PgConnection,
    consumer: &str,
    partitions: &[Partition],
) -> Result<i64, Error> {
    let (topics, numbers) = columns(partitions);
    sqlx::query_scalar(
        "WITH holder AS MATERIALIZED (
             SELECT DISTINCT held.pid
             FROM tailrace.consumer_progress AS stored
             JOIN pg_catalog.pg_locks AS held
               ON held.locktype = 'transactionid' AND held.granted AND held.transactionid = stored.xmax
             WHERE stored.consumer = $1 AND held.pid <> pg_backend_pid()
               AND (stored.topic, stored.partition) IN (SELECT * FROM unnest($2::text[], $3::int[])))
         SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM holder",
    )
    .bind(consumer)
    .bind(topics)
    .bind(numbers)
    .fetch_one(conn)
    .await
    .map_err(|error| Error::database("the session of the former owner cannot be ended", error))
}

/// Ends the session whose transaction holds a lane's row and was begun at least so long ago, and answers whether there was
/// one. None is ended once another process owns the partition, however old the transaction is.
pub(crate) async fn end_holder(
    conn: &mut PgConnection,
    consumer: &str,
    owned: &Owned,
    age: Duration,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "WITH holder AS MATERIALIZED (
             SELECT session.pid
             FROM tailrace.consumer_progress AS stored
             JOIN pg_catalog.pg_locks AS held
               ON held.locktype = 'transactionid' AND held.granted AND held.transactionid = stored.xmax
             JOIN pg_catalog.pg_stat_activity AS session ON session.pid = held.pid
             WHERE stored.consumer = $1 AND stored.topic = $2 AND stored.partition = $3 AND stored.lane = $4
               AND stored.epoch = $5 AND session.xact_start <= clock_timestamp() - make_interval(secs => $6))
         SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) > 0 FROM holder",
    )
    .bind(consumer)
    .bind(&*owned.partition.topic)
    .bind(owned.partition.number)
    .bind(owned.lane)
    .bind(owned.epoch.0)
    .bind(age.as_secs_f64())
    .fetch_one(conn)
    .await
}

pub(crate) fn columns<'a>(
    partitions: impl IntoIterator<Item = &'a Partition>,
) -> (Vec<String>, Vec<i32>) {
    partitions.into_iter().map(|partition| (partition.topic.to_string(), partition.number)).unzip()
}

/// Proof that the transaction holds the fence: its id, to be shown again before the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fenced(String);

impl Fenced {
    /// Of a statement that has taken the fence and answered with the id of its transaction.
    pub(crate) fn of(xact: String) -> Self {
        Self(xact)
    }
}

/// The first statement of a batch's transaction: moves progress on, if the epoch is still ours, and with it how far the
/// relays have come. No row means that another process owns the partition, and that nothing may be committed.
pub(crate) async fn advance(
    conn: &mut PgConnection,
    consumer: &str,
    owned: &Owned,
    next_offset: Offset,
    reached: &[sequence::Reached<'_>],
) -> Result<Option<Fenced>, Error> {
    let statement = if reached.is_empty() { ADVANCE } else { ADVANCE_WITH_SEQUENCES };
    let mut query = sqlx::query_scalar(statement)
        .bind(consumer)
        .bind(&*owned.partition.topic)
        .bind(owned.partition.number)
        .bind(owned.lane)
        .bind(owned.epoch.0)
        .bind(next_offset.get());
    if !reached.is_empty() {
        let relays: Vec<&str> = reached.iter().map(|(relay, ..)| *relay).collect();
        let sequences: Vec<&str> = reached.iter().map(|(_, sequence, _)| *sequence).collect();
        let offsets: Vec<i64> = reached.iter().map(|(.., offset)| offset.get()).collect();
        query = query.bind(relays).bind(sequences).bind(offsets);
    }
    let row: Option<String> = query
        .fetch_optional(conn)
        .await
        .map_err(|error| Error::database("progress cannot be moved on", error))?;
    Ok(row.map(Fenced))
}

const ADVANCE: &str = "UPDATE tailrace.consumer_progress SET next_offset = $6, updated_at = now()
     WHERE consumer = $1 AND topic = $2 AND partition = $3 AND lane = $4 AND epoch = $5
     RETURNING pg_current_xact_id()::text";

// A lane whose number has changed may begin below what its row has from before.
const ADVANCE_WITH_SEQUENCES: &str = r#"WITH fenced AS (
         UPDATE tailrace.consumer_progress SET next_offset = $6, updated_at = now()
         WHERE consumer = $1 AND topic = $2 AND partition = $3 AND lane = $4 AND epoch = $5
         RETURNING pg_current_xact_id()::text AS xact
     ), reached AS (
         INSERT INTO tailrace.consumer_position AS stored
             (consumer, topic, partition, lane, relay, sequence, "offset")
         SELECT $1, $2, $3, $4, relay, sequence, place
         FROM unnest($7::text[], $8::text[], $9::bigint[]) AS given (relay, sequence, place)
         WHERE EXISTS (SELECT FROM fenced)
         ON CONFLICT (consumer, topic, partition, lane, relay) DO UPDATE
             SET sequence = excluded.sequence, "offset" = excluded."offset"
             WHERE stored.sequence < excluded.sequence
     )
     SELECT xact FROM fenced"#;

/// The first statement of a transaction that moves no progress, such as a replay of parked messages: the same fence.
pub(crate) async fn hold(
    conn: &mut PgConnection,
    consumer: &str,
    owned: &Owned,
) -> Result<Option<Fenced>, Error> {
    let row: Option<String> = sqlx::query_scalar(
        "UPDATE tailrace.consumer_progress SET updated_at = now()
         WHERE consumer = $1 AND topic = $2 AND partition = $3 AND lane = $4 AND epoch = $5
         RETURNING pg_current_xact_id()::text",
    )
    .bind(consumer)
    .bind(&*owned.partition.topic)
    .bind(owned.partition.number)
    .bind(owned.lane)
    .bind(owned.epoch.0)
    .fetch_optional(conn)
    .await
    .map_err(|error| Error::database("the partition cannot be held", error))?;
    Ok(row.map(Fenced))
}

/// The last statement before the commit: is this still the transaction that took the fence?
///
/// Postgres answers COMMIT in an aborted transaction with a roll-back and no error, so a handler that swallows
/// a failed statement would lose its whole batch silently; this statement fails then. It also finds a handler
/// that ended the transaction by itself.
pub(crate) async fn still_open(conn: &mut PgConnection, fenced: &Fenced) -> Result<(), Error> {
    let current: Option<String> = sqlx::query_scalar("SELECT pg_current_xact_id_if_assigned()::text")
        .fetch_one(conn)
        .await
        .map_err(|error| match &error {
            sqlx::Error::Database(cause) if cause.code().as_deref() == Some(ABORTED) => {
                Error::new(Kind::Handler, "a handler kept a failed statement to itself, which aborted the transaction of its batch")
                    .caused_by(error)
                    .mended_by("return the error, or put the statement behind a savepoint")
            }
            _ => Error::database("the batch's transaction cannot be checked", error),
        })?;
    if current.as_ref() == Some(&fenced.0) {
        return Ok(());
    }
    Err(Error::new(Kind::Handler, "a handler ended the transaction of its batch, so that a part of it may be committed")
        .mended_by(
            "handlers must neither commit nor roll back what they were given; see what of the batch has its effect before \
             the next start, which may pass over it or repeat it",
        )
        .halting())
}

/// What an uncertain commit turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The batch is in the database.
    Committed,
    /// It is not: do it again.
    RolledBack,
    /// Another process owns the partition.
    NotOurs,
}

/// Reads the row after a commit whose answer was lost. Taking the row's lock waits for a server process that
/// is still at that commit.
pub(crate) async fn settle(
    conn: &mut PgConnection,
    consumer: &str,
    owned: &Owned,
    next_offset: Offset,
) -> Result<Settled, Error> {
    let row: Option<(i64, Option<i64>)> = sqlx::query_as(
        "SELECT epoch, next_offset FROM tailrace.consumer_progress
         WHERE consumer = $1 AND topic = $2 AND partition = $3 AND lane = $4
         FOR UPDATE",
    )
    .bind(consumer)
    .bind(&*owned.partition.topic)
    .bind(owned.partition.number)
    .bind(owned.lane)
    .fetch_optional(conn)
    .await
    .map_err(|error| Error::database("progress cannot be read", error))?;
    Ok(settled(
        row.map(|(epoch, next)| (Epoch(epoch), next.map(Offset::new))),
        owned.epoch,
        next_offset,
    ))
}

fn settled(row: Option<(Epoch, Option<Offset>)>, mine: Epoch, next_offset: Offset) -> Settled {
    match row {
        Some((epoch, Some(stored))) if epoch == mine && stored >= next_offset => Settled::Committed,
        Some((epoch, _)) if epoch == mine => Settled::RolledBack,
        _ => Settled::NotOurs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_session_that_holds_a_lane_is_ended_while_the_partition_is_ours() {
        let bed = crate::fixture::installed("progress_holder").await;
        bed.execute(
            "INSERT INTO tailrace.consumer_progress (consumer, topic, partition, lane, epoch)
             VALUES ('billing', 'orders', 3, 1, 7), ('billing', 'orders', 3, 0, 7)",
        )
        .await;
        let mut holder = bed.begin().await;
        let pid: i32 =
            sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *holder).await.unwrap();
        let of = |epoch, lane| Owned {
            partition: Partition { topic: "orders".into(), number: 3 },
            lane,
            epoch: Epoch(epoch),
            next_offset: None,
        };
        let held = hold(&mut holder, "billing", &of(7, 1)).await.unwrap();
        assert!(held.is_some());
        let mut conn = bed.pool.acquire().await.unwrap();
        let mut ended = async |owned: Owned, age: u64| {
            let age = Duration::from_secs(age);
            end_holder(&mut conn, "billing", &owned, age).await.unwrap()
        };

        // A former owner's, another lane's, and before its time.
        assert!(!ended(of(6, 1), 0).await);
        assert!(!ended(of(7, 0), 0).await);
        assert!(!ended(of(7, 1), 3600).await);
        assert!(ended(of(7, 1), 0).await);

        let lives = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)";
        crate::fixture::until(async || {
            let lives = sqlx::query_scalar(lives).bind(pid).fetch_one(&bed.pool).await;
            !lives.unwrap_or(true)
        })
        .await;
    }

    fn check(row: Option<(i64, Option<i64>)>, expected: Settled) {
        let row = row.map(|(epoch, next)| (Epoch(epoch), next.map(Offset::new)));

        assert_eq!(settled(row, Epoch(7), Offset::new(100)), expected);
    }

    #[test]
    fn the_database_says_what_an_uncertain_commit_was() {
        check(Some((7, Some(100))), Settled::Committed);
        check(Some((7, Some(60))), Settled::RolledBack);
        check(Some((7, None)), Settled::RolledBack);
        check(Some((8, Some(100))), Settled::NotOurs);
        check(None, Settled::NotOurs);
    }
}
