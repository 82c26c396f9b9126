//! The error of this crate.

use tailrace_idempotency::BoxError;

use crate::unreadable::Unreadable;

/// What went wrong, and how to mend it.
#[derive(Debug, thiserror::Error)]
#[error("{text}{}", .mend.map(|mend| format!(": {mend}")).unwrap_or_default())]
pub struct Error {
    kind: Kind,
    text: String,
    mend: Option<&'static str>,
    source: Option<BoxError>,
    faults: Vec<String>,
}

/// The class of an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A record's attributes are not those of a command or reply.
    Record,
    /// The tables are missing, older than this version needs, or hold what it does not know.
    Schema,
    /// Postgres refused a statement or could not be reached.
    Database,
    /// A command or a reply could not be written to the outbox.
    Outbox,
    /// The consumer that carries it has ended with an error.
    Consumer,
    /// There are running sagas that nobody can run.
    Quarantined,
    /// What is wanted does not fit what is there.
    Conflict,
    /// A definition is wrong, or an instance does not follow it.
    Definition,
    /// Data, a command or a reply can not be read or written as JSON.
    Unreadable,
}

impl Error {
    pub(crate) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), mend: None, source: None, faults: Vec::new() }
    }

    pub(crate) fn definition(text: impl Into<String>) -> Self {
        Self::new(Kind::Definition, text)
    }

    /// Everything that is wrong with one thing.
    pub(crate) fn faults(of: &str, faults: Vec<String>) -> Self {
        let list: String = faults.iter().map(|fault| format!("\n- {fault}")).collect();
        Self { faults, ..Self::definition(format!("{of} is not right:{list}")) }
    }

    pub(crate) fn caused_by(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub(crate) fn mended_by(mut self, mend: &'static str) -> Self {
        self.mend = Some(mend);
        self
    }

    pub(crate) fn database(doing: &'static str, error: sqlx::Error) -> Self {
        Self::new(Kind::Database, doing).caused_by(error)
    }

    /// Whether the same may succeed later: Postgres was away, or broke the transaction off for the sake of others.
    pub fn is_transient(&self) -> bool {
        is_transient(self)
    }

    /// What kept the consumer from starting may be an error of this crate, which is told as it is.
    pub(crate) fn of_consumer(error: tailrace_idempotency::Error) -> Self {
        let is_own = std::error::Error::source(&error).is_some_and(|source| source.is::<Self>());
        let (text, source) = (error.to_string(), error);
        let own = |error: tailrace_idempotency::Error| error.into_source()?.downcast::<Self>().ok();
        match is_own {
            true => own(source).map_or_else(|| Self::new(Kind::Consumer, text), |own| *own),
            false => Self::new(Kind::Consumer, text).caused_by(source),
        }
    }

    pub(crate) fn of_outbox(error: tailrace_outbox::Error) -> Self {
        Self::new(Kind::Outbox, "a command or a reply is no message").caused_by(error)
    }

    /// How to mend it, where that is known: the text ends with it.
    pub fn mend(&self) -> Option<&'static str> {
        self.mend
    }

    /// Its class.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What is wrong with a definition or a mapping, one by one; empty for every other error.
    pub fn list(&self) -> &[String] {
        &self.faults
    }
}

impl From<Unreadable> for Error {
    fn from(unreadable: Unreadable) -> Self {
        Self::new(Kind::Unreadable, unreadable.what)
    }
}

/// Whether Postgres was away, or broke a transaction off for the sake of others: what it was for may succeed if it is
/// repeated as a whole. The codes are those of the PostgreSQL documentation, appendix A.
pub(crate) fn is_transient(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<sqlx::Error>() {
            Some(sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed) => {
                return true;
            }
            Some(sqlx::Error::Database(error)) => {
                let code = error.code().unwrap_or_default();
                return ["08", "40", "53", "57"].iter().any(|class| code.starts_with(class));
            }
            _ => cause = error.source(),
        }
    }
    false
}
