//! What is produced: slices of the receive buffer, in the shape of the wire contract.

use tailrace_outbox::frame::Frame;

use crate::checkpoint;
use crate::error::{Error, Kind};
use crate::position::{Place, Position};

/// A record as it will be: nothing in it is copied.
pub struct Record<'a> {
    frame: Frame<'a>,
    sequence: &'a str,
}

impl<'a> Record<'a> {
    /// The record of one message; `sequence` is its `ce_sequence`.
    pub(crate) fn new(frame: Frame<'a>, sequence: &'a str) -> Self {
        Record { frame, sequence }
    }

    /// Where it goes.
    pub fn topic(&self) -> &'a str {
        self.frame.topic()
    }

    /// Records of one key keep their order.
    pub fn key(&self) -> Option<&'a [u8]> {
        self.frame.key()
    }

    /// The payload; `None` is a tombstone.
    pub fn value(&self) -> Option<&'a [u8]> {
        self.frame.payload()
    }

    /// When the message was written, in milliseconds since the Unix epoch.
    pub fn timestamp_ms(&self) -> i64 {
        self.frame.time_micros().div_euclid(1_000)
    }

    /// Headers of the wire contract, then what the writer gave, in order.
    pub fn each_header(&self, mut header: impl FnMut(&str, &[u8])) {
        let mut id = [0; 36];
        header("ce_specversion", b"1.0");
        header("ce_id", self.frame.id().hyphenated().encode_lower(&mut id).as_bytes());
        header("ce_type", self.frame.r#type().as_bytes());
        header("ce_source", self.frame.source().as_bytes());
        header("content-type", self.frame.content_type().as_bytes());
        if let Some(subject) = self.frame.subject() {
            header("ce_subject", subject.as_bytes());
        }
        header("ce_sequence", self.sequence.as_bytes());
        for (name, value) in self.frame.attributes().iter().chain(self.frame.headers().iter()) {
            header(name, value.as_bytes());
        }
    }

    /// Bytes that count against the bounds of a batch: key, value and what the headers cost.
    pub fn size(&self) -> usize {
        let mut size = self.key().map_or(0, <[u8]>::len) + self.value().map_or(0, <[u8]>::len);
        self.each_header(|name, value| size += name.len() + value.len());
        size
    }
}

impl std::fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A key or a payload may be a secret.
        f.debug_struct("Record")
            .field("topic", &self.topic())
            .field("id", &self.frame.id())
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

/// Decodes a frame found at `position`, and refuses what Kafka could never take.
pub(crate) fn decode<'a>(content: &'a [u8], place: Place) -> Result<Frame<'a>, Error> {
    let frame = Frame::decode(content).map_err(|error| {
        let text = format!("the message at {place} is not a frame: {error}");
        skippable(Kind::Malformed, text, place).caused_by(error)
    })?;
    // Any SQL can write a frame, so what the builder checks is checked again.
    frame.validate().map_err(|error| {
        let text = format!("the message at {place} can not be published: {error}");
        skippable(Kind::Rejected, text, place).caused_by(error)
    })?;
    if checkpoint::is_topic(frame.topic()) {
        let text = format!("the message at {place} is for a topic that holds a relay's checkpoint");
        return Err(skippable(Kind::Rejected, text, place));
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
    use std::fmt::Write as _;

    into.clear();
    write!(into, "{relay_id}:{}", position.sequence()).expect("a string takes any text");
}
