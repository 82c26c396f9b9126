//! Whose an error of a merged write is: the business statement's, or the store's.
//!
//! The caller's text is sent as a part of ours, so what Postgres says of a place means little to the
//! caller, and what it does not find may be the caller's table or the store's.

use crate::Error;
use crate::mapping::Mapping;

/// Postgres takes less where a statement of ours stands around the caller's, and says so in terms of
/// what the caller did not write.
const INSIDE_WITH: &str = "it is sent inside WITH and with a RETURNING, where Postgres takes no MERGE \
    before 17, no second statement that changes data in a WITH of its own, and no table with rules \
    that add statements; where it needs one of these, write the message in a statement of its own";
const WITH_RETURNING: &str = "it is sent with a RETURNING, which Postgres takes neither of a MERGE \
    before 17 nor where rules replace the statement; where it needs one of these, write the message \
    in a statement of its own";

const STALE_PLAN: &str = "the table has changed since the statement was prepared: close the \
    connection, or clear its cached statements";

/// Where the business statement stands in what is sent.
#[derive(Clone, Debug)]
pub(crate) struct Business {
    text: String,
    /// How many characters stand before it.
    before: usize,
}

impl Business {
    pub(crate) fn within(sent: &str, text: &str) -> Self {
        let before = sent.find(text).and_then(|at| sent.get(..at)).unwrap_or_default();
        Business { text: text.to_owned(), before: before.chars().count() }
    }

    /// The error with its place in the business statement; what is missing or forbidden of the store
    /// is the same error as in a statement of ours alone.
    pub(crate) fn explain(&self, error: Error, mapping: Option<&Mapping>) -> Error {
        let Some(said) = error.said() else { return error };
        let place = said.position.and_then(|place| self.place(place));
        let is_ours = match said.position {
            Some(_) => place.is_none(),
            None => self.names_only_ours(&said.message, mapping),
        };
        if is_ours && error.is_about_what_is_missing() {
            return error.in_our_statement();
        }
        // Of the same state as what can not stand in ours.
        if said.message.starts_with("cached plan") {
            return error.mended_by(STALE_PLAN);
        }
        let by_form = ["42601", "0A000"].contains(&said.state.as_str());
        let message = place.filter(|_| by_form || said.state.starts_with("42")).map(|place| {
            format!("{} (at character {place} of the business statement)", said.message)
        });
        let error = match message {
            Some(message) => error.saying(message),
            None => error,
        };
        match mapping {
            Some(_) if by_form => error.mended_by(INSIDE_WITH),
            None if by_form => error.mended_by(WITH_RETURNING),
            _ => error,
        }
    }

    /// The same place, counted from the begin of the business statement, if it is in there.
    fn place(&self, place: usize) -> Option<usize> {
        let place = place.checked_sub(self.before)?;
        (1..=self.text.chars().count()).contains(&place).then_some(place)
    }

    /// Whether a message names something of the store that the business statement does not: names
    /// are what no language of the server changes.
    fn names_only_ours(&self, message: &str, mapping: Option<&Mapping>) -> bool {
        let is_ours = |name: &str| message.contains(name) && !self.text.contains(name);
        match mapping {
            Some(mapping) => is_ours(mapping.table()) || is_ours(mapping.schema()),
            None => is_ours("pg_logical_emit_message"),
        }
    }
}
