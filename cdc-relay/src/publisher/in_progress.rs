//! Transactions that are received while they are in progress, and published once they commit.

use std::time::Instant;

use super::Publisher;
use crate::error::{Error, Kind};
use crate::lsn::Lsn;
use crate::pgoutput::{Change, Timestamp, Xid, decode_head, decode_streamed};
use crate::sink::Sink;
use crate::streamed::{Kept, ReadBack, kept_head};

/// A streamed transaction that has committed. It takes the way of every other, from the place of
/// its commit on; nothing else is received before it is through.
#[derive(Debug)]
pub(crate) struct Committed {
    changes: ReadBack,
    end: End,
}

/// Where a transaction ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) commit_lsn: Lsn,
    pub(super) end_lsn: Lsn,
    /// The server sent it long after its commit.
    pub(super) behind: bool,
}

impl<S: Sink> Publisher<'_, S> {
    /// Whether a streamed transaction is being published: then nothing is taken from the stream.
    pub(crate) fn reads_back(&self) -> bool {
        self.read_back.is_some()
    }

    pub(super) fn in_segment(&self) -> bool {
        self.streamed.as_ref().is_some_and(|streamed| streamed.in_segment())
    }

    /// Keeps a message of a segment until its transaction commits.
    pub(super) async fn keep(&mut self, message: &[u8], lsn: Lsn) -> Result<(), Error> {
        let (Some(streamed), tables) = (&mut self.streamed, &mut self.tables) else {
            return Ok(());
        };
        streamed.take(message, lsn, || tables.arrives()).await?;
        self.tell_streamed();
        Ok(())
    }

    /// Keeps the beginning of a change of a segment that is too large to be received.
    pub(super) async fn keep_head(
        &mut self,
        head: &[u8],
        unread: usize,
        lsn: Lsn,
    ) -> Result<(), Error> {
        let Some(streamed) = &mut self.streamed else { return Ok(()) };
        streamed.take_head(head, unread, lsn).await?;
        self.tell_streamed();
        Ok(())
    }

    /// Takes in what is told of a transaction in progress.
    pub(super) async fn in_progress(&mut self, change: Change<'_>, lsn: Lsn) -> Result<(), Error> {
        let Some(streamed) = &mut self.streamed else { return Err(misplaced(&change, lsn)) };
        match change {
            Change::StreamStart { xid, first } => streamed.start(xid, first)?,
            Change::StreamAbort { xid, subtransaction } => {
                streamed.abort(xid, subtransaction).await?;
            }
            change => return Err(misplaced(&change, lsn)),
        }
        self.tell_streamed();
        Ok(())
    }

    /// A streamed transaction has committed: from now on it is read back.
    pub(super) fn streamed_committed(
        &mut self,
        xid: Xid,
        committed_at: Timestamp,
        end: End,
    ) -> Result<(), Error> {
        let Some(streamed) = &mut self.streamed else {
            return Err(unasked(end.commit_lsn));
        };
        let changes = streamed.commit(xid)?;
        self.source_begins(end.commit_lsn, committed_at)?;
        self.tables.begin_streamed();
        self.read_back = Some(Committed { changes, end });
        Ok(())
    }

    /// Publishes a piece of the streamed transaction that has committed, or up to where a batch is
    /// due.
    pub(crate) async fn read_back_some(&mut self, now: Instant) -> Result<(), Error> {
        let Some(mut committed) = self.read_back.take() else { return Ok(()) };
        loop {
            if self.progress.due(now, false).is_some() {
                break;
            }
            if let Some(Kept { place, message }) = committed.changes.next_kept() {
                self.publish_kept(place, message, now).await?;
                continue;
            }
            let Some(streamed) = &mut self.streamed else { return Ok(()) };
            if !streamed.next_piece(&mut committed.changes).await? {
                let End { commit_lsn, end_lsn, behind } = committed.end;
                self.tables.end_streamed();
                self.behind = behind;
                self.tell_streamed();
                return self.source_committed(commit_lsn, end_lsn);
            }
            break;
        }
        self.read_back = Some(committed);
        Ok(())
    }

    async fn publish_kept(
        &mut self,
        place: u64,
        message: &[u8],
        now: Instant,
    ) -> Result<(), Error> {
        if let Some((unread, head)) = kept_head(message) {
            let head = decode_head(head, true, Lsn(place))?;
            return self.unread(head, unread, Lsn(place), now).await;
        }
        match decode_streamed(message, Lsn(place))? {
            (_, Change::Relation(relation)) => {
                self.tables.relation(&relation, place);
                Ok(())
            }
            (_, change) => self.change(change, Lsn(place), now).await,
        }
    }

    fn tell_streamed(&self) {
        if let Some(streamed) = &self.streamed {
            self.report.streamed(streamed.memory() as u64, streamed.spooled());
        }
    }
}

/// A message of the stream where it has no meaning.
pub(super) fn misplaced(change: &Change<'_>, lsn: Lsn) -> Error {
    match change {
        Change::StreamStart { .. } | Change::StreamCommit { .. } | Change::StreamAbort { .. } => {
            unasked(lsn)
        }
        _ => broken("a message came where it has no meaning", lsn),
    }
}

fn unasked(lsn: Lsn) -> Error {
    broken("a transaction in progress came, which was not asked for,", lsn)
}

fn broken(what: &str, lsn: Lsn) -> Error {
    Error::new(Kind::Malformed, format!("{what} at {lsn}"))
        .hint("the server broke the replication protocol: report its version with this line")
}
