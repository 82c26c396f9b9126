//! Write a message in your Postgres transaction; the transaction log carries it to Kafka.
//!
//! A service that changes a row and announces the change must do both or neither. Here the
//! announcement is part of the transaction itself: [`write()`] puts the [`Message`] into the
//! write-ahead log by `pg_logical_emit_message`, and the relay publishes it once the
//! transaction has committed. No table, no vacuum, no grant, no connection to Kafka.
//!
//! ```no_run
//! # use serde::Serialize;
//! use tailrace_outbox::{DEFAULT_SLOT, Message};
//!
//! # #[derive(Serialize)] struct OrderPlaced { total_cents: i64 }
//! # #[cfg(feature = "sqlx")]
//! # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! // Once, when the service starts: a message nobody tails would vanish.
//! tailrace_outbox::check(&pool, DEFAULT_SLOT).await?;
//!
//! let mut tx = pool.begin().await?;
//! sqlx::query("INSERT INTO orders (id, total_cents) VALUES (42, 1999)").execute(&mut *tx).await?;
//!
//! let message = Message::builder("orders", "order.placed.v1")
//!     .source("/orders")
//!     .key("order-42")
//!     .subject("order-42")
//!     .header("tenant", "acme")
//!     .json(&OrderPlaced { total_cents: 1999 })
//!     .build()?;
//! tailrace_outbox::write(&mut tx, &message).await?;
//!
//! tx.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Contract
//!
//! - **The transaction is yours.** [`write()`] takes it as a parameter and opens none. Commit, and
//!   the message will be published; roll back, also to a savepoint, and it never existed. A crash
//!   before the commit leaves nothing.
//! - **Order.** Messages of one key are published in the order in which their transactions
//!   commit, and inside a transaction in the order of the calls. Without a key there is no order.
//! - **Identity.** [`Message::id`] is minted once, when the message is built, and stays the same
//!   on every publication: consumers know a repetition by it.
//! - **Limits.** A frame holds at most [`FRAME_BYTES_MAX`] bytes, so that the default settings of
//!   a Kafka broker and producer accept its record; [`Builder::frame_bytes_max`] raises that.
//! - **Before the slot there is nothing.** A message written before the relay's replication slot
//!   exists succeeds and vanishes. [`check`] at the start of a service turns that into an error.
//!
//! # Features
//!
//! `sqlx` (default) brings [`write()`] and [`check`]. Without it the crate is the message and its
//! bytes alone: no runtime, no database client. Nothing here links Kafka.

#![cfg_attr(
    not(feature = "sqlx"),
    expect(rustdoc::broken_intra_doc_links, reason = "the page also speaks of what sqlx brings")
)]

pub mod frame;
pub mod header;
pub mod schema;
pub mod topic;

mod error;
mod message;
mod rules;

#[cfg(feature = "sqlx")]
pub mod journal;

#[cfg(feature = "sqlx")]
mod check;
#[cfg(feature = "sqlx")]
mod write;

#[cfg(test)]
#[cfg(feature = "sqlx")]
mod database;

#[cfg(feature = "sqlx")]
pub use check::check;
pub use error::{Error, Kind, Reaction};
pub use message::{Builder, FRAME_BYTES_CEILING, FRAME_BYTES_MAX, Message};
#[cfg(feature = "sqlx")]
pub use write::write;

/// The prefix under which frames stand in the write-ahead log.
///
/// A relay takes the logical messages of its own prefix and no others.
pub const PREFIX: &str = "tailrace";

/// The replication slot a relay uses when nobody names another.
pub const DEFAULT_SLOT: &str = "tailrace";
