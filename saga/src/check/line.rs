//! The line before a lock, as one saga in it sees it: it stands there, is given the lock at any moment, and hears of that
//! later. Who else stands there makes no other difference to it.

use crate::transition::LockMove;

/// Where the saga is in the line of one of its steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Line {
    pub(super) place: Place,
    /// Whether the word that it has the lock is on its way.
    pub(super) is_told: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) enum Place {
    #[default]
    Nowhere,
    Waits,
    Holds,
}

/// What the saga does with the lock of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Take,
    Release,
}

impl Step {
    pub(super) fn of(moved: &LockMove) -> (Self, &str) {
        match moved {
            LockMove::Take { lock, .. } => (Self::Take, &lock.name),
            LockMove::Release(lock) => (Self::Release, &lock.name),
        }
    }
}

impl Line {
    /// It is its turn.
    pub(super) fn given(self) -> Option<Self> {
        (self.place == Place::Waits).then_some(Self { place: Place::Holds, is_told: true })
    }

    /// How it can be after the saga has done something.
    pub(super) fn after(self, step: Step) -> Vec<Self> {
        let gone = Self { place: Place::Nowhere, ..self };
        match (step, self.place) {
            (Step::Take, Place::Nowhere) => vec![Self { place: Place::Waits, ..self }],
            // It is told again, at once.
            (Step::Take, Place::Holds) => vec![Self { is_told: true, ..self }],
            (Step::Take, Place::Waits) => vec![self],
            // Somebody may be giving it the lock at this very moment.
            (Step::Release, Place::Waits) => self.given().into_iter().chain([gone]).collect(),
            (Step::Release, Place::Nowhere | Place::Holds) => vec![gone],
        }
    }
}
