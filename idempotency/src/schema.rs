//! The tables: how they are installed and checked.
//!
//! Everything lives in the schema `tailrace`, beside the objects of other crates; this crate touches its own
//! only. The grants that a service's role needs stand at the head of the first migration.

use std::collections::BTreeSet;

use sqlx::{Connection, PgConnection};

use crate::error::{Error, Kind};

/// One step of the schema, in plain SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Migration {
    /// Rises; the script records it in `tailrace.idempotency_version`.
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
        name: "0001_processed_message_and_progress.sql",
        sql: include_str!("../migrations/0001_processed_message_and_progress.sql"),
    },
    Migration {
        version: 2,
        name: "0002_parked_and_dead.sql",
        sql: include_str!("../migrations/0002_parked_and_dead.sql"),
    },
    Migration {
        version: 3,
        name: "0003_lanes_and_topic_ids.sql",
        sql: include_str!("../migrations/0003_lanes_and_topic_ids.sql"),
    },
    Migration {
        version: 4,
        name: "0004_horizon.sql",
        sql: include_str!("../migrations/0004_horizon.sql"),
    },
    Migration {
        version: 5,
        name: "0005_http_key.sql",
        sql: include_str!("../migrations/0005_http_key.sql"),
    },
    Migration {
        version: 6,
        name: "0006_calls.sql",
        sql: include_str!("../migrations/0006_calls.sql"),
    },
    Migration {
        version: 7,
        name: "0007_positions.sql",
        sql: include_str!("../migrations/0007_positions.sql"),
    },
    Migration {
        version: 8,
        name: "0008_projections.sql",
        sql: include_str!("../migrations/0008_projections.sql"),
    },
];

const MEND: &str =
    "run tailrace_idempotency::schema::install or the files of its folder migrations";

/// Applies the missing migrations and makes the partitions of the next days.
///
/// It may be called at every start and by many processes at once: they wait for each other. On a connection
/// with an open transaction it becomes part of that transaction.
///
/// # Errors
/// What Postgres answers; nothing is installed then.
pub async fn install(conn: &mut PgConnection) -> Result<(), Error> {
    let failed = |error| Error::database("the schema cannot be installed", error);
    let mut tx = conn.begin().await.map_err(failed)?;
    sqlx::query(
        "SELECT pg_advisory_xact_lock(hashtextextended('tailrace.idempotency_version', 0))",
    )
    .execute(&mut *tx)
    .await
    .map_err(failed)?;
    let installed = installed(&mut tx).await?.unwrap_or_default();
    for migration in MIGRATIONS.iter().filter(|migration| !installed.contains(&migration.version)) {
        sqlx::raw_sql(migration.sql).execute(&mut *tx).await.map_err(failed)?;
    }
    crate::retention::make_partitions_ahead(&mut tx).await?;
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
        let text = "the tables of tailrace-idempotency are missing in this database";
        return Err(Error::new(Kind::Schema, text).mended_by(MEND));
    };
    let missing = |migration: &&Migration| !installed.contains(&migration.version);
    match MIGRATIONS.iter().find(missing) {
        None => Ok(()),
        Some(missing) => {
            let text = format!(
                "the tables of tailrace-idempotency are of an older version: {} is missing",
                missing.name
            );
            Err(Error::new(Kind::Schema, text).mended_by(MEND))
        }
    }
}

/// Which migrations were applied: by other tools and other branches, in whatever order.
async fn installed(conn: &mut PgConnection) -> Result<Option<BTreeSet<i32>>, Error> {
    let failed = |error| Error::database("the schema's version cannot be read", error);
    // Not by to_regclass: a session remembers the names that it did not find, and who has waited for the lock
    // of `install` may not have heard of what its holder made.
    let present: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                        WHERE n.nspname = 'tailrace' AND c.relname = 'idempotency_version')",
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(failed)?;
    if !present {
        return Ok(None);
    }
    let versions: Vec<i32> = sqlx::query_scalar("SELECT version FROM tailrace.idempotency_version")
        .fetch_all(conn)
        .await
        .map_err(failed)?;
    Ok(Some(versions.into_iter().collect()))
}

#[cfg(test)]
#[cfg(feature = "kafka")]
mod tests;
