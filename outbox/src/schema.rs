//! The SQL side: functions and tables, how they are installed, checked and named.
//!
//! The migration brings `tailrace.emit` and `tailrace.emit_bytes`, which write a message from SQL,
//! so that triggers and services in every language take part, and `tailrace.outbox`, the table of
//! the [journal](crate::journal). A service that writes through this crate into the log needs none
//! of it.
//!
//! Everything lives in the schema `tailrace`, beside the objects of other crates; this crate
//! touches its own only. Another name is a [`Schema`] of that name. The grants that a service's
//! role needs stand at the head of the first migration.
//!
//! # From SQL
//!
//! ```sql
//! SELECT tailrace.emit('orders', 'order-42', 'order.placed.v1', '{"total_cents": 1999}');
//! ```
//!
//! The arguments are `topic, key, type, payload, source, subject, content_type, headers,
//! attributes, tombstone, id`, those from `source` on by name and optional; a null there means the
//! default. `emit` takes the payload as jsonb, and what is published is Postgres' own text of it;
//! `emit_bytes` takes bytea. Both return the id, a new UUID v7 unless one is given, and write the
//! frame that [`frame::encode`](crate::frame::encode) writes, by the same rules: what a
//! [`Builder`](crate::Builder) refuses raises an exception, with `null_value_not_allowed`,
//! `invalid_parameter_value` or `program_limit_exceeded` as its code, and fails the transaction.
//!
//! - `source` is `/` and the name of the database unless it is given.
//! - `headers` and `attributes` are JSON objects whose values are strings. A name that stands twice
//!   in the text of a jsonb counts as given last, before anybody could see it.
//! - `attributes` takes every system attribute, such as `ce_dataschema`; the builder takes those of
//!   a cause.
//! - A frame has at most [`FRAME_BYTES_MAX`](crate::FRAME_BYTES_MAX) bytes, or what
//!   `SET tailrace_outbox.frame_bytes_max` says, more or less.
//!
//! # Rows of an application that nobody may touch
//!
//! A trigger publishes what an application does, in its transaction, without a change to it:
//!
//! ```sql
#![doc = include_str!("schema/legacy_trigger.sql")]
//! ```

use std::borrow::Cow;

use crate::Error;

/// One step of the SQL side, in plain SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Migration {
    /// Rises by one; the script records it in `tailrace.outbox_version`.
    pub version: i32,
    /// The name of the file it comes from.
    pub name: &'static str,
    /// Statements for one transaction, for the schema `tailrace`. Running a script twice is an
    /// error: a tool must remember it, as [`install`](fn@install) does.
    pub sql: &'static str,
}

/// Every migration in order, for a migration tool of your own.
pub const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "0001_emit_and_journal.sql",
    sql: include_str!("../migrations/0001_emit_and_journal.sql"),
}];

/// The schema everything lives in unless another one is named.
pub(crate) const DEFAULT: &str = "tailrace";

/// Postgres cuts names after so many bytes.
const NAME_BYTES_MAX: usize = 63;

/// The name of the schema the functions and tables live in. Default: `tailrace`.
///
/// The prefix of the messages in the log is the same in every schema: it is what the relay asks
/// for.
///
/// ```
/// use tailrace_outbox::schema::{MIGRATIONS, Schema};
///
/// let schema = Schema::named("messaging")?;
/// let scripts: Vec<String> = MIGRATIONS.iter().map(|step| schema.render(step)).collect();
///
/// assert!(scripts[0].contains("CREATE FUNCTION \"messaging\".emit("));
/// # Ok::<(), tailrace_outbox::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Schema(Cow<'static, str>);

impl Default for Schema {
    fn default() -> Self {
        Schema(Cow::Borrowed(DEFAULT))
    }
}

impl Schema {
    /// A schema of this name: lower-case letters, digits and `_`, not a digit first, at most 63,
    /// and not beginning with `pg_`, which Postgres keeps for itself.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`](crate::Kind::Invalid) for every other name. Names that mean one thing
    /// quoted and another unquoted are how a `GRANT` goes to the wrong schema.
    pub fn named(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
        let begins = name.bytes().next().is_some_and(letter);
        let goes_on = name.bytes().all(|byte| letter(byte) || byte.is_ascii_digit());
        if !begins || !goes_on || name.len() > NAME_BYTES_MAX || name.starts_with("pg_") {
            return Err(Error::invalid("the name of the schema is not possible").mended_by(
                "take lower-case letters, digits and '_', not a digit first, at most 63, \
                 and not pg_ at the beginning",
            ));
        }
        Ok(Schema(Cow::Owned(name)))
    }

    /// Its name, as it was given.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The text of a migration for this schema.
    ///
    /// The name goes in quoted, so that it may also be a word of SQL, and since a [`Schema`] has
    /// no quote in its name it ends no literal and no identifier.
    pub fn render(&self, migration: &Migration) -> String {
        if self.name() == DEFAULT {
            return migration.sql.to_owned();
        }
        let name = self.name();
        migration
            .sql
            .replace("tailrace.", &format!("\"{name}\"."))
            .replace("SCHEMA tailrace", &format!("SCHEMA \"{name}\""))
            .replace("to_regnamespace('tailrace')", &format!("to_regnamespace('\"{name}\"')"))
    }
}

#[cfg(feature = "sqlx")]
mod install;
#[cfg(feature = "sqlx")]
pub use install::{check, install};

#[cfg(test)]
#[cfg(feature = "sqlx")]
mod tests;
