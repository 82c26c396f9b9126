//! Which store a service writes its messages to, and the statements that do it.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use crate::mapping::Mapping;
use crate::schema::Schema;
use crate::statement::Statement;
use crate::{DEFAULT_SLOT, Error, Kind, Message, PREFIX, frame};

pub(crate) mod rows;

static JOURNAL: LazyLock<Mapping> = LazyLock::new(|| Mapping::journal(&Schema::default()));

/// The most messages one batch takes.
///
/// Postgres holds a batch in memory as a whole while it writes it.
pub const BATCH_MESSAGES_MAX: usize = 10_000;

/// The most bytes the frames of one batch have together: 64 MiB.
pub const BATCH_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The column in which a merged write says that its message was written.
#[cfg(test)]
#[cfg(feature = "sqlx")]
pub(crate) const WRITTEN: &str = "tailrace_message";

/// Where a message stands until the relay has published it.
///
/// A choice of configuration: messages, the calls that write them and the relay stay the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Store {
    /// The write-ahead log alone: no table, no vacuum, no grant. The default.
    ///
    /// What the relay has published can not be published again from here, and a slot that is
    /// lost takes with it what it had not published.
    #[default]
    Wal,
    /// The journal too: a row of `tailrace.outbox`, which stays when the log is gone.
    ///
    /// What was published can be published again, and looked at with SQL. It costs an insert
    /// without an index, and needs the migration of this crate, a grant and a publication.
    Journal,
    /// A table of yours, in whose rows others look for messages too, such as Debezium's.
    ///
    /// What a row has no column for is refused with [`Kind::Unmapped`]. The relay must be given the
    /// same mapping, and its publication the table.
    Table(Mapping),
}

/// How a service writes messages: the store, and the names that belong to it.
///
/// Cheap to clone; usually there is one per service. [`write()`](crate::write()),
/// [`write_all()`](crate::write_all()) and [`merge()`](crate::merge()) are short for the methods
/// of `Outbox::new(Store::Wal)`.
///
/// ```
/// use tailrace_outbox::{Outbox, Store};
///
/// static OUTBOX: Outbox = Outbox::new(Store::Wal);
/// let of_a_second_relay = Outbox::new(Store::Wal).prefix("billing").slot("billing");
///
/// let mapping = tailrace_outbox::mapping::Mapping::debezium("public.outbox").source("/orders");
/// let of_a_table = Outbox::new(Store::Table(mapping.build()?));
/// # Ok::<(), tailrace_outbox::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Outbox {
    store: Store,
    prefix: Cow<'static, str>,
    /// None is the default one, which no constant can hold.
    journal: Option<Mapping>,
    slot: Cow<'static, str>,
    #[cfg(feature = "testing")]
    recording: bool,
}

/// What a merged write answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The rows of the business statement, and last whether the message was written.
    Rows,
    /// How many rows there were, and whether the message was written: in one row for a table, in
    /// each row for the log.
    Count,
}

impl Outbox {
    /// Writes to this store, under the names that a relay has by default.
    pub const fn new(store: Store) -> Self {
        Outbox {
            store,
            prefix: Cow::Borrowed(PREFIX),
            journal: None,
            slot: Cow::Borrowed(DEFAULT_SLOT),
            #[cfg(feature = "testing")]
            recording: false,
        }
    }

    /// The prefix of messages in the write-ahead log, as the relay has it. Default: [`PREFIX`].
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<Cow<'static, str>>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The schema of the journal. Default: `tailrace`.
    #[must_use]
    pub fn schema(mut self, schema: Schema) -> Self {
        self.journal = Some(Mapping::journal(&schema));
        self
    }

    /// The relay's replication slot, which `check` looks for. Default: [`DEFAULT_SLOT`].
    #[must_use]
    pub fn slot(mut self, slot: impl Into<Cow<'static, str>>) -> Self {
        self.slot = slot.into();
        self
    }

    /// The same outbox, but that its messages are noted as well.
    #[cfg(feature = "testing")]
    pub(crate) fn recording(mut self) -> Self {
        self.recording = true;
        self
    }

    #[cfg(feature = "testing")]
    pub(crate) fn is_recording(&self) -> bool {
        self.recording
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn slot_name(&self) -> &str {
        &self.slot
    }

    /// The table that messages are rows of, if the store is one.
    pub(crate) fn mapping(&self) -> Option<&Mapping> {
        match &self.store {
            Store::Wal => None,
            Store::Journal => Some(self.journal.as_ref().unwrap_or(&JOURNAL)),
            Store::Table(mapping) => Some(mapping),
        }
    }

    /// The statement that writes one message, whose frame is its only parameter, or the parts of
    /// its row are. It answers with a row if the message was written.
    pub(crate) fn one(&self) -> Arc<str> {
        match self.mapping() {
            None => format!("SELECT {}", self.emit("$1")).into(),
            Some(mapping) => Arc::clone(&mapping.statements().one),
        }
    }

    /// The statement that writes many messages and counts them: an array of their frames, or
    /// arrays of the parts of their rows.
    ///
    /// The sorted subquery is what keeps their order: Postgres evaluates an aggregate's argument
    /// row by row as they come from it
    /// (<https://www.postgresql.org/docs/current/functions-aggregate.html>), where in a plain
    /// `SELECT … ORDER BY` the place of a function call, before or after the sort, is the
    /// planner's choice. The test `a_batch_is_in_the_log_in_the_order_given` watches it.
    pub(crate) fn many(&self) -> Arc<str> {
        match self.mapping() {
            None => format!(
                "SELECT pg_catalog.count({}) FROM (SELECT frame FROM \
                 pg_catalog.unnest($1::bytea[]) WITH ORDINALITY AS given (frame, place) \
                 ORDER BY place) AS ordered",
                self.emit("frame")
            )
            .into(),
            Some(mapping) => Arc::clone(&mapping.statements().many),
        }
    }

    /// The business statement with the message in it, whose parameters begin at `first`.
    ///
    /// A frame is written by the statement's own RETURNING, by a subquery that refers to none of
    /// its rows: Postgres evaluates such a one once, when the first row is returned, and not at
    /// all if there is none. Every row holds that it was written, and is checked. A CTE with a
    /// SELECT around it would do the same for more (docs/decisions/0012).
    ///
    /// A row of a table is inserted by a CTE that changes data, because such a one always runs;
    /// one that only calls a function runs as far as something asks for its rows.
    pub(crate) fn merged(&self, statement: &Statement<'_>, answer: Answer, first: usize) -> String {
        let text = statement.text();
        let Some(mapping) = self.mapping() else {
            let returning = if statement.has_returning() { "," } else { " RETURNING" };
            let emit = self.emit(&format!("${first}"));
            return format!("{text}{returning} (SELECT {emit}) AS tailrace_message");
        };
        let returning = if statement.has_returning() { "" } else { " RETURNING true" };
        let insert = rows::merged(mapping, first);
        let message = "(SELECT written FROM message)";
        let selected = match answer {
            Answer::Rows => format!("business.*, {message}"),
            Answer::Count => {
                let count = "pg_catalog.count(*)";
                format!("{count}, CASE WHEN {count} > 0 THEN {message} END")
            }
        };
        format!(
            "WITH business AS ({text}{returning}), message AS ({insert}) \
             SELECT {selected} AS tailrace_message FROM business"
        )
    }

    /// Whether the answer to [`Answer::Count`] is one row with a count, and not every row.
    pub(crate) fn counts(&self) -> bool {
        self.mapping().is_some()
    }

    /// The call that writes a frame.
    ///
    /// Its result is a position, as text: sqlx has no type for one, and would look it up by a
    /// query of its own on every connection, which an unnamed statement does not survive.
    fn emit(&self, frame: &str) -> String {
        let prefix = literal(&self.prefix);
        format!("pg_catalog.pg_logical_emit_message(true, {prefix}, {frame}::bytea)::text")
    }
}

/// Fails if messages are too many or too large for one statement.
pub(crate) fn must_fit(messages: &[Message]) -> Result<(), Error> {
    let too_large = |what: String| {
        Error::new(Kind::TooLarge, what).mended_by("write it in parts, in the same transaction")
    };
    if messages.len() > BATCH_MESSAGES_MAX {
        let count = messages.len();
        return Err(too_large(format!(
            "the batch has {count} messages, and its limit is {BATCH_MESSAGES_MAX}"
        )));
    }
    let bytes: usize = messages.iter().map(frame::encoded_len).sum();
    if bytes > BATCH_BYTES_MAX {
        return Err(too_large(format!(
            "the batch has {bytes} bytes, and its limit is {BATCH_BYTES_MAX}"
        )));
    }
    Ok(())
}

/// The error of a batch of which fewer messages were written than given: the check that is never
/// to fail.
pub(crate) fn incomplete() -> Error {
    Error::new(Kind::Database, "the database did not write every message")
}

/// A string constant, whatever the text has in it and however the session is set.
fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        return format!(" E'{}'", quoted.replace('\\', "\\\\"));
    }
    format!("'{quoted}'")
}

#[cfg(test)]
#[cfg(feature = "sqlx")]
mod tests;
