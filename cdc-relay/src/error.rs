//! What can go wrong in the relay, and what follows from it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use crate::position::Place;

/// What went wrong, as far as a caller can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A setting is missing, malformed, or asks for what this version does not do.
    Config,
    /// A server refused the role, the password or a right.
    Permission,
    /// A server cannot be reached, went away, or did not answer in time.
    Unavailable,
    /// The replication slot is held by another connection.
    SlotBusy,
    /// Another relay has taken over the transactional id.
    Fenced,
    /// Slot, checkpoint and server do not belong together: going on would lose or repeat messages.
    Gap,
    /// Bytes that break their format, in the log or on the wire.
    Malformed,
    /// A message that can not be published as it stands.
    Rejected,
    /// A server is set up so that the relay can not work.
    Server,
}

impl Kind {
    /// Its name in snake case, for labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Config => "config",
            Kind::Permission => "permission",
            Kind::Unavailable => "unavailable",
            Kind::SlotBusy => "slot_busy",
            Kind::Fenced => "fenced",
            Kind::Gap => "gap",
            Kind::Malformed => "malformed",
            Kind::Rejected => "rejected",
            Kind::Server => "server",
        }
    }
}

/// What the relay does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Begin a new session after a pause.
    Retry,
    /// Another relay leads: wait for the slot.
    StandBy,
    /// Nothing but a person can mend it: end the process.
    Stop,
}

/// An error of the relay: what failed, and how to mend it.
///
/// The text never carries payloads or secrets. [`Error::mend`] tells an operator the way on.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    text: Cow<'static, str>,
    hint: Option<Cow<'static, str>>,
    sqlstate: Option<Box<str>>,
    refused: Option<RefusedRecord>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// A record that a destination refused, as it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefusedRecord {
    /// The message, where it is told.
    pub(crate) place: Option<Place>,
    pub(crate) topic: String,
    /// Whether every record to the topic would be refused.
    pub(crate) whole_topic: bool,
    pub(crate) why: String,
}

impl Error {
    /// An error of this kind; `text` in lower case, without a full stop, naming the thing.
    pub fn new(kind: Kind, text: impl Into<Cow<'static, str>>) -> Self {
        Error(Box::new(Inner {
            kind,
            text: text.into(),
            hint: None,
            sqlstate: None,
            refused: None,
            source: None,
        }))
    }

    /// Adds how to mend it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// What caused it, and what caused that, for a log line.
    pub(crate) fn causes(&self) -> Option<String> {
        let mut texts = Vec::new();
        let mut cause = std::error::Error::source(self);
        while let Some(found) = cause {
            texts.push(found.to_string());
            cause = found.source();
        }
        (!texts.is_empty()).then(|| texts.join(": "))
    }

    /// Keeps Postgres' own code for what it answered.
    pub(crate) fn with_sqlstate(mut self, code: &str) -> Self {
        self.0.sqlstate = Some(code.into());
        self
    }

    /// Postgres' code for what went wrong (its documentation, appendix A), when Postgres said so.
    pub fn sqlstate(&self) -> Option<&str> {
        self.0.sqlstate.as_deref()
    }

    /// Keeps which record the destination refused.
    pub(crate) fn with_refused(mut self, refused: RefusedRecord) -> Self {
        self.0.refused = Some(refused);
        self
    }

    /// The record that the destination refused, where that is behind the error.
    pub(crate) fn refused(&self) -> Option<&RefusedRecord> {
        self.0.refused.as_ref()
    }

    /// Keeps the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// How an operator can mend it.
    pub fn mend(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// What the relay does about it.
    pub fn reaction(&self) -> Reaction {
        match self.0.kind {
            Kind::Unavailable => Reaction::Retry,
            Kind::SlotBusy | Kind::Fenced => Reaction::StandBy,
            Kind::Config
            | Kind::Permission
            | Kind::Gap
            | Kind::Malformed
            | Kind::Rejected
            | Kind::Server => Reaction::Stop,
        }
    }

    /// The process exit code: 2 configuration or server set-up, 3 permission, 4 gap, 5 a message
    /// that can not be published, 6 unavailable, 7 another relay leads or took over.
    pub fn exit_code(&self) -> u8 {
        match self.0.kind {
            Kind::Config | Kind::Server => 2,
            Kind::Permission => 3,
            Kind::Gap => 4,
            Kind::Malformed | Kind::Rejected => 5,
            Kind::Unavailable => 6,
            Kind::SlotBusy | Kind::Fenced => 7,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("text", &self.0.text)
            .field("hint", &self.0.hint)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
