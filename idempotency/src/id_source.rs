//! Where a message's id stands in a record that does not follow the wire contract.

use std::fmt;
use std::time::SystemTime;

use crate::error::{BoxError, Error, Kind};
use crate::message_id::MessageId;
use crate::position::Position;
use crate::record::Delivery;

/// Where the id stands in records without the header `ce_id`, such as those of a foreign producer.
///
/// The id must be the same at every delivery of a message and at every repetition by its producer: it is all by which
/// a duplicate is known.
///
/// ```
/// use tailrace_idempotency::IdFrom;
///
/// // The header that Debezium's outbox event router writes.
/// let debezium = IdFrom::header("id");
/// // A topic whose key is unique.
/// let by_key = IdFrom::function(|record| {
///     let key = record.key().ok_or("the record has no key")?;
///     Ok(std::str::from_utf8(key)?.parse()?)
/// });
/// ```
pub struct IdFrom(Source);

enum Source {
    Header(String),
    Function(Box<Function>),
}

type Function = dyn Fn(&Unread<'_>) -> Result<MessageId, BoxError> + Send + Sync;

impl IdFrom {
    /// A header, as text: a UUID, or any other text of at most 4,096 bytes without control characters, and without white
    /// space at its ends. What is no id halts the consumer and names the record.
    pub fn header(name: impl Into<String>) -> Self {
        Self(Source::Header(name.into()))
    }

    /// A function of the record. Its error halts the consumer and names the record.
    pub fn function(
        find: impl Fn(&Unread<'_>) -> Result<MessageId, BoxError> + Send + Sync + 'static,
    ) -> Self {
        Self(Source::Function(Box::new(find)))
    }

    pub(crate) fn find(&self, delivery: &Delivery) -> Result<MessageId, Error> {
        let found = match &self.0 {
            Source::Header(name) => match delivery.headers.get(name) {
                None => Err(Error::new(Kind::Record, format!("the header {name} is missing"))
                    .mended_by("every record needs its message id there or in the header ce_id")),
                Some(value) => match str::from_utf8(value) {
                    Ok(text) => text.parse(),
                    Err(error) => {
                        let text = format!("the header {name} is not UTF-8");
                        Err(Error::new(Kind::Record, text).caused_by(error))
                    }
                },
            },
            Source::Function(find) => find(&Unread(delivery)).map_err(|error| {
                Error::new(Kind::MessageId, "the function of id_from finds no message id")
                    .caused_by(error)
            }),
        };
        found.map_err(|error| error.at(&delivery.position))
    }
}

impl fmt::Debug for IdFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Header(name) => f.debug_tuple("Header").field(name).finish(),
            Source::Function(_) => f.write_str("Function"),
        }
    }
}

/// A record whose headers were not looked at yet.
#[derive(Debug)]
pub struct Unread<'a>(&'a Delivery);

impl Unread<'_> {
    /// Topic, partition and offset.
    pub fn position(&self) -> &Position {
        &self.0.position
    }

    /// The record's timestamp in Kafka.
    pub fn timestamp(&self) -> Option<SystemTime> {
        self.0.timestamp
    }

    /// The record's key.
    pub fn key(&self) -> Option<&[u8]> {
        self.0.key.as_deref()
    }

    /// The record's value; `None` is a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        self.0.payload.as_deref()
    }

    /// The first value of a header. Names are case-sensitive.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.0.headers.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::delivery;

    const ID: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";

    #[test]
    fn an_id_is_found_in_a_header_or_by_a_function() {
        let mut record = delivery(7);
        record.headers.push("id", Some(ID.as_bytes()));
        record.key = Some(b"order-7".to_vec());
        let by_key = |record: &Unread<'_>| {
            Ok(str::from_utf8(record.key().ok_or("no key")?)?.parse::<MessageId>()?)
        };

        let header = IdFrom::header("id").find(&record).unwrap();
        let function = IdFrom::function(by_key).find(&record).unwrap();

        assert_eq!(header.to_string(), ID);
        assert_eq!(function, "order-7".parse().unwrap());
    }

    #[test]
    fn what_finds_no_id_names_the_record() {
        let mut unreadable = delivery(7);
        unreadable.headers.push("id", Some(b"\xff"));
        let missing = IdFrom::header("id").find(&delivery(7)).unwrap_err().to_string();
        let unreadable = IdFrom::header("id").find(&unreadable).unwrap_err().to_string();
        let none = IdFrom::function(|_| Err("no".into())).find(&delivery(7)).unwrap_err();

        assert!(missing.contains("the header id is missing, at topic orders partition 2 offset 7"));
        assert!(unreadable.contains("not UTF-8"), "{unreadable}");
        assert!(none.to_string().contains("offset 7"), "{none}");
    }
}
