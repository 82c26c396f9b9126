//! `tailrace saga timeline`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use clap::Args;
use tailrace_saga::operate::{self, Moment};
use tailrace_saga::story;
use tailrace_saga::{Entry, Happening, Operation, SagaId};

use super::words::{json, why};
use super::{connect, no_such, saga_id};
use crate::answer::Answer;
use crate::database::Database;
use crate::error::{Error, Kind};

#[derive(Args)]
pub(crate) struct Timeline {
    #[command(flatten)]
    database: Database,
    /// The saga
    #[arg(value_parser = saga_id)]
    saga: SagaId,
    /// Tell its messages, as an observer has kept them, and between them what the journal has that no message tells of;
    /// with --json its messages alone
    #[arg(long)]
    messages: bool,
    /// Draw its messages as a sequence diagram in Mermaid
    #[arg(long, conflicts_with = "json")]
    sequence: bool,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

impl Timeline {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let mut connection = connect(&self.database).await?;
        if !self.messages && !self.sequence {
            let moments = operate::journal(&mut connection, self.saga).await?;
            if !moments.is_empty() {
                return Ok(if self.json {
                    told(self.saga, &moments)
                } else {
                    text(self.saga, &moments)
                }
                .into());
            }
        }
        // A saga without an orchestrator has no other story.
        let story = story::timeline(&mut connection, self.saga).await?;
        if story.entries().is_empty() {
            return Err(self.nothing());
        }
        Ok(if self.sequence {
            story.sequence()
        } else if self.json {
            let messages = story.entries().iter().map(story::Entry::to_json).collect::<Vec<_>>();
            json(&serde_json::json!({ "saga": self.saga.to_string(), "messages": messages }))
        } else {
            story.text()
        }
        .into())
    }

    fn nothing(&self) -> Error {
        if self.messages || self.sequence {
            let text = format!("no message of saga {} is kept here", self.saga);
            return Error::new(Kind::Refused, text)
                .mended_by("give the database of an observer (story::Observer), or leave out --messages and --sequence");
        }
        no_such(self.saga)
    }
}

fn told(saga: SagaId, moments: &[Moment]) -> String {
    let moments: Vec<serde_json::Value> = moments.iter().map(Moment::to_json).collect();
    json(&serde_json::json!({ "saga": saga.to_string(), "journal": moments }))
}

fn text(saga: SagaId, moments: &[Moment]) -> String {
    let first = moments.iter().flat_map(|moment| &moment.entries).map(|entry| entry.at).min();
    let first = first.unwrap_or(SystemTime::UNIX_EPOCH);
    let mut text = format!("saga {saga}, from {} on\n", humantime::format_rfc3339_seconds(first));
    // What is passed over is what was asked for last; nothing is done again once it is undone.
    let mut undone = BTreeSet::new();
    for entry in moments.iter().flat_map(|moment| &moment.entries) {
        if let Happening::Asked { operation: Operation::Compensation, .. } = &entry.what {
            undone.insert(entry.step.as_deref());
        }
        let after = entry.at.duration_since(first).unwrap_or(Duration::ZERO);
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{:>12.3} s  {}",
            after.as_secs_f64(),
            line(entry, undone.contains(&entry.step.as_deref()))
        );
    }
    text
}

fn line(entry: &Entry, is_undone: bool) -> String {
    let step = entry.step.as_deref().unwrap_or_default();
    let undo = |operation: &Operation| match operation {
        Operation::Compensation => "undo ",
        Operation::Action => "",
    };
    let said = |verdict: &tailrace_saga::Verdict| match verdict {
        tailrace_saga::Verdict::Applied => String::new(),
        other => format!(", which changes nothing ({})", word(other)),
    };
    match &entry.what {
        Happening::Started => "it begins".to_owned(),
        Happening::Asked { operation, epoch, attempt } => {
            format!("asks: {}{step} (epoch {epoch}, attempt {attempt})", undo(operation))
        }
        Happening::Answered { operation, epoch, answer, verdict } => {
            let (undo, verdict) = (undo(operation), said(verdict));
            format!("answer: {undo}{step} is {} (epoch {epoch}){verdict}", answer.as_str())
        }
        Happening::TimedOut { attempt } => format!("no answer: {step} (attempt {attempt})"),
        Happening::Failed { attempt, error } => {
            format!("fails: {step} (attempt {attempt}): {error}")
        }
        Happening::Skipped if is_undone => format!("leaves {step} as it is, not undone"),
        Happening::Skipped => format!("goes on without {step}"),
        Happening::Stuck { trouble } => format!("waits for a person: {step}: {}", why(trouble)),
        Happening::SignalKept { signal } => format!("signal {signal} is kept"),
        Happening::SignalTaken { signal } => format!("signal {signal} is taken by {step}"),
        Happening::SignalRefused { signal, verdict } => format!("signal {signal}{}", said(verdict)),
        Happening::Operator { by, verb, verdict } => {
            let of = verb.step().map(|step| format!(" {step}")).unwrap_or_default();
            format!("{by} wants: {}{of}{}", verb.as_str(), said(verdict))
        }
        Happening::LockWanted { key } => format!("stands in line: the lock {step} of {key}"),
        Happening::LockHeld { key } => format!("has the lock {step} of {key}"),
        Happening::LockLeft { key } => format!("does not want the lock {step} of {key} any more"),
        Happening::LockExpired => format!("holds the lock {step} for longer than was meant"),
        Happening::Unlocked => format!("goes on without the lock {step}"),
        Happening::PartAsked { operation, epoch } => {
            format!("its whole asks: {}itself (epoch {epoch})", undo(operation))
        }
        Happening::Compensating { cause } => format!("it is undone: {}", word(cause)),
        Happening::TooLate { cause } => format!("too late to undo it: {}", word(cause)),
        Happening::Completed => "it has completed".to_owned(),
        Happening::Compensated => "it is undone".to_owned(),
        Happening::Aborted => "it has ended as it was".to_owned(),
        Happening::Migrated { from, to } => format!("goes on as {to}, before {from}"),
        other => word(other),
    }
}

/// As it stands in the journal.
fn word(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    let text = |name: &str| value.get(name).and_then(|value| value.as_str()).map(str::to_owned);
    let because = text("because").map(|because| match text("step") {
        Some(step) => format!("{step} {}", because.replace('_', " ")),
        None => because.replace('_', " "),
    });
    because
        .or_else(|| value.as_str().map(|text| text.replace('_', " ")))
        .unwrap_or_else(|| value.to_string())
}
