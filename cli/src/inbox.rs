//! `tailrace inbox …`: what consumers have set aside, where they stand, and how long they remember.

use clap::{Args, Subcommand};
use tailrace_idempotency::inbox::{By, Filter, State};
use tailrace_idempotency::schema;

use crate::answer::Answer;
use crate::database::Database;
use crate::error::{Error, Kind};

mod change;
mod check;
mod dedupe;
mod forget;
mod list;
mod maintain;
mod seek;
mod words;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Brings the tables of consumers into a database, in one transaction
    Install(Install),
    /// Makes the partitions of the next days and drops claims that are older than the horizon
    ///
    /// For a timer, or with --every for as long as it runs; from as many places at once as you like.
    Maintain(maintain::Maintain),
    /// Looks whether maintenance runs: partitions ahead, and none long overdue
    Check(check::Check),
    /// Lists parked messages and dead letters, oldest first
    List(list::List),
    /// Shows one message, and what was done to it by hand
    Show(list::Show),
    /// Has messages tried again: the first one of a parked key at once, a dead letter in its place
    ///
    /// A dead letter has let later messages of its key pass: it is applied after those that were applied meanwhile.
    Retry(change::Retry),
    /// Gives messages up: a parked one becomes a dead letter and its key goes on, a dead letter is deleted
    Discard(change::Discard),
    /// Gives a stuck message or a dead letter another payload, from a file or standard input
    Edit(change::Edit),
    /// Has a stopped consumer go on at another offset of a partition
    ///
    /// What was claimed stays claimed: going back repeats no effect within the horizon. The offset of a time is told by
    /// Kafka: `kafka-get-offsets.sh --topic TOPIC --time MILLISECONDS`.
    Seek(seek::Seek),
    /// Has a stopped consumer know messages that come again in another way, or begin anew with it
    ///
    /// The way on from what halts a consumer that knows them by their position: a relay's new incarnation, another number
    /// of partitions, a changed configuration. Progress stays as it is, and what lies below it counts as applied.
    Dedupe(dedupe::Dedupe),
    /// Deletes dead letters that are older than an age
    Prune(forget::Prune),
    /// Erases what is stored of a key's messages: dead letters, parked payloads, payloads in the audit
    Erase(forget::Erase),
}

/// Runs a command.
pub(crate) async fn run(command: Command) -> Result<Answer, Error> {
    match command {
        Command::Install(install) => install.run().await,
        Command::Maintain(maintain) => maintain.run().await,
        Command::Check(check) => check.run().await,
        Command::List(list) => list.run().await,
        Command::Show(show) => show.run().await,
        Command::Retry(retry) => retry.run().await,
        Command::Discard(discard) => discard.run().await,
        Command::Edit(edit) => edit.run().await,
        Command::Seek(seek) => seek.run().await,
        Command::Dedupe(dedupe) => dedupe.run().await,
        Command::Prune(prune) => prune.run().await,
        Command::Erase(erase) => erase.run().await,
    }
}

#[derive(Args)]
pub(crate) struct Install {
    #[command(flatten)]
    database: Database,
}

impl Install {
    async fn run(self) -> Result<Answer, Error> {
        let mut connection = self.database.connect().await?;
        // Only for what is told: installing looks again, under its lock.
        let was_there = schema::check(&mut connection).await.is_ok();
        schema::install(&mut connection).await.map_err(|error| {
            let error = Error::from(error);
            if error.kind() != Kind::Permission {
                return error;
            }
            error.mended_by(
                "run it by a role that may create in the database and owns schema \"tailrace\", \
                 or the files of idempotency/migrations by your migration tool",
            )
        })?;
        let text = if was_there { "everything is there already\n" } else { "installed\n" };
        Ok(text.to_owned().into())
    }
}

/// Which messages are meant; what is not said does not matter.
#[derive(Args)]
pub(crate) struct Chosen {
    /// Of this consumer, by the name of its group
    #[arg(long)]
    consumer: Option<String>,
    /// Of this topic
    #[arg(long)]
    topic: Option<String>,
    /// Of this partition
    #[arg(long)]
    partition: Option<i32>,
    /// Of this key
    #[arg(long)]
    key: Option<String>,
    /// Of this key, in hexadecimal digits
    #[arg(long, conflicts_with = "key", value_parser = words::bytes)]
    key_hex: Option<Bytes>,
    /// Of this message type
    #[arg(long = "type")]
    message_type: Option<String>,
    /// Set aside for this reason: failed, rejected, undecodable, …
    #[arg(long)]
    reason: Option<String>,
    /// In this state: queued, waiting, calling, stuck, discard, dead
    #[arg(long, value_parser = words::state)]
    state: Option<State>,
    /// Set aside longer ago than this: 90m, 2d
    #[arg(long)]
    older_than: Option<humantime::Duration>,
    /// Set aside no longer ago than this
    #[arg(long)]
    newer_than: Option<humantime::Duration>,
}

/// Bytes, which clap would take for many arguments if they were a vector.
#[derive(Clone)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Chosen {
    fn filter(&self) -> Filter {
        let mut filter = Filter::default();
        if let Some(name) = &self.consumer {
            filter = filter.consumer(name);
        }
        if let Some(name) = &self.topic {
            filter = filter.topic(name);
        }
        if let Some(number) = self.partition {
            filter = filter.partition(number);
        }
        if let Some(key) = &self.key {
            filter = filter.key(key.as_bytes());
        }
        if let Some(Bytes(key)) = &self.key_hex {
            filter = filter.key(key.clone());
        }
        if let Some(name) = &self.message_type {
            filter = filter.message_type(name);
        }
        if let Some(code) = &self.reason {
            filter = filter.reason(code);
        }
        if let Some(state) = self.state {
            filter = filter.state(state);
        }
        if let Some(age) = self.older_than {
            filter = filter.older_than(age.into());
        }
        if let Some(age) = self.newer_than {
            filter = filter.newer_than(age.into());
        }
        filter
    }

    fn says_nothing(&self) -> bool {
        self.filter() == Filter::default()
    }
}

/// Who changes something, and whether it is done at all.
#[derive(Args)]
pub(crate) struct Hand {
    /// Do it; without it is told what would be done, and the exit code is 8
    #[arg(long)]
    yes: bool,
    /// Who does it, for the audit
    #[arg(long, env = "USER", default_value = "unknown")]
    actor: String,
    /// Why, for the audit
    #[arg(long)]
    note: Option<String>,
}

impl Hand {
    fn by(&self) -> By {
        let by = By::new(&self.actor);
        match &self.note {
            Some(note) => by.note(note),
            None => by,
        }
    }

    /// The answer of a change, which was made or only told.
    fn answer(&self, text: String) -> Answer {
        if self.yes {
            return text.into();
        }
        let text = text + "nothing was changed: --yes does it\n";
        Answer { text, code: crate::answer::ONLY_TOLD }
    }
}
