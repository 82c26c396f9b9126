//! Where a message stands in the source.

use std::fmt;
use std::str::FromStr;

use crate::lsn::{Lsn, ParseLsnError};

/// One life of a replication slot. A new slot is a new incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u32);

/// Place of a change inside its source transaction, counted from 0.
///
/// Counts every raw insert, update, delete, truncate and logical message of the transaction that
/// was not rolled back, whether or not it is published: so it depends neither on what is published
/// nor on how the server sends it. One setting it does depend on: a relay that publishes rows alone
/// ([`Config::messages`](crate::Config::messages)) does not count messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ordinal(pub u32);

/// A message's place in the source: the order of positions is the order of commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The life of the slot that the message was read from.
    pub incarnation: Incarnation,
    /// Where the commit record of the message's transaction begins.
    pub commit_lsn: Lsn,
    /// The message's place in its transaction.
    pub ordinal: Ordinal,
}

impl Position {
    /// 32 lower-case hexadecimal digits: incarnation 8, commit LSN 16, ordinal 8. Byte order is
    /// source order.
    pub fn sequence(&self) -> String {
        let mut text = String::with_capacity(32);
        self.push_sequence(&mut text);
        text
    }

    /// Appends [`Position::sequence`]. Written out, because it is done for every message: the
    /// formatting of the standard library takes several times as long.
    pub(crate) fn push_sequence(&self, into: &mut String) {
        let Position { incarnation, commit_lsn, ordinal } = *self;
        let bits = u128::from(incarnation.0) << 96
            | u128::from(commit_lsn.0) << 32
            | u128::from(ordinal.0);
        for digit in (0..32).rev() {
            let four = (bits >> (4 * digit) & 0xF) as u32;
            into.push(char::from_digit(four, 16).expect("four bits are one digit"));
        }
    }

    /// The part of a position that a person can name: `commit LSN:ordinal`.
    pub fn place(&self) -> Place {
        Place { commit_lsn: self.commit_lsn, ordinal: self.ordinal }
    }
}

/// A position within one incarnation, written `16/B374D848:3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Where the commit record of the transaction begins.
    pub commit_lsn: Lsn,
    /// The place in the transaction.
    pub ordinal: Ordinal,
}

impl Place {
    /// The place in a message's `ce_sequence`: the last 24 digits of `relay id:position`.
    pub(crate) fn of_sequence(sequence: &[u8]) -> Option<Self> {
        let digits = sequence.get(sequence.len().checked_sub(24)?..)?;
        let number = |range| {
            let digits = str::from_utf8(digits.get::<std::ops::Range<usize>>(range)?).ok()?;
            u64::from_str_radix(digits, 16).ok()
        };
        let ordinal = u32::try_from(number(16..24)?).ok()?;
        Some(Place { commit_lsn: Lsn(number(0..16)?), ordinal: Ordinal(ordinal) })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.commit_lsn, self.ordinal.0)
    }
}

/// The text is not a place of the form `16/B374D848:3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a place of the form 16/B374D848:3 (commit lsn, colon, ordinal)")]
pub struct ParsePlaceError;

impl From<ParseLsnError> for ParsePlaceError {
    fn from(_: ParseLsnError) -> Self {
        ParsePlaceError
    }
}

impl FromStr for Place {
    type Err = ParsePlaceError;

    fn from_str(text: &str) -> Result<Self, ParsePlaceError> {
        let (lsn, ordinal) = text.split_once(':').ok_or(ParsePlaceError)?;
        Ok(Place {
            commit_lsn: lsn.parse()?,
            ordinal: Ordinal(ordinal.parse().map_err(|_| ParsePlaceError)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Incarnation, Ordinal, ParsePlaceError, Place, Position};
    use crate::lsn::Lsn;

    #[test]
    fn sequence_sorts_as_the_source_does() {
        let at = |incarnation, commit_lsn, ordinal| Position {
            incarnation: Incarnation(incarnation),
            commit_lsn: Lsn(commit_lsn),
            ordinal: Ordinal(ordinal),
        };
        let mut positions = [at(2, 0, 0), at(1, 0x16_B374_D848, 10), at(1, 0x16_B374_D848, 9)];

        positions.sort();

        let texts: Vec<String> = positions.iter().map(|p| p.sequence()).collect();
        assert_eq!(texts[0], "0000000100000016b374d84800000009");
        assert!(texts.is_sorted());
    }

    #[test]
    fn a_place_reads_back() {
        let place = Place { commit_lsn: Lsn(0x1_0000_00AB), ordinal: Ordinal(7) };
        let Place { commit_lsn, ordinal } = place;
        let position = Position { incarnation: Incarnation(u32::MAX), commit_lsn, ordinal };

        let sequence = format!("a-relay:{}", position.sequence());
        assert_eq!(Place::of_sequence(sequence.as_bytes()), Some(place));
        for wrong in [&b""[..], b"7", &[0xFF; 32]] {
            assert_eq!(Place::of_sequence(wrong), None);
        }

        assert_eq!(place.to_string(), "1/AB:7");
        assert_eq!("1/AB:7".parse(), Ok(place));
        for wrong in ["1/AB", "1/AB:", "1/AB:x", ":7"] {
            assert_eq!(wrong.parse::<Place>(), Err(ParsePlaceError), "{wrong}");
        }
    }
}
