//! Decoding of pgoutput, the output plugin that comes with Postgres.
//!
//! [`decode()`] turns one message of the stream, protocol version 2, into a [`Change`] that borrows
//! from it. Nothing is allocated but the columns of a relation, and no input makes it panic: what
//! breaks the format is an error with the LSN and the byte.
//!
//! A transaction that is streamed while it is in progress comes in segments, each between a
//! [`Change::StreamStart`] and a [`Change::StreamStop`]. Inside of one a message has another form,
//! with the number of its subtransaction in front: [`decode_segment()`] says whose it is, which is
//! all that matters while nobody knows whether it commits, and [`decode_streamed()`] reads it.
//!
//! Byte layouts: <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>.

mod decode;
mod relation;
mod tuple;

use std::time::Duration;

use std::fmt;

pub(crate) use decode::{decode, decode_head, decode_segment, decode_streamed};
pub(crate) use relation::{Relation, RelationColumn, RelationId, ReplicaIdentity};
pub(crate) use tuple::{Column, Tuple};

use crate::lsn::Lsn;

/// The number of a source transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Xid(pub(crate) u32);

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A point in time as Postgres counts: microseconds since the year 2000, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timestamp(pub(crate) i64);

impl Timestamp {
    /// Microseconds since 1970, UTC.
    pub(crate) fn unix_micros(self) -> i64 {
        self.0.saturating_add(946_684_800_000_000)
    }

    /// How much later another time of the same clock is; nothing if it is not.
    pub(crate) fn until(self, later: Timestamp) -> Duration {
        let micros = later.0.saturating_sub(self.0);
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }
}

/// One message of pgoutput.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change<'a> {
    /// A transaction begins; all of it follows, for it has been committed already.
    Begin {
        /// Where its commit record lies: the transaction's place in the order of commits.
        final_lsn: Lsn,
        timestamp: Timestamp,
        xid: Xid,
    },
    /// The transaction that began last is complete.
    Commit {
        /// The same as its `final_lsn`.
        commit_lsn: Lsn,
        /// The first byte after the commit record: what may be flushed once it is safe.
        end_lsn: Lsn,
        timestamp: Timestamp,
    },
    /// What `pg_logical_emit_message` wrote.
    Message {
        /// Whether it belongs to the transaction around it; otherwise it stands alone, and was
        /// written even if the transaction that wrote it was rolled back.
        transactional: bool,
        lsn: Lsn,
        prefix: &'a str,
        content: &'a [u8],
    },
    /// What the rows of a table look like from here on.
    Relation(Relation<'a>),
    /// The name of a type that the next relation uses.
    Type { oid: u32, namespace: &'a str, name: &'a str },
    /// The transaction came here by replication.
    Origin { commit_lsn: Lsn, name: &'a str },
    /// A new row.
    Insert { relation: RelationId, new: Tuple<'a> },
    /// A changed row.
    Update { relation: RelationId, old: Option<OldRow<'a>>, new: Tuple<'a> },
    /// A row that is no more.
    Delete { relation: RelationId, old: OldRow<'a> },
    /// Tables that were emptied.
    Truncate { relations: Vec<RelationId>, cascade: bool, restart_identity: bool },
    /// A segment of a transaction in progress begins.
    StreamStart {
        xid: Xid,
        /// Whether it is the transaction's first.
        first: bool,
    },
    /// The segment is over, its transaction is not.
    StreamStop,
    /// A streamed transaction is complete. It takes its place in the order of commits here.
    StreamCommit {
        xid: Xid,
        /// What `final_lsn` would be in a [`Change::Begin`].
        commit_lsn: Lsn,
        /// As in a [`Change::Commit`].
        end_lsn: Lsn,
        timestamp: Timestamp,
    },
    /// A part of a streamed transaction is rolled back, or all of it.
    StreamAbort {
        xid: Xid,
        /// The same as `xid` where all of it is.
        subtransaction: Xid,
    },
}

/// As much of a change as stands in the beginning of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head<'a> {
    /// A logical message, and the beginning of its content.
    Message { transactional: bool, prefix: &'a str, content: &'a [u8] },
    /// A row.
    Row {
        relation: RelationId,
        /// Whether it is a new one.
        new: bool,
    },
}

/// A message inside a segment of a streamed transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// The segment is over.
    Stop,
    /// A row, an emptied table or a logical message.
    Change(Xid),
    /// What the rows of a table look like from here on in this transaction.
    Relation(Xid),
    /// What nobody asks for later.
    Nothing,
}

/// What was told of a row before its change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum OldRow<'a> {
    /// The replica identity's columns; the others are null.
    Key(Tuple<'a>),
    /// All columns: the table has REPLICA IDENTITY FULL.
    Full(Tuple<'a>),
}

#[cfg(test)]
mod tests;
