//! An effect in Postgres once per message, in order per key, whatever Kafka does.
//!
//! Kafka delivers again after a crash, a rebalance or a producer's retry. This crate makes the second
//! delivery harmless: the message's id is claimed in the same transaction as its effect, so either both
//! are there or neither is.
//!
//! There are two ways in.
//!
//! - [`guard`]: claim a message id in a transaction of your own. It needs no Kafka (switch the default
//!   feature `kafka` off) and fits any transport.
//! - [`Consumer`]: subscribe to topics and run a handler per message type. It owns the transaction: a batch
//!   of records, their claims, their effects and the consumer's progress commit together.
//!
//! ```no_run
//! # #[cfg(feature = "kafka")]
//! # mod example {
//! use serde::Deserialize;
//! use tailrace_idempotency::{BoxError, Config, Consumer, Cx, Outcome, schema};
//!
//! #[derive(Deserialize)]
//! struct OrderPlaced {
//!     order: i64,
//! }
//!
//! struct App {
//!     warehouse: String,
//! }
//!
//! async fn reserve(cx: Cx<'_, App>, order: OrderPlaced) -> Result<Outcome, BoxError> {
//!     sqlx::query("insert into reservation (order_id, warehouse) values ($1, $2)")
//!         .bind(order.order)
//!         .bind(&cx.state.warehouse)
//!         .execute(cx.conn)
//!         .await?;
//!     Ok(Outcome::Done)
//! }
//!
//! async fn run(pool: sqlx::PgPool, stop: impl Future<Output = ()>) -> Result<(), BoxError> {
//!     schema::install(&mut *pool.acquire().await?).await?;
//!     let app = App { warehouse: "north".into() };
//!     let report = Consumer::new(Config::new("billing", "localhost:9092", pool).state(app))
//!         .topic("orders")
//!         .on("order.placed.v1", reserve)
//!         .run(stop)
//!         .await?;
//!     println!("{} applied, {} duplicates", report.applied, report.duplicates);
//!     Ok(())
//! }
//! # }
//! ```
//!
//! # What holds
//! - Postgres is the commit point. Progress lives in `tailrace.consumer_progress`; the offset committed to
//!   Kafka follows it as a hint for lag tools and is never read.
//! - A process that lost its partition cannot commit: each transaction begins by checking its epoch.
//! - Nothing is skipped silently. A message that keeps failing is parked with every later message of its key, and
//!   tried again in order, while other keys go on; what can never be applied becomes a dead letter in
//!   `tailrace.dead_letter`; a record without an id, or another owner of the database's tables, halts.
//! - A handler may run more than once for a message; its effect on Postgres happens once. It must touch
//!   nothing but the transaction it is given.
//! - Messages of a relay that delivers exactly once may be known by its sequence, without a row for each:
//!   [`Dedupe::Position`].
//! - A Postgres that is away is waited for, without hammering it: [`Config::database_breaker`]. [`Health`] and
//!   [`metrics`] tell.
//! - What touches anything else is a [`Call`], registered by [`Consumer::on_call`]: prepared in one transaction, made
//!   outside of any, repeated after a crash with the same idempotency key, and recorded once. A [`Breaker`] keeps it
//!   from a service that fails or is slow.
//!
//! The records' form is that of CloudEvents 1.0.2 in Kafka's binary content mode: id in `ce_id` (UUID v7),
//! type in `ce_type`, payload as JSON in the value.

#[cfg(feature = "kafka")]
mod asking;
#[cfg(feature = "kafka")]
mod assignment;
#[cfg(feature = "kafka")]
mod attempt;
#[cfg(feature = "kafka")]
mod batch;
#[cfg(feature = "kafka")]
mod beginning;
#[cfg(feature = "kafka")]
mod beside;
#[cfg(feature = "kafka")]
mod breaker;
#[cfg(feature = "kafka")]
mod call;
#[cfg(feature = "kafka")]
mod calling;
#[cfg(feature = "kafka")]
mod calls;
#[cfg(feature = "kafka")]
mod circuit;
#[cfg(feature = "kafka")]
mod client;
#[cfg(feature = "kafka")]
mod codec;
#[cfg(feature = "kafka")]
mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "kafka")]
mod consumer;
#[cfg(feature = "kafka")]
mod dead_letter;
mod dedupe;
mod error;
#[cfg(feature = "kafka")]
mod failure;
#[doc(hidden)]
#[cfg(feature = "faults")]
pub mod faults;
#[cfg(test)]
#[cfg(feature = "kafka")]
mod fixture;
#[cfg(feature = "kafka")]
mod flow;
pub mod guard;
#[cfg(feature = "kafka")]
mod handler;
#[cfg(feature = "kafka")]
mod health;
pub mod http_key;
#[cfg(feature = "tower")]
pub mod http_layer;
#[cfg(feature = "kafka")]
mod id_source;
pub mod inbox;
#[cfg(feature = "kafka")]
mod intake;
#[cfg(feature = "kafka")]
mod known;
#[cfg(feature = "kafka")]
mod lane;
#[cfg(feature = "kafka")]
mod lanes;
#[cfg(feature = "kafka")]
mod leaving;
mod message_id;
#[cfg(feature = "kafka")]
pub mod metrics;
#[cfg(feature = "kafka")]
mod milestone;
#[cfg(feature = "kafka")]
mod native;
#[cfg(feature = "kafka")]
mod outage;
#[cfg(feature = "kafka")]
mod overrun;
#[cfg(feature = "kafka")]
mod parked_rows;
#[cfg(feature = "kafka")]
mod parking;
#[cfg(feature = "kafka")]
mod plan;
mod position;
#[cfg(feature = "kafka")]
mod progress;
#[cfg(feature = "kafka")]
pub mod projection;
#[cfg(feature = "kafka")]
mod reaching;
#[cfg(feature = "kafka")]
mod record;
#[cfg(feature = "kafka")]
mod repeated;
#[cfg(feature = "kafka")]
mod replay;
pub mod retention;
#[cfg(feature = "kafka")]
mod retry;
#[cfg(feature = "kafka")]
mod route;
#[cfg(feature = "kafka")]
mod running;
pub mod schema;
#[cfg(feature = "kafka")]
mod sequence;
#[cfg(feature = "kafka")]
pub mod trace;
#[cfg(feature = "kafka")]
mod trial;
#[cfg(feature = "kafka")]
mod used;

#[cfg(feature = "kafka")]
pub use beside::Ending;
#[cfg(feature = "kafka")]
pub use breaker::{Breaker, NotDone};
#[cfg(feature = "kafka")]
pub use call::{Answer, Call, CallCx, CallHandler, Prepared, RecordHandler};
#[cfg(feature = "kafka")]
pub use circuit::{BreakerState, SlidingWindow};
#[cfg(feature = "kafka")]
#[cfg(feature = "protobuf")]
pub use codec::Protobuf;
#[cfg(feature = "kafka")]
pub use codec::{Codec, Json};
#[cfg(feature = "kafka")]
pub use config::{Config, GroupProtocol, Start};
#[cfg(feature = "kafka")]
pub use consumer::{Consumer, Unhandled};
pub use dedupe::{Dedupe, Unsequenced};
pub use error::{BoxError, Error, Kind};
#[cfg(feature = "kafka")]
pub use handler::{Apart, BatchCx, BatchHandler, Cx, Handler, Item, Outcome};
#[cfg(feature = "kafka")]
pub use health::Health;
#[cfg(feature = "kafka")]
pub use id_source::{IdFrom, Unread};
pub use message_id::MessageId;
#[cfg(feature = "kafka")]
pub use metrics::{Counters, Report};
pub use position::{Offset, Position};
#[cfg(feature = "kafka")]
pub use projection::Projection;
#[cfg(feature = "kafka")]
pub use record::Meta;
#[cfg(feature = "kafka")]
pub use retry::{OnFailure, OutOfHorizon};
