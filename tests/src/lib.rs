//! End-to-end proofs, on a real Postgres and a real Kafka.
//!
//! A [`Proof`] has one body and a [`Scale`]: `cargo test -p tests` runs it small, `cargo run
//! --release -p tests --bin prove -- NAME` in full. What is true is decided by Postgres
//! ([`writers`]), what happened is told by a Kafka client that shares no code with the product
//! ([`reader`]), and [`verdict`] compares the two. The relay runs as a process of its own
//! ([`process`], the `node` program), so that a crash is a SIGKILL. Pages are
//! looked at in a real [`browser`].

pub mod consumer_chaos;
pub mod foreign_wal;
pub mod giant_transaction;
pub mod kafka_crash;
pub mod outbox_arrival;
pub mod proof;
pub mod relay_crash;
pub mod relay_shapes;
pub mod relay_zombies;
pub mod saga_chaos;
pub mod saga_deploy;
pub mod shop_run;
pub mod soak;

pub mod browser;
pub mod choreography_shop;
mod client;
pub mod collector;
mod consumer_role;
pub mod crash_point;
pub mod endpoint;
pub mod events;
pub mod node;
pub mod process;
pub mod reader;
mod saga_role;
pub mod saga_shop;
pub mod saga_site;
pub mod shape;
pub mod shop;
pub mod shop_outage;
pub mod site;
pub mod verdict;
mod writer;
pub mod writers;

pub use client::Way;
pub use proof::{PROOFS, Proof, Report, Scale};
pub use site::{Site, Streaming, Variant};

/// The quick start of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
