//! What comes from Kafka: events, answers, and what other sagas ask for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;
use sqlx::PgConnection;
use tailrace_idempotency::{BatchCx, BatchHandler, BoxError, Item, Outcome};
use tailrace_outbox::Message;
use uuid::Uuid;

use super::{Core, Unknown};
use crate::barrier::{self, Decision, Ended};
use crate::correlation::{Answer, Correlation, Instruction, Operation, SagaId};
use crate::definition::{Definition, part_id};
use crate::engine::apply::{Begun, Told, apply};
use crate::error::Error;
use crate::instance::{Instance, Parent};
use crate::participant::BoxFuture;
use crate::store::{self, Cause, Deferred, Reason};
use crate::transition::{Input, REPLY_TYPE};

/// Answers of participants.
pub(super) struct Replies(pub(super) Arc<Core>);
/// Events that start sagas, and signals to them.
pub(super) struct Events(pub(super) Arc<Core>);
/// Commands of other sagas, of which these are steps.
pub(super) struct Parts(pub(super) Arc<Core>);

type Handled<'a> = BoxFuture<'a, Result<Outcome, BoxError>>;

impl<'a, S> BatchHandler<'a, S, Value> for Replies {
    type Error = BoxError;
    type Future = Handled<'a>;

    fn call(&self, cx: BatchCx<'a, S>, messages: Vec<Item<'a, Value>>) -> Handled<'a> {
        let core = Arc::clone(&self.0);
        Box::pin(async move { replies(&core, cx.conn, messages).await })
    }
}

impl<'a, S> BatchHandler<'a, S, Value> for Events {
    type Error = BoxError;
    type Future = Handled<'a>;

    fn call(&self, cx: BatchCx<'a, S>, messages: Vec<Item<'a, Value>>) -> Handled<'a> {
        let core = Arc::clone(&self.0);
        Box::pin(async move { events(&core, cx.conn, messages).await })
    }
}

impl<'a, S> BatchHandler<'a, S, Value> for Parts {
    type Error = BoxError;
    type Future = Handled<'a>;

    fn call(&self, cx: BatchCx<'a, S>, messages: Vec<Item<'a, Value>>) -> Handled<'a> {
        let core = Arc::clone(&self.0);
        Box::pin(async move { parts(&core, cx.conn, messages).await })
    }
}

async fn replies(
    core: &Core,
    conn: &mut PgConnection,
    messages: Vec<Item<'_, Value>>,
) -> Result<Outcome, BoxError> {
    let mut told = Vec::with_capacity(messages.len());
    for item in messages {
        let header = |name: &str| item.meta.header(name);
        let read = Correlation::read(header).and_then(|read| Ok((read, Answer::read(header)?)));
        let (correlation, answer) = match read {
            Ok((Some(correlation), answer)) => (correlation, answer),
            Ok((None, _)) => return Ok(Outcome::reject("it is the answer to no saga")),
            Err(error) => return Ok(Outcome::reject(error.to_string())),
        };
        let cause = item.cause().into_iter().collect();
        let saga = correlation.saga;
        let input = Input::Reply { correlation, answer, payload: item.message };
        told.push(Told { saga, input, cause, ticket: None });
    }
    settle(core, conn, Vec::new(), told).await
}

async fn events(
    core: &Core,
    conn: &mut PgConnection,
    messages: Vec<Item<'_, Value>>,
) -> Result<Outcome, BoxError> {
    let now = SystemTime::now();
    let (mut begun, mut told) = (Vec::new(), Vec::new());
    for item in messages {
        let message_type = item.meta.message_type();
        let topic = core.bare_topic(&item.meta.position().topic);
        let cause: Cause = item.cause().into_iter().collect();
        for definition in starts(core, topic, message_type) {
            let data = match definition.start_data(topic, message_type, &item.message) {
                Ok(data) => data,
                Err(error) => return Ok(Outcome::reject(error.to_string())),
            };
            let id = SagaId::mint();
            let instance = Instance::new(definition, id, data, now);
            begun.push(Begun { instance, definition: definition.clone(), cause: cause.clone() });
        }
        if let Some(saga) = addressee(&item).filter(|_| is_signal(core, message_type)) {
            let signal_type = message_type.into();
            let input = Input::Signal { signal_type, payload: item.message };
            told.push(Told { saga, input, cause, ticket: None });
        }
    }
    settle(core, conn, begun, told).await
}

/// The definitions of which such a message starts a saga, each in the version that new sagas follow.
fn starts<'c>(core: &'c Core, topic: &str, message_type: &str) -> Vec<&'c Definition> {
    let names: BTreeSet<&str> =
        core.registry.all().map(|definition| &*definition.identity().name).collect();
    let current = names.into_iter().filter_map(|name| core.registry.current(name));
    current
        .filter(|definition| definition.starts().any(|start| start == (topic, message_type)))
        .collect()
}

fn is_signal(core: &Core, message_type: &str) -> bool {
    let mut steps = core.registry.all().flat_map(|definition| definition.steps());
    steps.any(|step| step.signal_type() == Some(message_type))
}

/// The saga that a signal is for: by its attribute, or else by its key.
fn addressee(item: &Item<'_, Value>) -> Option<SagaId> {
    let said = item.meta.header("ce_sagaid").or_else(|| item.meta.key())?;
    Uuid::try_parse_ascii(said).ok().map(SagaId::from_uuid)
}

async fn parts(
    core: &Core,
    conn: &mut PgConnection,
    messages: Vec<Item<'_, Value>>,
) -> Result<Outcome, BoxError> {
    let mut asked = Parted::default();
    for item in messages {
        let instruction = match Instruction::read(|name| item.meta.header(name)) {
            Ok(Some(instruction)) => instruction,
            Ok(None) => return Ok(Outcome::reject("it is the command of no saga")),
            Err(error) => return Ok(Outcome::reject(error.to_string())),
        };
        let topic = core.bare_topic(&item.meta.position().topic);
        let cause = item.cause().into_iter().collect();
        let part = Part { instruction, topic, data: item.message, cause };
        if let Err(why) = asked.take(core, conn, part, SystemTime::now()).await? {
            return Ok(Outcome::reject(why));
        }
    }
    settle(core, conn, asked.begun, asked.told).await
}

/// A command of another saga.
pub(super) struct Part<'t> {
    pub(super) instruction: Instruction,
    pub(super) topic: &'t str,
    pub(super) data: Value,
    pub(super) cause: Cause,
}

const FORGOTTEN: &str =
    "the saga is older than barrier rows are kept: whether its part was undone is not known";

/// What such commands come to.
#[derive(Debug, Default)]
pub(super) struct Parted {
    pub(super) begun: Vec<Begun>,
    pub(super) told: Vec<Told>,
}

impl Parted {
    /// A saga that is there is told; another one begins, unless it was compensated before it came. Fails inside with why
    /// the command is to be rejected.
    pub(super) async fn take(
        &mut self,
        core: &Core,
        conn: &mut PgConnection,
        part: Part<'_>,
        now: SystemTime,
    ) -> Result<Result<(), &'static str>, BoxError> {
        let Part { instruction, topic, data, cause } = part;
        let of = &instruction.correlation;
        let saga = part_id(of.saga, &of.step);
        // Whoever comes at the same time for the same step waits here.
        let held = barrier::rows::lock(conn, of, None).await?;
        let is_there = self.begun.iter().any(|begun| begun.instance.id() == saga)
            || store::is_there(conn, saga).await?;
        if is_there {
            self.told.push(Told { saga, input: Input::Part(instruction), cause, ticket: None });
            return Ok(Ok(()));
        }
        if held.forgotten {
            // To begin it would be to guess that it was never undone.
            return Ok(Err(FORGOTTEN));
        }
        let (operation, epoch) = (of.operation, of.epoch);
        let request = barrier::Request { operation, epoch, late: false };
        let decision = held.barrier.decide(request);
        let answer = match (decision, operation) {
            (Decision::Run, Operation::Action) => {
                let Some(definition) = definition_of(core, of, topic) else {
                    return Ok(Err("nobody here knows the saga that it asks for"));
                };
                let Instruction { reply_to, correlation, .. } = instruction;
                let instance = Instance::new(definition, saga, data, now)
                    .part_of(Parent { reply_to, correlation });
                self.begun.push(Begun { instance, definition: definition.clone(), cause });
                return Ok(Ok(()));
            }
            (Decision::Void, _) => Answer::Done,
            (Decision::Repeat(answer), _) => answer,
            _ => Answer::Blocked,
        };
        let reply = reply(core, &instruction, answer, cause)?;
        let after = held.barrier.after(request, decision, Ended::Done);
        barrier::rows::remember(conn, &core.outbox, of, after, None, &reply).await?;
        Ok(Ok(()))
    }
}

/// The saga that is a step of another one: as that one's definition has it, or else the only one with these replies.
fn definition_of<'c>(core: &'c Core, parent: &Correlation, topic: &str) -> Option<&'c Definition> {
    let of = |definition: &&Definition| definition.identity().to_string() == *parent.definition;
    if let Some(parent_definition) = core.registry.all().find(of) {
        let part = parent_definition.step(&parent.step)?.part()?;
        return core.registry.current(&part.identity().name);
    }
    let names: BTreeSet<&str> = core
        .registry
        .all()
        .filter(|definition| definition.replies() == topic)
        .map(|definition| &*definition.identity().name)
        .collect();
    match names.into_iter().collect::<Vec<_>>().as_slice() {
        [name] => core.registry.current(name),
        _ => None,
    }
}

fn reply(
    core: &Core,
    instruction: &Instruction,
    answer: Answer,
    cause: Cause,
) -> Result<Message, Error> {
    let correlation = &instruction.correlation;
    Message::builder(&*instruction.reply_to, REPLY_TYPE)
        .source(&core.source)
        .key(correlation.saga.to_string())
        .json(&Value::Null)
        .of_saga(correlation.reply_attributes(answer))
        .caused_by(cause)
        .build()
        .map_err(Error::of_outbox)
}

/// Tells and begins sagas in the batch's transaction, and keeps what could not be told.
async fn settle(
    core: &Core,
    conn: &mut PgConnection,
    begun: Vec<Begun>,
    told: Vec<Told>,
) -> Result<Outcome, BoxError> {
    let applied = apply(core, conn, begun, told, SystemTime::now()).await?;
    let is_unknown = |deferred: &Deferred| deferred.reason == Reason::Unknown;
    if core.unknown == Unknown::Reject && applied.deferred.iter().any(is_unknown) {
        return Ok(Outcome::reject("there is no such saga"));
    }
    store::defer(conn, &applied.deferred, core.unknown_for_secs()).await?;
    super::report(&applied);
    core.counters.count(applied.tally);
    Ok(Outcome::Done)
}
