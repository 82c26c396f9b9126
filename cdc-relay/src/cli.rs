//! The command line of the sidecar.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::check::{Bounds, Level};
use crate::config::layers::Settings;
use crate::error::Error;
use crate::sink::Kafka;
use crate::{check, init, native, overview};
use adoption::Way;
use given::Flags;
use replay::ReplayArgs;
use sources::Sources;

mod adoption;
mod drop_slot;
mod given;
mod http;
mod replay;
mod sources;
mod supervise;
mod traces;

const DONE: u8 = 0;
const CHECK_FAILED: u8 = 1;

/// Runs the sidecar with these arguments, of which the first is the program's name.
///
/// All of `cdc-relay` but its `main`, so that another program can carry the same command, as the
/// end-to-end tests do. It installs a log subscriber, reads the environment and the configuration
/// file, and ends the process when the command is done: `run` when SIGTERM or SIGINT has stopped
/// the relay or an error has, which it has then written to standard error.
pub async fn run(arguments: impl IntoIterator<Item = OsString>) -> ! {
    let code = done(arguments).await;
    // Nothing is left to be written but this, which nobody may read any more.
    let _ = std::io::stdout().flush();
    // Threads of the Kafka client may still be inside OpenSSL, whose exit handler takes away what
    // they use: the process would end by a signal, and its exit code be lost.
    native::process::end_at_once(code)
}

async fn done(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = Cli::parse_from(arguments);
    log_to_stderr(cli.log_format);
    let _traces = traces::begin();
    let sources = Sources { file: cli.config, flags: cli.flags };
    let done = match sources.read() {
        Ok(settings) => Box::pin(obey(cli.command, sources, settings)).await,
        Err(error) => Err(error),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            complain(&error, cli.log_format);
            error.exit_code()
        }
    }
}

async fn obey(command: Command, sources: Sources, settings: Settings) -> Result<u8, Error> {
    let config = settings.config.clone();
    match command {
        Command::Run => supervise::supervise(sources, settings).await?,
        Command::Init { dry_run: true } => say(&init::plan(&config).await?),
        Command::Init { dry_run: false } => say(&init::init(&config, &Kafka::of(&config)).await?),
        Command::Check { json } => {
            let report = check::check(&config, Bounds::default()).await;
            match json {
                true => say(&format!("{:#}\n", report.json())),
                false => say(&report.text()),
            }
            if report.level() == Level::Fail {
                return Ok(CHECK_FAILED);
            }
        }
        Command::Status { json } => {
            let overview = overview::overview(&config).await?;
            match json {
                true => say(&format!("{:#}\n", overview.json(&config))),
                false => say(&overview.text(&config)),
            }
        }
        Command::Adopt(way) => say(&adoption::adopt(&config, way.terms()).await?),
        Command::DropSlot { yes } => say(&drop_slot::drop_slot(&config, yes).await?),
        Command::Replay(what) => {
            Box::pin(replay::replay(&config, what, supervise::stop_signal())).await?;
        }
        Command::Config => say(&configuration(&settings)),
    }
    Ok(DONE)
}

/// Tails a Postgres write-ahead log and publishes its messages to Kafka: exactly once, keyed, in
/// order.
#[derive(Parser)]
#[command(name = "cdc-relay", version, about, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// A TOML file with settings; the environment wins over it, and flags over both
    #[arg(long, global = true, env = "CDC_RELAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// How log lines are written, to standard error; RUST_LOG sets their level
    #[arg(long, global = true, env = "LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
    #[command(flatten)]
    flags: Flags,
}

const AFTER_HELP: &str = "\
DATABASE_URL and KAFKA_BROKERS are enough to run.

Exit codes: 0 done, or stopped as asked; 1 a check failed; 2 configuration or a server's set-up; \
3 permission; 4 slot, checkpoint and server do not belong together; 5 a message that can not be \
published; 6 a server is out of reach; 7 another relay leads or took over";

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Publishes until SIGTERM or Ctrl-C; makes publication, slot and checkpoint topic at the
    /// first run
    Run,
    /// Makes publication, slot and checkpoint topic, so that messages are kept from then on
    Init {
        /// Print what would be made and which rights it needs, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Asks both servers about everything that a relay needs, and says how to mend what is amiss;
    /// changes nothing, and may run beside a relay
    Check {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Shows slot, lag, leader and checkpoint, and whether a relay would refuse to go on
    Status {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Goes on from a slot that a relay refuses, once the gap is accepted; makes the slot where it
    /// is gone or lost. Prints what is missing. Stop every relay first
    Adopt(Way),
    /// Drops the replication slot: from then on messages vanish. Stop every relay first
    DropSlot {
        /// Do it; without, only what would be lost is told
        #[arg(long)]
        yes: bool,
    },
    /// Publishes messages of the journal once more, with the header ce_replay; disturbs no relay
    Replay(ReplayArgs),
    /// Shows every setting with its value and where that comes from; secrets are hidden
    Config,
}

/// `key = value`, with the origin of each as a comment.
fn configuration(settings: &Settings) -> String {
    let lines = settings.lines();
    let width = |text: fn(&(String, String, String)) -> usize| {
        lines.iter().map(text).max().unwrap_or_default()
    };
    let (keys, values) = (width(|line| line.0.len()), width(|line| line.1.len()));
    let mut text = String::new();
    for (key, value, origin) in &lines {
        // A string takes any text.
        let _ = writeln!(text, "{key:keys$}  {value:values$}  {origin}");
    }
    text
}

/// Writes to standard output; a reader that has gone away is no error.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn log_to_stderr(format: LogFormat) {
    let given = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|given| !given.is_empty());
    let filter = given.as_ref().map(EnvFilter::try_new).transpose();
    let fault = filter.as_ref().err().map(ToString::to_string);
    let filter = filter.ok().flatten().unwrap_or_else(|| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A file or a collector has no use for colours.
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    if let Some(fault) = fault {
        tracing::warn!(fault, "RUST_LOG is not understood: level info is taken");
    }
}

#[expect(clippy::print_stderr, reason = "the one error of the process is for its user")]
fn complain(error: &Error, format: LogFormat) {
    if let LogFormat::Json = format {
        let (cause, mend) = (error.causes(), error.mend());
        tracing::error!(error = %error, cause, mend, exit_code = error.exit_code(), "ended");
        return;
    }
    // Several faults stand on a line each.
    let mut text = format!("error: {error}").replace('\n', "\n       ");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        // A string takes any text.
        let _ = write!(text, "\n  cause: {cause}");
        source = cause.source();
    }
    if let Some(hint) = error.mend() {
        let _ = write!(text, "\n  mend: {hint}");
    }
    eprintln!("{text}");
}
