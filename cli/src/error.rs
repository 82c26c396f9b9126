//! What ends a command without success: the text, the way on, and the exit code.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use tailrace_idempotency as idempotency;
use tailrace_outbox as outbox;
use tailrace_saga as saga;

/// What went wrong, as far as the exit code tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What a check looked for is missing.
    Unfit,
    /// A setting is wrong, or a table is missing.
    Settings,
    /// Postgres refused the role, the password or a right.
    Permission,
    /// Postgres refused for another reason.
    Refused,
    /// Postgres is out of reach, or a lock was not to be had in time.
    Unavailable,
}

/// The one error of a command. The text never carries passwords or payloads.
#[derive(Debug)]
pub(crate) struct Error {
    kind: Kind,
    text: Cow<'static, str>,
    mend: Option<Cow<'static, str>>,
    origin: Option<Origin>,
}

#[derive(Debug)]
enum Origin {
    Cause(Box<dyn StdError + Send + Sync>),
    /// Its text is ours already, with what Postgres said in it; only another cause is told too.
    Outbox(outbox::Error),
}

impl Error {
    /// An error of this kind; `text` in lower case, without a full stop, naming the thing.
    pub(crate) fn new(kind: Kind, text: impl Into<Cow<'static, str>>) -> Self {
        Error { kind, text: text.into(), mend: None, origin: None }
    }

    /// Says how to mend it, instead of what was said before.
    pub(crate) fn mended_by(mut self, mend: impl Into<Cow<'static, str>>) -> Self {
        self.mend = Some(mend.into());
        self
    }

    pub(crate) fn caused_by(mut self, cause: impl StdError + Send + Sync + 'static) -> Self {
        self.origin = Some(Origin::Cause(Box::new(cause)));
        self
    }

    pub(crate) fn of_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The exit code: that of `cdc-relay` where it has the same case.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Unfit => 1,
            Kind::Settings => 2,
            Kind::Permission => 3,
            Kind::Refused => 5,
            Kind::Unavailable => 6,
        }
    }

    /// Tells it to standard error, in the form of `cdc-relay`.
    #[expect(clippy::print_stderr, reason = "the one error of the process is for its user")]
    pub(crate) fn print(&self) {
        let mut lines = vec![format!("error: {self}")];
        let mut source = self.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Some errors repeat what is below them.
            if !lines.last().is_some_and(|line| line.ends_with(&text)) {
                lines.push(format!("  cause: {text}"));
            }
            source = cause.source();
        }
        lines.extend(self.mend.iter().map(|mend| format!("  mend: {mend}")));
        eprintln!("{}", lines.join("\n"));
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self.origin.as_ref()? {
            Origin::Cause(cause) => Some(cause.as_ref()),
            // The client would repeat it, with a line of Postgres' own source.
            Origin::Outbox(error) if error.sqlstate().is_some() => None,
            Origin::Outbox(error) => error.source(),
        }
    }
}

impl From<outbox::Error> for Error {
    fn from(error: outbox::Error) -> Self {
        let mend = error.mend().map(str::to_owned);
        let whole = error.to_string();
        // The library's text ends with the way on, which has a line of its own here.
        let text = match &mend {
            Some(mend) => whole.strip_suffix(&format!("; {mend}")).unwrap_or(&whole).to_owned(),
            None => whole,
        };
        let made = Error::new(kind_of(&error), text);
        Error { mend: mend.map(Cow::Owned), origin: Some(Origin::Outbox(error)), ..made }
    }
}

fn kind_of(error: &outbox::Error) -> Kind {
    match error.sqlstate().map(by_sqlstate) {
        None | Some(Kind::Refused) => match error.kind() {
            outbox::Kind::Setup | outbox::Kind::Invalid => Kind::Settings,
            outbox::Kind::Unavailable | outbox::Kind::Conflict => Kind::Unavailable,
            _ => Kind::Refused,
        },
        Some(kind) => kind,
    }
}

impl From<idempotency::Error> for Error {
    fn from(error: idempotency::Error) -> Self {
        let mend = error.hint();
        let whole = error.to_string();
        // The library's text ends with the way on, which has a line of its own here.
        let text = match mend {
            Some(mend) => whole.strip_suffix(&format!("; {mend}")).unwrap_or(&whole).to_owned(),
            None => whole,
        };
        let fault = error.source().and_then(|source| source.downcast_ref::<sqlx::Error>());
        let code = fault.and_then(|fault| fault.as_database_error()?.code());
        let (kind, mend) = match (code.as_deref(), error.kind()) {
            // A table, function or schema that is not there.
            (Some("42P01" | "42883" | "3F000" | "42703"), _) | (_, idempotency::Kind::Schema) => {
                (Kind::Settings, Some("run `tailrace inbox install`"))
            }
            (_, idempotency::Kind::Config) => (Kind::Settings, mend),
            (Some(code), _) => (by_sqlstate(code), mend),
            (None, _) if error.is_transient() => (Kind::Unavailable, mend),
            (None, _) => (Kind::Refused, mend),
        };
        let mend = mend.or(match kind {
            Kind::Permission => {
                Some("run it by the role that owns the tables, or grant it the right")
            }
            Kind::Unavailable => Some("run it again"),
            _ => None,
        });
        let made = Error::new(kind, text);
        Error {
            mend: mend.map(Cow::Borrowed),
            origin: error.source().is_some().then(|| Origin::Cause(Box::new(Inner(error)))),
            ..made
        }
    }
}

impl From<saga::Error> for Error {
    fn from(error: saga::Error) -> Self {
        let mend = error.mend();
        let whole = error.to_string();
        // The library's text ends with the way on, which has a line of its own here.
        let text = match mend {
            Some(mend) => whole.strip_suffix(&format!(": {mend}")).unwrap_or(&whole).to_owned(),
            None => whole,
        };
        let fault = error.source().and_then(|source| source.downcast_ref::<sqlx::Error>());
        let code = fault.and_then(|fault| fault.as_database_error()?.code());
        let (kind, way_on) = match (code.as_deref(), error.kind()) {
            // A table or a column that is not there.
            (Some("42P01" | "42703"), _) | (None, saga::Kind::Schema) => {
                (Kind::Settings, Some("run `tailrace saga install`"))
            }
            (Some("42501"), _) => (
                Kind::Permission,
                Some("grant what stands at the head of saga/migrations/0006_operating.sql"),
            ),
            (Some(code), _) => (by_sqlstate(code), Some("see the server's log")),
            (None, saga::Kind::Database) => (Kind::Unavailable, Some("run it again")),
            (None, _) => (Kind::Refused, None),
        };
        let made = Error::new(kind, text);
        Error {
            mend: way_on.or(mend).map(Cow::Borrowed),
            origin: error.source().is_some().then(|| Origin::Cause(Box::new(Below(error)))),
            ..made
        }
    }
}

/// What is below an error of sagas, whose own text has been told.
#[derive(Debug)]
struct Below(saga::Error);

impl fmt::Display for Below {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.source() {
            Some(source) => fmt::Display::fmt(source, f),
            None => fmt::Display::fmt(&self.0, f),
        }
    }
}

impl StdError for Below {}

/// What is below an error of the library, whose own text has been told.
#[derive(Debug)]
struct Inner(idempotency::Error);

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.source() {
            Some(source) => fmt::Display::fmt(source, f),
            None => fmt::Display::fmt(&self.0, f),
        }
    }
}

impl StdError for Inner {}

/// The kind by Postgres' code (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
pub(crate) fn by_sqlstate(code: &str) -> Kind {
    match code {
        "42501" => Kind::Permission,
        // A database that does not exist.
        "3D000" => Kind::Settings,
        // A lock or an answer was not to be had in time.
        "55P03" | "57014" => Kind::Unavailable,
        _ if code.starts_with("28") => Kind::Permission,
        // Connection, conflict, resources, a server that is stopping or starting.
        _ if ["08", "40", "53", "57P"].iter().any(|class| code.starts_with(class)) => {
            Kind::Unavailable
        }
        _ => Kind::Refused,
    }
}
