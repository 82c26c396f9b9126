//! Calls that go past the Kafka client's Rust wrapper.
//!
//! `rdkafka`'s `flush` and `commit_transaction` poll in steps of 100 ms, which makes them the cost
//! of every commit; the C functions take about 2 ms (measured). Its `send` makes a C string of the
//! topic and of each header's name, and has the client look the topic up by name, for every record.
//! Its `fetch_metadata` asks for one topic or for all of the cluster, never for those in use.
//! (<https://docs.rs/rdkafka-sys>; `rd_kafka_flush`, `rd_kafka_commit_transaction`,
//! `rd_kafka_metadata`, `rd_kafka_producev` and `rd_kafka_header_add` in librdkafka's `rdkafka.h`.)

use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings::{
    RD_KAFKA_MSG_F_COPY, rd_kafka_commit_transaction, rd_kafka_error_code, rd_kafka_error_destroy,
    rd_kafka_flush, rd_kafka_header_add, rd_kafka_headers_destroy, rd_kafka_headers_new,
    rd_kafka_metadata, rd_kafka_metadata_destroy, rd_kafka_producev, rd_kafka_topic_destroy,
    rd_kafka_topic_new, rd_kafka_topic_t, rd_kafka_vtype_t,
};
use rdkafka::client::{Client, ClientContext};
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};

use crate::record::Record;

/// Headers that most records have; more are taken too.
const HEADERS_USUAL: usize = 8;

/// The client picks the partition, by the key.
const PARTITION_BY_KEY: i32 = -1;

/// A topic as the client knows it, so that it is not looked up by name for each record.
pub(crate) struct Topic<C: ProducerContext + 'static> {
    handle: *mut rd_kafka_topic_t,
    /// Outlives the handle.
    client: Arc<BaseProducer<C>>,
}

#[expect(unsafe_code, reason = "a pointer is not Send by itself")]
// SAFETY: librdkafka's topics are counted references into its thread-safe client, which this one
// keeps alive; they may be used and dropped on any thread.
unsafe impl<C: ProducerContext + 'static> Send for Topic<C> {}

#[expect(unsafe_code, reason = "a pointer is not Sync by itself")]
// SAFETY: as above; all that a shared topic offers is to produce, which any thread may do at any
// time.
unsafe impl<C: ProducerContext + 'static> Sync for Topic<C> {}

impl<C: ProducerContext + 'static> Topic<C> {
    /// Makes the client know a topic.
    pub(crate) fn new(client: &Arc<BaseProducer<C>>, name: &str) -> Result<Self, RDKafkaErrorCode> {
        let c_name = CString::new(name).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
        #[expect(unsafe_code, reason = "the wrapper has no topic handles for producers")]
        // SAFETY: the client is alive, the name ends with a zero and is copied by the call; without
        // a configuration the client's own is taken.
        let handle = unsafe {
            rd_kafka_topic_new(client.client().native_ptr(), c_name.as_ptr(), ptr::null_mut())
        };
        if handle.is_null() {
            return Err(RDKafkaErrorCode::InvalidTopic);
        }
        Ok(Topic { handle, client: Arc::clone(client) })
    }

    /// Hands a record over to the client, which copies it; `opaque` comes back with the report of
    /// a record that failed.
    pub(crate) fn produce(
        &self,
        record: &Record<'_>,
        opaque: usize,
    ) -> Result<(), RDKafkaErrorCode> {
        let (value, value_len) = parts(record.value());
        let (key, key_len) = parts(record.key());
        #[expect(unsafe_code, reason = "the wrapper allocates for each header of each record")]
        // SAFETY: all pointers are of slices that outlive the calls, which copy what they are given
        // (RD_KAFKA_MSG_F_COPY; rd_kafka_header_add copies name and value by their lengths). The
        // arguments are pairs of a tag and what it demands, in the types of rdkafka.h (size_t,
        // int, int64_t, pointers), and end with the end tag. The list of headers belongs to the
        // client after success, and to us, to be destroyed once, after an error.
        let answer = unsafe {
            let headers = rd_kafka_headers_new(HEADERS_USUAL);
            record.each_header(|name, value| {
                rd_kafka_header_add(
                    headers,
                    name.as_ptr().cast(),
                    name.len().cast_signed(),
                    value.as_ptr().cast(),
                    value.len().cast_signed(),
                );
            });
            let answer = rd_kafka_producev(
                self.client.client().native_ptr(),
                rd_kafka_vtype_t::RD_KAFKA_VTYPE_RKT,
                self.handle,
                rd_kafka_vtype_t::RD_KAFKA_VTYPE_PARTITION,
                PARTITION_BY_KEY,
                rd_kafka_vtype_t::RD_KAFKA_VTYPE_MSGFLAGS,
                RD_KAFKA_MSG_F_COPY,
                rd_kafka_vtype_t::RD_KAFKA_VTYPE_VALUE,
                value,
                value_len,
                rd_kafka_vtype_t::RD_KAFKA_VTYPE_KEY,
                key,
                key_len,
                rd_kafka_vtype_t::RD_KAFKA_VTYPE_OPAQUE,
                opaque as *mut c_void,
                rd_kafka_vtype_t::RD_KAFKA_VTYPE_TIMESTAMP,
                record.timestamp_ms(),
                rd_kafka_vtype_t::RD_KAFKA_VTYPE_HEADERS,
                headers,
                rd_kafka_vtype_t::RD_KAFKA_VTYPE_END,
            );
            if answer != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                rd_kafka_headers_destroy(headers);
            }
            answer
        };
        match answer {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            error => Err(error.into()),
        }
    }
}

impl<C: ProducerContext + 'static> Drop for Topic<C> {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "the handle is the C library's own")]
        // SAFETY: it was made by rd_kafka_topic_new, is destroyed once, and its client still lives.
        unsafe {
            rd_kafka_topic_destroy(self.handle);
        }
    }
}

/// What is null stays null; what is empty does not become so.
fn parts(bytes: Option<&[u8]>) -> (*mut c_void, usize) {
    bytes.map_or((ptr::null_mut(), 0), |bytes| (bytes.as_ptr().cast_mut().cast(), bytes.len()))
}

/// Waits until each record that was handed over has its answer, be it an error; blocks at most for
/// `timeout`.
pub fn flush<C: ClientContext>(
    producer: &Client<C>,
    timeout: Duration,
) -> Result<(), RDKafkaErrorCode> {
    #[expect(unsafe_code, reason = "the wrapper polls in steps of 100 ms")]
    // SAFETY: the pointer comes from a live producer, which `producer` keeps alive over the call.
    // librdkafka's client is safe to be used from any thread.
    let answer = unsafe { rd_kafka_flush(producer.native_ptr(), millis(timeout)) };
    match answer {
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        error => Err(error.into()),
    }
}

/// Flushes the producer's records and commits its transaction; blocks at most for `timeout`.
///
/// Any error leaves the outcome uncertain: the caller drops the producer and starts a session anew.
pub fn commit_transaction<C: ClientContext>(
    producer: &Client<C>,
    timeout: Duration,
) -> Result<(), RDKafkaErrorCode> {
    #[expect(unsafe_code, reason = "the wrapper costs 100 ms a call")]
    // SAFETY: as for the flush above.
    let error = unsafe { rd_kafka_commit_transaction(producer.native_ptr(), millis(timeout)) };
    if error.is_null() {
        return Ok(());
    }
    #[expect(unsafe_code, reason = "the error is the C library's own")]
    // SAFETY: a non-null answer is an error object that the caller owns: it is read once, then
    // destroyed once, and not used again.
    let code = unsafe {
        let code = rd_kafka_error_code(error);
        rd_kafka_error_destroy(error);
        code
    };
    Err(code.into())
}

/// Asks the brokers how many partitions each topic has that this producer knows; from the answer on
/// it spreads records over so many. Blocks at most for `timeout`.
pub(crate) fn partition_counts<C: ClientContext>(
    producer: &Client<C>,
    timeout: Duration,
) -> Result<Vec<(String, i32)>, RDKafkaErrorCode> {
    let mut metadata = ptr::null();
    #[expect(unsafe_code, reason = "the wrapper asks for one topic or for all of the cluster")]
    // SAFETY: as for the flush above; neither all topics nor a certain one are asked for, which
    // means those that the client knows. The answer is written to `metadata` in case of success.
    let answer = unsafe {
        rd_kafka_metadata(
            producer.native_ptr(),
            0,
            ptr::null_mut(),
            &raw mut metadata,
            millis(timeout),
        )
    };
    if answer != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Err(answer.into());
    }
    let mut counts = Vec::new();
    #[expect(unsafe_code, reason = "the answer is the C library's own")]
    // SAFETY: after success it points to an answer that the caller owns, whose `topics` are so many
    // as `topic_cnt` says, each with a name that ends with a zero. It is read, then destroyed once,
    // and not used again; the names are copied.
    unsafe {
        let found = &*metadata;
        for number in 0..usize::try_from(found.topic_cnt).unwrap_or(0) {
            let topic = &*found.topics.add(number);
            let name = CStr::from_ptr(topic.topic).to_string_lossy().into_owned();
            if topic.err == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR && topic.partition_cnt > 0 {
                counts.push((name, topic.partition_cnt));
            }
        }
        rd_kafka_metadata_destroy(metadata);
    }
    Ok(counts)
}

fn millis(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX)
}
