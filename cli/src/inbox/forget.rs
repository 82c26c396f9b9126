//! `tailrace inbox prune` and `erase`.

use clap::Args;
use tailrace_idempotency::inbox;

use super::{Bytes, Chosen, Hand, words};
use crate::answer::Answer;
use crate::database::Database;
use crate::error::{Error, Kind};

#[derive(Args)]
pub(crate) struct Prune {
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    hand: Hand,
}

impl Prune {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let Some(age) = self.chosen.older_than else {
            return Err(Error::new(Kind::Settings, "--older-than is missing")
                .mended_by("say how long dead letters are kept: --older-than 90d"));
        };
        let mut connection = self.database.connect().await?;
        let filter = self.chosen.filter();
        let count = if self.hand.yes {
            inbox::prune(&mut connection, &filter, age.into(), &self.hand.by()).await?
        } else {
            inbox::plan_prune(&mut connection, &filter, age.into()).await?
        };
        Ok(self.hand.answer(format!("{count} dead letters are deleted\n")))
    }
}

#[derive(Args)]
pub(crate) struct Erase {
    #[command(flatten)]
    database: Database,
    /// The consumer, by the name of its group
    #[arg(long)]
    consumer: String,
    /// The key
    #[arg(long, required_unless_present = "key_hex")]
    key: Option<String>,
    /// The key, in hexadecimal digits
    #[arg(long, conflicts_with = "key", value_parser = words::bytes)]
    key_hex: Option<Bytes>,
    #[command(flatten)]
    hand: Hand,
}

impl Erase {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let key = match (self.key, self.key_hex) {
            (Some(key), _) => key.into_bytes(),
            (None, key) => key.map(|Bytes(key)| key).unwrap_or_default(),
        };
        let mut connection = self.database.connect().await?;
        let erased = if self.hand.yes {
            inbox::erase(&mut connection, &self.consumer, &key, &self.hand.by()).await?
        } else {
            inbox::plan_erase(&mut connection, &self.consumer, &key).await?
        };
        let mut text = format!(
            "{} dead letters, {} parked payloads and {} rows of the audit are erased\n",
            erased.dead_letters, erased.parked, erased.audited
        );
        if erased.parked > 0 {
            text += "the consumer makes dead letters of the parked ones, with the key: erase them then\n";
        }
        Ok(self.hand.answer(text))
    }
}
