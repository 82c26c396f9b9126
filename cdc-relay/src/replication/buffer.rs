//! The receive buffer: cuts the byte stream into protocol messages without copying them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// A longer message of the stream is not kept whole. Nothing that long can be published: it is twice
/// what a producer of the relay hands over, and bytes as text take two characters each.
const WHOLE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What is kept of a longer one: whose it is stands at its beginning.
const HEAD_BYTES: usize = 64 * 1024;

/// What the stream consists of.
const COPY_DATA: u8 = b'd';

/// Kind and length of a message.
const HEADER_BYTES: usize = 5;

/// Bytes received: those from `start` to `end` are not yet handed out.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes still to come of a message whose head was handed out.
    unread: usize,
    /// All that was ever received, for whoever watches the line.
    arrived: Arc<AtomicU64>,
}

/// A message: its kind, and where its body lies in the buffer.
pub(super) struct Frame {
    pub(super) tag: u8,
    pub(super) body: Range<usize>,
    /// How many bytes of the body are left out: too many to be kept, they are dropped as they come.
    pub(super) unread: usize,
}

impl Buffer {
    pub(super) fn new() -> Self {
        Buffer { bytes: vec![0; REST_BYTES], start: 0, end: 0, unread: 0, arrived: Arc::default() }
    }

    /// Takes the next message off, if the whole of it is here; of one that is too long, its head.
    ///
    /// Its body can be read with [`Buffer::body`] until [`Buffer::spare`] is called.
    pub(super) fn frame(&mut self) -> Result<Option<Frame>, Error> {
        let dropped = self.unread.min(self.end - self.start);
        self.start += dropped;
        self.unread -= dropped;
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
        let unread = match tag {
            COPY_DATA if length > WHOLE_BYTES_MAX => length - HEAD_BYTES,
            _ => 0,
        };
        // The length counts itself, but not the kind before it.
        let end = self.start + length + 1 - unread;
        if end > self.end {
            return Ok(None);
        }
        let body = self.start + HEADER_BYTES..end;
        self.start = end;
        self.unread = unread;
        Ok(Some(Frame { tag, body, unread }))
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
        self.arrived.fetch_add(count as u64, Ordering::Relaxed);
        assert!(self.end <= self.bytes.len(), "a read stays within the room it was given");
    }

    /// Counts the bytes that were received.
    pub(super) fn arrived(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.arrived)
    }

    fn waiting(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).expect("start and end lie within the buffer")
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Buffer, HEAD_BYTES, KEEP_BYTES, MESSAGE_BYTES_MAX, READ_BYTES, REST_BYTES, WHOLE_BYTES_MAX,
    };
    use crate::error::Kind;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag][..], &length.to_be_bytes(), body].concat()
    }

    fn fill(buffer: &mut Buffer, mut bytes: &[u8], chunk: usize) {
        while !bytes.is_empty() {
            let spare = buffer.spare();
            assert!(spare.len() >= READ_BYTES);
            let count = chunk.min(bytes.len()).min(spare.len());
            spare[..count].copy_from_slice(&bytes[..count]);
            buffer.filled(count);
            bytes = &bytes[count..];
        }
    }

    #[test]
    fn messages_come_out_whole_whatever_the_pieces_they_came_in() {
        let bodies: Vec<Vec<u8>> =
            (0..50_usize).map(|n| vec![n as u8; (n * n * n * 7) % 90_000]).collect();
        let stream: Vec<u8> = bodies.iter().flat_map(|body| message(b'd', body)).collect();

        for chunk in [1, 7, 4096, 65_536, usize::MAX] {
            let mut buffer = Buffer::new();
            let mut found = Vec::new();
            for piece in stream.chunks(chunk.min(stream.len())) {
                fill(&mut buffer, piece, piece.len());
                while let Some(frame) = buffer.frame().unwrap() {
                    assert_eq!(frame.tag, b'd');
                    found.push(buffer.body(frame.body).to_vec());
                }
            }
            assert!(found == bodies, "in pieces of {chunk}");
        }
    }

    #[test]
    fn a_huge_message_passes_and_its_memory_is_given_back() {
        let body = vec![7; 3 * KEEP_BYTES];
        let mut buffer = Buffer::new();

        fill(&mut buffer, &message(b'd', &body), READ_BYTES);
        let frame = buffer.frame().unwrap().unwrap();

        assert!(buffer.body(frame.body) == body);
        assert!(buffer.bytes.len() <= 8 * KEEP_BYTES);
        buffer.spare();
        assert_eq!(buffer.bytes.len(), REST_BYTES);
    }

    #[test]
    fn of_a_message_that_is_too_long_only_the_head_is_kept() {
        let body: Vec<u8> = (0..=255).cycle().take(WHOLE_BYTES_MAX + 12_345).collect();
        let mut buffer = Buffer::new();
        let mut found = Vec::new();

        for piece in [message(b'd', &body), message(b'd', b"next")].concat().chunks(9_999) {
            fill(&mut buffer, piece, piece.len());
            while let Some(frame) = buffer.frame().unwrap() {
                found.push((buffer.body(frame.body).to_vec(), frame.unread));
            }
            assert!(buffer.bytes.len() <= 2 * REST_BYTES);
        }

        let [(head, unread), (next, 0)] = &*found else { panic!("{} found", found.len()) };
        assert!(body.starts_with(head) && head.len() + 4 == HEAD_BYTES);
        assert_eq!(head.len() + unread, body.len());
        assert_eq!(next, b"next");
    }

    #[test]
    fn a_length_alone_allocates_nothing() {
        let mut buffer = Buffer::new();
        let length = u32::try_from(MESSAGE_BYTES_MAX).unwrap();

        fill(&mut buffer, &[&b"d"[..], &length.to_be_bytes()].concat(), 5);

        assert!(buffer.frame().unwrap().is_none());
        buffer.spare();
        assert_eq!(buffer.bytes.len(), REST_BYTES);
    }

    #[test]
    fn an_impossible_length_is_refused() {
        for length in [0_u32, 3, 0x4000_0004, u32::MAX] {
            let mut buffer = Buffer::new();
            fill(&mut buffer, &[&b"H"[..], &length.to_be_bytes()].concat(), 5);

            let error = buffer.frame().err().unwrap();

            assert_eq!(error.kind(), Kind::Malformed);
            assert!(error.to_string().contains(&length.to_string()), "{error}");
        }
    }
}
