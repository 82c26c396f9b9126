//! Tail a Postgres write-ahead log and publish its messages to Kafka exactly once, in order.

mod checkpoint;
mod error;
mod lsn;
mod position;
mod progress;

pub use error::{Error, Kind, Reaction};
pub use lsn::Lsn;
pub use position::{Incarnation, Ordinal, ParsePlaceError, Place, Position};
