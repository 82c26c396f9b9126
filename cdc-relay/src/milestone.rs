//! The points between which a relay may die.

use std::fmt;
use std::sync::Arc;

/// A step of the relay that is done or about to be done, in the order of a message's way.
///
/// An observer sees each of them in time: a test ends the process there, a trace marks it. An
/// observer must not block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Milestone {
    /// The intent to create the slot is durable; the slot is not created yet.
    Intended,
    /// The slot is created; nothing is published from it yet.
    SlotCreated,
    /// A new message was decoded; it is not handed to Kafka yet.
    Decoded,
    /// A message was handed to Kafka inside an open transaction.
    Produced,
    /// Everything of a batch was handed over; its commit begins.
    Committing,
    /// Kafka has committed a batch with its checkpoint; the slot is not flushed yet.
    Committed,
    /// The slot was told that it may be flushed.
    Flushed,
}

/// Calls the user's function at each milestone.
#[derive(Clone, Default)]
pub(crate) struct Observer(Option<Arc<dyn Fn(Milestone) + Send + Sync>>);

impl Observer {
    pub(crate) fn new(observe: impl Fn(Milestone) + Send + Sync + 'static) -> Self {
        Observer(Some(Arc::new(observe)))
    }

    pub(crate) fn at(&self, milestone: Milestone) {
        if let Some(observe) = &self.0 {
            observe(milestone);
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Observer({})", self.0.is_some())
    }
}
