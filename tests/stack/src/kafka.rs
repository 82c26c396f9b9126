//! A Kafka broker and its topics.

mod broker;
mod libraries;
mod topic;

use std::sync::Arc;
use std::time::Duration;

#[cfg(test)]
pub(crate) use libraries::java_version;
pub(crate) use libraries::{Source, Way};

use crate::error::{Error, Kind};
use crate::settings::{KAFKA_BROKERS, Settings};
use crate::stack::{blocking, tell};
use broker::Broker;

/// How long a broker of somebody else may take to answer for the first time.
const ATTACH_MAX: Duration = Duration::from_secs(5);

/// A Kafka of one broker, in KRaft mode, that creates no topic by itself.
#[derive(Debug)]
pub struct Kafka {
    brokers: String,
    /// `None` when the broker is not ours.
    broker: Option<Arc<Broker>>,
}

impl Kafka {
    pub(crate) async fn start(way: Way, settings: &Settings) -> Result<Self, Error> {
        match way {
            Way::Environment(brokers) => {
                let asked = brokers.clone();
                let answer = blocking(move || topic::wait_for_answer(&asked, ATTACH_MAX)).await;
                answer.map_err(|error| {
                    let text = format!("{KAFKA_BROKERS}: no broker answers at {brokers}");
                    Error::new(Kind::Environment, text).caused_by(error)
                })?;
                tell(&format!("Kafka at {brokers}: {KAFKA_BROKERS} is set"));
                Ok(Kafka { brokers, broker: None })
            }
            Way::Local(install) => {
                let why = install.why();
                let settings = settings.clone();
                let broker = blocking(move || Broker::create(install, &settings)).await?;
                tell(&format!("Kafka at {}: {why}", broker.address()));
                Ok(Kafka { brokers: broker.address(), broker: Some(Arc::new(broker)) })
            }
        }
    }

    /// The bootstrap addresses, `host:port` with commas between several.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Creates a topic with a unique name made from this one, and answers with the name when all
    /// its partitions have a leader.
    ///
    /// On a broker that is not ours it is removed when the calling thread ends, which in a test is
    /// the end of the test.
    pub async fn fresh_topic(&self, name: &str, partitions: i32) -> Result<String, Error> {
        let topic = topic::create(&self.brokers, name, partitions).await?;
        if self.broker.is_none() {
            topic::borrow(&self.brokers, &topic);
        }
        Ok(topic)
    }

    /// Ends the broker by SIGKILL. Answers when it is gone.
    pub async fn kill(&self) -> Result<(), Error> {
        let broker = self.ours()?;
        blocking(move || broker.kill()).await
    }

    /// Shuts the broker down in order.
    pub async fn stop(&self) -> Result<(), Error> {
        let broker = self.ours()?;
        blocking(move || broker.stop()).await
    }

    /// Halts the broker by SIGSTOP: its connections stay open and nothing answers, as on a machine
    /// that hangs. Answers when it no longer runs.
    pub async fn pause(&self) -> Result<(), Error> {
        let broker = self.ours()?;
        blocking(move || broker.pause()).await
    }

    /// Lets it go on after [`pause`](Kafka::pause), as if no time had passed.
    pub async fn resume(&self) -> Result<(), Error> {
        let broker = self.ours()?;
        blocking(move || {
            broker.resume();
            Ok(())
        })
        .await
    }

    /// Starts it again, after [`kill`](Kafka::kill) or [`stop`](Kafka::stop), with the same address
    /// and data; stops it first when it runs. Answers when every partition has its leader.
    pub async fn restart(&self) -> Result<(), Error> {
        let broker = self.ours()?;
        blocking(move || broker.restart()).await
    }

    /// Where the server's files are.
    #[cfg(test)]
    pub(crate) fn directory(&self) -> std::path::PathBuf {
        self.broker.as_ref().expect("the server is ours").directory()
    }

    fn ours(&self) -> Result<Arc<Broker>, Error> {
        self.broker.as_ref().map(Arc::clone).ok_or_else(|| {
            let text = format!(
                "the broker of {KAFKA_BROKERS} is not ours to break; ask for Needs::breakable()"
            );
            Error::new(Kind::Environment, text)
        })
    }
}
