//! What a saga is made of, once it is known to be right.

use std::any::TypeId;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::correlation::SagaId;
use crate::error::Error;
use crate::instance::Request;
use crate::local::{LocalRun, NoLocal};
use crate::lock::Lock;
use crate::retry::Retry;
use crate::transition::PART_TYPE;
use crate::unreadable::Unreadable;

/// A saga's definition without the type of its data: what an engine keeps, several versions side by side.
///
/// Made by [`Saga::define`](crate::Saga::define). A clone is the same definition.
#[derive(Debug, Clone)]
pub struct Definition(pub(crate) Arc<Graph>);

#[derive(Debug)]
pub(crate) struct Graph {
    pub(crate) identity: Identity,
    /// The type of its data, where that is known.
    pub(crate) data: TypeId,
    pub(crate) replies: Box<str>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) upcasters: Vec<Upcaster>,
    pub(crate) starts: Vec<Start>,
    pub(crate) lock_order: Vec<Box<str>>,
    pub(crate) steps: Vec<Step>,
}

/// Which definition, and of which structure.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    /// Its name.
    pub name: Box<str>,
    /// Its version.
    pub version: u32,
    /// 32 hex digits over everything that a running saga relies on: step names, kinds, order, groups, topics and
    /// message types. Policies and code are not in it: they may change under a running saga.
    pub hash: Box<str>,
}

impl fmt::Display for Identity {
    /// As on the wire: `create-order/4`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.version)
    }
}

/// One step of a definition.
#[derive(Debug)]
pub struct Step {
    pub(crate) name: Box<str>,
    /// Steps with the same number are done side by side.
    pub(crate) group: usize,
    pub(crate) kind: StepKind,
    /// Whether the types allow a refusal, of a pivot; elsewhere its kind says so.
    pub(crate) can_be_refused: bool,
    pub(crate) work: Work,
    pub(crate) timeout: Duration,
    pub(crate) on_timeout: OnTimeout,
    pub(crate) retry: Retry,
    pub(crate) retry_compensation: Retry,
    pub(crate) on_reply: Option<Closure<Fold>>,
    pub(crate) on_refused: Option<Closure<Refuse>>,
}

/// What a step is for the saga as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// Can be undone.
    Compensable,
    /// Leaves nothing to undo.
    NoEffect,
    /// The point of no return.
    Pivot,
    /// Behind the pivot: it is asked for until it is done.
    Retriable,
}

impl StepKind {
    /// As it stands in the hash and in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compensable => "compensable",
            Self::NoEffect => "no-effect",
            Self::Pivot => "pivot",
            Self::Retriable => "retriable",
        }
    }
}

/// What follows when a step before the pivot has no answer in time.
///
/// The step may have been done all the same. That is no danger: its participant's barrier undoes what is there, and
/// keeps from happening what is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OnTimeout {
    /// It is asked for again by its [`Retry`]; at the end of that the saga is undone.
    Retry,
    /// The saga is undone at once.
    Compensate,
    /// A person decides.
    Park,
}

/// What follows when the pivot or a step behind it has no answer in time. It can not be undone, since the pivot may
/// have been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Forward {
    /// It is asked for again by its [`Retry`]; at the end of that a person decides.
    Retry,
    /// A person decides.
    Park,
}

/// What follows when a participant refuses a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OnRefused {
    /// The saga is undone.
    Abort,
    /// It is asked for again, by its [`Retry`]; at the end of that the saga is undone.
    Retry,
    /// As [`Retry`](Self::Retry), with a command that is made anew of the data: what was refused has no effect, so what is
    /// asked for next may be something else.
    Anew,
    /// The saga goes on without it.
    GoOn,
}

impl From<()> for OnRefused {
    fn from((): ()) -> Self {
        Self::Abort
    }
}

/// Who does a step.
#[derive(Debug)]
pub(crate) enum Work {
    /// A participant.
    Command { topic: &'static str, message_type: &'static str, build: Closure<Build> },
    /// The engine, in its own transaction.
    Local { run: Closure<LocalRun>, undo: Option<Closure<LocalRun>> },
    /// Another saga.
    Part { definition: Definition, build: Closure<Build> },
    /// Somebody outside.
    Wait { signal_type: &'static str },
    /// Whoever has the lock now, by his end.
    Lock { lock: Lock, keys: Closure<Keys> },
}

/// The target, where there is one, and the payload of a command.
pub(crate) type Build = dyn Fn(&Value) -> Result<(Option<String>, Value), Unreadable> + Send + Sync;

/// From the data to the keys of a lock, in the order in which they are taken.
pub(crate) type Keys = dyn Fn(&Value) -> Result<Vec<String>, Unreadable> + Send + Sync;

/// From the data and a reply to the new data.
pub(crate) type Fold = dyn Fn(&Value, &Value) -> Result<Value, Unreadable> + Send + Sync;

/// From the data and a refusal to the new data and what follows.
pub(crate) type Refuse =
    dyn Fn(&Value, &Value) -> Result<(Value, OnRefused), Unreadable> + Send + Sync;

/// From a message that starts a saga to its data.
pub(crate) type Begin = dyn Fn(&Value) -> Result<Value, Unreadable> + Send + Sync;

/// From the data of one version to that of the next.
pub(crate) type Upcast = dyn Fn(Value) -> Value + Send + Sync;

pub(crate) type Upcaster = Closure<Upcast>;

/// A message that starts a saga.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) topic: Box<str>,
    pub(crate) message_type: Box<str>,
    pub(crate) begin: Closure<Begin>,
}

/// The user's code.
pub(crate) struct Closure<F: ?Sized>(pub(crate) Box<F>);

impl<F: ?Sized> fmt::Debug for Closure<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("code")
    }
}

impl Definition {
    /// Its name, its version and the hash of its structure.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// The topic to which participants reply.
    pub fn replies(&self) -> &str {
        &self.0.replies
    }

    /// How long after its start a saga must have passed its pivot.
    pub fn deadline(&self) -> Option<Duration> {
        self.0.deadline
    }

    /// The version of its data: how many upcasters it has.
    pub fn data_version(&self) -> u32 {
        u32::try_from(self.0.upcasters.len()).unwrap_or(u32::MAX)
    }

    /// The topic and the message type of what starts a saga.
    pub fn starts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.starts.iter().map(|start| (&*start.topic, &*start.message_type))
    }

    /// The data of a saga that a message starts.
    ///
    /// # Errors
    /// [`Kind::Unreadable`](crate::Kind::Unreadable) where the payload is not what the message type promises, and
    /// [`Kind::Definition`](crate::Kind::Definition) where no such message starts this saga.
    pub fn start_data(
        &self,
        topic: &str,
        message_type: &str,
        payload: &Value,
    ) -> Result<Value, Error> {
        let is_meant =
            |start: &&Start| &*start.topic == topic && &*start.message_type == message_type;
        let Some(start) = self.0.starts.iter().find(is_meant) else {
            return Err(Error::definition(format!("{} is not started by it", self.identity())));
        };
        (start.begin.0)(payload).map_err(Error::from)
    }

    /// The locks that its sagas may take, in the order in which they take them.
    pub fn lock_order(&self) -> &[Box<str>] {
        &self.0.lock_order
    }

    /// Every topic that has to exist before it runs: of what starts it, of its commands and of its replies, and those of
    /// the sagas that are its steps.
    pub fn topics(&self) -> BTreeSet<&str> {
        let commands = self.steps().filter_map(|step| step.command().map(|(topic, _)| topic));
        let starts = self.starts().map(|(topic, _)| topic);
        let parts = self.steps().filter_map(Step::part).flat_map(Self::topics);
        starts.chain(commands).chain(parts).chain([self.replies()]).collect()
    }

    /// Its steps, in their order.
    pub fn steps(&self) -> impl ExactSizeIterator<Item = &Step> + DoubleEndedIterator {
        self.0.steps.iter()
    }

    /// The step with this name.
    pub fn step(&self, name: &str) -> Option<&Step> {
        self.0.steps.iter().find(|step| &*step.name == name)
    }

    /// The places of steps that are done side by side, in order.
    pub(crate) fn groups(&self) -> Vec<Range<usize>> {
        let mut groups: Vec<Range<usize>> = Vec::new();
        for (at, step) in self.0.steps.iter().enumerate() {
            let same = at.checked_sub(1).and_then(|before| self.0.steps.get(before));
            match (groups.last_mut(), same) {
                (Some(group), Some(before)) if before.group == step.group => group.end = at + 1,
                _ => groups.push(at..at + 1),
            }
        }
        groups
    }

    /// Whether it has a point of no return.
    pub fn has_pivot(&self) -> bool {
        self.0.steps.iter().any(|step| step.kind == StepKind::Pivot)
    }

    /// Whether it may end as undone without being asked to: refused, late, or cancelled before its pivot.
    pub(crate) fn can_fail(&self) -> bool {
        let Some(first) = self.0.steps.first() else { return true };
        let can_be_refused = first.part().map_or(first.can_be_refused, Self::can_fail);
        first.kind != StepKind::Pivot || can_be_refused
    }

    pub(crate) fn upcasters_from(&self, version: u32) -> impl Iterator<Item = &Upcast> {
        let from = usize::try_from(version).unwrap_or(usize::MAX);
        self.0.upcasters.iter().skip(from).map(|upcaster| &*upcaster.0)
    }
}

impl AsRef<Definition> for Definition {
    fn as_ref(&self) -> &Definition {
        self
    }
}

impl Step {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of its group: steps of one group are done side by side.
    pub fn group(&self) -> usize {
        self.group
    }

    /// What it is for the saga as a whole.
    pub fn kind(&self) -> StepKind {
        self.kind
    }

    /// The topic and message type of its command, where a participant does it.
    pub fn command(&self) -> Option<(&str, &str)> {
        match &self.work {
            Work::Command { topic, message_type, .. } => Some((topic, message_type)),
            Work::Part { definition, .. } => Some((definition.replies(), PART_TYPE)),
            Work::Local { .. } | Work::Wait { .. } | Work::Lock { .. } => None,
        }
    }

    /// The saga that it is.
    pub fn part(&self) -> Option<&Definition> {
        match &self.work {
            Work::Part { definition, .. } => Some(definition),
            _ => None,
        }
    }

    /// The message type of the signal that it waits for.
    pub fn signal_type(&self) -> Option<&str> {
        match self.work {
            Work::Wait { signal_type } => Some(signal_type),
            _ => None,
        }
    }

    /// The lock that it takes.
    pub fn lock(&self) -> Option<&Lock> {
        match &self.work {
            Work::Lock { lock, .. } => Some(lock),
            _ => None,
        }
    }

    /// Whether the engine does it, in its own transaction.
    pub fn is_local(&self) -> bool {
        matches!(self.work, Work::Local { .. })
    }

    /// Its code, where the engine does it.
    pub(crate) fn local(
        &self,
        operation: crate::correlation::Operation,
    ) -> Result<&LocalRun, NoLocal> {
        match (&self.work, operation) {
            (Work::Local { run, .. }, crate::correlation::Operation::Action) => Ok(&run.0),
            (Work::Local { undo: Some(undo), .. }, _) => Ok(&undo.0),
            _ => Err(NoLocal),
        }
    }

    /// What its participant is asked for, where it has one.
    pub(crate) fn request(
        &self,
        saga: SagaId,
        data: &Value,
    ) -> Result<Option<Request>, Unreadable> {
        let (topic, message_type, build, key) = match &self.work {
            Work::Command { topic, message_type, build } => {
                (*topic, *message_type, build, saga.to_string())
            }
            Work::Part { definition, build } => {
                let part = part_id(saga, &self.name);
                (definition.replies(), PART_TYPE, build, part.to_string())
            }
            Work::Local { .. } | Work::Wait { .. } | Work::Lock { .. } => return Ok(None),
        };
        let (target, payload) = (build.0)(data)?;
        Ok(Some(Request {
            topic: topic.into(),
            message_type: message_type.into(),
            key: target.unwrap_or(key),
            payload,
        }))
    }

    /// The same without what the user's code puts into it.
    pub(crate) fn empty_request(&self) -> Option<Request> {
        let (topic, message_type) = self.command()?;
        Some(Request {
            topic: topic.into(),
            message_type: message_type.into(),
            key: String::new(),
            payload: Value::Null,
        })
    }

    /// What it is for the saga and who does it: as long as that is the same, it is the same step.
    pub(crate) fn nature(&self) -> String {
        let work = match &self.work {
            Work::Command { topic, message_type, .. } => format!("command {topic} {message_type}"),
            Work::Local { .. } => "local".to_owned(),
            Work::Part { definition, .. } => format!("part {}", definition.identity().name),
            Work::Wait { signal_type } => format!("wait {signal_type}"),
            Work::Lock { lock, .. } => format!("lock {}", lock.name),
        };
        format!("{} {work}", self.kind.as_str())
    }

    fn signature(&self) -> String {
        format!("{} {} {}\n", self.group, self.name, self.nature())
    }
}

/// The id of the saga that is a step of another one: always the same, however often it is asked for.
///
/// It is of the same time as its whole, since participants forget a saga by the time in its id.
pub(crate) fn part_id(saga: SagaId, step: &str) -> SagaId {
    let digest = Sha256::new().chain_update(saga.as_uuid()).chain_update(step).finalize();
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(digest).for_each(|(byte, of_digest)| *byte = of_digest);
    if saga.as_uuid().get_version_num() != 7 {
        return SagaId::from_uuid(uuid::Builder::from_custom_bytes(bytes).into_uuid());
    }
    bytes.iter_mut().zip(saga.as_uuid().as_bytes()).take(6).for_each(|(byte, of)| *byte = *of);
    let uuid = uuid::Builder::from_bytes(bytes)
        .with_version(uuid::Version::SortRand)
        .with_variant(uuid::Variant::RFC4122);
    SagaId::from_uuid(uuid.into_uuid())
}

/// The hash of a structure.
pub(crate) fn structure_hash(steps: &[Step]) -> Box<str> {
    let digest = steps
        .iter()
        .fold(Sha256::new(), |hash, step| hash.chain_update(step.signature()))
        .finalize();
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use crate::fixture::create_order;

    #[test]
    fn every_topic_that_has_to_exist_is_named() {
        let create_order = create_order();

        let topics: Vec<&str> = create_order.definition().topics().into_iter().collect();

        assert_eq!(
            topics,
            [
                "create-order.replies",
                "customers.commands",
                "mail.commands",
                "payments.commands",
                "shipping.commands",
                "warehouse.commands",
            ]
        );
    }
}
