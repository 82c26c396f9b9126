//! The end-to-end tests: the product's own programs on a real Postgres and a real Kafka.

#[path = "e2e/proofs.rs"]
mod proofs;

use std::path::PathBuf;

/// The program whose processes are under test.
fn node() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_node"))
}
