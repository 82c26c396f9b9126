//! For tests of a service: which messages its transaction wrote, without Kafka and before commit.
//!
//! What a transaction has put into the write-ahead log can be read by nobody before the commit,
//! not even by itself. So [`record`] gives an [`Outbox`] that writes as the one it was made from
//! does, by the same statements, and after each notes the message in a temporary table of the
//! session. The note is part of the transaction: what a savepoint takes back is not expected
//! either.
//!
//! ```no_run
//! use sqlx::{Connection, PgConnection};
//! use tailrace_outbox::testing::{expect_messages, record};
//! use tailrace_outbox::{Error, Message, Outbox, Store};
//!
//! /// What is tested: it takes the outbox as it takes the transaction.
//! async fn place_order(tx: &mut PgConnection, outbox: &Outbox) -> Result<(), Error> {
//!     let message = Message::builder("orders", "order.placed.v1")
//!         .source("/orders")
//!         .key("order-42")
//!         .json(&42)
//!         .build()?;
//!     outbox.merge("INSERT INTO orders VALUES (42)").message(&message).execute(tx).await?;
//!     Ok(())
//! }
//!
//! # async fn test(mut connection: PgConnection) -> Result<(), Box<dyn std::error::Error>> {
//! let mut tx = connection.begin().await?;
//! let outbox = record(&mut tx, &Outbox::new(Store::Wal)).await?;
//!
//! place_order(&mut tx, &outbox).await?;
//!
//! let mut written = expect_messages(&mut tx).await?;
//! assert_eq!(written.next("order.placed.v1").key(), Some(&b"order-42"[..]));
//! written.end();
//! tx.rollback().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Limits
//!
//! - Only what goes through the recording outbox is seen: neither what the free functions write,
//!   nor a trigger or statement that calls `tailrace.emit`, nor another connection.
//! - Recording begins with [`record`] and ends with the session, or with the rollback of the
//!   transaction it was called in. The messages of one transaction are forgotten at its end.
//! - It needs the right to make temporary tables (`TEMPORARY` on the database), goes over sqlx,
//!   and is not meant for production: a note is one more round trip.

use std::collections::VecDeque;

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::frame::{self, Frame};
use crate::outbox::Place;
use crate::{Error, Kind, Message, Outbox};

const DOING: &str = "messages can not be recorded";

/// The table forgets at the end of each transaction.
const TABLE: &str = "CREATE TEMPORARY TABLE IF NOT EXISTS tailrace_recorded (\
     place bigint GENERATED ALWAYS AS IDENTITY, frame bytea NOT NULL) ON COMMIT DELETE ROWS";

const NOTE: &str = "INSERT INTO pg_temp.tailrace_recorded (frame) \
     SELECT frame FROM unnest($1::bytea[]) WITH ORDINALITY AS given (frame, place) ORDER BY place";

/// An outbox that writes as the given one does, and notes what it writes.
///
/// For this connection alone: on another one every write fails.
///
/// # Errors
///
/// What the database says, sorted by [`Error::kind`].
pub async fn record(connection: &mut PgConnection, outbox: &Outbox) -> Result<Outbox, Error> {
    connection.execute(TABLE).await.map_err(|error| Error::database(DOING, error))?;
    Ok(outbox.clone().recording())
}

/// Notes messages that were written, if the outbox records.
pub(crate) async fn note(
    outbox: &Outbox,
    connection: &mut PgConnection,
    messages: &[Message],
) -> Result<(), Error> {
    if outbox.is_recording() {
        let frames: Vec<Vec<u8>> = messages.iter().map(frame::encode).collect();
        sqlx::query(NOTE)
            .bind(frames)
            .execute(connection)
            .await
            .map_err(|error| elsewhere(Error::database(DOING, error)))?;
    }
    Ok(())
}

/// What the open transaction has written through the outbox of [`record`], in order.
///
/// # Errors
///
/// [`Kind::Setup`] on a connection on which nothing is recorded, [`Kind::Ended`] where no transaction
/// is open, because what one wrote is forgotten at its end; otherwise what the database says, sorted
/// by [`Error::kind`].
pub async fn expect_messages(connection: &mut PgConnection) -> Result<Written, Error> {
    let unread = |error| Error::database("the recorded messages can not be read", error);
    // Whatever sqlx believes: a transaction may have been begun by a text.
    let open = format!("SELECT {}", Place::InTransaction.unless_ended("''", ""));
    sqlx::query(AssertSqlSafe(open)).execute(&mut *connection).await.map_err(|error| {
        let error = unread(error);
        if error.is_ended() { outside(error) } else { error }
    })?;
    let frames: Vec<(Vec<u8>,)> =
        sqlx::query_as("SELECT frame FROM pg_temp.tailrace_recorded ORDER BY place")
            .fetch_all(connection)
            .await
            .map_err(|error| elsewhere(unread(error)))?;
    let message = |(frame,): &(Vec<u8>,)| {
        Message::of_frame(&Frame::decode(frame).expect("the outbox writes whole frames"))
    };
    Ok(Written(frames.iter().map(message).collect()))
}

/// The error of a connection without the table of notes.
fn elsewhere(error: Error) -> Error {
    if !error.is_about_what_is_missing() {
        return error;
    }
    Error::new(Kind::Setup, "nothing is recorded on this connection")
        .mended_by(
            "write and expect on the connection that record was called with: from a pool, on one \
             connection or transaction throughout",
        )
        .caused_by(error)
}

/// The error where there is no transaction to look at.
fn outside(error: Error) -> Error {
    Error::new(Kind::Ended, "no transaction is open, and what one wrote is forgotten at its end")
        .mended_by("expect the messages before the commit, on the transaction that wrote them")
        .caused_by(error)
}

/// The messages of a transaction that a test has not yet looked at.
#[derive(Debug)]
#[must_use = "nothing is asserted before next and end"]
pub struct Written(VecDeque<Message>);

impl Written {
    /// The next message.
    ///
    /// # Panics
    ///
    /// Unless it is there and of this type.
    #[track_caller]
    pub fn next(&mut self, r#type: &str) -> Message {
        let types = self.types();
        match self.0.pop_front() {
            Some(message) if message.r#type() == r#type => message,
            _ => panic!("expected a message of type {type:?} next, and there are {types:?}"),
        }
    }

    /// Asserts that there is no further message.
    ///
    /// # Panics
    ///
    /// If there is one.
    #[track_caller]
    pub fn end(self) {
        assert!(self.0.is_empty(), "expected no further message, and there are {:?}", self.types());
    }

    /// The messages that are left.
    pub fn into_messages(self) -> Vec<Message> {
        self.0.into()
    }

    fn types(&self) -> Vec<String> {
        self.0.iter().map(|message| message.r#type().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests;
