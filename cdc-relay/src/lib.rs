//! Tail a Postgres write-ahead log and publish its messages to Kafka exactly once, in order.

mod error;
mod lsn;

pub use error::{Error, Kind, Reaction};
pub use lsn::Lsn;
