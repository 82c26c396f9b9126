//! What can go wrong while a message is built or written, and what follows from it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// What went wrong, as far as a caller can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The message breaks a rule: a name, a missing part, a payload that does not serialize.
    Invalid,
    /// The message is larger than its limit.
    TooLarge,
    /// The message has a part that the store's table has no place for.
    Unmapped,
    /// The transaction had failed already, in an earlier statement.
    Aborted,
    /// The business statement of a merged write touched no row, so no message was written.
    ///
    /// The transaction is still good.
    NoRow,
    /// The transaction met another one (serialization failure, deadlock).
    Conflict,
    /// The database can not be reached, is shutting down, or has no room.
    Unavailable,
    /// The database is not set up so that messages reach a relay.
    Setup,
    /// Any other error of the database.
    Database,
}

/// What a service does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Roll back and run the whole transaction again, after a pause.
    Retry,
    /// Roll back and report: the same input fails again.
    Reject,
    /// Only a person can mend it: do not serve.
    Stop,
}

/// An error of the outbox: what failed, and how to mend it.
///
/// The text names things and never carries payloads, header values or secrets. Where a person
/// can mend it, the text says how, and [`Error::mend`] gives that part alone.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    text: Cow<'static, str>,
    mend: Option<Cow<'static, str>>,
    sqlstate: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: Kind, text: impl Into<Cow<'static, str>>) -> Self {
        Error(Box::new(Inner { kind, text: text.into(), mend: None, sqlstate: None, source: None }))
    }

    pub(crate) fn invalid(text: impl Into<Cow<'static, str>>) -> Self {
        Error::new(Kind::Invalid, text)
    }

    pub(crate) fn mended_by(mut self, mend: impl Into<Cow<'static, str>>) -> Self {
        self.0.mend = Some(mend.into());
        self
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// How a person can mend it.
    pub fn mend(&self) -> Option<&str> {
        self.0.mend.as_deref()
    }

    /// The SQLSTATE, if Postgres said it: `23505` for a key that exists already
    /// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
    pub fn sqlstate(&self) -> Option<&str> {
        self.0.sqlstate.as_deref()
    }

    /// Whether the message itself breaks a rule; its size is [`Error::is_too_large`].
    pub fn is_invalid(&self) -> bool {
        self.kind() == Kind::Invalid
    }

    /// Whether the message is larger than its limit.
    pub fn is_too_large(&self) -> bool {
        self.kind() == Kind::TooLarge
    }

    /// Whether the message has a part that the store's table has no place for.
    pub fn is_unmapped(&self) -> bool {
        self.kind() == Kind::Unmapped
    }

    /// Whether the transaction had failed before the message was written.
    pub fn is_aborted(&self) -> bool {
        self.kind() == Kind::Aborted
    }

    /// Whether a merged write touched no row, and so wrote no message.
    pub fn is_no_row(&self) -> bool {
        self.kind() == Kind::NoRow
    }

    /// Whether the database is not set up so that messages reach a relay.
    pub fn is_setup(&self) -> bool {
        self.kind() == Kind::Setup
    }

    /// What a service does about it.
    ///
    /// An aborted transaction is rejected and not retried, because the statement that failed
    /// first decides about a retry, and its error is not known here.
    pub fn reaction(&self) -> Reaction {
        match self.kind() {
            Kind::Conflict | Kind::Unavailable => Reaction::Retry,
            Kind::Invalid
            | Kind::TooLarge
            | Kind::Unmapped
            | Kind::Aborted
            | Kind::NoRow
            | Kind::Database => Reaction::Reject,
            Kind::Setup => Reaction::Stop,
        }
    }
}

#[cfg(feature = "sqlx")]
impl Error {
    /// Sorts an error of sqlx.
    pub(crate) fn database(doing: &'static str, error: sqlx::Error) -> Self {
        let state = error.as_database_error().and_then(|fault| fault.code());
        let state = state.map(std::borrow::Cow::into_owned);
        let unavailable = matches!(
            error,
            sqlx::Error::Io(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
        );
        Error::sorted(doing, state, unavailable).caused_by(error)
    }
}

#[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
impl Error {
    /// An error of the database by its SQLSTATE
    /// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
    pub(crate) fn sorted(doing: &'static str, state: Option<String>, unavailable: bool) -> Self {
        let kind = match &state {
            Some(state) => of(state),
            None if unavailable => Kind::Unavailable,
            None => Kind::Database,
        };
        let mut error = Error::new(kind, doing);
        error.0.sqlstate = state;
        if kind == Kind::Aborted {
            return error.mended_by("roll back; the first error of the transaction tells why");
        }
        error
    }

    /// A merged write that touched no row.
    pub(crate) fn no_row() -> Self {
        Error::new(Kind::NoRow, "the business statement touched no row, so there is no message")
    }

    /// A merged write that touched rows and yet has no message: the check that is never to fail.
    pub(crate) fn unwritten() -> Self {
        Error::new(Kind::Database, "the database did not write the message")
            .mended_by("roll back, and write it with a statement of its own")
    }

    /// For a statement of ours alone: what it does not find, or may not use, is set up wrongly.
    pub(crate) fn in_our_statement(mut self) -> Self {
        let missing = ["3F000", "42P01", "42703", "42883", "42501"];
        if self.sqlstate().is_some_and(|state| missing.contains(&state)) {
            self.0.kind = Kind::Setup;
            return self.mended_by("see what check says, and the migrations of this crate");
        }
        self
    }
}

#[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
fn of(state: &str) -> Kind {
    match state {
        "25P02" => Kind::Aborted,
        "54000" => Kind::TooLarge,
        _ if state.starts_with("40") => Kind::Conflict,
        // Connection, resources, and a server that is stopping or starting.
        _ if ["08", "53", "57P"].iter().any(|class| state.starts_with(class)) => Kind::Unavailable,
        _ => Kind::Database,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)?;
        match &self.0.mend {
            Some(mend) => write!(f, "; {mend}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("text", &self.0.text)
            .field("mend", &self.0.mend)
            .field("sqlstate", &self.0.sqlstate)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
