//! Steps that have come to rest: in which epochs they came there makes no difference to what can happen from then on.

use super::{Stage, World};
use crate::barrier::Barrier;
use crate::correlation::Epoch;
use crate::instance::StepStatus;

/// The numbers of a saga and of its participants, and about which steps something is under way.
pub(super) type Unrested = (u32, u32, u64);

impl Stage<'_> {
    /// Takes worlds for one that differ only in the epochs of steps about which nothing is under way. Without it there
    /// are tens of times as many: each step that is over multiplies them by the ways in which it may have come to that.
    ///
    /// What was undone, or was refused for good, begins nothing again and is asked about by nobody, so what its participant
    /// remembers of it is of no use. Of what is done, or was passed over, a compensation may follow, of a higher epoch than
    /// that of the action whatever that was; and nobody asks for the action any more.
    pub(super) fn rest(&mut self, world: &mut World) {
        let busy =
            world.commands.iter().chain(world.replies.iter()).fold(0, |busy, message| {
                busy | 1_u64 << self.orchestrator.messages.get(message).step
            });
        let key = (world.saga, world.participants, busy);
        if let Some((saga, participants)) = self.rested.get(&key) {
            (world.saga, world.participants) = (*saga, *participants);
            return;
        }
        let mut instance = self.orchestrator.instance(world.saga).clone();
        for (at, step) in instance.steps.iter_mut().enumerate() {
            let Some(number) = self.all_participants.at(world.participants, at) else { continue };
            let mut participant = self.participant(number).clone();
            let barrier = participant.barrier;
            let is_undone = barrier.compensation.is_some() || barrier.undoing.is_some();
            participant.barrier = match step.status {
                _ if busy & 1 << at != 0 => continue,
                StepStatus::Compensated | StepStatus::Refused | StepStatus::Waived => {
                    Barrier::default()
                }
                StepStatus::Done | StepStatus::Skipped if !is_undone => {
                    let mut action = barrier.action;
                    if let Some(past) = &mut action {
                        past.epoch = Epoch::FIRST;
                    }
                    Barrier { action, ..barrier }
                }
                _ => continue,
            };
            step.epoch = Epoch::FIRST;
            let number = self.intern(participant);
            world.participants = self.all_participants.with(world.participants, at, number);
        }
        world.saga = self.orchestrator.intern(instance);
        self.rested.insert(key, (world.saga, world.participants));
    }
}
