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

/// The topic of a relay's dead letters, unless it is given another.
pub(crate) fn topic(relay_id: &str) -> String {
    format!("tailrace.dead-letter.{relay_id}")
}

/// The headers that a dead letter has beside those of its message, of which so many bytes were left
/// out.
pub(crate) fn headers(
    content: &[u8],
    unread: usize,
    place: Place,
    why: &str,
) -> Vec<(&'static str, String)> {
    let mut headers = vec![(REASON, why.to_owned()), (PLACE, place.to_string())];
    let frame = Frame::decode(content).ok();
    if let Some(frame) = &frame {
        headers.push((TOPIC, frame.topic().to_owned()));
        headers.push((TIMESTAMP, frame.time_micros().div_euclid(1_000).to_string()));
    }
    let bytes = frame.map_or(content.len(), |frame| frame.payload().map_or(0, <[u8]>::len));
    headers.push((BYTES, (bytes + unread).to_string()));
    headers
}
