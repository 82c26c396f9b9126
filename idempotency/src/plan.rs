//! What is done next with a batch whose messages may fail: decided without a clock or a database.
//!
//! The first run has no savepoints, since almost every batch succeeds. When something fails, the transaction is
//! rolled back and the batch goes on in segments, each behind a savepoint: what ran before the failure, the failed
//! call, and what comes behind it. A call with several messages is halved until the one that fails stands alone.
//! That one is tried again and then set aside, and with it every later message of its key.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::ops::Range;

use crate::failure::Fate;

/// Savepoints that one transaction keeps before it is committed and another one goes on.
///
/// Postgres holds 64 subtransactions of a transaction in shared memory (`PGPROC_MAX_CACHED_SUBXIDS`). One more, and
/// every snapshot of every session has to look them up on disk. Half of them are left to the handlers.
pub(crate) const SAVEPOINTS_MAX: usize = 32;

/// What the lane does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// Run these records, behind a savepoint or without one.
    Run { records: Range<usize>, guarded: bool },
    /// Commit everything before this record.
    Commit { until: usize },
    /// Nothing is left.
    Done,
}

/// Why a record is not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aside<'a> {
    /// Its own failure decided so.
    Fate(&'a Fate),
    /// It stands behind a parked message of its key.
    Behind,
}

/// The state of one batch, from its first run until all of it is committed.
#[derive(Debug)]
pub(crate) struct Plan<K> {
    /// Per record; a record without a key has nothing behind it.
    keys: Vec<Option<K>>,
    /// How often each record failed by itself.
    failures: Vec<u32>,
    fates: BTreeMap<usize, Fate>,
    /// The first record of each parked key that has to wait for those before it.
    behind_from: HashMap<K, usize>,
    /// What is not committed yet, in order and without gaps.
    segments: VecDeque<Range<usize>>,
    /// The segment in turn; those before it have run in the open transaction.
    turn: usize,
    guarded: bool,
    savepoints: usize,
    width: Width,
    retries: u32,
}

/// How many records a transaction may hold.
///
/// It halves when transactions collide, and grows by one with each that is full and succeeds. Were it to double, it would
/// be back where they collide after a few transactions, and each deadlock costs `deadlock_timeout`, a second by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Width {
    now: usize,
    max: usize,
}

impl Width {
    pub(crate) fn new(max: usize) -> Self {
        Self { now: max, max }
    }

    /// How many that is now.
    pub(crate) fn now(self) -> usize {
        self.now
    }

    pub(crate) fn halve(&mut self, tried: usize) {
        self.now = (self.now.min(tried) / 2).max(1);
    }

    /// A transaction with so many has succeeded. One that was not full says nothing about larger ones.
    pub(crate) fn grow(&mut self, held: usize) {
        if held >= self.now {
            self.now = self.now.saturating_add(1).min(self.max);
        }
    }
}

impl<K: Hash + Eq + Clone> Plan<K> {
    /// A batch of records with these keys, of which some are parked already. A record that fails is tried
    /// `retries` times more before it is set aside.
    pub(crate) fn new(
        keys: Vec<Option<K>>,
        is_parked: impl Fn(&K) -> bool,
        width: Width,
        retries: u32,
    ) -> Self {
        let count = keys.len();
        let parked = keys.iter().flatten().filter(|key| is_parked(key));
        let mut plan = Self {
            failures: vec![0; count],
            fates: BTreeMap::new(),
            behind_from: parked.map(|key| (key.clone(), 0)).collect(),
            segments: std::iter::once(0..count).collect(),
            turn: 0,
            guarded: false,
            savepoints: 0,
            width,
            retries,
            keys,
        };
        plan.fit();
        plan
    }

    /// Messages of which the first is known to have failed before: savepoints from the start, and no second try.
    pub(crate) fn suspicious(keys: Vec<Option<K>>, width: Width) -> Self {
        let mut plan = Self::new(keys, |_| false, width, 0);
        plan.guarded = true;
        if let Some(all) = plan.segments.pop_front() {
            let behind = all.start + 1..all.end;
            plan.segments.push_front(all.start..all.start + 1);
            if !behind.is_empty() {
                plan.segments.insert(1, behind);
            }
        }
        plan
    }

    /// As many messages as share a transaction, each known to have failed, or not to be run twice: each has a savepoint
    /// of its own, and no second try.
    pub(crate) fn each(count: usize) -> Self {
        debug_assert!(count <= SAVEPOINTS_MAX);
        let keys = std::iter::repeat_with(|| None).take(count).collect();
        let mut plan = Self::new(keys, |_| false, Width::new(count.max(1)), 0);
        plan.guarded = true;
        plan.segments = (0..count).map(|at| at..at + 1).collect();
        plan
    }

    pub(crate) fn next(&self) -> Next {
        let ran = self.turn.checked_sub(1).and_then(|last| self.segments.get(last));
        let due = self.segments.get(self.turn);
        match (ran, due) {
            (None, None) => Next::Done,
            (None, Some(due)) => Next::Run { records: due.clone(), guarded: self.guarded },
            (Some(ran), Some(due)) if self.goes_on(due) => {
                debug_assert_eq!(ran.end, due.start);
                Next::Run { records: due.clone(), guarded: self.guarded }
            }
            (Some(ran), _) => Next::Commit { until: ran.end },
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.segments.is_empty()
    }

    /// Whether the open transaction takes another segment.
    fn goes_on(&self, due: &Range<usize>) -> bool {
        let fits = due.end - self.start() <= self.width.now;
        self.guarded && self.savepoints < SAVEPOINTS_MAX && fits
    }

    /// Where the open transaction begins.
    pub(crate) fn start(&self) -> usize {
        self.segments.front().map_or(self.keys.len(), |segment| segment.start)
    }

    /// How far the open transaction reaches if nothing fails, where that is known.
    pub(crate) fn reach(&self) -> Option<usize> {
        let first = self.segments.front().filter(|_| !self.guarded);
        first.map(|segment| segment.end)
    }

    /// How many records the open transaction has held so far, the segment in turn included.
    pub(crate) fn tried(&self) -> usize {
        let last = self.segments.get(self.turn).or_else(|| self.segments.back());
        last.map_or(0, |segment| segment.end - self.start())
    }

    pub(crate) fn width(&self) -> Width {
        self.width
    }

    /// Why a record is not run; none when it is.
    ///
    /// A parked message before it counts first: whatever it did on its own, it did without the effect of that one.
    pub(crate) fn aside(&self, record: usize) -> Option<Aside<'_>> {
        let key = self.keys.get(record).and_then(Option::as_ref);
        let behind =
            key.and_then(|key| self.behind_from.get(key)).is_some_and(|from| *from <= record);
        if behind { Some(Aside::Behind) } else { self.fates.get(&record).map(Aside::Fate) }
    }

    /// How often a record failed by itself.
    pub(crate) fn failures(&self, record: usize) -> u32 {
        self.failures.get(record).copied().unwrap_or_default()
    }

    /// The segment in turn has run.
    pub(crate) fn ran(&mut self) {
        self.turn += 1;
        self.savepoints += usize::from(self.guarded);
    }

    /// A call with these records failed by their own fault. Without a savepoint the transaction is over; with one,
    /// the segment is. `again` says that another try may help.
    pub(crate) fn failed(&mut self, call: Range<usize>, fate: Fate, again: bool) {
        if call.len() <= 1 {
            let failures = self.failures.get_mut(call.start);
            let failures = failures.map_or(0, |failures| {
                *failures += u32::from(fate.is_failure());
                *failures
            });
            if !again || failures > self.retries {
                self.condemn(call.start, fate);
            }
        }
        if self.guarded {
            self.isolate(call);
        } else {
            self.guarded = true;
            self.turn = 0;
            self.isolate(call);
            self.begin_again();
        }
    }

    /// The same, where the whole transaction went with it. It need not have been the segment in turn: a session may be
    /// found gone by those behind it.
    pub(crate) fn failed_and_lost(&mut self, call: Range<usize>, fate: Fate, again: bool) {
        let place = self.segments.iter().position(|segment| segment.contains(&call.start));
        self.turn = place.unwrap_or(0);
        self.failed(call, fate, again);
        self.begin_again();
    }

    /// A record will not be run any more.
    pub(crate) fn condemn(&mut self, record: usize, fate: Fate) {
        if let (Fate::Park(_) | Fate::Call, Some(Some(key))) = (&fate, self.keys.get(record)) {
            let from = self.behind_from.entry(key.clone()).or_insert(record + 1);
            *from = (*from).min(record + 1);
        }
        self.fates.entry(record).or_insert(fate);
    }

    /// The failed call gets segments of its own: one, or two halves where it has several records.
    fn isolate(&mut self, call: Range<usize>) {
        let Some(segment) = self.segments.remove(self.turn) else { return };
        debug_assert!(segment.start <= call.start && call.end <= segment.end);
        let middle = call.start + call.len() / 2;
        let pieces = [
            segment.start..call.start,
            call.start..middle,
            middle..call.end,
            call.end..segment.end,
        ];
        let pieces = pieces.into_iter().filter(|piece| !piece.is_empty());
        for (place, piece) in (self.turn..).zip(pieces) {
            self.segments.insert(place, piece);
        }
    }

    /// A transaction with everything before this record is committed.
    pub(crate) fn committed(&mut self, until: usize) {
        let held = until.saturating_sub(self.start());
        self.segments.retain(|segment| segment.end > until);
        self.width.grow(held);
        self.begin_again();
    }

    /// The first record of the open transaction is given up, although nothing says that it is its own fault.
    pub(crate) fn give_up(&mut self, fate: Fate) {
        let first = self.start();
        if let Some(failures) = self.failures.get_mut(first) {
            *failures += 1;
        }
        self.condemn(first, fate);
        self.begin_again();
    }

    /// The open transaction is lost by no message's fault. Where it collided with another one, the next is smaller.
    pub(crate) fn lost(&mut self, collided: bool) {
        if collided {
            self.width.halve(self.tried());
        }
        self.begin_again();
    }

    /// The open transaction is given up since a handler wants its records once more. They get a savepoint, behind which
    /// it may say so again.
    pub(crate) fn again(&mut self) {
        self.guarded = true;
        self.begin_again();
    }

    fn begin_again(&mut self) {
        self.turn = 0;
        self.savepoints = 0;
        if !self.guarded && !self.is_done() {
            self.segments = std::iter::once(self.start()..self.keys.len()).collect();
        }
        self.fit();
    }

    /// The first segment is never wider than a transaction.
    fn fit(&mut self) {
        let Some(first) = self.segments.front_mut() else { return };
        if first.len() > self.width.now {
            let rest = first.start + self.width.now..first.end;
            first.end = rest.start;
            self.segments.insert(1, rest);
        }
    }
}

#[cfg(test)]
mod tests;
