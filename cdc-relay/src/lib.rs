//! Tail a Postgres write-ahead log and publish its messages to Kafka exactly once, in order.

mod error;
mod lsn;
#[cfg_attr(not(test), expect(dead_code, unused_imports, reason = "the relay loop uses it"))]
mod pgoutput;
#[cfg_attr(not(test), expect(dead_code, unused_imports, reason = "the relay loop uses it"))]
mod replication;

pub use error::{Error, Kind, Reaction};
pub use lsn::Lsn;
