//! What is produced: slices of the receive buffer, in the shape of the wire contract.

use tailrace_outbox::frame::Frame;

use crate::checkpoint;
use crate::dead_letter::Kept;
use crate::error::{Error, Kind};
use crate::position::{Place, Position};

/// Names of the headers that every message has, and those values that are always as long.
const FIXED_HEADER_BYTES: usize =
    "ce_specversion1.0ce_idce_typece_sourcecontent-type".len() + uuid::fmt::Hyphenated::LENGTH;

const SEQUENCE: &str = "ce_sequence";

/// The header of what is published again.
const REPLAY: (&str, &str) = ("ce_replay", "true");

/// A record as it will be: nothing in it is copied.
pub struct Record<'a> {
    topic: &'a str,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    timestamp_ms: i64,
    /// The message, unless its bytes are no frame.
    frame: Option<Frame<'a>>,
    /// The header that says where it comes from: its place in the source, or a replay.
    origin: (&'static str, &'a str),
    /// Of a dead letter: why it is one, and what it was.
    letter: &'a [(&'static str, String)],
    size: usize,
}

impl<'a> Record<'a> {
    /// The record of one message; `sequence` is its `ce_sequence`.
    pub(crate) fn new(frame: Frame<'a>, sequence: &'a str) -> Self {
        Record {
            topic: frame.topic(),
            key: frame.key(),
            value: frame.payload(),
            timestamp_ms: frame.time_micros().div_euclid(1_000),
            frame: Some(frame),
            origin: (SEQUENCE, sequence),
            letter: &[],
            size: 0,
        }
        .sized()
    }

    /// The record of a message that is published again, to its own topic or another.
    pub(crate) fn replayed(frame: Frame<'a>, topic: Option<&'a str>) -> Self {
        let record = Record::new(frame, "");
        Record { topic: topic.unwrap_or(record.topic), origin: REPLAY, ..record }.sized()
    }

    /// The dead letter of a message that can not be published, in the topic for them: the record
    /// that it would have been, as far as it can be read and is not too long, with the headers of
    /// `letter`. Behind `content` so many bytes were not read.
    pub(crate) fn dead_letter(
        topic: &'a str,
        content: &'a [u8],
        unread: usize,
        sequence: &'a str,
        letter: &'a [(&'static str, String)],
        now_ms: i64,
    ) -> Self {
        let kept = Kept::of(content, unread);
        let frame = Frame::decode(content).ok();
        let value = frame.as_ref().map_or(Some(content), Frame::payload);
        let frame = frame.filter(|_| kept != Kept::Nothing);
        Record {
            topic,
            key: frame.as_ref().and_then(Frame::key),
            // Null would be a tombstone.
            value: if kept == Kept::All { value } else { Some(&[]) },
            // The message's own time may be what is wrong with it.
            timestamp_ms: now_ms,
            frame,
            origin: (SEQUENCE, sequence),
            letter,
            size: 0,
        }
        .sized()
    }

    /// The message, unless its bytes are no frame.
    pub(crate) fn frame(&self) -> Option<&Frame<'a>> {
        self.frame.as_ref()
    }

    fn sized(mut self) -> Self {
        let pair = |(name, value): (&str, &str)| name.len() + value.len();
        let frame = self.frame.as_ref().map_or(0, |frame| {
            FIXED_HEADER_BYTES
                + frame.r#type().len()
                + frame.source().len()
                + frame.content_type().len()
                + frame.subject().map_or(0, |subject| "ce_subject".len() + subject.len())
                + frame.attributes().iter().map(pair).sum::<usize>()
                + frame.headers().iter().map(pair).sum::<usize>()
        });
        let letter = self.letter.iter().map(|(name, value)| pair((name, value))).sum::<usize>();
        self.size = self.key.map_or(0, <[u8]>::len)
            + self.value.map_or(0, <[u8]>::len)
            + pair(self.origin)
            + frame
            + letter;
        self
    }

    /// Where it goes.
    pub fn topic(&self) -> &'a str {
        self.topic
    }

    /// Whether it stands for a message that can not be published.
    pub fn is_dead_letter(&self) -> bool {
        !self.letter.is_empty()
    }

    /// Records of one key keep their order.
    pub fn key(&self) -> Option<&'a [u8]> {
        self.key
    }

    /// The payload; `None` is a tombstone.
    pub fn value(&self) -> Option<&'a [u8]> {
        self.value
    }

    /// When the message was written, in milliseconds since the Unix epoch.
    pub fn timestamp_ms(&self) -> i64 {
        self.timestamp_ms
    }

    /// Headers of the wire contract, then what the writer gave, in order; those of a dead letter
    /// last.
    pub fn each_header(&self, mut header: impl FnMut(&str, &[u8])) {
        if let Some(frame) = &self.frame {
            let mut id = [0; 36];
            header("ce_specversion", b"1.0");
            header("ce_id", frame.id().hyphenated().encode_lower(&mut id).as_bytes());
            header("ce_type", frame.r#type().as_bytes());
            header("ce_source", frame.source().as_bytes());
            header("content-type", frame.content_type().as_bytes());
            if let Some(subject) = frame.subject() {
                header("ce_subject", subject.as_bytes());
            }
        }
        let (name, value) = self.origin;
        header(name, value.as_bytes());
        if let Some(frame) = &self.frame {
            for (name, value) in frame.attributes().iter().chain(frame.headers().iter()) {
                header(name, value.as_bytes());
            }
        }
        for (name, value) in self.letter {
            header(name, value.as_bytes());
        }
    }

    /// Bytes that count against the bounds of a batch: key, value and headers.
    pub fn size(&self) -> usize {
        self.size
    }
}

impl std::fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A key or a payload may be a secret.
        f.debug_struct("Record")
            .field("topic", &self.topic())
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

/// Why a message can not be published.
#[derive(Debug)]
pub(crate) struct Unpublishable {
    pub(crate) kind: Kind,
    pub(crate) why: String,
    /// How many of its bytes were not kept.
    pub(crate) unread: usize,
}

impl Unpublishable {
    pub(crate) fn rejected(why: String) -> Self {
        Unpublishable { kind: Kind::Rejected, why, unread: 0 }
    }
}

/// Decodes a frame, and refuses what Kafka could never take.
pub(crate) fn decode(content: &[u8]) -> Result<Frame<'_>, Unpublishable> {
    let malformed = |error| Unpublishable {
        kind: Kind::Malformed,
        why: format!("its bytes are not a frame: {error}"),
        unread: 0,
    };
    let frame = Frame::decode(content).map_err(malformed)?;
    // Any SQL can write a frame, so what the builder checks is checked again.
    frame.validate().map_err(|error| Unpublishable::rejected(error.to_string()))?;
    if checkpoint::is_topic(frame.topic()) {
        return Err(Unpublishable::rejected("its topic holds a relay's checkpoint".to_owned()));
    }
    Ok(frame)
}

/// An error about one message, with the operator's way past it.
pub(crate) fn skippable(kind: Kind, text: String, place: Place) -> Error {
    Error::new(kind, text).hint(format!(
        "nothing is lost: the slot keeps it; mend its writer, then go past this one message by \
         running with --skip {place}"
    ))
}

/// The `ce_sequence` of a message: relay id and position.
pub(crate) fn write_sequence(into: &mut String, relay_id: &str, position: &Position) {
    into.clear();
    into.push_str(relay_id);
    into.push(':');
    position.push_sequence(into);
}

#[cfg(test)]
mod tests {
    use tailrace_outbox::Message;
    use tailrace_outbox::frame::{Frame, encode};

    use super::Record;

    #[test]
    fn the_size_is_that_of_key_value_and_headers() {
        let builder = Message::builder("t", "t.v1").source("/t").key("key").payload("12345");
        let message = builder.subject("s").header("a", "b").correlation_id("c").build().unwrap();
        let frame = encode(&message);
        let frame_of = || Frame::decode(&frame).unwrap();
        let letter = [("why", "so".to_owned())];
        for record in [
            Record::new(frame_of(), "relay:1"),
            Record::replayed(frame_of(), Some("elsewhere")),
            Record::dead_letter("d", &frame, 0, "relay:1", &letter, 0),
            Record::dead_letter("d", b"no frame", 0, "relay:1", &letter, 0),
        ] {
            let mut size = record.key().map_or(0, <[u8]>::len);
            size += record.value().map_or(0, <[u8]>::len);
            record.each_header(|name, value| size += name.len() + value.len());

            assert_eq!(record.size(), size, "{record:?}");
        }
    }
}
