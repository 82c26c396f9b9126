//! Keeps a Postgres and a Kafka running, for people who want to look around with their own tools.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tailrace_stack::{Error, Login, Mechanism, Needs, Postgres, Replication, Stack};
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
    /// Servers come from TAILRACE_STACK_DATABASE_URL and TAILRACE_STACK_KAFKA_BROKERS where set
    /// (not with the options below), else from Docker where TAILRACE_STACK_DOCKER is set (a build
    /// with `--features docker`), else from the cache in TAILRACE_CACHE, which is filled through
    /// Maven (Java 17 or later). TAILRACE_PG_VERSION picks the Postgres, 15 to 18.
    Up(Shape),
}

/// What the servers are to be.
#[derive(Clone, Copy, Debug, Args)]
struct Shape {
    /// How many brokers the Kafka has, each of about 350 MB of memory.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=9))]
    brokers: u32,
    /// Gives both servers certificates, and prints how to reach them over TLS too.
    #[arg(long)]
    tls: bool,
    /// Adds a streaming standby of the Postgres.
    #[arg(long)]
    standby: bool,
}

impl Shape {
    fn needs(self) -> Needs {
        let needs = Needs::BOTH.brokers(self.brokers);
        if self.tls { needs.tls() } else { needs }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { command: Command::Up(shape) } = Arguments::parse();
    match up(shape).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Until the servers are up a signal ends this process at once, and the watchers end the rest.
async fn up(shape: Shape) -> Result<(), Error> {
    let stack = Stack::start(shape.needs()).await?;
    let standby = if shape.standby {
        Some(stack.postgres().standby(Replication::Asynchronous).await?)
    } else {
        None
    };
    let mut interrupt = signal(SignalKind::interrupt()).expect("a handler can be installed");
    let mut terminate = signal(SignalKind::terminate()).expect("a handler can be installed");
    show(&stack);
    if shape.tls {
        show_tls(&stack);
    }
    if let Some(standby) = &standby {
        show_standby(standby);
    }
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
    println!("# Ctrl-C ends all servers and removes their data.");
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
fn show_tls(stack: &Stack) {
    println!("# Over TLS, with a password or a client certificate:");
    println!("#   {}", stack.postgres().tls_url(Login::Scram));
    println!("#   {}", stack.postgres().tls_url(Login::Certificate));
    println!("# and for clients of librdkafka:");
    for (name, value) in stack.kafka().secure_client(Mechanism::ScramSha512) {
        println!("#   {name}={value}");
    }
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
fn show_standby(standby: &Postgres) {
    println!("# The standby, which `select pg_promote()` makes a primary:");
    println!("#   {}", standby.url());
}

#[expect(clippy::print_stderr, reason = "the error of a command")]
fn complain(error: &Error) {
    eprintln!("error: {error:?}");
}
