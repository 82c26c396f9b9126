//! Which sagas an operator means.

use std::fmt;
use std::time::Duration;

use crate::instance::{Instance, Status, StepStatus};

/// Chooses sagas; what is not said does not matter, but that without a state only those are meant that are not over.
///
/// As text it is what the audit has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub(super) states: Vec<Status>,
    pub(super) definition: Option<String>,
    pub(super) version: Option<u32>,
    pub(super) step: Option<String>,
    pub(super) older_than: Option<Duration>,
    pub(super) newer_than: Option<Duration>,
    pub(super) unchanged_for: Option<Duration>,
}

const UNFINISHED: [Status; 3] = [Status::Running, Status::Compensating, Status::Parked];

/// Where a step is while somebody is to answer or to decide about it.
const UNDER_WAY: [StepStatus; 5] = [
    StepStatus::Acting,
    StepStatus::Delayed,
    StepStatus::Compensating,
    StepStatus::StuckActing,
    StepStatus::StuckCompensating,
];

impl Filter {
    /// In this state, or another one that was said.
    #[must_use]
    pub fn state(mut self, state: Status) -> Self {
        if !self.states.contains(&state) {
            self.states.push(state);
        }
        self
    }

    /// In whatever state.
    #[must_use]
    pub fn any_state(mut self) -> Self {
        self.states = Status::ALL.to_vec();
        self
    }

    /// Of this definition.
    #[must_use]
    pub fn definition(mut self, name: impl Into<String>) -> Self {
        self.definition = Some(name.into());
        self
    }

    /// Of this version.
    #[must_use]
    pub fn version(mut self, version: u32) -> Self {
        self.version = Some(version);
        self
    }

    /// At this step: somebody is to answer, or to decide, about it.
    #[must_use]
    pub fn step(mut self, name: impl Into<String>) -> Self {
        self.step = Some(name.into());
        self
    }

    /// Started longer ago than this.
    #[must_use]
    pub fn older_than(mut self, age: Duration) -> Self {
        self.older_than = Some(age);
        self
    }

    /// Started no longer ago than this.
    #[must_use]
    pub fn newer_than(mut self, age: Duration) -> Self {
        self.newer_than = Some(age);
        self
    }

    /// Not changed for so long.
    #[must_use]
    pub fn unchanged_for(mut self, time: Duration) -> Self {
        self.unchanged_for = Some(time);
        self
    }

    pub(super) fn states(&self) -> &[Status] {
        if self.states.is_empty() { &UNFINISHED } else { &self.states }
    }

    /// The predicate of the narrowest index that has all of these states, and whether it has no other ones. States stand
    /// in the statement itself, since the planner proves nothing of a parameter.
    pub(super) fn source(&self) -> (String, bool) {
        if let [state] = self.states() {
            return (format!("status = '{}'", state.as_str()), true);
        }
        for (of, predicate) in [
            (&[Status::Compensating, Status::Parked][..], "status IN ('compensating', 'parked')"),
            (&UNFINISHED, "status IN ('running', 'compensating', 'parked')"),
            (&[Status::Compensated, Status::Aborted], "status IN ('compensated', 'aborted')"),
        ] {
            if self.states().iter().all(|state| of.contains(state)) {
                return (predicate.to_owned(), of.len() == self.states().len());
            }
        }
        ("true".to_owned(), self.states().len() == Status::ALL.len())
    }

    /// Texts of which a saga at the step has one. It may have one for another reason: see [`is_at`](Self::is_at).
    ///
    /// As texts, since an operator of JSON fails on data with a NUL in it.
    pub(super) fn marks(&self) -> Option<Vec<String>> {
        let name = serde_json::Value::from(self.step.as_deref()?).to_string();
        let mark =
            |status: &StepStatus| format!(r#"{{"name":{name},"status":"{}""#, status.as_str());
        Some(UNDER_WAY.iter().map(mark).collect())
    }

    /// Whether the saga is at the step.
    pub(super) fn is_at(&self, saga: Option<&Instance>) -> bool {
        let Some(step) = &self.step else { return true };
        let state = saga.and_then(|saga| saga.step(step));
        state.is_some_and(|state| UNDER_WAY.contains(&state.status()))
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let states: Vec<&str> = self.states().iter().map(|state| state.as_str()).collect();
        write!(f, "state={}", states.join(","))?;
        let span = |span: Duration| humantime::format_duration(span).to_string().replace(' ', "");
        for (name, value) in [
            ("definition", self.definition.clone()),
            ("version", self.version.map(|version| version.to_string())),
            ("step", self.step.clone()),
            ("older-than", self.older_than.map(span)),
            ("newer-than", self.newer_than.map(span)),
            ("unchanged-for", self.unchanged_for.map(span)),
        ] {
            if let Some(value) = value {
                write!(f, " {name}={value}")?;
            }
        }
        Ok(())
    }
}
