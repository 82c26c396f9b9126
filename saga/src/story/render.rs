//! A timeline for people: as a table and as a diagram.

use std::fmt::Write;

use super::{Entry, Timeline};
use crate::correlation::{Answer, Operation};

pub(super) fn text(timeline: &Timeline) -> String {
    let Some(first) = timeline.entries.first() else {
        return format!("saga {}: nothing is known of it\n", timeline.saga);
    };
    let mut rows = vec![["after", "from", "message", "step", "outcome"].map(str::to_owned)];
    rows.extend(timeline.entries.iter().map(|entry| {
        let after = entry.at.duration_since(first.at).unwrap_or_default();
        [
            format!("{:.3} s", after.as_secs_f64()),
            entry.source.clone(),
            entry.message_type.clone(),
            about(entry),
            entry.outcome.map_or("asked", Answer::as_str).to_owned(),
        ]
    }));
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = format!("saga {} ({})\n", timeline.saga, first.definition);
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

fn about(entry: &Entry) -> String {
    match entry.operation {
        Operation::Action => entry.step.clone(),
        Operation::Compensation => format!("undo {}", entry.step),
    }
}

pub(super) fn sequence(timeline: &Timeline) -> String {
    let mut out = String::from("sequenceDiagram\n");
    let mut sources: Vec<&str> = Vec::new();
    for entry in &timeline.entries {
        if !sources.contains(&&*entry.source) {
            sources.push(&entry.source);
        }
    }
    let place = |entry: &Entry| {
        sources.iter().position(|source| **source == *entry.source).unwrap_or_default()
    };
    for (at, source) in sources.iter().enumerate() {
        let _ = writeln!(out, "    participant s{at} as {source}");
    }
    for entry in &timeline.entries {
        let from = place(entry);
        let mut takers: Vec<usize> = timeline
            .entries
            .iter()
            .filter(|later| later.cause.as_ref() == Some(&entry.message_id))
            .map(place)
            .collect();
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
    out
}
