//! A business transaction across services that completes, or is undone, or asks a person.
//!
//! A saga (Garcia-Molina and Salem, "Sagas", 1987) is a sequence of steps, each a transaction in one
//! service's database. When a step is refused, what was done before it is compensated.
//!
//! Services speak by records: an orchestrator sends a [`Command`], a participant answers with a reply, and
//! both carry a [`Correlation`] in the attributes of the wire contract.
//!
//! An orchestrator follows a [`Saga`]. What becomes of a running one when something happens to it is a pure
//! function, [`step`](fn@step): from an [`Instance`] and an [`Input`] to a [`Transition`]. [`check`] explores what can
//! happen to yours, [`testing`] tells it in virtual time, [`diagram`] draws it.
//!
//! Where nobody is to stand in the middle, services react to each other's events, as a [`Choreography`] declares.

mod barrier;
#[cfg(test)]
mod bed;
mod builder;
pub mod check;
pub mod choreography;
mod command;
mod correlation;
mod definition;
pub mod diagram;
mod draft;
mod engine;
mod error;
#[doc(hidden)]
#[cfg(feature = "faults")]
pub mod faults;
#[cfg(test)]
mod fixture;
mod instance;
mod local;
mod machine;
mod migrate;
pub mod participant;
mod retry;
mod rules;
pub mod schema;
mod store;
pub mod story;
pub mod testing;
mod transition;
mod unreadable;
mod work;

pub use builder::{
    AfterPivot, BeforePivot, Branches, Pivot, Place, Saga, Signal, StepNeedsCompensation,
};
pub use choreography::Choreography;
pub use command::{Command, Compensable, Irrefusable};
pub use correlation::{Answer, Correlation, Epoch, Instruction, Operation, SagaId};
pub use definition::{Definition, Forward, Identity, OnRefused, OnTimeout, Step, StepKind};
pub use draft::{DEPTH_MAX, NAME_BYTES_MAX, STEPS_MAX};
pub use engine::metrics;
pub use engine::{Counters, Engine, Prepared, Quarantined, Report, Sagas, Started, Unknown, tell};
pub use error::{Error, Kind};
pub use instance::{
    Cause, Instance, Parent, Request, SIGNALS_MAX, Status, StepState, StepStatus, Trouble,
};
pub use local::{Local, LocalCx, LocalHandler, NotUndone, Undone, local};
pub use machine::step;
pub use migrate::{Mapping, migrate};
pub use participant::Participant;
pub use retry::{ATTEMPTS_MAX, Retry, WAIT_MAX};
pub use transition::{
    Alert, CommandMessage, Entry, Happening, Input, LocalCall, PART_TYPE, REPLY_TYPE, ReplyMessage,
    Tick, Timer, Transition, Verb, Verdict,
};
pub use work::{
    Asks, Awaits, CanBeUndone, CannotBeRefused, Does, DoesInner, Locally, Part, PartOf, Work, part,
};
