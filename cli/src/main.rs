//! The operator's command line: `tailrace outbox …`, `tailrace inbox …`, `tailrace saga …` and `tailrace http-key …`.

mod answer;
mod database;
mod error;
mod http_key;
mod inbox;
mod outbox;
mod saga;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tokio::time::timeout;

use crate::answer::Answer;
use crate::error::{Error, Kind};

/// No command takes longer. What it did before stays done, and the next run goes on from there.
const COMMAND_MAX: Duration = Duration::from_secs(600);

/// Operates Tailrace: its tables in Postgres, and what is in them
#[derive(Parser)]
#[command(name = "tailrace", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The exit codes of `cdc-relay` where both have them.
const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 a check found a fault, 2 arguments, settings or tables that are missing, \
3 permission, 5 refused for another reason, by Postgres or because of what is stored, \
6 Postgres is out of reach or busy, 8 nothing was changed for want of --yes";

#[derive(Subcommand)]
enum Command {
    /// Functions and tables of the outbox, and the partitions of its journal
    #[command(subcommand, after_help = EXIT_CODES)]
    Outbox(outbox::Command),
    /// What consumers have set aside, where they stand, and how long they remember
    ///
    /// Commands that change something tell first what they would change, and do it with --yes.
    #[command(subcommand, after_help = EXIT_CODES)]
    Inbox(inbox::Command),
    /// Sagas: which there are, what happened to them, and what a person wants of them
    ///
    /// Commands that change something tell first what they would change, and do it with --yes. An engine does what is
    /// wanted, within a second where one runs.
    #[command(subcommand, after_help = EXIT_CODES)]
    Saga(saga::Command),
    /// What is kept for HTTP requests with an Idempotency-Key
    #[command(subcommand, after_help = EXIT_CODES)]
    HttpKey(http_key::Command),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Inbox(inbox::Command::Maintain(maintain)) if maintain.is_endless() => {
            Box::pin(maintain.repeat()).await
        }
        command => timeout(COMMAND_MAX, run(command)).await.unwrap_or_else(|_| Err(too_long())),
    };
    match done.and_then(|answer| answer::print(&answer.text).map(|()| answer.code)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            error.print();
            ExitCode::from(error.exit_code())
        }
    }
}

async fn run(command: Command) -> Result<Answer, Error> {
    match command {
        Command::Outbox(command) => Box::pin(outbox::run(command)).await.map(Answer::from),
        Command::Inbox(command) => Box::pin(inbox::run(command)).await,
        Command::Saga(command) => Box::pin(saga::run(command)).await,
        Command::HttpKey(command) => http_key::run(command).await,
    }
}

fn too_long() -> Error {
    let text =
        format!("the command did not end within {}", humantime::format_duration(COMMAND_MAX));
    Error::new(Kind::Unavailable, text).mended_by("see what Postgres waits for, and run it again")
}
