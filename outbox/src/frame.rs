//! The bytes of one message inside the write-ahead log.
//!
//! A frame is what `pg_logical_emit_message` carries: written by [`encode`], by the SQL
//! functions, or by any service in any language, and read by the relay with [`Frame::decode`].
//!
//! | part | bytes |
//! |---|---|
//! | magic | `TR` |
//! | version | 1 byte: 1 |
//! | flags | 1 byte: bit 0 says tombstone, the others are 0 |
//! | id | 16 |
//! | time | int8, microseconds since the Unix epoch |
//! | topic, key?, type, source, subject?, content type | an int4 length and so many bytes each |
//! | system attributes | an int4 count, then a name and a value each |
//! | user headers | an int4 count, then a name and a value each |
//! | payload? | an int4 length and so many bytes |
//!
//! Integers are big-endian and signed. Parts with a question mark may be null, which is the
//! length −1. Text is UTF-8; key and payload are any bytes. Nothing follows the payload.

use std::fmt;

use uuid::Uuid;

use crate::{Error, Message, rules};

/// The two bytes a frame begins with.
pub const MAGIC: [u8; 2] = *b"TR";

/// The version of the format.
pub const VERSION: u8 = 1;

/// The flag of a message without a payload.
const TOMBSTONE: u8 = 1;

/// Magic, version, flags, id and time.
const FIXED_BYTES: usize = 2 + 1 + 1 + 16 + 8;

/// A length or a count.
const INT4_BYTES: usize = 4;

/// The frame of a message.
pub fn encode(message: &Message) -> Vec<u8> {
    let mut out = Vec::with_capacity(encoded_len(message));
    encode_parts(&mut out, &message.parts(), message.attributes(), message.headers());
    out
}

/// What a frame is made of, but for attributes and headers; no payload is a tombstone.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the same parts, under the same names, as of a message")]
pub struct Parts<'a> {
    pub id: Uuid,
    pub time_micros: i64,
    pub topic: &'a str,
    pub key: Option<&'a [u8]>,
    pub r#type: &'a str,
    pub source: &'a str,
    pub subject: Option<&'a str>,
    pub content_type: &'a str,
    pub payload: Option<&'a [u8]>,
}

/// Appends the frame of a message that is kept in another form, such as a row of the journal.
/// Nothing is checked: see [`Frame::validate`].
///
/// # Panics
///
/// When a part is longer than 2 GB, the longest that a length can say.
pub fn encode_parts<'a>(
    out: &mut Vec<u8>,
    parts: &Parts<'_>,
    attributes: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
    headers: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
) {
    out.extend_from_slice(&MAGIC);
    out.push(VERSION);
    out.push(if parts.payload.is_none() { TOMBSTONE } else { 0 });
    out.extend_from_slice(parts.id.as_bytes());
    out.extend_from_slice(&parts.time_micros.to_be_bytes());
    put(out, Some(parts.topic.as_bytes()));
    put(out, parts.key);
    put(out, Some(parts.r#type.as_bytes()));
    put(out, Some(parts.source.as_bytes()));
    put(out, parts.subject.map(str::as_bytes));
    put(out, Some(parts.content_type.as_bytes()));
    put_pairs(out, attributes);
    put_pairs(out, headers);
    put(out, parts.payload);
}

/// How long [`encode`]'s answer will be.
pub(crate) fn encoded_len(message: &Message) -> usize {
    let text = [message.topic(), message.r#type(), message.source(), message.content_type()];
    let nullable = [message.key(), message.subject().map(str::as_bytes), message.payload()];
    let pairs = |(name, value): (&str, &str)| 2 * INT4_BYTES + name.len() + value.len();
    FIXED_BYTES
        + text.iter().map(|part| INT4_BYTES + part.len()).sum::<usize>()
        + nullable.iter().map(|part| INT4_BYTES + part.map_or(0, <[u8]>::len)).sum::<usize>()
        + INT4_BYTES
        + message.attributes().map(pairs).sum::<usize>()
        + INT4_BYTES
        + message.headers().map(pairs).sum::<usize>()
}

fn put(out: &mut Vec<u8>, part: Option<&[u8]>) {
    out.extend_from_slice(&part.map_or(-1, |bytes| int4(bytes.len())).to_be_bytes());
    out.extend_from_slice(part.unwrap_or_default());
}

fn put_pairs<'m>(out: &mut Vec<u8>, pairs: impl ExactSizeIterator<Item = (&'m str, &'m str)>) {
    out.extend_from_slice(&int4(pairs.len()).to_be_bytes());
    for (name, value) in pairs {
        put(out, Some(name.as_bytes()));
        put(out, Some(value.as_bytes()));
    }
}

fn int4(length: usize) -> i32 {
    i32::try_from(length).expect("a message is at most FRAME_BYTES_CEILING long")
}

/// A frame, read in place: every part is a slice of the bytes it was decoded from.
///
/// Decoding checks the form of the whole frame and allocates nothing. Whether the content can be
/// published, for anybody may have written it, is [`Frame::validate`]'s question.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    parts: Parts<'a>,
    attributes: Pairs<'a>,
    headers: Pairs<'a>,
}

impl<'a> Frame<'a> {
    /// Reads a frame.
    ///
    /// # Errors
    ///
    /// The first byte at which the bytes are no frame of this version: magic, version, an
    /// unknown flag, a length that is negative or runs past the end, text that is not UTF-8, a
    /// tombstone with a payload or a null payload without that flag, or bytes after the end.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let mut cursor = Cursor { rest: bytes, at: 0 };
        if cursor.array("magic")? != MAGIC {
            return Err(FrameError { at: 0, part: "magic", what: "is not TR" });
        }
        let [version] = cursor.array("version")?;
        if version != VERSION {
            return Err(FrameError { at: 2, part: "version", what: "is unknown" });
        }
        let [flags] = cursor.array("flag")?;
        if flags & !TOMBSTONE != 0 {
            return Err(FrameError { at: 3, part: "flag", what: "is unknown" });
        }
        let id = Uuid::from_bytes(cursor.array("id")?);
        let time_micros = i64::from_be_bytes(cursor.array("time")?);
        let topic = cursor.text("topic")?;
        let key = cursor.nullable("key")?;
        let r#type = cursor.text("type")?;
        let source = cursor.text("source")?;
        let subject = cursor.nullable_text("subject")?;
        let content_type = cursor.text("content type")?;
        let attributes = cursor.pairs("system attribute")?;
        let headers = cursor.pairs("user header")?;
        let payload_at = cursor.at;
        let payload = cursor.nullable("payload")?;
        let wrong = |at, what| Err(FrameError { at, part: "payload", what });
        match (flags & TOMBSTONE != 0, payload) {
            (true, Some(_)) => return wrong(payload_at, "is present in a tombstone"),
            (false, None) => return wrong(payload_at, "is null without the tombstone flag"),
            (true, None) | (false, Some(_)) => {}
        }
        if !cursor.rest.is_empty() {
            return wrong(cursor.at, "has bytes after it");
        }
        let parts =
            Parts { id, time_micros, topic, key, r#type, source, subject, content_type, payload };
        Ok(Frame { parts, attributes, headers })
    }

    /// Whether the message can be published, by the rules the builder keeps too.
    ///
    /// Topic, type, source, key of a tombstone, names and values of headers and attributes. Not
    /// asked are the size, which is the topic's affair, and whether a header stands twice, which
    /// harms nobody.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`](crate::Kind::Invalid): the first rule that is broken.
    pub fn validate(&self) -> Result<(), Error> {
        rules::parts(&self.parts)?;
        self.attributes.iter().try_for_each(|(name, value)| rules::attribute(name, value))?;
        self.headers.iter().try_for_each(|(name, value)| rules::user_header(name, value))
    }

    /// Everything but attributes and headers: what [`encode_parts`] takes.
    pub fn parts(&self) -> Parts<'a> {
        self.parts
    }

    /// The id.
    pub fn id(&self) -> Uuid {
        self.parts.id
    }

    /// When the message was written, in microseconds since the Unix epoch.
    pub fn time_micros(&self) -> i64 {
        self.parts.time_micros
    }

    /// The Kafka topic it goes to.
    pub fn topic(&self) -> &'a str {
        self.parts.topic
    }

    /// The key, which decides partition and order.
    pub fn key(&self) -> Option<&'a [u8]> {
        self.parts.key
    }

    /// What happened.
    pub fn r#type(&self) -> &'a str {
        self.parts.r#type
    }

    /// The producing service as a URI reference.
    pub fn source(&self) -> &'a str {
        self.parts.source
    }

    /// The aggregate it is about.
    pub fn subject(&self) -> Option<&'a str> {
        self.parts.subject
    }

    /// The media type of the payload.
    pub fn content_type(&self) -> &'a str {
        self.parts.content_type
    }

    /// The system attributes, in the order of the frame.
    pub fn attributes(&self) -> Pairs<'a> {
        self.attributes
    }

    /// The user headers, in the order of the frame.
    pub fn headers(&self) -> Pairs<'a> {
        self.headers
    }

    /// The payload; `None` is a tombstone.
    pub fn payload(&self) -> Option<&'a [u8]> {
        self.parts.payload
    }

    /// Whether the record's value is null.
    pub fn is_tombstone(&self) -> bool {
        self.parts.payload.is_none()
    }
}

/// Names and values inside a frame, read as they are asked for.
#[derive(Clone, Copy)]
pub struct Pairs<'a> {
    /// From the first name to the last value: checked when the frame was decoded.
    bytes: &'a [u8],
    count: usize,
}

impl<'a> Pairs<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The value of the first pair of this name.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.iter().find_map(|(found, value)| (found == name).then_some(value))
    }

    /// The pairs in the order of the frame.
    pub fn iter(&self) -> PairsIter<'a> {
        PairsIter { cursor: Cursor { rest: self.bytes, at: 0 }, left: self.count }
    }
}

impl fmt::Debug for Pairs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for Pairs<'a> {
    type Item = (&'a str, &'a str);
    type IntoIter = PairsIter<'a>;

    fn into_iter(self) -> PairsIter<'a> {
        self.iter()
    }
}

/// Iterates over [`Pairs`].
#[derive(Clone, Debug)]
pub struct PairsIter<'a> {
    cursor: Cursor<'a>,
    left: usize,
}

impl<'a> Iterator for PairsIter<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        Some(self.cursor.pair("pair").expect("pairs are checked when their frame is decoded"))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for PairsIter<'_> {}

/// The bytes are no frame: where, and why.
///
/// Names the part and never its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {part} {what}, at byte {at} of the frame")]
pub struct FrameError {
    at: usize,
    part: &'static str,
    what: &'static str,
}

impl FrameError {
    /// The byte of the frame, counted from 0, at which it goes wrong.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The part of the frame that is wrong.
    pub fn part(&self) -> &'static str {
        self.part
    }

    /// What is wrong with it.
    pub fn what(&self) -> &'static str {
        self.what
    }
}

/// Reads parts one after another and knows where it stands.
#[derive(Clone, Copy, Debug)]
struct Cursor<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn array<const N: usize>(&mut self, part: &'static str) -> Result<[u8; N], FrameError> {
        let (array, rest) = self.rest.split_first_chunk::<N>().ok_or(FrameError {
            at: self.at,
            part,
            what: "is cut short",
        })?;
        self.rest = rest;
        self.at += N;
        Ok(*array)
    }

    fn nullable(&mut self, part: &'static str) -> Result<Option<&'a [u8]>, FrameError> {
        let at = self.at;
        let length = i32::from_be_bytes(self.array(part)?);
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| FrameError {
            at,
            part,
            what: "has a negative length",
        })?;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(FrameError {
            at,
            part,
            what: "is longer than what is left",
        })?;
        self.rest = rest;
        self.at += length;
        Ok(Some(bytes))
    }

    fn nullable_text(&mut self, part: &'static str) -> Result<Option<&'a str>, FrameError> {
        let begin = self.at + INT4_BYTES;
        let Some(bytes) = self.nullable(part)? else { return Ok(None) };
        str::from_utf8(bytes).map(Some).map_err(|error| FrameError {
            at: begin + error.valid_up_to(),
            part,
            what: "is not UTF-8",
        })
    }

    fn text(&mut self, part: &'static str) -> Result<&'a str, FrameError> {
        let at = self.at;
        self.nullable_text(part)?.ok_or(FrameError { at, part, what: "is null" })
    }

    fn pair(&mut self, part: &'static str) -> Result<(&'a str, &'a str), FrameError> {
        Ok((self.text(part)?, self.text(part)?))
    }

    /// Checks every pair and remembers where they stand.
    fn pairs(&mut self, part: &'static str) -> Result<Pairs<'a>, FrameError> {
        let at = self.at;
        let count = i32::from_be_bytes(self.array(part)?);
        let count = usize::try_from(count).map_err(|_| FrameError {
            at,
            part,
            what: "has a negative count",
        })?;
        let before = *self;
        // The bytes bound the loop, whatever the count says: each pair takes eight or more.
        for _ in 0..count {
            self.pair(part)?;
        }
        let (bytes, _) = before.rest.split_at(self.at - before.at);
        Ok(Pairs { bytes, count })
    }
}

#[cfg(test)]
mod tests;
