//! Sagas as JSON: the same on the command line and over HTTP. Data of a saga is in it on request alone.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::{Listed, Moment, Outcome, Shown};
use crate::instance::{Instance, StepState};
use crate::story;

impl Listed {
    /// As a JSON object; with its data, and what its participants were asked for, on request.
    pub fn to_json(&self, with_data: bool) -> Value {
        let steps = self.instance.iter().flat_map(Instance::steps);
        let steps: Vec<Value> = steps.map(|step| step_json(step, with_data)).collect();
        let mut saga = json!({
            "saga": self.id.to_string(),
            "definition": &*self.definition.name,
            "version": self.definition.version,
            "hash": &*self.definition.hash,
            "state": self.status.map(|status| status.as_str()),
            "revision": self.revision,
            "age_seconds": self.age.as_secs(),
            "unchanged_seconds": self.unchanged_for.as_secs(),
            "inputs": self.inputs,
            "steps": steps,
        });
        if let (true, Some(instance), Some(object)) =
            (with_data, &self.instance, saga.as_object_mut())
        {
            object.insert("data".to_owned(), instance.data().clone());
        }
        saga
    }
}

fn step_json(step: &StepState, with_data: bool) -> Value {
    let mut of = json!({
        "step": step.name(),
        "state": step.status().as_str(),
        "epoch": step.epoch().get(),
        "attempts": step.attempts(),
        "due": step.due().map(seconds),
        "trouble": step.trouble(),
    });
    if let (true, Some(object)) = (with_data, of.as_object_mut()) {
        object.insert("request".to_owned(), json!(step.request()));
    }
    of
}

impl Shown {
    /// As a JSON object; with its data on request.
    pub fn to_json(&self, with_data: bool) -> Value {
        let instance = self.saga.instance.as_ref();
        let inputs = self.inputs.iter().map(|input| {
            json!({
                "what": input.what, "reason": input.reason, "attempts": input.attempts,
                "age_seconds": input.age.as_secs(),
            })
        });
        let migration = self.ordered.as_ref().map(|ordered| {
            json!({
                "to": ordered.to, "actor": ordered.actor, "refused": ordered.refused,
                "age_seconds": ordered.age.as_secs(),
            })
        });
        let audit = self.audit.iter().map(|done| {
            json!({
                "at": done.at, "actor": done.actor, "action": done.action, "step": done.step,
                "note": done.note, "query": done.query,
            })
        });
        json!({
            "saga": self.saga.to_json(with_data),
            "has_engine": self.has_engine,
            "undone_for": instance.and_then(Instance::cause),
            "deadline": instance.and_then(Instance::deadline).map(seconds),
            "part_of": instance.and_then(Instance::parent).map(|of| of.correlation.saga.to_string()),
            "inputs": inputs.collect::<Vec<_>>(),
            "migration": migration,
            "audit": audit.collect::<Vec<_>>(),
        })
    }
}

impl Moment {
    /// As a JSON object.
    pub fn to_json(&self) -> Value {
        json!({ "at": seconds(self.at), "revision": self.revision, "entries": self.entries })
    }
}

impl Outcome {
    /// As a JSON object.
    pub fn to_json(&self) -> Value {
        let (refused, what) = match &self.planned {
            Ok(what) => (false, what),
            Err(why) => (true, why),
        };
        json!({ "saga": self.saga.to_string(), "refused": refused, "what": what })
    }
}

impl story::Entry {
    /// As a JSON object.
    pub fn to_json(&self) -> Value {
        json!({
            "message": self.message_id, "at": seconds(self.at), "topic": self.topic,
            "source": self.source, "type": self.message_type, "step": self.step,
            "operation": self.operation.as_str(),
            "outcome": self.outcome.map(|outcome| outcome.as_str()), "cause": self.cause,
        })
    }
}

/// Since the Unix epoch.
fn seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
