//! A socket to Postgres and the messages that come from it.

use std::io;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;

use super::buffer::{Buffer, Frame};
use super::encryption::{Attempt, Negotiation};
use super::end_point::end_point_hash;
use super::endpoint::Endpoint;
use super::low_water::LowWater;
use super::tls::{self, Offer};
use super::tls_error::{not_offered, refused_later};
use crate::error::{Error, Kind};

/// What is waited for until the server has said whether it speaks TLS.
pub(super) const TLS_QUESTION: &str = "the question for TLS";

/// What is waited for while the connection is being encrypted.
pub(super) const TLS_HANDSHAKE: &str = "the TLS handshake";

/// The most addresses of a name that are tried.
const ADDRESSES_MAX: usize = 16;

/// The half of the socket that is read.
pub(super) type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
/// The half of the socket that is written.
pub(super) type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

/// Both halves of the socket and what has been received.
pub(super) struct Connection {
    pub(super) reader: ReadHalf,
    pub(super) writer: WriteHalf,
    pub(super) buffer: Buffer,
    /// Only TCP sockets have it.
    pub(super) low_water: Option<LowWater>,
    pub(super) channel: Channel,
    pub(super) endpoint: Endpoint,
}

/// How far the connection is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Plain,
    /// Encrypted; with the hash of the server's certificate, to which a log-in can be bound.
    Tls {
        end_point: Option<Vec<u8>>,
    },
}

impl Connection {
    /// Opens the socket, and encrypts it as the attempt says; the caller bounds the time.
    ///
    /// `phase` is kept at what is waited for.
    pub(super) async fn open(
        endpoint: &Endpoint,
        attempt: Attempt,
        phase: &mut &'static str,
    ) -> Result<Self, Error> {
        *phase = "a connection";
        if endpoint.is_socket() {
            let path = Path::new(endpoint.host()).join(format!(".s.PGSQL.{}", endpoint.port()));
            let socket =
                UnixStream::connect(path).await.map_err(|error| unreachable(endpoint, error))?;
            let (reader, writer) = socket.into_split();
            return Ok(Connection::new(Box::new(reader), Box::new(writer), endpoint));
        }
        let mut socket = connect(endpoint).await?;
        let low_water = LowWater::new(&socket);
        let encrypted = match attempt {
            Attempt::Plain => false,
            _ if endpoint.encryption().negotiation == Negotiation::Direct => true,
            Attempt::Tls | Attempt::TlsIfOffered => {
                *phase = TLS_QUESTION;
                match tls::ask(endpoint, &mut socket).await? {
                    Offer::Tls => true,
                    Offer::None if attempt == Attempt::TlsIfOffered => false,
                    Offer::None => return Err(not_offered(endpoint)),
                }
            }
        };
        if !encrypted {
            let (reader, writer) = socket.into_split();
            let connection = Connection::new(Box::new(reader), Box::new(writer), endpoint);
            return Ok(Connection { low_water, ..connection });
        }
        *phase = TLS_HANDSHAKE;
        let stream = Box::pin(tls::encrypt(endpoint, socket)).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let end_point = certificates.and_then(<[_]>::first).and_then(|der| end_point_hash(der));
        let (reader, writer) = tokio::io::split(stream);
        let connection = Connection::new(Box::new(reader), Box::new(writer), endpoint);
        Ok(Connection { low_water, channel: Channel::Tls { end_point }, ..connection })
    }

    /// A connection over these halves, as it is before anything has been said.
    pub(super) fn new(reader: ReadHalf, writer: WriteHalf, endpoint: &Endpoint) -> Self {
        Connection {
            reader,
            writer,
            buffer: Buffer::new(),
            low_water: None,
            channel: Channel::Plain,
            endpoint: endpoint.clone(),
        }
    }

    /// Sends whole messages.
    pub(super) async fn send(&mut self, messages: &[u8]) -> Result<(), Error> {
        self.writer.write_all(messages).await.map_err(|error| lost(&self.endpoint, error))
    }

    /// Waits for the next message that is not a mere notice.
    pub(super) async fn receive(&mut self) -> Result<Frame, Error> {
        loop {
            while let Some(frame) = self.buffer.frame()? {
                if !is_notice(frame.tag) {
                    return Ok(frame);
                }
            }
            let count = self
                .reader
                .read(self.buffer.spare())
                .await
                .map_err(|error| lost(&self.endpoint, error))?;
            if count == 0 {
                return Err(closed(&self.endpoint));
            }
            self.buffer.filled(count);
        }
    }
}

/// Tries each address of the host's name. An address that does not answer has no more than its
/// share of the time, so that the next one is tried as well.
async fn connect(endpoint: &Endpoint) -> Result<TcpStream, Error> {
    let addresses: Vec<_> = lookup_host((endpoint.host(), endpoint.port()))
        .await
        .map_err(|error| {
            Error::new(
                Kind::Unavailable,
                format!("the host of postgres at {} has no address", endpoint.address()),
            )
            .hint("check its name in the database url, and the name servers of this machine")
            .caused_by(error)
        })?
        .take(ADDRESSES_MAX)
        .collect();
    let share = endpoint.connect_timeout() / u32::try_from(addresses.len().max(1)).unwrap_or(1);
    let mut refusal = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => {
                socket.set_nodelay(true).map_err(|error| unreachable(endpoint, error))?;
                return Ok(socket);
            }
            Ok(Err(error)) => refusal = error,
            Err(_) => refusal = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(unreachable(endpoint, refusal))
}

/// Messages that may come at any time and change nothing here: a notice, a changed parameter,
/// a notification.
pub(super) fn is_notice(tag: u8) -> bool {
    matches!(tag, b'N' | b'S' | b'A')
}

fn unreachable(endpoint: &Endpoint, error: io::Error) -> Error {
    Error::new(Kind::Unavailable, format!("cannot reach postgres at {}", endpoint.address()))
        .hint("check host and port, that the server runs, and that nothing between blocks it")
        .caused_by(error)
}

/// The connection broke.
pub(super) fn lost(endpoint: &Endpoint, error: io::Error) -> Error {
    if let Some(refusal) = refused_later(endpoint, &error) {
        return refusal.caused_by(error);
    }
    Error::new(
        Kind::Unavailable,
        format!("the connection to postgres at {} broke", endpoint.address()),
    )
    .caused_by(error)
}

/// The server hung up without a word.
pub(super) fn closed(endpoint: &Endpoint) -> Error {
    Error::new(
        Kind::Unavailable,
        format!("postgres at {} closed the connection", endpoint.address()),
    )
}

/// A message that has no place where it came.
pub(super) fn unexpected(endpoint: &Endpoint, tag: u8, place: &str) -> Error {
    Error::new(
        Kind::Malformed,
        format!(
            "postgres at {} sent a message of kind {:?} {place}",
            endpoint.address(),
            char::from(tag)
        ),
    )
}

/// An answer did not come in time.
pub(super) fn late(endpoint: &Endpoint, what: &str, limit: std::time::Duration) -> Error {
    Error::new(
        Kind::Unavailable,
        format!("postgres at {} did not answer {what} within {limit:?}", endpoint.address()),
    )
}
