//! The command line of the sidecar: `cdc-relay run`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::{BadMessages, Config, Delivery};
use crate::error::Error;
use crate::position::Place;
use crate::relay::Relay;
use http::HttpArgs;

mod http;
mod traces;

/// Runs the sidecar with these arguments, of which the first is the program's name.
///
/// All of `cdc-relay` but its `main`, so that another program can carry the same command, as the
/// end-to-end tests do. It installs a log subscriber, reads the environment, ends the process
/// itself on arguments that it does not understand, and resolves when SIGTERM or SIGINT has
/// stopped the relay or an error has, which it has then written to standard error.
pub async fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = Cli::parse_from(arguments);
    log_to_stderr(cli.log_format);
    let _traces = traces::begin();
    let Command::Run(run) = cli.command;
    match Box::pin(run.run()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Tails a Postgres write-ahead log and publishes its messages to Kafka: exactly once, keyed, in
/// order.
#[derive(Parser)]
#[command(name = "cdc-relay", version, about, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How log lines are written, to standard error; RUST_LOG sets their level
    #[arg(long, global = true, env = "LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
}

const EXIT_CODES: &str = "\
Exit codes: 0 stopped as asked, 2 configuration or a server's set-up, 3 permission, 4 slot, \
checkpoint and server do not belong together, 5 a message that can not be published, 6 a server \
is out of reach";

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Publishes until SIGTERM or Ctrl-C; makes publication, slot and checkpoint topic at the
    /// first run
    Run(Box<RunArgs>),
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    http: HttpArgs,
}

#[derive(Args)]
struct SettingArgs {
    /// The database, as postgres://user:password@host:port/database?sslmode=disable
    // Empty where it is missing: the relay names every missing setting at once.
    #[arg(
        long,
        env = "DATABASE_URL",
        hide_env_values = true,
        default_value = "",
        hide_default_value = true
    )]
    database_url: String,
    /// The brokers, as host:port, separated by commas
    #[arg(long, env = "KAFKA_BROKERS", default_value = "", hide_default_value = true)]
    kafka_brokers: String,
    /// The replication slot
    #[arg(long, env = "CDC_RELAY__SLOT", default_value = "tailrace")]
    slot: String,
    /// The publication; for messages alone it stays empty
    #[arg(long, env = "CDC_RELAY__PUBLICATION", default_value = "tailrace")]
    publication: String,
    /// The prefix of the logical messages to publish
    #[arg(long, env = "CDC_RELAY__PREFIX", default_value = "tailrace")]
    prefix: String,
    /// The schema of the journal table
    #[arg(long, env = "CDC_RELAY__SCHEMA", default_value = "tailrace")]
    schema: String,
    /// The relay's name in Kafka [default: SYSTEM-DATABASE-SLOT]
    #[arg(long, env = "CDC_RELAY__ID")]
    relay_id: Option<String>,
    /// Refuse to run when publication and slot are still to be made
    #[arg(long)]
    no_init: bool,
    /// Refuse messages whose topic does not exist instead of making it
    #[arg(long)]
    no_create_topics: bool,
    /// What readers of the topics may rely on
    #[arg(long, env = "CDC_RELAY__DELIVERY", value_enum, default_value = "exactly-once")]
    delivery: DeliveryArg,
    /// How long a batch waits for more once the relay has caught up, in milliseconds
    /// [default: exactly once as long as the commit before takes, at least once 200]
    #[arg(long, env = "CDC_RELAY__LINGER_MS", value_parser = clap::value_parser!(u64).range(..=1_000))]
    linger_ms: Option<u64>,
    /// What becomes of a message that can not be published
    #[arg(long, env = "CDC_RELAY__BAD_MESSAGES", value_enum, default_value = "dead-letter")]
    bad_messages: BadMessagesArg,
    /// The topic of dead letters [default: tailrace.dead-letter.RELAY_ID]
    #[arg(long, env = "CDC_RELAY__DEAD_LETTER_TOPIC")]
    dead_letter_topic: Option<String>,
    /// A librdkafka setting, as name=value; may be repeated
    #[arg(short = 'X', long, value_name = "NAME=VALUE", value_parser = property)]
    kafka_property: Vec<(String, String)>,
    /// Go past this one message, as an earlier run has named it; may be repeated
    #[arg(long, value_name = "LSN:ORDINAL")]
    skip: Vec<Place>,
}

#[derive(Clone, Copy, ValueEnum)]
enum DeliveryArg {
    /// Each message once, for read_committed readers
    ExactlyOnce,
    /// As early as can be; after a crash some messages come again
    AtLeastOnce,
}

#[derive(Clone, Copy, ValueEnum)]
enum BadMessagesArg {
    /// Its record goes to the topic of dead letters, with the reason
    DeadLetter,
    /// The relay stops and names it
    Halt,
}

fn property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("not of the form name=value".to_owned()),
    }
}

impl RunArgs {
    async fn run(self) -> Result<(), Error> {
        // The recorder of metrics first: a relay looks for it when it begins.
        let RunArgs { http, settings } = self;
        let http = http.http()?;
        let relay = Relay::new(settings.config());
        match http {
            Some(http) => relay.http(http),
            None => relay,
        }
        .run(stop_signal())
        .await
    }
}

impl SettingArgs {
    fn config(self) -> Config {
        let mut config = Config::new(self.database_url, self.kafka_brokers)
            .slot(self.slot)
            .publication(self.publication)
            .prefix(self.prefix)
            .schema(self.schema)
            .init(!self.no_init)
            .create_topics(!self.no_create_topics)
            .delivery(match self.delivery {
                DeliveryArg::ExactlyOnce => Delivery::ExactlyOnce,
                DeliveryArg::AtLeastOnce => Delivery::AtLeastOnce,
            });
        config = config.bad_messages(match self.bad_messages {
            BadMessagesArg::DeadLetter => BadMessages::DeadLetter,
            BadMessagesArg::Halt => BadMessages::Halt,
        });
        if let Some(topic) = self.dead_letter_topic {
            config = config.dead_letter_topic(topic);
        }
        if let Some(milliseconds) = self.linger_ms {
            config = config.linger(Duration::from_millis(milliseconds));
        }
        if let Some(relay_id) = self.relay_id {
            config = config.relay_id(relay_id);
        }
        for (name, value) in self.kafka_property {
            config = config.kafka_property(name, value);
        }
        self.skip.into_iter().fold(config, Config::skip)
    }
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A file or a collector has no use for colours.
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

#[expect(clippy::print_stderr, reason = "the one error of the process is for its user")]
fn complain(error: &Error) {
    let mut text = format!("error: {error}");
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

/// Resolves at SIGTERM or SIGINT.
async fn stop_signal() {
    let (mut term, mut interrupt) =
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(term), Ok(interrupt)) => (term, interrupt),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "no signals: the process can only be killed");
                return std::future::pending().await;
            }
        };
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
}
