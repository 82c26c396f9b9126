//! What a dead letter says about the message that it stands for.
//!
//! A message that can not be published must neither be lost nor hold up those behind it. Its record
//! goes to a topic of its own, in the place and the transaction where the message would have been,
//! with the headers named here added to those of the message.

use std::time::SystemTime;

use tailrace_outbox::frame::Frame;

use crate::error::Kind;
use crate::position::Place;
use crate::record::Unpublishable;

/// Why the message can not be published, as a code: `undecodable` or `rejected`.
const REASON: &str = "tailrace-dead-reason";
/// The same in words, without any of the payload.
const DETAIL: &str = "tailrace-dead-detail";
/// The relay.
const COMPONENT: &str = "tailrace-dead-component";
/// How often it was tried.
const ATTEMPTS: &str = "tailrace-dead-attempts";
/// When it was given up: RFC 3339, UTC.
const AT: &str = "tailrace-dead-at";
/// The topic that it was for.
const TOPIC: &str = "tailrace-dead-topic";
/// Its place in the source: `commit LSN:ordinal`.
const PLACE: &str = "tailrace-dead-place";
/// When it was written, in milliseconds since the Unix epoch.
const TIMESTAMP: &str = "tailrace-dead-timestamp-ms";
/// The bytes of its payload, or of the whole where that is no frame.
const BYTES: &str = "tailrace-dead-bytes";
/// What of the message the letter does not have, for it would be longer than a record may be;
/// absent where it has all of it.
const LEFT_OUT: &str = "tailrace-dead-left-out";

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

/// What a dead letter tells beside what its message was.
pub(crate) struct Cause<'a> {
    pub(crate) relay_id: &'a str,
    pub(crate) place: Place,
    pub(crate) at: SystemTime,
    pub(crate) why: &'a Unpublishable,
}

/// The headers that a dead letter has beside those of its message. The consumer's have the same
/// names, as the wire contract has them.
pub(crate) fn headers(content: &[u8], cause: &Cause<'_>) -> Vec<(&'static str, String)> {
    let Cause { relay_id, place, at, why: Unpublishable { kind, why, unread } } = cause;
    let reason = if *kind == Kind::Malformed { "undecodable" } else { "rejected" };
    let mut headers = vec![
        (REASON, reason.to_owned()),
        (DETAIL, bounded(why).to_owned()),
        (COMPONENT, (*relay_id).to_owned()),
        (ATTEMPTS, "1".to_owned()),
        (AT, humantime::format_rfc3339_micros(*at).to_string()),
        (PLACE, place.to_string()),
    ];
    if let Ok(frame) = Frame::decode(content) {
        headers.push((TOPIC, bounded(frame.topic()).to_owned()));
        headers.push((TIMESTAMP, frame.time_micros().div_euclid(1_000).to_string()));
    }
    headers.push((BYTES, (payload_bytes(content) + unread).to_string()));
    if let Some(left_out) = Kept::of(content, *unread).left_out() {
        headers.push((LEFT_OUT, left_out.to_owned()));
    }
    headers
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use tailrace_outbox::frame::{Parts, encode_parts};
    use uuid::Uuid;

    use super::{BYTES_MAX, Cause, Kept, headers};
    use crate::lsn::Lsn;
    use crate::position::{Ordinal, Place};
    use crate::record::{Record, Unpublishable};

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
            let why = Unpublishable { unread, ..Unpublishable::rejected(long.clone()) };
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
            let letter = headers(&content, &Cause { relay_id: "r", place, at, why: &why });

            let record = Record::dead_letter("d", &content, unread, "s", &letter, 0);

            assert_eq!(Kept::of(&content, unread), kept);
            assert!(record.size() < BYTES_MAX + 4_096, "{} {kept:?}", record.size());
            let header = |name: &str| letter.iter().find(|(found, _)| *found == name);
            let value = |name: &str| header(name).map(|(_, value)| value.as_str());
            assert_eq!(value("tailrace-dead-left-out"), left_out);
            assert_eq!(value("tailrace-dead-reason"), Some("rejected"));
            assert_eq!(value("tailrace-dead-at"), Some("1970-01-01T00:00:01.500000Z"));
            assert_eq!(value("tailrace-dead-bytes"), Some(&*bytes.to_string()));
            // A null value would be a tombstone.
            assert_eq!(record.value().map(<[u8]>::is_empty), Some(kept != Kept::All));
            assert_eq!(record.key().is_some(), kept != Kept::Nothing && content[..2] == *b"TR");
        }
    }
}
