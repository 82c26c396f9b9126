//! Writing a message through sqlx.

use sqlx::PgConnection;

use crate::{Error, Message, PREFIX, frame};

/// Writes a message in the transaction that is open on this connection.
///
/// Takes `&mut tx` of an sqlx transaction, or a connection on which the caller has begun one.
/// The message lives and dies with that transaction, and with the savepoint it was written in.
/// On a connection without a transaction the message is one of its own and is published at once.
///
/// One round trip; nothing is left behind in the session.
///
/// # Errors
///
/// [`Kind::Aborted`](crate::Kind::Aborted) if the transaction had failed before; otherwise what
/// the database says, sorted by [`Error::kind`]. The transaction has then failed: roll it back.
pub async fn write(connection: &mut PgConnection, message: &Message) -> Result<(), Error> {
    sqlx::query("SELECT pg_catalog.pg_logical_emit_message(true, $1, $2)")
        .bind(PREFIX)
        .bind(frame::encode(message))
        .execute(connection)
        .await
        .map_err(|error| Error::database("the message could not be written", error))?;
    Ok(())
}

#[cfg(test)]
mod tests;
