//! The savepoint before an effect that may be refused.

use sqlx::PgConnection;

use crate::error::Error;

pub(super) async fn set(conn: &mut PgConnection) -> Result<(), Error> {
    statement(conn, "SAVEPOINT tailrace_step").await
}

pub(super) async fn release(conn: &mut PgConnection) -> Result<(), Error> {
    statement(conn, "RELEASE SAVEPOINT tailrace_step").await
}

pub(super) async fn undo(conn: &mut PgConnection) -> Result<(), Error> {
    statement(conn, "ROLLBACK TO SAVEPOINT tailrace_step; RELEASE SAVEPOINT tailrace_step").await
}

async fn statement(conn: &mut PgConnection, text: &'static str) -> Result<(), Error> {
    sqlx::raw_sql(text)
        .execute(conn)
        .await
        .map(drop)
        .map_err(|error| Error::database("a savepoint cannot be set or undone", error))
}
