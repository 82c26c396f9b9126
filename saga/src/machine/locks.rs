//! What a saga does about its locks: one key after another, in order; and never more than it wants.

use super::{Event, Turn};
use crate::correlation::Operation;
use crate::definition::Work;
use crate::instance::{Cause, LockState, Phase, StepStatus, Trouble, micros};
use crate::transition::{Alert, Happening, LockKey, LockMove, Tick, Timer, Verdict};
use crate::unreadable::Unreadable;

impl Turn<'_> {
    /// Which keys a step locks. That stays as it was, whatever becomes of the data.
    pub(super) fn choose_keys(&mut self, at: usize) -> Result<(), Unreadable> {
        let Work::Lock { keys, .. } = &self.spec(at).work else { return Ok(()) };
        if self.state(at).lock.is_none() {
            let keys = match self.rules.assumes() {
                None => (keys.0)(&self.out.instance.data)?,
                Some(_) => vec![String::new()],
            };
            let lock = LockState { keys, held: 0, expires_at: None, is_expired: false };
            self.state_mut(at).lock = Some(lock);
        }
        Ok(())
    }

    /// Whether a step takes a lock and lacks no key.
    pub(super) fn has_all_keys(&self, at: usize) -> bool {
        self.state(at).lock.as_ref().is_some_and(|lock| lock.next().is_none())
    }

    /// Stands in line for the next key.
    pub(super) fn want(&mut self, at: usize) {
        let Some(ttl) = self.spec(at).lock().map(|lock| lock.ttl) else { return };
        let Some(key) = self.next_key(at) else { return };
        self.note(Some(at), Happening::LockWanted { key: key.clone() });
        let lock = self.lock_key(at, key);
        self.out.locks.push(LockMove::Take { lock, ttl });
    }

    /// The saga was given a lock. Once it is over it wants none.
    pub(super) fn held(&mut self, step: &str, key: String) -> Verdict {
        match self.find(step) {
            Some(at) if !self.out.instance.phase.is_over() => self.fire(at, Event::Held(key)),
            at => self.give_back(at, LockKey { name: step.into(), key }),
        }
    }

    /// A step that waits for a lock was given one.
    pub(super) fn hold(&mut self, at: usize, key: String) -> Verdict {
        if self.next_key(at).as_ref() != Some(&key) {
            return self.unwanted(at, key);
        }
        let ttl = self.spec(at).lock().map(|lock| lock.ttl).unwrap_or_default();
        let expires_at = self.now.checked_add(ttl).map(micros::floor);
        let Some(lock) = &mut self.state_mut(at).lock else { return Verdict::Unfit };
        lock.held += 1;
        let is_first = lock.held == 1;
        if is_first {
            lock.expires_at = expires_at;
        }
        self.note(Some(at), Happening::LockHeld { key });
        if is_first {
            self.wish_for_expiry(at);
        }
        if self.has_all_keys(at) {
            return self.settle(at, StepStatus::Done);
        }
        self.want(at);
        Verdict::Applied
    }

    /// A step was given a lock for which it does not wait: it has it already, or has given up waiting before it heard
    /// that its turn had come. What is not wanted goes to the next one, or nobody would ever have it.
    pub(super) fn unwanted(&mut self, at: usize, key: String) -> Verdict {
        let has = |lock: &LockState| lock.held().contains(&key);
        if self.state(at).lock.as_ref().is_some_and(has) {
            return Verdict::Duplicate;
        }
        let lock = self.lock_key(at, key);
        self.give_back(Some(at), lock)
    }

    fn give_back(&mut self, at: Option<usize>, lock: LockKey) -> Verdict {
        if !self.rules.keeps_grants() {
            self.note(at, Happening::LockLeft { key: lock.key.clone() });
            self.out.locks.push(LockMove::Release(lock));
        }
        Verdict::Stale
    }

    /// A step that waits for a lock does so no longer. What it holds it keeps.
    pub(super) fn leave(&mut self, at: usize) {
        let waits = matches!(self.state(at).status, StepStatus::Acting | StepStatus::StuckActing);
        let Some(key) = self.next_key(at).filter(|_| waits) else { return };
        if let Some(lock) = &mut self.state_mut(at).lock {
            lock.keys.truncate(lock.held);
        }
        self.note(Some(at), Happening::LockLeft { key: key.clone() });
        let lock = self.lock_key(at, key);
        self.out.locks.push(LockMove::Release(lock));
    }

    /// The saga is over: it wants no lock, and has none.
    pub(super) fn release_all(&mut self) {
        for at in 0..self.out.instance.steps.len() {
            self.leave(at);
            self.release(at);
        }
    }

    fn release(&mut self, at: usize) -> Verdict {
        let held = match self.state_mut(at).lock.take() {
            Some(lock) => lock.held().to_vec(),
            None => Vec::new(),
        };
        if held.is_empty() {
            return Verdict::Unfit;
        }
        self.note(Some(at), Happening::Unlocked);
        for key in held {
            let lock = self.lock_key(at, key);
            self.out.locks.push(LockMove::Release(lock));
        }
        Verdict::Applied
    }

    /// A person gives back what a step has locked. One that still waits is passed over or undone instead.
    pub(super) fn unlock(&mut self, step: &str) -> Verdict {
        match self.find(step) {
            Some(at) if self.state(at).operation().is_none() => self.release(at),
            _ => Verdict::Unfit,
        }
    }

    /// The time is over for which the saga may go forward with a lock. It turns back where it still can, and has the
    /// lock until it is undone. Where it can not, only a person knows whether others may work at what is half done.
    pub(super) fn lock_due(&mut self, step: &str, tick: &Tick) -> Verdict {
        let Some(at) = self.find(step) else { return Verdict::Unfit };
        let lock = self.state(at).lock.as_ref().filter(|lock| !lock.is_expired);
        match lock.and_then(|lock| lock.expires_at) {
            None => Verdict::Stale,
            Some(due) if self.now < due => self.early(due, tick),
            Some(_) => self.expire(at),
        }
    }

    fn expire(&mut self, at: usize) -> Verdict {
        if let Some(lock) = &mut self.state_mut(at).lock {
            lock.is_expired = true;
        }
        self.note(Some(at), Happening::LockExpired);
        let step = self.state(at).name.clone();
        let operation = match self.out.instance.phase {
            Phase::Running if self.can_be_undone() => {
                return self.begin_undoing(Cause::LockExpired { step });
            }
            Phase::Compensating => Operation::Compensation,
            _ => Operation::Action,
        };
        let (saga, trouble) = (self.out.instance.id, Trouble::LockExpired);
        self.out.alerts.push(Alert { saga, step, operation, trouble });
        Verdict::Applied
    }

    /// The timer of a lock that is held.
    pub(super) fn wish_for_expiry(&mut self, at: usize) {
        let state = self.state(at);
        let lock = state.lock.as_ref().filter(|lock| !lock.is_expired);
        if let Some(due) = lock.and_then(|lock| lock.expires_at) {
            let tick = Tick::Lock { step: state.name.clone() };
            self.out.timers.push(Timer { due, tick });
        }
    }

    fn next_key(&self, at: usize) -> Option<String> {
        self.state(at).lock.as_ref()?.next().map(str::to_owned)
    }

    fn lock_key(&self, at: usize, key: String) -> LockKey {
        LockKey { name: self.state(at).name.clone(), key }
    }
}
