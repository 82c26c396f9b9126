//! Keeps a Postgres and a Kafka running, for people who want to look around with their own tools.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tailrace_stack::{Error, Needs, Stack};
use tokio::signal::unix::{SignalKind, signal};

/// A real Postgres and a real Kafka, with nothing to prepare.
#[derive(Debug, Parser)]
#[command(name = "tailrace-stack")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring both up, print how to reach them, and keep them until Ctrl-C or SIGTERM.
    ///
    /// The output is lines for a shell: the variables that make the tests use these servers, and
    /// those that the relay reads. At the end the servers and all their data are removed.
    ///
    /// Servers come from TAILRACE_STACK_DATABASE_URL and TAILRACE_STACK_KAFKA_BROKERS where set,
    /// else from the cache in TAILRACE_CACHE, which is filled through Maven (Java 17 or later).
    /// TAILRACE_PG_VERSION picks the Postgres, 15 to 18.
    Up,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { command: Command::Up } = Arguments::parse();
    match up().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Until the servers are up a signal ends this process at once, and the watchers end the rest.
async fn up() -> Result<(), Error> {
    let stack = Stack::start(Needs::BOTH).await?;
    let mut interrupt = signal(SignalKind::interrupt()).expect("a handler can be installed");
    let mut terminate = signal(SignalKind::terminate()).expect("a handler can be installed");
    show(&stack);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
fn show(stack: &Stack) {
    let (url, brokers) = (stack.postgres().url(), stack.kafka().brokers());
    println!("# The tests run on these servers with:");
    println!("export TAILRACE_STACK_DATABASE_URL='{url}'");
    println!("export TAILRACE_STACK_KAFKA_BROKERS='{brokers}'");
    println!("# The relay and other tools reach them with:");
    println!("export DATABASE_URL='{url}'");
    println!("export KAFKA_BROKERS='{brokers}'");
    println!("# Ctrl-C ends both and removes their data.");
}

#[expect(clippy::print_stderr, reason = "the error of a command")]
fn complain(error: &Error) {
    eprintln!("error: {error:?}");
}
