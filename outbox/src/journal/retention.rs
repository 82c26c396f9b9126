//! Making the partitions of the next days and dropping the old ones.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::day::{Day, Ids};
use super::{Journal, failed};
use crate::Error;

/// How long rows are kept unless the retention says otherwise: 7 days.
pub const KEEP: Duration = Duration::from_secs(7 * 86_400);

/// For how many days after today partitions are made unless the retention says otherwise.
pub const DAYS_AHEAD: u16 = 3;

/// More partitions than this are not made ahead.
const DAYS_AHEAD_MAX: u16 = 366;

/// No row is kept longer; beyond it times end.
const KEEP_MAX: Duration = Duration::from_secs(100 * 366 * 86_400);

/// How long a statement waits for a lock. While one waits, new writers wait behind it.
const LOCK_WAIT: &str = "SET LOCAL lock_timeout = '200ms'";

/// No step takes longer: attaching reads what stands in the default partition.
const STEP_MAX: &str = "SET LOCAL statement_timeout = '10s'";

/// Where rows stand whose day has no partition.
const STRAYS: &str = "outbox_default";

/// So many rows of the default partition are deleted at once, and so often in one call.
const STRAYS_PER_DELETE: i64 = 10_000;
const DELETES_MAX: usize = 100;

/// What tells a row that is older than the retention, whose seconds are the first parameter.
const OLD: &str = "created_at < date_trunc('day', now() - make_interval(secs => $1), 'UTC')";

/// How long the journal keeps rows, and how far ahead it has partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    keep: Duration,
    days_ahead: u16,
}

impl Default for Retention {
    /// [`KEEP`] and [`DAYS_AHEAD`].
    fn default() -> Self {
        Retention::new(KEEP)
    }
}

impl Retention {
    /// Keeps rows for this long, and then until the end of their UTC day; at most 100 years.
    pub fn new(keep: Duration) -> Self {
        Retention { keep: keep.min(KEEP_MAX), days_ahead: DAYS_AHEAD }
    }

    /// Has partitions for so many days after today, at most 366. Default: [`DAYS_AHEAD`].
    ///
    /// More than the days between two calls of [`maintain`](super::maintain).
    #[must_use]
    pub fn days_ahead(mut self, days: u16) -> Self {
        self.days_ahead = days.min(DAYS_AHEAD_MAX);
        self
    }
}

/// What one call of [`maintain`](super::maintain) did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Maintained {
    /// The partitions that were made.
    pub made: Vec<String>,
    /// The partitions that were dropped.
    pub dropped: Vec<String>,
    /// The partitions for which a lock was not to be had in time; the next call tries again.
    /// `outbox_default` among them says that old rows were left in it.
    pub postponed: Vec<String>,
    /// The days, as names of partitions, that get none: because rows of theirs stand in
    /// `outbox_default` already, for which maintenance came too late, or because a table that was
    /// not made here has the name or some of the ids.
    pub blocked: Vec<String>,
    /// How many old rows were deleted from `outbox_default`.
    pub strays_deleted: u64,
    /// Whether another call was at work on the same journal, so that this one ended early.
    pub elsewhere: bool,
}

/// What a call of [`maintain`](super::maintain) would do now, if it got every lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Planned {
    /// The partitions that would be made.
    pub make: Vec<String>,
    /// The partitions that would be dropped, with every row in them.
    pub drop: Vec<String>,
    /// The days, as names of partitions, that would get none, as [`Maintained::blocked`] says.
    pub blocked: Vec<String>,
    /// How many old rows would be deleted from `outbox_default`.
    pub strays: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Make(Day),
    Drop(Day),
}

/// The partitions of a journal.
#[derive(Debug, Default)]
struct Partitions {
    /// Those that were made here: a name alone says nothing of the rows behind it.
    ours: BTreeSet<Day>,
    all: Vec<Ids>,
}

impl Partitions {
    fn of(named: &[(String, Option<String>)]) -> Self {
        let mut there = Partitions::default();
        for (name, bounds) in named {
            let Some(ids) = bounds.as_deref().and_then(Ids::of_bounds) else { continue };
            there.all.push(ids);
            there.ours.extend(Day::of_partition(name).filter(|day| day.ids() == ids));
        }
        there
    }

    /// Whether every id of the day has its place, whoever made it.
    fn cover(&self, day: Day) -> bool {
        self.all.iter().any(|ids| ids.cover(day.ids()))
    }

    /// Whether a part of the day belongs to a table that was not made for it.
    fn meet(&self, day: Day) -> bool {
        self.all.iter().any(|ids| ids.meet(day.ids()))
    }
}

/// The partitions to make and to drop, by the clock and by what is there.
fn plan(now_seconds: i64, there: &Partitions, retention: &Retention) -> Vec<Step> {
    let today = Day::of(now_seconds);
    let keep = i64::try_from(retention.keep.as_secs()).expect("the retention is bounded");
    let ahead = (0..=i64::from(retention.days_ahead)).map(|days| today.plus(days));
    let missing = ahead.filter(|day| !there.cover(*day)).map(Step::Make);
    let old = there.ours.iter().filter(|day| day.end_seconds() + keep <= now_seconds);
    missing.chain(old.copied().map(Step::Drop)).collect()
}

/// How a step went.
enum Outcome {
    Done,
    /// Another call had done it before.
    Nothing,
    Postponed,
    Blocked,
    Elsewhere,
}

impl Journal {
    /// Makes the partitions of the next days and drops those that are older than the retention.
    ///
    /// Call it from where you like and as often as you like, also from several places at once: an
    /// advisory lock lets one of them work, and the others answer that it is done
    /// [elsewhere](Maintained::elsewhere). Days are those of the database's clock, in UTC. It needs
    /// the owner of the table, and a connection without an open transaction: each partition is a
    /// transaction of its own, so that no lock is held from one to the next.
    ///
    /// Making a partition lets writers go on. Dropping one needs the whole table for a moment: it
    /// waits 200 ms at most for transactions that have written to the journal, and new writers wait
    /// behind it that long; then it is [postponed](Maintained::postponed). Tables that were not made
    /// here are left alone: only one that has both the name and the bounds of its day is dropped.
    ///
    /// Calls that come too late are felt: attaching a day reads all of `outbox_default`, for at most
    /// 10 seconds, and rows that belong there wait meanwhile. It is empty as long as there is a
    /// partition for today.
    ///
    /// # Errors
    ///
    /// What the database says; what was done before stays done.
    pub async fn maintain(
        &self,
        connection: &mut PgConnection,
        retention: &Retention,
    ) -> Result<Maintained, Error> {
        let mut report = Maintained::default();
        let (now_seconds, there) = self.look(connection).await?;
        for step in plan(now_seconds, &there, retention) {
            let (Step::Make(day) | Step::Drop(day)) = step;
            let list = match (self.step(connection, step).await?, step) {
                (Outcome::Done, Step::Make(_)) => &mut report.made,
                (Outcome::Done, Step::Drop(_)) => &mut report.dropped,
                (Outcome::Nothing, _) => continue,
                (Outcome::Postponed, _) => &mut report.postponed,
                (Outcome::Blocked, _) => &mut report.blocked,
                (Outcome::Elsewhere, _) => {
                    report.elsewhere = true;
                    return Ok(report);
                }
            };
            list.push(day.partition());
        }
        self.delete_strays(connection, retention, &mut report).await?;
        Ok(report)
    }

    /// What [`Journal::maintain`] would do now; changes nothing.
    ///
    /// For whoever is about to shorten the retention: what is dropped does not come back. It reads
    /// all of `outbox_default`, and needs the right to.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn plan(
        &self,
        connection: &mut PgConnection,
        retention: &Retention,
    ) -> Result<Planned, Error> {
        let mut planned = Planned::default();
        let (now_seconds, there) = self.look(connection).await?;
        let failed = || failed("the rows of outbox_default can not be counted");
        for step in plan(now_seconds, &there, retention) {
            let list = match step {
                Step::Drop(_) => &mut planned.drop,
                Step::Make(day)
                    if self.is_blocked(day, &there, connection).await.map_err(failed())? =>
                {
                    &mut planned.blocked
                }
                Step::Make(_) => &mut planned.make,
            };
            let (Step::Make(day) | Step::Drop(day)) = step;
            list.push(day.partition());
        }
        planned.strays = self.strays(connection, retention).await.map_err(failed())?;
        Ok(planned)
    }

    /// Whether the day gets no partition, as an attempt would find.
    async fn is_blocked(
        &self,
        day: Day,
        there: &Partitions,
        connection: &mut PgConnection,
    ) -> Result<bool, sqlx::Error> {
        if there.meet(day) || self.schema.has_table(&day.partition(), connection).await? {
            return Ok(true);
        }
        let late = format!(
            "SELECT EXISTS (SELECT FROM {} WHERE id >= '{}' AND id < '{}')",
            self.schema.object(STRAYS),
            day.bound(),
            day.plus(1).bound()
        );
        sqlx::query_scalar(AssertSqlSafe(late)).persistent(false).fetch_one(connection).await
    }

    /// How many rows one call would delete from the default partition.
    async fn strays(
        &self,
        connection: &mut PgConnection,
        retention: &Retention,
    ) -> Result<u64, sqlx::Error> {
        let count = format!(
            "SELECT count(*) FROM (SELECT FROM {} WHERE {OLD} LIMIT $2) AS old",
            self.schema.object(STRAYS)
        );
        let deletes = i64::try_from(DELETES_MAX).expect("a small number");
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(count))
            .bind(retention.keep.as_secs_f64())
            .bind(deletes * STRAYS_PER_DELETE)
            .fetch_one(connection)
            .await?;
        Ok(u64::try_from(count).expect("a count is not negative"))
    }

    /// The partitions a new journal begins with, in the transaction that installs it.
    ///
    /// Nobody else knows the table yet, so there is nothing to wait for; and a `SET LOCAL` would
    /// outlast this in the caller's transaction.
    pub(crate) async fn make_first_partitions(&self, tx: &mut PgConnection) -> Result<(), Error> {
        let (now_seconds, there) = self.look(tx).await?;
        for step in plan(now_seconds, &there, &Retention::new(KEEP_MAX)) {
            self.change(tx, step).await.map_err(not_changed)?;
        }
        Ok(())
    }

    /// The database's clock, and the partitions.
    async fn look(&self, connection: &mut PgConnection) -> Result<(i64, Partitions), Error> {
        let failed = || failed("the journal's partitions can not be read");
        let now_seconds =
            sqlx::query_scalar("SELECT extract(epoch FROM clock_timestamp())::bigint")
                .fetch_one(&mut *connection)
                .await
                .map_err(failed())?;
        Ok((now_seconds, self.partitions(connection).await.map_err(failed())?))
    }

    async fn partitions(&self, connection: &mut PgConnection) -> Result<Partitions, sqlx::Error> {
        // Without bounds: one that is being dropped at this moment.
        let named: Vec<(String, Option<String>)> = sqlx::query_as(
            "SELECT c.relname::text, pg_catalog.pg_get_expr(c.relpartbound, c.oid) \
             FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid \
             WHERE i.inhparent = $1::text::regclass AND NOT i.inhdetachpending",
        )
        .bind(self.schema.object("outbox"))
        .fetch_all(connection)
        .await?;
        Ok(Partitions::of(&named))
    }

    /// One step, in a transaction of its own.
    async fn step(&self, connection: &mut PgConnection, step: Step) -> Result<Outcome, Error> {
        let tried = async {
            let mut tx = connection.begin().await?;
            let outcome = if self.alone(&mut tx).await? {
                self.change(&mut tx, step).await?
            } else {
                Outcome::Elsewhere
            };
            tx.commit().await?;
            Ok(outcome)
        };
        match tried.await {
            Ok(outcome) => Ok(outcome),
            Err(error) => judge(error),
        }
    }

    /// Bounds the waits of this transaction, and takes the lock if nobody has it.
    async fn alone(&self, tx: &mut PgConnection) -> Result<bool, sqlx::Error> {
        sqlx::query(LOCK_WAIT).execute(&mut *tx).await?;
        sqlx::query(STEP_MAX).execute(&mut *tx).await?;
        sqlx::query_scalar(
            "SELECT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($1, 0))",
        )
        .bind(self.schema.object("outbox"))
        .fetch_one(tx)
        .await
    }

    async fn change(&self, tx: &mut PgConnection, step: Step) -> Result<Outcome, sqlx::Error> {
        let (Step::Make(day) | Step::Drop(day)) = step;
        let parent = self.schema.object("outbox");
        let partition = self.schema.object(&day.partition());
        // Under the lock: another call may have done it, and nobody else's table is dropped.
        let there = self.partitions(tx).await?;
        let is_named = self.schema.has_table(&day.partition(), tx).await?;
        let statements = match step {
            Step::Make(_) if there.cover(day) => return Ok(Outcome::Nothing),
            Step::Make(_) if there.meet(day) || is_named => return Ok(Outcome::Blocked),
            Step::Drop(_) if !there.ours.contains(&day) => return Ok(Outcome::Nothing),
            // Made first and attached afterwards: CREATE TABLE ... PARTITION OF would wait for
            // every transaction that has written, and hold up new ones meanwhile.
            Step::Make(_) => format!(
                "CREATE TABLE {partition} (LIKE {parent} INCLUDING ALL); \
                 ALTER TABLE {parent} ATTACH PARTITION {partition} \
                 FOR VALUES FROM ('{}') TO ('{}')",
                day.bound(),
                day.plus(1).bound()
            ),
            // Not DETACH ... CONCURRENTLY, which a table with a default partition does not have.
            Step::Drop(_) => format!("DROP TABLE {partition}"),
        };
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(tx).await?;
        Ok(Outcome::Done)
    }

    /// Rows without a day of their own leave by their time, some in each transaction.
    async fn delete_strays(
        &self,
        connection: &mut PgConnection,
        retention: &Retention,
        report: &mut Maintained,
    ) -> Result<(), Error> {
        for _ in 0..DELETES_MAX {
            let tried = async {
                let mut tx = connection.begin().await?;
                if !self.alone(&mut tx).await? {
                    return Ok((Outcome::Elsewhere, 0));
                }
                let deleted = self.delete_some(&mut tx, retention).await?;
                tx.commit().await?;
                Ok((Outcome::Done, deleted))
            };
            match tried.await.or_else(|error| judge(error).map(|outcome| (outcome, 0)))? {
                (Outcome::Done, deleted) if deleted > 0 => report.strays_deleted += deleted,
                (Outcome::Elsewhere, _) => {
                    report.elsewhere = true;
                    break;
                }
                (Outcome::Postponed | Outcome::Blocked, _) => {
                    report.postponed.push(STRAYS.to_owned());
                    break;
                }
                (Outcome::Done | Outcome::Nothing, _) => break,
            }
        }
        Ok(())
    }

    async fn delete_some(
        &self,
        tx: &mut PgConnection,
        retention: &Retention,
    ) -> Result<u64, sqlx::Error> {
        let table = self.schema.object(STRAYS);
        let delete = format!(
            "DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table} \
             WHERE {OLD} LIMIT $2))"
        );
        let deleted = sqlx::query(AssertSqlSafe(delete))
            .bind(retention.keep.as_secs_f64())
            .bind(STRAYS_PER_DELETE)
            .execute(tx)
            .await?;
        Ok(deleted.rows_affected())
    }
}

/// What an error of a step means: some only say that it is not the moment.
fn judge(error: sqlx::Error) -> Result<Outcome, Error> {
    let state = error.as_database_error().and_then(|fault| fault.code());
    match state.as_deref() {
        // A lock or an answer was not to be had in time, or others came in between.
        Some("55P03" | "57014" | "40P01") => Ok(Outcome::Postponed),
        // The default partition has a row that would belong to the new one.
        Some("23514") => Ok(Outcome::Blocked),
        _ => Err(not_changed(error)),
    }
}

fn not_changed(error: sqlx::Error) -> Error {
    Error::database("a partition of the journal can not be made or dropped", error)
}

#[cfg(test)]
mod tests;
