//! What the processes count, added up over their lives: who dies begins at zero again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tailrace_idempotency::metrics::{DEAD_LETTERED, DUPLICATES, PARKED_KEYS, PROCESSED};
use tokio::time::interval;

use crate::provider_client::BREAKER_STATE;
use crate::stage::Stage;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Counters, which begin at zero with each process.
const COUNTED: [&str; 3] = [DUPLICATES, PROCESSED, DEAD_LETTERED];
/// Gauges, which stand for now.
const SHOWN: [&str; 3] = [PARKED_KEYS, BREAKER_STATE, "cdc_relay_lag_bytes"];

/// Numbers of all processes, by process and name.
#[derive(Clone, Default)]
pub(crate) struct Figures(Arc<Mutex<BTreeMap<(String, &'static str), Figure>>>);

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
        for (name, address) in &stage.addresses {
            let url = format!("http://{address}/metrics");
            let Ok(answer) = stage.client.get(url).send().await else { continue };
            let Ok(text) = answer.text().await else { continue };
            self.read(name, &text);
        }
    }

    fn read(&self, process: &str, text: &str) {
        let mut figures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for name in COUNTED.into_iter().chain(SHOWN) {
            let Some(value) = sum(text, name) else { continue };
            let figure = figures.entry((process.to_owned(), name)).or_default();
            if value < figure.now && COUNTED.contains(&name) {
                figure.before += figure.now;
            }
            figure.now = value;
        }
    }

    /// The sum of a number over all processes and all of their lives.
    pub(crate) fn total(&self, name: &str) -> f64 {
        let figures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_name = figures.iter().filter(|((_, of), _)| *of == name);
        of_name.map(|(_, figure)| figure.before + figure.now).sum()
    }

    pub(crate) fn shown(&self) -> Vec<Shown> {
        let figures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        figures
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
