//! A saga without an orchestrator: services react to each other's events.
//!
//! What no service sees alone is written down in one place: a [`Choreography`] says which event leads to which step in
//! which service, what compensates it, where the point of no return is, which events end the saga and by when it has
//! ended. It is checked as a whole when it is [built](Declaration::build), and from it each
//! [`Service`] gets its subscriptions and the barrier around its handlers.
//!
//! ```
//! use std::time::Duration;
//! use tailrace_saga::Choreography;
//!
//! # fn declared() -> Result<Choreography, tailrace_saga::Error> {
//! Choreography::define("create-order", 1)
//!     .starts("orders", "place-order")
//!         .emits("order.placed.v1")
//!         .compensated_by("reject-order")
//!     .step("customers", "reserve-credit", "order.placed.v1")
//!         .emits("credit.reserved.v1")
//!         .refuses("credit.refused.v1")
//!         .compensated_by("release-credit")
//!     .step("payments", "capture-payment", "credit.reserved.v1")
//!         .emits("payment.captured.v1")
//!         .refuses("payment.refused.v1")
//!         .pivot("payment.called-off.v1")
//!     .step("orders", "approve-order", "payment.captured.v1")
//!         .emits("order.approved.v1")
//!         .retriable()
//!     .ends_with("order.approved.v1")
//!     .ends_within(Duration::from_secs(30), "order.expired.v1")
//!     .build()
//! # }
//! # declared().unwrap();
//! ```
//!
//! # How it is undone
//! A step that cannot be done emits an event that [refuses](Declaration::refuses). Every service that may have done
//! something for the saga by then is subscribed to that event, and runs the compensation of what it has done: once, and
//! not at all where the failure overtook what led to the step, which then never runs. What has no compensation, and what
//! is done behind the pivot, stays.
//!
//! # By when
//! The service that starts the saga keeps its deadline in its own database. When it has passed, it emits the event of
//! the expiry. That one undoes the saga where it has no pivot. Where it has one, only the service of the pivot knows
//! whether it is too late: it blocks the pivot and emits the event that calls the saga off, or does nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::correlation::{Epoch, Operation};

mod clock;
mod decide;
mod declaration;
pub mod diagram;
mod dispatch;
#[cfg(test)]
mod explore;
mod faults;
pub mod metrics;
mod outward;
mod react;
mod reaction;
mod savepoint;
mod service;

pub use clock::{Overdue, Standing, Starter, forget};
pub use decide::Status;
pub use declaration::Declaration;
pub use metrics::{Counters, Report};
pub use outward::{PrepareReaction, RecordReaction};
pub use reaction::{React, Reaction};
pub use service::Service;

/// Which event leads to which step in which service, and what becomes of it when one of them fails.
///
/// Every service has the same one. Made by [`Choreography::define`]; one that exists has no fault.
#[derive(Debug, Clone)]
pub struct Choreography(Arc<Map>);

/// What is declared.
#[derive(Debug, Clone)]
pub(crate) struct Map {
    pub(crate) name: Box<str>,
    pub(crate) version: u32,
    /// In the order of their declaration; one of them starts the saga.
    pub(crate) steps: Vec<Step>,
    /// Of the services that do not publish on the topic of their name.
    pub(crate) topics: BTreeMap<Box<str>, Box<str>>,
    /// All of them have to come.
    pub(crate) ends: BTreeSet<Box<str>>,
    pub(crate) expiry: Option<Expiry>,
}

/// One step in one service.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) name: Box<str>,
    pub(crate) service: Box<str>,
    /// The event that leads to it; none for the one that starts the saga.
    pub(crate) on: Option<Box<str>>,
    pub(crate) emits: Vec<Box<str>>,
    pub(crate) refuses: Vec<Box<str>>,
    pub(crate) kind: Option<Kind>,
}

/// What becomes of a step when the saga fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is undone by the compensation of this name, which may emit an event.
    Compensated { by: Box<str>, undone: Option<Box<str>> },
    /// There is nothing to undo.
    NoEffect,
    /// It is the point of no return; blocked by the expiry, it emits this event.
    Pivot { called_off: Box<str> },
    /// It is behind the point of no return.
    Retriable,
}

/// By when the saga has ended.
#[derive(Debug, Clone)]
pub(crate) struct Expiry {
    pub(crate) within: Duration,
    pub(crate) event: Box<str>,
}

/// What a service has to do about an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Role {
    /// It leads to the step with this index.
    Act(usize),
    /// The step with this index is to be undone.
    Undo(usize),
    /// The step with this index is the pivot, and has to begin now or never.
    CallOff(usize),
    /// It is one of those that end the saga; the first service notes it.
    Hear,
    /// The saga has failed; the first service notes it.
    Fail,
}

/// The epoch of an action and of its compensation: a choreographed step changes its direction at most once.
pub(crate) fn epoch(operation: Operation) -> Epoch {
    match operation {
        Operation::Action => Epoch::FIRST,
        Operation::Compensation => Epoch::FIRST.next(),
    }
}

impl Choreography {
    /// Begins to declare one. The version tells stories of older and newer ones apart; services take the events of all
    /// versions of a name.
    pub fn define(name: &str, version: u32) -> Declaration {
        Declaration::new(name, version)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its version.
    pub fn version(&self) -> u32 {
        self.0.version
    }

    /// All services that take part, in the order of their names.
    pub fn services(&self) -> BTreeSet<&str> {
        self.0.steps.iter().map(|step| &*step.service).collect()
    }

    /// The topic on which a service publishes its events. Default: the service's name.
    pub fn topic_of<'c>(&'c self, service: &'c str) -> &'c str {
        self.0.topic_of(service)
    }

    /// Every topic that has to exist before it runs: one for each service that emits an event.
    pub fn topics(&self) -> BTreeSet<&str> {
        self.events().into_values().map(|service| self.topic_of(service)).collect()
    }

    /// The events that a service takes, and the service that emits each: those that lead to its steps, and those that
    /// undo them.
    pub fn subscriptions(&self, service: &str) -> BTreeMap<&str, &str> {
        let taken = self.0.events().into_iter();
        taken.filter(|(event, _)| !self.0.roles(service, event).is_empty()).collect()
    }

    /// The failures that a service must hear of, since they undo what it has done.
    pub fn failures(&self, service: &str) -> BTreeSet<&str> {
        let undoes = |event: &&str| {
            self.0.roles(service, event).iter().any(|role| matches!(role, Role::Undo(_)))
        };
        self.0.events().into_keys().filter(undoes).collect()
    }

    /// The service with this name, which is given its handlers and runs them.
    ///
    /// A name that is not declared is a fault of [`Service::run`].
    pub fn service<S: Send + Sync + 'static>(&self, service: &str) -> Service<S> {
        Service::new(self.clone(), service)
    }

    /// All events, and the service that emits each.
    pub fn events(&self) -> BTreeMap<&str, &str> {
        self.0.events()
    }

    pub(crate) fn map(&self) -> &Map {
        &self.0
    }
}

impl Map {
    /// As records name it.
    pub(crate) fn definition(&self) -> Box<str> {
        format!("{}/{}", self.name, self.version).into()
    }

    /// Whether a record that names its definition so belongs to a version of this one.
    pub(crate) fn knows(&self, definition: &str) -> bool {
        definition.split_once('/').is_some_and(|(name, _)| *name == *self.name)
    }

    pub(crate) fn topic_of<'m>(&'m self, service: &'m str) -> &'m str {
        self.topics.get(service).map_or(service, |topic| topic)
    }

    /// The step that starts the saga, with its index.
    pub(crate) fn start(&self) -> Option<(usize, &Step)> {
        self.steps.iter().enumerate().find(|(_, step)| step.on.is_none())
    }

    pub(crate) fn pivot(&self) -> Option<(usize, &Step)> {
        let is_pivot = |step: &Step| matches!(step.kind, Some(Kind::Pivot { .. }));
        self.steps.iter().enumerate().find(|(_, step)| is_pivot(step))
    }

    /// Every event with the service that emits it.
    pub(crate) fn events(&self) -> BTreeMap<&str, &str> {
        let mut events: BTreeMap<&str, &str> = self
            .steps
            .iter()
            .flat_map(|step| step.events().map(|event| (event, &*step.service)))
            .collect();
        if let (Some(expiry), Some((_, start))) = (&self.expiry, self.start()) {
            events.insert(&expiry.event, &start.service);
        }
        events
    }

    /// All that a service does about an event: its steps in their order, then the end.
    pub(crate) fn roles(&self, service: &str, event: &str) -> Vec<Role> {
        let undone = self.undone_by(event);
        let expires = self.expiry.as_ref().is_some_and(|expiry| *expiry.event == *event);
        let mut roles = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            if *step.service != *service {
                continue;
            }
            if step.on.as_deref() == Some(event) {
                roles.push(Role::Act(index));
            }
            if undone.as_ref().is_some_and(|undone| undone.contains(&index)) {
                roles.push(Role::Undo(index));
            }
            if expires && matches!(step.kind, Some(Kind::Pivot { .. })) {
                roles.push(Role::CallOff(index));
            }
        }
        if self.start().is_some_and(|(_, start)| *start.service == *service) {
            if self.ends.contains(event) {
                roles.push(Role::Hear);
            } else if undone.is_some() {
                roles.push(Role::Fail);
            }
        }
        roles
    }

    /// The steps that a failure undoes; `None` where the event is no failure.
    fn undone_by(&self, event: &str) -> Option<BTreeSet<usize>> {
        let fails = |step: &&Step| step.failures().any(|failure| failure == event);
        let reached = match self.steps.iter().find(fails) {
            Some(failed) => {
                let mut reached = self.reach(Some(&failed.name));
                reached.retain(|index| {
                    self.steps.get(*index).is_some_and(|step| step.name != failed.name)
                });
                reached
            }
            // With a pivot the expiry is no failure yet: the service of the pivot makes one of it, or not.
            None if self.pivot().is_none()
                && self.expiry.as_ref().is_some_and(|expiry| *expiry.event == *event) =>
            {
                self.reach(None)
            }
            None => return None,
        };
        Some(reached.into_iter().filter(|index| self.is_compensated(*index)).collect())
    }

    fn is_compensated(&self, index: usize) -> bool {
        let kind = self.steps.get(index).and_then(|step| step.kind.as_ref());
        matches!(kind, Some(Kind::Compensated { .. }))
    }

    /// The steps that can have been done where the step `without` was not.
    pub(crate) fn reach(&self, without: Option<&str>) -> BTreeSet<usize> {
        self.reach_from(self.start().map(|(index, _)| index), without)
    }

    /// The steps that this one leads to, and itself.
    pub(crate) fn reach_from(&self, from: Option<usize>, without: Option<&str>) -> BTreeSet<usize> {
        let mut reached: BTreeSet<usize> = from.into_iter().collect();
        let mut open: Vec<usize> = reached.iter().copied().collect();
        while let Some(step) = open.pop().and_then(|index| self.steps.get(index)) {
            if without == Some(&*step.name) {
                continue;
            }
            for (next, later) in self.steps.iter().enumerate() {
                let follows = later.on.as_ref().is_some_and(|on| step.emits.contains(on));
                if follows && reached.insert(next) {
                    open.push(next);
                }
            }
        }
        reached
    }
}

impl Step {
    /// The events that say that it will never be done.
    pub(crate) fn failures(&self) -> impl Iterator<Item = &str> {
        let called_off = match &self.kind {
            Some(Kind::Pivot { called_off }) => Some(&**called_off),
            _ => None,
        };
        self.refuses.iter().map(|event| &**event).chain(called_off)
    }

    /// All events that it emits in whatever case.
    pub(crate) fn events(&self) -> impl Iterator<Item = &str> {
        let undone = match &self.kind {
            Some(Kind::Compensated { undone, .. }) => undone.as_deref(),
            _ => None,
        };
        self.emits.iter().map(|event| &**event).chain(self.failures()).chain(undone)
    }

    /// The name of its compensation.
    pub(crate) fn compensation(&self) -> Option<&str> {
        match &self.kind {
            Some(Kind::Compensated { by, .. }) => Some(by),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
