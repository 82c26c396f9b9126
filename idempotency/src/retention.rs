//! The daily partitions of the processed-message table.
//!
//! Ids are UUIDs of version 7, so a UTC day is a range of ids, and a day's ids leave by dropping one table.

use sqlx::PgConnection;

use crate::error::{Error, Kind};
use crate::message_id::Day;

/// How many days after today have their partition made at start.
pub const DAYS_AHEAD: i32 = 2;

/// Makes the partitions of today and of the next [`DAYS_AHEAD`] days, by the database's clock in UTC, and
/// answers how many were missing.
///
/// Call it at start and once a day; a consumer does so by itself. When it was not called for days, claims
/// make what they need, at the price of a lock in the middle of their transaction.
///
/// # Errors
/// What Postgres answers: the tables may be missing, or the role may lack the right to execute
/// `tailrace.make_processed_message_partitions`.
pub async fn make_partitions_ahead(conn: &mut PgConnection) -> Result<u32, Error> {
    let made: i32 = sqlx::query_scalar(
        "SELECT tailrace.make_processed_message_partitions(
             ARRAY(SELECT (now() AT TIME ZONE 'UTC')::date + ahead FROM generate_series(0, $1) AS ahead))",
    )
    .bind(DAYS_AHEAD)
    .fetch_one(conn)
    .await
    .map_err(cannot_make)?;
    counted(made)
}

pub(crate) async fn make_partitions(conn: &mut PgConnection, days: &[Day]) -> Result<u32, Error> {
    let days: Vec<i32> = days.iter().map(|day| day.0).collect();
    let made: i32 = sqlx::query_scalar(
        "SELECT tailrace.make_processed_message_partitions(
             ARRAY(SELECT date '1970-01-01' + day FROM unnest($1::int[]) AS day))",
    )
    .bind(days)
    .fetch_one(conn)
    .await
    .map_err(cannot_make)?;
    counted(made)
}

fn cannot_make(error: sqlx::Error) -> Error {
    Error::database("partitions of tailrace.processed_message cannot be made", error)
}

fn counted(made: i32) -> Result<u32, Error> {
    u32::try_from(made).map_err(|error| {
        Error::new(Kind::Internal, "a negative number of partitions").caused_by(error)
    })
}
