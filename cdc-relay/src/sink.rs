//! Where records go, with what the relay has to remember in the same step.
//!
//! A [`Sink`] is one session's hold on the destination. Records are handed over as they are decoded
//! ([`Sink::produce`]); [`Sink::seal`] makes everything handed over so far and a few saved entries
//! durable together, and [`Sink::confirmed`] says when. After any error the outcome of what is
//! under way is uncertain: the relay drops the sink, and the next session connects a new one, whose
//! [`Sink::take_over`] fences the old one and answers with what became durable.
//!
//! The sinks here are Kafka's two, picked by [`Config::delivery`](crate::Config::delivery), and
//! [`memory`]. A sink of your own must pass [`conformance`].

use std::collections::BTreeMap;
use std::future::Future;

use crate::error::Error;
pub use crate::record::Record;

mod admin;
mod at_least_once;
pub(crate) mod checkpoint_topic;
mod client;
mod cluster;
mod complaint;
pub mod conformance;
mod create_topic;
mod exactly_once;
pub(crate) mod inspect;
mod kafka;
pub mod memory;
mod partitions;
mod producer;
mod refusal;
mod right;
mod topic_rules;
mod topics;
pub(crate) mod turns;

pub(crate) use cluster::Cluster;
pub use kafka::{Kafka, KafkaSink};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use partitions::Partitions;

/// Small values that a relay saves in the destination under fixed names; the newest of each counts.
pub type Saved = BTreeMap<String, Vec<u8>>;

/// Makes a [`Sink`] for each session of a relay.
pub trait Connect: Send + Sync + 'static {
    /// What it makes.
    type Sink: Sink;

    /// Reaches the destination, and prepares what the sink needs there. Must not disturb another
    /// relay of the same id: it may lead.
    fn connect(&self, relay_id: &str) -> impl Future<Output = Result<Self::Sink, Error>> + Send;

    /// What is saved so far under this relay id, for whoever may not take over yet. Changes nothing
    /// and disturbs nobody; a relay that leads may be about to save more. `None` where nothing was
    /// ever saved, or the destination can not tell without [`Sink::take_over`]. Default `None`.
    fn saved(&self, relay_id: &str) -> impl Future<Output = Result<Option<Saved>, Error>> + Send {
        let _ = relay_id;
        async { Ok(None) }
    }
}

/// One session's hold on the destination of records.
///
/// Calls come one at a time and in the order `take_over`, then any number of rounds of `produce`
/// and `seal`. At most one `seal` is unconfirmed: the relay waits for [`Sink::confirmed`] before
/// the next.
pub trait Sink: Send {
    /// Fences every older sink of this relay, completes or undoes what it left, and answers with
    /// all that is saved. Only the relay that holds the slot calls it.
    ///
    /// From its return on nothing that an older sink handed over can become durable any more.
    fn take_over(&mut self) -> impl Future<Output = Result<Saved, Error>> + Send;

    /// Hands a record over. Never waits; what the record borrows is free again on return.
    ///
    /// Records of one key keep the order in which they are handed over.
    fn produce(&mut self, record: &Record<'_>) -> Result<(), Obstacle>;

    /// Waits until an obstacle is out of the way; then the record is handed over again.
    fn overcome(
        &mut self,
        obstacle: Obstacle,
        record: &Record<'_>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Closes the batch: what was handed over since the last one and these entries are to become
    /// durable together, or, in a sink that promises less, the records before the entries.
    ///
    /// Returns as soon as records of the next batch may be handed over.
    fn seal(&mut self, entries: &[(&str, &[u8])])
    -> impl Future<Output = Result<(), Error>> + Send;

    /// Waits until the sealed batch is durable. Returns at once when none is under way.
    ///
    /// Cancel safe: the relay waits for other things at the same time.
    fn confirmed(&mut self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Gives up what was handed over since the last seal, so that no reader waits for it. The
    /// session ends with it.
    fn abort(&mut self) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Why a record was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obstacle {
    /// There is no room before some of what was handed over has arrived.
    Full,
    /// The sink has to find out about the record's topic first.
    Unprepared,
    /// This record can not be taken as it stands; others can. The text says why.
    Refused(String),
    /// The sink is broken: [`Sink::overcome`] answers with the error.
    Broken,
}

#[cfg(test)]
mod tests;
