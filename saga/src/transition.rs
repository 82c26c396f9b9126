//! What a saga is told, and what it answers with.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::correlation::{Answer, Correlation, Epoch, Instruction, Operation, SagaId};
use crate::instance::{Cause, Instance, Request, Trouble, micros};

/// The message type of every reply. Key: the saga's id. Payload: the reply where it is done, the refusal where it is
/// refused, null where it is blocked, refused for the deadline alone, or about a compensation.
pub const REPLY_TYPE: &str = "tailrace.saga.reply.v1";

/// The message type of the command that asks for a saga as the step of another one. Its payload is the data.
pub const PART_TYPE: &str = "tailrace.saga.part.v1";

/// For how long a timer is put off that can not be read, or loses its transaction each time.
pub(crate) const PUT_OFF_FOR: Duration = Duration::from_secs(60);

/// What happens to a saga from outside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// It is to begin. Once: a second one is ignored.
    Start,
    /// A participant has answered, or a local step is over.
    Reply {
        /// What it is about, as the record says it.
        correlation: Correlation,
        /// How it was answered.
        answer: Answer,
        /// The reply or the refusal, as JSON.
        payload: Value,
    },
    /// An attempt of a local step has failed, and is over before its timer is due.
    Failed {
        /// Which step, and in which direction.
        correlation: Correlation,
        /// The number of the attempt.
        attempt: u32,
        /// What it says of it.
        error: String,
    },
    /// A timer is due. One that says nothing any more is ignored.
    Tick(Tick),
    /// An event from outside, for the step that waits for it.
    Signal {
        /// Its message type.
        signal_type: Box<str>,
        /// Its payload, as JSON.
        payload: Value,
    },
    /// It has a lock for which it has waited, in the transaction in which it was given that.
    Held {
        /// The step that takes it, named after the lock.
        step: Box<str>,
        /// The key.
        key: String,
    },
    /// It is to be undone.
    Cancel,
    /// The saga that this one is a step of asks for it, again or the other way round.
    Part(Instruction),
    /// A person wants something.
    Operator {
        /// Who, for the journal.
        by: Box<str>,
        /// What.
        verb: Verb,
    },
}

/// What a person may want of a saga.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Verb {
    /// A step that is under way or stuck is asked for again, now, in a new epoch.
    Retry {
        /// The step; all that are stuck where there is none.
        step: Option<Box<str>>,
    },
    /// A stuck step is passed over: its action counts as done, its compensation as not needed.
    Skip {
        /// The step.
        step: Box<str>,
    },
    /// It is undone, as by [`Input::Cancel`].
    Compensate,
    /// It ends as it is; nothing more is asked of anybody.
    Abort,
    /// It gives back a lock that it holds, and goes on without it: others see what is half done.
    Unlock {
        /// The step that took it.
        step: Box<str>,
    },
}

impl Verb {
    /// As it stands in the audit.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Retry { .. } => "retry",
            Self::Skip { .. } => "skip",
            Self::Compensate => "compensate",
            Self::Abort => "abort",
            Self::Unlock { .. } => "unlock",
        }
    }

    /// The step that it is about, where it is about one.
    pub fn step(&self) -> Option<&str> {
        match self {
            Self::Retry { step } => step.as_deref(),
            Self::Skip { step } | Self::Unlock { step } => Some(step),
            Self::Compensate | Self::Abort => None,
        }
    }
}

/// What a timer is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "tick", rename_all = "snake_case")]
pub enum Tick {
    /// An attempt of a step.
    Step {
        /// The step.
        step: Box<str>,
        /// The epoch of the attempt.
        epoch: Epoch,
        /// Its number.
        attempt: u32,
    },
    /// The saga's deadline.
    Deadline,
    /// The time to live of a lock.
    Lock {
        /// The step that took it.
        step: Box<str>,
    },
}

/// A tick that is wished for at a time. It is never taken back: one that came too late is ignored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timer {
    /// When it is due.
    #[serde(with = "micros")]
    pub due: SystemTime,
    /// What it is about.
    #[serde(flatten)]
    pub tick: Tick,
}

/// A message to a participant.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandMessage {
    /// Topic, type, key and payload.
    pub request: Request,
    /// What the attributes say.
    pub instruction: Instruction,
}

/// A local step that is to run in the transaction that stores this transition. How it went is given to the saga as
/// an [`Input::Reply`] in the same transaction; if it fails, what it did is rolled back, and the saga is given an
/// [`Input::Failed`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalCall {
    /// Which step, and in which direction.
    pub correlation: Correlation,
    /// For how many times in this direction.
    pub attempt: u32,
}

/// What is to be done with a lock, in the transaction that stores this transition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockMove {
    /// The saga stands in line for it, at the end; or where it stands, or has it, already. Once it has it, it is told so by
    /// [`Input::Held`], in the same transaction where nobody stands before it.
    Take {
        /// The lock.
        lock: LockKey,
        /// How long it may go forward with it.
        ttl: Duration,
    },
    /// The saga does not want it any more: it leaves the line, or the next one has it.
    Release(LockKey),
}

/// What is locked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockKey {
    /// The name of the lock, which is that of the step.
    pub name: Box<str>,
    /// Which one.
    pub key: String,
}

/// A saga's answer to the saga that it is a step of.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplyMessage {
    /// The topic.
    pub topic: Box<str>,
    /// What it answers to; the key is its saga's id.
    pub correlation: Correlation,
    /// How.
    pub answer: Answer,
    /// The data of a saga that has completed, as JSON.
    pub payload: Value,
}

/// What came of an input: the new instance, and all that is to be written in the same transaction.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Transition {
    /// The saga after it.
    pub instance: Instance,
    /// Whether the input did anything.
    pub verdict: Verdict,
    /// Messages to participants.
    pub commands: Vec<CommandMessage>,
    /// Steps to run at once.
    pub locals: Vec<LocalCall>,
    /// Messages to the saga that this one is a step of.
    pub replies: Vec<ReplyMessage>,
    /// What is to be done with locks.
    pub locks: Vec<LockMove>,
    /// When to come back.
    pub timers: Vec<Timer>,
    /// What happened, for the timeline.
    pub journal: Vec<Entry>,
    /// What somebody has to be woken for.
    pub alerts: Vec<Alert>,
}

/// Whether an input did anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The saga has changed.
    Applied,
    /// It has been seen before.
    Duplicate,
    /// It belongs to an epoch that is over: it is in the journal, and changes nothing.
    Stale,
    /// It is about nothing that this saga knows, or wants something of a step that the step can not do.
    Unfit,
    /// The pivot was asked for, or the saga is over: it can not be undone any more.
    TooLate,
    /// The saga holds [`SIGNALS_MAX`](crate::SIGNALS_MAX) signals already.
    Full,
    /// The timer came before it was due, and is wished for again.
    Early,
}

/// Something that happened to a saga.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    #[serde(with = "micros")]
    pub at: SystemTime,
    /// To which step; to the saga as a whole where there is none.
    pub step: Option<Box<str>>,
    /// What.
    #[serde(flatten)]
    pub what: Happening,
}

/// What can happen to a saga or to one of its steps.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Happening {
    /// The saga has begun.
    Started,
    /// A participant, or a local step, was asked.
    Asked {
        /// For what.
        operation: Operation,
        /// In which epoch.
        epoch: Epoch,
        /// For how many times in this direction.
        attempt: u32,
    },
    /// It was answered.
    Answered {
        /// About what.
        operation: Operation,
        /// In which epoch.
        epoch: Epoch,
        /// How.
        answer: Answer,
        /// Whether that did anything.
        verdict: Verdict,
    },
    /// There was no answer in time.
    TimedOut {
        /// To which attempt.
        attempt: u32,
    },
    /// A local step has failed; what it did is rolled back.
    Failed {
        /// Which attempt.
        attempt: u32,
        /// What it says of it.
        error: String,
    },
    /// A step was passed over.
    Skipped,
    /// A person has to decide about the step.
    Stuck {
        /// Why.
        trouble: Trouble,
    },
    /// A signal came and was kept.
    SignalKept {
        /// Its type.
        signal: Box<str>,
    },
    /// A signal was taken by the step that waits for it.
    SignalTaken {
        /// Its type.
        signal: Box<str>,
    },
    /// A signal was turned away.
    SignalRefused {
        /// Its type.
        signal: Box<str>,
        /// Why.
        verdict: Verdict,
    },
    /// A person wanted something.
    Operator {
        /// Who.
        by: Box<str>,
        /// What. It may name a step, as the entry does: so they are not side by side.
        verb: Verb,
        /// Whether that did anything.
        verdict: Verdict,
    },
    /// The saga stands in line for a lock.
    LockWanted {
        /// Which one.
        key: String,
    },
    /// It has it.
    LockHeld {
        /// Which one.
        key: String,
    },
    /// It holds it for as long as it may go forward with it.
    LockExpired,
    /// It was given what it did not want any more, or left the line.
    LockLeft {
        /// Which one.
        key: String,
    },
    /// It has given back all that the step had locked.
    Unlocked,
    /// The saga that it is a step of has asked for it once more, or the other way round.
    PartAsked {
        /// For what.
        operation: Operation,
        /// In which epoch.
        epoch: Epoch,
    },
    /// The saga is being undone.
    Compensating {
        /// Why.
        cause: Cause,
    },
    /// It was to be undone, too late.
    TooLate {
        /// Why it was to be undone.
        cause: Cause,
    },
    /// Every step is done.
    Completed,
    /// Everything is undone.
    Compensated,
    /// A person has ended it.
    Aborted,
    /// It follows another definition now.
    Migrated {
        /// The one before, as `create-order/3`.
        from: Box<str>,
        /// The one now.
        to: Box<str>,
    },
}

/// A step about which a person has to decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// The saga.
    pub saga: SagaId,
    /// The step.
    pub step: Box<str>,
    /// What is not done.
    pub operation: Operation,
    /// Why.
    pub trouble: Trouble,
}
