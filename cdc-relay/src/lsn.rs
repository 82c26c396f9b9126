//! A place in the write-ahead log.

use std::fmt;
use std::str::FromStr;

/// Log sequence number: a byte position in the write-ahead log.
///
/// Shown as Postgres shows it, `16/B374D848`: the high and the low 32 bits in hexadecimal
/// (<https://www.postgresql.org/docs/current/datatype-pg-lsn.html>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text is not an LSN of the form `16/B374D848`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an lsn of the form 16/B374D848")]
pub struct ParseLsnError;

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, ParseLsnError> {
        let (high, low) = text.split_once('/').ok_or(ParseLsnError)?;
        let half = |digits: &str| {
            // `from_str_radix` takes a leading plus sign, which is no part of an LSN.
            if digits.starts_with('+') {
                return Err(ParseLsnError);
            }
            u32::from_str_radix(digits, 16).map(u64::from).map_err(|_| ParseLsnError)
        };
        Ok(Lsn((half(high)? << 32) | half(low)?))
    }
}

#[cfg(test)]
mod tests {
    use super::{Lsn, ParseLsnError};

    #[test]
    fn text_and_number_agree() {
        let lsn = Lsn(0x16_B374_D848);

        assert_eq!(lsn.to_string(), "16/B374D848");
        assert_eq!("16/B374D848".parse(), Ok(lsn));
        assert_eq!("0/0".parse(), Ok(Lsn(0)));
        for wrong in ["", "16", "16/", "+1/2", "1/100000000", "x/1"] {
            assert_eq!(wrong.parse::<Lsn>(), Err(ParseLsnError), "{wrong}");
        }
    }
}
