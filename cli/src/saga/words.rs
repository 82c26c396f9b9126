//! Values as people write and read them.

use std::time::Duration;

use serde::Serialize;
use tailrace_saga::{Instance, Status, StepState, StepStatus, Trouble};

use super::State;

/// Longer texts end here in a table.
const CELL_MAX: usize = 60;

pub(super) fn state(text: &str) -> Result<State, String> {
    if text == "all" {
        return Ok(State::All);
    }
    Status::named(text).map(State::One).ok_or_else(|| {
        "one of running, compensating, parked, completed, compensated, aborted, all".to_owned()
    })
}

/// The two largest units.
pub(super) fn age(age: Duration) -> String {
    let whole = Duration::from_secs(age.as_secs());
    let text = humantime::format_duration(whole).to_string();
    text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// As much as fits into a cell.
pub(super) fn short(text: &str) -> String {
    let mut chars = text.chars();
    let head: String = chars.by_ref().take(CELL_MAX).collect();
    if chars.next().is_some() { head + "…" } else { head }
}

/// What the saga waits for, and for whom.
pub(super) fn at(saga: &Instance) -> String {
    let open = saga.steps().iter().filter(|step| step.operation().is_some());
    let steps: Vec<String> = open.map(step).collect();
    if steps.is_empty() { "-".to_owned() } else { steps.join(", ") }
}

fn step(step: &StepState) -> String {
    let name = step.name();
    match (step.status(), step.trouble()) {
        (StepStatus::Compensating, None) => format!("undo {name}"),
        (StepStatus::Compensating | StepStatus::StuckCompensating, Some(trouble)) => {
            format!("undo {name}: {}", why(trouble))
        }
        (StepStatus::Acting | StepStatus::StuckActing, Some(trouble)) => {
            format!("{name}: {}", why(trouble))
        }
        _ => name.to_owned(),
    }
}

/// Why a person has to decide.
pub(super) fn why(trouble: &Trouble) -> String {
    match trouble {
        Trouble::NoAnswer { attempts } => format!("no answer to {attempts} attempts"),
        Trouble::Failed { error } => format!("it fails: {error}"),
        Trouble::Refused => "refused, which it must not be".to_owned(),
        Trouble::Blocked => "its participant says that it was undone before".to_owned(),
        Trouble::LockExpired => "its lock is held for longer than was meant".to_owned(),
        Trouble::Unreadable { what } => what.clone(),
    }
}

pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("names, texts and numbers are valid JSON") + "\n"
}
