//! What a failure means for a message: why it is set aside, and until when.

use std::error::Error as StdError;
use std::time::Duration;

use crate::error::{Error, Kind};

/// The longest detail that is stored with a message.
const DETAIL_CHARS_MAX: usize = 1000;

/// A stable code for why a message has no effect yet, or never will.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Its payload does not decode.
    Undecodable,
    /// Its handler rejected it.
    Rejected,
    /// Its handler failed.
    Failed,
    /// Its handler asked for a later time.
    Later,
    /// Its handler has it wait for another message.
    Waits,
    /// No handler is registered for its type.
    Unhandled,
    /// Its id is older than claims are kept.
    TooOld,
    /// Its id is from the future.
    Future,
    /// Its call was begun, and how it ended was not recorded.
    BrokenOff,
    /// A person gave it up.
    Discarded,
}

impl Reason {
    /// As it stands in the tables and in a dead letter's header.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Later => "later",
            Self::Waits => "waits",
            Self::Unhandled => "unhandled",
            Self::TooOld => "too_old",
            Self::Future => "future",
            Self::BrokenOff => "broken_off",
            Self::Discarded => "discarded",
        }
    }
}

/// Why a message was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) reason: Reason,
    /// For people: never a payload.
    pub(crate) detail: Option<String>,
    /// When its handler wants to see it again.
    pub(crate) after: Option<Duration>,
    /// Its lane stood still for as long as a handler may take.
    pub(crate) is_cut_off: bool,
}

impl Cause {
    pub(crate) fn new(reason: Reason) -> Self {
        Self { reason, detail: None, after: None, is_cut_off: false }
    }

    pub(crate) fn with_detail(reason: Reason, detail: &str) -> Self {
        Self { detail: Some(stored(detail)), ..Self::new(reason) }
    }

    pub(crate) fn later(after: Duration) -> Self {
        Self { after: Some(after), ..Self::new(Reason::Later) }
    }

    /// Whether an attempt has failed by it.
    pub(crate) fn is_failure(&self) -> bool {
        self.reason != Reason::Waits
    }

    pub(crate) fn of(error: &Error) -> Self {
        let reason = match error.kind() {
            Kind::Payload => Reason::Undecodable,
            _ => Reason::Failed,
        };
        Self { is_cut_off: error.breaks_off(), ..Self::with_detail(reason, &told(error)) }
    }
}

/// What becomes of a message instead of its effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It waits in `tailrace.parked_message`, and every later message of its key behind it.
    Park(Cause),
    /// It becomes a dead letter; its key goes on.
    Bury(Cause),
    /// It waits there too, for its call to be made, which is no failure.
    Call,
}

impl Fate {
    /// Whether what it is owed to counts as an attempt.
    pub(crate) fn is_failure(&self) -> bool {
        match self {
            Self::Park(cause) | Self::Bury(cause) => cause.is_failure(),
            Self::Call => false,
        }
    }
}

/// An error and its sources, without what Postgres quotes of a row.
fn told(error: &Error) -> String {
    let mut text = error.summary().to_owned();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        match cause.downcast_ref::<sqlx::Error>() {
            Some(sqlx::Error::Database(database)) => {
                text.push_str("SQLSTATE ");
                text.push_str(&database.code().unwrap_or_default());
                if let Some(constraint) = database.constraint() {
                    text.push_str(" of the constraint ");
                    text.push_str(constraint);
                }
                return text;
            }
            _ => text.push_str(&cause.to_string()),
        }
        source = cause.source();
    }
    text
}

/// Postgres stores no NUL in a text.
pub(crate) fn stored(text: &str) -> String {
    text.chars()
        .map(|char| if char == '\0' { '\u{fffd}' } else { char })
        .take(DETAIL_CHARS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_tells_all_sources_is_bounded_and_fits_into_a_text() {
        let source = format!("out\0of stock {}", "x".repeat(2000));
        let error = Error::new(Kind::Handler, "the handler of a.v1 failed").caused_by(source);

        let detail = Cause::of(&error).detail.unwrap();

        assert!(
            detail.starts_with("the handler of a.v1 failed: out\u{fffd}of stock xxx"),
            "{detail}"
        );
        assert_eq!(detail.chars().count(), DETAIL_CHARS_MAX);
    }
}
