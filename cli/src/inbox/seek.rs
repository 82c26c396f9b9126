//! `tailrace inbox seek`.

use clap::Args;
use tailrace_idempotency::inbox::{self, To};

use super::Hand;
use crate::answer::Answer;
use crate::database::Database;
use crate::error::Error;

#[derive(Args)]
pub(crate) struct Seek {
    #[command(flatten)]
    database: Database,
    /// The consumer, by the name of its group
    #[arg(long)]
    consumer: String,
    /// The topic
    #[arg(long)]
    topic: String,
    /// The partition
    #[arg(long)]
    partition: i32,
    /// An offset, or `start`: where the consumer begins by its own configuration, as without progress
    #[arg(long, value_parser = to)]
    to: To,
    #[command(flatten)]
    hand: Hand,
}

fn to(text: &str) -> Result<To, String> {
    match text.parse() {
        Ok(offset) if offset >= 0 => Ok(To::Offset(offset)),
        _ if text == "start" => Ok(To::Start),
        _ => Err("an offset or the word start; `kafka-get-offsets.sh` tells offsets of a time"
            .to_owned()),
    }
}

impl Seek {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let Seek { consumer, topic, partition, to, hand, .. } = &self;
        let mut connection = self.database.connect().await?;
        let sought = if hand.yes {
            inbox::seek(&mut connection, consumer, topic, *partition, *to, &hand.by()).await?
        } else {
            inbox::plan_seek(&mut connection, consumer, topic, *partition).await?
        };
        let from: Vec<String> = sought
            .from
            .iter()
            .map(|offset| offset.map_or_else(|| "none".to_owned(), |offset| offset.to_string()))
            .collect();
        let text = format!(
            "{consumer}: topic {topic} partition {partition} goes on at {to}, and stood at offset {}\n",
            from.join(", ")
        );
        Ok(hand.answer(text))
    }
}
