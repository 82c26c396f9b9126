//! A timeline for people: as a table and as a diagram.

use std::fmt::Write;

use super::{Entry, Line, Timeline};
use crate::correlation::{Answer, Operation};

pub(super) fn text(timeline: &Timeline) -> String {
    let lines = timeline.lines();
    let began = match lines.first() {
        Some(Line::Inner(inner)) => inner.at,
        Some(Line::Message(entry)) => entry.at,
        None => return format!("saga {}: nothing is known of it\n", timeline.saga),
    };
    let orchestrator = orchestrator(timeline);
    let mut rows = vec![["after", "from", "message", "step", "outcome"].map(str::to_owned)];
    rows.extend(lines.iter().map(|line| {
        let (at, from, message, about, outcome) = match line {
            Line::Message(entry) => (
                entry.at,
                entry.source.clone(),
                entry.message_type.clone(),
                about(&entry.step, entry.operation),
                entry.outcome.map_or("asked", Answer::as_str).to_owned(),
            ),
            Line::Inner(inner) => (
                inner.at,
                orchestrator.to_owned(),
                format!("({})", inner.what),
                about(inner.step.as_deref().unwrap_or_default(), inner.operation),
                inner.outcome.clone(),
            ),
        };
        let after = at.duration_since(began).unwrap_or_default();
        [format!("{:.3} s", after.as_secs_f64()), from, message, about, outcome]
    }));
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let definition = timeline.entries.first().map(|first| format!(" ({})", first.definition));
    let mut out = format!("saga {}{}\n", timeline.saga, definition.unwrap_or_default());
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string does not fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn about(step: &str, operation: Operation) -> String {
    match operation {
        Operation::Compensation if !step.is_empty() => format!("undo {step}"),
        _ => step.to_owned(),
    }
}

/// Who has sent the first command: nothing else in the story is not a message of its own.
fn orchestrator(timeline: &Timeline) -> &str {
    let asked = timeline.entries.iter().find(|entry| entry.outcome.is_none());
    asked.map_or("(orchestrator)", |entry| &entry.source)
}

pub(super) fn sequence(timeline: &Timeline) -> String {
    let mut out = String::from("sequenceDiagram\n");
    let lines = timeline.lines();
    let orchestrator = orchestrator(timeline);
    let from = |line: &Line<'_>| match line {
        Line::Message(entry) => entry.source.clone(),
        Line::Inner(_) => orchestrator.to_owned(),
    };
    let mut sources: Vec<String> = Vec::new();
    for source in lines.iter().map(from) {
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    let place = |of: &str| sources.iter().position(|source| *source == of).unwrap_or_default();
    for (at, source) in sources.iter().enumerate() {
        let _ = writeln!(out, "    participant s{at} as {source}");
    }
    for line in &lines {
        match line {
            Line::Message(entry) => message(&mut out, timeline, entry, place),
            Line::Inner(inner) => {
                let at = place(orchestrator);
                let about = about(inner.step.as_deref().unwrap_or_default(), inner.operation);
                let told = [inner.what, &about, &inner.outcome];
                let told: Vec<&str> = told.into_iter().filter(|text| !text.is_empty()).collect();
                let _ = writeln!(out, "    Note over s{at}: {}", told.join(" "));
            }
        }
    }
    out
}

fn message(out: &mut String, timeline: &Timeline, entry: &Entry, place: impl Fn(&str) -> usize) {
    let from = place(&entry.source);
    let caused = |later: &&Entry| later.cause.as_ref() == Some(&entry.message_id);
    let takers = timeline.entries.iter().filter(caused);
    let mut takers: Vec<usize> = takers.map(|later| place(&later.source)).collect();
    takers.sort_unstable();
    takers.dedup();
    let said = match entry.outcome {
        None | Some(Answer::Done) => entry.message_type.clone(),
        Some(other) => format!("{} ({})", entry.message_type, other.as_str()),
    };
    if takers.is_empty() {
        let _ = writeln!(out, "    Note over s{from}: {said}");
    }
    for to in takers {
        let _ = writeln!(out, "    s{from}-)s{to}: {said}");
    }
}
