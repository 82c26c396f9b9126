//! How soon a relay is of use: after its start, and after the end of the one before it.

use std::error::Error;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use rustix::process::Signal;
use tailrace_stack::{Needs, Stack};

use crate::figure::{Figure, quantile};
use crate::relay_backlog::{self, Source};
use crate::relay_process::{Mode, RelayArguments, RelayProcess};
use crate::relay_reader::{Isolation, Lookout};
use crate::relay_site::Site;

type Failure = Box<dyn Error + Send + Sync>;

/// The longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(60);

/// How often.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// How often each is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
    /// Variants to measure, as EVENT/MODE; all when not given
    #[arg(long)]
    variant: Vec<String>,
}

/// What happens to a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Happens {
    /// It is started, and a message waits in the log.
    Started,
    /// It leads and is killed; its connections end with it.
    Killed,
    /// It leads and is halted; its connections stay, and nobody answers on them.
    Halted,
}

impl Happens {
    const ALL: [Happens; 3] = [Happens::Started, Happens::Killed, Happens::Halted];

    fn name(self) -> &'static str {
        match self {
            Happens::Started => "started",
            Happens::Killed => "killed",
            Happens::Halted => "halted",
        }
    }

    /// What is measured, and what it should be at most.
    fn metric(self) -> (&'static str, f64) {
        match self {
            Happens::Started => ("first_record_ms", 500.0),
            Happens::Killed | Happens::Halted => ("takeover_ms", 2_000.0),
        }
    }
}

/// Measures all variants, one after another.
pub(crate) async fn measure(options: Options) -> Result<Vec<Figure>, Failure> {
    let all: Vec<(Happens, Mode)> = Mode::ALL
        .into_iter()
        .flat_map(|mode| Happens::ALL.map(|happens| (happens, mode)))
        .collect();
    let name = |(happens, mode): &(Happens, Mode)| format!("{}/{}", happens.name(), mode.name());
    let names: Vec<String> = all.iter().map(name).collect();
    if let Some(unknown) = options.variant.iter().find(|variant| !names.contains(variant)) {
        return Err(format!("no variant {unknown:?}; there are {}", names.join(", ")).into());
    }
    let stack = Stack::start(Needs::BOTH.measured()).await?;
    let bar = ProgressBar::new(u64::from(options.runs) * u64::try_from(all.len())?);
    let mut figures = Vec::new();
    let mut site = Site::new(&stack, "relay_start").await?;
    for variant in &all {
        let (happens, mode) = *variant;
        if !options.variant.is_empty() && !options.variant.contains(&name(variant)) {
            continue;
        }
        let arguments = site.prepared(mode).await?;
        let mut times = Vec::new();
        for _ in 0..options.runs {
            let took = match happens {
                Happens::Started => first_record(&mut site, &arguments).await?,
                Happens::Killed => takeover(&mut site, &arguments, Signal::KILL).await?,
                Happens::Halted => takeover(&mut site, &arguments, Signal::STOP).await?,
            };
            times.push(took.as_secs_f64() * 1e3);
            bar.inc(1);
        }
        figures.push(figure(name(variant), happens, &times));
    }
    bar.finish_and_clear();
    site.clear().await?;
    Ok(figures)
}

fn figure(variant: String, happens: Happens, times: &[f64]) -> Figure {
    let (metric, goal) = happens.metric();
    let value = quantile(times, 0.5);
    Figure {
        scenario: "relay-start",
        variant,
        metric,
        unit: "ms",
        value,
        reference: "goal",
        reference_value: goal,
        ratio: value / goal,
        runs: times.len(),
        min: quantile(times, 0.0) / goal,
        max: quantile(times, 1.0) / goal,
    }
}

/// From the start of a process to the first record that a read_committed consumer has.
async fn first_record(site: &mut Site, arguments: &RelayArguments) -> Result<Duration, Failure> {
    let lookout = look_out(site).await?;
    write(site).await?;
    let began = Instant::now();
    let mut relay = RelayProcess::start(arguments)?;
    let seen = relay.during(lookout.next(LIMIT)).await?;
    relay.stop().await?;
    Ok(seen - began)
}

/// From the end of a leader to the first record that was written after it.
async fn takeover(
    site: &mut Site,
    arguments: &RelayArguments,
    signal: Signal,
) -> Result<Duration, Failure> {
    let mut leader = RelayProcess::start(arguments)?;
    leader.says("leading").await?;
    let mut standby = RelayProcess::start(arguments)?;
    standby.says("standing by").await?;
    // So that the leader is at work, and its producer known to the brokers.
    let lookout = look_out(site).await?;
    write(site).await?;
    leader.during(lookout.next(LIMIT)).await?;

    let lookout = look_out(site).await?;
    let began = Instant::now();
    leader.signal(signal)?;
    write(site).await?;
    let seen = standby.during(lookout.next(LIMIT)).await?;
    // Dropped before it could wake up: what becomes of it then is for a test to say.
    drop(leader);
    standby.stop().await?;
    Ok(seen - began)
}

async fn look_out(site: &Site) -> Result<Lookout, Failure> {
    Lookout::open(site.brokers(), &site.first_topic, Isolation::Committed).await
}

async fn write(site: &mut Site) -> Result<(), Failure> {
    let message = relay_backlog::message(&site.first_topic)?;
    site.write(Source::Message, &message).await
}
