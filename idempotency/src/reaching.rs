//! Reaching Postgres at the start, and saying why it can not be reached.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, PgConnection, PgPool, Postgres};

use crate::error::{Error, Kind};

/// A pool says nothing while nobody listens at the other end, or others have its connections. After this long, or a third
/// of its own patience, it is looked which of the two it is.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// A connection of the pool.
///
/// # Errors
/// The true reason why there is none, with the address.
pub(crate) async fn reach(pool: &PgPool) -> Result<PoolConnection<Postgres>, Error> {
    let wait = WAIT_MAX.min(pool.options().get_acquire_timeout() / 3);
    match tokio::time::timeout(wait, pool.acquire()).await {
        Ok(Ok(conn)) => return Ok(conn),
        Ok(Err(error)) if !matches!(error, sqlx::Error::PoolTimedOut) => {
            return Err(failed(pool, error));
        }
        Ok(Err(_)) | Err(_) => {}
    }
    let options = pool.connect_options();
    let alone = PgConnection::connect_with(&options);
    match tokio::time::timeout(WAIT_MAX, alone).await {
        Ok(Ok(conn)) => {
            drop(conn.close().await);
            Err(failed(pool, sqlx::Error::PoolTimedOut))
        }
        Ok(Err(error)) => Err(failed(pool, error)),
        Err(_) => Err(failed(pool, sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))),
    }
}

/// Why it is not reached, and where it was looked for. The text has no password.
pub(crate) fn failed(pool: &PgPool, error: sqlx::Error) -> Error {
    let options = pool.connect_options();
    let database = options.get_database().unwrap_or(options.get_username());
    let host = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    let code = error.as_database_error().and_then(|answer| answer.code()).unwrap_or_default();
    let (why, mend) = match (&error, code.as_ref()) {
        (sqlx::Error::PoolTimedOut, _) => (
            "all connections of the pool are in use",
            "give the pool more connections, or give them back",
        ),
        (_, "28P01") => ("it refuses the password or the user", "correct the user or the password"),
        (_, "28000") => ("it lets this user not in", "pg_hba.conf has to let it in from here"),
        (_, "3D000") => ("there is no such database", "create the database, or correct its name"),
        (_, "53300") => {
            ("it has no connection left", "raise max_connections, or make pools smaller")
        }
        (sqlx::Error::Io(error), _) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            ("the connection is refused", "check host and port, and that the server runs")
        }
        (sqlx::Error::Io(_), _) => {
            ("it does not answer", "check host and port, and that the server runs")
        }
        _ => ("see the cause", "see the log of the server"),
    };
    let text = format!("postgres cannot be reached at {host}, database {database}: {why}");
    Error::new(Kind::Database, text).caused_by(error).mended_by(mend)
}
