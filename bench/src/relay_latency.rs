//! How long a message is under way: from just before the statement that writes it to a consumer.
//!
//! Messages are written at times that were fixed beforehand, a thousand transactions a second, by
//! as many connections as it takes to keep those times; a latency counts from the fixed time, so
//! that a writer who was held up hides nothing. Writer and consumer share one clock. The consumer
//! reads with `isolation.level=read_committed` where the relay works exactly once.
//!
//! Beside the relay Kafka alone: producers that have the same messages in memory and commit them as
//! the relay does.

use std::error::Error;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use rdkafka::Message as _;
use rdkafka::consumer::BaseConsumer;
use sqlx::{Connection, PgConnection};
use tailrace_outbox::Message;
use tailrace_stack::{Needs, Stack};
use tokio::sync::oneshot;

use crate::figure::{self, Figure, quantile};
use crate::relay_backlog::{PAYLOAD_BYTES, Source};
use crate::relay_floor;
use crate::relay_process::{Mode, RelayProcess};
use crate::relay_reader::{self, Isolation};
use crate::relay_site::{PARTITIONS, Site};

type Failure = Box<dyn Error + Send + Sync>;

/// Messages per second.
const RATES: [u32; 2] = [1_000, 10_000];

/// Transactions per second; what is more comes in larger ones.
const TRANSACTIONS: u32 = 1_000;

/// Connections that write: each has some milliseconds for a statement.
const WRITERS: u32 = 8;

/// Digits of the time at the head of a payload.
const TIME_DIGITS: usize = 16;

/// How long the last message may be under way.
const LATE_MAX: Duration = Duration::from_secs(30);

/// Time to connect before the first message is due.
const HEAD_START: Duration = Duration::from_millis(500);

/// What and how long is measured.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// How often each variant is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
    /// Seconds that count
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// Seconds before them that do not; the broker's compiler needs some
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(..=600))]
    warm_up_seconds: u32,
    /// Variants to measure, as RATE/MODE or RATE/kafka-alone; all when not given
    #[arg(long)]
    variant: Vec<String>,
}

/// A rate and a mode; without a mode it is that of Kafka alone.
#[derive(Clone, Copy, Debug)]
struct Variant {
    rate: u32,
    mode: Option<Mode>,
}

/// Messages and when they are due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    start: Instant,
    rate: u32,
    /// Messages of a transaction, which are due together.
    per_tx: u32,
    /// Those of the warm-up, which do not count.
    pub(crate) warm_up: u32,
    pub(crate) messages: u32,
}

/// Milliseconds, of one run.
struct Round {
    latencies: Vec<f64>,
    /// From when a message was due to its statement.
    late: Vec<f64>,
    /// A statement's own time.
    statements: Vec<f64>,
}

/// Measures all variants, one after another.
pub(crate) async fn measure(options: Options) -> Result<Vec<Figure>, Failure> {
    let variants = options.variants()?;
    let stack = Stack::start(Needs::BOTH.measured()).await?;
    let steps = variants.len() * usize::from(options.runs);
    let bar = ProgressBar::new(u64::try_from(steps)?).with_message("runs");
    let mut figures = Vec::new();
    for (number, variant) in variants.iter().enumerate() {
        let mut site = Site::new(&stack, "relay_latency").await?;
        if number == 0 {
            site.tell_durability().await?;
        }
        let mut relay = match variant.mode {
            Some(mode) => {
                let arguments = site.prepared(mode).await?;
                let mut relay = RelayProcess::start(&arguments)?;
                relay.says("leading").await?;
                Some(relay)
            }
            None => None,
        };
        let mut rounds = Vec::new();
        for _ in 0..options.runs {
            let round = variant.round(&site, &options);
            rounds.push(match &mut relay {
                Some(relay) => relay.during(round).await?,
                None => round.await?,
            });
            bar.inc(1);
        }
        if let Some(relay) = relay {
            relay.stop().await?;
        }
        variant.tell_writers(&rounds);
        figures.extend(variant.figures(&rounds));
        site.clear().await?;
    }
    bar.finish_and_clear();
    Ok(figures)
}

impl Options {
    fn variants(&self) -> Result<Vec<Variant>, Failure> {
        let modes = [None].into_iter().chain(Mode::ALL.map(Some));
        let all = modes.flat_map(|mode| RATES.map(|rate| Variant { rate, mode }));
        let all: Vec<Variant> = all.collect();
        let names: Vec<String> = all.iter().map(Variant::name).collect();
        if let Some(unknown) = self.variant.iter().find(|variant| !names.contains(variant)) {
            return Err(format!("no variant {unknown:?}; there are {}", names.join(", ")).into());
        }
        let wanted =
            |variant: &Variant| self.variant.is_empty() || self.variant.contains(&variant.name());
        Ok(all.into_iter().filter(wanted).collect())
    }
}

impl Variant {
    fn name(&self) -> String {
        format!("{}/{}", self.rate, self.mode.map_or("kafka-alone", Mode::name))
    }

    /// What a median and a 99th percentile should be at most, in milliseconds.
    fn goals(self) -> (f64, f64) {
        match (self.mode, self.rate) {
            // What Kafka takes alone is measured by the goal of the relay that commits like it.
            (None | Some(Mode::ExactlyOnce), ..=1_000) => (5.0, 12.0),
            (None | Some(Mode::ExactlyOnce), _) => (7.0, 20.0),
            (Some(Mode::AtLeastOnce), ..=1_000) => (2.0, 6.0),
            // The median has no goal of its own here: that of the percentile bounds it.
            (Some(Mode::AtLeastOnce), _) => (12.0, 12.0),
        }
    }

    async fn round(self, site: &Site, options: &Options) -> Result<Round, Failure> {
        let (brokers, topic) = (site.brokers().to_owned(), site.topic.clone());
        let consumer = relay_reader::blocking(move || {
            let consumer = relay_reader::consumer(&brokers, Isolation::Committed)?;
            let ends = relay_reader::ends(&brokers, &topic, PARTITIONS)?;
            relay_reader::assign(&consumer, &topic, &ends)?;
            Ok(consumer)
        })
        .await?;
        let warm_up = self.rate * options.warm_up_seconds;
        let schedule = Schedule {
            start: Instant::now() + HEAD_START,
            rate: self.rate,
            per_tx: (self.rate / TRANSACTIONS).max(1),
            warm_up,
            messages: warm_up + self.rate * options.seconds,
        };
        let consumed = on_a_thread("consumer", move || consume(&consumer, schedule))?;
        if self.mode.is_none() {
            let late = relay_floor::send_all(site.brokers(), &site.topic, schedule).await?;
            return Ok(Round { latencies: consumed.await??, late, statements: Vec::new() });
        }
        let mut writers = Vec::new();
        for writer in 0..WRITERS {
            let (url, topic) = (site.url().to_owned(), site.topic.clone());
            let write = move || write(&url, &topic, schedule, writer);
            writers.push(on_a_thread("writer", write)?);
        }
        let (mut late, mut statements) = (Vec::new(), Vec::new());
        for writer in writers {
            let written = writer.await??;
            late.extend(written.iter().map(|(late, _)| *late));
            statements.extend(written.iter().map(|(_, statement)| *statement));
        }
        Ok(Round { latencies: consumed.await??, late, statements })
    }

    /// Says what the writers were like: the consumer can not be before them.
    fn tell_writers(&self, rounds: &[Round]) {
        let of = |what: &dyn Fn(&Round) -> f64| {
            quantile(&rounds.iter().map(what).collect::<Vec<_>>(), 0.5)
        };
        figure::tell(&format!(
            "{}: a statement began late by {:.2} ms (p50), {:.2} ms (p99), and took {:.2} ms (p50), \
             {:.2} ms (p99)",
            self.name(),
            of(&|round| quantile(&round.late, 0.5)),
            of(&|round| quantile(&round.late, 0.99)),
            of(&|round| quantile(&round.statements, 0.5)),
            of(&|round| quantile(&round.statements, 0.99)),
        ));
    }

    fn figures(&self, rounds: &[Round]) -> [Figure; 2] {
        let figure = |metric: &'static str, share: f64, goal: f64| {
            let values: Vec<f64> =
                rounds.iter().map(|round| quantile(&round.latencies, share)).collect();
            let value = quantile(&values, 0.5);
            Figure {
                scenario: "relay-latency",
                variant: self.name(),
                metric,
                unit: "ms",
                value,
                reference: "goal",
                reference_value: goal,
                ratio: value / goal,
                runs: rounds.len(),
                min: quantile(&values, 0.0) / goal,
                max: quantile(&values, 1.0) / goal,
            }
        };
        let (median, rare) = self.goals();
        [figure("p50_ms", 0.5, median), figure("p99_ms", 0.99, rare)]
    }
}

impl Schedule {
    pub(crate) fn due(&self, number: u32) -> Instant {
        let first = number - number % self.per_tx;
        self.start + Duration::from_secs_f64(f64::from(first) / f64::from(self.rate))
    }

    /// A message that carries when it was due.
    pub(crate) fn message(
        &self,
        topic: &str,
        number: u32,
        due: Instant,
    ) -> Result<Message, Failure> {
        let mut payload = format!("{:0TIME_DIGITS$x}", (due - self.start).as_nanos()).into_bytes();
        payload.resize(PAYLOAD_BYTES, b'x');
        let message = Message::builder(topic, "order.placed.v1").source("/orders");
        Ok(message.key(format!("{number:08}")).payload(payload).build()?)
    }

    /// When the message with this payload was due.
    fn due_of(&self, payload: &[u8]) -> Option<Instant> {
        let digits = std::str::from_utf8(payload.get(..TIME_DIGITS)?).ok()?;
        Some(self.start + Duration::from_nanos(u64::from_str_radix(digits, 16).ok()?))
    }
}

/// Writes every transaction that is this writer's, each when it is due; answers for each that counts
/// how late it began and how long it took.
fn write(
    url: &str,
    topic: &str,
    schedule: Schedule,
    writer: u32,
) -> Result<Vec<(f64, f64)>, Failure> {
    // One for each writer: its thread sleeps until the very moment, which a timer that is shared
    // by all does not offer.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut connection = runtime.block_on(PgConnection::connect(url))?;
    let outbox = Source::Message.outbox();
    let mut written = Vec::new();
    let step = usize::try_from(WRITERS * schedule.per_tx)?;
    for number in (writer * schedule.per_tx..schedule.messages).step_by(step) {
        let due = schedule.due(number);
        let numbers = number..(number + schedule.per_tx).min(schedule.messages);
        let messages = numbers.map(|number| schedule.message(topic, number, due));
        let messages = messages.collect::<Result<Vec<_>, _>>()?;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let began = Instant::now();
        runtime.block_on(outbox.write_all(&mut connection, &messages))?;
        if number >= schedule.warm_up {
            written.push((ms(began - due), ms(began.elapsed())));
        }
    }
    Ok(written)
}

/// Reads until all messages are there; answers with the latencies of those that count.
fn consume(consumer: &BaseConsumer, schedule: Schedule) -> Result<Vec<f64>, Failure> {
    let counted_from = schedule.due(schedule.warm_up);
    let deadline = schedule.due(schedule.messages) + LATE_MAX;
    let mut latencies = Vec::new();
    for number in 0..schedule.messages {
        let record = loop {
            match consumer.poll(Duration::from_millis(100)) {
                Some(record) => break record?,
                None if Instant::now() > deadline => {
                    let all = schedule.messages;
                    return Err(format!("of {all} messages {number} arrived").into());
                }
                None => {}
            }
        };
        let seen = Instant::now();
        let due = record.payload().and_then(|payload| schedule.due_of(payload));
        let due = due.ok_or("a record is none of ours")?;
        if due >= counted_from {
            latencies.push(ms(seen - due));
        }
    }
    Ok(latencies)
}

/// Runs this on a thread that it has for itself.
pub(crate) fn on_a_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, Failure> {
    let (answer, answered) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // The receiver is gone when another part of the run has failed.
        answer.send(work()).ok();
    })?;
    Ok(answered)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
