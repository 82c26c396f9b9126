//! The rules on which the protocol rests, each to be switched off.

/// What a relay does in place of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// Producers are initialised, and the checkpoint is read, before the slot is held.
    InitialisesBeforeItHoldsTheSlot,
    /// The checkpoint is read while the last producer is not initialised; it follows.
    ReadsBeforeAllAreInitialised,
    /// A is initialised first, and yet the session's first commit is on B.
    FirstCommitsOnB,
    /// The checkpoint is read to the last stable offset of a moment ago.
    ReadsToTheLastStableOffset,
    /// The slot is asked for its place after the checkpoint was read.
    AsksTheSlotLast,
    /// The checkpoint is saved outside of the transaction of its records.
    SavesTheCheckpointApart,
    /// The slot is flushed to a checkpoint whose commit has only been asked for.
    FlushesWhatIsSealed,
    /// The slot is flushed to the last published change of a split transaction.
    FlushesInsideATransaction,
    /// The slot is flushed to the end of foreign log that no checkpoint covers.
    FlushesIdleLogAtOnce,
    /// A commit begins while the one before is uncertain.
    CommitsTwiceAtOnce,
    /// The next producer is filled before each record of the sealed one is acknowledged.
    FillsBeforeAllAcks,
    /// A commit without an answer is taken for done.
    TakesUncertainForCommitted,
    /// After a commit without an answer the same producers go on from the checkpoint.
    KeepsProducersAfterUncertain,
    /// A session publishes all that the slot sends.
    ForgetsTheCheckpoint,
    /// A session publishes a split transaction from its beginning.
    ForgetsThePartial,
    /// A session discards what stands in the log before the last published change.
    DiscardsByChangeLsn,
    /// The slot is created before the intent is saved.
    CreatesTheSlotBeforeTheIntent,
}
