//! The id of a message, minted once by its writer.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::error::{Error, Kind};

const MILLISECONDS_PER_DAY: u128 = 86_400_000;

/// A message's id: a UUID of version 7.
///
/// Version 7 begins with the millisecond of its minting. The processed-message table is partitioned by it,
/// which is why other versions are refused: their place in time would be an accident.
///
/// ```
/// use tailrace_idempotency::MessageId;
///
/// let id: MessageId = "019a9c6e-0000-7000-8000-000000000001".parse()?;
/// assert_eq!(id.to_string(), "019a9c6e-0000-7000-8000-000000000001");
/// assert!("67e55044-10b1-426f-9247-bb680e5fe0c8".parse::<MessageId>().is_err());
/// # Ok::<(), tailrace_idempotency::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(Uuid);

impl MessageId {
    /// The UUID itself.
    pub fn as_uuid(&self) -> &Uuid {
        &self.0
    }

    /// The UTC day of minting: the partition that the id belongs to.
    pub(crate) fn day(&self) -> Day {
        let milliseconds = self.0.as_u128() >> 80;
        Day(i32::try_from(milliseconds / MILLISECONDS_PER_DAY)
            .expect("48 bits of milliseconds are fewer than four million days"))
    }
}

impl TryFrom<Uuid> for MessageId {
    type Error = Error;

    fn try_from(uuid: Uuid) -> Result<Self, Error> {
        match (uuid.get_version_num(), uuid.get_variant()) {
            (7, uuid::Variant::RFC4122) => Ok(Self(uuid)),
            (version, _) => Err(Error::new(
                Kind::MessageId,
                format!("the message id {uuid} is a UUID of version {version}"),
            )
            .mended_by("mint ids as UUID version 7; other versions are not supported yet")),
        }
    }
}

impl FromStr for MessageId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        // The text stays out of the error: a foreign producer's id may be anything.
        let uuid = Uuid::try_parse(text).map_err(|error| {
            Error::new(Kind::MessageId, "the message id is not a UUID")
                .caused_by(error)
                .mended_by("mint ids as UUID version 7; other ids are not supported yet")
        })?;
        Self::try_from(uuid)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// A UTC day, counted from the first of January 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Day(pub(crate) i32);

#[cfg(test)]
mod tests {
    use super::*;

    fn check_day(id: &str, expected: i32) {
        let id: MessageId = id.parse().unwrap();

        assert_eq!(id.day(), Day(expected));
    }

    #[test]
    fn the_day_is_taken_from_the_first_48_bits() {
        check_day("00000000-0000-7000-8000-000000000000", 0);
        check_day("00000526-5bff-7fff-bfff-ffffffffffff", 0);
        check_day("00000526-5c00-7000-8000-000000000000", 1);
        check_day("ffffffff-ffff-7fff-bfff-ffffffffffff", 3_257_812);
    }

    #[test]
    fn another_version_is_named_and_refused() {
        let error = "67e55044-10b1-426f-9247-bb680e5fe0c8".parse::<MessageId>().unwrap_err();

        assert_eq!(error.kind(), Kind::MessageId);
        assert!(error.to_string().contains("67e55044-10b1-426f-9247-bb680e5fe0c8"));
        assert!(error.to_string().contains("version 4"));
    }

    #[test]
    fn what_is_no_uuid_is_refused_without_repeating_it() {
        let error = "iban-DE02-1203".parse::<MessageId>().unwrap_err();

        assert_eq!(error.kind(), Kind::MessageId);
        assert!(!error.to_string().contains("iban"));
    }
}
