//! A Kafka broker and its topics.

mod acl;
mod broker;
mod cluster;
#[cfg(feature = "docker")]
mod container;
mod group;
mod libraries;
mod node;
mod properties;
mod request;
mod secure;
mod topic;

use std::sync::Arc;
use std::time::Duration;

pub use acl::{Acl, Operation};
pub use broker::Broker;
#[cfg(test)]
pub(crate) use libraries::java_version;
pub(crate) use libraries::{Source, Way};
pub use secure::Mechanism;

use crate::certificates::Certificates;
use crate::error::{Error, Kind};
use crate::server::Server;
use crate::settings::{KAFKA_BROKERS, Settings};
use crate::stack::{Needs, blocking, tell};
use crate::unique::unique;
use cluster::{Cluster, Shape};
use secure::Secure;

/// How long a broker of somebody else may take to answer for the first time.
const ATTACH_MAX: Duration = Duration::from_secs(5);

/// A Kafka in KRaft mode that creates no topic by itself: one broker, or as many as
/// [`Needs::brokers`] asked for.
///
/// With three or more, topics have three replicas, of which two must be in sync.
#[derive(Debug)]
pub struct Kafka {
    brokers: String,
    /// `None` when the brokers are not ours.
    server: Option<Arc<dyn Server>>,
    /// The same when they are local.
    cluster: Option<Arc<Cluster>>,
}

impl Kafka {
    pub(crate) async fn start(
        way: Way,
        needs: Needs,
        settings: &Settings,
        certificates: Option<&Certificates>,
    ) -> Result<Self, Error> {
        match way {
            Way::Environment(brokers) => {
                let asked = brokers.clone();
                let answer = blocking(move || topic::wait_for_answer(&asked, ATTACH_MAX)).await;
                answer.map_err(|error| {
                    let text = format!("{KAFKA_BROKERS}: no broker answers at {brokers}");
                    Error::new(Kind::Environment, text).caused_by(error)
                })?;
                tell(&format!("Kafka at {brokers}: {KAFKA_BROKERS} is set"));
                Ok(Kafka { brokers, server: None, cluster: None })
            }
            #[cfg(feature = "docker")]
            Way::Docker => {
                let settings = settings.clone();
                let (server, brokers) = blocking(move || container::start(&settings)).await?;
                tell(&format!("Kafka at {brokers}: in Docker"));
                Ok(Kafka { brokers, server: Some(server), cluster: None })
            }
            Way::Local(install) => {
                let why = install.why();
                let settings = settings.clone();
                let secure = certificates.map(Secure::new);
                let shape = Shape {
                    brokers: needs.brokers,
                    proxied: needs.proxied,
                    secure,
                    authorizer: needs.authorizer,
                    measured: needs.measured,
                };
                let create = move || Cluster::create(&install, &settings, &shape);
                let cluster = blocking(create).await?;
                let brokers = cluster.addresses();
                tell(&format!("Kafka at {brokers}: {why}"));
                let cluster = Arc::new(cluster);
                let server: Arc<dyn Server> = Arc::<Cluster>::clone(&cluster);
                Ok(Kafka { brokers, server: Some(server), cluster: Some(cluster) })
            }
        }
    }

    /// The bootstrap addresses, `host:port` with commas between several.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// What a client of librdkafka is configured with to come over TLS with this mechanism: the
    /// addresses of the brokers among it, the authority's certificate, user and password.
    ///
    /// # Panics
    ///
    /// When the stack was started without [`Needs::tls`].
    pub fn secure_client(&self, mechanism: Mechanism) -> Vec<(&'static str, String)> {
        let cluster = self.cluster.as_ref();
        let client = cluster.and_then(|cluster| cluster.secure_client(mechanism));
        client.expect("the stack was started with Needs::tls()")
    }

    /// Gives the user of [`secure_client`](Kafka::secure_client) these rights and no others.
    /// Answers when every broker knows them.
    ///
    /// # Panics
    ///
    /// When the stack was started without [`Needs::authorizer`].
    pub async fn allow(&self, acls: &[Acl]) -> Result<(), Error> {
        let cluster = self.cluster.as_ref().filter(|cluster| cluster.asks());
        let cluster = cluster.expect("the stack was started with Needs::authorizer()");
        let addresses = cluster.nodes().iter().map(|node| node.address()).collect::<Vec<_>>();
        let acls = acls.to_vec();
        blocking(move || acl::set(&addresses, secure::PRINCIPAL, &acls)).await
    }

    /// Creates a topic with a unique name made from this one, and answers with the name when all
    /// its partitions have a leader.
    ///
    /// On a broker that is not ours it is removed when the calling thread ends, which in a test is
    /// the end of the test.
    pub async fn fresh_topic(&self, name: &str, partitions: i32) -> Result<String, Error> {
        let topic = unique(name);
        topic::create(&self.brokers, &topic, partitions).await?;
        if self.server.is_none() {
            topic::borrow(&self.brokers, &topic);
        }
        Ok(topic)
    }

    /// Creates topics of these names behind a unique prefix made from `name`, for code that knows its topics by name and
    /// takes a prefix. Answers with the prefix when all of them have leaders.
    ///
    /// They are removed as those of [`fresh_topic`](Kafka::fresh_topic) are.
    pub async fn fresh_topics(
        &self,
        name: &str,
        topics: impl IntoIterator<Item = impl AsRef<str>>,
        partitions: i32,
    ) -> Result<String, Error> {
        let prefix = format!("{}.", unique(name));
        for topic in topics {
            let topic = format!("{prefix}{}", topic.as_ref());
            topic::create(&self.brokers, &topic, partitions).await?;
            if self.server.is_none() {
                topic::borrow(&self.brokers, &topic);
            }
        }
        Ok(prefix)
    }

    /// Has a consumer group of the newer protocol (KIP-848) take a member for dead that was not heard of for so long, of
    /// at least 2 s. In the classic protocol the members say so themselves.
    ///
    /// # Errors
    ///
    /// Where the brokers do not know the protocol, or are not ours and allow no session as short as that.
    pub async fn set_group_session(&self, group: &str, session: Duration) -> Result<(), Error> {
        let address = self.brokers.split(',').next().unwrap_or_default().to_owned();
        let name = group.to_owned();
        blocking(move || group::set_session(&address, &name, session)).await
    }

    /// The broker at this place, from 0.
    ///
    /// # Panics
    ///
    /// When there are fewer, or when they are not ours; they are with
    /// [`Needs::breakable`] and with [`Needs::brokers`].
    pub fn broker(&self, index: usize) -> Broker {
        let cluster = self.cluster.as_ref().expect("the brokers are ours and local");
        let node = cluster.nodes().get(index).expect("the stack has so many brokers");
        Broker { cluster: Arc::clone(cluster), node: Arc::clone(node) }
    }

    /// The broker that leads a partition, as the cluster says now: for some seconds after a kill
    /// that may be the one that is gone.
    pub async fn leader(&self, topic: &str, partition: i32) -> Result<Broker, Error> {
        if self.cluster.is_none() {
            self.ours()?;
            let text = "a Kafka in Docker has one broker, which leads every partition";
            return Err(Error::new(Kind::Environment, text));
        }
        let (brokers, topic) = (self.brokers.clone(), topic.to_owned());
        let number = blocking(move || topic::leader(&brokers, &topic, partition)).await?;
        let index = usize::try_from(number - 1);
        Ok(self.broker(index.expect("our nodes are numbered from 1")))
    }

    /// The bootstrap addresses behind which every way to a broker leads through its
    /// [`proxy`](Broker::proxy).
    ///
    /// # Panics
    ///
    /// When the stack was started without [`Needs::proxied`].
    pub fn proxied_brokers(&self) -> String {
        let nodes = self.cluster.iter().flat_map(|cluster| cluster.nodes());
        let addresses: Vec<String> =
            nodes.filter_map(|node| Some(node.proxy()?.address().to_string())).collect();
        assert!(!addresses.is_empty(), "the stack was started without Needs::proxied()");
        addresses.join(",")
    }

    /// Ends all brokers by SIGKILL. Answers when they are gone.
    pub async fn kill(&self) -> Result<(), Error> {
        let server = self.ours()?;
        blocking(move || server.kill()).await
    }

    /// Shuts all brokers down in order.
    pub async fn stop(&self) -> Result<(), Error> {
        let server = self.ours()?;
        blocking(move || server.stop()).await
    }

    /// Halts all brokers by SIGSTOP: their connections stay open and nothing answers, as on
    /// machines that hang. Answers when none runs any more.
    pub async fn pause(&self) -> Result<(), Error> {
        let server = self.ours()?;
        blocking(move || server.pause()).await
    }

    /// Lets them go on after [`pause`](Kafka::pause), as if no time had passed.
    pub async fn resume(&self) -> Result<(), Error> {
        let server = self.ours()?;
        blocking(move || server.resume()).await
    }

    /// Starts them again, after [`kill`](Kafka::kill) or [`stop`](Kafka::stop), with the same
    /// addresses and data; stops them first when they run. Answers when every partition has its
    /// leader.
    pub async fn restart(&self) -> Result<(), Error> {
        let server = self.ours()?;
        blocking(move || server.restart()).await
    }

    /// Where the files of its first broker are.
    #[cfg(test)]
    pub(crate) fn directory(&self) -> std::path::PathBuf {
        self.broker(0).node.directory()
    }

    fn ours(&self) -> Result<Arc<dyn Server>, Error> {
        self.server.as_ref().map(Arc::clone).ok_or_else(|| {
            let text = format!(
                "the broker of {KAFKA_BROKERS} is not ours to break; ask for Needs::breakable()"
            );
            Error::new(Kind::Environment, text)
        })
    }
}
