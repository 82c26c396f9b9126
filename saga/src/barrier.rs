//! What a participant does with a command, after what it has done for the step before.
//!
//! Commands come twice, late, and in another order than they were sent: a compensation may overtake its action. The
//! barrier is a row per step of a saga that remembers both operations, so that whatever comes, the effect happens at
//! most once, and once undone stays undone. (The idea is that of dtm's sub-transaction barrier.)
//!
//! Here it is decided; [`rows`] does the same on a table.

use crate::correlation::{Answer, Epoch, Operation};

pub(crate) mod many;
pub(crate) mod rows;

/// What is remembered of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Barrier {
    pub(crate) action: Option<Past>,
    /// The epoch of the compensation, once it is done; it cannot be refused.
    pub(crate) compensation: Option<Epoch>,
    /// The epoch of the compensation, while it is made outside the database.
    pub(crate) undoing: Option<Epoch>,
}

/// What became of the action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Past {
    pub(crate) epoch: Epoch,
    pub(crate) ended: Ended,
}

/// How an action has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Ended {
    /// Its effect is there; its reply is stored.
    Done,
    /// It had no effect; its refusal is stored, or none where it came after its deadline.
    Refused,
    /// It is being done outside the database; what comes of it is not known yet.
    Calling,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Request {
    pub(crate) operation: Operation,
    pub(crate) epoch: Epoch,
    /// Whether the deadline of an action has passed.
    pub(crate) late: bool,
}

/// What is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Decision {
    /// Run the operation, then remember how it ended.
    Run,
    /// Nothing is there to be undone: remember the compensation as done, so that the action never runs.
    Void,
    /// Remember the action as refused, because it came after its deadline.
    Miss,
    /// It was decided before: answer so, with the epoch of the request, and with the stored reply where there is one.
    Repeat(Answer),
    /// It belongs to a direction that was given up: answer as blocked, and remember nothing.
    Stale,
    /// The action, or its compensation, is being done outside the database: ask again later.
    Wait,
}

impl Barrier {
    /// The one place that decides.
    pub(crate) fn decide(&self, request: Request) -> Decision {
        #[cfg(feature = "faults")]
        if crate::faults::barrier_is_off() {
            return Decision::Run;
        }
        match request.operation {
            Operation::Action => self.decide_action(request),
            Operation::Compensation => self.decide_compensation(request),
        }
    }

    fn decide_action(&self, request: Request) -> Decision {
        match self.action {
            // Whatever had become of it, it is undone, and stays so.
            _ if self.compensation.is_some() => Decision::Repeat(Answer::Blocked),
            _ if self.undoing.is_some() => Decision::Wait,
            None if request.late => Decision::Miss,
            None => Decision::Run,
            Some(Past { ended: Ended::Done, .. }) => Decision::Repeat(Answer::Done),
            Some(Past { ended: Ended::Calling, .. }) => Decision::Wait,
            // A person has changed what it was refused for, and asks once more.
            Some(Past { ended: Ended::Refused, epoch })
                if request.epoch > epoch && !request.late =>
            {
                Decision::Run
            }
            Some(Past { ended: Ended::Refused, .. }) => Decision::Repeat(Answer::Refused),
        }
    }

    fn decide_compensation(&self, request: Request) -> Decision {
        match self.action {
            _ if self.compensation.is_some() => Decision::Repeat(Answer::Done),
            // It was asked for before the action was wanted again.
            Some(Past { epoch, .. }) if request.epoch <= epoch => Decision::Stale,
            _ if self.undoing.is_some() => Decision::Wait,
            Some(Past { ended: Ended::Done, .. }) => Decision::Run,
            Some(Past { ended: Ended::Calling, .. }) => Decision::Wait,
            Some(Past { ended: Ended::Refused, .. }) | None => Decision::Void,
        }
    }

    /// Whether the call that is made is that of an operation in this epoch.
    pub(crate) fn is_calling(&self, operation: Operation, epoch: Epoch) -> bool {
        match operation {
            Operation::Action => self.action == Some(Past { epoch, ended: Ended::Calling }),
            Operation::Compensation => self.undoing == Some(epoch),
        }
    }

    /// What is remembered once an operation was run, or its call begins: `ended` says so. A compensation is not refused.
    pub(crate) fn after(self, request: Request, decision: Decision, ended: Ended) -> Self {
        let Request { operation, epoch, .. } = request;
        match (decision, operation) {
            (Decision::Run, Operation::Action) => {
                Self { action: Some(Past { epoch, ended }), ..self }
            }
            (Decision::Miss, _) => {
                Self { action: Some(Past { epoch, ended: Ended::Refused }), ..self }
            }
            (Decision::Run, Operation::Compensation) if ended == Ended::Calling => {
                Self { undoing: Some(epoch), ..self }
            }
            (Decision::Run | Decision::Void, Operation::Compensation) => {
                Self { compensation: Some(epoch), undoing: None, ..self }
            }
            (Decision::Void, Operation::Action)
            | (Decision::Repeat(_) | Decision::Stale | Decision::Wait, _) => self,
        }
    }
}

#[cfg(test)]
mod tests;
