//! The processes of the end-to-end tests, in one program: its first argument says which role.
//!
//! A process ends when its standard input does, so that none outlives the test that started it.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use clap::{Args, Parser};
use rustix::process::{Signal, getpid, kill_process};
use tailrace_cdc_relay::{Config, Delivery, Mapping, Milestone, Relay, cli};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::choreography_shop::{self, ServiceArgs};
use crate::client::Client;
use crate::consumer_role::{self, ConsumerArgs};
use crate::crash_point::CrashPoint;
use crate::saga_role::{self, EngineArgs, ParticipantArgs};
use crate::writer::{Habit, Writer};
use crate::writers::Dice;

#[derive(Parser)]
#[command(name = "node")]
enum Role {
    /// A relay that ends itself where it is told
    Relay(Box<RelayArgs>),
    /// A consumer that stops itself inside a transaction where it is told
    Consumer(Box<ConsumerArgs>),
    /// An orchestrator of the shop's sagas
    SagaEngine(Box<EngineArgs>),
    /// A service that carries out the commands of the shop's sagas
    SagaParticipant(Box<ParticipantArgs>),
    /// A service that reacts to the events of others
    Choreographed(Box<ServiceArgs>),
    /// A writer that ends itself in the middle of a transaction
    Writer(Box<WriterArgs>),
    /// The sidecar as it is shipped, with its own arguments
    #[command(disable_help_flag = true)]
    CdcRelay {
        /// As given to `cdc-relay`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

#[derive(Args)]
struct RelayArgs {
    #[arg(long)]
    database_url: String,
    #[arg(long)]
    kafka_brokers: String,
    #[arg(long)]
    slot: String,
    #[arg(long)]
    relay_id: String,
    /// A source transaction with more bytes is split
    #[arg(long)]
    split_bytes: Option<usize>,
    /// Records after which a batch is sealed
    #[arg(long)]
    batch_records: Option<usize>,
    #[arg(long)]
    at_least_once: bool,
    /// A table whose rows are messages too
    #[arg(long)]
    table: Option<Mapping>,
    /// Rows alone are published
    #[arg(long)]
    rows_alone: bool,
    /// Large transactions are received once they have committed
    #[arg(long)]
    no_streaming: bool,
    /// Memory for transactions in progress
    #[arg(long)]
    streaming_memory: Option<usize>,
    /// The most that is spooled of them
    #[arg(long)]
    spool_max: Option<u64>,
    /// MILESTONE:N, MILESTONE:N:stop or MILESTONE:N:MICROSECONDS
    #[arg(long)]
    die_at: Option<CrashPoint>,
}

#[derive(Args)]
struct WriterArgs {
    #[arg(long)]
    database_url: String,
    #[arg(long = "topic")]
    topics: Vec<String>,
    #[arg(long)]
    seed: u64,
    /// How many it ends before it dies
    #[arg(long)]
    transactions: u64,
    /// How long its last commit goes on before it dies; else it dies before it
    #[arg(long)]
    commits_for_micros: Option<u64>,
}

/// Plays the role that the arguments name; the first of them is the program's own name.
///
/// # Panics
///
/// When the role cannot be begun.
pub async fn play(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    thread::spawn(end_with_standard_input);
    match Role::parse_from(arguments) {
        Role::Relay(arguments) => relay(*arguments).await,
        Role::Consumer(arguments) => consumer_role::consume(*arguments).await,
        Role::SagaEngine(arguments) => Box::pin(saga_role::orchestrate(*arguments)).await,
        Role::Choreographed(arguments) => choreography_shop::serve(*arguments).await,
        Role::SagaParticipant(arguments) => saga_role::participate(*arguments).await,
        Role::Writer(arguments) => write_and_die(*arguments).await,
        Role::CdcRelay { arguments } => {
            cli::run(std::iter::once(OsString::from("cdc-relay")).chain(arguments)).await
        }
    }
}

/// Has the process log to its standard error.
pub(crate) fn log() {
    let level = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(level)
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
}

async fn relay(arguments: RelayArgs) -> ExitCode {
    log();
    let mut config = Config::new(arguments.database_url, arguments.kafka_brokers)
        .slot(arguments.slot)
        .relay_id(arguments.relay_id);
    if let Some(bytes) = arguments.split_bytes {
        config = config.split_bytes(bytes);
    }
    if arguments.at_least_once {
        config = config.delivery(Delivery::AtLeastOnce);
    }
    if let Some(records) = arguments.batch_records {
        config = config.batch_records(records);
    }
    if let Some(mapping) = arguments.table {
        config = config.table(mapping);
    }
    config = config.messages(!arguments.rows_alone).streaming(!arguments.no_streaming);
    if let Some(bytes) = arguments.streaming_memory {
        config = config.streaming_memory(bytes);
    }
    if let Some(bytes) = arguments.spool_max {
        config = config.spool_max(bytes);
    }
    let seen = AtomicU32::new(0);
    let stops = stop_when_told();
    let relay = Relay::new(config).on_milestone(move |milestone| {
        if let Some(point) = arguments.die_at
            && milestone == point.milestone
            && seen.fetch_add(1, Ordering::Relaxed) + 1 == point.occurrence
        {
            die(point);
        }
        if milestone == Milestone::Produced && stops.swap(false, Ordering::Relaxed) {
            die(CrashPoint::at(milestone, 1).stop());
        }
    });
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be listened for");
    let shutdown = async move {
        terminate.recv().await;
    };
    match relay.run(shutdown).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, mend = error.mend(), "the relay has ended");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Set by SIGUSR1: with the next message that it hands to Kafka the process stops itself, so that it
/// is stopped with a transaction open.
fn stop_when_told() -> Arc<AtomicBool> {
    let told = Arc::new(AtomicBool::new(false));
    let mut order = signal(SignalKind::user_defined1()).expect("SIGUSR1 can be listened for");
    let tell = Arc::clone(&told);
    tokio::spawn(async move {
        while order.recv().await.is_some() {
            tell.store(true, Ordering::Relaxed);
        }
    });
    told
}

async fn write_and_die(arguments: WriterArgs) -> ExitCode {
    let WriterArgs { database_url, topics, seed, transactions, commits_for_micros } = arguments;
    let client = Client::through_sqlx(&database_url).await.expect("the server takes a connection");
    let dice = Dice::from_seed(seed);
    let mut writer = Writer::new(&database_url, &topics, Habit::Every, dice, client);
    for _ in 0..transactions {
        writer.transaction().await.expect("the writer's server serves");
    }
    writer.half().await.expect("the writer's server serves");
    strike(Signal::KILL, commits_for_micros.map(Duration::from_micros));
    // Only one that dies inside its commit comes here.
    loop {
        writer.commit().await.expect("the writer's server serves");
        writer.half().await.expect("the writer's server serves");
    }
}

fn die(point: CrashPoint) {
    tracing::info!(%point, "reached");
    strike(if point.stops { Signal::STOP } else { Signal::KILL }, point.after);
}

/// Ends this process as a power cut would: no destructor runs, no buffer is flushed.
pub(crate) fn strike(signal: Signal, after: Option<Duration>) {
    let strike = move || kill_process(getpid(), signal).expect("a process may signal itself");
    match after {
        // From another thread, so that this one is inside whatever follows.
        Some(after) => {
            thread::spawn(move || {
                thread::sleep(after);
                strike();
            });
        }
        None => strike(),
    }
}

fn end_with_standard_input() {
    // Whether it ends or breaks, the owner is gone.
    io::copy(&mut io::stdin(), &mut io::sink()).ok();
    std::process::exit(1);
}
