//! Handlers that take too long: they are cut off, or found out by the session that they have lost.

use std::time::{Duration, Instant};

use sqlx::{Connection as _, PgConnection};

use crate::error::{Error, Kind};
use crate::lane::Shared;
use crate::progress::{self, Owned};
use crate::record::Meta;
use crate::used::Used;

/// How long Postgres may take to end the session of a handler that was cut off.
const END_WAIT_MAX: Duration = Duration::from_secs(5);

/// A Postgres that takes longer for it may have been away until now.
const END_WAIT: Duration = Duration::from_secs(1);

/// A handler has not ended in time, and its future is gone. Its session is ended, for a statement of it that still runs
/// keeps its locks, whoever waits for the answer, and the next attempt would wait for them.
///
/// # Errors
/// Postgres does not answer, or has stood still: then it is nobody's fault that the handler got no further.
pub(crate) async fn cut_off(
    shared: &Shared,
    owned: &Owned,
    first: &Meta,
    messages: usize,
) -> Result<Error, Error> {
    if let Err(error) = has_answered(shared, owned).await {
        tracing::warn!(error = %error, "a handler is cut off, which waited for postgres");
        return Err(error.breaking_off());
    }
    let time = shared.handler_time_out.as_secs_f32();
    let text = format!(
        "the handler of {}{} did not end within the handler_time_out of {time} s",
        first.message_type(),
        of_many(messages),
    );
    let error = failed(text, first)
        .mended_by("bound what the handler waits for, or raise Config::handler_time_out");
    tracing::warn!(error = %error, "a handler is cut off");
    Ok(error)
}

const AWAY: &str = "postgres does not answer while a handler runs";

/// Ends the session, and tells by the way whether Postgres has answered while the handler ran.
///
/// One that was away and comes back while this waits has answered the handler's statement as late. It is known by the time
/// that this took, and told from one that is always so slow, far away or on a busy machine, by doing it once more.
async fn has_answered(shared: &Shared, owned: &Owned) -> Result<(), Error> {
    let began = Instant::now();
    end_session(shared, owned).await?;
    let took = began.elapsed();
    if took < END_WAIT {
        return Ok(());
    }
    let again = Instant::now();
    end_session(shared, owned).await?;
    if again.elapsed() < took / 2 { Err(Error::database_silent(AWAY, took)) } else { Ok(()) }
}

async fn end_session(shared: &Shared, owned: &Owned) -> Result<(), Error> {
    match tokio::time::timeout(END_WAIT_MAX, end_session_once(shared, owned)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => {
            let error = Error::database(AWAY, error);
            if error.is_outage() && !has_no_place(&error) {
                return Err(error);
            }
            tracing::warn!(
                error = %error, code = error.database_code(),
                "the session of a handler that was cut off is left to its end"
            );
            Ok(())
        }
        Err(_) => Err(Error::database_silent(AWAY, END_WAIT_MAX)),
    }
}

/// On a connection of its own: the pool may have no other, and all of its connections may be in such hands. Where Postgres
/// has no place for one more, the pool may have one that nobody uses.
async fn end_session_once(shared: &Shared, owned: &Owned) -> Result<bool, sqlx::Error> {
    // The clocks may differ a little.
    let age = shared.handler_time_out.mul_f32(0.9);
    match PgConnection::connect_with(&shared.pool.connect_options()).await {
        Ok(mut conn) => progress::end_holder(&mut conn, &shared.consumer, owned, age).await,
        Err(error) => {
            let Some(conn) = shared.pool.try_acquire() else { return Err(error) };
            let mut used = Used::new(conn);
            let ended = progress::end_holder(&mut used, &shared.consumer, owned, age).await?;
            drop(used.unused());
            Ok(ended)
        }
    }
}

/// It answers, that there are as many connections as it may have.
fn has_no_place(error: &Error) -> bool {
    error.database_code().as_deref() == Some("53300")
}

/// Whether a session that is found gone was lost by a handler that took so long. Many that took a moment each, without a
/// statement, leave it idle for as long together: that is nobody's failure, and fewer of them share the next transaction.
pub(crate) fn lost_by(error: &Error, took: Duration, shared: &Shared) -> bool {
    // The server has looked at another clock.
    error.lost_its_session() && took >= shared.rebalance_deadline / 10 * 9
}

/// The error of a handler for whose waiting Postgres has ended the session.
pub(crate) fn idled(shared: &Shared, first: &Meta, messages: usize, error: Error) -> Error {
    let time = shared.rebalance_deadline.as_secs_f32();
    let text = format!(
        "the handler of {}{} left its transaction idle for longer than the rebalance_deadline of {time} s, so that \
         postgres ended its session",
        first.message_type(),
        of_many(messages),
    );
    let error = failed(text, first).caused_by(error).mended_by(
        "have the handler wait for nothing but its statements, or raise Config::rebalance_deadline",
    );
    tracing::warn!(error = %error, "a handler has lost its transaction");
    error
}

fn of_many(messages: usize) -> String {
    match messages {
        0 | 1 => String::new(),
        many => format!(" for {many} messages, of which the first is named,"),
    }
}

fn failed(text: String, first: &Meta) -> Error {
    let error = Error::new(Kind::Handler, text).breaking_off();
    error.at(first.position()).about(first.message_id())
}
