//! Calls that go past the Kafka client's Rust wrapper.
//!
//! The wrapper hands over one record per call, each with an allocation and a lock of its own, and panics at a
//! header name that is not UTF-8; and it does not know topic ids. (`rdkafka.h` of librdkafka:
//! `rd_kafka_consume_batch_queue`, `rd_kafka_queue_forward`, `rd_kafka_queue_cb_event_enable`,
//! `rd_kafka_DescribeTopics`, `rd_kafka_get_watermark_offsets`.)

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::thread::Thread;
use std::time::Duration;

use rdkafka::bindings::{
    rd_kafka_AdminOptions_destroy, rd_kafka_AdminOptions_new,
    rd_kafka_AdminOptions_set_request_timeout, rd_kafka_DescribeTopics,
    rd_kafka_DescribeTopics_result_t, rd_kafka_DescribeTopics_result_topics,
    rd_kafka_TopicCollection_destroy, rd_kafka_TopicCollection_of_topic_names,
    rd_kafka_TopicDescription_error, rd_kafka_TopicDescription_name,
    rd_kafka_TopicDescription_partitions, rd_kafka_TopicDescription_topic_id,
    rd_kafka_Uuid_base64str, rd_kafka_admin_op_t, rd_kafka_consume_batch_queue,
    rd_kafka_consumer_group_metadata, rd_kafka_consumer_group_metadata_destroy,
    rd_kafka_consumer_group_metadata_generation_id, rd_kafka_error_code,
    rd_kafka_event_DescribeTopics_result, rd_kafka_event_destroy, rd_kafka_event_error,
    rd_kafka_get_watermark_offsets, rd_kafka_header_get_all, rd_kafka_message_destroy,
    rd_kafka_message_headers, rd_kafka_message_t, rd_kafka_message_timestamp,
    rd_kafka_queue_cb_event_enable, rd_kafka_queue_destroy, rd_kafka_queue_forward,
    rd_kafka_queue_get_partition, rd_kafka_queue_new, rd_kafka_queue_poll, rd_kafka_queue_t,
    rd_kafka_t,
};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};

use crate::assignment::Group;
use crate::error::{Error, Kind};
use crate::position::{Offset, Position};
use crate::progress::Partition;
use crate::record::{Delivery, Headers};

/// The most records that one call takes over.
const RECORDS_PER_CALL: usize = 256;

/// What a partition's queue has: a record, or what keeps the client from fetching it.
pub(crate) type Fetched = Result<Delivery, Complaint>;

/// Why a partition cannot be read on.
#[derive(Debug)]
pub(crate) enum Complaint {
    /// The client's own answer, its words, and the offset that it is about.
    Kafka(RDKafkaErrorCode, Option<String>, Offset),
    /// A record that cannot be copied.
    Record(Error),
}

impl Complaint {
    pub(crate) fn is_about_a_record(&self) -> bool {
        matches!(self, Self::Record(_))
    }
}

/// The records that the client has fetched of one partition.
///
/// With a queue for each, a partition whose lanes are busy is left alone while others go on, and the client stops
/// fetching for it by itself. To pause it instead would throw away what is fetched.
pub(crate) struct PartitionQueue {
    queue: *mut rd_kafka_queue_t,
    partition: Partition,
    /// Told when a record comes into the empty queue; the client holds a pointer to it.
    wake: Box<Thread>,
    /// Outlives the queue.
    _client: Arc<BaseConsumer<Group>>,
}

#[expect(unsafe_code, reason = "a pointer is not Send by itself")]
// SAFETY: the queue is a counted reference into librdkafka's thread-safe client, which this one keeps alive.
unsafe impl Send for PartitionQueue {}

impl PartitionQueue {
    /// Takes the partition's records out of the client's common queue; `wake` is unparked when some arrive. To be
    /// called before the partition is assigned, or some would still come the common way.
    pub(crate) fn open(
        client: &Arc<BaseConsumer<Group>>,
        partition: Partition,
        wake: Thread,
    ) -> Result<Self, Error> {
        let refused = || {
            let Partition { topic, number } = &partition;
            Error::new(Kind::Kafka, format!("the kafka client has no queue for {topic} {number}"))
        };
        let topic = CString::new(&*partition.topic).map_err(|_| refused())?;
        let wake = Box::new(wake);
        #[expect(unsafe_code, reason = "the wrapper's queues hand over one record per call")]
        // SAFETY: the client is alive and the name ends with a zero and is copied; the queue is ours until it is
        // destroyed. What the callback is given lives in a box that goes after the callback is taken away.
        let queue = unsafe {
            let queue = rd_kafka_queue_get_partition(
                client.client().native_ptr(),
                topic.as_ptr(),
                partition.number,
            );
            if queue.is_null() {
                return Err(refused());
            }
            rd_kafka_queue_forward(queue, ptr::null_mut());
            rd_kafka_queue_cb_event_enable(
                queue,
                Some(unpark),
                ptr::from_ref::<Thread>(&wake).cast_mut().cast(),
            );
            queue
        };
        Ok(Self { queue, partition, wake, _client: Arc::clone(client) })
    }

    /// Takes over what is there, without waiting; answers with how many places of the queue that were. Fewer than
    /// [`RECORDS_PER_CALL`] mean that it is empty.
    pub(crate) fn take(&self, mut each: impl FnMut(Fetched)) -> usize {
        let mut messages: [*mut rd_kafka_message_t; RECORDS_PER_CALL] =
            [ptr::null_mut(); RECORDS_PER_CALL];
        #[expect(unsafe_code, reason = "the wrapper hands over one record per call")]
        // SAFETY: the array has as many places as the call is told; it fills the first of them, whose number it
        // answers, with messages that are ours to destroy.
        let taken = unsafe {
            rd_kafka_consume_batch_queue(self.queue, 0, messages.as_mut_ptr(), messages.len())
        };
        let taken = usize::try_from(taken).unwrap_or(0);
        for message in messages.into_iter().take(taken) {
            each(self.fetched(message));
            #[expect(unsafe_code, reason = "the wrapper hands over one record per call")]
            // SAFETY: the message is ours, and nothing of it is referred to after its copy was made.
            unsafe {
                rd_kafka_message_destroy(message);
            }
        }
        taken
    }

    fn fetched(&self, message: *const rd_kafka_message_t) -> Fetched {
        #[expect(unsafe_code, reason = "the wrapper hands over one record per call")]
        // SAFETY: the caller owns the message and destroys it later; key and payload are null or have the lengths
        // beside them.
        let (failure, offset, key, payload, timestamp) = unsafe {
            let this = &*message;
            let timestamp = rd_kafka_message_timestamp(message, ptr::null_mut());
            (
                this.err,
                this.offset,
                bytes(this.key, this.key_len),
                bytes(this.payload, this.len),
                timestamp,
            )
        };
        if failure != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            // An error's text stands in the place of a payload.
            let text = payload.and_then(|text| String::from_utf8(text).ok());
            return Err(Complaint::Kafka(failure.into(), text, Offset::new(offset)));
        }
        let position = Position {
            topic: Arc::clone(&self.partition.topic),
            partition: self.partition.number,
            offset: Offset::new(offset),
        };
        let headers = match copied_headers(message) {
            Ok(headers) => headers,
            Err(error) => return Err(Complaint::Record(error.at(&position))),
        };
        Ok(Delivery::new(position, timestamp, key, headers, payload))
    }
}

impl Drop for PartitionQueue {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "the wrapper's queues hand over one record per call")]
        // SAFETY: the queue is ours; after the first call the client does not call `wake` again.
        unsafe {
            rd_kafka_queue_cb_event_enable(self.queue, None, ptr::null_mut());
            rd_kafka_queue_destroy(self.queue);
        }
    }
}

impl std::fmt::Debug for PartitionQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartitionQueue")
            .field("partition", &self.partition)
            .field("wake", &self.wake)
            .finish_non_exhaustive()
    }
}

/// What the brokers know of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Described {
    /// As Kafka's tools write it; brokers before 2.8 know of none.
    pub(crate) id: Option<String>,
    pub(crate) partitions: i32,
}

/// What the brokers have answered about topics.
#[derive(Debug, Default)]
pub(crate) struct Answered {
    /// Those that exist, by their names.
    pub(crate) topics: BTreeMap<String, Described>,
    /// Those that do not.
    pub(crate) missing: Vec<String>,
}

/// A question for the ids of topics, and later its answer.
pub(crate) struct TopicIds {
    queue: *mut rd_kafka_queue_t,
    /// Outlives the queue.
    _client: Arc<BaseConsumer<Group>>,
}

impl TopicIds {
    /// Asks the brokers, which have so long to answer.
    pub(crate) fn ask(
        client: &Arc<BaseConsumer<Group>>,
        topics: &[Arc<str>],
        patience: Duration,
    ) -> Result<Self, Error> {
        let names: Vec<CString> =
            topics.iter().map(|topic| CString::new(&**topic)).collect::<Result<_, _>>().map_err(
                |error| Error::new(Kind::Config, "a topic's name holds a zero").caused_by(error),
            )?;
        let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let patience = c_int::try_from(patience.as_millis()).unwrap_or(c_int::MAX);
        #[expect(unsafe_code, reason = "the wrapper does not know topic ids")]
        // SAFETY: the client is alive; names end with a zero and are copied, as are the options; collection and options
        // are ours and destroyed once. The queue is ours until this is dropped.
        let queue = unsafe {
            let client = client.client().native_ptr();
            let queue = rd_kafka_queue_new(client);
            let collection =
                rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
            let options = rd_kafka_AdminOptions_new(
                client,
                rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
            );
            // Refused only for times out of range; then the client's default holds.
            rd_kafka_AdminOptions_set_request_timeout(options, patience, ptr::null_mut(), 0);
            rd_kafka_DescribeTopics(client, collection, options, queue);
            rd_kafka_AdminOptions_destroy(options);
            rd_kafka_TopicCollection_destroy(collection);
            queue
        };
        Ok(Self { queue, _client: Arc::clone(client) })
    }

    /// None while there is no answer. Topics that may not be read are left out.
    pub(crate) fn answer(&self, wait: Duration) -> Option<Result<Answered, RDKafkaErrorCode>> {
        let wait = c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX);
        #[expect(unsafe_code, reason = "the wrapper does not know topic ids")]
        // SAFETY: the queue is ours. The event is ours until it is destroyed, and what is read of it, all of it alive
        // until then, is copied before.
        unsafe {
            let event = rd_kafka_queue_poll(self.queue, wait);
            if event.is_null() {
                return None;
            }
            let failure = rd_kafka_event_error(event);
            let answer = if failure == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                Ok(described(rd_kafka_event_DescribeTopics_result(event)))
            } else {
                Err(failure.into())
            };
            rd_kafka_event_destroy(event);
            Some(answer)
        }
    }
}

impl Drop for TopicIds {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "the wrapper does not know topic ids")]
        // SAFETY: the queue is ours; an answer that comes later finds it gone, which the client expects.
        unsafe {
            rd_kafka_queue_destroy(self.queue);
        }
    }
}

/// What Kafka calls the id of a topic without one.
const NO_TOPIC_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";

#[expect(unsafe_code, reason = "the wrapper does not know topic ids")]
unsafe fn described(result: *const rd_kafka_DescribeTopics_result_t) -> Answered {
    let mut answered = Answered::default();
    if result.is_null() {
        return answered;
    }
    let mut count = 0;
    // SAFETY: the caller keeps the result alive; it holds so many descriptions, whose names and ids live as long.
    unsafe {
        let topics = rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if topics.is_null() {
            return answered;
        }
        for topic in std::slice::from_raw_parts(topics, count) {
            let failure = rd_kafka_error_code(rd_kafka_TopicDescription_error(*topic));
            let id = rd_kafka_TopicDescription_topic_id(*topic);
            let name = CStr::from_ptr(rd_kafka_TopicDescription_name(*topic)).to_string_lossy();
            if failure == RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART {
                answered.missing.push(name.into_owned());
                continue;
            }
            if failure != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR || id.is_null() {
                continue;
            }
            let id = CStr::from_ptr(rd_kafka_Uuid_base64str(id)).to_string_lossy();
            let mut partitions = 0usize;
            rd_kafka_TopicDescription_partitions(*topic, &raw mut partitions);
            let topic = Described {
                id: (id != NO_TOPIC_ID).then(|| id.into_owned()),
                partitions: i32::try_from(partitions).unwrap_or(i32::MAX),
            };
            answered.topics.insert(name.into_owned(), topic);
        }
    }
    answered
}

/// Where a partition ends, as far as its fetches have told.
pub(crate) fn known_end(client: &BaseConsumer<Group>, partition: &Partition) -> Option<i64> {
    let topic = CString::new(&*partition.topic).ok()?;
    let (mut low, mut high) = (0, 0);
    #[expect(unsafe_code, reason = "the wrapper asks the brokers instead, and waits for them")]
    // SAFETY: the client is alive, the name ends with a zero, and the two numbers are ours.
    let failure = unsafe {
        rd_kafka_get_watermark_offsets(
            client.client().native_ptr(),
            topic.as_ptr(),
            partition.number,
            &raw mut low,
            &raw mut high,
        )
    };
    (failure == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some(high)
}

/// The generation of its group that the client has joined; negative before it has.
pub(crate) fn generation(client: &BaseConsumer<Group>) -> i32 {
    #[expect(unsafe_code, reason = "the wrapper does not tell the generation")]
    // SAFETY: the client is alive, and what it answers is ours until it is destroyed.
    unsafe {
        let metadata = rd_kafka_consumer_group_metadata(client.client().native_ptr());
        if metadata.is_null() {
            return -1;
        }
        let generation = rd_kafka_consumer_group_metadata_generation_id(metadata);
        rd_kafka_consumer_group_metadata_destroy(metadata);
        generation
    }
}

#[expect(unsafe_code, reason = "a callback of the C library")]
unsafe extern "C" fn unpark(_: *mut rd_kafka_t, thread: *mut c_void) {
    // SAFETY: it is the pointer that the queue was given, whose target lives as long as the callback.
    let thread = unsafe { &*thread.cast::<Thread>() };
    thread.unpark();
}

/// A copy of so many bytes; none of a null pointer.
#[expect(unsafe_code, reason = "what the C library hands over")]
unsafe fn bytes(start: *const c_void, length: usize) -> Option<Vec<u8>> {
    if start.is_null() {
        return None;
    }
    // SAFETY: the caller promises so many bytes.
    Some(unsafe { std::slice::from_raw_parts(start.cast::<u8>(), length) }.to_vec())
}

fn copied_headers(message: *const rd_kafka_message_t) -> Result<Headers, Error> {
    let mut headers = Headers::with_usual_room();
    let mut list = ptr::null_mut();
    #[expect(unsafe_code, reason = "the wrapper panics at a name that is not UTF-8")]
    // SAFETY: the message is alive, and the list with all it points to lives as long. Names end with a zero; values
    // are null or as long as is told.
    unsafe {
        if rd_kafka_message_headers(message, &raw mut list)
            != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
        {
            return Ok(headers);
        }
        for at in 0.. {
            let (mut name, mut value, mut length) =
                (ptr::null::<c_char>(), ptr::null::<c_void>(), 0usize);
            let found =
                rd_kafka_header_get_all(list, at, &raw mut name, &raw mut value, &raw mut length);
            if found != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                break;
            }
            let name = CStr::from_ptr(name)
                .to_str()
                .map_err(|_| Error::new(Kind::Record, "a header's name is not UTF-8"))?;
            let value =
                (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), length));
            headers.push(name, value);
        }
    }
    Ok(headers)
}
