//! Write a message in your Postgres transaction; the transaction log carries it to Kafka.
//!
//! A service that changes a row and announces the change must do both or neither. Here the
//! announcement is part of the statement itself: [`merge()`] sends it along with the [`Message`],
//! which Postgres puts into the write-ahead log by `pg_logical_emit_message`, and the relay
//! publishes it once the transaction has committed. No table, no vacuum, no grant, no round trip,
//! no connection to Kafka.
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
//! let order = "order-42";
//! let message = Message::builder("orders", "order.placed.v1")
//!     .source("/orders")
//!     .key(order)
//!     .subject(order)
//!     .header("tenant", "acme")
//!     .json(&OrderPlaced { total_cents: 1999 })
//!     .build()?;
//!
//! let mut tx = pool.begin().await?;
//! tailrace_outbox::merge("INSERT INTO orders (id, total_cents) VALUES ($1, $2)")
//!     .bind(order)
//!     .bind(1999_i64)
//!     .message(&message)
//!     .execute(&mut tx)
//!     .await?;
//! tx.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Ways to write
//!
//! | | |
//! |---|---|
//! | [`merge()`] | the message travels inside the business statement, and costs no round trip |
//! | [`write()`] | one message, in a statement of its own |
//! | [`write_all()`] | many messages in one statement, in the order given |
//!
//! [`Outbox`] has the same as methods, for a store, prefix or slot other than the default. A store
//! is the log, the [`journal`], or a table of yours by a [`mapping`].
//!
//! # Contract
//!
//! - **The transaction is yours.** Each way to write takes it as a parameter and opens none. Commit, and
//!   the message will be published; roll back, also to a savepoint, and it never existed. A crash
//!   before the commit leaves nothing.
//! - **Order.** Messages of one key are published in the order in which their transactions
//!   commit, and inside a transaction in the order of the calls. Without a key there is no order.
//! - **Sight.** A message can be read a moment before other sessions see its transaction, which Postgres
//!   logs before it shows it. Who comes back to the row by the message reads it `FOR SHARE`, and tries
//!   again for one that is not there yet.
//! - **Identity.** [`Message::id`] is minted once, when the message is built, and stays the same
//!   on every publication: consumers know a repetition by it.
//! - **Limits.** A frame holds at most [`FRAME_BYTES_MAX`] bytes, so that the default settings of
//!   a Kafka broker and producer accept its record; [`Builder::frame_bytes_max`] raises that.
//! - **Before the slot there is nothing.** A message written before the relay's replication slot
//!   exists succeeds and vanishes. [`check`](fn@check) at the start of a service turns that into an error.
//!
//! # Features
//!
//! - `sqlx` (default): the functions above and [`check`](fn@check)
//! - `tokio-postgres`: the same as functions of a module `tokio_postgres`
//! - `protobuf`: a [`codec`] of that name, by prost
//! - `opentelemetry`: the trace context of the current span, `Builder::in_current_span`
//! - `testing`: a module of that name, to see in a test what a transaction wrote
//!
//! Without features the crate is the message and its bytes alone: no runtime, no database client.
//! Nothing here links Kafka.

#![cfg_attr(
    not(feature = "sqlx"),
    expect(rustdoc::broken_intra_doc_links, reason = "the page also speaks of what sqlx brings")
)]

pub mod codec;
pub mod frame;
pub mod header;
pub mod mapping;
pub mod schema;
pub mod topic;

#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "tokio-postgres")]
pub mod tokio_postgres;

mod error;
mod event;
mod message;
mod rules;

#[cfg(feature = "sqlx")]
pub mod journal;

#[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
mod outbox;
#[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
mod statement;

#[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
mod blame;

#[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
mod check;
#[cfg(feature = "sqlx")]
mod merged;
#[cfg(feature = "opentelemetry")]
mod trace;
#[cfg(feature = "sqlx")]
mod write;

#[cfg(test)]
#[cfg(feature = "sqlx")]
mod database;
#[cfg(test)]
#[cfg(feature = "sqlx")]
mod logged;

#[cfg(feature = "sqlx")]
pub use check::check;
pub use error::{Error, Kind, Reaction};
pub use event::Event;
#[cfg(feature = "sqlx")]
pub use merged::{Merge, Merged, merge};
pub use message::{Builder, FRAME_BYTES_CEILING, FRAME_BYTES_MAX, Message};
#[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
pub use outbox::{BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, Outbox, Store};
#[cfg(feature = "sqlx")]
pub use write::{write, write_all};

/// The prefix under which frames stand in the write-ahead log.
///
/// A relay takes the logical messages of its own prefix and no others.
pub const PREFIX: &str = "tailrace";

/// The replication slot a relay uses when nobody names another.
pub const DEFAULT_SLOT: &str = "tailrace";

/// The examples of the README, as tests.
#[cfg(doctest)]
#[cfg(feature = "sqlx")]
#[doc = include_str!("../README.md")]
struct Readme;
