//! Writing messages through sqlx, each in a statement of its own or many in one.

use sqlx::error::BoxDynError;
use sqlx::postgres::PgArguments;
use sqlx::{Arguments, AssertSqlSafe, Connection, PgConnection, PgExecutor};

#[cfg(doc)]
use crate::Kind;
use crate::outbox::{Place, incomplete, must_fit, rows};
use crate::{Error, Message, Outbox, Store, check, frame};

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
    /// One round trip, which [`Outbox::merge`] saves. As with every query of sqlx, the first one on a
    /// connection prepares the statement, which stays there: one more round trip, once.
    ///
    /// The log takes a message in a READ ONLY transaction too, because to Postgres it changes no
    /// data; a table does not (SQLSTATE `25006`).
    ///
    /// # Errors
    ///
    /// Before anything is sent, [`Kind::Unmapped`] or [`Kind::Invalid`] for what the table of
    /// [`Store::Table`] can not hold. [`Kind::Aborted`] if the transaction had failed before, and
    /// [`Kind::Ended`], with debug assertions, if sqlx takes it for open and it is not; otherwise
    /// what the database says, sorted by [`Error::kind`]. The transaction has then failed: roll it
    /// back.
    pub async fn write(
        &self,
        connection: &mut PgConnection,
        message: &Message,
    ) -> Result<(), Error> {
        self.must_be_usable()?;
        let mut arguments = PgArguments::default();
        self.bind(message, &mut arguments)?;
        let written = sqlx::query_with(AssertSqlSafe(self.one(place(connection))), arguments)
            .persistent(self.prepares())
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
        // A trigger may have kept the row out.
        if written.rows_affected() == 0 {
            return Err(Error::unwritten());
        }
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
        self.must_be_usable()?;
        must_fit(messages)?;
        let arguments = match self.mapping() {
            None => frames(messages),
            Some(mapping) => {
                let rows = messages.iter().map(|message| rows::row(mapping, message));
                let rows = rows.collect::<Result<Vec<_>, Error>>()?;
                rows::bind_all(rows::arrays(mapping, &rows))
            }
        };
        let arguments = arguments.map_err(unbound)?;
        let many = AssertSqlSafe(self.many(place(connection)));
        let written: i64 = sqlx::query_scalar_with(many, arguments)
            .persistent(self.prepares())
            .fetch_one(&mut *connection)
            .await
            .map_err(failed)?;
        if usize::try_from(written) != Ok(messages.len()) {
            return Err(incomplete());
        }
        #[cfg(feature = "testing")]
        crate::testing::note(self, connection, messages).await?;
        Ok(())
    }

    /// Fails unless what is written now would reach a relay.
    ///
    /// For the start of a service, in one query: what [`check`](fn@crate::check) asks about the
    /// slot, and for a store that is a table whether it is there with the columns that are needed,
    /// may be written and is published.
    ///
    /// # Errors
    ///
    /// [`Kind::Setup`] with how to mend it; otherwise what the database says, sorted by
    /// [`Error::kind`].
    pub async fn check<'c>(&self, executor: impl PgExecutor<'c>) -> Result<(), Error> {
        self.must_be_usable()?;
        check::ask(executor, self.slot_name(), self.mapping()).await
    }

    /// Binds what [`Outbox::one`] takes for a message.
    pub(crate) fn bind(&self, message: &Message, arguments: &mut PgArguments) -> Result<(), Error> {
        let bound = match self.mapping() {
            None => arguments.add(frame::encode(message)),
            Some(mapping) => rows::bind(arguments, rows::row(mapping, message)?),
        };
        bound.map_err(unbound)
    }
}

/// What sqlx believes about a connection, where that is held against what Postgres says: in builds
/// with debug assertions, since it costs a transaction some percent of its throughput.
pub(crate) fn place(connection: &PgConnection) -> Place {
    if cfg!(debug_assertions) && connection.is_in_transaction() {
        Place::InTransaction
    } else {
        Place::Anywhere
    }
}

/// One array of frames.
fn frames(messages: &[Message]) -> Result<PgArguments, BoxDynError> {
    let mut arguments = PgArguments::default();
    arguments.add(messages.iter().map(frame::encode).collect::<Vec<_>>())?;
    Ok(arguments)
}

fn unbound(error: BoxDynError) -> Error {
    failed(sqlx::Error::Encode(error))
}

fn failed(error: sqlx::Error) -> Error {
    Error::database(DOING, error).in_our_statement()
}

#[cfg(test)]
mod tests;
