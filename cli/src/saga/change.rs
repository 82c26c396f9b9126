//! `tailrace saga retry`, `skip`, `unlock`, `compensate`, `abort` and `signal`.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use tailrace_saga::operate::{self, BATCH_SAGAS_MAX, Change, Filter, Outcome, Paging};
use tailrace_saga::{SagaId, Status, Verb};
use tokio::time::Instant;

use super::words::json;
use super::{Chosen, Hand, connect, saga_id};
use crate::answer::{Answer, ONLY_TOLD};
use crate::database::Database;
use crate::error::{Error, Kind};

/// Of what is chosen, at most so many where nothing else is said.
const LIMIT: u32 = 1_000;

/// Of more sagas than these the answer has the number alone.
const STEPS_TOLD_MAX: usize = 1_000;

#[derive(Args)]
pub(crate) struct Retry {
    #[command(flatten)]
    which: Which,
}

impl Retry {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let step = self.which.chosen.step.as_deref().map(Into::into);
        self.which.tell(Verb::Retry { step }, &[Status::Parked]).await
    }
}

#[derive(Args)]
pub(crate) struct Skip {
    #[command(flatten)]
    which: Which,
}

impl Skip {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let Some(step) = self.which.chosen.step.as_deref().map(Into::into) else {
            return Err(Error::new(Kind::Settings, "--step is missing").mended_by(
                "name the step that sagas are to go past, as `tailrace saga show` has it",
            ));
        };
        self.which.tell(Verb::Skip { step }, &[Status::Parked]).await
    }
}

#[derive(Args)]
pub(crate) struct Unlock {
    #[command(flatten)]
    which: Which,
}

impl Unlock {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let fault = |text, mend| Err(Error::new(Kind::Settings, text).mended_by(mend));
        let Some(step) = self.which.chosen.step.as_deref().map(Into::into) else {
            return fault(
                "--step is missing",
                "name the step that holds the lock, which is named after it, as `tailrace saga show` has it",
            );
        };
        // Whether it does harm is to be known of each saga.
        if !self.which.names_sagas() {
            return fault("no saga is named", "name the sagas that hold the lock by their ids");
        }
        self.which.tell(Verb::Unlock { step }, &[]).await
    }
}

#[derive(Args)]
pub(crate) struct Compensate {
    #[command(flatten)]
    which: Which,
}

impl Compensate {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        self.which.tell(Verb::Compensate, &[Status::Running, Status::Parked]).await
    }
}

#[derive(Args)]
pub(crate) struct Abort {
    #[command(flatten)]
    which: Which,
}

impl Abort {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        self.which.tell(Verb::Abort, &[]).await
    }
}

#[derive(Args)]
pub(crate) struct Signal {
    #[command(flatten)]
    database: Database,
    /// The saga
    #[arg(value_parser = saga_id)]
    saga: SagaId,
    /// The message type of the signal, as `payment.confirmed.v1`
    name: String,
    /// Its payload, as the event would have it
    #[arg(long, value_name = "JSON", default_value = "null", value_parser = payload)]
    data: Value,
    #[command(flatten)]
    hand: Hand,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

impl Signal {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let Self { database, saga, name, data, hand, json } = self;
        let which = Which {
            database,
            sagas: vec![saga],
            chosen: Chosen::default(),
            limit: None,
            rate: 1,
            hand,
            json,
        };
        let mut connection = connect(&which.database).await?;
        let chosen = which.chosen(&[])?;
        let change = Change::signal(&name, data, which.hand.by(), chosen.to_string());
        which.make(&mut connection, &change, chosen).await
    }
}

/// The text of the error would repeat it.
fn payload(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| {
        format!("it is no JSON (line {}, column {})", error.line(), error.column())
    })
}

/// The sagas of a change.
#[derive(Args)]
pub(crate) struct Which {
    #[command(flatten)]
    pub(super) database: Database,
    /// The sagas, by their ids; or choose them by what they have in common
    #[arg(value_parser = saga_id)]
    sagas: Vec<SagaId>,
    #[command(flatten)]
    pub(super) chosen: Chosen,
    /// Of what is chosen, at most so many, the oldest first [default: 1000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: Option<u32>,
    /// At most so many in a second
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    #[command(flatten)]
    pub(super) hand: Hand,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

impl Which {
    async fn tell(self, verb: Verb, states: &[Status]) -> Result<Answer, Error> {
        if verb.step().is_none() {
            self.must_name_no_step()?;
        }
        let mut connection = connect(&self.database).await?;
        let chosen = self.chosen(states)?;
        let change = Change::verb(verb, self.hand.by(), chosen.to_string());
        self.make(&mut connection, &change, chosen).await
    }

    /// The sagas that are meant, in these states where no other ones are said.
    pub(super) fn chosen(&self, states: &[Status]) -> Result<Sagas, Error> {
        let fault = |text: &'static str| {
            Err(Error::new(Kind::Settings, text).mended_by(
                "name sagas by their ids, or choose them, as by --definition or --state parked",
            ))
        };
        // A step that is named with sagas says what is done to them.
        let only_step = self.chosen.filter() == self.only_step();
        match (self.sagas.is_empty(), self.chosen.says_nothing()) {
            (true, true) => fault("no saga is named or chosen"),
            (false, false) if !only_step => fault("sagas are both named and chosen"),
            (false, _) if self.limit.is_some() => fault("--limit is of sagas that are chosen"),
            (false, _) => Ok(Sagas::Named(self.sagas.iter().copied().collect())),
            (true, false) => {
                let mut filter = self.chosen.filter();
                if self.chosen.states.is_empty() {
                    filter = states.iter().fold(filter, |filter, state| filter.state(*state));
                }
                Ok(Sagas::Chosen {
                    filter,
                    paging: Paging::default(),
                    room: self.limit.unwrap_or(LIMIT),
                })
            }
        }
    }

    /// Beside sagas that are named, a step would seem to say what is done to them.
    pub(super) fn must_name_no_step(&self) -> Result<(), Error> {
        if !self.names_sagas() || self.chosen.step.is_none() {
            return Ok(());
        }
        let text = "--step says nothing here: it is done to whole sagas";
        Err(Error::new(Kind::Settings, text)
            .mended_by("leave it out, or choose sagas by it instead of naming them"))
    }

    pub(super) fn names_sagas(&self) -> bool {
        !self.sagas.is_empty()
    }

    fn only_step(&self) -> Filter {
        match &self.chosen.step {
            Some(step) => Filter::default().step(step),
            None => Filter::default(),
        }
    }

    /// Makes the change in bounded parts, or tells what it would come to.
    pub(super) async fn make(
        self,
        connection: &mut PgConnection,
        change: &Change,
        mut sagas: Sagas,
    ) -> Result<Answer, Error> {
        let bar = bar(self.sagas.len());
        let mut done = Done::default();
        let begun = Instant::now();
        loop {
            let part = sagas.next(connection).await?;
            if part.ids.is_empty() && !part.more {
                break;
            }
            let outcomes = if self.hand.yes {
                change.make(connection, &part.ids).await?
            } else {
                change.plan(connection, &part.ids).await?
            };
            bar.inc(outcomes.len() as u64);
            done.add(outcomes);
            if !part.more {
                break;
            }
            if self.hand.yes {
                let pace = Duration::from_secs(1) / self.rate;
                let count = u32::try_from(done.sagas).unwrap_or(u32::MAX);
                tokio::time::sleep_until(begun + pace.saturating_mul(count)).await;
            }
        }
        bar.finish_and_clear();
        done.more = sagas.has_more(connection).await?;
        self.answer(change, done)
    }

    fn answer(self, change: &Change, done: Done) -> Result<Answer, Error> {
        // One saga that was named: its refusal is the answer.
        if let ([step], [_]) = (done.steps.as_slice(), self.sagas.as_slice())
            && step.refused
        {
            let text = format!("saga {}: {}", step.saga, step.what);
            return Err(Error::new(Kind::Refused, text)
                .mended_by("see how it stands by `tailrace saga show`"));
        }
        let refused = if done.refused > 0 { Error::new(Kind::Refused, "").exit_code() } else { 0 };
        let code = if self.hand.yes { refused } else { refused.max(ONLY_TOLD) };
        if self.json {
            let text = json(&Answered {
                dry_run: !self.hand.yes,
                batch: self.hand.yes.then(|| change.batch().to_string()),
                sagas: done.sagas,
                refused: done.refused,
                more: done.more,
                steps: done.steps,
            });
            return Ok(Answer { text, code });
        }
        let mut text = String::new();
        for step in &done.steps {
            let word = if step.refused { "refused  " } else { "" };
            let _ = writeln!(text, "{word}{}  {}", step.saga, step.what);
        }
        if done.sagas > done.steps.len() as u64 {
            let _ = writeln!(text, "… and {} more", done.sagas - done.steps.len() as u64);
        }
        let _ = writeln!(text, "{} sagas, {} of them refused", done.sagas, done.refused);
        if done.more {
            text += "more were chosen: run it again, or raise --limit\n";
        }
        if !self.hand.yes {
            text += "nothing was changed: --yes does it\n";
        }
        Ok(Answer { text, code })
    }
}

/// Shown where somebody looks at the terminal, and after a moment only.
fn bar(known: usize) -> ProgressBar {
    let bar = if known > 0 { ProgressBar::new(known as u64) } else { ProgressBar::no_length() };
    let style = ProgressStyle::with_template("{spinner} {pos} sagas, {per_sec}, {elapsed}");
    bar.set_style(style.expect("the template is right"));
    bar
}

/// What sagas a change is about, part by part.
pub(super) enum Sagas {
    Named(VecDeque<SagaId>),
    Chosen { filter: Filter, paging: Paging, room: u32 },
}

/// Some of them.
pub(super) struct Part {
    ids: Vec<SagaId>,
    more: bool,
}

impl std::fmt::Display for Sagas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Named(_) => f.write_str("by id"),
            Self::Chosen { filter, .. } => filter.fmt(f),
        }
    }
}

impl Sagas {
    async fn next(&mut self, connection: &mut PgConnection) -> Result<Part, Error> {
        match self {
            Self::Named(ids) => {
                let count = ids.len().min(BATCH_SAGAS_MAX);
                Ok(Part { ids: ids.drain(..count).collect(), more: !ids.is_empty() })
            }
            Self::Chosen { filter, paging, room } => {
                paging.max = (*room).min(u32::try_from(BATCH_SAGAS_MAX).unwrap_or(u32::MAX));
                let page = operate::list(connection, filter, paging).await?;
                let ids: Vec<SagaId> = page.sagas.iter().map(|saga| saga.id).collect();
                *room -= u32::try_from(ids.len()).unwrap_or(*room);
                // Where there is nothing more this is the end: it is not begun anew.
                paging.after = page.next.or(paging.after);
                Ok(Part { ids, more: page.next.is_some() && *room > 0 })
            }
        }
    }

    /// Whether there are more behind the limit.
    async fn has_more(&self, connection: &mut PgConnection) -> Result<bool, Error> {
        match self {
            Self::Chosen { filter, paging, room: 0 } => {
                let page = operate::list(connection, filter, &Paging { max: 1, ..*paging }).await?;
                Ok(!page.sagas.is_empty())
            }
            _ => Ok(false),
        }
    }
}

#[derive(Default)]
struct Done {
    sagas: u64,
    refused: u64,
    more: bool,
    steps: Vec<Step>,
}

impl Done {
    fn add(&mut self, outcomes: Vec<Outcome>) {
        for outcome in outcomes {
            let (refused, what) = match outcome.planned {
                Ok(what) => (false, what),
                Err(why) => (true, why),
            };
            self.sagas += 1;
            self.refused += u64::from(refused);
            if self.steps.len() < STEPS_TOLD_MAX {
                self.steps.push(Step { saga: outcome.saga.to_string(), refused, what });
            }
        }
    }
}

#[derive(Serialize)]
struct Answered {
    dry_run: bool,
    /// The number of the change in the audit.
    batch: Option<String>,
    sagas: u64,
    refused: u64,
    /// Chosen, but beyond the limit.
    more: bool,
    /// The first thousand.
    steps: Vec<Step>,
}

#[derive(Serialize)]
struct Step {
    saga: String,
    refused: bool,
    what: String,
}
