//! The journal: messages as rows of a table that only grows and loses its oldest days.
//!
//! A message in the log alone is gone once the relay's slot has passed it. A row stays for the
//! length of the [`Retention`]: it can be looked at with SQL and published again. It costs the
//! business transaction an insert without an index, and no vacuum, because nothing is updated and
//! old days leave as whole tables. The relay reads the inserts from the log, in commit order, so
//! rows and frames are published alike.
//!
//! ```no_run
//! # use std::time::Duration;
//! # #[cfg(feature = "sqlx")]
//! # async fn example(
//! #     mut connection: sqlx::PgConnection,
//! #     message: tailrace_outbox::Message,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! use sqlx::Connection;
//! use tailrace_outbox::journal::{self, Retention};
//!
//! // Once, when the service is deployed.
//! tailrace_outbox::schema::install(&mut connection).await?;
//!
//! let mut tx = connection.begin().await?;
//! journal::insert(&mut tx, &message).await?;
//! tx.commit().await?;
//!
//! // Once an hour or once a day, from as many places as you like.
//! let keep = Duration::from_secs(14 * 86_400);
//! let report = journal::maintain(&mut connection, &Retention::new(keep)).await?;
//! println!("made {:?}, dropped {:?}", report.made, report.dropped);
//! # Ok(())
//! # }
//! ```
//!
//! # A row
//!
//! Each column is the part of the [frame](crate::frame) of the same name; `created_at` is the
//! frame's time. `headers` and `attributes` are JSON objects of strings. JSON has no order of its
//! own: whoever makes a record of a row takes the pairs in the byte order of their names, which is
//! the order that [`frame::encode`](crate::frame::encode) and `tailrace.emit` give them too, so the
//! record is the same. A null payload is a tombstone and stands with `tombstone` set.
//!
//! # Partitions
//!
//! One per UTC day, by the time in the id, which is a UUID v7. [`maintain`] makes those of the next
//! days and drops those that are older than the retention. A row whose day has no partition goes to
//! `outbox_default`, and so does one with an id of another kind: the business transaction succeeds
//! and the message is published. Such a day gets no partition any more, since its rows can not be
//! moved without being published again; they are deleted when they are older than the retention.
//!
//! Dropping a day takes no message from the relay: what its slot has not passed is still in the
//! log, with the catalog of that time.

use std::sync::LazyLock;

use sqlx::PgConnection;

#[cfg(doc)]
use crate::Kind;
use crate::schema::Schema;
use crate::{Error, Message, Outbox, Store};

mod day;
mod retention;

pub use retention::{DAYS_AHEAD, KEEP, Maintained, Planned, Retention};

const MEND: &str = "run tailrace_outbox::schema::install or the files of its folder migrations";

static DEFAULT: LazyLock<Journal> = LazyLock::new(|| Journal::new(&Schema::default()));

/// Writes a message into the journal, in the transaction that is open on this connection.
///
/// The table is `tailrace.outbox`; for another schema there is [`Journal::insert`]. As with
/// [`write()`](fn@crate::write), the message lives and dies with the transaction, and on a
/// connection without one it is published at once. One round trip.
///
/// # Errors
///
/// [`Kind::Setup`] if the table is missing, [`Kind::Aborted`] if the transaction had failed before;
/// otherwise what the database says, sorted by [`Error::kind`]. The transaction has then failed:
/// roll it back.
pub async fn insert(connection: &mut PgConnection, message: &Message) -> Result<(), Error> {
    DEFAULT.insert(connection, message).await
}

/// Makes the partitions of the next days of `tailrace.outbox` and drops those that are too old.
///
/// For another schema there is [`Journal::maintain`], which also has the contract.
///
/// # Errors
///
/// What the database says.
pub async fn maintain(
    connection: &mut PgConnection,
    retention: &Retention,
) -> Result<Maintained, Error> {
    DEFAULT.maintain(connection, retention).await
}

/// The journal of one schema.
#[derive(Clone, Debug)]
pub struct Journal {
    schema: Schema,
    outbox: Outbox,
}

impl Default for Journal {
    /// The journal of the schema `tailrace`.
    fn default() -> Self {
        DEFAULT.clone()
    }
}

impl Journal {
    /// The journal of a schema.
    pub fn new(schema: &Schema) -> Self {
        let outbox = Outbox::new(Store::Journal).schema(schema.clone());
        Journal { schema: schema.clone(), outbox }
    }

    /// As [`insert`](fn@insert), into this journal.
    ///
    /// # Errors
    ///
    /// As [`insert`](fn@insert).
    pub async fn insert(
        &self,
        connection: &mut PgConnection,
        message: &Message,
    ) -> Result<(), Error> {
        self.outbox.write(connection, message).await
    }

    /// The statement that makes a publication of the journal, for a relay to read.
    ///
    /// Inserts only: days that are dropped and rows that are deleted concern nobody who reads. Under
    /// the name of the table itself (`publish_via_partition_root`), so that a day's name is never
    /// seen and a new day needs no change. It is not part of the migration, because its name is the
    /// relay's affair; whoever runs it owns the table and may create in the database. The
    /// publication's name goes in quoted.
    pub fn publication_sql(&self, publication: &str) -> String {
        format!(
            "CREATE PUBLICATION \"{}\" FOR TABLE {} \
             WITH (publish = 'insert', publish_via_partition_root = true)",
            publication.replace('"', "\"\""),
            self.schema.object("outbox")
        )
    }
}

/// Sorts an error of the database, and says so when the table is not the one we know.
fn failed(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Error {
    move |error| {
        let error = Error::database(doing, error).in_our_statement();
        if error.is_setup() && error.sqlstate() != Some(RIGHT) {
            error.mended_by(MEND)
        } else {
            error
        }
    }
}

/// The SQLSTATE for a right that is missing.
const RIGHT: &str = "42501";

#[cfg(test)]
mod tests;
