//! `tailrace saga list` and `show`.

use std::fmt::Write as _;
use std::time::SystemTime;

use clap::Args;
use comfy_table::{Table, presets};
use serde_json::Value;
use tailrace_saga::operate::{self, Listed, PAGE_MAX, Paging, Shown};
use tailrace_saga::{SagaId, StepState};

use super::words::{age, at, json, short, why};
use super::{Chosen, connect, no_such, saga_id};
use crate::answer::Answer;
use crate::database::Database;
use crate::error::Error;

#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    chosen: Chosen,
    /// Show at most so many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Go on behind this saga, as the last line of the page before says
    #[arg(long, value_name = "ID", value_parser = saga_id)]
    after: Option<SagaId>,
    /// Newest first
    #[arg(long)]
    newest: bool,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let mut connection = connect(&self.database).await?;
        let filter = self.chosen.filter();
        let mut paging = Paging { after: self.after, newest_first: self.newest, max: PAGE_MAX };
        let mut sagas: Vec<Listed> = Vec::new();
        loop {
            let room = self.limit - u32::try_from(sagas.len()).unwrap_or(self.limit);
            paging.max = room.min(PAGE_MAX);
            let page = operate::list(&mut connection, &filter, &paging).await?;
            sagas.extend(page.sagas);
            paging.after = page.next;
            if page.next.is_none() || sagas.len() >= self.limit as usize {
                break;
            }
        }
        let next = paging.after.map(|id| id.to_string());
        if self.json {
            let sagas: Vec<Value> = sagas.iter().map(|saga| saga.to_json(false)).collect();
            return Ok(json(&serde_json::json!({ "sagas": sagas, "next": next })).into());
        }
        if sagas.is_empty() {
            return Ok("there is no saga that fits\n".to_owned().into());
        }
        let mut text = table(&sagas);
        let _ = match next {
            None => writeln!(text, "{} sagas", sagas.len()),
            Some(id) => writeln!(text, "{} sagas; more behind --after {id}", sagas.len()),
        };
        Ok(text.into())
    }
}

fn table(sagas: &[Listed]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header([
        "saga",
        "definition",
        "state",
        "at",
        "age",
        "unchanged",
    ]);
    for saga in sagas {
        let at = saga.instance.as_ref().map_or_else(|| "written by a newer release".to_owned(), at);
        table.add_row([
            saga.id.to_string(),
            saga.definition.to_string(),
            saga.status.map_or("?", |status| status.as_str()).to_owned(),
            short(&at),
            age(saga.age),
            age(saga.unchanged_for),
        ]);
    }
    format!("{table}\n")
}

#[derive(Args)]
pub(crate) struct Show {
    #[command(flatten)]
    database: Database,
    /// The saga
    #[arg(value_parser = saga_id)]
    saga: SagaId,
    /// Show its data too, and what its participants were asked for
    #[arg(long)]
    data: bool,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let mut connection = connect(&self.database).await?;
        let shown = operate::show(&mut connection, self.saga).await?;
        let shown = shown.ok_or_else(|| no_such(self.saga))?;
        if self.json {
            return Ok(json(&shown.to_json(self.data)).into());
        }
        let mut text = properties(&shown);
        if let Some(saga) = &shown.saga.instance {
            text += &steps(saga.steps());
        }
        for input in &shown.inputs {
            let (what, reason, age) = (&input.what, &input.reason, age(input.age));
            let _ = writeln!(
                text,
                "to be told   {what} ({reason}, for {age}, tried {} times)",
                input.attempts
            );
        }
        if let Some(ordered) = &shown.ordered {
            let (to, actor, age) = (&ordered.to, &ordered.actor, age(ordered.age));
            let state = match &ordered.refused {
                Some(refused) => format!("refused: {refused}"),
                None => "waits for an engine".to_owned(),
            };
            let _ = writeln!(text, "migration    to {to}, wanted by {actor} {age} ago, {state}");
        }
        for done in &shown.audit {
            let step = done.step.as_ref().map(|step| format!(" {step}")).unwrap_or_default();
            let note = done.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
            let _ = writeln!(
                text,
                "wanted       {} {}{step} by {}{note}",
                done.at, done.action, done.actor
            );
        }
        if let Some(saga) = shown.saga.instance.as_ref().filter(|_| self.data) {
            let _ = writeln!(text, "\n{:#}", saga.data());
        }
        Ok(text.into())
    }
}

fn properties(shown: &Shown) -> String {
    let saga = &shown.saga;
    let instance = saga.instance.as_ref();
    let none = || "-".to_owned();
    let cause =
        instance.and_then(|saga| saga.cause()).map(|cause| match serde_json::to_value(cause) {
            Ok(value) => {
                let text = |name| value.get(name).and_then(Value::as_str).unwrap_or_default();
                format!("{} {}", text("because"), text("step")).trim_end().to_owned()
            }
            Err(_) => "-".to_owned(),
        });
    let deadline = instance.and_then(|saga| saga.deadline()).map(when);
    let whole = instance.and_then(|saga| saga.parent());
    let engine = if shown.has_engine { "lives" } else { "none lives that can run it" };
    let lines = [
        ("saga", saga.id.to_string()),
        ("definition", format!("{} ({})", saga.definition, saga.definition.hash)),
        ("engine", engine.to_owned()),
        ("state", saga.status.map_or("?", |status| status.as_str()).to_owned()),
        ("undone for", cause.unwrap_or_else(none)),
        ("age", age(saga.age)),
        ("unchanged", age(saga.unchanged_for)),
        ("deadline", deadline.unwrap_or_else(none)),
        (
            "part of",
            whole.map_or_else(none, |of| {
                format!("{} at {}", of.correlation.saga, of.correlation.step)
            }),
        ),
        ("revision", saga.revision.to_string()),
    ];
    lines.iter().map(|(name, value)| format!("{name:<11}  {value}\n")).collect()
}

fn steps(steps: &[StepState]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_header(["step", "state", "epoch", "attempts", "next", "trouble"]);
    for step in steps {
        table.add_row([
            step.name().to_owned(),
            step.status().as_str().replace('_', " "),
            step.epoch().to_string(),
            step.attempts().to_string(),
            step.due().map_or_else(|| "-".to_owned(), when),
            step.trouble().map_or_else(|| "-".to_owned(), |trouble| short(&why(trouble))),
        ]);
    }
    format!("{table}\n")
}

/// As seen from now.
fn when(at: SystemTime) -> String {
    let now = SystemTime::now();
    match at.duration_since(now) {
        Ok(left) => format!("in {}", age(left)),
        Err(_) => format!("{} ago", age(now.duration_since(at).unwrap_or_default())),
    }
}
