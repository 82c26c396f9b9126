//! Tails a Postgres write-ahead log and publishes its messages to Kafka: exactly once, keyed, in
//! commit order.
//!
//! A message is what a service wrote by `pg_logical_emit_message` inside its own transaction (see
//! `tailrace-outbox`); a rolled back one never shows. The relay reads a logical replication slot,
//! produces each message into a Kafka transaction, and commits that transaction together with a
//! checkpoint of how far the source is published. Only what a committed checkpoint covers is
//! flushed to the slot, so a crash at any point repeats nothing that readers with
//! `isolation.level=read_committed` can see, and loses nothing.
//!
//! The way of a byte: [replication connection → decoder] → publisher → sink → checkpoint → slot
//! flush. What is decided on it is decided by pure functions (`progress`, `resume`,
//! `leadership::Watch`); [`Relay::run`] is the one loop that acts.
//!
//! | what follows | from |
//! |---|---|
//! | message formats of pgoutput | <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html> |
//! | CopyBoth, keepalives, status updates | <https://www.postgresql.org/docs/current/protocol-replication.html> |
//! | transactions, fencing | KIP-98, KIP-447 |
//! | record headers | CloudEvents 1.0.2, Kafka protocol binding |

mod admin;
mod adopt;
mod batch_span;
mod check;
mod checkpoint;
pub mod cli;
mod config;
mod dead_letter;
mod error;
#[doc(hidden)]
#[cfg(feature = "faults")]
pub mod faults;
#[doc(hidden)]
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod init;
mod leadership;
#[doc(hidden)]
pub mod limits;
mod lookout;
mod lsn;
pub mod metrics;
mod milestone;
#[cfg(test)]
mod model;
mod native;
mod overview;
#[cfg_attr(
    not(test),
    expect(dead_code, unused_imports, reason = "most of a row is read by table capture alone")
)]
mod pgoutput;
mod position;
mod progress;
mod publication;
mod publisher;
mod record;
mod relay;
mod replay;
#[cfg_attr(not(test), expect(dead_code, reason = "tests look their own backend up by its pid"))]
mod replication;
mod resume;
mod saved;
mod session;
mod setup;
pub mod sink;
mod slot_health;
mod source;
pub mod status;
mod streamed;
mod tables;
mod trouble;
mod watchdog;

pub use admin::Http;
pub use config::{BadMessages, Config, Delivery, LargeTransactions};
pub use error::{Error, Kind, Reaction};
pub use lsn::{Lsn, ParseLsnError};
pub use milestone::Milestone;
pub use position::{Incarnation, Ordinal, ParsePlaceError, Place, Position};
pub use relay::Relay;
pub use replay::{Planned, Replay, Replayed};
pub use slot_health::SlotHealth;
pub use status::Status;
pub use tailrace_outbox::mapping::{ColumnType, Mapping, Part};
