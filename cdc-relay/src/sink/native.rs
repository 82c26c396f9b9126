//! The calls that go past the Kafka client's Rust wrapper. The only unsafe code of the crate.
//!
//! `rdkafka`'s `flush` and `commit_transaction` poll in steps of 100 ms, which makes them the cost
//! of every commit; the C functions take about 2 ms (measured; <https://docs.rs/rdkafka-sys>,
//! `rd_kafka_flush` and `rd_kafka_commit_transaction` in librdkafka's `rdkafka.h`).

use std::time::Duration;

use rdkafka::bindings::{
    rd_kafka_commit_transaction, rd_kafka_error_code, rd_kafka_error_destroy, rd_kafka_flush,
};
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};

/// Waits until each record that was handed over has its answer, be it an error; blocks at most for
/// `timeout`.
pub(super) fn flush<C: ProducerContext + 'static>(
    producer: &ThreadedProducer<C>,
    timeout: Duration,
) -> Result<(), RDKafkaErrorCode> {
    #[expect(unsafe_code, reason = "the wrapper polls in steps of 100 ms")]
    // SAFETY: the pointer comes from a live producer, which `producer` keeps alive over the call.
    // librdkafka's client is safe to be used from any thread.
    let answer = unsafe { rd_kafka_flush(producer.client().native_ptr(), millis(timeout)) };
    match answer {
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        error => Err(error.into()),
    }
}

/// Flushes the producer's records and commits its transaction; blocks at most for `timeout`.
///
/// Any error leaves the outcome uncertain: the caller drops the producer and starts a session anew.
pub fn commit_transaction<C: ProducerContext + 'static>(
    producer: &ThreadedProducer<C>,
    timeout: Duration,
) -> Result<(), RDKafkaErrorCode> {
    #[expect(unsafe_code, reason = "the wrapper costs 100 ms a call")]
    // SAFETY: as for the flush above.
    let error =
        unsafe { rd_kafka_commit_transaction(producer.client().native_ptr(), millis(timeout)) };
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

fn millis(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX)
}
