//! What a participant does with a command, by the barrier that is shipped.

use crate::barrier::{Barrier, Decision, Ended, Request};
use crate::correlation::{Answer, Operation};

use super::message::Message;

/// What is known of a step at its participant, and what it has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Participant {
    pub(super) barrier: Barrier,
    /// How often the action has happened, less how often it was undone.
    pub(super) effect: i8,
    #[cfg(test)]
    seen: Vec<Message>,
}

/// By what a participant knows a command again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Knows {
    /// By the barrier.
    Barrier,
    /// By saga, step and operation, each on its own: a compensation blocks nothing.
    #[cfg(test)]
    Operation,
    /// By the message alone, as every inbox does.
    #[cfg(test)]
    Message,
}

impl Knows {
    /// Whether another attempt is another message.
    pub(super) fn tells_attempts(self) -> bool {
        #[cfg(test)]
        return self == Self::Message;
        #[cfg(not(test))]
        false
    }
}

/// One way in which a command can end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Handled {
    pub(super) after: Participant,
    pub(super) answer: Answer,
    /// For people.
    pub(super) how: &'static str,
}

impl Participant {
    /// Every way in which a command can end.
    pub(super) fn handle(&self, command: &Message, knows: Knows, refuses: bool) -> Vec<Handled> {
        let request = Request { operation: command.operation, epoch: command.epoch, late: false };
        let barrier = self.barrier_by(knows, command);
        let decision = barrier.decide(request);
        let mut all = Vec::new();
        let mut ends = |ended: Ended, effect: i8, answer: Answer, how: &'static str| {
            let mut after = self.clone();
            after.barrier = self.barrier.after(request, decision, ended);
            after.effect = self.effect.saturating_add(effect);
            #[cfg(test)]
            after.remember(command, knows);
            all.push(Handled { after, answer, how });
        };
        match (decision, command.operation) {
            (Decision::Run, Operation::Action) => {
                ends(Ended::Done, 1, Answer::Done, "does it");
                if refuses {
                    ends(Ended::Refused, 0, Answer::Refused, "refuses it");
                }
            }
            (Decision::Run, Operation::Compensation) => {
                ends(Ended::Done, -1, Answer::Done, "undoes it");
            }
            (Decision::Void, _) => {
                ends(Ended::Done, 0, Answer::Done, "has nothing to undo");
            }
            (Decision::Miss, _) => ends(Ended::Refused, 0, Answer::Refused, "is too late"),
            (Decision::Repeat(answer), _) => {
                ends(Ended::Done, 0, answer, "answers as before");
            }
            (Decision::Stale, _) => {
                ends(Ended::Done, 0, Answer::Blocked, "leaves it: another direction holds");
            }
            (Decision::Wait, _) => {}
        }
        all
    }

    #[cfg(not(test))]
    fn barrier_by(&self, _: Knows, _: &Message) -> Barrier {
        self.barrier
    }

    #[cfg(test)]
    fn barrier_by(&self, knows: Knows, command: &Message) -> Barrier {
        use crate::barrier::Past;
        use crate::correlation::Epoch;

        let is_action = command.operation == Operation::Action;
        let done = Past { epoch: Epoch::new(0), ended: Ended::Done };
        match knows {
            Knows::Operation if is_action => Barrier { compensation: None, ..self.barrier },
            Knows::Barrier | Knows::Operation => self.barrier,
            Knows::Message if self.seen.contains(command) => self.barrier,
            Knows::Message if is_action => Barrier::default(),
            Knows::Message => {
                Barrier { action: (self.effect > 0).then_some(done), ..Barrier::default() }
            }
        }
    }

    #[cfg(test)]
    fn remember(&mut self, command: &Message, knows: Knows) {
        if knows == Knows::Message && !self.seen.contains(command) {
            self.seen.push(*command);
            self.seen.sort();
        }
    }
}
