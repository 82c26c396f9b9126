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
}

impl Error {
    pub(crate) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), mend: None, source: None }
    }

    pub(crate) fn caused_by(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Its class.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}
