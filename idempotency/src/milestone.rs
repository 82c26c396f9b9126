//! The points between which a process may die, and between which the conformance suite has one die or stand still.

use std::sync::Arc;

use crate::handler::BoxFuture;

/// A step of a consumer on the way of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Milestone {
    /// The transaction of a batch holds the fence and has moved progress; no handler has run.
    Fenced,
    /// The handlers of a batch have run; nothing is committed.
    Handled,
    /// Postgres has committed a batch; the process has not taken note of it.
    Committed,
    /// The intent of a call is committed; the call is not made.
    Prepared,
    /// A call is made; its result is not recorded.
    Called,
}

/// Whoever comes to a milestone waits for what this answers with.
pub(crate) type Hook = Arc<dyn Fn(Milestone) -> BoxFuture<'static, ()> + Send + Sync>;
