//! The client of a producer, with a thread that takes in what it reports.
//!
//! `rdkafka` has such a client too, `ThreadedProducer`. It asks for reports for 100 ms at a time and rounds what is left of
//! them down to whole milliseconds, so that its thread spins through the last one: up to a hundredth of a processor for
//! each producer of an idle relay, of which there are three.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaResult;
use rdkafka::producer::{BaseProducer, Producer as _, PurgeConfig};

use super::cluster::{Cluster, Context};
use crate::error::{Error, Kind};

/// How long the thread asks for reports at a time. They end no wait of it, only its own end does: a client that is dropped
/// is gone after so long. Of each wait the last millisecond is spun through.
///
/// Until then it goes on with what is no record, such as a question for its producer id that was not answered: it may fence
/// the client that comes after it, which then gives way as to another relay and comes back.
const LISTEN: Duration = Duration::from_millis(250);

/// A client whose reports are taken in.
pub(super) struct Client {
    producer: Arc<BaseProducer<Context>>,
    dropped: Arc<AtomicBool>,
}

impl Client {
    pub(super) fn new(cluster: &Cluster, config: &ClientConfig) -> Result<Self, Error> {
        let created: KafkaResult<BaseProducer<Context>> =
            config.create_with_context(cluster.context());
        let created = created.map_err(|error| cluster.error("creating the producer", error))?;
        let (producer, dropped) = (Arc::new(created), Arc::new(AtomicBool::new(false)));
        let (heard, is_over) = (Arc::clone(&producer), Arc::clone(&dropped));
        thread::Builder::new()
            .name("kafka-reports".to_owned())
            .spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    heard.poll(LISTEN);
                }
            })
            .map_err(|error| {
                Error::new(Kind::Unavailable, "no thread for the kafka producer").caused_by(error)
            })?;
        Ok(Client { producer, dropped })
    }

    /// For what has to outlive this.
    pub(super) fn producer(&self) -> &Arc<BaseProducer<Context>> {
        &self.producer
    }
}

impl Deref for Client {
    type Target = BaseProducer<Context>;

    fn deref(&self) -> &Self::Target {
        &self.producer
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::Relaxed);
        // No record is sent any more, though the thread has the client until it wakes.
        self.producer.purge(PurgeConfig::default().queue().inflight().non_blocking());
    }
}
