//! Where records go: Kafka, with the checkpoint in the same transaction.

mod checkpoint_topic;
mod commit;
mod exactly_once;
mod kafka;
mod partitions;
mod refusal;
mod topics;

pub use commit::commit_transaction;
pub(crate) use exactly_once::{ExactlyOnce, Produced};
pub(crate) use kafka::Cluster;
