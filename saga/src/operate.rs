//! Sagas as the person sees them who operates them: listed, looked at, and told what is wanted of them.
//!
//! `tailrace saga` is a command line over these functions, and the feature `axum` offers them over HTTP. They need the
//! orchestrator's database and nothing else; the rights of their role stand at the head of `0006_operating.sql`.
//!
//! Nobody edits a saga here. What is wanted is inserted, and an engine that can run the saga does it, as with everything
//! else that a saga is told. Each wish is a row of `tailrace.saga_audit`, written in the same transaction.
//!
//! ```no_run
//! # async fn example(mut conn: sqlx::PgConnection) -> Result<(), tailrace_saga::Error> {
//! use tailrace_saga::operate::{self, By, Change, Filter, Paging};
//! use tailrace_saga::{Status, Verb};
//!
//! let parked = Filter::default().state(Status::Parked).definition("create-order");
//! let by = By::new("anna").note("the warehouse is back");
//! let change = Change::verb(Verb::Retry { step: None }, by, parked.to_string());
//! let page = operate::list(&mut conn, &parked, &Paging::default()).await?;
//! let ids: Vec<_> = page.sagas.iter().map(|saga| saga.id).collect();
//! for outcome in change.make(&mut conn, &ids).await? {
//!     println!("{}: {:?}", outcome.saga, outcome.planned);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # How much is read
//! A list goes by id, which is by age, and never counts. One call looks at [`LOOK_MAX`] sagas at most, by an index of
//! those that are not over, so that what is over costs nothing however much it is.

use std::time::Duration;

use crate::error::Error;

mod change;
mod definitions;
mod filter;
#[cfg(feature = "axum")]
pub mod http;
mod json;
mod list;
mod show;

pub use change::{BATCH_SAGAS_MAX, Change, Outcome, Wish};
#[cfg(feature = "kafka")]
pub(crate) use definitions::register;
pub(crate) use definitions::structures;
pub use definitions::{Living, definitions, living, structure, structure_of};
pub use filter::Filter;
pub use list::{LOOK_MAX, Listed, PAGE_MAX, Page, Paging, get, list};
pub use show::{Audited, Moment, Ordered, Shown, WaitingInput, journal, show};

/// Who wants something, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct By {
    pub(crate) actor: String,
    pub(crate) note: Option<String>,
}

impl By {
    /// This person or program.
    pub fn new(actor: impl Into<String>) -> Self {
        Self { actor: actor.into(), note: None }
    }

    /// For this reason. Default: none.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

fn unread(error: sqlx::Error) -> Error {
    Error::database("sagas cannot be read", error)
}

fn unwritten(error: sqlx::Error) -> Error {
    Error::database("what is wanted of sagas cannot be stored", error)
}

/// What Postgres says in seconds.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default()
}

#[cfg(test)]
#[cfg(feature = "kafka")]
mod tests;
