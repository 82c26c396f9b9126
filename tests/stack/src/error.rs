//! What can keep a stack from starting, and how to mend it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// What went wrong, as far as a caller can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// There is no way to get a server here; the text lists every way to provide one.
    Missing,
    /// An environment variable is malformed, or the server that it names does not serve.
    Environment,
    /// The servers' files could not be fetched or unpacked.
    Download,
    /// A server did not start, stop or answer in time.
    Server,
}

/// An error of the stack: what failed, why, and how to mend it.
///
/// [`Debug`](fmt::Debug) prints the text and its causes in plain lines, because that is what a
/// failing test shows. Passwords are never part of it.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    text: Cow<'static, str>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: Kind, text: impl Into<Cow<'static, str>>) -> Self {
        Error(Box::new(Inner { kind, text: text.into(), source: None }))
    }

    /// Keeps the cause.
    pub(crate) fn caused_by(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut source = self.source();
        while let Some(cause) = source {
            write!(f, "\n  because: {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
