//! Measures every published figure again: `tailrace-bench SCENARIO [--json]`.
//!
//! A figure is a ratio inside one run: what is measured and what it is measured against take turns
//! in short slices, so that a machine that is busy with something else is busy for both.

mod calls;
mod consumer;
mod consumer_by_hand;
mod consumer_topic;
mod debezium;
mod figure;
mod outbox_cost;
mod parking;
mod relay_backlog;
mod relay_drain;
mod relay_floor;
mod relay_latency;
mod relay_limits;
mod relay_process;
mod relay_reader;
mod relay_site;
mod relay_start;
mod retention;
mod saga;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::figure::Figure;

// As the sidecar has it: what is measured here is its processes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures the published figures of Tailrace
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
    /// One JSON object per figure and line, instead of a table
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Scenario {
    /// What a message costs the business transaction that writes it
    OutboxCost(outbox_cost::Options),
    /// How fast a relay drains a backlog, beside what bounds it
    RelayDrain(relay_drain::Options),
    /// How long a message is under way
    RelayLatency(relay_latency::Options),
    /// How soon a relay is of use, after its start and after the end of another
    RelayStart(relay_start::Options),
    /// How fast a consumer turns records into effects
    Consumer(consumer::Options),
    /// What one poisoned key costs the others
    Parking(parking::Options),
    /// How many effects outside Postgres a lane makes
    Calls(calls::Options),
    /// What it takes to forget claims, and what claims notice of it
    Retention(retention::Options),
    /// What sagas cost: transitions, a saga from order to end, and a full store
    Saga(saga::Options),
    /// The engine of the sagas that are measured
    #[command(name = "saga-engine", hide = true)]
    SagaEngine(saga::EngineArguments),
    /// A service of the sagas that are measured
    #[command(name = "saga-participant", hide = true)]
    SagaParticipant(saga::ParticipantArguments),
    /// The sidecar, which the scenarios of the relay start as a process of its own
    #[command(name = relay_process::SIDECAR, hide = true, disable_help_flag = true)]
    CdcRelay {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let measured = match cli.scenario {
        Scenario::OutboxCost(options) => outbox_cost::measure(options).await,
        Scenario::RelayDrain(options) => Box::pin(relay_drain::measure(options)).await,
        Scenario::RelayLatency(options) => Box::pin(relay_latency::measure(options)).await,
        Scenario::RelayStart(options) => Box::pin(relay_start::measure(options)).await,
        Scenario::Consumer(options) => Box::pin(consumer::measure(options)).await,
        Scenario::Parking(options) => Box::pin(parking::measure(options)).await,
        Scenario::Calls(options) => Box::pin(calls::measure(options)).await,
        Scenario::Retention(options) => Box::pin(retention::measure(options)).await,
        Scenario::Saga(options) => Box::pin(saga::measure(options)).await,
        Scenario::SagaEngine(arguments) => return Box::pin(saga::orchestrate(arguments)).await,
        Scenario::SagaParticipant(arguments) => return saga::participate(arguments).await,
        Scenario::CdcRelay { arguments } => {
            let program = OsString::from(relay_process::SIDECAR);
            tailrace_cdc_relay::cli::run(std::iter::once(program).chain(arguments)).await
        }
    };
    match measured {
        Ok(figures) => {
            if cli.json {
                figures.iter().for_each(Figure::print_json);
            } else {
                figure::print_table(&figures);
            }
            ExitCode::SUCCESS
        }
        Err(failure) => {
            figure::complain(failure.as_ref());
            ExitCode::FAILURE
        }
    }
}
