//! Free ports on the loopback.

use std::net::{Ipv4Addr, TcpListener};

use crate::error::{Error, Kind};
use crate::unique::random;

/// Below the range from which Linux (32768) and macOS (49152) take the ports of outgoing
/// connections. A port from there could be lost while its server is down: a client that dials it
/// again and again is in the end given that very port as its own, and connects to itself.
const FIRST: u16 = 15_000;
const COUNT: u64 = 17_000;
const ATTEMPTS_MAX: u32 = 1_000;

/// A port that nobody listens on now. Another process may still take it before its server does,
/// so that the one who starts the server must try again with another one.
pub(crate) fn free() -> Result<u16, Error> {
    port(&listen()?)
}

/// So many of them, all different.
pub(crate) fn free_at_once(count: usize) -> Result<Vec<u16>, Error> {
    let listeners = std::iter::repeat_with(listen).take(count).collect::<Result<Vec<_>, _>>()?;
    listeners.iter().map(port).collect()
}

fn port(listener: &TcpListener) -> Result<u16, Error> {
    let address = listener
        .local_addr()
        .map_err(|error| Error::new(Kind::Server, "a port has no number").caused_by(error))?;
    Ok(address.port())
}

/// Listens on a port of the same range.
pub(crate) fn listen() -> Result<TcpListener, Error> {
    for _ in 0..ATTEMPTS_MAX {
        let offset = u16::try_from(random() % COUNT).expect("the count of ports fits 16 bits");
        let port = FIRST + offset;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return Ok(listener);
        }
    }
    Err(Error::new(Kind::Server, "no free port on 127.0.0.1 between 15000 and 32000"))
}
