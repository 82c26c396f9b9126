//! `tailrace inbox retry`, `discard` and `edit`.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use sqlx::PgConnection;
use tailrace_idempotency::inbox::{self, Entry, Place, RETRIES_MAX, State};

use super::list::json;
use super::words::bytes_of;
use super::{Chosen, Hand};
use crate::answer::Answer;
use crate::database::Database;
use crate::error::{Error, Kind};

/// No payload is larger: Kafka's own bound is far below.
const PAYLOAD_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[derive(Args)]
pub(crate) struct Retry {
    #[command(flatten)]
    which: Which,
    /// At most so many in a second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Retry also what was retried by hand three times already, and a call that may be being made
    #[arg(long)]
    force: bool,
}

impl Retry {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let mut connection = self.which.database.connect().await?;
        let retries_max = if self.force { u32::MAX } else { RETRIES_MAX };
        let by = self.which.hand.by();
        let mut pace = tokio::time::interval(Duration::from_secs(1) / self.rate);
        let mut done = Vec::new();
        // Those behind another one of their key follow it by themselves.
        let (entries, more) = self
            .which
            .entries(&mut connection, &[State::Waiting, State::Stuck, State::Dead])
            .await?;
        for entry in &entries {
            let outcome = if self.which.hand.yes {
                pace.tick().await;
                inbox::retry(&mut connection, entry, retries_max, &by).await
            } else {
                inbox::plan_retry(entry, retries_max)
            };
            done.push(Step::of(entry, outcome.map(|retry| retry.to_string()))?);
        }
        self.which.answer(done, more)
    }
}

#[derive(Args)]
pub(crate) struct Discard {
    #[command(flatten)]
    which: Which,
    /// Give up also a message whose call may be being made
    #[arg(long)]
    force: bool,
}

impl Discard {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let mut connection = self.which.database.connect().await?;
        let by = self.which.hand.by();
        let mut done = Vec::new();
        let states = [State::Queued, State::Waiting, State::Stuck, State::Dead];
        let (entries, more) = self.which.entries(&mut connection, &states).await?;
        for entry in &entries {
            let outcome = match (self.which.hand.yes, self.force) {
                (true, true) => inbox::force_discard(&mut connection, entry, &by).await,
                (true, false) => inbox::discard(&mut connection, entry, &by).await,
                (false, true) => Ok(()),
                (false, false) => inbox::plan_discard(entry),
            };
            let what = match entry.place {
                Place::Dead(_) => "is deleted",
                Place::Parked { .. } => "is given up, and becomes a dead letter",
            };
            done.push(Step::of(entry, outcome.map(|()| what.to_owned()))?);
        }
        self.which.answer(done, more)
    }
}

/// The messages of a change.
#[derive(Args)]
struct Which {
    #[command(flatten)]
    database: Database,
    /// The messages, as `list` shows them; or choose them by what they have in common
    messages: Vec<Place>,
    #[command(flatten)]
    chosen: Chosen,
    /// Of what is chosen, at most so many, the oldest first
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    #[command(flatten)]
    hand: Hand,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

impl Which {
    /// The messages, and how many more were chosen than are taken.
    async fn entries(
        &self,
        connection: &mut PgConnection,
        states: &[State],
    ) -> Result<(Vec<Entry>, u64), Error> {
        let fault = |text: &'static str| {
            Err(Error::new(Kind::Settings, text)
                .mended_by("name messages as `tailrace inbox list` shows them, or choose them, as by --consumer"))
        };
        if self.messages.is_empty() == self.chosen.says_nothing() {
            return match self.messages.is_empty() {
                true => fault("no message is named or chosen"),
                false => fault("messages are both named and chosen"),
            };
        }
        let mut entries = Vec::new();
        for place in &self.messages {
            entries.push(inbox::get(connection, place).await?);
        }
        if !self.messages.is_empty() {
            return Ok((entries, 0));
        }
        let mut more = 0;
        let filter = self.chosen.filter();
        // Never beside others: what is being called is to be meant.
        let calling = (self.chosen.state == Some(State::Calling)).then_some(&State::Calling);
        let of = states.iter().chain(calling);
        let of = of.filter(|state| self.chosen.state.is_none_or(|only| only == **state));
        for state in of {
            let filter = filter.clone().state(*state);
            let room = self.limit - u32::try_from(entries.len()).unwrap_or(self.limit);
            let found = inbox::list(connection, &filter, room).await?;
            more += inbox::count(connection, &filter).await? - found.len() as u64;
            entries.extend(found);
        }
        Ok((entries, more))
    }

    fn answer(self, steps: Vec<Step>, more: u64) -> Result<Answer, Error> {
        let refused = steps.iter().filter(|step| step.refused).count();
        // One message that was named: its refusal is the answer.
        if self.messages.len() == 1 && refused == 1 {
            let text = steps.into_iter().next().map(|step| step.what).unwrap_or_default();
            let (text, mend) = text.split_once("; ").unwrap_or((&text, ""));
            return Err(Error::new(Kind::Refused, text.to_owned()).mended_by(mend.to_owned()));
        }
        let code = if refused > 0 { Error::new(Kind::Refused, "").exit_code() } else { 0 };
        if self.json {
            let text = json(&Steps { dry_run: !self.hand.yes, more, steps });
            let answer = self.hand.answer(String::new());
            return Ok(Answer { text, code: code.max(answer.code) });
        }
        let mut text = String::new();
        for step in &steps {
            let word = if step.refused { "refused  " } else { "" };
            let _ = writeln!(text, "{word}{}  {}", step.message, step.what);
        }
        let _ = writeln!(text, "{} messages, {refused} of them refused", steps.len());
        if more > 0 {
            let _ = writeln!(text, "{more} more were chosen: run it again, or raise --limit");
        }
        let answer = self.hand.answer(text);
        Ok(Answer { code: code.max(answer.code), ..answer })
    }
}

#[derive(Serialize)]
struct Steps {
    dry_run: bool,
    /// Chosen, but beyond the limit.
    more: u64,
    steps: Vec<Step>,
}

#[derive(Serialize)]
struct Step {
    message: String,
    refused: bool,
    what: String,
}

impl Step {
    /// A refusal of one message holds up no other; any other error ends the command.
    fn of(
        entry: &Entry,
        outcome: Result<String, tailrace_idempotency::Error>,
    ) -> Result<Self, Error> {
        let message = entry.place.to_string();
        match outcome {
            Ok(what) => Ok(Step { message, refused: false, what }),
            Err(error) if error.kind() == tailrace_idempotency::Kind::Conflict => {
                Ok(Step { message, refused: true, what: error.to_string() })
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[derive(Args)]
pub(crate) struct Edit {
    #[command(flatten)]
    database: Database,
    /// The message, as `list` shows it
    message: Place,
    /// The file with the new payload; - is standard input
    #[arg(long)]
    payload: PathBuf,
    #[command(flatten)]
    hand: Hand,
}

impl Edit {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let payload = self.read()?;
        let mut connection = self.database.connect().await?;
        let entry = inbox::get(&mut connection, &self.message).await?;
        if self.hand.yes {
            inbox::edit(&mut connection, &entry, &payload, &self.hand.by()).await?;
        }
        let before = entry
            .payload
            .as_ref()
            .map_or_else(|| "none".to_owned(), |payload| bytes_of(payload.len() as u64));
        let after = bytes_of(payload.len() as u64);
        let text = format!("{}  payload of {before} becomes one of {after}\n", entry.place);
        Ok(self.hand.answer(text))
    }

    fn read(&self) -> Result<Vec<u8>, Error> {
        let mut payload = Vec::new();
        let read = if self.payload.as_os_str() == "-" {
            std::io::stdin().lock().take(PAYLOAD_BYTES_MAX + 1).read_to_end(&mut payload)
        } else {
            std::fs::File::open(&self.payload)
                .and_then(|file| file.take(PAYLOAD_BYTES_MAX + 1).read_to_end(&mut payload))
        };
        read.map_err(|error| {
            let text = format!("the payload can not be read from {}", self.payload.display());
            Error::new(Kind::Settings, text).mended_by("check the file").caused_by(error)
        })?;
        if payload.len() as u64 > PAYLOAD_BYTES_MAX {
            return Err(Error::new(Kind::Settings, "the payload has over 64 MB")
                .mended_by("give the file of one message"));
        }
        Ok(payload)
    }
}
