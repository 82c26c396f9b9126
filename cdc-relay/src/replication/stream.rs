//! The change stream of a slot.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use super::buffer::{Buffer, Frame};
use super::connection::{Connection, ReadHalf, closed, is_notice, late, lost, unexpected};
use super::endpoint::Endpoint;
use super::low_water::LowWater;
use super::reader::{Fault, Reader};
use super::server_error::{During, server_error};
use super::status::{StatusHandle, StatusTask};
use crate::error::{Error, Kind};
use crate::lsn::Lsn;
use crate::pgoutput::Timestamp;

/// A walsender in the middle of a transaction sends the rest of it before it takes notice.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the server streams after START_REPLICATION.
///
/// While it lives, a task of its own tells the server every 250 ms which positions the
/// [`StatusHandle`] was given.
pub(crate) struct Stream {
    reader: ReadHalf,
    buffer: Buffer,
    low_water: Option<LowWater>,
    status: StatusTask,
    endpoint: Endpoint,
    slot: Box<str>,
}

/// One message of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// A pgoutput message.
    Data {
        /// The change's place; zero where it has none of its own.
        wal_start: Lsn,
        /// The same as `wal_start` in a logical stream.
        wal_end: Lsn,
        /// The server's clock when it sent this.
        sent_at: Timestamp,
        /// The message, for [`crate::pgoutput::decode`].
        body: &'a [u8],
    },
    /// A change too large to be kept, and to be published.
    Unread {
        /// The change's place.
        wal_start: Lsn,
        /// The beginning of the message, for [`crate::pgoutput::decode_head`].
        head: &'a [u8],
        /// How many bytes are left out.
        unread: usize,
    },
    /// The server is alive.
    Keepalive {
        /// How far the server has read: whatever was committed before has been sent.
        wal_end: Lsn,
        /// Whether the server wants a status update at once.
        reply_requested: bool,
    },
}

/// An event whose body is still a place in the buffer, so that the search for it may go on.
enum Found {
    Data { wal_start: Lsn, wal_end: Lsn, sent_at: Timestamp, body: Range<usize> },
    Unread { wal_start: Lsn, head: Range<usize>, unread: usize },
    Keepalive { wal_end: Lsn, reply_requested: bool },
}

impl Stream {
    pub(super) fn new(connection: Connection, slot: &str) -> Self {
        let Connection { reader, writer, buffer, low_water, endpoint, .. } = connection;
        let status = StatusTask::spawn(writer, endpoint.clone());
        Stream { reader, buffer, low_water, status, endpoint, slot: slot.into() }
    }

    /// Waits for the next event; what it borrows lives until the next call.
    ///
    /// Cancel safe: a dropped future loses nothing. An error is final, also one of the task that
    /// sends the updates.
    pub(crate) async fn next(&mut self) -> Result<Event<'_>, Error> {
        let found = loop {
            if let Some(found) = self.find()? {
                break found;
            }
            self.fill().await?;
        };
        Ok(self.event(found))
    }

    /// The next event if it has been received already; never waits and never reads the socket.
    pub(crate) fn try_next(&mut self) -> Result<Option<Event<'_>>, Error> {
        let found = self.find()?;
        Ok(found.map(|found| self.event(found)))
    }

    /// Where positions are reported to.
    pub(crate) fn status(&self) -> StatusHandle {
        self.status.handle().clone()
    }

    /// Counts the bytes that have come on this connection, also those of an event that is not
    /// whole yet.
    pub(crate) fn arrived(&self) -> Arc<AtomicU64> {
        self.buffer.arrived()
    }

    /// Ends the stream in good order: the server takes in the last positions and frees the slot
    /// before this returns. Events that still arrive are dropped; they come again.
    ///
    /// Waits up to 5 s and hangs up in any case.
    pub(crate) async fn close(mut self) -> Result<(), Error> {
        match timeout(CLOSE_TIMEOUT, self.finish()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(late(&self.endpoint, "the end of the stream", CLOSE_TIMEOUT)),
        }
    }

    async fn finish(&mut self) -> Result<(), Error> {
        let mut writer = match self.status.close().await {
            Some(writer) => writer?,
            None => return Err(self.over()),
        };
        loop {
            while let Some(Frame { tag, body, .. }) = self.buffer.frame()? {
                match tag {
                    b'Z' => {
                        let mut farewell = BytesMut::new();
                        frontend::terminate(&mut farewell);
                        // The server may hang up first, and nothing depends on this.
                        writer.write_all(&farewell).await.ok();
                        return Ok(());
                    }
                    b'E' => return Err(self.refusal(body)),
                    // Changes, the server's own end of the copy, command complete.
                    _ => {}
                }
            }
            self.fill().await?;
        }
    }

    /// Looks for an event in what has been received.
    fn find(&mut self) -> Result<Option<Found>, Error> {
        while let Some(Frame { tag, body, unread }) = self.buffer.frame()? {
            match tag {
                b'd' => return self.copy_data(body, unread).map(Some),
                b'E' => return Err(self.refusal(body)),
                // The end of the copy, or, when the server shuts down, of the command.
                b'c' | b'C' => {
                    return Err(Error::new(
                        Kind::Unavailable,
                        format!("postgres at {} ended the stream", self.endpoint.address()),
                    ));
                }
                tag if is_notice(tag) => {}
                tag => return Err(unexpected(&self.endpoint, tag, "in the stream")),
            }
        }
        Ok(None)
    }

    fn copy_data(&self, range: Range<usize>, unread: usize) -> Result<Found, Error> {
        let end = range.end;
        let mut reader = Reader::new(self.buffer.body(range));
        let found = Found::read(&mut reader, end);
        Ok(match found.map_err(|fault| fault.error("the replication stream"))? {
            Found::Data { wal_start, body: head, .. } if unread > 0 => {
                Found::Unread { wal_start, head, unread }
            }
            found => found,
        })
    }

    fn event(&self, found: Found) -> Event<'_> {
        match found {
            Found::Data { wal_start, wal_end, sent_at, body } => {
                Event::Data { wal_start, wal_end, sent_at, body: self.buffer.body(body) }
            }
            Found::Unread { wal_start, head, unread } => {
                Event::Unread { wal_start, head: self.buffer.body(head), unread }
            }
            Found::Keepalive { wal_end, reply_requested } => {
                Event::Keepalive { wal_end, reply_requested }
            }
        }
    }

    fn refusal(&self, body: Range<usize>) -> Error {
        let body = self.buffer.body(body);
        server_error(&self.endpoint, During::Stream { slot: &self.slot }, body)
    }

    fn over(&self) -> Error {
        Error::new(
            Kind::Unavailable,
            format!("the stream from postgres at {} is over", self.endpoint.address()),
        )
    }

    /// Reads once. The socket goes first: it may hold the reason for which the other task failed.
    async fn fill(&mut self) -> Result<(), Error> {
        let mut spare = ReadBuf::new(self.buffer.spare());
        let (reader, status, low_water) = (&mut self.reader, &mut self.status, &mut self.low_water);
        let outcome = std::future::poll_fn(|context| {
            if let Poll::Ready(read) = Pin::new(&mut *reader).poll_read(context, &mut spare) {
                return Poll::Ready(Ok(read));
            }
            if let Some(Err(error)) = low_water.as_mut().map(|mark| mark.poll_late(context)) {
                return Poll::Ready(Ok(Err(error)));
            }
            status.poll_failure(context).map(Err)
        })
        .await;
        let count = spare.filled().len();
        match outcome {
            Ok(Ok(())) if count == 0 => Err(closed(&self.endpoint)),
            Ok(Ok(())) => {
                self.buffer.filled(count);
                match &mut self.low_water {
                    Some(mark) => mark.read(count).map_err(|error| lost(&self.endpoint, error)),
                    None => Ok(()),
                }
            }
            Ok(Err(error)) => Err(lost(&self.endpoint, error)),
            Err(Some(error)) => Err(error),
            Err(None) => Err(self.over()),
        }
    }
}

impl Found {
    /// Reads the content of a CopyData message that ends at `end` in the buffer.
    fn read(reader: &mut Reader<'_>, end: usize) -> Result<Found, Fault> {
        let fault = reader.fault("an unknown kind of message");
        match reader.u8()? {
            b'w' => {
                let wal_start = reader.lsn()?;
                let wal_end = reader.lsn()?;
                let sent_at = Timestamp(reader.i64()?);
                let body = end - reader.rest().len()..end;
                Ok(Found::Data { wal_start, wal_end, sent_at, body })
            }
            b'k' => {
                let wal_end = reader.lsn()?;
                let _clock = reader.i64()?;
                let reply_requested = reader.u8()? != 0;
                reader.end()?;
                Ok(Found::Keepalive { wal_end, reply_requested })
            }
            _ => Err(fault),
        }
    }
}
