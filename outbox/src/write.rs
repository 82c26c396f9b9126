//! Writing messages through sqlx, each in a statement of its own or many in one.

use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};

use crate::outbox::batch;
use crate::{Error, Kind, Message, Outbox, Store, frame};

static DEFAULT: Outbox = Outbox::new(Store::Wal);

const DOING: &str = "the message could not be written";

/// Writes a message to the default store: [`Outbox::write`].
///
/// # Errors
///
/// See [`Outbox::write`].
pub async fn write(connection: &mut PgConnection, message: &Message) -> Result<(), Error> {
    DEFAULT.write(connection, message).await
}

/// Writes messages to the default store, in one statement: [`Outbox::write_all`].
///
/// # Errors
///
/// See [`Outbox::write_all`].
pub async fn write_all(connection: &mut PgConnection, messages: &[Message]) -> Result<(), Error> {
    DEFAULT.write_all(connection, messages).await
}

impl Outbox {
    /// Writes a message in the transaction that is open on this connection.
    ///
    /// Takes `&mut tx` of an sqlx transaction, or a connection on which the caller has begun one.
    /// The message lives and dies with that transaction, and with the savepoint it was written
    /// in. On a connection without a transaction the message is one of its own and is published
    /// at once.
    ///
    /// One round trip, which [`Outbox::merge`] saves; nothing is left behind in the session.
    ///
    /// # Errors
    ///
    /// [`Kind::Aborted`] if the transaction had failed before; otherwise what the database says,
    /// sorted by [`Error::kind`]. The transaction has then failed: roll it back.
    pub async fn write(
        &self,
        connection: &mut PgConnection,
        message: &Message,
    ) -> Result<(), Error> {
        sqlx::query(AssertSqlSafe(self.one()))
            .bind(frame::encode(message))
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
        #[cfg(feature = "testing")]
        crate::testing::note(self, connection, std::slice::from_ref(message)).await?;
        Ok(())
    }

    /// Writes messages in one statement, in the order given.
    ///
    /// As many round trips as [`Outbox::write`], whatever their number: one, or none if there is
    /// no message.
    ///
    /// # Errors
    ///
    /// [`Kind::TooLarge`], before anything is sent, for more than
    /// [`BATCH_MESSAGES_MAX`](crate::BATCH_MESSAGES_MAX) messages or
    /// [`BATCH_BYTES_MAX`](crate::BATCH_BYTES_MAX) bytes; otherwise as [`Outbox::write`].
    pub async fn write_all(
        &self,
        connection: &mut PgConnection,
        messages: &[Message],
    ) -> Result<(), Error> {
        match messages {
            [] => return Ok(()),
            // One message may be larger than a batch.
            [message] => return self.write(connection, message).await,
            _ => {}
        }
        let written: i64 = sqlx::query_scalar(AssertSqlSafe(self.many()))
            .bind(batch(messages)?)
            .fetch_one(&mut *connection)
            .await
            .map_err(failed)?;
        if usize::try_from(written) != Ok(messages.len()) {
            return Err(Error::new(Kind::Database, "the database did not write every message"));
        }
        #[cfg(feature = "testing")]
        crate::testing::note(self, connection, messages).await?;
        Ok(())
    }

    /// Fails unless what is written now would reach a relay: [`check`](crate::check()) for this
    /// outbox.
    ///
    /// # Errors
    ///
    /// See [`check`](crate::check()).
    pub async fn check<'c>(&self, executor: impl PgExecutor<'c>) -> Result<(), Error> {
        crate::check(executor, self.slot_name()).await
    }
}

fn failed(error: sqlx::Error) -> Error {
    Error::database(DOING, error).in_our_statement()
}

#[cfg(test)]
mod tests;
