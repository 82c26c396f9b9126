//! Which store a service writes its messages to, and the statements that do it.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::statement::Statement;
use crate::{DEFAULT_SLOT, Error, Kind, Message, PREFIX, frame};

/// The most messages one batch takes.
///
/// Postgres holds a batch in memory as a whole while it writes it.
pub const BATCH_MESSAGES_MAX: usize = 10_000;

/// The most bytes the frames of one batch have together: 64 MiB.
pub const BATCH_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The column in which a merged write says that its message was written.
#[cfg(test)]
pub(crate) const WRITTEN: &str = "tailrace_message";

/// Where a message stands until the relay has published it.
///
/// A choice of configuration: messages, the calls that write them and the relay stay the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Store {
    /// The write-ahead log alone: no table, no vacuum, no grant. The default.
    ///
    /// What the relay has published can not be published again from here, and a slot that is
    /// lost takes with it what it had not published.
    #[default]
    Wal,
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
/// ```
#[derive(Clone, Debug)]
pub struct Outbox {
    store: Store,
    prefix: Cow<'static, str>,
    slot: Cow<'static, str>,
    #[cfg(feature = "testing")]
    recording: bool,
}

/// What a merged write answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The rows of the business statement, and last whether the message was written.
    Rows,
    /// How many rows there were, and whether the message was written.
    Count,
}

impl Outbox {
    /// Writes to this store, under the names that a relay has by default.
    pub const fn new(store: Store) -> Self {
        Outbox {
            store,
            prefix: Cow::Borrowed(PREFIX),
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
    pub fn store(&self) -> Store {
        self.store
    }

    pub(crate) fn slot_name(&self) -> &str {
        &self.slot
    }

    /// The statement that writes one frame, its only parameter.
    pub(crate) fn one(&self) -> String {
        format!("SELECT {}", self.emit("$1"))
    }

    /// The statement that writes many frames, its only parameter, and counts them.
    ///
    /// The sorted subquery is what keeps their order: Postgres evaluates an aggregate's argument
    /// row by row as they come from it
    /// (<https://www.postgresql.org/docs/current/functions-aggregate.html>), where in a plain
    /// `SELECT … ORDER BY` the place of a function call, before or after the sort, is the
    /// planner's choice. The test `a_batch_is_in_the_log_in_the_order_given` watches it.
    pub(crate) fn many(&self) -> String {
        format!(
            "SELECT pg_catalog.count({}) FROM (SELECT frame FROM pg_catalog.unnest($1::bytea[]) \
             WITH ORDINALITY AS given (frame, place) ORDER BY place) AS ordered",
            self.emit("frame")
        )
    }

    /// The business statement with the message in it, whose frame is the last parameter.
    ///
    /// The call that writes the message stands in the outermost SELECT: one in a CTE runs only as
    /// far as something asks for its rows, so a message could be lost without a word. It is a
    /// subquery without a reference to the rows, hence evaluated once however many they are, and
    /// not at all if there are none. Its result is in every row, and is checked.
    pub(crate) fn merged(&self, statement: &Statement<'_>, answer: Answer, frame: usize) -> String {
        let message = format!("(SELECT {})", self.emit(&format!("${frame}")));
        let mut text = format!("WITH business AS ({}", statement.text());
        if !statement.has_returning() {
            text.push_str(" RETURNING true");
        }
        let written = match answer {
            Answer::Rows => write!(text, ") SELECT business.*, {message}"),
            Answer::Count => write!(
                text,
                ") SELECT pg_catalog.count(*), CASE WHEN pg_catalog.count(*) > 0 THEN {message} END"
            ),
        };
        written.expect("a String takes any text");
        text.push_str(" AS tailrace_message FROM business");
        text
    }

    fn emit(&self, frame: &str) -> String {
        let prefix = literal(&self.prefix);
        format!("pg_catalog.pg_logical_emit_message(true, {prefix}, {frame}::bytea)")
    }
}

/// The frames of a batch.
///
/// # Errors
///
/// [`Kind::TooLarge`], before anything is sent, if they are too many or too large together.
pub(crate) fn batch(messages: &[Message]) -> Result<Vec<Vec<u8>>, Error> {
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
    Ok(messages.iter().map(frame::encode).collect())
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
mod tests {
    use super::{Answer, Outbox, Store, WRITTEN, literal};
    use crate::statement::Statement;

    #[test]
    fn the_message_stands_in_the_outermost_select() {
        let check = |text: &str, answer, frame, expected: &str| {
            let statement = Statement::read(text).unwrap();
            let merged = Outbox::new(Store::Wal).prefix("p").merged(&statement, answer, frame);
            assert_eq!(merged, expected);
            assert!(merged.contains(WRITTEN));
        };

        check(
            "insert into t values ($1) returning id; -- done",
            Answer::Rows,
            2,
            "WITH business AS (insert into t values ($1) returning id) SELECT business.*, \
             (SELECT pg_catalog.pg_logical_emit_message(true, 'p', $2::bytea)) \
             AS tailrace_message FROM business",
        );
        check(
            "delete from t",
            Answer::Count,
            1,
            "WITH business AS (delete from t RETURNING true) SELECT pg_catalog.count(*), \
             CASE WHEN pg_catalog.count(*) > 0 THEN \
             (SELECT pg_catalog.pg_logical_emit_message(true, 'p', $1::bytea)) END \
             AS tailrace_message FROM business",
        );
    }

    #[test]
    fn a_prefix_of_any_letters_stays_one_constant() {
        assert_eq!(literal("tailrace"), "'tailrace'");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"\'"), r" E'\\'''");
    }
}
