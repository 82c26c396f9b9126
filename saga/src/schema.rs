//! The tables: how they are installed and checked.
//!
//! Everything lives in the schema `tailrace`, beside the objects of other crates; this crate touches its own
//! only. Participants and orchestrators have the same tables, and use their own part. The grants that a service's
//! role needs stand at the head of each migration.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection, PgPool};
#[cfg(feature = "kafka")]
use tailrace_idempotency::BoxError;

use crate::error::{Error, Kind};

/// One step of the schema, in plain SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Migration {
    /// Rises by one; the script records it in `tailrace.saga_version`.
    pub version: i32,
    /// The name of the file it comes from.
    pub name: &'static str,
    /// Statements for one transaction. Running a script twice is an error: a tool must remember it, as
    /// [`install`] does.
    pub sql: &'static str,
}

/// Every migration in order, for a migration tool of your own.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "0001_barrier.sql",
        sql: include_str!("../migrations/0001_barrier.sql"),
    },
    Migration {
        version: 2,
        name: "0002_saga.sql",
        sql: include_str!("../migrations/0002_saga.sql"),
    },
    Migration {
        version: 3,
        name: "0003_choreography.sql",
        sql: include_str!("../migrations/0003_choreography.sql"),
    },
    Migration {
        version: 4,
        name: "0004_story.sql",
        sql: include_str!("../migrations/0004_story.sql"),
    },
    Migration {
        version: 5,
        name: "0005_lock.sql",
        sql: include_str!("../migrations/0005_lock.sql"),
    },
    Migration {
        version: 6,
        name: "0006_operating.sql",
        sql: include_str!("../migrations/0006_operating.sql"),
    },
    Migration {
        version: 7,
        name: "0007_calls.sql",
        sql: include_str!("../migrations/0007_calls.sql"),
    },
    Migration { version: 8, name: "0008_key.sql", sql: include_str!("../migrations/0008_key.sql") },
    Migration {
        version: 9,
        name: "0009_waiting.sql",
        sql: include_str!("../migrations/0009_waiting.sql"),
    },
];

const MEND: &str = "run tailrace_saga::schema::install or the files of its folder migrations";

/// Applies the missing migrations, in their order, whichever others were applied.
///
/// It may be called at every start and by many processes at once: they wait for each other. On a connection
/// with an open transaction it becomes part of that transaction.
///
/// # Errors
/// What Postgres answers; nothing is installed then.
pub async fn install(conn: &mut PgConnection) -> Result<(), Error> {
    let failed = |error| Error::database("the schema cannot be installed", error);
    let mut tx = conn.begin().await.map_err(failed)?;
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('tailrace.saga_version', 0))")
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    let installed = installed(&mut tx).await?.unwrap_or_default();
    for migration in MIGRATIONS.iter().filter(|migration| !installed.contains(&migration.version)) {
        sqlx::raw_sql(migration.sql).execute(&mut *tx).await.map_err(failed)?;
    }
    tx.commit().await.map_err(failed)
}

/// Checks that the tables are there and not older than this version of the crate needs.
///
/// A newer schema passes: it stays readable for the release before it.
///
/// # Errors
/// [`Kind::Schema`] when they are missing or old; the text says how to mend it.
pub async fn check(conn: &mut PgConnection) -> Result<(), Error> {
    let Some(installed) = installed(conn).await? else {
        let text = "the tables of tailrace-saga are missing in this database";
        return Err(Error::new(Kind::Schema, text).mended_by(MEND));
    };
    let missing = |migration: &&Migration| !installed.contains(&migration.version);
    match MIGRATIONS.iter().find(missing) {
        None => Ok(()),
        Some(missing) => {
            let text = format!(
                "the tables of tailrace-saga are of an older version: {} is missing",
                missing.name
            );
            Err(Error::new(Kind::Schema, text).mended_by(MEND))
        }
    }
}

/// As [`check`], at the start of a process: a database that is away is waited for.
pub(crate) async fn check_patiently(pool: &PgPool) -> Result<(), Error> {
    let since = Instant::now();
    loop {
        let checked = async {
            let mut conn = pool
                .acquire()
                .await
                .map_err(|error| Error::database("no connection to postgres", error))?;
            check(&mut conn).await
        };
        match checked.await {
            Err(error) if error.is_transient() && since.elapsed() < AWAY_MAX => {
                tracing::warn!(%error, "the start waits for postgres");
                tokio::time::sleep(LOOK_EVERY).await;
            }
            checked => return checked,
        }
    }
}

/// As [`check_patiently`], for [`Consumer::starts_if`](tailrace_idempotency::Consumer::starts_if).
#[cfg(feature = "kafka")]
pub(crate) async fn look(pool: PgPool) -> Result<(), BoxError> {
    Ok(check_patiently(&pool).await?)
}

/// How long a start waits for a database that is away.
const AWAY_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Which migrations were applied: by other tools and other branches, in whatever order.
async fn installed(conn: &mut PgConnection) -> Result<Option<BTreeSet<i32>>, Error> {
    let failed = |error| Error::database("the schema's version cannot be read", error);
    // Not by to_regclass: a session remembers the names that it did not find, and who has waited for the lock
    // of `install` may not have heard of what its holder made.
    let present: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                        WHERE n.nspname = 'tailrace' AND c.relname = 'saga_version')",
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(failed)?;
    if !present {
        return Ok(None);
    }
    let versions: Vec<i32> = sqlx::query_scalar("SELECT version FROM tailrace.saga_version")
        .fetch_all(conn)
        .await
        .map_err(failed)?;
    Ok(Some(versions.into_iter().collect()))
}

#[cfg(test)]
mod tests;
