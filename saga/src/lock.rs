//! Semantic locks: what keeps two sagas from working at the same thing at the same time.
//!
//! Between its first step and its end a saga's effects can be seen, and are not final. A lock is one saga's from the step
//! that takes it until the saga has ended; who comes later stands in line. It is a row in the orchestrator's database, so
//! it is released in the transaction in which its saga ends, and nobody's crash loses it.
//!
//! A saga that is a step of another one ends when it completes, and its locks are free then, though its whole may still
//! undo it. What must not be seen before the whole has ended is locked by the whole.
//!
//! What a saga does about its locks the machine decides; here are the lock itself, and the order in which locks may be
//! taken. [`rows`] keeps the line.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::definition::{Definition, OnTimeout, Step};
use crate::retry::WAIT_MAX;

#[cfg(feature = "kafka")]
pub(crate) mod rows;

/// The most keys of one lock that a saga takes.
pub const LOCK_KEYS_MAX: usize = 16;

/// The longest key of a lock, in bytes: it has to fit into an index.
pub const LOCK_KEY_BYTES_MAX: usize = 500;

/// What can be locked: accounts, say, or customers. Which of them is said by each saga's data.
///
/// A saga has its locks until it has ended. One that is a [`part`](crate::part()) of another one has ended when it
/// completes, though its whole may undo it later: take the lock in the whole, before the part, where others must not see
/// what is not final.
///
/// ```
/// use std::time::Duration;
/// use tailrace_saga::{Lock, OnTimeout};
///
/// const ACCOUNT: Lock = Lock::named("account")
///     .ttl(Duration::from_secs(15 * 60))
///     .wait(Duration::from_secs(30), OnTimeout::Compensate);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a lock does nothing until a saga takes it"]
pub struct Lock {
    pub(crate) name: &'static str,
    pub(crate) ttl: Duration,
    pub(crate) wait: Duration,
    pub(crate) on_timeout: OnTimeout,
}

impl Lock {
    /// A lock with this name. All sagas of one database that take a lock of this name take turns, whatever their
    /// definitions.
    pub const fn named(name: &'static str) -> Self {
        Self {
            name,
            ttl: Duration::from_secs(3600),
            wait: Duration::from_secs(60),
            on_timeout: OnTimeout::Compensate,
        }
    }

    /// How long a saga may go forward with it, from when it has it. Then it is undone, or, where its pivot was asked for
    /// already, a person is told. It keeps the lock in any case: nobody else works at what is half done. Default: an
    /// hour.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// How long a saga stands in line for it, for all keys together, and what follows: it is undone or parked. Default:
    /// 60 s, [`OnTimeout::Compensate`].
    pub const fn wait(mut self, at_most: Duration, then: OnTimeout) -> Self {
        self.wait = at_most;
        self.on_timeout = then;
        self
    }
}

/// How it stands with all locks of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lines {
    /// The name.
    pub lock: String,
    /// How many are held.
    pub held: u64,
    /// How many of them for longer than their sagas may go forward with them.
    pub expired: u64,
    /// How many sagas stand in line.
    pub waiting: u64,
    /// For how long the one that stands there longest.
    pub wait_max: Duration,
}

impl Lines {
    /// Nobody has such a lock or waits for one.
    pub(crate) fn of(lock: &str) -> Self {
        let wait_max = Duration::ZERO;
        Self { lock: lock.to_owned(), held: 0, expired: 0, waiting: 0, wait_max }
    }
}

/// The keys in the order in which they are taken, each once, so that two sagas that take the same ones never wait for
/// each other.
pub(crate) fn in_order(keys: impl IntoIterator<Item = String>) -> Result<Vec<String>, String> {
    let keys: BTreeSet<String> = keys.into_iter().collect();
    if keys.len() > LOCK_KEYS_MAX {
        return Err(format!("it has more than {LOCK_KEYS_MAX} keys"));
    }
    if keys.iter().any(|key| key.len() > LOCK_KEY_BYTES_MAX || key.contains('\0')) {
        return Err(format!("a key is longer than {LOCK_KEY_BYTES_MAX} bytes or holds a NUL"));
    }
    Ok(keys.into_iter().collect())
}

/// What is wrong with the locks of one definition.
pub(crate) fn faults(order: &[Box<str>], steps: &[Step]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut seen = BTreeSet::new();
    for name in order {
        if !seen.insert(name) {
            faults.push(format!("its lock order names {name} twice"));
        }
    }
    // A lock stands alone in its group, so what stands before a step in the text is held when it begins.
    let mut held: Vec<&str> = Vec::new();
    for step in steps {
        for lock in taken_by(step) {
            let of_part = step.part().map(|part| format!("{}, which ", part.identity()));
            let who = format!("step {}: {}", step.name, of_part.as_deref().unwrap_or_default());
            let Some(rank) = rank(order, lock) else {
                faults.push(format!("{who}locks {lock}, which is not in the lock order"));
                continue;
            };
            let is_behind =
                |other: &&&str| self::rank(order, other).is_some_and(|other| other > rank);
            for other in held.iter().filter(is_behind) {
                faults.push(format!("{who}locks {lock} behind {other}, against the lock order"));
            }
            if step.part().is_some() && locks_itself(steps, lock) {
                faults.push(format!(
                    "{who}locks {lock}, as its whole does: they would wait for each other"
                ));
            }
        }
        held.extend(step.lock().map(|lock| lock.name));
    }
    faults
}

fn rank(order: &[Box<str>], lock: &str) -> Option<usize> {
    order.iter().position(|name| **name == *lock)
}

/// Whether one of these steps takes a lock of this name. What a part of them takes is the part's.
fn locks_itself(steps: &[Step], lock: &str) -> bool {
    steps.iter().any(|step| step.lock().is_some_and(|own| own.name == lock))
}

/// The locks that are taken while a step is under way: its own, or all of the saga that it is.
fn taken_by(step: &Step) -> Vec<&str> {
    match step.part() {
        Some(part) => part.steps().flat_map(taken_by).collect(),
        None => step.lock().map(|lock| lock.name).into_iter().collect(),
    }
}

/// Definitions whose lock orders cannot all be kept. Sagas that follow such might wait for each other for ever, or until
/// their patience ends.
pub(crate) fn contradictions(definitions: &[Ordered]) -> Vec<String> {
    let mut faults = BTreeSet::new();
    let mut behind: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (at, one) in definitions.iter().enumerate() {
        for (first, second) in one.pairs() {
            behind.entry(first).or_default().insert(second);
            for other in definitions.iter().skip(at).filter(|other| other.has(second, first)) {
                let (one, other) = (&one.of, &other.of);
                faults.insert(format!(
                    "{one} locks {first} before {second}, and {other} {second} before {first}"
                ));
            }
        }
    }
    if faults.is_empty()
        && let Some(circle) = circle(&behind)
    {
        faults.insert(format!("their lock orders go in a circle: {}", circle.join(", ")));
    }
    faults.into_iter().collect()
}

/// The lock order of a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ordered {
    /// The definition, as `create-order/4`.
    pub(crate) of: String,
    pub(crate) locks: Vec<Box<str>>,
}

impl Ordered {
    pub(crate) fn new(definition: &Definition) -> Self {
        Self { of: definition.identity().to_string(), locks: definition.lock_order().to_vec() }
    }

    /// Everything that stands before something else.
    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.locks.iter().enumerate().flat_map(|(at, first)| {
            self.locks.iter().skip(at + 1).map(move |second| (&**first, &**second))
        })
    }

    fn has(&self, first: &str, second: &str) -> bool {
        self.pairs().any(|pair| pair == (first, second))
    }
}

/// Locks of which each is to be taken before the next, and the last before the first.
fn circle<'l>(behind: &BTreeMap<&'l str, BTreeSet<&'l str>>) -> Option<Vec<&'l str>> {
    let mut left: BTreeMap<&str, BTreeSet<&str>> = behind.clone();
    // What nothing left stands behind is in no circle; when no such is left, everything leads into one.
    loop {
        let names: BTreeSet<&str> = left.keys().copied().collect();
        left.values_mut().for_each(|behind| behind.retain(|name| names.contains(name)));
        let before = left.len();
        left.retain(|_, behind| !behind.is_empty());
        if left.len() == before {
            break;
        }
    }
    let mut path: Vec<&str> = vec![left.keys().next()?];
    loop {
        let next = *left.get(path.last()?)?.first()?;
        if let Some(from) = path.iter().position(|name| *name == next) {
            return Some(path.split_off(from));
        }
        path.push(next);
    }
}

/// What is wrong with a lock by itself.
pub(crate) fn fault(lock: &Lock) -> Option<&'static str> {
    (lock.ttl.is_zero() || lock.ttl > WAIT_MAX)
        .then_some("its lock's time to live is not between nothing and a year")
}

#[cfg(test)]
mod tests;
