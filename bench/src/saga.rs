//! What sagas cost: the transitions of an engine, a saga from its order to its end, a store that is full.

mod by_hand;
mod end_to_end;
mod full_store;
mod process;
mod shop;
mod template;
mod transitions;

use std::error::Error;

use clap::{Args, ValueEnum};
use tailrace_stack::{Needs, Stack};

use crate::figure::Figure;

pub(crate) use process::{EngineArguments, ParticipantArguments, orchestrate, participate};

type Failure = Box<dyn Error + Send + Sync>;

/// What and how much is measured.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Parts to measure; all when not given
    #[arg(long, value_enum)]
    part: Vec<Part>,
    #[command(flatten)]
    transitions: transitions::Options,
    #[command(flatten)]
    end_to_end: end_to_end::Options,
    #[command(flatten)]
    full_store: full_store::Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Transitions per second of an engine, beside the same rows by hand
    Transitions,
    /// From an order to the end of its saga, through Kafka
    EndToEnd,
    /// What finished sagas cost the others
    FullStore,
}

/// Measures the parts, one after another.
pub(crate) async fn measure(options: Options) -> Result<Vec<Figure>, Failure> {
    let is_wanted = |part| options.part.is_empty() || options.part.contains(&part);
    let stack = Stack::start(Needs::BOTH.measured()).await?;
    let mut figures = Vec::new();
    if is_wanted(Part::Transitions) {
        figures.extend(transitions::measure(&stack, &options.transitions).await?);
    }
    if is_wanted(Part::EndToEnd) {
        figures.extend(Box::pin(end_to_end::measure(&stack, &options.end_to_end)).await?);
    }
    if is_wanted(Part::FullStore) {
        figures.extend(full_store::measure(&stack, &options.full_store).await?);
    }
    Ok(figures)
}
