//! Every order in which things can go wrong for a saga, tried.
//!
//! ```
//! # use serde::{Deserialize, Serialize};
//! # use tailrace_saga::{Command, Compensable};
//! # #[derive(Serialize, Deserialize)] struct Order {}
//! # #[derive(Serialize, Deserialize)] struct Reserve {}
//! # impl Command for Reserve {
//! #     const TYPE: &'static str = "reserve.v1";
//! #     const TOPIC: &'static str = "commands";
//! #     type Reply = ();
//! #     type Refusal = ();
//! # }
//! # impl Compensable for Reserve {}
//! # #[derive(Serialize, Deserialize)] struct Pay {}
//! # impl Command for Pay {
//! #     const TYPE: &'static str = "pay.v1";
//! #     const TOPIC: &'static str = "commands";
//! #     type Reply = ();
//! #     type Refusal = ();
//! # }
//! use tailrace_saga::{Saga, check};
//!
//! let saga = Saga::<Order>::define("create-order", 1)
//!     .step("reserve", |_: &Order| Reserve {})
//!     .compensate()
//!     .pivot("pay", |_: &Order| Pay {})
//!     .build()?;
//!
//! let coverage = check::check(saga.definition()).unwrap();
//! assert!(coverage.is_exhaustive());
//! # Ok::<(), tailrace_saga::Error>(())
//! ```

mod explore;
mod hash;
mod line;
mod message;
mod orchestrator;
mod participant;
mod rows;
mod story;
mod window;
mod world;

use std::fmt;

use crate::definition::Definition;
use crate::rules::Rules;

use explore::{Bounds, Explored, explore, wander};
use participant::Knows;
use story::Story;

pub use crate::definition::OnRefused;

/// How many steps are explored exhaustively at a time.
pub const WINDOW_STEPS: usize = 4;

/// States of one exploration, above which it is cut off and says so.
const STATES_MAX: usize = 500_000;

/// How many steps wait for a person at a time. What one of them meets is no matter of another, so that a third one
/// multiplies the states by all that can be under way about it, and shows nothing that two do not.
const STUCK_MAX: usize = 2;

/// How many faults a schedule of the whole saga has, where it is longer than a window.
const FAULTS_MAX: u8 = 2;

/// Random schedules of the whole saga, where it is longer than a window.
const WALKS: u64 = 200;

/// The length of one.
const WALK_MOVES: usize = 300;

/// Explores what can happen to a saga, by the machine and the barrier that run it.
///
/// Messages come twice, late, and in any order; a time-out happens at any moment; participants refuse what they may
/// refuse; the deadline passes and somebody cancels at any moment; a lock is given or withheld, expires, and comes when it
/// is not wanted any more. A crash needs no move of its own: a transaction happens or does not, and what was not done is
/// done later, by another delivery. User's code does not run; where it decides about a refusal, every decision is tried.
///
/// Sagas of up to [`WINDOW_STEPS`] steps are explored exhaustively, with two attempts of each step in each direction, and
/// with up to two steps that wait for a person at a time. Of longer ones every window of so many consecutive steps is, and
/// of the whole every schedule with at most two faults, and random ones besides. What has too many states for that is cut
/// off, which [`Coverage`] says: windows with several branches beside each other, of steps that may be refused and are
/// compensated. How far an exploration is, it says on standard error at every 100,000 states.
///
/// What it can not find: that a command which is declared `no_effect` has effects all the same, or that a compensation does
/// not undo what its action did; a participant without a barrier; and what user's code makes of replies, refusals and data,
/// such as a command that says something else after a retry. Local steps do not fail here by errors: that is as a time-out
/// is, which comes at any moment.
///
/// # Errors
/// The smallest schedule by which the saga breaks a promise: an effect happens twice; a completed saga lacks an effect;
/// a compensated one has one left, or gets one later; it goes on without a lock, or keeps one for ever; a reply of an older
/// epoch, or one that comes again, does something; a state from which no end can be reached.
pub fn check(definition: &Definition) -> Result<Coverage, Counterexample> {
    check_by(definition, Assumptions::SHIPPED)
}

/// What is held to be true while a saga is explored.
#[derive(Debug, Clone, Copy)]
struct Assumptions {
    rules: Rules,
    knows: Knows,
    /// Whether messages that can do nothing any more are left out.
    forgets: bool,
}

impl Assumptions {
    const SHIPPED: Self = Self { rules: Rules::EXPLORED, knows: Knows::Barrier, forgets: true };
}

fn check_by(definition: &Definition, by: Assumptions) -> Result<Coverage, Counterexample> {
    let mut coverage = Coverage { saga: definition.identity().to_string(), ..Coverage::default() };
    for window in window::windows(definition) {
        let steps = window.steps().map(|step| step.name().to_owned()).collect();
        let explored = if window.steps().len() > WINDOW_STEPS {
            None
        } else {
            Some(explored(&window, by, Bounds::EXHAUSTIVE)?)
        };
        coverage.windows.push(Window {
            steps,
            states: explored.as_ref().map_or(0, |explored| explored.states),
            is_exhaustive: explored.is_some_and(|explored| explored.is_whole),
        });
    }
    if definition.steps().len() > WINDOW_STEPS {
        let explored = explored(definition, by, Bounds::FAULTS)?;
        coverage.whole = Some(Whole {
            states: explored.states,
            faults: FAULTS_MAX,
            is_whole: explored.is_whole,
            walks: wander(definition, by)?,
        });
    }
    Ok(coverage)
}

/// What is found is told without anything left out, where that is not too much: epochs are as they really are then.
fn explored(
    definition: &Definition,
    by: Assumptions,
    bounds: Bounds,
) -> Result<Explored, Counterexample> {
    explore(definition, by, bounds).map_err(|found| {
        let plainly = Assumptions { forgets: false, ..by };
        explore(definition, plainly, bounds).err().unwrap_or(found)
    })
}

/// What an exploration has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    saga: String,
    windows: Vec<Window>,
    whole: Option<Whole>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Window {
    steps: Vec<String>,
    states: usize,
    is_exhaustive: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Whole {
    states: usize,
    faults: u8,
    is_whole: bool,
    walks: u64,
}

impl Coverage {
    /// Whether every window was explored to its end; for a saga that is no longer than one, the whole of it.
    pub fn is_exhaustive(&self) -> bool {
        self.windows.iter().all(|window| window.is_exhaustive)
            && self.whole.as_ref().is_none_or(|whole| whole.is_whole)
    }

    /// How many different states were seen.
    pub fn states(&self) -> usize {
        let windows: usize = self.windows.iter().map(|window| window.states).sum();
        windows + self.whole.as_ref().map_or(0, |whole| whole.states)
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: every promise held", self.saga)?;
        for window in &self.windows {
            let how = match (window.is_exhaustive, window.states) {
                (true, _) => "exhaustively",
                (false, 0) => "not on its own: it is too wide",
                (false, _) => "cut off",
            };
            writeln!(f, "- {}: {} states, {how}", window.steps.join(", "), window.states)?;
        }
        if let Some(whole) = &self.whole {
            let how = if whole.is_whole { "all" } else { "cut off" };
            writeln!(
                f,
                "- the whole with at most {} faults: {} states, {how}; and {} random schedules of {WALK_MOVES} moves",
                whole.faults, whole.states, whole.walks
            )?;
        }
        Ok(())
    }
}

/// How a saga breaks a promise: the fewest moves that lead there.
///
/// It is shown as a Mermaid sequence diagram.
#[derive(Clone, PartialEq, Eq)]
pub struct Counterexample {
    saga: String,
    broken: Broken,
    story: Story,
}

impl Counterexample {
    /// How many moves it has.
    pub fn moves(&self) -> usize {
        self.story.moves()
    }
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.saga, self.broken)?;
        self.story.fmt(f)
    }
}

impl fmt::Debug for Counterexample {
    /// The diagram, since this is what a failed test shows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Counterexample {}

/// The promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Broken {
    EffectTwice(String),
    EffectMissing(String),
    EffectLeft(String),
    LockLost(String),
    LockKept(String),
    OldEpoch,
    EpochKept(String),
    Twice,
    NoEnd,
    Refused(String),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EffectTwice(step) => {
                write!(f, "the effect of {step} happens twice, or is undone twice")
            }
            Self::EffectMissing(step) => write!(f, "it has completed without the effect of {step}"),
            Self::EffectLeft(step) => {
                write!(f, "it is compensated, and the effect of {step} is there")
            }
            Self::LockLost(step) => {
                write!(f, "it takes itself for the one who has the lock {step}, and is not")
            }
            Self::LockKept(step) => {
                write!(f, "it is over, and nobody else ever has the lock {step}")
            }
            Self::OldEpoch => f.write_str("a reply of an older epoch does something"),
            Self::EpochKept(step) => write!(f, "{step} begins again in an epoch that is over"),
            Self::Twice => f.write_str("a reply or a timer that comes again does something"),
            Self::NoEnd => f.write_str("no end can be reached from here"),
            Self::Refused(error) => write!(f, "the machine does not take it: {error}"),
        }
    }
}

/// Why an exploration ends before its end.
#[derive(Debug)]
enum Stop {
    Broken(Broken),
    TooLarge,
}

#[cfg(test)]
mod tests;
