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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Limits {
    /// Records, judged where a source transaction ends.
    pub(crate) batch_records: usize,
    /// Bytes, judged where a source transaction ends.
    pub(crate) batch_bytes: usize,
    /// Age of the first record once everything that was sent is taken in, judged where a source
    /// transaction ends.
    pub(crate) linger: Duration,
    /// Age of the first record while there is more to take in, judged where a source transaction
    /// ends.
    pub(crate) behind_age: Duration,
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

/// What ordinals count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Counting {
    /// Every row, every emptied table and every logical message.
    #[default]
    All,
    /// Logical messages not: of a streamed transaction the server does not tell which of them were
    /// rolled back with a savepoint, so their number would depend on whether it was streamed.
    Rows,
}

/// The relay's place in the source, between what is received and what is durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Progress {
    incarnation: Incarnation,
    limits: Limits,
    counting: Counting,
    /// What earlier sessions published: it comes again and is discarded.
    known: Published,
    /// What the newest checkpoint says, be it durable or under way.
    sealed: Published,
    /// Whether that checkpoint is under way.
    committing: bool,
    /// Up to where the newest durable checkpoint goes.
    durable: Lsn,
    /// Everything that committed before this was received.
    received: Lsn,
    /// The source transaction that is being received.
    open: Option<Open>,
    /// What was produced since the newest checkpoint.
    batch: Option<Batch>,
    checkpoint_at: Instant,
    /// The server waits for us, as in a shutdown.
    asked: bool,
    /// The relay is about to stop.
    draining: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Known {
    Nothing,
    UpTo(Partial),
    All,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
            counting: Counting::default(),
            known: published,
            sealed: published,
            committing: false,
            durable: published.flush_lsn,
            received: published.flush_lsn,
            open: None,
            batch: None,
            checkpoint_at: now,
            asked: false,
            draining: false,
        }
    }

    /// The same, with ordinals that count so.
    pub(crate) fn counting(self, counting: Counting) -> Self {
        Progress { counting, ..self }
    }

    /// A source transaction begins; `commit_lsn` is where its commit record begins.
    pub(crate) fn begin(&mut self, commit_lsn: Lsn) -> Result<(), Error> {
        if self.open.is_some() {
            return Err(out_of_order(commit_lsn, "a transaction begins inside another"));
        }
        let (known, last) = match self.known.partial {
            // A published transaction begins its commit record below its end, an unpublished one
            // at the end of the one before it at the lowest.
            _ if commit_lsn < self.known.flush_lsn => (Known::All, None),
            _ if commit_lsn < self.received => {
                return Err(out_of_order(commit_lsn, "a transaction came out of commit order"));
            }
            Some(partial) if partial.counting != self.counting => {
                return Err(other_counting(partial));
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
        #[cfg(feature = "faults")]
        if crate::faults::resumes_by_message_lsn() && change_lsn < self.known.flush_lsn {
            return Ok(Verdict::Published);
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
        let counting = self.counting;
        open.last = Some(Partial { commit_lsn, ordinal, change_lsn, counting });
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
            self.known.partial = None;
        }
        self.received = self.received.max(end_lsn);
        Ok(())
    }

    /// The server has sent everything that committed before `wal_end`.
    pub(crate) fn keepalive(&mut self, wal_end: Lsn, reply_requested: bool) {
        // Inside a transaction, or before a split one has come again, the end of the log says
        // nothing about what is still to come of it.
        if self.open.is_none() && self.known.partial.is_none() {
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
        self.batch.is_none() && !self.committing && self.checkpoint() == self.sealed
    }

    /// The checkpoint to seal the batch with now, if that is due. `caught_up` says that everything
    /// the server has sent is taken in.
    ///
    /// A relay that keeps up seals as soon as the commit before is done, so the commits themselves
    /// set the pace; one that is behind fills its batches.
    pub(crate) fn due(&self, now: Instant, caught_up: bool) -> Option<Published> {
        let due = match &self.batch {
            Some(batch) if self.splits() => {
                let bytes = self.open.as_ref().map_or(0, |open| open.bytes);
                bytes >= self.limits.split_bytes
                    || since(batch.opened_at, now) >= self.limits.split_age
            }
            Some(batch) => {
                let age = since(batch.opened_at, now);
                self.draining
                    || batch.records >= self.limits.batch_records
                    || batch.bytes >= self.limits.batch_bytes
                    || age >= self.limits.behind_age.max(self.limits.linger)
                    || (caught_up && !self.committing && age >= self.limits.linger)
            }
            None => {
                let idle_bytes = self.received.0 - self.sealed.flush_lsn.0;
                idle_bytes > 0
                    && !self.splits()
                    && !self.committing
                    && (self.draining
                        || self.asked
                        || idle_bytes >= self.limits.idle_bytes
                        || since(self.checkpoint_at, now) >= self.limits.idle_age)
            }
        };
        due.then(|| self.checkpoint())
    }

    /// The checkpoint to seal the batch with before anything joins it, be it inside a source
    /// transaction; `None` where the batch is empty.
    pub(crate) fn cut(&self) -> Option<Published> {
        self.batch.is_some().then(|| self.checkpoint())
    }

    /// When [`Progress::due`] can change its answer though nothing is received and nothing becomes
    /// durable.
    pub(crate) fn deadline(&self, caught_up: bool) -> Option<Instant> {
        match &self.batch {
            Some(batch) if self.splits() => Some(batch.opened_at + self.limits.split_age),
            Some(batch) if self.committing || !caught_up => {
                Some(batch.opened_at + self.limits.behind_age.max(self.limits.linger))
            }
            Some(batch) => Some(batch.opened_at + self.limits.linger),
            None if self.committing || self.splits() => None,
            None if self.received > self.sealed.flush_lsn => {
                Some(self.checkpoint_at + self.limits.idle_age)
            }
            None => None,
        }
    }

    /// Whether a checkpoint is under way.
    pub(crate) fn is_committing(&self) -> bool {
        self.committing
    }

    /// The batch and this checkpoint are handed over to become durable together; what is produced
    /// from here on belongs to the next batch.
    ///
    /// One at a time: the one before must be durable, or a crash could keep this one and lose that.
    pub(crate) fn sealed(&mut self, checkpoint: Published, now: Instant) {
        assert!(!self.committing, "a checkpoint is sealed once the one before is durable");
        debug_assert!(checkpoint.flush_lsn >= self.durable);
        self.sealed = checkpoint;
        self.committing = true;
        if let Some(open) = &mut self.open {
            open.bytes = 0;
        }
        self.batch = None;
        self.checkpoint_at = now;
        self.asked = false;
    }

    /// The sealed checkpoint is durable.
    pub(crate) fn committed(&mut self) {
        assert!(self.committing, "only a sealed checkpoint becomes durable");
        self.committing = false;
        self.durable = self.sealed.flush_lsn;
    }

    /// What the slot may be flushed to: only what a committed checkpoint holds.
    pub(crate) fn flush_lsn(&self) -> Lsn {
        self.durable
    }

    /// What a checkpoint would say if it were written now.
    fn checkpoint(&self) -> Published {
        let partial = match &self.open {
            Some(open) => open.last,
            None => self.known.partial,
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

/// The place inside the transaction was counted in another way.
fn other_counting(partial: Partial) -> Error {
    let before = match partial.counting {
        Counting::All => "on",
        Counting::Rows => "off",
    };
    let commit_lsn = partial.commit_lsn;
    Error::new(
        Kind::Config,
        format!(
            "the transaction that commits at {commit_lsn} is published in part, with relay.messages \
             {before}: its places are counted otherwise now"
        ),
    )
    .hint("run with relay.messages as it was until that transaction is published, then change it")
}

fn changed_history(partial: Partial, found: Lsn) -> Error {
    let Partial { commit_lsn, ordinal, change_lsn, .. } = partial;
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
