//! What has committed comes back, piece by piece.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::vec;

use super::log::{CHUNK_BYTES, Committed, HEADER_BYTES};
use super::spool::blocking;
use crate::pgoutput::Xid;

/// The changes of a committed transaction that were not rolled back, in order.
///
/// One piece of them is in memory at a time, and what has not gone to a file.
#[derive(Debug)]
pub(crate) struct ReadBack {
    xid: Xid,
    file: Option<Arc<File>>,
    /// So many bytes are in the file.
    spooled: u64,
    /// What follows them.
    chunks: vec::IntoIter<Vec<u8>>,
    /// The chunk that is being handed out, and where it stands.
    chunk: Vec<u8>,
    chunk_start: u64,
    kept: vec::IntoIter<Range<u64>>,
    /// What of the range that is being read has not been handed out.
    range: Range<u64>,
    piece: Vec<u8>,
    /// How much of the piece has been handed out.
    taken: usize,
}

/// A change, as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept<'a> {
    /// The change's LSN, or when a description of a table arrived.
    pub(crate) place: u64,
    pub(crate) message: &'a [u8],
}

impl ReadBack {
    pub(super) fn new(xid: Xid, committed: Committed, file: Option<Arc<File>>) -> Self {
        let Committed { kept, spooled, chunks } = committed;
        ReadBack {
            xid,
            file,
            spooled,
            chunks: chunks.into_iter(),
            chunk: Vec::new(),
            chunk_start: spooled,
            kept: kept.into_iter(),
            range: 0..0,
            piece: Vec::new(),
            taken: 0,
        }
    }

    /// Whose changes these are.
    pub(crate) fn xid(&self) -> Xid {
        self.xid
    }

    /// The next change of the piece; `None` at the piece's end.
    pub(crate) fn next_kept(&mut self) -> Option<Kept<'_>> {
        let rest = self.piece.get(self.taken..)?;
        if rest.is_empty() {
            return None;
        }
        let (place, length) = header(rest).expect("a piece has whole changes");
        let message = rest.get(HEADER_BYTES..HEADER_BYTES + length);
        self.taken += HEADER_BYTES + length;
        Some(Kept { place, message: message.expect("a piece has whole changes") })
    }

    /// Gets the next piece. Answers with its length; `None` when all has been handed out.
    pub(super) async fn next_piece(&mut self) -> io::Result<Option<usize>> {
        self.piece.clear();
        self.taken = 0;
        while self.range.is_empty() {
            match self.kept.next() {
                Some(range) => self.range = range,
                None => return Ok(None),
            }
        }
        if self.range.start < self.spooled {
            self.take_from_file().await?;
        } else {
            self.take_from_memory();
        }
        Ok(Some(self.piece.len()))
    }

    async fn take_from_file(&mut self) -> io::Result<()> {
        let end = self.range.end.min(self.spooled);
        let mut wanted = CHUNK_BYTES;
        loop {
            let left = usize::try_from(end - self.range.start).unwrap_or(usize::MAX);
            let length = wanted.min(left);
            self.read(length).await?;
            let (whole, next) = whole(&self.piece);
            if whole > 0 {
                self.piece.truncate(whole);
                self.range.start += whole as u64;
                return Ok(());
            }
            // One change is longer than a piece, or what says how long it is was changed.
            if next <= length || length == left {
                let text = "a spool file does not hold what was written";
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            wanted = next;
        }
    }

    async fn read(&mut self, length: usize) -> io::Result<()> {
        let Some(file) = self.file.clone() else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "a spool file is gone"));
        };
        let start = self.range.start;
        let mut piece = std::mem::take(&mut self.piece);
        self.piece = blocking(move || {
            piece.resize(length, 0);
            file.read_exact_at(&mut piece, start)?;
            Ok(piece)
        })
        .await?;
        Ok(())
    }

    fn take_from_memory(&mut self) {
        loop {
            let end = self.chunk_start + self.chunk.len() as u64;
            if self.range.start < end {
                let within = |at: u64| usize::try_from(at - self.chunk_start).unwrap_or(usize::MAX);
                let (from, to) = (within(self.range.start), within(self.range.end.min(end)));
                self.range.start += (to - from) as u64;
                self.piece.extend_from_slice(self.chunk.get(from..to).expect("it is in the chunk"));
                return;
            }
            self.chunk_start = end;
            self.chunk = self.chunks.next().expect("what is not in the file is in memory");
        }
    }
}

/// How many of the first bytes are whole changes, and how long those and the next one are.
fn whole(bytes: &[u8]) -> (usize, usize) {
    let mut whole = 0;
    loop {
        let rest = bytes.get(whole..).unwrap_or_default();
        let Some((_, length)) = header(rest) else { return (whole, whole + HEADER_BYTES) };
        let next = whole + HEADER_BYTES + length;
        if next > bytes.len() {
            return (whole, next);
        }
        whole = next;
    }
}

/// The place of the first change, and the length of its message.
fn header(bytes: &[u8]) -> Option<(u64, usize)> {
    let (place, rest) = bytes.split_first_chunk()?;
    let (length, _) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    Some((u64::from_be_bytes(*place), length))
}
