//! Transactions that the server streams while they are in progress.
//!
//! Nothing of them may be published before they commit. Until then their changes wait in memory, and
//! beyond a budget in files that have no name; both are bounded, and at the bound the relay reads
//! its slot anew without streaming, when the server keeps such transactions itself. Nothing here
//! outlives the session: what has not committed is sent again after a restart, from its beginning.
//!
//! `assembler` knows which changes belong to which transaction and which of them were rolled back
//! (pure, with `log`, the changes of one transaction), `spool` writes files, `read_back` hands out
//! piece by piece what has committed.

mod assembler;
mod log;
mod read_back;
mod spool;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Kind};
use crate::lsn::Lsn;
use crate::pgoutput::{Segment, Xid, decode_segment};
use assembler::Assembler;
use spool::Spool;

pub(crate) use read_back::{Kept, ReadBack};
pub(crate) use spool::probe;

/// In front of what was kept of a change that is too large; no message of pgoutput begins with it.
const HEAD_TAG: u8 = 0;

/// How many bytes of a kept change are left out, and its beginning, if it is one that was too large.
pub(crate) fn kept_head(message: &[u8]) -> Option<(usize, &[u8])> {
    let (unread, head) = message.strip_prefix(&[HEAD_TAG])?.split_first_chunk()?;
    Some((usize::try_from(u64::from_be_bytes(*unread)).unwrap_or(usize::MAX), head))
}

/// How much of transactions in progress is kept, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Bytes in memory.
    pub(crate) memory: usize,
    /// Where the files are made.
    pub(crate) directory: PathBuf,
    /// Bytes in files.
    pub(crate) spool_max: u64,
}

/// The transactions in progress of one session, and the one that is being read back.
#[derive(Debug)]
pub(crate) struct Streamed {
    bounds: Bounds,
    assembler: Assembler,
    spool: Spool,
    /// Counts the bytes that come from the source; those that come from files count too, so that a
    /// relay that reads back for minutes is seen at work.
    arrived: Arc<AtomicU64>,
    gave_up: bool,
}

impl Streamed {
    pub(crate) fn new(bounds: Bounds, arrived: Arc<AtomicU64>) -> Self {
        let spool = Spool::new(bounds.directory.clone(), bounds.spool_max);
        Streamed { bounds, assembler: Assembler::default(), spool, arrived, gave_up: false }
    }

    /// Whether what comes next is inside a segment.
    pub(crate) fn in_segment(&self) -> bool {
        self.assembler.segment().is_some()
    }

    /// A segment begins.
    pub(crate) fn start(&mut self, xid: Xid, first: bool) -> Result<(), Error> {
        self.assembler.start(xid, first)
    }

    /// Takes in a message of the segment. `arrival` counts what describes tables, in the order in
    /// which it came: it is kept with each description, in the place of an LSN, which it lacks.
    pub(crate) async fn take(
        &mut self,
        body: &[u8],
        lsn: Lsn,
        arrival: impl FnOnce() -> u64,
    ) -> Result<(), Error> {
        match decode_segment(body, lsn)? {
            Segment::Stop => self.assembler.stop(),
            Segment::Nothing => {}
            Segment::Change(xid) => self.assembler.keep(xid, lsn.0, body)?,
            Segment::Relation(xid) => self.assembler.keep(xid, arrival(), body)?,
        }
        self.within_bounds().await
    }

    /// Takes in the beginning of a change of the segment of which so many bytes are left out.
    pub(crate) async fn take_head(
        &mut self,
        head: &[u8],
        unread: usize,
        lsn: Lsn,
    ) -> Result<(), Error> {
        let Segment::Change(xid) = decode_segment(head, lsn)? else {
            let text = format!("a message that is never so long came at {lsn}");
            return Err(Error::new(Kind::Malformed, text));
        };
        let unread = (unread as u64).to_be_bytes();
        self.assembler.keep(xid, lsn.0, &[&[HEAD_TAG], &unread[..], head].concat())?;
        self.within_bounds().await
    }

    /// A part of a transaction is rolled back, or all of it.
    pub(crate) async fn abort(&mut self, xid: Xid, subtransaction: Xid) -> Result<(), Error> {
        if xid == subtransaction {
            self.assembler.abort(xid)?;
            self.spool.remove(xid);
            return Ok(());
        }
        let spooled = self.assembler.abort_part(xid, subtransaction)?;
        if let Err(error) = self.spool.cut(xid, spooled).await {
            return Err(self.give_up("cutting a spool file", error));
        }
        Ok(())
    }

    /// A transaction has committed: what of it was not rolled back.
    pub(crate) fn commit(&mut self, xid: Xid) -> Result<ReadBack, Error> {
        let log = self.assembler.commit(xid)?;
        Ok(ReadBack::new(xid, log, self.spool.file(xid)))
    }

    /// Gets the next piece of what is read back; false when there is none.
    pub(crate) async fn next_piece(&mut self, read_back: &mut ReadBack) -> Result<bool, Error> {
        match read_back.next_piece().await {
            Ok(Some(bytes)) => {
                self.arrived.fetch_add(bytes as u64, Ordering::Relaxed);
                Ok(true)
            }
            Ok(None) => {
                self.spool.remove(read_back.xid());
                Ok(false)
            }
            Err(error) => Err(self.give_up("reading a spool file", error)),
        }
    }

    /// Whether the session ended because it could keep no more: the next one does without
    /// streaming.
    pub(crate) fn gave_up(&self) -> bool {
        self.gave_up
    }

    /// Bytes in files.
    pub(crate) fn spooled(&self) -> u64 {
        self.spool.bytes()
    }

    /// Bytes in memory.
    pub(crate) fn memory(&self) -> usize {
        self.assembler.memory()
    }

    async fn within_bounds(&mut self) -> Result<(), Error> {
        if self.assembler.memory() > self.bounds.memory {
            self.make_room().await?;
        }
        Ok(())
    }

    /// Writes to files until half of the budget is free, so that each write is worth its call.
    async fn make_room(&mut self) -> Result<(), Error> {
        while self.assembler.memory() > self.bounds.memory / 2 {
            let Some(tail) = self.assembler.take_longest_tail() else { break };
            if let Err(error) = self.spool.append(tail).await {
                return Err(self.give_up("writing a spool file", error));
            }
        }
        if self.assembler.memory() > self.bounds.memory {
            let error = std::io::Error::other("too many subtransactions to keep apart in memory");
            return Err(self.give_up("keeping transactions in progress", error));
        }
        Ok(())
    }

    fn give_up(&mut self, what: &str, error: std::io::Error) -> Error {
        self.gave_up = true;
        let directory = self.bounds.directory.display();
        Error::new(Kind::Unavailable, format!("{what} in {directory} failed"))
            .hint(
                "nothing is lost: the slot is read without streaming now, and postgres keeps large \
                 transactions itself; give more room by streaming.spool_max, or another directory \
                 by streaming.spool_directory",
            )
            .caused_by(error)
    }
}

#[cfg(test)]
mod tests;
