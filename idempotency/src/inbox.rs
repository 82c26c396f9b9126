//! What a consumer has set aside, for the person who decides about it: parked messages, dead letters, progress.
//!
//! `tailrace inbox` is a command line over these functions, and a service may offer them to its own operators.
//! They change state in the tables and nothing else. What is to be applied is applied by the consumer that owns
//! the partition: it looks at its parked messages by itself.
//!
//! ```no_run
//! # async fn example(mut conn: sqlx::PgConnection) -> Result<(), tailrace_idempotency::Error> {
//! use tailrace_idempotency::inbox::{self, By, Filter, RETRIES_MAX};
//!
//! let by = By::new("anna").note("the warehouse is back");
//! for entry in inbox::list(&mut conn, &Filter::default().reason("failed"), 100).await? {
//!     match inbox::plan_retry(&entry, RETRIES_MAX) {
//!         Ok(_) => drop(inbox::retry(&mut conn, &entry, RETRIES_MAX, &by).await?),
//!         Err(refusal) => eprintln!("{}: {refusal}", entry.place),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Order
//! Messages of a key are parked behind the one that failed and are replayed in the order of their offsets. Only
//! the first one of a key can be retried. A dead letter has let the later messages of its key pass: put back, it
//! is applied after those that were applied meanwhile, and before those that are parked with a higher offset.
//!
//! # Audit
//! Every change is a row of `tailrace.inbox_audit`, written in the same transaction: who, when, what, why, and what
//! was replaced. Each function is a transaction of its own, or a part of the one that is open.

use std::fmt;
use std::str::FromStr;

use sqlx::{PgConnection, Postgres, Transaction};

use crate::error::{Error, Kind};

mod change;
mod dedupe;
mod entry;
mod filter;
mod forget;
mod seek;

pub use change::{Retry, discard, edit, force_discard, plan_discard, plan_retry, retry};
pub use dedupe::{KnownBy, plan_dedupe, set_dedupe};
pub use entry::{Done, Entry, State, count, get, history, list};
pub use filter::Filter;
pub use forget::{Erased, erase, plan_erase, plan_prune, prune};
pub use seek::{Sought, To, plan_seek, seek};

/// A message that was retried by hand this often is not retried again without force: it fails each time.
pub const RETRIES_MAX: u32 = 3;

/// Where a message is kept. As text: `CONSUMER/TOPIC/PARTITION/OFFSET`, or `dead:ID`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Among the parked messages.
    Parked {
        /// The consumer's name.
        consumer: String,
        /// The topic of its record.
        topic: String,
        /// The partition of its record.
        partition: i32,
        /// The offset of its record.
        offset: i64,
    },
    /// Among the dead letters, under this number.
    Dead(i64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parked { consumer, topic, partition, offset } => {
                write!(f, "{consumer}/{topic}/{partition}/{offset}")
            }
            Self::Dead(id) => write!(f, "dead:{id}"),
        }
    }
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let read = || {
            if let Some(id) = text.strip_prefix("dead:").and_then(|id| id.parse().ok()) {
                return Some(Self::Dead(id));
            }
            // The name of a consumer may hold a slash; that of a topic does not.
            let mut parts = text.rsplitn(4, '/');
            let (offset, partition) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let (topic, consumer) = (parts.next()?.to_owned(), parts.next()?.to_owned());
            Some(Self::Parked { consumer, topic, partition, offset })
        };
        read().ok_or_else(|| {
            Error::new(Kind::Config, "the place of a message is not understood").mended_by(
                "write it as `list` shows it: CONSUMER/TOPIC/PARTITION/OFFSET or dead:ID",
            )
        })
    }
}

/// Who changes something, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct By {
    actor: String,
    note: Option<String>,
}

impl By {
    /// This person or program.
    pub fn new(actor: impl Into<String>) -> Self {
        Self { actor: actor.into(), note: None }
    }

    /// For this reason. Default: none.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

/// One row of the audit.
struct Audit<'a> {
    action: &'static str,
    consumer: &'a str,
    topic: Option<&'a str>,
    partition: Option<i32>,
    offset: Option<i64>,
    /// JSON objects as text.
    before: Option<String>,
    after: Option<String>,
}

impl Audit<'_> {
    async fn write(&self, conn: &mut PgConnection, by: &By) -> Result<(), Error> {
        sqlx::query(
            r#"INSERT INTO tailrace.inbox_audit
                   (actor, note, action, consumer, topic, partition, "offset", before, after)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8::jsonb, $9::jsonb)"#,
        )
        .bind(&by.actor)
        .bind(&by.note)
        .bind(self.action)
        .bind(self.consumer)
        .bind(self.topic)
        .bind(self.partition)
        .bind(self.offset)
        .bind(&self.before)
        .bind(&self.after)
        .execute(conn)
        .await
        .map_err(|error| Error::database("the change cannot be audited", error))?;
        Ok(())
    }
}

fn unchanged(error: sqlx::Error) -> Error {
    Error::database("the inbox cannot be changed", error)
}

fn unread(error: sqlx::Error) -> Error {
    Error::database("the inbox cannot be read", error)
}

/// Ends a transaction that is not to be, so that its locks do not outlast the error.
async fn rolled_back<T>(tx: Transaction<'_, Postgres>, error: Error) -> Result<T, Error> {
    tx.rollback().await.map_err(unchanged)?;
    Err(error)
}

/// What was read a moment ago is not so any more.
fn changed_meanwhile(place: &Place) -> Error {
    Error::new(Kind::Conflict, format!("{place} has changed meanwhile, and nothing was done"))
        .mended_by("look at it again: its consumer may have applied it")
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
#[cfg(feature = "kafka")]
mod tests;
