//! The shop: five services that place orders by choreography and by orchestration, side by side, while things go wrong.
//!
//! Needs Rust, and Java 17 with Maven for a Postgres and a Kafka of its own. Run it by
//!
//! ```sh
//! cargo run --release -p shop
//! cargo run --release -p shop -- --headless --orders 500 --seed 7 --trouble all
//! ```
//!
//! `ARCHITECTURE.md` beside this package says what is where.

mod books;
#[cfg(feature = "bugs")]
mod bug;
mod dice;
mod headless;
mod ledger;
mod order;
mod page;
mod place_order;
mod prepare;
mod provider_client;
mod readiness;
mod report;
mod service;
mod services;
mod set_aside;
mod settings;
mod stage;
mod traces;
mod unended;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;

use crate::settings::Settings;

/// Anything that ends a process early; its text is all that a person needs.
type Failure = Box<dyn std::error::Error + Send + Sync>;

// As the sidecar has it: its processes are this program once more.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What is still under way when all is said is not waited for longer than this: a lock that somebody else holds.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&error);
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(run());
    runtime.shutdown_timeout(FAREWELL_MAX);
    ended
}

async fn run() -> ExitCode {
    stage::end_with_the_parent();
    #[cfg(feature = "bugs")]
    bug::plant();
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == stage::SIDECAR).is_some() {
        let named = std::iter::once(stage::SIDECAR.into()).chain(arguments);
        tailrace_cdc_relay::cli::run(named).await;
    }
    let settings = Settings::parse();
    let (process, level) = match settings.service {
        Some(name) => (name.as_str(), "info"),
        None => ("stage", "off"),
    };
    let _traces = traces::begin(process, level, settings.surroundings.log_format);
    let ended = match settings.service {
        Some(name) => Box::pin(services::run(name, &settings)).await.map(|()| true),
        None if settings.prepare => prepare::run(&settings.surroundings).await.map(|()| true),
        None if settings.headless => tokio::select! {
            ended = Box::pin(headless::run(&settings)) => ended,
            () = service::asked_to_stop() => Err("interrupted".into()),
        },
        None => Box::pin(page::run(&settings)).await.map(|()| true),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            complain(failure.as_ref());
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the one error of the process is for its user")]
fn complain(failure: &(dyn std::error::Error + 'static)) {
    eprintln!("error: {failure}");
    let mut source = failure.source();
    while let Some(cause) = source {
        eprintln!("  cause: {cause}");
        source = cause.source();
    }
}
