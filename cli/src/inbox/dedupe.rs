//! `tailrace inbox dedupe`.

use std::fmt::Write as _;

use clap::{Args, ValueEnum};
use tailrace_idempotency::inbox;

use super::Hand;
use crate::answer::Answer;
use crate::database::Database;
use crate::error::Error;

#[derive(Args)]
pub(crate) struct Dedupe {
    #[command(flatten)]
    database: Database,
    /// The consumer, by the name of its group
    #[arg(long)]
    consumer: String,
    /// How it knows messages from now on
    #[arg(long)]
    by: Way,
    #[command(flatten)]
    hand: Hand,
}

#[derive(Clone, Copy, ValueEnum)]
enum Way {
    /// By a row with the id of each message
    Ids,
    /// By the sequence that the relay gives them
    Position,
}

impl Dedupe {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let Dedupe { consumer, by, hand, .. } = &self;
        let mut connection = self.database.connect().await?;
        let (to, named) = match by {
            Way::Ids => (tailrace_idempotency::Dedupe::ProcessedMessages, "ids"),
            Way::Position => (tailrace_idempotency::Dedupe::Position, "position"),
        };
        let before = if hand.yes {
            inbox::set_dedupe(&mut connection, consumer, to, &hand.by()).await?
        } else {
            inbox::plan_dedupe(&mut connection, consumer).await?
        };
        let mut text = String::new();
        for (topic, way) in &before.topics {
            let how = if way == named { "begins anew, by" } else { "changes to" };
            // A string takes any text.
            let _ =
                writeln!(text, "{consumer}: topic {topic} is known by {way}, and {how} {named}");
        }
        Ok(hand.answer(text))
    }
}
