//! How a choreography is written down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Choreography, Expiry, Kind, Map, Step, faults};
use crate::error::Error;

/// A [`Choreography`] that is being declared. What is said of a step is said of the last one.
#[derive(Debug, Clone)]
#[must_use = "a declaration is checked when it is built"]
pub struct Declaration {
    map: Map,
    faults: Vec<String>,
}

impl Declaration {
    pub(super) fn new(name: &str, version: u32) -> Self {
        let map = Map {
            name: name.into(),
            version,
            steps: Vec::new(),
            topics: BTreeMap::new(),
            ends: BTreeSet::new(),
            expiry: None,
        };
        Self { map, faults: Vec::new() }
    }

    /// The step by which a service starts the saga: see [`Starter`](super::Starter). It emits one event.
    pub fn starts(self, service: &str, step: &str) -> Self {
        self.push(service, step, None)
    }

    /// A step of a service, and the event that leads to it.
    pub fn step(self, service: &str, step: &str, on: &str) -> Self {
        self.push(service, step, Some(on.into()))
    }

    fn push(mut self, service: &str, step: &str, on: Option<Box<str>>) -> Self {
        self.map.steps.push(Step {
            name: step.into(),
            service: service.into(),
            on,
            emits: Vec::new(),
            refuses: Vec::new(),
            kind: None,
        });
        self
    }

    /// An event that says that the step is done. Said several times, the step emits all of them.
    pub fn emits(self, event: &str) -> Self {
        self.of_last("emits", |step| step.emits.push(event.into()))
    }

    /// An event that says that the step cannot be done. It undoes the saga.
    pub fn refuses(self, event: &str) -> Self {
        self.of_last("refuses", |step| step.refuses.push(event.into()))
    }

    /// The step is undone by the compensation of this name, when another one fails.
    pub fn compensated_by(self, compensation: &str) -> Self {
        self.kind(Kind::Compensated { by: compensation.into(), undone: None })
    }

    /// The event by which the compensation says that it is done. It leads to nothing; it is for those who observe.
    pub fn undone(mut self, event: &str) -> Self {
        match self.map.steps.last_mut().and_then(|step| step.kind.as_mut()) {
            Some(Kind::Compensated { undone, .. }) => *undone = Some(event.into()),
            _ => self.faults.push(format!(
                "{event} says that nothing is undone: no compensated_by stands before it"
            )),
        }
        self
    }

    /// The step leaves nothing to undo.
    pub fn no_effect(self) -> Self {
        self.kind(Kind::NoEffect)
    }

    /// The step is the point of no return: once it is done, the saga is completed, however long that takes. Where the
    /// deadline has passed before, it never runs, and its service emits the event `called_off`, which undoes the saga.
    pub fn pivot(self, called_off: &str) -> Self {
        self.kind(Kind::Pivot { called_off: called_off.into() })
    }

    /// The step stands behind the pivot: it cannot be refused, is tried until it is done, and is never undone.
    pub fn retriable(self) -> Self {
        self.kind(Kind::Retriable)
    }

    fn kind(self, kind: Kind) -> Self {
        let twice = self.map.steps.last().filter(|step| step.kind.is_some());
        let fault = twice.map(|step| format!("{} is said twice what becomes of it", step.name));
        let mut declaration = self.of_last("a kind", |step| step.kind = Some(kind));
        declaration.faults.extend(fault);
        declaration
    }

    fn of_last(mut self, said: &str, say: impl FnOnce(&mut Step)) -> Self {
        match self.map.steps.last_mut() {
            Some(step) => say(step),
            None => self.faults.push(format!("{said} stands before the first step")),
        }
        self
    }

    /// An event that ends the saga: it is completed. Of several, all have to come.
    pub fn ends_with(mut self, event: &str) -> Self {
        self.map.ends.insert(event.into());
        self
    }

    /// By when the saga has ended, counted from its start, and the event that its first service emits otherwise.
    pub fn ends_within(mut self, within: Duration, expired: &str) -> Self {
        if self.map.expiry.is_some() {
            self.faults.push("it is said twice by when it ends".to_owned());
        }
        self.map.expiry = Some(Expiry { within, event: expired.into() });
        self
    }

    /// The topic on which a service publishes. Default: the service's name.
    pub fn publishes(mut self, service: &str, topic: &str) -> Self {
        self.map.topics.insert(service.into(), topic.into());
        self
    }

    /// Checks it as a whole.
    ///
    /// # Errors
    /// [`Kind::Definition`](crate::Kind::Definition) with every fault at once: an effect that nobody compensates, an
    /// event that nobody handles or emits, a circle, a missing end or deadline, what could be refused or would have to
    /// be undone behind the pivot, …
    pub fn build(self) -> Result<Choreography, Error> {
        let Self { map, mut faults } = self;
        faults.extend(faults::of(&map));
        if faults.is_empty() {
            return Ok(Choreography(Arc::new(map)));
        }
        Err(Error::faults(&map.definition(), faults))
    }
}
