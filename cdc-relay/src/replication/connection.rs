//! A socket to Postgres and the messages that come from it.

use std::io;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::buffer::{Buffer, Frame};
use super::endpoint::Endpoint;
use super::low_water::LowWater;
use crate::error::{Error, Kind};

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
    pub(super) endpoint: Endpoint,
}

impl Connection {
    /// Opens the socket; the caller bounds the time.
    pub(super) async fn open(endpoint: &Endpoint) -> Result<Self, Error> {
        let mut low_water = None;
        let (reader, writer): (ReadHalf, WriteHalf) = if endpoint.is_socket() {
            let path = Path::new(endpoint.host()).join(format!(".s.PGSQL.{}", endpoint.port()));
            let socket =
                UnixStream::connect(path).await.map_err(|error| unreachable(endpoint, error))?;
            let (reader, writer) = socket.into_split();
            (Box::new(reader), Box::new(writer))
        } else {
            let socket = TcpStream::connect((endpoint.host(), endpoint.port()))
                .await
                .and_then(|socket| socket.set_nodelay(true).map(|()| socket))
                .map_err(|error| unreachable(endpoint, error))?;
            low_water = LowWater::new(&socket);
            let (reader, writer) = socket.into_split();
            (Box::new(reader), Box::new(writer))
        };
        let (buffer, endpoint) = (Buffer::new(), endpoint.clone());
        Ok(Connection { reader, writer, buffer, low_water, endpoint })
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
