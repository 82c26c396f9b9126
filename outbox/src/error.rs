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
    /// There is no open transaction where there has to be one: a COMMIT or ROLLBACK was sent as
    /// text, and the client does not know that its transaction has ended. Nothing was written.
    Ended,
    /// The business statement of a merged write touched no row, so no message was written.
    ///
    /// The transaction is still good.
    NoRow,
    /// The transaction met another one (serialization failure, deadlock, a lock that was not to be
    /// had in time).
    Conflict,
    /// The database can not be reached, is shutting down, has no room, or took longer than a
    /// time-out allows.
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
/// The text names things and never carries payloads, header values or secrets. What Postgres
/// said is part of it, unless that would quote a value (most of the class `22` does): then it stands
/// in the source alone. Where a person can mend it, the text says how, and [`Error::mend`] gives
/// that part alone.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    text: Cow<'static, str>,
    mend: Option<Cow<'static, str>>,
    said: Option<Said>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: Kind, text: impl Into<Cow<'static, str>>) -> Self {
        Error(Box::new(Inner { kind, text: text.into(), mend: None, said: None, source: None }))
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
        self.0.said.as_ref().map(|said| said.state.as_str())
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

    /// Whether the transaction had ended before, by a COMMIT or ROLLBACK that the client does not
    /// know of.
    pub fn is_ended(&self) -> bool {
        self.kind() == Kind::Ended
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
            | Kind::Ended
            | Kind::NoRow
            | Kind::Database => Reaction::Reject,
            Kind::Setup => Reaction::Stop,
        }
    }
}

/// What Postgres said.
#[cfg_attr(
    not(any(feature = "sqlx", feature = "tokio-postgres")),
    expect(dead_code, reason = "nobody speaks")
)]
pub(crate) struct Said {
    pub(crate) state: String,
    pub(crate) message: String,
    /// The character of the statement that it is about, from 1 on.
    pub(crate) position: Option<usize>,
}

impl Said {
    /// Whether its message may be told: most of the class 22 quotes the value that is wrong.
    fn is_without_values(&self) -> bool {
        !self.state.starts_with("22") || ["22001", "22004", "22023"].contains(&self.state.as_str())
    }
}

#[cfg(feature = "sqlx")]
impl Error {
    /// Sorts an error of sqlx.
    pub(crate) fn database(doing: &'static str, error: sqlx::Error) -> Self {
        let said = error.as_database_error().map(|fault| Said {
            state: fault.code().unwrap_or_default().into_owned(),
            message: fault.message().to_owned(),
            position: fault.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().and_then(place),
        });
        let unavailable = matches!(
            error,
            sqlx::Error::Io(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
        );
        Error::sorted(doing, said, unavailable).caused_by(error)
    }
}

#[cfg(feature = "sqlx")]
fn place(fault: &sqlx::postgres::PgDatabaseError) -> Option<usize> {
    match fault.position()? {
        sqlx::postgres::PgErrorPosition::Original(place) => Some(place),
        sqlx::postgres::PgErrorPosition::Internal { .. } => None,
    }
}

/// States that say: something is missing, of another form, or not permitted.
#[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
const MISSING: [&str; 5] = ["3F000", "42P01", "42703", "42883", "42501"];

#[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
impl Error {
    /// An error of the database by its SQLSTATE
    /// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
    pub(crate) fn sorted(doing: &'static str, said: Option<Said>, unavailable: bool) -> Self {
        let kind = match &said {
            Some(said) if ended(said) => return Error::ended(),
            Some(said) => of(&said.state),
            None if unavailable => Kind::Unavailable,
            None => Kind::Database,
        };
        let mut error = Error::new(kind, doing);
        error.0.said = said;
        if kind == Kind::Aborted {
            return error.mended_by("roll back; the first error of the transaction tells why");
        }
        error
    }

    /// A write in a transaction that was not open any more.
    fn ended() -> Self {
        Error::new(Kind::Ended, "the transaction has ended already, so nothing was written")
            .mended_by("end it by commit or rollback of the client, and not by a text of SQL")
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

    /// For a statement of ours alone: what it does not find, or may not use, is set up wrongly, and
    /// a value that its table does not take is the message's.
    pub(crate) fn in_our_statement(mut self) -> Self {
        if self.is_about_what_is_missing() {
            return self.of_setup(MEND);
        }
        if self.sqlstate().is_some_and(|state| state.starts_with("22")) {
            self.0.kind = Kind::Invalid;
        }
        self
    }

    /// The same as a fault of the set-up.
    pub(crate) fn of_setup(mut self, mend: impl Into<Cow<'static, str>>) -> Self {
        self.0.kind = Kind::Setup;
        self.mended_by(mend)
    }

    /// Whether something is missing, of another form, or not permitted.
    pub(crate) fn is_about_what_is_missing(&self) -> bool {
        self.sqlstate().is_some_and(|state| MISSING.contains(&state))
    }

    /// What Postgres said, if it did.
    pub(crate) fn said(&self) -> Option<&Said> {
        self.0.said.as_ref()
    }

    /// The same, with other words for what Postgres said.
    pub(crate) fn saying(mut self, message: String) -> Self {
        if let Some(said) = &mut self.0.said {
            said.message = message;
        }
        self
    }
}

/// What mends a table or a right that a statement of ours misses.
#[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
const MEND: &str = "call check of this outbox, which says what is missing; what the journal needs \
    comes by schema::install or the migrations";

/// The setting that a statement asks for where the client's transaction is not open. There is none
/// of that name, so the statement fails with it.
#[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
pub(crate) const ENDED: &str = "tailrace.transaction_has_ended";

#[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
fn ended(said: &Said) -> bool {
    said.state == "42704" && said.message.contains(ENDED)
}

#[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
fn of(state: &str) -> Kind {
    match state {
        "25P02" => Kind::Aborted,
        "54000" => Kind::TooLarge,
        "55P03" => Kind::Conflict,
        // A statement that was cancelled, by a time-out or by a person, and a transaction that took
        // too long.
        "57014" | "25P03" | "25P04" => Kind::Unavailable,
        _ if state.starts_with("40") => Kind::Conflict,
        // Connection, resources, and a server that is stopping or starting.
        _ if ["08", "53", "57P"].iter().any(|class| state.starts_with(class)) => Kind::Unavailable,
        _ => Kind::Database,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)?;
        match &self.0.said {
            Some(said) if said.is_without_values() => write!(f, ": {}", said.message)?,
            Some(said) => write!(f, ": Postgres does not take a value (SQLSTATE {})", said.state)?,
            None => {}
        }
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
            .field("sqlstate", &self.sqlstate())
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
