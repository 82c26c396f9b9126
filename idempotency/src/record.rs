//! A record as Kafka delivered it, and what the wire contract says about it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tracing::Span;
use uuid::Uuid;

use crate::error::{Error, Kind};
use crate::id_source::IdFrom;
use crate::message_id::MessageId;
use crate::position::{Offset, Position};
use crate::trace;

/// The header with a message's place in its source.
pub(crate) const SEQUENCE: &str = "ce_sequence";

/// A record copied out of the client's memory, not yet looked at.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) position: Position,
    pub(crate) timestamp: Option<SystemTime>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) headers: Headers,
    pub(crate) payload: Option<Vec<u8>>,
}

impl Delivery {
    /// `milliseconds` are the record's timestamp as Kafka has it: negative where there is none.
    pub(crate) fn new(
        position: Position,
        milliseconds: i64,
        key: Option<Vec<u8>>,
        headers: Headers,
        payload: Option<Vec<u8>>,
    ) -> Self {
        Self { position, timestamp: system_time(milliseconds), key, headers, payload }
    }

    /// How much memory the record holds, near enough to bound a queue.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.key.as_ref().map_or(0, Vec::len)
            + self.payload.as_ref().map_or(0, Vec::len)
            + self.headers.text.len()
    }
}

fn system_time(milliseconds: i64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(u64::try_from(milliseconds).ok()?))
}

fn milliseconds(time: SystemTime) -> Option<i64> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok()
}

/// All headers of a record in one allocation: names and values one after another.
#[derive(Default)]
pub(crate) struct Headers {
    text: Vec<u8>,
    spans: Vec<(Range<usize>, Option<Range<usize>>)>,
}

impl Headers {
    /// Room for what most records have, so that it does not grow header by header.
    pub(crate) fn with_usual_room() -> Self {
        Self { text: Vec::with_capacity(256), spans: Vec::with_capacity(8) }
    }

    pub(crate) fn push(&mut self, name: &str, value: Option<&[u8]>) {
        let name = self.append(name.as_bytes());
        let value = value.map(|value| self.append(value));
        self.spans.push((name, value));
    }

    fn append(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.text.len();
        self.text.extend_from_slice(bytes);
        start..self.text.len()
    }

    fn iter(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.spans.iter().map(|(name, value)| {
            let name = self.text.get(name.clone()).and_then(|name| str::from_utf8(name).ok());
            let value = value.clone().and_then(|value| self.text.get(value));
            (name.unwrap_or_default(), value)
        })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        self.text.get(self.place(name)?)
    }

    /// Where the first value of a header stands.
    fn place(&self, name: &str) -> Option<Range<usize>> {
        let name = Some(name.as_bytes());
        let (_, value) =
            self.spans.iter().find(|(found, _)| self.text.get(found.clone()) == name)?;
        value.clone()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names only: values may be secrets.
        f.debug_list().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

/// A record that follows the wire contract.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) meta: Meta,
    pub(crate) payload: Option<Vec<u8>>,
}

impl Record {
    /// `id_from` finds the id where the header `ce_id` is missing.
    pub(crate) fn read(delivery: Delivery, id_from: Option<&IdFrom>) -> Result<Self, Error> {
        let message_id: MessageId = match (delivery.headers.get("ce_id"), id_from) {
            (None, Some(id_from)) => id_from.find(&delivery)?,
            _ => {
                let id = required(&delivery.headers, "ce_id").map_err(|error| {
                    error.at(&delivery.position).mended_by(
                        "every record needs its message id in the header ce_id, or where Consumer::id_from says",
                    )
                })?;
                id.parse().map_err(|error: Error| error.at(&delivery.position))?
            }
        };
        let Delivery { position, timestamp, key, headers, payload } = delivery;
        let message_type = required(&headers, "ce_type")
            .map_err(|error| {
                error.at(&position).mended_by("every record needs its type in the header ce_type")
            })?
            .into();
        let sequence = headers.place(SEQUENCE);
        Ok(Self {
            meta: Meta { position, timestamp, key, message_id, message_type, headers, sequence },
            payload,
        })
    }
}

/// A record as it is kept in a table.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) offset: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) message_id: Uuid,
    pub(crate) message_type: String,
    pub(crate) payload: Option<Vec<u8>>,
    pub(crate) header_names: Vec<String>,
    pub(crate) header_values: Vec<Option<Vec<u8>>>,
    pub(crate) written_at_ms: Option<i64>,
}

impl Record {
    /// The record as it was when it was set aside, but for what a person has changed.
    pub(crate) fn restored(stored: Stored, topic: Arc<str>, partition: i32) -> Result<Self, Error> {
        let position = Position { topic, partition, offset: Offset::new(stored.offset) };
        let message_id =
            stored.message_id.try_into().map_err(|error: Error| error.at(&position))?;
        let mut headers = Headers::default();
        for (name, value) in stored.header_names.iter().zip(&stored.header_values) {
            headers.push(name, value.as_deref());
        }
        let meta = Meta {
            position,
            timestamp: stored.written_at_ms.and_then(system_time),
            key: stored.key,
            message_id,
            message_type: stored.message_type.into(),
            sequence: headers.place(SEQUENCE),
            headers,
        };
        Ok(Self { meta, payload: stored.payload })
    }

    /// The form in which it is kept. Postgres stores no NUL in a text.
    pub(crate) fn stored(&self) -> Stored {
        let text = |text: &str| text.replace('\0', "\u{fffd}");
        let headers = || self.meta.headers();
        Stored {
            offset: self.meta.position.offset.get(),
            key: self.meta.key.clone(),
            message_id: *self.meta.message_id.as_uuid(),
            message_type: text(&self.meta.message_type),
            payload: self.payload.clone(),
            header_names: headers().map(|(name, _)| text(name)).collect(),
            header_values: headers().map(|(_, value)| value.map(<[u8]>::to_vec)).collect(),
            written_at_ms: self.meta.timestamp.and_then(milliseconds),
        }
    }
}

fn required<'a>(headers: &'a Headers, name: &'static str) -> Result<&'a str, Error> {
    match headers.get(name) {
        None => Err(Error::new(Kind::Record, format!("the header {name} is missing"))),
        Some(value) => str::from_utf8(value).map_err(|error| {
            Error::new(Kind::Record, format!("the header {name} is not UTF-8")).caused_by(error)
        }),
    }
}

/// What a record says about itself besides its payload.
#[derive(Debug)]
pub struct Meta {
    position: Position,
    timestamp: Option<SystemTime>,
    key: Option<Vec<u8>>,
    message_id: MessageId,
    message_type: Box<str>,
    headers: Headers,
    /// Where the header of this name stands among them: asked for more than once for each record.
    sequence: Option<Range<usize>>,
}

impl Meta {
    /// Topic, partition and offset.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The message's id: the same at every delivery of the message.
    pub fn message_id(&self) -> MessageId {
        self.message_id
    }

    /// The message's type, for example `order.placed.v1`.
    pub fn message_type(&self) -> &str {
        &self.message_type
    }

    /// The ordering key's bytes; records of one key arrive in order.
    pub fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    /// The record's timestamp in Kafka: when the message was written, unless the topic is set to the
    /// broker's time.
    pub fn timestamp(&self) -> Option<SystemTime> {
        self.timestamp
    }

    /// The URI reference of the producing service.
    pub fn source(&self) -> Option<&str> {
        self.text("ce_source")
    }

    /// The time of the message where its producer sends it, in RFC 3339.
    pub fn time(&self) -> Option<&str> {
        self.text("ce_time")
    }

    /// What the message is about, for example `order-42`.
    pub fn subject(&self) -> Option<&str> {
        self.text("ce_subject")
    }

    /// `<relay id>:<position>`: where the message stands in its source; absent on what was published again.
    pub fn sequence(&self) -> Option<&str> {
        let value = self.headers.text.get(self.sequence.clone()?)?;
        str::from_utf8(value).ok()
    }

    /// Whether it has a [`sequence`](Self::sequence).
    pub(crate) fn has_sequence(&self) -> bool {
        self.sequence.is_some()
    }

    /// The first value of a header. Names are case-sensitive.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name)
    }

    /// All headers as delivered, in their order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.headers.iter()
    }

    /// The W3C trace context of the span that wrote the message.
    pub(crate) fn trace(&self) -> impl Iterator<Item = (&str, &str)> {
        [trace::PARENT, trace::STATE].into_iter().filter_map(|name| Some((name, self.text(name)?)))
    }

    /// What a message that this record causes has to carry: see [`Cx::cause`](crate::Cx::cause).
    pub fn cause(&self) -> Vec<(String, String)> {
        self.cause_in(&Span::current())
    }

    /// The same from what happens in this span.
    pub(crate) fn cause_in(&self, span: &Span) -> Vec<(String, String)> {
        let id = self.message_id.to_string();
        let correlation = self.text("ce_correlationid").map_or_else(|| id.clone(), str::to_owned);
        let named = || self.trace().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let trace = trace::instead_of(self.text(trace::PARENT), span);
        let trace = trace.unwrap_or_else(|| named().collect());
        [("ce_correlationid".to_owned(), correlation), ("ce_causationid".to_owned(), id)]
            .into_iter()
            .chain(trace)
            .collect()
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.header(name).and_then(|value| str::from_utf8(value).ok())
    }
}

#[cfg(test)]
pub(crate) mod tests;
