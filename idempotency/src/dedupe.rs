//! How a message that comes again is known: by its id, or by its place in the source.

/// How a consumer knows a message that it has applied already.
///
/// It is decided at the first start and kept in the database. A configuration that says something else halts the
/// consumer, since neither way sees what the other one has written; `tailrace inbox dedupe` changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Dedupe {
    /// By a row of `tailrace.processed_message` with its id: whoever sends it, and wherever it comes again.
    #[default]
    ProcessedMessages,
    /// By the `ce_sequence` that a relay gives it: a row for each lane and relay, and none per message, hence several
    /// times as fast.
    ///
    /// That rests on each message standing in its partition once and in the order of the source, as a relay that
    /// delivers exactly once puts it there. What a consumer can see of that it checks, and halts with one error of
    /// [`Kind::Sequence`](crate::Kind::Sequence) where it does not hold: a sequence that goes back, a relay that has begun a new
    /// incarnation, another number of partitions, a record without a sequence.
    ///
    /// What a seek passes over counts as applied: it is not applied when progress is set back later.
    Position,
}

/// What happens to a record without `ce_sequence` where messages are known by [`Dedupe::Position`]: one that was
/// published again from the journal (`ce_replay`) or by hand, or one of another producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Unsequenced {
    /// The consumer halts and names it.
    #[default]
    Halt,
    /// It is known by its id, like all of them with [`Dedupe::ProcessedMessages`]. A message that was applied with its
    /// sequence has no such row: replayed, it is applied once more.
    Claim,
}

impl Dedupe {
    /// As it is stored.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ProcessedMessages => "ids",
            Self::Position => "position",
        }
    }

    #[cfg(feature = "kafka")]
    pub(crate) fn is_position(self) -> bool {
        self == Self::Position
    }
}
