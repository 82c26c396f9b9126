//! What a dead letter says about the message that it stands for.
//!
//! A message that can not be published must neither be lost nor hold up those behind it. Its record
//! goes to a topic of its own, in the place and the transaction where the message would have been,
//! with the headers named here added to those of the message.

use tailrace_outbox::frame::Frame;

use crate::position::Place;

/// Why the message can not be published.
pub(crate) const REASON: &str = "dead_letter_reason";
/// The message's place in the source: `commit LSN:ordinal`.
pub(crate) const PLACE: &str = "dead_letter_place";
/// The topic that it was for.
pub(crate) const TOPIC: &str = "dead_letter_topic";
/// When it was written, in milliseconds since the Unix epoch.
pub(crate) const TIMESTAMP: &str = "dead_letter_timestamp_ms";
/// The bytes of its payload, or of the whole where that is no frame.
pub(crate) const BYTES: &str = "dead_letter_bytes";

/// What of the message the letter does not have, for it would be longer than a record may be;
/// absent where it has all of it.
pub(crate) const LEFT_OUT: &str = "dead_letter_left_out";

/// The longest message that a letter has in full: what a producer of the relay hands over, less
/// room for headers.
const BYTES_MAX: usize = 15 * 1024 * 1024;

/// The longest value of a header of a letter's own. Reason and topic quote what anybody may have
/// written, and are not to make a letter that can not be published either.
const TEXT_BYTES_MAX: usize = 1_024;

/// How much of a message its dead letter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// All of it.
    All,
    /// Key and headers.
    AllButPayload,
    /// What the letter's own headers say.
    Nothing,
}

impl Kept {
    /// Of a message, or its beginning, behind which so many bytes were not read.
    pub(crate) fn of(content: &[u8], unread: usize) -> Self {
        if unread == 0 && content.len() <= BYTES_MAX {
            return Kept::All;
        }
        let payload = payload_bytes(content);
        if content.len() - payload <= BYTES_MAX { Kept::AllButPayload } else { Kept::Nothing }
    }

    /// The value of [`LEFT_OUT`].
    fn left_out(self) -> Option<&'static str> {
        match self {
            Kept::All => None,
            Kept::AllButPayload => Some("payload"),
            Kept::Nothing => Some("payload, key and headers"),
        }
    }
}

/// The bytes of the payload, or of the whole where that is no frame.
fn payload_bytes(content: &[u8]) -> usize {
    let frame = Frame::decode(content).ok();
    frame.map_or(content.len(), |frame| frame.payload().map_or(0, <[u8]>::len))
}

/// As much of a text as a header of a letter has.
pub(crate) fn bounded(text: &str) -> &str {
    text.get(..text.floor_char_boundary(TEXT_BYTES_MAX)).unwrap_or(text)
}

/// The topic of a relay's dead letters, unless it is given another.
pub(crate) fn topic(relay_id: &str) -> String {
    format!("tailrace.dead-letter.{relay_id}")
}

/// The headers that a dead letter has beside those of its message, of which so many bytes were not
/// read.
pub(crate) fn headers(
    content: &[u8],
    unread: usize,
    place: Place,
    why: &str,
) -> Vec<(&'static str, String)> {
    let mut headers = vec![(REASON, bounded(why).to_owned()), (PLACE, place.to_string())];
    if let Ok(frame) = Frame::decode(content) {
        headers.push((TOPIC, bounded(frame.topic()).to_owned()));
        headers.push((TIMESTAMP, frame.time_micros().div_euclid(1_000).to_string()));
    }
    headers.push((BYTES, (payload_bytes(content) + unread).to_string()));
    if let Some(left_out) = Kept::of(content, unread).left_out() {
        headers.push((LEFT_OUT, left_out.to_owned()));
    }
    headers
}

#[cfg(test)]
mod tests {
    use tailrace_outbox::frame::{Parts, encode_parts};
    use uuid::Uuid;

    use super::{BYTES_MAX, Kept, headers};
    use crate::lsn::Lsn;
    use crate::position::{Ordinal, Place};
    use crate::record::Record;

    fn frame(topic: &str, key: usize, payload: usize) -> Vec<u8> {
        let (key, payload) = (vec![b'k'; key], vec![b'p'; payload]);
        let parts = Parts {
            id: Uuid::nil(),
            time_micros: 0,
            topic,
            key: Some(&key),
            r#type: "t.v1",
            source: "/t",
            subject: None,
            content_type: "text/plain",
            payload: Some(&payload),
        };
        let mut frame = Vec::new();
        encode_parts(&mut frame, &parts, std::iter::empty(), std::iter::empty());
        frame
    }

    #[test]
    fn a_letter_is_never_longer_than_a_record_may_be_and_says_what_it_lacks() {
        let long = "x".repeat(BYTES_MAX + 1);
        let place = Place { commit_lsn: Lsn(1), ordinal: Ordinal(1) };
        for (content, unread, kept, left_out, bytes) in [
            (frame("t", 1, 1_000), 0, Kept::All, None, 1_000),
            (frame("t", 1, BYTES_MAX), 0, Kept::AllButPayload, Some("payload"), BYTES_MAX),
            (frame("t", 1, 0), 7, Kept::AllButPayload, Some("payload"), 7),
            (long.clone().into_bytes(), 0, Kept::AllButPayload, Some("payload"), BYTES_MAX + 1),
            (frame("t", BYTES_MAX, 1), 0, Kept::Nothing, Some("payload, key and headers"), 1),
            (frame(&long, 1, 1), 0, Kept::Nothing, Some("payload, key and headers"), 1),
        ] {
            let letter = headers(&content, unread, place, &long);

            let record = Record::dead_letter("d", &content, unread, "s", &letter, 0);

            assert_eq!(Kept::of(&content, unread), kept);
            assert!(record.size() < BYTES_MAX + 4_096, "{} {kept:?}", record.size());
            let header = |name: &str| letter.iter().find(|(found, _)| *found == name);
            let value = |name: &str| header(name).map(|(_, value)| value.as_str());
            assert_eq!(value("dead_letter_left_out"), left_out);
            assert_eq!(value("dead_letter_bytes"), Some(&*bytes.to_string()));
            // A null value would be a tombstone.
            assert_eq!(record.value().map(<[u8]>::is_empty), Some(kept != Kept::All));
            assert_eq!(record.key().is_some(), kept != Kept::Nothing && content[..2] == *b"TR");
        }
    }
}
