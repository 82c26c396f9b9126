//! What sagas that are over cost those who look at the store, and those that are under way.

use std::error::Error;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use sqlx::PgConnection;
use tailrace_saga::SagaId;
use tailrace_saga::operate::{self, Filter, Paging};
use tailrace_stack::Stack;
use uuid::{NoContext, Timestamp, Uuid};

use super::transitions::{Backlog, Orchestrator};
use crate::figure::{Figure, quantile};

type Failure = Box<dyn Error + Send + Sync>;

/// Looks of each kind.
const LOOKS: usize = 200;

/// Sagas whose ids are made at once.
const AT_ONCE: u64 = 50_000;

/// Between the starts of two finished sagas.
const APART: Duration = Duration::from_millis(500);

/// How much is measured.
#[derive(Args, Debug)]
#[group(skip)]
pub(crate) struct Options {
    /// Finished sagas in the store, for each turn
    #[arg(long, default_values_t = [10_000, 1_000_000])]
    finished: Vec<u64>,
    /// Sagas that are driven to their end in the full store
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    driven: u64,
}

/// What is found with so many finished sagas.
struct Found {
    list_ms: f64,
    show_ms: f64,
    transitions: f64,
}

pub(crate) async fn measure(stack: &Stack, options: &Options) -> Result<Vec<Figure>, Failure> {
    let backlog = Backlog::new(stack, options.driven).await?;
    let mut all: Vec<(u64, Found)> = Vec::new();
    for finished in &options.finished {
        let place = Orchestrator::new(stack).await?;
        let ids = fill(&backlog, &place, *finished).await?;
        let mut conn = place.pool.acquire().await?;
        let list_ms = list(&mut conn).await?;
        let show_ms = show(&mut conn, &ids).await?;
        drop(conn);
        let transitions = backlog.drain(&place, &ProgressBar::hidden()).await?;
        all.push((*finished, Found { list_ms, show_ms, transitions }));
    }
    let Some((_, least)) = all.first() else { return Err("nothing is to be measured".into()) };
    let figures = all.iter().flat_map(|(finished, found)| {
        let figure = |metric, unit, value: f64, reference_value: f64| Figure {
            scenario: "saga",
            variant: format!("full-store/{finished}"),
            metric,
            unit,
            value,
            reference: "the first store",
            reference_value,
            ratio: value / reference_value,
            runs: 1,
            min: value / reference_value,
            max: value / reference_value,
        };
        [
            figure("list_ms", "ms", found.list_ms, least.list_ms),
            figure("show_ms", "ms", found.show_ms, least.show_ms),
            figure("transitions_per_second", "/s", found.transitions, least.transitions),
        ]
    });
    Ok(figures.collect())
}

/// Fills the store with sagas that are over, the youngest a moment old; answers with some of them.
async fn fill(
    backlog: &Backlog,
    place: &Orchestrator,
    finished: u64,
) -> Result<Vec<Uuid>, Failure> {
    let bar = ProgressBar::new(finished).with_message("finished sagas");
    bar.set_style(ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {eta}")?);
    let mut conn = place.pool.acquire().await?;
    sqlx::raw_sql("set synchronous_commit = off").execute(&mut *conn).await?;
    let now = Timestamp::now(NoContext).to_unix().0;
    let (mut some, last) = (Vec::new(), backlog.template.stages.len() - 1);
    for from in (0..finished).step_by(usize::try_from(AT_ONCE)?) {
        let ids: Vec<Uuid> = (from..finished.min(from + AT_ONCE))
            .map(|at| {
                let ago = APART.mul_f64((finished - at) as f64).as_secs();
                Uuid::new_v7(Timestamp::from_unix(NoContext, now.saturating_sub(ago), 0))
            })
            .collect();
        some.extend(ids.iter().step_by(usize::try_from(finished)? / LOOKS));
        backlog.template.fill(&mut conn, &ids, last, &bar).await?;
    }
    sqlx::raw_sql("set synchronous_commit = on").execute(&mut *conn).await?;
    // As autovacuum would in time.
    sqlx::raw_sql("vacuum analyze").execute(&mut *conn).await?;
    bar.finish_and_clear();
    Ok(some)
}

/// The newest sagas, and those that are not over, as an operator has them listed.
async fn list(conn: &mut PgConnection) -> Result<f64, Failure> {
    let pages = [
        (
            Filter::default().any_state(),
            Paging { newest_first: true, max: 50, ..Paging::default() },
        ),
        (Filter::default(), Paging { max: 50, ..Paging::default() }),
    ];
    let mut times = Vec::new();
    for _ in 0..LOOKS {
        let began = Instant::now();
        for (filter, paging) in &pages {
            operate::list(&mut *conn, filter, paging).await?;
        }
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(quantile(&times, 0.5))
}

/// A saga with its journal, likewise.
async fn show(conn: &mut PgConnection, ids: &[Uuid]) -> Result<f64, Failure> {
    let mut times = Vec::new();
    for id in ids {
        let (began, id) = (Instant::now(), SagaId::from_uuid(*id));
        let found = operate::show(&mut *conn, id).await?;
        let moments = operate::journal(&mut *conn, id).await?;
        if found.is_none() || moments.is_empty() {
            return Err("a finished saga is not there".into());
        }
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(quantile(&times, 0.5))
}
