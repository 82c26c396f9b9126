//! Which change belongs to which of the transactions in progress.
//!
//! Pure: what it keeps is in memory, and what is to go to a file it hands out.

use std::collections::HashMap;

use super::log::{Committed, Log, Tail};
use crate::error::{Error, Kind};
use crate::pgoutput::Xid;

/// The transactions in progress.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    open: HashMap<Xid, Log>,
    /// Whose segment is being received.
    segment: Option<Xid>,
    memory: usize,
}

impl Assembler {
    /// Whose segment is being received.
    pub(super) fn segment(&self) -> Option<Xid> {
        self.segment
    }

    /// Bytes of memory that all of it takes.
    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    /// A segment begins.
    pub(super) fn start(&mut self, xid: Xid, first: bool) -> Result<(), Error> {
        if self.segment.is_some() {
            return Err(broken(xid, "a segment begins inside another"));
        }
        match (first, self.open.contains_key(&xid)) {
            (true, false) => {
                self.open.insert(xid, Log::new(xid));
            }
            (false, true) => {}
            (true, true) => return Err(broken(xid, "a transaction begins a second time")),
            (false, false) => return Err(broken(xid, "a transaction came without its beginning")),
        }
        self.segment = Some(xid);
        Ok(())
    }

    /// The segment is over.
    pub(super) fn stop(&mut self) {
        self.segment = None;
    }

    /// Keeps a change of the segment's transaction, or of its subtransaction `xid`.
    pub(super) fn keep(&mut self, xid: Xid, place: u64, message: &[u8]) -> Result<(), Error> {
        let Some(log) = self.segment.and_then(|top| self.open.get_mut(&top)) else {
            return Err(broken(xid, "a change came outside a segment"));
        };
        let before = log.memory();
        log.push(xid, place, message)?;
        self.memory = self.memory + log.memory() - before;
        Ok(())
    }

    /// A transaction was rolled back.
    pub(super) fn abort(&mut self, xid: Xid) -> Result<(), Error> {
        self.outside_segments(xid)?;
        // It may have had nothing that was sent.
        if let Some(log) = self.open.remove(&xid) {
            self.memory -= log.memory();
        }
        Ok(())
    }

    /// A subtransaction was rolled back. Answers with how much of the transaction's file is still
    /// of use.
    pub(super) fn abort_part(&mut self, xid: Xid, subtransaction: Xid) -> Result<u64, Error> {
        self.outside_segments(xid)?;
        let Some(log) = self.open.get_mut(&xid) else { return Ok(0) };
        let before = log.memory();
        log.abort(subtransaction);
        self.memory = self.memory + log.memory() - before;
        Ok(log.spooled())
    }

    /// A transaction has committed.
    pub(super) fn commit(&mut self, xid: Xid) -> Result<Committed, Error> {
        self.outside_segments(xid)?;
        let log = self.open.remove(&xid);
        let log = log.ok_or_else(|| broken(xid, "a commit came without its transaction"))?;
        self.memory -= log.memory();
        Ok(log.commit())
    }

    /// What is in memory of the transaction that has the most there; `None` when none has any.
    pub(super) fn take_longest_tail(&mut self) -> Option<Tail> {
        let log = self.open.values_mut().max_by_key(|log| log.tail_bytes())?;
        if log.tail_bytes() == 0 {
            return None;
        }
        let before = log.memory();
        let tail = log.take_tail();
        self.memory = self.memory + log.memory() - before;
        Some(tail)
    }

    fn outside_segments(&self, xid: Xid) -> Result<(), Error> {
        match self.segment {
            None => Ok(()),
            Some(_) => Err(broken(xid, "a transaction ends inside a segment")),
        }
    }
}

/// The server broke the protocol.
pub(super) fn broken(xid: Xid, what: &'static str) -> Error {
    Error::new(Kind::Malformed, format!("streamed transaction {xid}: {what}"))
        .hint("the server broke the replication protocol: report its version with this line")
}
