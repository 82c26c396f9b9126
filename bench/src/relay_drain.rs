//! How fast a relay drains a backlog, beside what bounds it.
//!
//! The backlog is in the log before anybody reads it. Then, in each run and in an order that
//! changes with it, the same log is read by our reader alone and by `pg_recvlogical` where it is
//! installed, as many records are produced by a producer alone, and each mode's relay publishes
//! the log from a slot of its own that stands at its beginning. A relay is measured from the moment
//! in which the broker has its first record to the one in which a read_committed consumer has its
//! last; each of the two goes to a topic of its own, so that to see them costs nothing. Every run
//! ends with a count of what a read_committed consumer finds.

use std::error::Error;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tailrace_cdc_relay::Lsn;
use tailrace_stack::{Needs, Stack};

use crate::debezium::{Debezium, Setup};
use crate::figure::{self, Figure, quantile};
use crate::relay_backlog::{self, Backlog, PAYLOAD_BYTES, Source};
use crate::relay_limits::{self, Alone};
use crate::relay_process::{Mode, RelayArguments, RelayProcess};
use crate::relay_reader::{self, Isolation, Lookout};
use crate::relay_site::{PARTITIONS, Site};

type Failure = Box<dyn Error + Send + Sync>;

/// Messages of a source transaction.
const PER_TX: [u64; 2] = [1, 10];

/// What the relay may hold, by our goals.
const RESIDENT_BYTES_GOAL: f64 = 48.0 * 1024.0 * 1024.0;

/// What and how much is measured.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Messages of the backlog, 200 bytes each
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(100..))]
    messages: u64,
    /// How often each relay drains the backlog
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    runs: u16,
    /// Variants to measure, as SOURCE/PER_TX/MODE; all when not given
    #[arg(long)]
    variant: Vec<String>,
    /// Have Debezium Server drain the same backlogs in the same runs; fetched when it is not in
    /// the cache
    #[arg(long)]
    with_debezium: bool,
}

/// One backlog, and the modes in which it is drained.
struct Cell {
    source: Source,
    per_tx: u64,
    modes: Vec<Mode>,
}

/// Measures all backlogs, one after another.
pub(crate) async fn measure(options: Options) -> Result<Vec<Figure>, Failure> {
    let cells = options.cells()?;
    let debezium = match options.with_debezium {
        true => Some(Debezium::find().await?),
        false => None,
    };
    let stack = Stack::start(Needs::BOTH.measured()).await?;
    figure::tell(&format!("{} messages of {PAYLOAD_BYTES} bytes", options.messages));
    let mut figures = Vec::new();
    for (number, cell) in cells.iter().enumerate() {
        let mut site = Site::new(&stack, "relay_drain").await?;
        if number == 0 {
            site.tell_durability().await?;
        }
        let rounds = Box::pin(cell.measure(&mut site, &options, debezium.as_ref())).await?;
        figures.extend(cell.figures(&rounds));
        site.clear().await?;
    }
    Ok(figures)
}

impl Options {
    fn cells(&self) -> Result<Vec<Cell>, Failure> {
        let name = |source: Source, per_tx: u64, mode: Mode| {
            format!("{}/{per_tx}/{}", source.name(), mode.name())
        };
        let mut names = Vec::new();
        let mut cells = Vec::new();
        for source in Source::ALL {
            for per_tx in PER_TX {
                names.extend(Mode::ALL.map(|mode| name(source, per_tx, mode)));
                let mut modes = Mode::ALL.to_vec();
                modes.retain(|mode| {
                    self.variant.is_empty() || self.variant.contains(&name(source, per_tx, *mode))
                });
                if !modes.is_empty() {
                    cells.push(Cell { source, per_tx, modes });
                }
            }
        }
        match self.variant.iter().find(|variant| !names.contains(variant)) {
            Some(unknown) => {
                Err(format!("no variant {unknown:?}; there are {}", names.join(", ")).into())
            }
            None => Ok(cells),
        }
    }
}

/// What one run reached.
struct Round {
    reader: Alone,
    recvlogical: Option<f64>,
    producer: Alone,
    /// In the order of the cell's modes.
    relays: Vec<Drained>,
    /// In the order of [`Setup::ALL`]; none when it was not asked for.
    debezium: Vec<Drained>,
}

/// What one relay reached.
#[derive(Clone, Copy)]
pub(crate) struct Drained {
    pub(crate) messages_per_second: f64,
    pub(crate) cpu_us_per_message: f64,
    pub(crate) resident_bytes_max: f64,
}

/// One step of a run.
#[derive(Clone, Copy)]
enum Turn {
    Reader,
    Recvlogical,
    Producer,
    Relay(usize),
    Debezium(Setup),
}

/// A backlog that was written, and slots at its beginning.
struct Written {
    messages: u64,
    /// Where the log ended after the last of them.
    end: Lsn,
    bare_slot: String,
    /// For each run those of the cell's modes.
    relays: Vec<Vec<RelayArguments>>,
    /// For each run those of Debezium's setups.
    debezium: Vec<Vec<String>>,
}

impl Cell {
    async fn measure(
        &self,
        site: &mut Site,
        options: &Options,
        debezium: Option<&Debezium>,
    ) -> Result<Vec<Round>, Failure> {
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}")?;
        let name = format!("{}/{}", self.source.name(), self.per_tx);
        let bar = ProgressBar::new(options.messages).with_style(style).with_prefix(name);
        bar.set_message("messages written");
        let written = self.write(site, options, &bar).await?;
        let setups = debezium.map_or(0, |_| Setup::ALL.len());
        let steps = (3 + self.modes.len() + setups) * usize::from(options.runs);
        bar.set_length(u64::try_from(steps)?);
        bar.set_position(0);
        let mut rounds = Vec::new();
        for run in 0..written.relays.len() {
            rounds.push(Box::pin(self.round(site, &written, run, debezium, &bar)).await?);
        }
        bar.finish_and_clear();
        Ok(rounds)
    }

    /// Makes all slots, then what they will see.
    async fn write(
        &self,
        site: &mut Site,
        options: &Options,
        bar: &ProgressBar,
    ) -> Result<Written, Failure> {
        let mut relays = Vec::new();
        for _ in 0..options.runs {
            let mut run = Vec::new();
            for mode in &self.modes {
                run.push(site.prepared(*mode).await?);
            }
            relays.push(run);
        }
        // After the relays have made the publication, which its reader looks for.
        let bare_slot = site.bare_slot().await?;
        let mut debezium = Vec::new();
        for _ in 0..options.runs {
            let mut run = Vec::new();
            for _ in Setup::ALL.iter().filter(|_| options.with_debezium) {
                run.push(site.bare_slot().await?);
            }
            debezium.push(run);
        }
        let topic = site.topic.clone();
        let backlog = Backlog {
            source: self.source,
            topic: &topic,
            messages: options.messages,
            per_tx: self.per_tx,
        };
        let first = relay_backlog::message(&site.first_topic)?;
        let last = relay_backlog::message(&site.last_topic)?;
        site.write(self.source, &first).await?;
        backlog.write(site.url(), bar).await?;
        site.write(self.source, &last).await?;
        let end = site.log_end().await?;
        // One that falls into somebody's turn would be held against him.
        sqlx::raw_sql("checkpoint").execute(&mut site.connection).await?;
        Ok(Written { messages: options.messages, end, bare_slot, relays, debezium })
    }

    async fn round(
        &self,
        site: &mut Site,
        written: &Written,
        run: usize,
        debezium: Option<&Debezium>,
        bar: &ProgressBar,
    ) -> Result<Round, Failure> {
        let relays = written.relays.get(run).map_or(&[][..], Vec::as_slice);
        let mut turns = vec![Turn::Reader, Turn::Recvlogical, Turn::Producer];
        turns.extend((0..relays.len()).map(Turn::Relay));
        turns.extend(debezium.iter().flat_map(|_| Setup::ALL).map(Turn::Debezium));
        let count = turns.len();
        turns.rotate_left(run % count);
        let (mut reader, mut recvlogical, mut producer) = (None, None, None);
        let mut drained = vec![None; relays.len()];
        let mut beside = vec![None; Setup::ALL.len()];
        let Written { messages, end, bare_slot, .. } = written;
        for turn in turns {
            match turn {
                Turn::Reader => {
                    bar.set_message("reader alone");
                    reader = Some(relay_limits::read(site.url(), bare_slot, *messages).await?);
                }
                Turn::Recvlogical => {
                    bar.set_message("pg_recvlogical");
                    let slot = site.copy_of_slot(bare_slot).await?;
                    recvlogical =
                        relay_limits::recvlogical(site.url(), &slot, *end, *messages).await?;
                }
                Turn::Producer => {
                    bar.set_message("producer alone");
                    let alone = relay_limits::produce(site.brokers(), &site.topic, *messages);
                    producer = Some(alone.await?);
                }
                Turn::Relay(at) => {
                    if let (Some(relay), Some(slot)) = (relays.get(at), drained.get_mut(at)) {
                        bar.set_message(format!("relay, {}", relay.mode.name()));
                        *slot = Some(drain(site, relay, *messages).await?);
                    }
                }
                Turn::Debezium(setup) => {
                    bar.set_message(setup.name());
                    let slots = written.debezium.get(run).into_iter().flatten();
                    let places = Setup::ALL.iter().zip(slots).zip(&mut beside);
                    for ((_, slot), place) in places.filter(|((one, _), _)| **one == setup) {
                        let log = (self.source, slot.as_str());
                        let Some(debezium) = debezium else { continue };
                        *place = Some(debezium.drain(site, setup, log, *messages).await?);
                    }
                }
            }
            bar.inc(1);
        }
        let (Some(reader), Some(producer)) = (reader, producer) else {
            return Err("a turn was left out".into());
        };
        let relays = drained.into_iter().flatten().collect();
        let debezium = beside.into_iter().flatten().collect();
        Ok(Round { reader, recvlogical, producer, relays, debezium })
    }

    fn figures(&self, rounds: &[Round]) -> Vec<Figure> {
        let of = |what: &dyn Fn(&Round) -> Option<f64>| -> Vec<f64> {
            rounds.iter().filter_map(what).collect()
        };
        let name = |what: &str| format!("{}/{}/{what}", self.source.name(), self.per_tx);
        let rate = |variant: String, values: Vec<f64>, reference, references: Vec<f64>| {
            let what = ("messages_per_second", "messages/s");
            figure(variant, what, &values, reference, &references)
        };
        let reader = of(&|round| Some(round.reader.messages_per_second));
        let producer = of(&|round| Some(round.producer.messages_per_second));
        let recvlogical = of(&|round| round.recvlogical);
        let lower: Vec<f64> =
            reader.iter().zip(&producer).map(|(reader, producer)| reader.min(*producer)).collect();
        let mut figures = Vec::new();
        if recvlogical.len() == rounds.len() {
            figures.push(rate(name("reader-alone"), reader, "pg_recvlogical", recvlogical));
        } else {
            figures.push(rate(name("reader-alone"), reader.clone(), "itself", reader));
        }
        figures.push(rate(name("producer-alone"), producer.clone(), "itself", producer));
        for (at, mode) in self.modes.iter().enumerate() {
            let drained = |what: &dyn Fn(&Drained) -> f64| {
                of(&|round: &Round| round.relays.get(at).map(what))
            };
            let variant = name(mode.name());
            figures.push(rate(
                variant.clone(),
                drained(&|relay| relay.messages_per_second),
                "the lower of reader and producer alone",
                lower.clone(),
            ));
            figures.push(figure(
                variant.clone(),
                ("cpu_us_per_message", "us"),
                &drained(&|relay| relay.cpu_us_per_message),
                "reader and producer alone",
                &of(&|round| {
                    Some(round.reader.cpu_us_per_message + round.producer.cpu_us_per_message)
                }),
            ));
            figures.push(figure(
                variant,
                ("resident_bytes_max", "bytes"),
                &drained(&|relay| relay.resident_bytes_max),
                "goal",
                &vec![RESIDENT_BYTES_GOAL; rounds.len()],
            ));
        }
        figures.extend(self.beside_debezium(rounds));
        figures
    }

    /// Each of Debezium's figures, by the relay's of the same run in the first mode.
    fn beside_debezium(&self, rounds: &[Round]) -> Vec<Figure> {
        let mut figures = Vec::new();
        for (at, setup) in Setup::ALL.iter().enumerate() {
            let pairs: Vec<(Drained, Drained)> = rounds
                .iter()
                .filter_map(|round| Some((*round.debezium.get(at)?, *round.relays.first()?)))
                .collect();
            if pairs.is_empty() {
                continue;
            }
            let variant = format!("{}/{}/{}", self.source.name(), self.per_tx, setup.name());
            let reference = self.modes.first().map_or("", |mode| mode.name());
            let mut add = |what, of: &dyn Fn(&Drained) -> f64| {
                let theirs: Vec<f64> = pairs.iter().map(|(theirs, _)| of(theirs)).collect();
                let ours: Vec<f64> = pairs.iter().map(|(_, ours)| of(ours)).collect();
                figures.push(figure(variant.clone(), what, &theirs, reference, &ours));
            };
            add(("messages_per_second", "messages/s"), &|one| one.messages_per_second);
            add(("cpu_us_per_message", "us"), &|one| one.cpu_us_per_message);
            add(("resident_bytes_max", "bytes"), &|one| one.resident_bytes_max);
        }
        figures
    }
}

/// Medians, of the values and of their ratios, run by run.
fn figure(
    variant: String,
    (metric, unit): (&'static str, &'static str),
    values: &[f64],
    reference: &'static str,
    references: &[f64],
) -> Figure {
    let ratios: Vec<f64> =
        values.iter().zip(references).map(|(value, reference)| value / reference).collect();
    Figure {
        scenario: "relay-drain",
        variant,
        metric,
        unit,
        value: quantile(values, 0.5),
        reference,
        reference_value: quantile(references, 0.5),
        ratio: quantile(&ratios, 0.5),
        runs: values.len(),
        min: quantile(&ratios, 0.0),
        max: quantile(&ratios, 1.0),
    }
}

/// Has a relay publish the backlog.
async fn drain(site: &Site, arguments: &RelayArguments, messages: u64) -> Result<Drained, Failure> {
    // Slower than this is no figure to publish.
    let limit = Duration::from_secs(60) + Duration::from_millis(messages / 5);
    let brokers = site.brokers();
    let (topic, at) = (site.topic.clone(), brokers.to_owned());
    let before =
        relay_reader::blocking(move || relay_reader::ends(&at, &topic, PARTITIONS)).await?;
    let first = Lookout::open(brokers, &site.first_topic, Isolation::Uncommitted).await?;
    let last = Lookout::open(brokers, &site.last_topic, Isolation::Committed).await?;
    let mut relay = RelayProcess::start(arguments)?;
    let began = relay.during(first.next(limit)).await?;
    let used_before = relay.usage()?;
    let ended = relay.during(last.next(limit)).await?;
    let used = relay.usage()?;
    relay.stop().await?;
    let arrived = relay_reader::count(brokers, &site.topic, before, limit).await?;
    if arrived != messages {
        return Err(format!("of {messages} messages {arrived} arrived").into());
    }
    Ok(Drained {
        messages_per_second: messages as f64 / (ended - began).as_secs_f64(),
        cpu_us_per_message: (used.cpu - used_before.cpu).as_secs_f64() * 1e6 / messages as f64,
        resident_bytes_max: used.resident_bytes_max as f64,
    })
}
