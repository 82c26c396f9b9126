//! A definition that is being written, and everything that can be wrong with it.

use std::any::TypeId;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::definition::{
    Definition, Graph, Identity, OnTimeout, Start, Step, StepKind, Upcaster, Work, structure_hash,
};
use crate::error::Error;
use crate::lock;
use crate::retry::WAIT_MAX;

/// The most steps that a saga may have.
pub const STEPS_MAX: usize = 64;

/// The longest name of a saga or of a step, in bytes.
pub const NAME_BYTES_MAX: usize = 100;

/// How deep sagas may stand in one another.
pub const DEPTH_MAX: usize = 8;

#[derive(Debug)]
pub(crate) struct Draft {
    data: TypeId,
    name: Box<str>,
    version: u32,
    pub(crate) replies: Box<str>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) upcasters: Vec<Upcaster>,
    pub(crate) starts: Vec<Start>,
    pub(crate) lock_order: Vec<Box<str>>,
    pub(crate) steps: Vec<Step>,
    groups: usize,
    pub(crate) faults: Vec<String>,
}

impl Draft {
    /// Of a saga with this data.
    pub(crate) fn new<D: 'static>(name: &str, version: u32) -> Self {
        Self {
            name: name.into(),
            version,
            data: TypeId::of::<D>(),
            replies: format!("{name}.replies").into(),
            deadline: None,
            upcasters: Vec::new(),
            starts: Vec::new(),
            lock_order: Vec::new(),
            steps: Vec::new(),
            groups: 0,
            faults: Vec::new(),
        }
    }

    /// What is pushed from now on comes after what was pushed before.
    pub(crate) fn next_group(&mut self) {
        self.groups += 1;
    }

    pub(crate) fn push(&mut self, mut step: Step) {
        step.group = self.groups;
        self.steps.push(step);
    }

    pub(crate) fn build(mut self) -> Result<Definition, Error> {
        self.check_whole();
        self.check_names();
        let of_steps: Vec<String> = self.steps.iter().flat_map(step_faults).collect();
        self.faults.extend(of_steps);
        self.check_parts();
        self.faults.extend(lock::faults(&self.lock_order, &self.steps));
        if !self.faults.is_empty() {
            return Err(Error::faults(&format!("{}/{}", self.name, self.version), self.faults));
        }
        let hash = structure_hash(&self.steps);
        Ok(Definition(Arc::new(Graph {
            identity: Identity { name: self.name, version: self.version, hash },
            data: self.data,
            replies: self.replies,
            deadline: self.deadline,
            upcasters: self.upcasters,
            starts: self.starts,
            lock_order: self.lock_order,
            steps: self.steps,
        })))
    }

    fn check_whole(&mut self) {
        if self.version == 0 {
            self.faults.push("versions begin with 1".to_owned());
        }
        if self.steps.is_empty() {
            self.faults.push("it has no step".to_owned());
        }
        if self.steps.len() > STEPS_MAX {
            self.faults.push(format!("{} steps are more than {STEPS_MAX}", self.steps.len()));
        }
        if self.deadline.is_some_and(|after| after.is_zero() || after > WAIT_MAX) {
            self.faults.push("its deadline is not between nothing and a year".to_owned());
        }
        if self.replies.is_empty() {
            self.faults.push("its topic for replies has no name".to_owned());
        }
        let mut seen = BTreeSet::new();
        for start in &self.starts {
            if !seen.insert((&start.topic, &start.message_type)) {
                self.faults.push(format!("{} starts it twice", start.message_type));
            }
        }
    }

    fn check_names(&mut self) {
        if !is_name(&self.name) {
            self.faults.push(format!("the saga's {NAME_RULE}"));
        }
        for lock in self.lock_order.iter().filter(|lock| !is_name(lock)) {
            self.faults.push(format!("the lock {lock:?}: its {NAME_RULE}"));
        }
        let mut seen = BTreeSet::new();
        for (at, step) in self.steps.iter().enumerate() {
            if !is_name(&step.name) {
                self.faults.push(format!("step {}: its {NAME_RULE}", at + 1));
            }
            if !seen.insert(&step.name) {
                self.faults.push(format!("two steps are named {}", step.name));
            }
        }
    }

    fn check_parts(&mut self) {
        for step in &self.steps {
            let Some(part) = step.part() else { continue };
            let before = matches!(step.kind, StepKind::Compensable | StepKind::NoEffect);
            if before && part.has_pivot() {
                self.faults.push(format!(
                    "step {}: {} has a pivot and can not be undone, so it stands only as the pivot or behind it",
                    step.name,
                    part.identity()
                ));
            }
            if step.kind == StepKind::Retriable && part.can_fail() {
                self.faults.push(format!(
                    "step {}: {} may end undone, and behind the pivot stands only a saga that begins with its pivot, which nobody may refuse",
                    step.name,
                    part.identity()
                ));
            }
            if contains(part, &self.name) {
                self.faults.push(format!("step {}: the saga is a part of itself", step.name));
            }
            if depth(part) >= DEPTH_MAX {
                self.faults.push(format!("step {}: more than {DEPTH_MAX} sagas deep", step.name));
            }
        }
    }
}

const NAME_RULE: &str = "name is not 1 to 100 of a-z, 0-9, - _ and .";

fn is_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(is_allowed)
}

fn step_faults(step: &Step) -> Vec<String> {
    let mut faults = Vec::new();
    if step.timeout.is_zero() || step.timeout > WAIT_MAX {
        faults.push("its time-out is not between nothing and a year".to_owned());
    }
    if let Some(fault) = step.retry.fault() {
        faults.push(format!("its retry: {fault}"));
    }
    if let Some(fault) = step.retry_compensation.fault() {
        faults.push(format!("the retry of its compensation: {fault}"));
    }
    match &step.work {
        Work::Command { topic, message_type, .. }
            if topic.is_empty() || message_type.is_empty() =>
        {
            faults.push("its command has no topic or no type".to_owned());
        }
        Work::Wait { .. } | Work::Lock { .. } if step.on_timeout == OnTimeout::Retry => {
            faults
                .push("it waits, and there is nobody to ask again: compensate or park".to_owned());
        }
        _ => {}
    }
    faults.extend(step.lock().and_then(lock::fault).map(str::to_owned));
    faults.into_iter().map(|fault| format!("step {}: {fault}", step.name)).collect()
}

fn contains(definition: &Definition, name: &str) -> bool {
    &*definition.identity().name == name
        || definition.steps().filter_map(Step::part).any(|part| contains(part, name))
}

fn depth(definition: &Definition) -> usize {
    1 + definition.steps().filter_map(Step::part).map(depth).max().unwrap_or_default()
}
