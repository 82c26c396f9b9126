//! Which store a service writes its messages to, and the statements that do it.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use crate::error::ENDED;
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
    /// Whether sqlx may leave prepared statements in the session.
    #[cfg(feature = "sqlx")]
    prepares: bool,
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

/// Whether the client takes a transaction for open on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It does: where there is none the statement has to fail.
    InTransaction,
    /// It does not, or does not know: whatever there is will do.
    Anywhere,
}

impl Place {
    /// An expression that is `value`, or that fails if the client's transaction is not open.
    ///
    /// No function of SQL tells autocommit from a transaction. But a statement in autocommit begins
    /// its transaction with the very message of the protocol that makes its portal (Bind), and so at
    /// the same microsecond, where an open transaction is as old as a BEGIN that was answered before
    /// this statement was sent. `pg_cursor` has the time of the portal, which has no name. So there
    /// are no false alarms; where something between client and server puts other messages before
    /// Bind, or renames the portal, there is no alarm. It fails by a setting that does not exist,
    /// because no function raises an error of one's choice; `of_setting` makes the value's type of
    /// the setting's text. The test `a_write_after_the_transaction_was_ended_by_a_text_is_refused`
    /// watches it.
    pub(crate) fn unless_ended(self, value: &str, of_setting: &str) -> String {
        if self == Place::Anywhere {
            return value.to_owned();
        }
        format!(
            "CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_cursor() AS portal \
             WHERE portal.name OPERATOR(pg_catalog.=) '' \
             AND portal.creation_time OPERATOR(pg_catalog.=) pg_catalog.now()) \
             THEN pg_catalog.current_setting('{ENDED}'){of_setting} ELSE {value} END"
        )
    }
}

impl Outbox {
    /// Writes to this store, under the names that a relay has by default.
    pub const fn new(store: Store) -> Self {
        Outbox {
            store,
            prefix: Cow::Borrowed(PREFIX),
            journal: None,
            slot: Cow::Borrowed(DEFAULT_SLOT),
            #[cfg(feature = "sqlx")]
            prepares: true,
            #[cfg(feature = "testing")]
            recording: false,
        }
    }

    /// The prefix of messages in the write-ahead log, as the relay has it. Default: [`PREFIX`].
    ///
    /// One that is empty or has a control character is an error of every call, [`Kind::Setup`].
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

    /// Leaves no prepared statement in the session, of merged business statements neither.
    ///
    /// For sqlx through a pooler that hands the connection to another client after each transaction
    /// and that knows no prepared statements, as PgBouncer before 1.21. A statement is planned anew
    /// each time then. Default: each is prepared once per connection.
    #[cfg(feature = "sqlx")]
    #[must_use]
    pub const fn unprepared(mut self) -> Self {
        self.prepares = false;
        self
    }

    #[cfg(feature = "sqlx")]
    pub(crate) fn prepares(&self) -> bool {
        self.prepares
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

    /// Fails for a prefix that no relay can have, before Postgres says something else about it.
    pub(crate) fn must_be_usable(&self) -> Result<(), Error> {
        if !self.prefix.is_empty() && !self.prefix.chars().any(char::is_control) {
            return Ok(());
        }
        let text = format!("the prefix {:?} is empty or has a control character", self.prefix);
        Err(Error::new(Kind::Setup, text).mended_by("take the prefix that the relay has"))
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

    /// How many parameters a message takes.
    pub(crate) fn parameters(&self) -> usize {
        self.mapping().map_or(1, |mapping| mapping.columns().len())
    }

    /// The statement that writes one message, whose frame is its only parameter, or the parts of
    /// its row are. It answers with a row if the message was written.
    pub(crate) fn one(&self, place: Place) -> Arc<str> {
        match self.mapping() {
            None => format!("SELECT {}", self.emit("$1", place)).into(),
            Some(mapping) => mapping.statements().one(place),
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
    pub(crate) fn many(&self, place: Place) -> Arc<str> {
        match self.mapping() {
            None => format!(
                "SELECT pg_catalog.count({}) FROM (SELECT frame FROM \
                 pg_catalog.unnest($1::pg_catalog.bytea[]) WITH ORDINALITY AS given (frame, place) \
                 ORDER BY place) AS ordered",
                self.emit("frame", place)
            )
            .into(),
            Some(mapping) => mapping.statements().many(place),
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
    pub(crate) fn merged(
        &self,
        statement: &Statement<'_>,
        answer: Answer,
        first: usize,
        place: Place,
    ) -> String {
        let text = statement.text();
        let Some(mapping) = self.mapping() else {
            let returning = if statement.has_returning() { "," } else { " RETURNING" };
            let emit = self.emit(&format!("${first}"), place);
            return format!("{text}{returning} (SELECT {emit}) AS tailrace_message");
        };
        let returning = if statement.has_returning() { "" } else { " RETURNING true" };
        let insert = rows::merged(mapping, first, place);
        let message = "(SELECT written FROM message)";
        let selected = match answer {
            Answer::Rows => format!("business.*, {message}"),
            Answer::Count => {
                let count = "pg_catalog.count(*)";
                format!("{count}, CASE WHEN {count} OPERATOR(pg_catalog.>) 0 THEN {message} END")
            }
        };
        format!(
            "WITH business AS ({text}{returning}), message AS ({insert}) \
             SELECT {selected} AS tailrace_message FROM business"
        )
    }

    /// Whether the answer to [`Answer::Count`] is one row with a count, and not every row.
    #[cfg(feature = "sqlx")]
    pub(crate) fn counts(&self) -> bool {
        self.mapping().is_some()
    }

    /// The call that writes a frame.
    ///
    /// Its result is a position, as text: sqlx has no type for one, and would look it up by a
    /// query of its own on every connection, which an unnamed statement does not survive.
    fn emit(&self, frame: &str, place: Place) -> String {
        let prefix = literal(&self.prefix);
        let prefix = place.unless_ended(&prefix, "");
        format!(
            "pg_catalog.pg_logical_emit_message(true, {prefix}, {frame}::pg_catalog.bytea)::pg_catalog.text"
        )
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
