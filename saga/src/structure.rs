//! What a definition is made of, without its code: what a running saga relies on.
//!
//! An engine stores it for every definition that it can run, so that programs without that code can draw a saga, and
//! say what a migration would run into.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::definition::{Definition, Identity, Step, StepKind, Work};

/// The structure of a definition, as data. [`Definition::structure`] makes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Structure {
    #[serde(flatten)]
    pub(crate) identity: Identity,
    pub(crate) replies: Box<str>,
    pub(crate) data_version: u32,
    pub(crate) steps: Vec<Shape>,
}

/// One step of a structure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub(crate) name: Box<str>,
    pub(crate) group: usize,
    pub(crate) kind: StepKind,
    pub(crate) work: Does,
    /// As long as that is the same, it is the same step.
    pub(crate) nature: Box<str>,
}

/// Who does a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "does", rename_all = "snake_case")]
pub(crate) enum Does {
    /// A participant.
    Command {
        topic: Box<str>,
        #[serde(rename = "type")]
        message_type: Box<str>,
    },
    /// The engine.
    Local,
    /// Another saga.
    Part {
        definition: Box<str>,
        topic: Box<str>,
        #[serde(rename = "type")]
        message_type: Box<str>,
    },
    /// Somebody outside.
    Wait { signal: Box<str> },
    /// Whoever has the lock now.
    Lock,
}

impl Definition {
    /// What it is made of, without its code.
    pub fn structure(&self) -> Structure {
        Structure {
            identity: self.identity().clone(),
            replies: self.replies().into(),
            data_version: self.data_version(),
            steps: self.steps().map(Shape::of).collect(),
        }
    }
}

impl Structure {
    /// The definition's name, version and hash.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its steps, in their order.
    pub fn steps(&self) -> &[Shape] {
        &self.steps
    }

    /// The step with this name.
    pub fn step(&self, name: &str) -> Option<&Shape> {
        self.steps.iter().find(|step| &*step.name == name)
    }

    /// The places of steps that are done side by side, in order.
    pub(crate) fn groups(&self) -> Vec<Range<usize>> {
        let mut groups: Vec<Range<usize>> = Vec::new();
        for (at, step) in self.steps.iter().enumerate() {
            let same = at.checked_sub(1).and_then(|before| self.steps.get(before));
            match (groups.last_mut(), same) {
                (Some(group), Some(before)) if before.group == step.group => group.end = at + 1,
                _ => groups.push(at..at + 1),
            }
        }
        groups
    }
}

impl Shape {
    fn of(step: &Step) -> Self {
        let work = match &step.work {
            Work::Local { .. } => Does::Local,
            Work::Wait { signal_type } => Does::Wait { signal: (*signal_type).into() },
            Work::Lock { .. } => Does::Lock,
            Work::Command { .. } | Work::Part { .. } => {
                let (topic, message_type) = step.command().unwrap_or_default();
                let (topic, message_type) = (topic.into(), message_type.into());
                match step.part() {
                    Some(part) => {
                        let definition = part.identity().name.clone();
                        Does::Part { definition, topic, message_type }
                    }
                    None => Does::Command { topic, message_type },
                }
            }
        };
        Self {
            name: step.name().into(),
            group: step.group(),
            kind: step.kind(),
            work,
            nature: step.nature().into(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is for the saga as a whole.
    pub fn kind(&self) -> StepKind {
        self.kind
    }

    /// The topic and message type of its command, where a participant or another saga does it.
    pub fn command(&self) -> Option<(&str, &str)> {
        match &self.work {
            Does::Command { topic, message_type } | Does::Part { topic, message_type, .. } => {
                Some((topic, message_type))
            }
            Does::Local | Does::Wait { .. } | Does::Lock => None,
        }
    }

    /// Whether it takes a lock.
    pub(crate) fn is_lock(&self) -> bool {
        self.work == Does::Lock
    }

    /// The name of the saga that it is.
    pub(crate) fn part(&self) -> Option<&str> {
        match &self.work {
            Does::Part { definition, .. } => Some(definition),
            _ => None,
        }
    }

    /// The message type of the signal that it waits for.
    pub(crate) fn signal_type(&self) -> Option<&str> {
        match &self.work {
            Does::Wait { signal } => Some(signal),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::create_order;

    #[test]
    fn a_structure_comes_back_from_its_json() {
        let structure = create_order().definition().structure();

        let json = serde_json::to_string(&structure).unwrap();

        assert_eq!(serde_json::from_str::<Structure>(&json).unwrap(), structure);
        assert!(json.starts_with(r#"{"name":"create-order","version":4,"hash":""#), "{json}");
        assert!(json.contains(r#""kind":"no-effect""#), "{json}");
        assert!(!json.contains("ada"), "{json}");
    }
}
