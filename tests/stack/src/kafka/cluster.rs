//! The brokers of our own that form one Kafka.

use std::borrow::Borrow;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::libraries::Install;
use super::node::{Listeners, Node};
use super::secure::{Mechanism, Secure};
use super::topic;
use crate::error::{Error, Kind};
use crate::ports;
use crate::proxy::Proxy;
use crate::server::Server;
use crate::settings::Settings;
use crate::unique::random;

/// Recovery of the logs after a kill is part of it.
const START_MAX: Duration = Duration::from_secs(60);

/// How often new brokers may find that a port was taken in the meantime.
const PORTS_MAX: u32 = 5;

/// What was asked for.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) brokers: u32,
    pub(super) proxied: bool,
    pub(super) secure: Option<Secure>,
    pub(super) authorizer: bool,
    pub(super) measured: bool,
}

impl Shape {
    pub(super) const SINGLE: Shape =
        Shape { brokers: 1, proxied: false, secure: None, authorizer: false, measured: false };
}

#[derive(Debug)]
pub(super) struct Cluster {
    id: String,
    nodes: Vec<Arc<Node>>,
    secure: Option<Secure>,
    asks: bool,
}

impl Cluster {
    /// Makes the brokers and starts them.
    pub(super) fn create(
        install: &Install,
        settings: &Settings,
        shape: &Shape,
    ) -> Result<Self, Error> {
        let id = cluster_id();
        let mut nodes = (1..=shape.brokers)
            .map(|number| Node::create(install.clone(), settings, number, shape.measured))
            .collect::<Result<Vec<Node>, Error>>()?;
        listen(&mut nodes, shape)?;
        each(&nodes, |node| node.format(&id, shape.secure.as_ref()))?;
        let deadline = Instant::now() + START_MAX;
        let mut attempts = 1;
        let start = |nodes: &[Node]| {
            each(nodes, |node| node.start(deadline))?;
            serve(nodes, &id, deadline)
        };
        while let Err(error) = start(&nodes) {
            if attempts == PORTS_MAX || !nodes.iter().any(Node::lost_port) {
                return Err(error);
            }
            attempts += 1;
            each(&nodes, Node::kill)?;
            listen(&mut nodes, shape)?;
        }
        Ok(Cluster {
            id,
            nodes: nodes.into_iter().map(Arc::new).collect(),
            secure: shape.secure.clone(),
            asks: shape.authorizer,
        })
    }

    pub(super) fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Whether it asks what a client may do.
    pub(super) fn asks(&self) -> bool {
        self.asks
    }

    pub(super) fn addresses(&self) -> String {
        let addresses: Vec<String> = self.nodes.iter().map(|node| node.address()).collect();
        addresses.join(",")
    }

    pub(super) fn secure_client(
        &self,
        mechanism: Mechanism,
    ) -> Option<Vec<(&'static str, String)>> {
        let addresses: Vec<String> =
            self.nodes.iter().filter_map(|node| node.secure_address()).collect();
        Some(self.secure.as_ref()?.client(addresses.join(","), mechanism))
    }

    pub(super) fn restart_one(&self, node: &Node) -> Result<(), Error> {
        node.stop()?;
        let deadline = Instant::now() + START_MAX;
        node.start(deadline)?;
        serve(&[node], &self.id, deadline)
    }
}

/// Waits until these brokers have joined and every partition has its leader. A broker that ends
/// meanwhile is told with its log: what listens in its place may be somebody else.
fn serve<N: Borrow<Node>>(nodes: &[N], id: &str, deadline: Instant) -> Result<(), Error> {
    let addresses: Vec<String> = nodes.iter().map(|node| node.borrow().address()).collect();
    let members: Vec<u32> = nodes.iter().map(|node| node.borrow().number()).collect();
    topic::wait_for_cluster(&addresses.join(","), id, &members, deadline, || {
        nodes.iter().try_for_each(|node| node.borrow().is_running())
    })
}

impl Server for Cluster {
    fn kill(&self) -> Result<(), Error> {
        each(&self.nodes, |node| node.kill())
    }

    fn stop(&self) -> Result<(), Error> {
        each(&self.nodes, |node| node.stop())
    }

    fn pause(&self) -> Result<(), Error> {
        each(&self.nodes, |node| node.pause())
    }

    fn resume(&self) -> Result<(), Error> {
        self.nodes.iter().for_each(|node| node.resume());
        Ok(())
    }

    fn restart(&self) -> Result<(), Error> {
        self.stop()?;
        let deadline = Instant::now() + START_MAX;
        each(&self.nodes, |node| node.start(deadline))?;
        serve(&self.nodes, &self.id, deadline)
    }
}

/// Gives the nodes ports of their own, which each of them has to know of all.
fn listen(nodes: &mut [Node], shape: &Shape) -> Result<(), Error> {
    let voters: Vec<(u32, u16)> =
        nodes.iter().map(Node::number).zip(ports::free_at_once(nodes.len())?).collect();
    for (node, (_, controller)) in nodes.iter_mut().zip(&voters) {
        let client = ports::free()?;
        let proxied = if shape.proxied {
            let port = ports::free()?;
            Some((port, Proxy::start(("127.0.0.1", port))?))
        } else {
            None
        };
        let secure = shape.secure.as_ref().map(|_| ports::free()).transpose()?;
        let listeners = Listeners { client, controller: *controller, proxied, secure };
        node.listen(listeners, &voters, shape)?;
    }
    Ok(())
}

/// Does it with all at once: a start takes seconds, and the nodes wait for each other.
fn each<N: Sync>(nodes: &[N], work: impl Fn(&N) -> Result<(), Error> + Sync) -> Result<(), Error> {
    thread::scope(|scope| {
        let running: Vec<_> = nodes.iter().map(|node| scope.spawn(|| work(node))).collect();
        let results: Vec<_> = running.into_iter().map(thread::ScopedJoinHandle::join).collect();
        results.into_iter().try_for_each(|result| {
            let lost = |_| Err(Error::new(Kind::Server, "the work was not finished"));
            result.unwrap_or_else(lost)
        })
    })
}

/// 16 random bytes in base64 without padding: 22 digits, of which the last has two bits.
fn cluster_id() -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let digit = || {
        let number = usize::try_from(random() % DIGITS.len() as u64);
        number.ok().and_then(|number| DIGITS.get(number)).map_or('A', |digit| char::from(*digit))
    };
    std::iter::repeat_with(digit).take(21).chain(['A']).collect()
}
