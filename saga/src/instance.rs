//! One run of a saga, as data.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::correlation::{Correlation, Epoch, Operation, SagaId};
use crate::definition::{Definition, Identity};

/// The form in which this release writes an [`Instance`].
pub(crate) const FORMAT: u16 = 1;

/// How many signals wait at most for the step that takes them.
pub const SIGNALS_MAX: usize = 16;

/// One run of a saga: which definition it follows, its data, and how far each step is.
///
/// It holds no code and refers to its steps by their names. Only [`step`](crate::step()) changes it: whoever wants
/// something of a saga gives it an [`Input`](crate::Input).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    pub(crate) format: u16,
    pub(crate) id: SagaId,
    pub(crate) definition: Identity,
    pub(crate) data: Value,
    /// How many upcasters the data has been through.
    pub(crate) data_version: u32,
    pub(crate) phase: Phase,
    /// Why it is being undone.
    pub(crate) cause: Option<Cause>,
    /// In the order of the definition.
    pub(crate) steps: Vec<StepState>,
    #[serde(with = "micros")]
    pub(crate) started_at: SystemTime,
    #[serde(with = "micros::optional")]
    pub(crate) deadline: Option<SystemTime>,
    /// What has come before the step that waits for it.
    pub(crate) signals: Vec<StoredSignal>,
    pub(crate) parent: Option<Parent>,
    pub(crate) revision: u64,
}

/// Where a saga is going.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    Running,
    Compensating,
    Completed,
    Compensated,
    Aborted,
}

impl Phase {
    pub(crate) fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Compensated | Self::Aborted)
    }
}

/// How a saga stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Steps are being done.
    Running,
    /// What was done is being undone.
    Compensating,
    /// Every step is done.
    Completed,
    /// Everything that was done is undone.
    Compensated,
    /// A person has to decide about at least one step; the others go on.
    Parked,
    /// A person has ended it as it was.
    Aborted,
}

impl Status {
    /// Every one of them.
    pub const ALL: [Self; 6] = [
        Self::Running,
        Self::Compensating,
        Self::Parked,
        Self::Completed,
        Self::Compensated,
        Self::Aborted,
    ];

    /// The status of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// As it stands in rows and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Compensating => "compensating",
            Self::Completed => "completed",
            Self::Compensated => "compensated",
            Self::Parked => "parked",
            Self::Aborted => "aborted",
        }
    }

    /// Whether nothing will change it any more.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Compensated | Self::Aborted)
    }
}

/// Why a saga is undone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "snake_case")]
pub enum Cause {
    /// A participant has refused a step.
    Refused {
        /// The step.
        step: Box<str>,
    },
    /// A step had no answer in time.
    TimedOut {
        /// The step.
        step: Box<str>,
    },
    /// A local step has failed, each time that it was tried.
    Failed {
        /// The step.
        step: Box<str>,
    },
    /// The saga's deadline has passed.
    Deadline,
    /// It was cancelled.
    Cancelled,
    /// The saga that it is part of is undone.
    Parent,
    /// It held a lock for as long as it may go forward with it.
    LockExpired {
        /// The step that took it.
        step: Box<str>,
    },
}

/// How far a step is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepState {
    pub(crate) name: Box<str>,
    pub(crate) status: StepStatus,
    pub(crate) epoch: Epoch,
    /// How often it was asked for in the direction that it has now.
    pub(crate) attempts: u32,
    /// What was asked for: its compensation is the same.
    pub(crate) request: Option<Request>,
    /// When the first attempt in this direction was made.
    #[serde(with = "micros::optional")]
    pub(crate) since: Option<SystemTime>,
    /// When its timer is due.
    #[serde(with = "micros::optional")]
    pub(crate) due: Option<SystemTime>,
    /// Why a person has to decide.
    pub(crate) trouble: Option<Trouble>,
    /// What it locks, once it has asked for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lock: Option<LockState>,
}

/// How far a step is with its lock.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LockState {
    /// In the order in which they are taken.
    pub(crate) keys: Vec<String>,
    /// How many of them the saga holds.
    pub(crate) held: usize,
    /// Until when it may go forward with what it holds.
    #[serde(with = "micros::optional")]
    pub(crate) expires_at: Option<SystemTime>,
    /// Whether that time is over, and the saga has been told.
    pub(crate) is_expired: bool,
}

impl LockState {
    /// The keys that the saga holds.
    pub fn held(&self) -> &[String] {
        self.keys.get(..self.held).unwrap_or(&self.keys)
    }

    /// The key that it gets next.
    pub fn next(&self) -> Option<&str> {
        self.keys.get(self.held).map(String::as_str)
    }

    /// Until when it may go forward with them; it keeps them in any case.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }

    /// Whether it was told that this time is over.
    pub fn is_expired(&self) -> bool {
        self.is_expired
    }
}

/// Where a step is between not begun and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// Not begun.
    Pending,
    /// Its action was asked for.
    Acting,
    /// Its action was refused and will be asked for again.
    Delayed,
    /// Its action is done.
    Done,
    /// Its action was refused: it has no effect.
    Refused,
    /// It was passed over.
    Skipped,
    /// Its compensation was asked for.
    Compensating,
    /// It has no effect any more.
    Compensated,
    /// It is not undone, because a person has decided so.
    Waived,
    /// Its action waits for a person.
    StuckActing,
    /// Its compensation waits for a person.
    StuckCompensating,
}

impl StepStatus {
    /// As it stands in rows and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Acting => "acting",
            Self::Delayed => "delayed",
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Skipped => "skipped",
            Self::Compensating => "compensating",
            Self::Compensated => "compensated",
            Self::Waived => "waived",
            Self::StuckActing => "stuck_acting",
            Self::StuckCompensating => "stuck_compensating",
        }
    }

    /// Whether a person has to decide.
    pub fn is_stuck(self) -> bool {
        matches!(self, Self::StuckActing | Self::StuckCompensating)
    }
}

/// Why a person has to decide about a step, or why its last attempt has failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "snake_case")]
pub enum Trouble {
    /// There was no answer to any attempt.
    NoAnswer {
        /// How often it was asked for.
        attempts: u32,
    },
    /// It is a local step, and its last attempt has failed.
    Failed {
        /// What it says of it.
        error: String,
    },
    /// What must not be refused was.
    Refused,
    /// The participant says that the step was compensated before.
    Blocked,
    /// The saga holds its lock for longer than it may go forward with it, and can not be undone any more, or is not undone
    /// yet.
    LockExpired,
    /// The data, a reply or a command could not be read or written. The text names no values.
    Unreadable {
        /// What could not be read, and why.
        what: String,
    },
}

/// What a participant is asked for, without the direction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The topic that the participant listens to.
    pub topic: Box<str>,
    /// The message type.
    #[serde(rename = "type")]
    pub message_type: Box<str>,
    /// The target aggregate, or the saga's id.
    pub key: String,
    /// The command as JSON.
    pub payload: Value,
}

/// A signal that came before the step that takes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredSignal {
    #[serde(rename = "type")]
    pub(crate) signal_type: Box<str>,
    pub(crate) payload: Value,
}

/// The step of another saga that this one is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The topic for the answer.
    pub reply_to: Box<str>,
    /// What the parent has asked for last.
    pub correlation: Correlation,
}

impl Instance {
    /// A saga that has not begun: give it [`Input::Start`](crate::Input::Start).
    ///
    /// The id is made where the saga is wished for, so that the same wish twice is the same saga. `data` is in the
    /// newest form that the definition knows.
    pub fn new(definition: &Definition, id: SagaId, data: Value, now: SystemTime) -> Self {
        let now = micros::floor(now);
        let steps = definition.steps().map(|step| StepState::new(step.name())).collect();
        Self {
            format: FORMAT,
            id,
            definition: definition.identity().clone(),
            data,
            data_version: definition.data_version(),
            phase: Phase::Running,
            cause: None,
            steps,
            started_at: now,
            deadline: definition
                .deadline()
                .and_then(|after| now.checked_add(after))
                .map(micros::floor),
            signals: Vec::new(),
            parent: None,
            revision: 0,
        }
    }

    /// The same, as a step of another saga, which gets an answer when this one is over.
    #[must_use]
    pub fn part_of(mut self, parent: Parent) -> Self {
        self.parent = Some(parent);
        self
    }

    /// Its id.
    pub fn id(&self) -> SagaId {
        self.id
    }

    /// The definition that it follows.
    pub fn definition(&self) -> &Identity {
        &self.definition
    }

    /// Its data, as JSON.
    pub fn data(&self) -> &Value {
        &self.data
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        match self.phase {
            Phase::Completed => Status::Completed,
            Phase::Compensated => Status::Compensated,
            Phase::Aborted => Status::Aborted,
            _ if self.stuck().next().is_some() => Status::Parked,
            Phase::Running => Status::Running,
            Phase::Compensating => Status::Compensating,
        }
    }

    /// Why it is undone, or was.
    pub fn cause(&self) -> Option<&Cause> {
        self.cause.as_ref()
    }

    /// Its steps, in the order of the definition.
    pub fn steps(&self) -> &[StepState] {
        &self.steps
    }

    /// The step with this name.
    pub fn step(&self, name: &str) -> Option<&StepState> {
        self.steps.iter().find(|step| &*step.name == name)
    }

    /// The steps about which a person has to decide.
    pub fn stuck(&self) -> impl Iterator<Item = &StepState> {
        self.steps.iter().filter(|step| step.status.is_stuck())
    }

    /// When it was started.
    pub fn started_at(&self) -> SystemTime {
        self.started_at
    }

    /// Until when it must have passed its pivot.
    pub fn deadline(&self) -> Option<SystemTime> {
        self.deadline
    }

    /// The step of another saga that it is.
    pub fn parent(&self) -> Option<&Parent> {
        self.parent.as_ref()
    }

    /// How often it has changed.
    pub fn revision(&self) -> u64 {
        self.revision
    }
}

impl StepState {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            status: StepStatus::Pending,
            epoch: Epoch::FIRST,
            attempts: 0,
            request: None,
            since: None,
            due: None,
            trouble: None,
            lock: None,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    pub fn status(&self) -> StepStatus {
        self.status
    }

    /// How often its direction has changed.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How often it was asked for in its direction.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// What its participant was asked for.
    pub fn request(&self) -> Option<&Request> {
        self.request.as_ref()
    }

    /// When it was first asked for in its direction.
    pub fn since(&self) -> Option<SystemTime> {
        self.since
    }

    /// When it will be asked for again, or given up.
    pub fn due(&self) -> Option<SystemTime> {
        self.due
    }

    /// Why a person has to decide about it.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Its lock, where it takes one and has begun to.
    pub fn lock(&self) -> Option<&LockState> {
        self.lock.as_ref()
    }

    /// The operation that is under way, or waits for a person.
    pub fn operation(&self) -> Option<Operation> {
        match self.status {
            StepStatus::Acting | StepStatus::Delayed | StepStatus::StuckActing => {
                Some(Operation::Action)
            }
            StepStatus::Compensating | StepStatus::StuckCompensating => {
                Some(Operation::Compensation)
            }
            _ => None,
        }
    }
}

/// Times as microseconds since the Unix epoch, the precision of Postgres.
pub(crate) mod micros {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    fn number(at: SystemTime) -> u64 {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    /// The time as it will be read again: a timer that is due a nanosecond later than it says would come too early.
    pub(crate) fn floor(at: SystemTime) -> SystemTime {
        time(number(at))
    }

    fn time(micros: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(micros)
    }

    pub(crate) fn serialize<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        number(*at).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        u64::deserialize(from).map(time)
    }

    pub(crate) mod optional {
        use super::{Deserialize, Deserializer, Serialize, Serializer, SystemTime, number, time};

        pub(crate) fn serialize<S: Serializer>(
            at: &Option<SystemTime>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            at.map(number).serialize(to)
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<SystemTime>, D::Error> {
            Ok(Option::<u64>::deserialize(from)?.map(time))
        }
    }
}
