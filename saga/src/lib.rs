//! A business transaction across services that completes, or is undone, or asks a person.
//!
//! A saga (Garcia-Molina and Salem, "Sagas", 1987) is a sequence of steps, each a transaction in one
//! service's database. When a step is refused, what was done before it is compensated.
//!
//! Services speak by records: an orchestrator sends a [`Command`], a participant answers with a reply, and
//! both carry a [`Correlation`] in the attributes of the wire contract.

mod command;
mod correlation;
mod error;

pub use command::{Command, Irrefusable};
pub use correlation::{Answer, Correlation, Epoch, Instruction, Operation, SagaId};
pub use error::{Error, Kind};
