//! The changes of one transaction in progress, in the order in which they came.
//!
//! They are one row of bytes, of which the first part may have gone to a file. Of each change its
//! place and its message stand in it as they came. Which subtransaction made a change is not
//! written down with it, but as runs: where the changes of one begin that follow one another. So a
//! transaction without savepoints costs one entry, and what is rolled back at the end, as most is,
//! gives its room back at once.

use std::collections::HashMap;
use std::ops::Range;

use crate::error::Error;
use crate::pgoutput::Xid;

use super::assembler::broken;

/// The place of a change and the length of its message.
pub(super) const HEADER_BYTES: usize = 12;

/// Memory is taken in pieces of this size by a transaction that has much; by one that has less, in
/// smaller ones.
pub(super) const CHUNK_BYTES: usize = 256 * 1024;
const CHUNK_BYTES_MIN: usize = 8 * 1024;

/// What an entry for a subtransaction takes, by estimate.
const SUBTRANSACTION_BYTES: usize = 32;

/// Changes of one subtransaction that follow one another, up to where the next run starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    xid: Xid,
    start: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Subtransaction {
    runs: u32,
    aborted: bool,
}

/// The changes of one transaction. The last run is never one that was rolled back.
#[derive(Debug)]
pub(super) struct Log {
    xid: Xid,
    runs: Vec<Run>,
    subtransactions: HashMap<Xid, Subtransaction>,
    length: u64,
    /// So many of its first bytes are in the file.
    spooled: u64,
    /// The bytes after these; each change is whole in one.
    chunks: Vec<Vec<u8>>,
    chunk_bytes: usize,
}

/// What a log hands over to be written to its file.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) xid: Xid,
    /// Where in the file it belongs.
    pub(super) at: u64,
    pub(super) chunks: Vec<Vec<u8>>,
}

/// What is left of a log when its transaction has committed.
#[derive(Debug)]
pub(super) struct Committed {
    /// Where the changes stand that were not rolled back.
    pub(super) kept: Vec<Range<u64>>,
    pub(super) spooled: u64,
    pub(super) chunks: Vec<Vec<u8>>,
}

impl Log {
    pub(super) fn new(xid: Xid) -> Self {
        Log {
            xid,
            runs: Vec::new(),
            subtransactions: HashMap::new(),
            length: 0,
            spooled: 0,
            chunks: Vec::new(),
            chunk_bytes: 0,
        }
    }

    /// Adds a change of the transaction, or of the subtransaction `xid` in it.
    pub(super) fn push(&mut self, xid: Xid, place: u64, message: &[u8]) -> Result<(), Error> {
        if self.runs.last().is_none_or(|run| run.xid != xid) {
            self.begin_run(xid)?;
        }
        let Ok(length) = u32::try_from(message.len()) else {
            return Err(broken(xid, "a change has more than 4 GiB"));
        };
        let bytes = HEADER_BYTES + message.len();
        let chunk = self.room_for(bytes);
        chunk.extend_from_slice(&place.to_be_bytes());
        chunk.extend_from_slice(&length.to_be_bytes());
        chunk.extend_from_slice(message);
        self.length += bytes as u64;
        Ok(())
    }

    fn begin_run(&mut self, xid: Xid) -> Result<(), Error> {
        if xid != self.xid {
            let subtransaction = self.subtransactions.entry(xid).or_default();
            if subtransaction.aborted {
                return Err(broken(xid, "a change of a subtransaction came after its rollback"));
            }
            subtransaction.runs += 1;
        }
        self.runs.push(Run { xid, start: self.length });
        Ok(())
    }

    fn room_for(&mut self, bytes: usize) -> &mut Vec<u8> {
        let last = self.chunks.last();
        if last.is_none_or(|chunk| chunk.capacity() - chunk.len() < bytes) {
            let grown = last.map_or(CHUNK_BYTES_MIN, |chunk| chunk.capacity() * 2);
            let capacity = grown.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES).max(bytes);
            let chunk = Vec::with_capacity(capacity);
            self.chunk_bytes += chunk.capacity();
            self.chunks.push(chunk);
        }
        self.chunks.last_mut().expect("there is a chunk with room")
    }

    /// A subtransaction was rolled back; what it had at the end is forgotten at once, and what
    /// others added after it keeps its place.
    pub(super) fn abort(&mut self, subtransaction: Xid) {
        // It may have had nothing that was sent.
        let Some(known) = self.subtransactions.get_mut(&subtransaction) else { return };
        known.aborted = true;
        while let Some(&Run { xid, start }) = self.runs.last()
            && let Some(known) = self.subtransactions.get_mut(&xid)
            && known.aborted
        {
            known.runs -= 1;
            if known.runs == 0 {
                self.subtransactions.remove(&xid);
            }
            self.runs.pop();
            self.cut(start);
        }
    }

    fn cut(&mut self, length: u64) {
        let mut end = self.length;
        self.length = length;
        self.spooled = self.spooled.min(length);
        while let Some(chunk) = self.chunks.last_mut() {
            let start = end - chunk.len() as u64;
            if start < length {
                let keep = usize::try_from(length - start).unwrap_or(usize::MAX);
                chunk.truncate(keep);
                return;
            }
            self.chunk_bytes -= chunk.capacity();
            self.chunks.pop();
            end = start;
        }
    }

    /// What is in memory, which from now on is for the file.
    pub(super) fn take_tail(&mut self) -> Tail {
        let at = std::mem::replace(&mut self.spooled, self.length);
        self.chunk_bytes = 0;
        Tail { xid: self.xid, at, chunks: std::mem::take(&mut self.chunks) }
    }

    /// Bytes of changes in memory.
    pub(super) fn tail_bytes(&self) -> usize {
        self.chunk_bytes
    }

    /// How many bytes the file has to have.
    pub(super) fn spooled(&self) -> u64 {
        self.spooled
    }

    /// All that it takes of memory.
    pub(super) fn memory(&self) -> usize {
        self.chunk_bytes
            + self.runs.capacity() * size_of::<Run>()
            + self.subtransactions.len() * SUBTRANSACTION_BYTES
    }

    /// Its transaction has committed.
    pub(super) fn commit(self) -> Committed {
        let ends = self.runs.iter().skip(1).map(|run| run.start).chain([self.length]);
        let mut kept: Vec<Range<u64>> = Vec::new();
        for (run, end) in self.runs.iter().zip(ends) {
            if self.subtransactions.get(&run.xid).is_some_and(|known| known.aborted) {
                continue;
            }
            match kept.last_mut() {
                Some(last) if last.end == run.start => last.end = end,
                _ => kept.push(run.start..end),
            }
        }
        Committed { kept, spooled: self.spooled, chunks: self.chunks }
    }
}
