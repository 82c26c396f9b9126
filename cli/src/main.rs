//! The operator's command line: `tailrace outbox …`.

mod answer;
mod database;
mod error;
mod outbox;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tokio::time::timeout;

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
3 permission, 5 Postgres refuses for another reason, 6 Postgres is out of reach or busy";

#[derive(Subcommand)]
enum Command {
    /// Functions and tables of the outbox, and the partitions of its journal
    #[command(subcommand, after_help = EXIT_CODES)]
    Outbox(outbox::Command),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Command::Outbox(command) = Cli::parse().command;
    let done = timeout(COMMAND_MAX, outbox::run(command)).await.unwrap_or_else(|_| Err(too_long()));
    match done.and_then(|answer| answer::print(&answer)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.print();
            ExitCode::from(error.exit_code())
        }
    }
}

fn too_long() -> Error {
    let text =
        format!("the command did not end within {}", humantime::format_duration(COMMAND_MAX));
    Error::new(Kind::Unavailable, text).mended_by("see what Postgres waits for, and run it again")
}
