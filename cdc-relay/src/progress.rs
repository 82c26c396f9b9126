//! Decides what is published already, when a Kafka transaction ends, and what may be flushed.
//!
//! Nothing here acts: the relay's loop feeds it what the server sent and carries out what it
//! says. So every interleaving of crash and delivery can be explored in a test
//! (`progress/tests.rs`).

use std::time::{Duration, Instant};

use crate::checkpoint::{Partial, Published};
use crate::error::{Error, Kind};
use crate::lsn::Lsn;
use crate::position::{Incarnation, Ordinal, Position};

/// When a Kafka transaction ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Records, judged where a source transaction ends.
    pub(crate) batch_records: usize,
    /// Bytes, judged where a source transaction ends.
    pub(crate) batch_bytes: usize,
    /// Age of the first record, judged where a source transaction ends.
    pub(crate) linger: Duration,
    /// A source transaction with more bytes than this is split.
    pub(crate) split_bytes: usize,
    /// A Kafka transaction older than this is ended even inside a source transaction, before the
    /// broker's own time-out aborts it.
    pub(crate) split_age: Duration,
    /// Log without messages that is checkpointed at once.
    pub(crate) idle_bytes: u64,
    /// Log without messages that is checkpointed after this time.
    pub(crate) idle_age: Duration,
}

/// What is to be done with a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is in Kafka already.
    Published,
    /// It is new.
    Fresh(Position),
}

/// The relay's place in the source, between what is received and what is durable.
#[derive(Debug)]
pub(crate) struct Progress {
    incarnation: Incarnation,
    limits: Limits,
    /// As the last committed checkpoint says.
    published: Published,
    /// Everything that committed before this was received.
    received: Lsn,
    /// The source transaction that is being received.
    open: Option<Open>,
    /// What was produced since the last commit.
    batch: Option<Batch>,
    checkpoint_at: Instant,
    /// The server waits for us, as in a shutdown.
    asked: bool,
    /// The relay is about to stop.
    draining: bool,
}

#[derive(Debug)]
struct Open {
    commit_lsn: Lsn,
    next: u32,
    /// The last change of this transaction that is produced or published.
    last: Option<Partial>,
    /// Changes up to here were published before; `None` when the whole transaction was.
    known: Known,
    /// Bytes produced of it in the current batch.
    bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    UpTo(Partial),
    All,
}

#[derive(Debug)]
struct Batch {
    opened_at: Instant,
    records: usize,
    bytes: usize,
}

impl Progress {
    /// Goes on from a checkpoint.
    pub(crate) fn new(
        incarnation: Incarnation,
        published: Published,
        limits: Limits,
        now: Instant,
    ) -> Self {
        Progress {
            incarnation,
            limits,
            published,
            received: published.flush_lsn,
            open: None,
            batch: None,
            checkpoint_at: now,
            asked: false,
            draining: false,
        }
    }

    /// A source transaction begins; `commit_lsn` is where its commit record begins.
    pub(crate) fn begin(&mut self, commit_lsn: Lsn) -> Result<(), Error> {
        if self.open.is_some() {
            return Err(out_of_order(commit_lsn, "a transaction begins inside another"));
        }
        let (known, last) = match self.published.partial {
            // A published transaction begins its commit record below its end, an unpublished one
            // at the end of the one before it at the lowest.
            _ if commit_lsn < self.published.flush_lsn => (Known::All, None),
            _ if commit_lsn < self.received => {
                return Err(out_of_order(commit_lsn, "a transaction came out of commit order"));
            }
            Some(partial) if partial.commit_lsn == commit_lsn => {
                (Known::UpTo(partial), Some(partial))
            }
            Some(partial) => return Err(changed_history(partial, commit_lsn)),
            None => (Known::Nothing, None),
        };
        self.open = Some(Open { commit_lsn, next: 0, last, known, bytes: 0 });
        Ok(())
    }

    /// A change of the open transaction, in the order of the stream.
    pub(crate) fn change(&mut self, change_lsn: Lsn) -> Result<Verdict, Error> {
        let Some(open) = &mut self.open else {
            return Err(out_of_order(change_lsn, "a change came outside a transaction"));
        };
        let ordinal = Ordinal(open.next);
        open.next = open.next.checked_add(1).ok_or_else(|| {
            out_of_order(change_lsn, "a transaction has more changes than can be counted")
        })?;
        match open.known {
            Known::All => return Ok(Verdict::Published),
            Known::UpTo(partial) if ordinal <= partial.ordinal => {
                if ordinal == partial.ordinal && change_lsn != partial.change_lsn {
                    return Err(changed_history(partial, change_lsn));
                }
                return Ok(Verdict::Published);
            }
            Known::UpTo(_) | Known::Nothing => {}
        }
        let commit_lsn = open.commit_lsn;
        Ok(Verdict::Fresh(Position { incarnation: self.incarnation, commit_lsn, ordinal }))
    }

    /// The fresh change at this position was handed to Kafka.
    pub(crate) fn produced(
        &mut self,
        position: Position,
        change_lsn: Lsn,
        bytes: usize,
        now: Instant,
    ) {
        let open = self.open.as_mut().expect("a fresh change has an open transaction");
        let Position { commit_lsn, ordinal, .. } = position;
        open.last = Some(Partial { commit_lsn, ordinal, change_lsn });
        open.bytes += bytes;
        let batch = self.batch.get_or_insert(Batch { opened_at: now, records: 0, bytes: 0 });
        batch.records += 1;
        batch.bytes += bytes;
    }

    /// The open transaction is whole.
    pub(crate) fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<(), Error> {
        let Some(open) = self.open.take() else {
            return Err(out_of_order(commit_lsn, "a commit came without its transaction"));
        };
        if open.commit_lsn != commit_lsn || end_lsn < commit_lsn {
            return Err(out_of_order(commit_lsn, "a commit does not fit its transaction"));
        }
        if let Known::UpTo(partial) = open.known {
            if open.next <= partial.ordinal.0 {
                return Err(changed_history(partial, commit_lsn));
            }
            // From here on the whole transaction counts as received.
            self.published.partial = None;
        }
        self.received = self.received.max(end_lsn);
        Ok(())
    }

    /// The server has sent everything that committed before `wal_end`.
    pub(crate) fn keepalive(&mut self, wal_end: Lsn, reply_requested: bool) {
        // Inside a transaction, or before a split one has come again, the end of the log says
        // nothing about what is still to come of it.
        if self.open.is_none() && self.published.partial.is_none() {
            self.received = self.received.max(wal_end);
        }
        self.asked |= reply_requested;
    }

    /// The relay is about to stop: what can be committed is due.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    /// Nothing received is left unpublished, as far as it can be.
    pub(crate) fn is_drained(&self) -> bool {
        self.batch.is_none() && self.checkpoint() == self.published
    }

    /// The checkpoint to commit now, if one is due.
    pub(crate) fn due(&self, now: Instant) -> Option<Published> {
        let due = match &self.batch {
            Some(batch) if self.splits() => {
                let bytes = self.open.as_ref().map_or(0, |open| open.bytes);
                bytes >= self.limits.split_bytes
                    || since(batch.opened_at, now) >= self.limits.split_age
            }
            Some(batch) => {
                self.draining
                    || batch.records >= self.limits.batch_records
                    || batch.bytes >= self.limits.batch_bytes
                    || since(batch.opened_at, now) >= self.limits.linger
            }
            None => {
                let idle_bytes = self.received.0 - self.published.flush_lsn.0;
                idle_bytes > 0
                    && !self.splits()
                    && (self.draining
                        || self.asked
                        || idle_bytes >= self.limits.idle_bytes
                        || since(self.checkpoint_at, now) >= self.limits.idle_age)
            }
        };
        due.then(|| self.checkpoint())
    }

    /// When [`Progress::due`] can change its answer though nothing is received.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.batch {
            Some(batch) if self.splits() => Some(batch.opened_at + self.limits.split_age),
            Some(batch) => Some(batch.opened_at + self.limits.linger),
            None if self.received > self.published.flush_lsn && !self.splits() => {
                Some(self.checkpoint_at + self.limits.idle_age)
            }
            None => None,
        }
    }

    /// A checkpoint is durable.
    pub(crate) fn committed(&mut self, published: Published, now: Instant) {
        debug_assert!(published.flush_lsn >= self.published.flush_lsn);
        // A partial that is still open stays with the open transaction; it is not waited for.
        self.published = Published { flush_lsn: published.flush_lsn, partial: None };
        if let Some(open) = &mut self.open {
            open.bytes = 0;
        } else {
            self.published.partial = published.partial;
        }
        self.batch = None;
        self.checkpoint_at = now;
        self.asked = false;
    }

    /// What the slot may be flushed to: only what a committed checkpoint holds.
    pub(crate) fn flush_lsn(&self) -> Lsn {
        self.published.flush_lsn
    }

    /// What a checkpoint would say if it were written now.
    fn checkpoint(&self) -> Published {
        let partial = match &self.open {
            Some(open) => open.last,
            None => self.published.partial,
        };
        Published { flush_lsn: self.received, partial }
    }

    /// Whether a checkpoint now would stand inside a source transaction.
    fn splits(&self) -> bool {
        self.checkpoint().partial.is_some()
    }
}

fn since(then: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(then)
}

fn out_of_order(lsn: Lsn, what: &'static str) -> Error {
    Error::new(Kind::Malformed, format!("{what} at {lsn}"))
        .hint("the server broke the replication protocol: report its version with this line")
}

fn changed_history(partial: Partial, found: Lsn) -> Error {
    let Partial { commit_lsn, ordinal, change_lsn } = partial;
    Error::new(
        Kind::Gap,
        format!(
            "the checkpoint stands inside the transaction that commits at {commit_lsn}, at change \
             {} of it ({change_lsn}), but the server sent {found} in its place",
            ordinal.0
        ),
    )
    .hint("the source is not the one that the checkpoint was written from: was it restored?")
}

#[cfg(test)]
mod tests;
