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
//! A saga's effects are seen before it has ended: a [`Lock`] keeps others out meanwhile, and [`Seen`] has a step refused
//! where somebody was there all the same.
//!
//! Where nobody is to stand in the middle, services react to each other's events, as a `Choreography` declares.
//!
//! # Features
//! `kafka` (default): what runs sagas, namely engines, participants and choreographies. Without it there is what looks at
//! them and tells them something, for a program that operates them.

#![cfg_attr(
    not(feature = "kafka"),
    expect(
        dead_code,
        reason = "without Kafka nothing runs: sagas are looked at, and told what people want"
    )
)]

mod barrier;
#[cfg(test)]
mod bed;
mod builder;
pub mod check;
#[cfg(feature = "kafka")]
pub mod choreography;
mod command;
mod correlation;
mod definition;
pub mod diagram;
mod draft;
#[cfg(feature = "kafka")]
mod engine;
mod error;
#[doc(hidden)]
#[cfg(feature = "faults")]
pub mod faults;
#[cfg(test)]
mod fixture;
#[cfg(feature = "kafka")]
mod health;
mod instance;
#[cfg(feature = "kafka")]
mod known;
mod local;
mod lock;
mod machine;
mod mapping_file;
mod migrate;
pub mod operate;
#[cfg(feature = "kafka")]
pub mod participant;
#[cfg(feature = "kafka")]
mod retention;
mod retry;
mod rules;
pub mod schema;
mod seen;
#[cfg(feature = "kafka")]
mod speaker;
#[cfg(feature = "kafka")]
mod store;
pub mod story;
mod structure;
pub mod testing;
mod transition;
mod unreadable;
pub mod verify;
mod work;

pub use builder::{
    AfterPivot, BeforePivot, Branches, Pivot, Place, Saga, Signal, StepNeedsCompensation,
};
#[cfg(feature = "kafka")]
pub use choreography::Choreography;
pub use command::{Command, Compensable, Irrefusable};
pub use correlation::{Answer, Correlation, Epoch, Instruction, Operation, SagaId};
pub use definition::{Definition, Forward, Identity, OnRefused, OnTimeout, Step, StepKind};
pub use draft::{DEPTH_MAX, NAME_BYTES_MAX, STEPS_MAX};
#[cfg(feature = "kafka")]
pub use engine::metrics;
#[cfg(feature = "kafka")]
pub use engine::{Counters, Engine, Prepared, Quarantined, Report, Sagas, Started, Unknown, tell};
pub use error::{Error, Kind};
#[cfg(feature = "kafka")]
pub use health::Health;
pub use instance::{
    Cause, Instance, LockState, Parent, Request, SIGNALS_MAX, Status, StepState, StepStatus,
    Trouble,
};
pub use local::{Local, LocalCx, LocalHandler, NotUndone, Undone, local};
pub use lock::{LOCK_KEY_BYTES_MAX, LOCK_KEYS_MAX, Lines, Lock};
pub use machine::step;
pub use mapping_file::{DataEdit, MappingFile};
pub use migrate::{Mapping, migrate};
#[cfg(feature = "kafka")]
pub use participant::Participant;
#[cfg(feature = "kafka")]
pub use retention::{KEEP, KEEP_MIN};
pub use retry::{ATTEMPTS_MAX, Retry, WAIT_MAX};
pub use seen::{Changed, Seen};
pub use structure::{Shape, Structure};
pub use transition::{
    Alert, CommandMessage, Entry, Happening, Input, LocalCall, LockKey, LockMove, PART_TYPE,
    REPLY_TYPE, ReplyMessage, Tick, Timer, Transition, Verb, Verdict,
};
pub use work::{
    Asks, Awaits, CanBeUndone, CannotBeRefused, Does, DoesInner, Locally, Part, PartOf, Work, part,
};
