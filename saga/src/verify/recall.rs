//! A definition whose code decides what it has decided before.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use crate::definition::{Closure, Definition, Graph, OnRefused, Step, Work};
use crate::unreadable::Unreadable;

/// What the code of the user did upon one input.
#[derive(Debug, Clone, Default)]
pub(super) struct Decided {
    /// What it made of a refusal.
    pub(super) refused: Option<OnRefused>,
    /// The steps at which it could not read or write something.
    pub(super) unreadable: BTreeMap<Box<str>, String>,
}

/// Where a [`Definition`] without code of its own finds what was decided.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(Arc<Mutex<Decided>>);

impl Memory {
    pub(super) fn set(&self, decided: Decided) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = decided;
    }

    fn fault(&self, step: &str) -> Result<OnRefused, Unreadable> {
        let decided = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match decided.unreadable.get(step) {
            Some(what) => Err(Unreadable { what: what.clone() }),
            None => Ok(decided.refused.unwrap_or(OnRefused::Abort)),
        }
    }

    fn build(&self, step: &str) -> Closure<crate::definition::Build> {
        let (memory, step) = (self.clone(), step.to_owned());
        Closure(Box::new(move |_: &Value| {
            memory.fault(&step)?;
            Ok((None, Value::Null))
        }))
    }
}

/// The keys that each step has locked, in their order.
pub(super) type Keys = BTreeMap<Box<str>, Vec<String>>;

/// The same definition, with the same policies, whose code looks into this memory.
pub(super) fn recalling(definition: &Definition, memory: &Memory, keys: &Keys) -> Definition {
    let steps = definition.steps().map(|step| recalling_step(step, memory, keys)).collect();
    Definition(Arc::new(Graph {
        data: std::any::TypeId::of::<serde_json::Value>(),
        identity: definition.identity().clone(),
        replies: definition.replies().into(),
        deadline: definition.deadline(),
        upcasters: Vec::new(),
        starts: Vec::new(),
        lock_order: definition.lock_order().to_vec(),
        steps,
    }))
}

fn recalling_step(step: &Step, memory: &Memory, keys: &Keys) -> Step {
    let work = match &step.work {
        Work::Command { topic, message_type, .. } => {
            Work::Command { topic, message_type, build: memory.build(&step.name) }
        }
        Work::Part { definition, .. } => {
            Work::Part { definition: definition.clone(), build: memory.build(&step.name) }
        }
        Work::Local { .. } => Work::Local {
            run: Closure(Box::new(|_, _| Box::pin(async { Err("it only looks back".into()) }))),
            undo: None,
        },
        Work::Wait { signal_type } => Work::Wait { signal_type },
        Work::Lock { lock, .. } => {
            let keys = keys.get(&step.name).cloned().unwrap_or_default();
            let (memory, name) = (memory.clone(), step.name.clone());
            let keys = move |_: &Value| memory.fault(&name).map(|_| keys.clone());
            Work::Lock { lock: *lock, keys: Closure(Box::new(keys)) }
        }
    };
    let (name, folding, deciding) = (step.name.clone(), memory.clone(), memory.clone());
    let refused = step.name.clone();
    Step {
        name: step.name.clone(),
        group: step.group,
        kind: step.kind,
        can_be_refused: step.can_be_refused,
        work,
        timeout: step.timeout,
        on_timeout: step.on_timeout,
        retry: step.retry,
        retry_compensation: step.retry_compensation,
        on_reply: Some(Closure(Box::new(move |data: &Value, _: &Value| {
            folding.fault(&name)?;
            Ok(data.clone())
        }))),
        on_refused: Some(Closure(Box::new(move |data: &Value, _: &Value| {
            Ok((data.clone(), deciding.fault(&refused)?))
        }))),
    }
}
