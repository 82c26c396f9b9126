//! The id of a message, minted once by its writer.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::error::{Error, Kind};

const MILLISECONDS_PER_DAY: u128 = 86_400_000;

/// A message's id: a UUID.
///
/// Best of version 7, which begins with the millisecond of its minting: the processed-message table is
/// partitioned by it, so a claim is looked for in one day alone, and is known for as long as that day is kept.
/// An id of another version is [opaque](Self::is_opaque): it says nothing of its time, and claims of it are
/// remembered by when they were made. So is any other text, which stands for its hash, a UUID of version 8
/// (RFC 9562, 5.8). Ids are compared within one consumer alone, so two producers' texts meet only there.
///
/// Texts are compared byte by byte: nothing is trimmed or folded, but for the spellings of a UUID. One that begins or ends
/// with white space, or has a control character anywhere, is refused: it is most likely another one with a piece of its
/// surroundings (a line's end, a terminating zero), and the same message without that piece would count as another.
///
/// ```
/// use tailrace_idempotency::MessageId;
///
/// let id: MessageId = "019a9c6e-0000-7000-8000-000000000001".parse()?;
/// assert_eq!(id.to_string(), "019a9c6e-0000-7000-8000-000000000001");
///
/// let foreign: MessageId = "67e55044-10b1-426f-9247-bb680e5fe0c8".parse()?;
/// assert!(foreign.is_opaque());
///
/// let text: MessageId = "invoice 2026/4711".parse()?;
/// assert_eq!(text, "invoice 2026/4711".parse()?);
/// assert!(text.is_opaque());
/// # Ok::<(), tailrace_idempotency::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(Uuid);

/// No text for an id is longer: a header that is, holds something else.
const TEXT_BYTES_MAX: usize = 4096;

impl MessageId {
    /// The UUID itself.
    pub fn as_uuid(&self) -> &Uuid {
        &self.0
    }

    /// Whether the id says nothing of its time: it is no UUID of version 7.
    pub fn is_opaque(&self) -> bool {
        self.day().is_none()
    }

    /// The UTC day of minting: the partition that the id belongs to. None for an opaque id.
    pub(crate) fn day(&self) -> Option<Day> {
        if (self.0.get_version_num(), self.0.get_variant()) != (7, uuid::Variant::RFC4122) {
            return None;
        }
        let milliseconds = self.0.as_u128() >> 80;
        let day = i32::try_from(milliseconds / MILLISECONDS_PER_DAY)
            .expect("48 bits of milliseconds are fewer than four million days");
        Some(Day(day))
    }
}

impl MessageId {
    /// The id that stands for a text that is no UUID.
    fn of_text(text: &str) -> Self {
        let digest = Sha256::digest(text.as_bytes());
        let bytes = digest.first_chunk().expect("the digest has 32 bytes");
        Self(uuid::Builder::from_custom_bytes(*bytes).into_uuid())
    }
}

impl TryFrom<Uuid> for MessageId {
    type Error = Error;

    /// Takes any UUID but the two that are nobody's: that of all zeros and that of all ones.
    fn try_from(uuid: Uuid) -> Result<Self, Error> {
        if uuid.is_nil() || uuid.is_max() {
            let text = format!("the message id {uuid} is that of no message");
            return Err(Error::new(Kind::MessageId, text)
                .mended_by("mint an id for each message, as a UUID of version 7"));
        }
        Ok(Self(uuid))
    }
}

impl FromStr for MessageId {
    type Err = Error;

    /// Reads a UUID in any of its spellings, or takes another text for its hash.
    ///
    /// # Errors
    /// [`Kind::MessageId`] for a text that is empty, has over 4,096 bytes, begins or ends with white space or has a control
    /// character, and for a UUID of all zeros or all ones.
    fn from_str(text: &str) -> Result<Self, Error> {
        // The text stays out of the error: a foreign producer's id may be anything.
        let fault = |text: &'static str| {
            Err(Error::new(Kind::MessageId, text)
                .mended_by("mint an id for each message, as a UUID of version 7"))
        };
        let unfit = |text: &'static str| {
            Err(Error::new(Kind::MessageId, text).mended_by(
                "have the producer send the id alone, or take it out of the record by IdFrom::function",
            ))
        };
        match Uuid::try_parse(text) {
            Ok(uuid) => Self::try_from(uuid),
            Err(_) if text.is_empty() => fault("the message id is empty"),
            Err(_) if text.len() > TEXT_BYTES_MAX => fault("the message id has over 4096 bytes"),
            Err(_) if text.chars().any(char::is_control) => {
                unfit("the message id has a control character in it")
            }
            Err(_) if text.trim() != text => {
                unfit("the message id begins or ends with white space")
            }
            Err(_) => Ok(Self::of_text(text)),
        }
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

    fn check_day(id: &str, expected: Option<i32>) {
        let id: MessageId = id.parse().unwrap();

        assert_eq!((id.day(), id.is_opaque()), (expected.map(Day), expected.is_none()));
    }

    #[test]
    fn the_day_is_taken_from_the_first_48_bits_of_version_7_alone() {
        check_day("00000000-0000-7000-8000-000000000000", Some(0));
        check_day("00000526-5bff-7fff-bfff-ffffffffffff", Some(0));
        check_day("00000526-5c00-7000-8000-000000000000", Some(1));
        check_day("ffffffff-ffff-7fff-bfff-ffffffffffff", Some(3_257_812));
        check_day("67e55044-10b1-426f-9247-bb680e5fe0c8", None);
        // The digit of version 7 in a UUID of Microsoft's old layout.
        check_day("00000526-5c00-7000-c000-000000000000", None);
        check_day("order-42", None);
    }

    #[test]
    fn a_text_that_is_no_uuid_stands_for_its_hash() {
        let id: MessageId = "order-42".parse().unwrap();

        // The first 128 bits of SHA-256, with version and variant put in.
        assert_eq!(id.to_string(), "3bf8b157-c423-8eef-a5ae-4a66eca81c6b");
        assert_ne!(id, "order-43".parse().unwrap());
        assert_eq!(id, id.to_string().parse().unwrap());
    }

    #[test]
    fn the_same_uuid_in_another_spelling_is_the_same_id() {
        let id: MessageId = "67e55044-10b1-426f-9247-bb680e5fe0c8".parse().unwrap();

        assert_eq!(id, "67E5504410B1426F9247BB680E5FE0C8".parse().unwrap());
        assert_eq!(id, "urn:uuid:67e55044-10b1-426f-9247-bb680e5fe0c8".parse().unwrap());
    }

    #[test]
    fn the_id_of_no_message_is_refused_without_repeating_a_text() {
        let check = |text: &str, named: &str| {
            let error = text.parse::<MessageId>().unwrap_err();

            assert_eq!(error.kind(), Kind::MessageId);
            assert!(error.to_string().contains(named), "{error}");
        };

        check("", "empty");
        check(&"x".repeat(TEXT_BYTES_MAX + 1), "over 4096 bytes");
        check("00000000-0000-0000-0000-000000000000", "of no message");
        check("ffffffff-ffff-ffff-ffff-ffffffffffff", "of no message");
    }

    #[test]
    fn a_text_with_a_piece_of_its_surroundings_is_refused_and_never_trimmed() {
        let check = |text: &str, named: &str| {
            let error = text.parse::<MessageId>().unwrap_err();

            assert_eq!(error.kind(), Kind::MessageId);
            assert!(error.to_string().contains(named), "{text:?}: {error}");
            assert!(!error.to_string().contains("order-42"), "{error}");
        };

        for white in [" ", "\u{a0}", "\u{2003}"] {
            check(&format!("{white}order-42"), "begins or ends with white space");
            check(&format!("order-42{white}"), "begins or ends with white space");
            check(white, "begins or ends with white space");
        }
        for control in ["\n", "\r\n", "\t", "\0", "\u{7f}", "\u{85}"] {
            check(&format!("{control}order-42"), "control character");
            check(&format!("order-42{control}"), "control character");
            check(&format!("order{control}order-42"), "control character");
        }
        check(" 019a9c6e-0000-7000-8000-000000000001", "white space");
        check("019a9c6e-0000-7000-8000-000000000001\n", "control character");
        assert!("order 42 of 7".parse::<MessageId>().unwrap().is_opaque());
    }
}
