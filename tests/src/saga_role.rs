//! An orchestrator and its participants as processes of their own.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use sqlx::PgPool;
use tailrace_idempotency::Config;
use tailrace_saga::Engine;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::interval;

use crate::node;
use crate::saga_shop::{
    Manners, Patience, Service, create_order_by, create_order_in_turn, participant,
};

#[derive(Args)]
pub(crate) struct EngineArgs {
    #[command(flatten)]
    place: Place,
    /// The versions of the saga that it can run
    #[arg(long = "saga-version", default_value = "1")]
    versions: Vec<u32>,
    /// After how long an attempt is given up
    #[arg(long, default_value_t = 5_000)]
    time_out_ms: u64,
    /// Orders of one customer are done one after another
    #[arg(long)]
    in_turn: bool,
    /// After how long an attempt of the pivot is given up, where that differs
    #[arg(long)]
    pivot_time_out_ms: Option<u64>,
    /// After so many attempts of the pivot a person decides
    #[arg(long, default_value_t = 10_000)]
    pivot_attempts: u32,
    /// It refuses to start where somebody's sagas would stand still
    #[arg(long)]
    strict: bool,
}

#[derive(Args)]
pub(crate) struct ParticipantArgs {
    #[command(flatten)]
    place: Place,
    #[arg(long)]
    service: Service,
    /// Of so many sagas the commands of one take long
    #[arg(long, default_value_t = 0)]
    slow_every: u64,
    #[arg(long, default_value_t = 0)]
    slow_for_ms: u64,
}

#[derive(Args)]
pub(crate) struct Place {
    #[arg(long)]
    database_url: String,
    #[arg(long)]
    kafka_brokers: String,
    /// Before the names of groups and topics
    #[arg(long)]
    pub(crate) prefix: String,
    /// After how long the group takes it for dead
    #[arg(long, default_value_t = 6_000)]
    session_ms: u32,
}

/// A Postgres that was restarted is back by then, also on a busy machine.
const START_MAX: Duration = Duration::from_secs(60);
/// How long a former owner that is stopped can hold up the next one.
const TAKEOVER_MAX: Duration = Duration::from_secs(2);
/// Between two times that an engine says what was counted.
const TELL_EVERY: Duration = Duration::from_millis(500);

impl Place {
    pub(crate) fn config(&self, name: &str) -> Config {
        let pool = PgPool::connect_lazy(&self.database_url).expect("the url is one");
        Config::new(format!("{}{name}", self.prefix), self.kafka_brokers.clone(), pool)
            .start_deadline(START_MAX)
            .rebalance_deadline(TAKEOVER_MAX)
            // What fails because somebody died is tried again soon.
            .parked_wait(Duration::from_millis(100), Duration::from_secs(1))
            .kafka_property("session.timeout.ms", self.session_ms.to_string())
            .kafka_property("heartbeat.interval.ms", (self.session_ms / 20).to_string())
    }
}

pub(crate) async fn orchestrate(arguments: EngineArgs) -> ExitCode {
    node::log();
    let timeout = Duration::from_millis(arguments.time_out_ms);
    let patience = Patience {
        timeout,
        pivot_timeout: arguments.pivot_time_out_ms.map_or(timeout, Duration::from_millis),
        pivot_attempts: arguments.pivot_attempts,
    };
    let engine = Engine::new()
        .source("/orders")
        .topic_prefix(&arguments.place.prefix)
        .strict(arguments.strict);
    let engine = arguments.versions.iter().fold(engine, |engine, &version| {
        let saga = match arguments.in_turn {
            true => create_order_in_turn(version, timeout),
            false => create_order_by(version, patience),
        };
        engine.saga(&saga.expect("the definition is right"))
    });
    let counters = engine.counters();
    tokio::spawn(async move {
        let mut tick = interval(TELL_EVERY);
        loop {
            tick.tick().await;
            tracing::info!(report = ?counters.report(), quarantined = ?counters.quarantined(), "counted");
        }
    });
    let stop = terminated();
    tracing::info!("an engine begins");
    ended(engine.run(arguments.place.config("engine"), stop).await)
}

pub(crate) async fn participate(arguments: ParticipantArgs) -> ExitCode {
    node::log();
    let ParticipantArgs { place, service, slow_every, slow_for_ms } = arguments;
    let provider = Some(PgPool::connect_lazy(&place.database_url).expect("the url is one"));
    let manners = Manners { provider, slow_every, slow_for: Duration::from_millis(slow_for_ms) };
    let config = place.config(service.name()).state(manners);
    let stop = terminated();
    tracing::info!(service = service.name(), "a participant begins");
    ended(participant(service, &place.prefix).run(config, stop).await)
}

/// Listens from the call on, so that a process that says that it begins can be asked to end.
pub(crate) fn terminated() -> impl Future<Output = ()> {
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be listened for");
    async move {
        terminate.recv().await;
    }
}

pub(crate) fn ended<R: std::fmt::Debug, E: std::error::Error>(ended: Result<R, E>) -> ExitCode {
    match ended {
        Ok(report) => {
            tracing::info!(?report, "the node has ended");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let source = error.source().map(ToString::to_string);
            tracing::error!(%error, source, "the node has ended");
            ExitCode::FAILURE
        }
    }
}
