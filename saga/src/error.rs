//! The error of this crate.

use tailrace_idempotency::BoxError;

/// What went wrong, and how to mend it.
#[derive(Debug, thiserror::Error)]
#[error("{text}{}", .mend.map(|mend| format!(": {mend}")).unwrap_or_default())]
pub struct Error {
    kind: Kind,
    text: String,
    mend: Option<&'static str>,
    source: Option<BoxError>,
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
    /// What a command, a reply or a saga says does not encode or decode.
    Payload,
    /// The consumer that carries it has ended with an error.
    Consumer,
}

impl Error {
    pub(crate) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), mend: None, source: None }
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

    pub(crate) fn of_consumer(error: tailrace_idempotency::Error) -> Self {
        Self::new(Kind::Consumer, error.to_string()).caused_by(error)
    }

    /// Its class.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}
