//! Parts of a saga that are small enough to be explored exhaustively.

use std::future::ready;
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use crate::definition::{Closure, Definition, Graph, OnRefused, Step, Work};
use crate::local::LocalRun;

use super::WINDOW_STEPS;

/// Every longest run of consecutive groups with at most [`WINDOW_STEPS`] steps, as a saga of its own. A group that is
/// wider stands alone.
pub(super) fn windows(definition: &Definition) -> Vec<Definition> {
    if definition.steps().len() <= WINDOW_STEPS {
        return vec![definition.clone()];
    }
    let groups = definition.groups();
    let mut windows: Vec<Range<usize>> = Vec::new();
    for (at, first) in groups.iter().enumerate() {
        let mut window = first.clone();
        for next in groups.iter().skip(at + 1) {
            if next.end - window.start > WINDOW_STEPS {
                break;
            }
            window.end = next.end;
        }
        if windows.last().is_none_or(|before| before.end < window.end) {
            windows.push(window);
        }
    }
    windows.into_iter().map(|window| cut(definition, window)).collect()
}

fn cut(definition: &Definition, window: Range<usize>) -> Definition {
    let steps = definition.steps().skip(window.start).take(window.len()).map(bare).collect();
    Definition(Arc::new(Graph {
        identity: definition.identity().clone(),
        data: definition.0.data,
        replies: definition.replies().into(),
        deadline: definition.deadline(),
        upcasters: Vec::new(),
        starts: Vec::new(),
        lock_order: definition.lock_order().to_vec(),
        steps,
    }))
}

/// A step without the user's code, which does not run in an exploration.
pub(super) fn bare(step: &Step) -> Step {
    let work = match &step.work {
        Work::Command { topic, message_type, .. } => Work::Command {
            topic,
            message_type,
            build: Closure(Box::new(|_| Ok((None, Value::Null)))),
        },
        Work::Local { undo, .. } => {
            Work::Local { run: not_run(), undo: undo.as_ref().map(|_| not_run()) }
        }
        Work::Part { definition, .. } => Work::Part {
            definition: definition.clone(),
            build: Closure(Box::new(|_| Ok((None, Value::Null)))),
        },
        Work::Wait { signal_type } => Work::Wait { signal_type },
        Work::Lock { lock, .. } => {
            Work::Lock { lock: *lock, keys: Closure(Box::new(|_| Ok(Vec::new()))) }
        }
    };
    let decides = step.on_refused.is_some();
    Step {
        name: step.name.clone(),
        group: step.group,
        kind: step.kind,
        can_be_refused: step.can_be_refused,
        work,
        timeout: step.timeout,
        on_timeout: step.on_timeout,
        retry: step.retry,
        retry_compensation: step.retry_compensation,
        on_reply: None,
        on_refused: decides.then(|| {
            Closure(Box::new(|data: &Value, _: &Value| Ok((data.clone(), OnRefused::Abort))) as _)
        }),
    }
}

fn not_run() -> Closure<LocalRun> {
    Closure(Box::new(|_, _| Box::pin(ready(Err("it does not run in an exploration".into())))))
}
