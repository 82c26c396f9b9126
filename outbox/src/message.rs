//! The message a service writes, and the way to build one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use uuid::Uuid;

use crate::codec::{BoxError, Codec, Json};
use crate::frame::Parts;
use crate::{Error, Kind, frame, header, rules};

/// The largest frame unless the builder says otherwise: 960 KiB.
///
/// The record that comes of it is a little larger than the frame, by what the relay adds, and
/// still fits a producer's `message.max.bytes` (1,000,000 in librdkafka) and a broker's
/// `message.max.bytes` (1,048,588) as they are by default.
pub const FRAME_BYTES_MAX: usize = 960 * 1024;

/// No frame is larger than this, whatever the builder says: 1,000,000,000 bytes.
///
/// Above it Postgres can not hand a logical message to its walsender (an allocation ends at
/// 1 GiB), and librdkafka's `message.max.bytes` goes no higher.
pub const FRAME_BYTES_CEILING: usize = 1_000_000_000;

const JSON: &str = "application/json";

/// What a service writes through the outbox: id, topic, key, type, headers, payload.
///
/// Made by [`Message::builder`], which checks every rule; a `Message` that exists can be
/// published. It is not changed afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    id: Uuid,
    time_micros: i64,
    topic: String,
    key: Option<Vec<u8>>,
    r#type: String,
    source: String,
    subject: Option<String>,
    content_type: String,
    attributes: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    payload: Option<Vec<u8>>,
}

impl Message {
    /// Begins a message for `topic`, of a type such as `order.placed.v1`.
    pub fn builder(topic: impl Into<String>, r#type: impl Into<String>) -> Builder {
        Builder {
            id: None,
            time_micros: None,
            topic: topic.into(),
            key: None,
            r#type: r#type.into(),
            source: None,
            subject: None,
            content_type: None,
            codec_type: None,
            attributes: Vec::new(),
            headers: Vec::new(),
            body: Body::Missing,
            frame_bytes_max: FRAME_BYTES_MAX,
        }
    }

    /// The id: minted here, the same on every publication.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// When the message was built, in microseconds since the Unix epoch.
    pub fn time_micros(&self) -> i64 {
        self.time_micros
    }

    /// The Kafka topic it goes to.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The key, which decides partition and order.
    pub fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    /// What happened, for example `order.placed.v1`.
    pub fn r#type(&self) -> &str {
        &self.r#type
    }

    /// The producing service as a URI reference, for example `/orders`.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The aggregate it is about, for example `order-42`.
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// The media type of the payload.
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// The system attributes (correlation, causation, trace), in the order of their names.
    pub fn attributes(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        pairs(&self.attributes)
    }

    /// The user headers, in the order of their names.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        pairs(&self.headers)
    }

    /// The payload; `None` is a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        self.payload.as_deref()
    }

    /// Whether the record's value will be null, which deletes its key from a compacted topic.
    pub fn is_tombstone(&self) -> bool {
        self.payload.is_none()
    }

    /// Everything but attributes and headers.
    pub(crate) fn parts(&self) -> Parts<'_> {
        Parts {
            id: self.id,
            time_micros: self.time_micros,
            topic: &self.topic,
            key: self.key(),
            r#type: &self.r#type,
            source: &self.source,
            subject: self.subject(),
            content_type: &self.content_type,
            payload: self.payload(),
        }
    }

    /// What a frame says.
    #[cfg(feature = "testing")]
    pub(crate) fn of_frame(frame: &frame::Frame<'_>) -> Self {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Message {
            id: frame.id(),
            time_micros: frame.time_micros(),
            topic: frame.topic().to_owned(),
            key: frame.key().map(<[u8]>::to_vec),
            r#type: frame.r#type().to_owned(),
            source: frame.source().to_owned(),
            subject: frame.subject().map(str::to_owned),
            content_type: frame.content_type().to_owned(),
            attributes: frame.attributes().iter().map(owned).collect(),
            headers: frame.headers().iter().map(owned).collect(),
            payload: frame.payload().map(<[u8]>::to_vec),
        }
    }

    fn validate(&self, frame_bytes_max: usize) -> Result<(), Error> {
        rules::parts(&self.parts())?;
        self.attributes().try_for_each(|(name, value)| rules::attribute(name, value))?;
        self.headers().try_for_each(|(name, value)| rules::user_header(name, value))?;
        if let Some(name) = repeated(&self.headers) {
            return Err(Error::invalid(format!("header {name:?} is given twice")));
        }
        let limit = frame_bytes_max.min(FRAME_BYTES_CEILING);
        let bytes = frame::encoded_len(self);
        if bytes > limit {
            return Err(Error::new(
                Kind::TooLarge,
                format!("the message has {bytes} bytes, and its limit is {limit}"),
            )
            .mended_by(
                "store large content elsewhere and send a reference, or raise the limit with \
                 frame_bytes_max together with max.message.bytes of the topic and \
                 message.max.bytes of the relay's producer",
            ));
        }
        Ok(())
    }
}

/// Collects the parts of a [`Message`].
///
/// A part given twice counts as given last; only a header given twice is an error. Nothing is
/// checked before [`Builder::build`].
#[derive(Debug)]
#[must_use = "a builder makes no message before build"]
pub struct Builder {
    id: Option<Uuid>,
    time_micros: Option<i64>,
    topic: String,
    key: Option<Vec<u8>>,
    r#type: String,
    source: Option<String>,
    subject: Option<String>,
    content_type: Option<String>,
    /// The one that goes with the payload, unless another is given.
    codec_type: Option<&'static str>,
    attributes: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    body: Body,
    frame_bytes_max: usize,
}

#[derive(Debug)]
enum Body {
    Missing,
    Bytes(Vec<u8>),
    Tombstone,
    Unencodable(BoxError),
}

impl Body {
    fn encoded<C: Codec<T>, T: ?Sized>(payload: &T) -> Self {
        match C::encode(payload) {
            Ok(bytes) => Body::Bytes(bytes),
            Err(error) => Body::Unencodable(error),
        }
    }
}

impl Builder {
    /// The producing service as a URI reference, for example `/orders`. Required.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The key: records of one key go to one partition and stay in order. Default: none.
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The aggregate the message is about, for example `order-42`. Default: none.
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Adds a header. Names are unique and not reserved ([`header::is_reserved`]).
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The payload as JSON, with content type `application/json` unless another one is given.
    ///
    /// A value that does not serialize is an error of [`Builder::build`].
    pub fn json<T: Serialize + ?Sized>(mut self, payload: &T) -> Self {
        self.body = Body::encoded::<Json, T>(payload);
        self.codec_type = None;
        self
    }

    /// The payload as the codec `C` writes it, and the content type that goes with it.
    ///
    /// A value that does not encode is an error of [`Builder::build`].
    pub fn encoded<C: Codec<T>, T: ?Sized>(mut self, payload: &T) -> Self {
        self.body = Body::encoded::<C, T>(payload);
        self.content_type = None;
        self.codec_type = Some(C::CONTENT_TYPE);
        self
    }

    /// The payload as bytes. Say what they are with [`Builder::content_type`].
    pub fn payload(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.body = Body::Bytes(payload.into());
        self.codec_type = None;
        self
    }

    /// A null payload: on a compacted topic it deletes what has this key. Needs a key.
    ///
    /// This is the only way to a null payload, so that none comes about by accident.
    pub fn tombstone(mut self) -> Self {
        self.body = Body::Tombstone;
        self.codec_type = None;
        self
    }

    /// The media type of the payload. Default: `application/json`.
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// The conversation the message belongs to: the id of its first message. Default: none.
    pub fn correlation_id(self, id: impl Into<String>) -> Self {
        self.attribute(header::CORRELATION_ID, id)
    }

    /// What caused the message, as a handler's context gives it.
    ///
    /// The pairs are system attributes, and of those only [`header::OF_CAUSE`]: correlation and
    /// causation id, and the trace context. Any other name is an error of [`Builder::build`].
    ///
    /// A value that no attribute may have, because it is empty or has a control character, is
    /// left out: it came with a record from elsewhere, and a trace that ends is a smaller loss
    /// than a message that can never be written.
    pub fn caused_by<N, V>(self, cause: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: Into<String>,
        V: Into<String>,
    {
        cause.into_iter().fold(self, |builder, (name, value)| {
            let value = value.into();
            if rules::is_attribute_text(&value) { builder.attribute(name, value) } else { builder }
        })
    }

    /// The saga that the message is a command or a reply of, in the names of [`header::OF_SAGA`].
    ///
    /// Any other name, and a value that no attribute may have, is an error of [`Builder::build`].
    pub fn of_saga<N, V>(self, attributes: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: Into<String>,
        V: Into<String>,
    {
        attributes.into_iter().fold(self, |builder, (name, value)| builder.attribute(name, value))
    }

    /// The id. Default: a new UUID v7, later than every other one minted by this process.
    ///
    /// Give it where the message repeats one that exists: an id is minted once.
    pub fn id(mut self, id: Uuid) -> Self {
        self.id = Some(id);
        self
    }

    /// The time in microseconds since the Unix epoch. Default: when [`Builder::build`] is called.
    pub fn time_micros(mut self, time_micros: i64) -> Self {
        self.time_micros = Some(time_micros);
        self
    }

    /// The largest frame accepted, in bytes; never above [`FRAME_BYTES_CEILING`].
    ///
    /// Raise it only together with `max.message.bytes` of the topic and `message.max.bytes` of
    /// the relay's producer: what they refuse ends as a dead letter, after the commit. Default:
    /// [`FRAME_BYTES_MAX`].
    pub fn frame_bytes_max(mut self, bytes: usize) -> Self {
        self.frame_bytes_max = bytes;
        self
    }

    /// Checks every rule and makes the message.
    ///
    /// # Errors
    ///
    /// The first fault: [`Kind::Invalid`] for a missing or malformed part, [`Kind::TooLarge`]
    /// for the size.
    pub fn build(mut self) -> Result<Message, Error> {
        let source = self.source.ok_or_else(|| {
            Error::invalid("the message has no source")
                .mended_by("name the producing service, for example .source(\"/orders\")")
        })?;
        let payload = match self.body {
            Body::Bytes(bytes) => Some(bytes),
            Body::Tombstone => None,
            Body::Missing => {
                return Err(Error::invalid("the message has no payload").mended_by(
                    "give one with json or payload, or ask for a null one with tombstone",
                ));
            }
            Body::Unencodable(error) => {
                return Err(Error::invalid("the payload does not encode").caused_by(error));
            }
        };
        let known =
            |name: &str| header::OF_CAUSE.contains(&name) || header::OF_SAGA.contains(&name);
        if let Some((name, _)) = self.attributes.iter().find(|(name, _)| !known(name)) {
            return Err(Error::invalid(format!(
                "{name:?} is not an attribute of a cause or a saga"
            )));
        }
        // One message has one frame: in the order of names, writers in all languages agree.
        self.headers.sort_by(|(one, _), (other, _)| one.cmp(other));
        self.attributes.sort_by(|(one, _), (other, _)| one.cmp(other));
        let message = Message {
            id: self.id.unwrap_or_else(Uuid::now_v7),
            time_micros: self.time_micros.unwrap_or_else(|| micros(SystemTime::now())),
            topic: self.topic,
            key: self.key,
            r#type: self.r#type,
            source,
            subject: self.subject,
            content_type: self
                .content_type
                .unwrap_or_else(|| self.codec_type.unwrap_or(JSON).to_owned()),
            attributes: self.attributes,
            headers: self.headers,
            payload,
        };
        message.validate(self.frame_bytes_max)?;
        Ok(message)
    }

    #[cfg(feature = "opentelemetry")]
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.attributes.retain(|(given, _)| given != name);
        self
    }

    fn attribute(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let name = name.into();
        self.attributes.retain(|(given, _)| *given != name);
        self.attributes.push((name, value.into()));
        self
    }
}

fn pairs(list: &[(String, String)]) -> impl ExactSizeIterator<Item = (&str, &str)> {
    list.iter().map(|(name, value)| (name.as_str(), value.as_str()))
}

/// A name that stands twice in a sorted list.
fn repeated(sorted: &[(String, String)]) -> Option<&str> {
    sorted.array_windows().find_map(|[(one, _), (next, _)]| (one == next).then_some(one.as_str()))
}

/// Microseconds since the Unix epoch, negative before it.
fn micros(time: SystemTime) -> i64 {
    let whole = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => whole(since),
        Err(before) => -whole(before.duration()),
    }
}

#[cfg(test)]
mod tests;
