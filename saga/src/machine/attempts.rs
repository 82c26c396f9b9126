//! Attempts that come to nothing: when the next one is, and what follows the last one.

use std::time::Duration;

use super::{Event, Turn};
use crate::correlation::{Correlation, Operation};
use crate::definition::{OnTimeout, StepKind};
use crate::instance::{Cause, StepStatus, Trouble};
use crate::retry::{Attempt, Retry};
use crate::transition::{Happening, Verdict};

impl<'d> Turn<'d> {
    pub(super) fn failed(&mut self, of: &Correlation, attempt: u32, error: String) -> Verdict {
        let Some(at) = self.find(&of.step).filter(|at| self.spec(*at).is_local()) else {
            return Verdict::Unfit;
        };
        let state = self.state(at);
        let is_last =
            (of.saga, of.epoch, attempt) == (self.out.instance.id, state.epoch, state.attempts);
        if is_last && !self.has_failed(at) {
            self.fire(at, Event::Failed(of.operation, error))
        } else {
            Verdict::Stale
        }
    }

    fn retry(&self, at: usize, operation: Operation) -> &'d Retry {
        let spec = self.spec(at);
        match operation {
            Operation::Action => &spec.retry,
            Operation::Compensation => &spec.retry_compensation,
        }
    }

    pub(super) fn backoff(&self, at: usize, operation: Operation) -> Duration {
        let state = self.state(at);
        self.retry(at, operation).wait(&Attempt {
            saga: self.out.instance.id,
            step: &state.name,
            epoch: state.epoch,
            number: state.attempts,
        })
    }

    /// Whether the retry policy allows no further attempt.
    pub(super) fn is_exhausted(&self, at: usize, operation: Operation) -> bool {
        let retry = self.retry(at, operation);
        let state = self.state(at);
        let age = state.since.and_then(|since| self.now.duration_since(since).ok());
        state.attempts >= retry.attempts.min(self.rules.attempts_max)
            || age.is_some_and(|age| age >= retry.age_max)
    }

    /// The attempt counts now: the timer that decides what follows is due after the policy's wait, or at once where no
    /// attempt follows. It is the same tick as that of the time-out, which finds nothing to do then.
    pub(super) fn attempt_failed(&mut self, at: usize, error: String) -> Verdict {
        let spec = self.spec(at);
        let state = self.state_mut(at);
        let attempt = state.attempts;
        state.trouble = Some(Trouble::Failed { error: error.clone() });
        let operation = match state.status {
            StepStatus::Compensating => Operation::Compensation,
            _ => Operation::Action,
        };
        self.note(Some(at), Happening::Failed { attempt, error });
        let retries = spec.on_timeout == OnTimeout::Retry || operation == Operation::Compensation;
        let follows = retries && !self.is_exhausted(at, operation);
        let wait = if follows { self.backoff(at, operation) } else { Duration::ZERO };
        self.set_timer(at, wait);
        Verdict::Applied
    }

    fn has_failed(&self, at: usize) -> bool {
        matches!(self.state(at).trouble, Some(Trouble::Failed { .. }))
    }

    /// Notes that an attempt is over, unless its failure says so already; and what is wrong if it was the last one.
    fn end_attempt(&mut self, at: usize) -> Trouble {
        let state = self.state(at);
        let attempts = state.attempts;
        match &state.trouble {
            Some(trouble @ Trouble::Failed { .. }) => trouble.clone(),
            _ => {
                self.note(Some(at), Happening::TimedOut { attempt: attempts });
                Trouble::NoAnswer { attempts }
            }
        }
    }

    /// There was no answer to an action, or it has failed.
    pub(super) fn late(&mut self, at: usize) -> Verdict {
        let has_failed = self.has_failed(at);
        let trouble = self.end_attempt(at);
        let spec = self.spec(at);
        let before_pivot = matches!(spec.kind, StepKind::Compensable | StepKind::NoEffect);
        match spec.on_timeout {
            OnTimeout::Retry if !self.is_exhausted(at, Operation::Action) => {
                self.ask(at, StepStatus::Acting, Operation::Action)
            }
            OnTimeout::Retry | OnTimeout::Compensate if before_pivot => {
                let step = spec.name.clone();
                self.begin_undoing(if has_failed {
                    Cause::Failed { step }
                } else {
                    Cause::TimedOut { step }
                })
            }
            OnTimeout::Retry | OnTimeout::Compensate | OnTimeout::Park => self.stick(at, trouble),
        }
    }

    /// There was no answer to a compensation, or it has failed.
    pub(super) fn compensation_late(&mut self, at: usize) -> Verdict {
        let trouble = self.end_attempt(at);
        if self.is_exhausted(at, Operation::Compensation) {
            self.stick(at, trouble)
        } else {
            self.ask(at, StepStatus::Compensating, Operation::Compensation)
        }
    }
}
