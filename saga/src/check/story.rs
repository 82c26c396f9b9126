//! What led to a broken promise, as a sequence diagram.

use std::collections::BTreeSet;
use std::fmt;

use crate::correlation::Answer;

use super::Broken;
use super::orchestrator::Stimulus;
use super::world::{Move, Stage, World};

/// The lines of a Mermaid sequence diagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Story {
    lines: Vec<String>,
    moves: usize,
}

impl Story {
    pub(super) fn moves(&self) -> usize {
        self.moves
    }

    /// The moves and the worlds between them, from the first to the one in which the promise is broken.
    pub(super) fn tell(
        stage: &Stage<'_>,
        moves: &[Move],
        worlds: &[World],
        broken: &Broken,
    ) -> Self {
        let mut seen = BTreeSet::new();
        let mut steps = BTreeSet::new();
        let mut lines = Vec::new();
        for (by, pair) in moves.iter().zip(worlds.windows(2)) {
            let [before, after] = pair else { continue };
            lines.push(line(stage, *by, &mut seen, &mut steps));
            for sent in stage.newly_sent(before, after) {
                steps.insert(sent.step);
                let operation = Stage::operation(sent.operation);
                let epoch = sent.epoch;
                lines.push(format!("saga-)s{}: {operation} (epoch {epoch})", sent.step));
            }
            if stage.stands(before) != stage.stands(after) {
                lines.push(format!("Note over saga: {}", stage.stands(after)));
            }
        }
        lines.push(format!("Note over saga: broken: {broken}"));
        let participants =
            steps.iter().map(|at| format!("participant s{at} as {}", stage.name(*at)));
        let mut all = vec!["participant saga".to_owned()];
        all.extend(participants);
        all.extend(lines);
        Self { lines: all, moves: moves.len() }
    }
}

fn line(
    stage: &Stage<'_>,
    by: Move,
    seen: &mut BTreeSet<u8>,
    steps: &mut BTreeSet<usize>,
) -> String {
    let mut again = |number| if seen.insert(number) { "" } else { ", which comes again" };
    let name = |at: usize| stage.name(at);
    match by {
        Move::Participant { command, how } => {
            let message = stage.orchestrator.messages.get(command);
            steps.insert(message.step);
            let operation = Stage::operation(message.operation);
            let (at, epoch, again) = (message.step, message.epoch, again(command));
            format!("Note over s{at}: takes \"{operation} (epoch {epoch})\"{again}: {how}")
        }
        Move::Saga(Stimulus::Reply(reply)) => {
            let message = stage.orchestrator.messages.get(reply);
            steps.insert(message.step);
            let answer = message.answer.map_or("", Answer::as_str);
            let operation = Stage::operation(message.operation);
            let (at, epoch, again) = (message.step, message.epoch, again(reply));
            format!("s{at}--)saga: {operation} (epoch {epoch}): {answer}{again}")
        }
        Move::Saga(Stimulus::Start) => "Note over saga: starts".to_owned(),
        Move::Saga(Stimulus::Tick(at)) => {
            format!("Note over saga: the timer of {} is due", name(at))
        }
        Move::Saga(Stimulus::Deadline) => "Note over saga: its deadline passes".to_owned(),
        Move::Saga(Stimulus::Cancel) => "Note over saga: is cancelled".to_owned(),
        Move::Saga(Stimulus::Signal(at)) => {
            format!("Note over saga: the signal for {} comes", name(at))
        }
        Move::Give(at) => format!("Note over saga: it is its turn to have the lock {}", name(at)),
        Move::Saga(Stimulus::Held(at)) => {
            format!("Note over saga: hears that it has the lock {}", name(at))
        }
        Move::Saga(Stimulus::Expire(at)) => {
            format!("Note over saga: has had the lock {} for too long", name(at))
        }
        Move::Saga(Stimulus::Retry) => "Note over saga: a person asks again".to_owned(),
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "sequenceDiagram")?;
        self.lines.iter().try_for_each(|line| writeln!(f, "    {line}"))
    }
}
