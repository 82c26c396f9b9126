//! Stands between a client and a server, and makes the network between them fail.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::error::{Error, Kind};
use crate::ports;

/// How much is read before it is passed on.
const CHUNK_BYTES: usize = 64 * 1024;

/// A TCP proxy on the loopback in front of one server, for faults of the network.
///
/// It passes everything until it is told otherwise. Orders are in force when the call returns:
/// after [`hold`](Proxy::hold) or [`cut`](Proxy::cut) not one byte more is handed over. They hold
/// for open connections and for new ones, and the port stays the same. It belongs to no runtime.
/// Dropping it resets its connections.
///
/// ```no_run
/// # async fn example() -> Result<(), tailrace_stack::Error> {
/// # use tailrace_stack::{Needs, Stack, Towards};
/// let stack = Stack::start(Needs::POSTGRES).await?;
/// let proxy = stack.postgres().proxy()?;
/// let url = proxy.url(stack.postgres().url());
/// // A client that connects to `url` gets no answers from now on; its requests arrive.
/// proxy.hold_towards(Towards::Client);
/// // Now they come, late.
/// proxy.pass();
/// # Ok(())
/// # }
/// ```
pub struct Proxy {
    address: SocketAddr,
    orders: Arc<watch::Sender<Orders>>,
    thread: Option<JoinHandle<()>>,
}

/// A direction through a [`Proxy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Towards {
    /// From the server to the client: answers.
    Client,
    /// From the client to the server: requests.
    Server,
}

/// What the connections are to do. All bytes are handed over under its lock, so that a change is
/// in force when it has been made.
#[derive(Default)]
struct Orders {
    cut: bool,
    /// Grows when all connections of the moment are to be reset.
    resets: u64,
    to_client: Flow,
    to_server: Flow,
    connections: usize,
    corrupted: u64,
    ended: bool,
}

#[derive(Default)]
struct Flow {
    held: bool,
    delay: Duration,
    /// How many bytes may still pass before everything is reset.
    budget: Option<u64>,
    /// What is changed where it comes by.
    corrupt: Option<Arc<str>>,
}

impl Orders {
    fn flow(&self, towards: Towards) -> &Flow {
        match towards {
            Towards::Client => &self.to_client,
            Towards::Server => &self.to_server,
        }
    }

    fn flow_mut(&mut self, towards: Towards) -> &mut Flow {
        match towards {
            Towards::Client => &mut self.to_client,
            Towards::Server => &mut self.to_server,
        }
    }

    /// Whether a connection that was made after so many resets lives on.
    fn spares(&self, resets: u64) -> bool {
        !self.cut && self.resets == resets
    }

    /// Hands over what is allowed of these bytes, and answers with how many that were.
    fn hand_over(
        &mut self,
        towards: Towards,
        resets: u64,
        bytes: &[u8],
        write: impl FnOnce(&[u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if !self.spares(resets) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let flow = self.flow_mut(towards);
        if flow.held {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let Some(budget) = flow.budget else { return write(bytes) };
        let allowed = usize::try_from(budget).map_or(bytes.len(), |most| most.min(bytes.len()));
        let written = write(bytes.get(..allowed).unwrap_or(bytes))?;
        let left = budget - written as u64;
        flow.budget = (left > 0).then_some(left);
        if left == 0 {
            self.resets += 1;
        }
        Ok(written)
    }
}

impl Proxy {
    /// A proxy on a free port, in front of the server at this address, such as `127.0.0.1:5432`.
    pub fn start(server: impl ToSocketAddrs) -> Result<Proxy, Error> {
        let failed =
            |error: io::Error| Error::new(Kind::Server, "cannot start a proxy").caused_by(error);
        let server = server.to_socket_addrs().map_err(failed)?.next().ok_or_else(|| {
            Error::new(Kind::Server, "there is no address to put a proxy in front of")
        })?;
        let listener = ports::listen()?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener).map_err(failed)?
        };
        let orders = Arc::new(watch::Sender::new(Orders::default()));
        let followed = Arc::clone(&orders);
        // A thread of its own, because a test's runtime may end before its servers do.
        let thread = thread::Builder::new()
            .name("stack-proxy".to_owned())
            .spawn(move || runtime.block_on(serve(&listener, server, &followed)))
            .map_err(failed)?;
        Ok(Proxy { address, orders, thread: Some(thread) })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// This URL of the server, but through the proxy.
    pub fn url(&self, url: &str) -> String {
        let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", url));
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let user = authority.rsplit_once('@').map_or(String::new(), |(user, _)| format!("{user}@"));
        format!("{scheme}://{user}{}{path}", self.address)
    }

    /// Ends every fault: what was held back arrives, and new connections reach the server.
    pub fn pass(&self) {
        self.change(|orders| {
            orders.cut = false;
            orders.to_client = Flow::default();
            orders.to_server = Flow::default();
        });
    }

    /// Resets all connections, and each new one as soon as it is made, until
    /// [`pass`](Proxy::pass).
    pub fn cut(&self) {
        self.change(|orders| {
            orders.cut = true;
            orders.resets += 1;
        });
    }

    /// Resets all connections of this moment; new ones are served.
    pub fn reset(&self) {
        self.change(|orders| orders.resets += 1);
    }

    /// Resets all connections when this many more bytes have been handed over in this direction,
    /// counted over all of them; then new ones are served again.
    pub fn cut_after(&self, towards: Towards, bytes: u64) {
        self.change(|orders| match bytes {
            0 => orders.resets += 1,
            _ => orders.flow_mut(towards).budget = Some(bytes),
        });
    }

    /// Swallows everything in both directions, as a black hole: connections stay open, new ones
    /// are made, nothing arrives. Neither side learns that the other one is gone, so that a
    /// connection whose client ends now stays half open.
    pub fn hold(&self) {
        self.hold_towards(Towards::Client);
        self.hold_towards(Towards::Server);
    }

    /// The same in one direction: a request that arrives and whose answer does not, or the other
    /// way round.
    pub fn hold_towards(&self, towards: Towards) {
        self.change(|orders| orders.flow_mut(towards).held = true);
    }

    /// Keeps each piece of up to 64 KiB for so long, in each direction, before it hands it over.
    pub fn delay(&self, delay: Duration) {
        self.change(|orders| {
            orders.to_client.delay = delay;
            orders.to_server.delay = delay;
        });
    }

    /// Changes a byte of this text wherever it comes by within a piece towards the client, until
    /// [`pass`](Proxy::pass): whoever looks at a checksum finds it damaged.
    ///
    /// # Panics
    ///
    /// When the text is empty.
    pub fn corrupt(&self, text: &str) {
        assert!(!text.is_empty(), "a text is to be changed");
        self.change(|orders| orders.to_client.corrupt = Some(text.into()));
    }

    /// How often it has changed a text.
    pub fn corrupted(&self) -> u64 {
        self.orders.borrow().corrupted
    }

    /// How many clients are connected.
    pub fn connections(&self) -> usize {
        self.orders.borrow().connections
    }

    fn change(&self, change: impl FnOnce(&mut Orders)) {
        self.orders.send_modify(change);
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.change(|orders| orders.ended = true);
        if let Some(thread) = self.thread.take() {
            // It ends at once and has nothing to tell.
            thread.join().ok();
        }
    }
}

async fn serve(listener: &TcpListener, server: SocketAddr, orders: &Arc<watch::Sender<Orders>>) {
    let mut seen = orders.subscribe();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // It ends with its sender, which is ours.
            _ = seen.wait_for(|orders| orders.ended) => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                // A client that is gone already is none.
                let Ok((client, _)) = accepted else { continue };
                connections.spawn(carry(client, server, Arc::clone(orders)));
            }
        }
    }
}

/// One connection, from its first byte to its end.
async fn carry(mut client: TcpStream, server: SocketAddr, orders: Arc<watch::Sender<Orders>>) {
    let _counted = Counted::new(&orders);
    let mut seen = orders.subscribe();
    let resets = seen.borrow().resets;
    let mut reached = None;
    let work = async {
        let held = |orders: &Orders| orders.to_server.held;
        released(&mut orders.subscribe(), held).await;
        let server = reached.insert(TcpStream::connect(server).await?);
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::try_join!(
            pump(Towards::Server, from_client, to_server, resets, &orders),
            pump(Towards::Client, from_server, to_client, resets, &orders),
        )
        .map(|_| ())
    };
    let in_order = tokio::select! {
        biased;
        _ = seen.wait_for(|orders| !orders.spares(resets)) => false,
        result = work => result.is_ok(),
    };
    if !in_order {
        // Without lingering the end of a connection is a reset, whatever was still to be sent.
        client.set_zero_linger().ok();
        if let Some(server) = reached {
            server.set_zero_linger().ok();
        }
    }
}

/// Hands over one direction until its sender has said all.
async fn pump(
    towards: Towards,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    resets: u64,
    orders: &watch::Sender<Orders>,
) -> io::Result<()> {
    let held = |orders: &Orders| orders.flow(towards).held;
    let mut seen = orders.subscribe();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        released(&mut seen, held).await;
        let length = tokio::select! {
            length = from.read(&mut buffer) => length?,
            _ = seen.changed() => continue,
        };
        let delay = orders.borrow().flow(towards).delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let corrupt = orders.borrow().flow(towards).corrupt.clone();
        if let (Some(text), Some(piece)) = (corrupt, buffer.get_mut(..length)) {
            let times = damage(piece, text.as_bytes());
            orders.send_modify(|orders| orders.corrupted += times);
        }
        let mut left = buffer.get(..length).unwrap_or_default();
        if left.is_empty() {
            released(&mut seen, held).await;
            return to.shutdown().await;
        }
        while !left.is_empty() {
            released(&mut seen, held).await;
            to.writable().await?;
            let mut result = Ok(0);
            orders.send_if_modified(|orders| {
                result = orders.hand_over(towards, resets, left, |bytes| to.try_write(bytes));
                !orders.spares(resets)
            });
            match result {
                Ok(written) => left = left.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Changes the first byte of each of these texts, and answers with how many there were.
fn damage(mut piece: &mut [u8], text: &[u8]) -> u64 {
    let mut times = 0;
    while let Some(at) = piece.windows(text.len()).position(|window| window == text)
        && let Some((byte, rest)) = piece.get_mut(at..).and_then(<[u8]>::split_first_mut)
    {
        *byte ^= 1;
        times += 1;
        piece = rest;
    }
    times
}

/// Waits until nothing holds this direction.
async fn released(seen: &mut watch::Receiver<Orders>, held: impl Fn(&Orders) -> bool) {
    // It fails when there is nobody left to give orders, who keeps nothing back either.
    seen.wait_for(|orders| !held(orders)).await.map(drop).ok();
}

/// Counts a connection for as long as it lives.
struct Counted<'a>(&'a watch::Sender<Orders>);

impl<'a> Counted<'a> {
    fn new(orders: &'a watch::Sender<Orders>) -> Self {
        orders.send_modify(|orders| orders.connections += 1);
        Counted(orders)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|orders| orders.connections -= 1);
    }
}
