//! The one call that goes past the Kafka client's Rust wrapper. The only unsafe code of the crate.
//!
//! `rdkafka`'s `commit_transaction` first flushes by polling in steps of 100 ms, which makes it the
//! cost of every commit; the C function flushes by itself and takes about 2 ms (measured;
//! <https://docs.rs/rdkafka-sys>, `rd_kafka_commit_transaction` in librdkafka's `rdkafka.h`).

use std::time::Duration;

use rdkafka::bindings::{rd_kafka_commit_transaction, rd_kafka_error_code, rd_kafka_error_destroy};
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;

/// Flushes the producer's records and commits its transaction; blocks at most for `timeout`.
///
/// Any error leaves the outcome uncertain: the caller drops the producer and starts a session anew.
pub fn commit_transaction<C: ProducerContext + 'static>(
    producer: &ThreadedProducer<C>,
    timeout: Duration,
) -> Result<(), RDKafkaErrorCode> {
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    #[expect(unsafe_code, reason = "the wrapper costs 100 ms a call")]
    // SAFETY: the pointer comes from a live producer, which `producer` keeps alive over the call.
    // librdkafka's client is safe to be used from any thread.
    let error = unsafe { rd_kafka_commit_transaction(producer.client().native_ptr(), timeout_ms) };
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
