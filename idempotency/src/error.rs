//! The error of this crate: a kind, the record it is about, and how to mend it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
#[cfg(feature = "kafka")]
use std::time::Duration;

use crate::message_id::MessageId;
use crate::position::Position;

/// Any error of a handler.
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// What went wrong, in one sentence, with the record it is about and a hint how to mend it.
///
/// The text never holds a payload, a header's value or a password. The cause is kept as
/// [`source`](StdError::source) and is not repeated in the text.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    text: Cow<'static, str>,
    mend: Option<&'static str>,
    position: Option<Position>,
    message_id: Option<MessageId>,
    source: Option<BoxError>,
    /// Where the kind does not tell.
    verdict: Option<Verdict>,
    #[cfg(feature = "kafka")]
    breaks_off: bool,
}

/// The class of an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The configuration has faults; the text lists all of them.
    Config,
    /// The tables are missing or older than this version needs.
    Schema,
    /// Postgres refused a statement or could not be reached.
    Database,
    /// Kafka refused a request or could not be reached.
    Kafka,
    /// The offset where the consumer would go on is gone from the topic.
    OffsetGone,
    /// A topic was deleted and made anew under its name, so the stored offsets are about another one.
    TopicReplaced,
    /// What [`Dedupe::Position`](crate::Dedupe::Position) rests on does not hold, or the consumer is configured to know
    /// messages in another way than before.
    Sequence,
    /// A message id is missing or of no message, or its claim may have been forgotten.
    MessageId,
    /// A record does not follow the wire contract: a header is missing or unreadable.
    Record,
    /// A payload does not decode into the handler's type.
    Payload,
    /// No handler is registered for a record's type, and the consumer was told to halt at that.
    Unhandled,
    /// A handler returned an error or panicked.
    Handler,
    /// What a person asked for does not fit what is stored: it is not there, has changed, or is in use.
    Conflict,
    /// An invariant of this crate does not hold.
    Internal,
}

/// What a failed attempt means for the loop that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Roll back, wait, and do the same again.
    Retry,
    /// Two transactions collided, or one was too much at once: the same, with fewer records.
    RetryFewer,
    /// The message itself failed; others may go on.
    Message,
    /// Stop and tell the operator.
    Stop,
}

impl Error {
    pub(crate) fn new(kind: Kind, text: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            text: text.into(),
            mend: None,
            position: None,
            message_id: None,
            source: None,
            verdict: None,
            #[cfg(feature = "kafka")]
            breaks_off: false,
        }))
    }

    pub(crate) fn database(doing: &'static str, error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|answer| answer.code()).unwrap_or_default();
        let mend = match code.as_ref() {
            "42501" => Some("grant the role of the service what the heads of the migrations name"),
            // Duplicate and missing prepared statement: another session than that which prepared it.
            "42P05" | "26000" => Some(
                "a consumer has to reach postgres itself, or through a pooler in session mode, not in transaction mode",
            ),
            _ => None,
        };
        let mut this = Self::new(Kind::Database, doing);
        this.0.mend = mend;
        this.caused_by(error)
    }

    /// A wait for Postgres that reached its deadline: the same to the loop as a lost connection.
    #[cfg(feature = "kafka")]
    pub(crate) fn database_silent(doing: &'static str, waited: Duration) -> Self {
        let silence = std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            format!("no answer within {} s", waited.as_secs()),
        );
        Self::database(doing, sqlx::Error::Io(silence))
    }

    /// The cause, where there is one, to be had back as what it was.
    pub fn into_source(self) -> Option<BoxError> {
        self.0.source
    }

    pub(crate) fn caused_by(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub(crate) fn mended_by(mut self, mend: &'static str) -> Self {
        self.0.mend = Some(mend);
        self
    }

    #[cfg(feature = "kafka")]
    pub(crate) fn at(mut self, position: &Position) -> Self {
        self.0.position = Some(position.clone());
        self
    }

    /// Somewhere from this record on: which of them it is, nobody knows.
    #[cfg(feature = "kafka")]
    pub(crate) fn within(mut self, first: &Position, last: &Position) -> Self {
        self.0.text = format!("{}, somewhere up to offset {}", self.0.text, last.offset).into();
        self.at(first)
    }

    pub(crate) fn about(mut self, message_id: MessageId) -> Self {
        self.0.message_id = Some(message_id);
        self
    }

    /// Whatever the kind says, there is no way on.
    #[cfg(feature = "kafka")]
    pub(crate) fn halting(mut self) -> Self {
        self.0.verdict = Some(Verdict::Stop);
        self
    }

    /// A handler was broken off, whatever its connection is in the middle of: what else is to be done needs another one.
    #[cfg(feature = "kafka")]
    pub(crate) fn breaking_off(mut self) -> Self {
        self.0.verdict = Some(Verdict::Retry);
        self.0.breaks_off = true;
        self
    }

    /// Whether a handler was broken off.
    #[cfg(feature = "kafka")]
    pub(crate) fn breaks_off(&self) -> bool {
        self.0.breaks_off
    }

    /// Whatever stands among the sources, the message itself failed.
    #[cfg(feature = "kafka")]
    pub(crate) fn of_its_message(mut self) -> Self {
        self.0.verdict = Some(Verdict::Message);
        self
    }

    /// The sentence alone, without the record and the mending.
    #[cfg(feature = "kafka")]
    pub(crate) fn summary(&self) -> &str {
        &self.0.text
    }

    /// The SQLSTATE of the first answer of Postgres among the sources.
    #[cfg(feature = "kafka")]
    pub(crate) fn database_code(&self) -> Option<String> {
        let mut cause = self.source();
        while let Some(error) = cause {
            if let Some(sqlx::Error::Database(error)) = error.downcast_ref() {
                return error.code().map(Cow::into_owned);
            }
            cause = error.source();
        }
        None
    }

    /// The cause of a fault of the database that Postgres did not answer for, for a log line: what Postgres answers
    /// may quote a row.
    #[cfg(feature = "kafka")]
    pub(crate) fn fault(&self) -> Option<&(dyn StdError + 'static)> {
        let ours = self.0.kind == Kind::Database && self.database_code().is_none();
        self.source().filter(|_| ours)
    }

    /// The class of the error.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Where the record stands that could not be applied.
    pub fn position(&self) -> Option<&Position> {
        self.0.position.as_ref()
    }

    /// The id of the message that could not be applied or claimed.
    pub fn message_id(&self) -> Option<MessageId> {
        self.0.message_id
    }

    /// How an operator mends it, where one way is known.
    pub fn hint(&self) -> Option<&'static str> {
        self.0.mend
    }

    /// Whether the same attempt may succeed later: the database was away, busy, or rolled back a deadlock.
    pub fn is_transient(&self) -> bool {
        matches!(self.verdict(), Verdict::Retry | Verdict::RetryFewer)
    }

    /// The database itself was not there for a statement of ours, whatever the statement was.
    #[cfg(feature = "kafka")]
    pub(crate) fn is_outage(&self) -> bool {
        if self.0.kind != Kind::Database {
            return false;
        }
        match self.source().and_then(|cause| cause.downcast_ref::<sqlx::Error>()) {
            Some(sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut) => true,
            Some(sqlx::Error::Database(error)) => {
                let code = error.code().unwrap_or_default();
                // Shutting down, crashed, starting, a standby, no connection left.
                matches!(code.as_ref(), "57P01" | "57P02" | "57P03" | "25006" | "53300")
                    || code.starts_with("08")
            }
            _ => false,
        }
    }

    /// The session is gone for having been idle inside a transaction, or without a word: what Postgres says as it closes
    /// the connection may not arrive.
    #[cfg(feature = "kafka")]
    pub(crate) fn lost_its_session(&self) -> bool {
        let mut cause = self.source();
        while let Some(error) = cause {
            match error.downcast_ref() {
                Some(sqlx::Error::Database(error)) if error.code().as_deref() == Some("25P03") => {
                    return true;
                }
                Some(sqlx::Error::Io(_)) => return true,
                _ => cause = error.source(),
            }
        }
        false
    }

    /// Somebody else held a row until patience ended.
    #[cfg(feature = "kafka")]
    pub(crate) fn is_lock_timeout(&self) -> bool {
        let cause = self.source().and_then(|cause| cause.downcast_ref::<sqlx::Error>());
        cause
            .and_then(sqlx::Error::as_database_error)
            .is_some_and(|error| error.code().as_deref() == Some("55P03"))
    }

    /// The one place that turns an error into what the loop does about it.
    ///
    /// A transient fault of the database anywhere among the sources is nobody's fault and is repeated. What else a
    /// handler ends with is its message's own failure, a violated constraint as well as a panic.
    pub(crate) fn verdict(&self) -> Verdict {
        if let Some(verdict) = self.0.verdict {
            return verdict;
        }
        match self.0.kind {
            Kind::Database => self.database_verdict().unwrap_or(Verdict::Stop),
            Kind::Handler => self.database_verdict().unwrap_or(Verdict::Message),
            Kind::Payload => Verdict::Message,
            Kind::Config
            | Kind::Schema
            | Kind::Kafka
            | Kind::OffsetGone
            | Kind::TopicReplaced
            | Kind::Sequence
            | Kind::MessageId
            | Kind::Record
            | Kind::Unhandled
            | Kind::Conflict
            | Kind::Internal => Verdict::Stop,
        }
    }

    /// The verdict of the first transient fault among the sources.
    fn database_verdict(&self) -> Option<Verdict> {
        let mut cause = self.source();
        while let Some(error) = cause {
            let found = error.downcast_ref::<sqlx::Error>().and_then(transient);
            if found.is_some() {
                return found;
            }
            cause = error.source();
        }
        None
    }
}

/// `in_failed_sql_transaction`: a statement behind one that has failed.
pub(crate) const ABORTED: &str = "25P02";

/// Codes of the PostgreSQL documentation, appendix A.
fn transient(error: &sqlx::Error) -> Option<Verdict> {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => Some(Verdict::Retry),
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            let retry = match code.as_ref() {
                // Serialization failure, deadlock, idle in a transaction for too long: handlers took that long together.
                "40001" | "40P01" | "25P03" => return Some(Verdict::RetryFewer),
                // Lock timeout, cancelled statement, server shutting down or starting, a primary that has just become a
                // standby.
                "55P03" | "57014" | "57P01" | "57P02" | "57P03" | "25006" => true,
                // The day's partition was attached while the statement was being planned.
                "23514" => error.table() == Some("processed_message"),
                // Connection lost; out of memory, disk or connections.
                other => other.starts_with("08") || other.starts_with("53"),
            };
            retry.then_some(Verdict::Retry)
        }
        _ => None,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)?;
        if let Some(position) = &self.0.position {
            write!(f, ", at {position}")?;
        }
        if let Some(id) = &self.0.message_id {
            write!(f, ", message {id}")?;
        }
        if let Some(mend) = self.0.mend {
            write!(f, "; {mend}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("text", &self.to_string())
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
