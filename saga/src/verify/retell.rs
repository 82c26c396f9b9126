//! Tells a saga once more what its journal says that it was told.

use std::time::SystemTime;

use serde_json::Value;

use super::Noted;
use super::recall::{Decided, Keys, Memory, recalling};
use crate::correlation::{Correlation, Epoch, Instruction, Operation};
use crate::definition::{Definition, OnRefused};
use crate::instance::{Cause, Instance, Parent, Trouble};
use crate::machine;
use crate::transition::{Entry, Happening, Input, Tick, Transition};

/// What the user's code can make of a refusal.
const DECISIONS: [OnRefused; 3] = [OnRefused::Abort, OnRefused::Retry, OnRefused::GoOn];

/// The saga as it would stand by its journal, or what of that no input explains.
pub(super) fn retell(
    definition: &Definition,
    stored: &Instance,
    journal: &[Noted],
) -> Result<Instance, String> {
    let memory = Memory::default();
    let recalling = recalling(definition, &memory, &keys(journal));
    let mut saga = unbegun(&recalling, stored);
    for noted in journal {
        let Some(turn) = explain(&recalling, &memory, &saga, noted) else {
            let told: Vec<String> =
                noted.entries.iter().map(|entry| format!("{:?}", entry.what)).collect();
            return Err(format!(
                "nothing that it could have been told explains revision {} of its journal: {}",
                noted.revision,
                told.join(", ")
            ));
        };
        saga = turn.instance;
    }
    Ok(saga)
}

/// What each step has locked. It asks for the next key as soon as it has one, so the journal has all of which it is known
/// that there are any.
fn keys(journal: &[Noted]) -> Keys {
    let mut keys = Keys::new();
    for entry in journal.iter().flat_map(|noted| &noted.entries) {
        if let (Some(step), Happening::LockWanted { key }) = (&entry.step, &entry.what) {
            let of_step = keys.entry(step.clone()).or_default();
            if !of_step.contains(key) {
                of_step.push(key.clone());
            }
        }
    }
    keys
}

/// As it was before its start.
fn unbegun(definition: &Definition, stored: &Instance) -> Instance {
    let mut saga = Instance::new(definition, stored.id, Value::Null, stored.started_at);
    saga.deadline = stored.deadline;
    saga.parent = stored.parent.clone().map(|parent| {
        // What its whole has asked for first; it has never asked in an older epoch since.
        let (operation, epoch) = (Operation::Action, Epoch::new(0));
        Parent { correlation: Correlation { operation, epoch, ..parent.correlation }, ..parent }
    });
    saga
}

/// The transition that leaves just these entries. What the saga was told is written on them.
fn explain(
    definition: &Definition,
    memory: &Memory,
    saga: &Instance,
    noted: &Noted,
) -> Option<Transition> {
    let now = noted.entries.first()?.at;
    let unreadable = noted.entries.iter().filter_map(|entry| match (&entry.step, &entry.what) {
        (Some(step), Happening::Stuck { trouble: Trouble::Unreadable { what } }) => {
            Some((step.clone(), what.clone()))
        }
        _ => None,
    });
    let mut decided = Decided { refused: None, unreadable: unreadable.collect() };
    for input in noted.entries.iter().filter_map(|entry| input(saga, entry)) {
        for decision in DECISIONS {
            decided.refused = Some(decision);
            memory.set(decided.clone());
            if let Some(turn) = fits(definition, saga, input.clone(), now, noted) {
                return Some(turn);
            }
        }
    }
    None
}

fn fits(
    definition: &Definition,
    saga: &Instance,
    input: Input,
    now: SystemTime,
    noted: &Noted,
) -> Option<Transition> {
    let turn = machine::step(definition, saga, input, now).ok()?;
    let is_it = turn.journal == noted.entries && turn.instance.revision == noted.revision;
    is_it.then_some(turn)
}

/// What a saga may have been told where this came of it.
fn input(saga: &Instance, entry: &Entry) -> Option<Input> {
    let step = entry.step.clone();
    let tick =
        |epoch, attempt| step.clone().map(|step| Input::Tick(Tick::Step { step, epoch, attempt }));
    let state = step.as_deref().and_then(|step| saga.step(step));
    Some(match &entry.what {
        Happening::Started => Input::Start,
        Happening::Answered { operation, epoch, answer, .. } => {
            let correlation = Correlation {
                saga: saga.id,
                definition: saga.definition.to_string().into(),
                step: step?,
                operation: *operation,
                epoch: *epoch,
            };
            // A refusal that says something is one about which the code decides.
            Input::Reply { correlation, answer: *answer, payload: Value::Bool(true) }
        }
        Happening::Failed { attempt, error } => {
            let state = state?;
            let correlation = Correlation {
                saga: saga.id,
                definition: saga.definition.to_string().into(),
                step: step?,
                operation: state.operation()?,
                epoch: state.epoch,
            };
            Input::Failed { correlation, attempt: *attempt, error: error.clone() }
        }
        Happening::TimedOut { attempt } => tick(state?.epoch, *attempt)?,
        // Of an attempt that has failed before.
        Happening::Stuck { trouble: Trouble::Failed { .. } } | Happening::Asked { .. } => {
            tick(state?.epoch, state?.attempts)?
        }
        Happening::SignalKept { signal }
        | Happening::SignalTaken { signal }
        | Happening::SignalRefused { signal, .. } => {
            Input::Signal { signal_type: signal.clone(), payload: Value::Null }
        }
        Happening::Operator { by, verb, .. } => {
            Input::Operator { by: by.clone(), verb: verb.clone() }
        }
        Happening::Compensating { cause } | Happening::TooLate { cause } => match cause {
            Cause::Cancelled => Input::Cancel,
            Cause::Deadline => Input::Tick(Tick::Deadline),
            Cause::Failed { step } => {
                let (epoch, attempt) = saga.step(step).map(|it| (it.epoch, it.attempts))?;
                Input::Tick(Tick::Step { step: step.clone(), epoch, attempt })
            }
            _ => return None,
        },
        Happening::LockHeld { key } | Happening::LockLeft { key } => {
            Input::Held { step: step?, key: key.clone() }
        }
        Happening::LockExpired => Input::Tick(Tick::Lock { step: step? }),
        Happening::PartAsked { operation, epoch } => {
            let parent = saga.parent.clone()?;
            let correlation =
                Correlation { operation: *operation, epoch: *epoch, ..parent.correlation };
            let reply_to = parent.reply_to;
            Input::Part(Instruction { correlation, reply_to, deadline: None })
        }
        _ => return None,
    })
}
