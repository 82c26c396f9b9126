//! Reaching Postgres at the start, and saying why it can not be reached.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection, PgPool, Postgres};

use crate::error::{Error, Kind};

/// A pool says nothing while nobody listens at the other end, or others have its connections. After this long, or a third
/// of its own patience, it is looked which of the two it is.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// A connection of the pool. `last` is why the start waits, for whoever gives this up at a deadline of its own.
///
/// The pool is asked once and not anew after each look: a connection that takes long to be let in would begin at nothing
/// each time, and who waits for one that others have would go to the end of the queue.
///
/// # Errors
/// The true reason why there is none, with the address.
pub(crate) async fn reach(
    pool: &PgPool,
    last: &mut Option<Error>,
) -> Result<PoolConnection<Postgres>, Error> {
    // Boxed: they are a part of the future of each consumer.
    let mut acquiring = Box::pin(pool.acquire());
    let wait = WAIT_MAX.min(pool.options().get_acquire_timeout() / 3);
    if let Ok(acquired) = tokio::time::timeout(wait, &mut acquiring).await {
        return acquired.map_err(|error| failed(pool, error));
    }
    let options = pool.connect_options();
    let acquired = tokio::select! {
        biased;
        acquired = &mut acquiring => match acquired {
            // The look has no answer either.
            Err(sqlx::Error::PoolTimedOut) => Err(silence()),
            acquired => acquired,
        },
        looked = Box::pin(look(&options)) => match looked {
            Ok(()) => {
                let error = failed(pool, sqlx::Error::PoolTimedOut);
                tracing::warn!(error = %error, "the start waits for postgres");
                *last = Some(error);
                acquiring.await
            }
            Err(error) => Err(error),
        }
    };
    acquired.map_err(|error| failed(pool, error))
}

/// Nobody has answered.
pub(crate) fn silence() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

/// Whether a connection can be had beside the pool. Where Postgres is slow to let it in, the pool is let in first.
async fn look(options: &PgConnectOptions) -> Result<(), sqlx::Error> {
    let alone = PgConnection::connect_with(options).await?;
    drop(alone.close().await);
    Ok(())
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
    let code = code.into_owned();
    let (why, mend) = match (&error, code.as_str()) {
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
        // What a PgBouncer says of one that it was not told to pass over.
        (_, "08P01") => (
            "it does not take a parameter of the session",
            "name the parameter of the cause in PgBouncer's ignore_startup_parameters, or leave it out \
             (PgConnectOptions::extra_float_digits(None))",
        ),
        (sqlx::Error::Io(error), _) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            ("the connection is refused", "check host and port, and that the server runs")
        }
        (sqlx::Error::Io(_), _) => {
            ("it does not answer", "check host and port, and that the server runs")
        }
        _ => ("see the cause", "see the log of the server"),
    };
    let text = format!("postgres cannot be reached at {host}, database {database}: {why}");
    let is_refused = code == "08P01";
    let failed = Error::new(Kind::Database, text).caused_by(error).mended_by(mend);
    // Its class is that of lost connections, and time does not mend it.
    if is_refused { failed.halting() } else { failed }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use sqlx::postgres::PgPoolOptions;

    use super::*;
    use crate::fixture::{Bed, DEADLINE, bare, until};

    /// A pool with one connection, and the way to it.
    fn one(bed: &Bed, patience: Duration) -> (PgPool, tailrace_stack::Proxy) {
        let proxy = bed.stack.postgres().proxy().unwrap();
        let options = PgPoolOptions::new().max_connections(1).acquire_timeout(patience);
        (options.connect_lazy(&proxy.url(bed.database.url())).unwrap(), proxy)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_postgres_that_takes_long_to_let_anybody_in_is_reached() {
        let bed = bare("reaching_slow").await;
        let (pool, proxy) = one(&bed, DEADLINE);
        // One question and its answer take longer than is waited before the look.
        proxy.delay(WAIT_MAX * 3 / 4);

        let mut last = None;
        let reached = reach(&pool, &mut last).await;

        assert!(reached.is_ok() && last.is_none(), "{reached:?} {last:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_postgres_that_does_not_answer_is_not_told_as_a_pool_in_use() {
        let bed = bare("reaching_silent").await;
        let (pool, proxy) = one(&bed, WAIT_MAX * 2);
        proxy.hold();

        let error = reach(&pool, &mut None).await.unwrap_err();

        assert!(error.to_string().contains("it does not answer"), "{error}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_waits_for_a_connection_that_others_have_keeps_its_place_and_says_what_it_waits_for()
     {
        let bed = bare("reaching_busy").await;
        let (pool, proxy) = one(&bed, DEADLINE);
        let held = pool.acquire().await.unwrap();
        // So that the look is seen.
        proxy.delay(WAIT_MAX / 10);

        let (mut last, served) = (None, Mutex::new(Vec::new()));
        let first = async {
            let reached = reach(&pool, &mut last).await;
            served.lock().unwrap().push("first");
            reached.map(drop)
        };
        let second = async {
            drop(pool.acquire().await.unwrap());
            served.lock().unwrap().push("second");
        };
        let given_back = async {
            until(async || proxy.connections() == 2).await;
            until(async || proxy.connections() == 1).await;
            drop(held);
        };
        let (reached, (), ()) = tokio::join!(first, second, given_back);

        assert!(reached.is_ok(), "{reached:?}");
        assert_eq!(*served.lock().unwrap(), ["first", "second"]);
        let said = last.unwrap().to_string();
        assert!(said.contains("all connections of the pool are in use"), "{said}");
    }
}
