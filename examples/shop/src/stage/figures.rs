//! What the processes count, added up over their lives: who dies begins at zero again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use tailrace_cdc_relay::metrics::{LAG, LAG_BYTES, MESSAGES};
use tailrace_idempotency::metrics::{DEAD_LETTERED, DUPLICATES, PARKED_KEYS, PROCESSED};
use tokio::time::interval;

use crate::provider_client::BREAKER_STATE;
use crate::stage::Stage;

/// A half-open breaker stays so for a few calls only, and is to be seen.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Who does not answer by then is not waited for, and said to be away.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Counters, which begin at zero with each process.
const COUNTED: [&str; 4] = [DUPLICATES, PROCESSED, DEAD_LETTERED, MESSAGES];
/// Gauges, which stand for now.
const SHOWN: [&str; 4] = [PARKED_KEYS, BREAKER_STATE, LAG_BYTES, LAG];

/// Numbers of all processes.
#[derive(Clone, Default)]
pub(crate) struct Figures(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    /// By process and name.
    figures: BTreeMap<(String, &'static str), Figure>,
    /// Who has answered when it was asked last.
    answering: BTreeSet<&'static str>,
}

#[derive(Clone, Copy, Default)]
struct Figure {
    /// Of the lives before.
    before: f64,
    now: f64,
}

/// A number, for the page.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    process: String,
    name: &'static str,
    value: f64,
}

impl Figures {
    /// Asks all processes again and again, as long as the program runs.
    pub(crate) fn watch(&self, stage: &Arc<Stage>) {
        let (figures, stage) = (self.clone(), Arc::downgrade(stage));
        tokio::spawn(async move {
            let mut look = interval(LOOK_EVERY);
            while let Some(stage) = stage.upgrade() {
                figures.look(&stage).await;
                drop(stage);
                look.tick().await;
            }
        });
    }

    pub(crate) async fn look(&self, stage: &Stage) {
        join_all(stage.addresses.iter().map(async |(name, address)| {
            let asking = async {
                let answer = stage.client.get(format!("http://{address}/metrics")).send().await;
                answer.ok()?.text().await.ok()
            };
            let text = tokio::time::timeout(ANSWER_MAX, asking).await.ok().flatten();
            self.read(name, text.as_deref());
        }))
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, process: &'static str, text: Option<&str>) {
        let mut seen = self.lock();
        let Some(text) = text else {
            seen.answering.remove(process);
            return;
        };
        seen.answering.insert(process);
        for name in COUNTED.into_iter().chain(SHOWN) {
            let Some(value) = sum(text, name) else { continue };
            let figure = seen.figures.entry((process.to_owned(), name)).or_default();
            if value < figure.now && COUNTED.contains(&name) {
                figure.before += figure.now;
            }
            figure.now = value;
        }
    }

    /// Whether a process has answered when it was asked last.
    pub(crate) fn answers(&self, process: &str) -> bool {
        self.lock().answering.contains(process)
    }

    /// The sum of a number over all processes and all of their lives.
    pub(crate) fn total(&self, name: &str) -> f64 {
        let seen = self.lock();
        let of_name = seen.figures.iter().filter(|((_, of), _)| *of == name);
        of_name.map(|(_, figure)| figure.before + figure.now).sum()
    }

    pub(crate) fn shown(&self) -> Vec<Shown> {
        let seen = self.lock();
        seen.figures
            .iter()
            .map(|((process, name), figure)| Shown {
                process: process.clone(),
                name,
                value: figure.before + figure.now,
            })
            .collect()
    }
}

/// The sum over all labels of a metric, in the text that Prometheus reads; none where it is not there.
fn sum(text: &str, name: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let is_it = rest.starts_with('{') || rest.starts_with(' ');
        let (_, value) = rest.rsplit_once(' ')?;
        is_it.then(|| value.parse::<f64>().ok())?
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}
