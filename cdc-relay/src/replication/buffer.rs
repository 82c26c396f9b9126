//! The receive buffer: cuts the byte stream into protocol messages without copying them.

use std::ops::Range;

use super::reader::Reader;
use crate::error::{Error, Kind};

/// The smallest room offered to a read. Postgres hands its socket 8 kB at a time
/// (`PQ_SEND_BUFFER_SIZE`); what has queued up behind one is taken along in a single system call.
const READ_BYTES: usize = 64 * 1024;

/// The size at rest: a few reads fit before what is left over has to be moved to the front.
const REST_BYTES: usize = 256 * 1024;

/// The most memory kept while empty: room for a stream of fairly large messages, whereas one huge
/// message must not hold its memory for ever.
const KEEP_BYTES: usize = 4 * 1024 * 1024;

/// The longest message taken. Postgres builds each message in one allocation, and those end at
/// `MaxAllocSize` (src/include/utils/memutils.h), 1 GB less one byte; the length counts itself.
const MESSAGE_BYTES_MAX: usize = 0x3fff_ffff + 4;

/// Kind and length of a message.
const HEADER_BYTES: usize = 5;

/// Bytes received: those from `start` to `end` are not yet handed out.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

/// A whole message: its kind, and where its body lies in the buffer.
pub(super) struct Frame {
    pub(super) tag: u8,
    pub(super) body: Range<usize>,
}

impl Buffer {
    pub(super) fn new() -> Self {
        Buffer { bytes: vec![0; REST_BYTES], start: 0, end: 0 }
    }

    /// Takes the next message off, if the whole of it is here.
    ///
    /// Its body can be read with [`Buffer::body`] until [`Buffer::spare`] is called.
    pub(super) fn frame(&mut self) -> Result<Option<Frame>, Error> {
        let mut header = Reader::new(self.waiting());
        let (Ok(tag), Ok(length)) = (header.u8(), header.u32()) else {
            return Ok(None);
        };
        let length = length as usize;
        if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
            return Err(Error::new(
                Kind::Malformed,
                format!("a message of the server gives its length as {length} bytes"),
            )
            .hint("make sure that the address is that of a Postgres server"));
        }
        // The length counts itself, but not the kind before it.
        let end = self.start + length + 1;
        if end > self.end {
            return Ok(None);
        }
        let body = self.start + HEADER_BYTES..end;
        self.start = end;
        Ok(Some(Frame { tag, body }))
    }

    /// The bytes of a frame, or of a part of it.
    pub(super) fn body(&self, range: Range<usize>) -> &[u8] {
        self.bytes.get(range).expect("frames lie within the buffer until it is filled again")
    }

    /// Room for the next read.
    ///
    /// The buffer doubles as bytes arrive and not as a length promises them, so that a length
    /// from the wire alone never allocates.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            if self.bytes.len() > KEEP_BYTES {
                self.bytes = vec![0; REST_BYTES];
            }
        }
        if self.bytes.len() - self.end < READ_BYTES {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.bytes.len() - self.end < READ_BYTES {
            self.bytes.resize(self.bytes.len() * 2, 0);
        }
        self.bytes.get_mut(self.end..).expect("the end lies within the buffer")
    }

    /// So many bytes of [`Buffer::spare`] have been written.
    pub(super) fn filled(&mut self, count: usize) {
        self.end += count;
        assert!(self.end <= self.bytes.len(), "a read stays within the room it was given");
    }

    fn waiting(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).expect("start and end lie within the buffer")
    }
}
