//! One broker among those of a Kafka.

use std::sync::Arc;

use super::cluster::Cluster;
use super::node::Node;
use crate::error::Error;
use crate::proxy::Proxy;
use crate::stack::blocking;

/// One broker of a [`Kafka`](super::Kafka), to be broken while the others go on.
///
/// ```no_run
/// # async fn example() -> Result<(), tailrace_stack::Error> {
/// # use tailrace_stack::{Needs, Stack};
/// let stack = Stack::start(Needs::KAFKA.brokers(3).breakable()).await?;
/// let topic = stack.kafka().fresh_topic("orders", 1).await?;
/// let leader = stack.kafka().leader(&topic, 0).await?;
/// leader.kill().await?;
/// leader.restart().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Broker {
    pub(super) cluster: Arc<Cluster>,
    pub(super) node: Arc<Node>,
}

impl Broker {
    /// Its place among the brokers, from 0.
    pub fn index(&self) -> usize {
        self.node.number() as usize - 1
    }

    /// Its own address, `host:port`.
    pub fn address(&self) -> String {
        self.node.address()
    }

    /// The proxy in front of it.
    ///
    /// # Panics
    ///
    /// When the stack was started without [`Needs::proxied`](crate::Needs::proxied).
    pub fn proxy(&self) -> &Proxy {
        self.node.proxy().expect("the stack was started with Needs::proxied()")
    }

    /// Ends it by SIGKILL. Answers when it is gone; the others notice within some seconds.
    pub async fn kill(&self) -> Result<(), Error> {
        self.on_node(Node::kill).await
    }

    /// Shuts it down in order: it hands over what it leads.
    pub async fn stop(&self) -> Result<(), Error> {
        self.on_node(Node::stop).await
    }

    /// Halts it by SIGSTOP, with its connections open.
    pub async fn pause(&self) -> Result<(), Error> {
        self.on_node(Node::pause).await
    }

    /// Lets it go on after [`pause`](Broker::pause).
    pub async fn resume(&self) -> Result<(), Error> {
        self.on_node(|node| {
            node.resume();
            Ok(())
        })
        .await
    }

    /// Starts it again with the same address and data; stops it first when it runs. Answers when
    /// it has joined the others and every partition has a leader, so most of the others must run.
    pub async fn restart(&self) -> Result<(), Error> {
        let (cluster, node) = (Arc::clone(&self.cluster), Arc::clone(&self.node));
        blocking(move || cluster.restart_one(&node)).await
    }

    async fn on_node(
        &self,
        work: impl FnOnce(&Node) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let node = Arc::clone(&self.node);
        blocking(move || work(&node)).await
    }
}
