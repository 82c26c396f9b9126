//! What an orchestrator does without a message: the start of a saga, its own steps, its turning round, its end.

use std::collections::BTreeSet;
use std::time::SystemTime;

use sqlx::PgConnection;

use super::Entry;
use crate::correlation::{Answer, Operation, SagaId};
use crate::error::{Error, Kind};
use crate::instance::Cause;
use crate::operate;
use crate::transition::{Entry as Noted, Happening, Verdict};

/// One thing that no message tells of, from the journal of the orchestrator.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inner {
    /// When, by the orchestrator's clock.
    pub at: SystemTime,
    /// What: `begins`, `does`, `takes`, `has the lock`, `goes on without`, `waits for a person`, `turns round` or `ends`.
    pub what: &'static str,
    /// With which step, where it is about one.
    pub step: Option<String>,
    /// Whether that is done or undone.
    pub operation: Operation,
    /// How it has ended, or why.
    pub outcome: String,
}

/// Behind how many messages something stands.
pub(super) type Place = usize;

/// The journal, where it is in this database and may be read.
pub(super) async fn journal(conn: &mut PgConnection, saga: SagaId) -> Result<Vec<Noted>, Error> {
    let may_read: bool =
        sqlx::query_scalar("SELECT has_table_privilege('tailrace.saga_journal', 'SELECT')")
            .fetch_one(&mut *conn)
            .await
            .map_err(|error| Error::database("the story of a saga cannot be read", error))?;
    if !may_read {
        return Ok(Vec::new());
    }
    let moments = match operate::journal(conn, saga).await {
        Ok(moments) => moments,
        // A newer release has written it; the messages are told all the same.
        Err(error) if error.kind() == Kind::Schema => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(moments.into_iter().flat_map(|moment| moment.entries).collect())
}

/// What of a journal no message tells, each with its place among them. Clocks say nothing here: the journal tells which
/// messages come before what.
pub(super) fn inner(journal: &[Noted], messages: &[Entry]) -> Vec<(Place, Inner)> {
    let told: BTreeSet<(&str, Operation)> =
        messages.iter().map(|entry| (&*entry.step, entry.operation)).collect();
    let mut seen = vec![false; messages.len()];
    let mut place = 0;
    let mut inner = Vec::new();
    for noted in journal {
        let step = noted.step.as_deref().unwrap_or_default();
        let message = match &noted.what {
            Happening::Asked { operation, .. } => Some((*operation, None)),
            Happening::Answered { operation, answer, .. } => Some((*operation, Some(*answer))),
            _ => None,
        };
        match message.filter(|(operation, _)| told.contains(&(step, *operation))) {
            Some((operation, outcome)) => {
                let fits = |(at, entry): &(usize, &Entry)| {
                    let of = (&*entry.step, entry.operation, entry.outcome);
                    of == (step, operation, outcome) && seen.get(*at) == Some(&false)
                };
                if let Some((at, _)) = messages.iter().enumerate().find(fits) {
                    place = place.max(at + 1);
                    if let Some(seen) = seen.get_mut(at) {
                        *seen = true;
                    }
                }
            }
            None => inner.extend(of(noted).map(|own| (place, own))),
        }
    }
    inner
}

fn of(noted: &Noted) -> Option<Inner> {
    let mut operation = Operation::Action;
    let (what, outcome) = match &noted.what {
        Happening::Started => ("begins", String::new()),
        Happening::Answered { operation: of, answer, verdict: Verdict::Applied, .. } => {
            operation = *of;
            ("does", answer.as_str().to_owned())
        }
        Happening::SignalTaken { signal } => ("takes", signal.to_string()),
        Happening::LockHeld { .. } => ("has the lock", Answer::Done.as_str().to_owned()),
        Happening::Failed { .. } => ("fails", "failed".to_owned()),
        Happening::Skipped => ("goes on without", "skipped".to_owned()),
        Happening::Stuck { .. } => ("waits for a person", "stuck".to_owned()),
        Happening::Compensating { cause } => ("turns round", because(cause)),
        Happening::Completed => ("ends", "completed".to_owned()),
        Happening::Compensated => ("ends", "compensated".to_owned()),
        Happening::Aborted => ("ends", "aborted".to_owned()),
        _ => return None,
    };
    let step = noted.step.as_deref().map(str::to_owned);
    Some(Inner { at: noted.at, what, step, operation, outcome })
}

/// As it stands in the journal, without what it quotes.
fn because(cause: &Cause) -> String {
    let value = serde_json::to_value(cause).unwrap_or_default();
    let text = |name: &str| value.get(name).and_then(|value| value.as_str());
    let because = text("because").or(value.as_str()).unwrap_or_default().replace('_', " ");
    match text("step") {
        Some(step) => format!("{step} {because}"),
        None => because,
    }
}
