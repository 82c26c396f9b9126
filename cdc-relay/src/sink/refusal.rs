//! A record that Kafka refused for good, and the message that it was.

use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::types::RDKafkaErrorCode;

use super::cluster::Cluster;
use super::right::Right;
use crate::error::{Error, Kind, RefusedRecord};
use crate::position::Place;
use crate::publisher::unix_ms;

/// What a delivery report says of a refused record.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    topic: String,
    code: RDKafkaErrorCode,
    bytes: usize,
    /// How far this record is from what the broker takes, where the code tells what to look at.
    suspicion: u64,
    /// The message's place in the source, from its own `ce_sequence`.
    place: Option<Place>,
}

impl Refusal {
    /// The client's report keeps the time of a refused record to itself, so it is given beside.
    pub(super) fn of(
        record: &BorrowedMessage<'_>,
        timestamp_ms: i64,
        code: RDKafkaErrorCode,
    ) -> Self {
        let header = |name: &str| {
            let headers = record.headers()?;
            headers.iter().find(|header| header.key == name)?.value
        };
        let bytes = record.payload_len() + record.key_len();
        let suspicion = match code {
            RDKafkaErrorCode::MessageSizeTooLarge => bytes as u64,
            RDKafkaErrorCode::InvalidTimestamp => {
                let now_ms = i64::try_from(unix_ms()).unwrap_or(i64::MAX);
                timestamp_ms.abs_diff(now_ms)
            }
            // A compacted topic takes no record without a key.
            RDKafkaErrorCode::InvalidRecord => u64::from(record.key().is_none()),
            _ => 0,
        };
        Refusal {
            topic: record.topic().to_owned(),
            code,
            bytes,
            suspicion,
            place: header("ce_sequence").and_then(Place::of_sequence),
        }
    }

    /// Whether it is likelier the cause than another one. A batch is refused as a whole, so the
    /// records around the bad one are reported too.
    pub(super) fn tells_more_than(&self, other: &Refusal) -> bool {
        self.code == other.code && self.suspicion > other.suspicion
    }

    /// The error that follows, naming the message and the way past it.
    pub(super) fn error(&self, cluster: &Cluster) -> Error {
        let Refusal { topic, code, bytes, place, .. } = self;
        let message = match place {
            Some(place) => format!("the message at {place} ({bytes} bytes, topic {topic:?})"),
            None => format!("a record of {bytes} bytes of topic {topic:?}"),
        };
        let brokers = cluster.brokers();
        let kind = match cluster.code_error("producing", *code).kind() {
            Kind::Permission => Kind::Permission,
            _ => Kind::Rejected,
        };
        let right = Right::on_topic("Write", topic);
        let why = match kind {
            Kind::Permission => right.error(cluster, "producing", *code).to_string(),
            _ => format!("kafka refused it: {code}"),
        };
        let text = match kind {
            Kind::Permission => {
                format!("kafka at {brokers} refused {message}: {}", right.lacking(cluster))
            }
            _ => format!("kafka at {brokers} refused {message}: {code}"),
        };
        let mut error = Error::new(kind, text);
        if let Some(place) = *place {
            error = error.with_refused(RefusedRecord {
                place: Some(place),
                topic: topic.clone(),
                whole_topic: kind == Kind::Permission,
                why,
            });
        }
        let past = place.map(|place| format!("; or go past it by running with --skip {place}"));
        let past = past.unwrap_or_default();
        error.hint(match code {
            RDKafkaErrorCode::MessageSizeTooLarge => format!(
                "nothing is lost; raise max.message.bytes of the topic, or, when each message is \
                 below it, lower batch.size by --kafka-property{past}"
            ),
            RDKafkaErrorCode::InvalidTimestamp => format!(
                "nothing is lost; the writer's clock was wrong: widen the topic's \
                 message.timestamp.after.max.ms or message.timestamp.before.max.ms{past}"
            ),
            RDKafkaErrorCode::InvalidRecord => format!(
                "nothing is lost; a compacted topic takes no record without a key, or an \
                 interceptor of the brokers refused it{past}"
            ),
            _ if kind == Kind::Permission => {
                format!("nothing is lost; {}{past}", right.command(cluster))
            }
            _ => format!("nothing is lost: the slot keeps it{past}"),
        })
    }
}
