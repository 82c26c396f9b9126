//! The engine and the services as processes of their own.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tailrace_idempotency::Config;
use tailrace_saga::Engine;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use super::shop::{Service, order_saga};
use crate::figure;
use crate::relay_process::RelayProcess;

type Failure = Box<dyn Error + Send + Sync>;

/// The subcommands that make this program the engine, or services.
pub(crate) const ENGINE: &str = "saga-engine";
pub(crate) const PARTICIPANT: &str = "saga-participant";

/// What a process says once it begins.
const BEGINS: &str = "begins";

/// Where a process finds what it needs.
#[derive(Args, Clone, Debug)]
pub(crate) struct Place {
    #[arg(long)]
    pub(crate) database_url: String,
    #[arg(long)]
    pub(crate) kafka_brokers: String,
    /// Before the names of groups and topics
    #[arg(long)]
    pub(crate) prefix: String,
    /// How long a batch waits for more
    #[arg(long)]
    pub(crate) batch_wait_us: u64,
    /// Of each topic
    #[arg(long)]
    pub(crate) partitions: u32,
}

#[derive(Args, Debug)]
pub(crate) struct EngineArguments {
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Debug)]
pub(crate) struct ParticipantArguments {
    #[command(flatten)]
    place: Place,
    /// The service
    #[arg(long, value_enum)]
    service: Service,
}

impl Place {
    /// A consumer of so many topics. Each partition has a lane, which wants a connection, and an engine's timers another.
    fn config(&self, name: &str, topics: u32) -> Result<Config, Failure> {
        let options: PgConnectOptions = self.database_url.parse()?;
        let pool = PgPoolOptions::new()
            .max_connections(self.partitions * topics + 2)
            .connect_lazy_with(options.disable_statement_logging());
        Ok(Config::new(format!("{}{name}", self.prefix), self.kafka_brokers.clone(), pool)
            .start_deadline(Duration::from_secs(60))
            .batch_wait(Duration::from_micros(self.batch_wait_us)))
    }

    fn command(&self, role: &str) -> Result<Command, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args([role, "--database-url", &self.database_url])
            .args(["--kafka-brokers", &self.kafka_brokers, "--prefix", &self.prefix])
            .args(["--batch-wait-us", &self.batch_wait_us.to_string()])
            .args(["--partitions", &self.partitions.to_string()]);
        Ok(command)
    }

    pub(crate) async fn engine(&self) -> Result<RelayProcess, Failure> {
        begun(self.command(ENGINE)?).await
    }

    pub(crate) async fn participant(&self, service: Service) -> Result<RelayProcess, Failure> {
        let mut command = self.command(PARTICIPANT)?;
        command.args(["--service", service.name()]);
        begun(command).await
    }
}

async fn begun(command: Command) -> Result<RelayProcess, Failure> {
    let mut process = RelayProcess::spawn(command)?;
    process.says(BEGINS).await?;
    Ok(process)
}

/// Runs the engine until it is told to end.
pub(crate) async fn orchestrate(arguments: EngineArguments) -> ExitCode {
    log();
    let running = async {
        let place = arguments.place;
        let engine = Engine::new().topic_prefix(&place.prefix);
        figure::tell(BEGINS);
        let report =
            engine.saga(&order_saga()?).run(place.config("engine", 2)?, terminated()).await?;
        figure::tell(&format!("{report:?}"));
        Ok::<_, Failure>(())
    };
    ended(running.await)
}

/// Runs a service until it is told to end.
pub(crate) async fn participate(arguments: ParticipantArguments) -> ExitCode {
    log();
    let running = async {
        let ParticipantArguments { place, service } = arguments;
        let participant = service.participant(&place.prefix);
        figure::tell(BEGINS);
        participant.run(place.config(service.name(), 1)?, terminated()).await?;
        Ok::<_, Failure>(())
    };
    ended(running.await)
}

/// What goes wrong in it is on its standard error.
fn log() {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .init();
}

async fn terminated() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => drop(terminate.recv().await),
        Err(_) => std::future::pending().await,
    }
}

fn ended(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            figure::complain(failure.as_ref());
            ExitCode::FAILURE
        }
    }
}
