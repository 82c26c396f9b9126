//! How long a saga takes from its order to its end: three steps, seven hops through relays and Kafka.
//!
//! Orders are written at times that were fixed beforehand, each in a transaction of its own; a latency counts from the fixed
//! time to when a listener is told by Postgres of the commit that has ended the saga. Engine, services and relays are
//! processes of their own; orchestrator and services have a database and a relay each.

use std::error::Error;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool};
use tailrace_outbox::Message;
use tailrace_stack::{Database, Stack, unique};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout_at};

use super::process::Place;
use super::shop::{EFFECTS, ORDER_PLACED, ORDERS, Order, Service, make_topics};
use crate::figure::{self, Figure, quantile};
use crate::relay_process::{Mode, RelayArguments, RelayProcess};

type Failure = Box<dyn Error + Send + Sync>;

/// The listener is told of each saga's end. It costs the engine's transactions something, and hides nothing.
const TELL: &str = "
    create function tell() returns trigger language plpgsql as $$
    begin
        perform pg_notify('ended', new.instance -> 'data' ->> 'number');
        return null;
    end $$;
    create trigger tell after update on tailrace.saga_instance for each row
        when (new.status = 'completed' and old.status <> 'completed') execute function tell()";

/// How long the last saga may take.
const LATE_MAX: Duration = Duration::from_secs(30);

/// Time to connect before the first order is due.
const HEAD_START: Duration = Duration::from_millis(500);

/// Connections that place orders.
const WRITERS: u64 = 8;

/// A rate is held where 99 of 100 sagas end within this.
const HELD_MS: f64 = 1_000.0;

/// How much is measured.
#[derive(Args, Debug)]
#[group(skip)]
pub(crate) struct Options {
    /// Orders per second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Seconds that count
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// Seconds before them that do not; the broker's compiler needs more than a minute, and much of two cores
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(..=600))]
    warm_up_seconds: u32,
    /// Seconds at each higher rate, to find the largest that holds; 0 for none
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(..=600))]
    climb_seconds: u32,
    /// The mode of the relays, exactly-once or at-least-once; both when not given
    #[arg(long)]
    mode: Vec<String>,
    /// Services in one database with one relay, instead of each in its own
    #[arg(long)]
    one_database: bool,
    /// How long a batch waits for more records, in microseconds
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    batch_wait_us: u64,
    /// How long relays have records wait for others, in milliseconds, as docs/operating.md advises for a small machine: the
    /// linger of transactions, 10 where it is not given, or of batches where delivery is at least once, then 2
    #[arg(long, value_parser = clap::value_parser!(u64).range(..=1_000))]
    relay_linger_ms: Option<u64>,
    /// Partitions of each topic. Each has a transaction of its own, so that more of them are more transactions for the
    /// same sagas
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    partitions: u32,
}

/// Databases, topics and processes.
struct Site {
    orders: Home,
    services: Vec<Home>,
    place: Place,
    processes: Vec<RelayProcess>,
}

/// A database with its relay.
struct Home {
    database: Database,
    relay: RelayProcess,
}

/// Orders and when they are due.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    start: Instant,
    rate: u32,
    /// The number of the first one.
    first: u64,
    orders: u64,
    /// Those at the beginning that do not count.
    warm_up: u64,
}

pub(crate) async fn measure(stack: &Stack, options: &Options) -> Result<Vec<Figure>, Failure> {
    let modes: Vec<Mode> = Mode::ALL
        .into_iter()
        .filter(|mode| options.mode.is_empty() || options.mode.iter().any(|it| it == mode.name()))
        .collect();
    if modes.is_empty() {
        return Err("there is no such mode".into());
    }
    let mut figures = Vec::new();
    for mode in modes {
        figure::tell(&format!(
            "{}: relays gather for {:?}, consumers for {:?}; {} partitions of each topic",
            mode.name(),
            options.gather(mode),
            Duration::from_micros(options.batch_wait_us),
            options.partitions,
        ));
        let mut site = Site::new(stack, mode, options).await?;
        figures.extend(site.measure(mode, options).await?);
        site.end().await?;
    }
    Ok(figures)
}

impl Options {
    fn gather(&self, mode: Mode) -> Duration {
        let default = match mode {
            Mode::ExactlyOnce => 10,
            Mode::AtLeastOnce => 2,
        };
        Duration::from_millis(self.relay_linger_ms.unwrap_or(default))
    }
}

impl Home {
    async fn new(
        stack: &Stack,
        name: &str,
        mode: Mode,
        options: &Options,
    ) -> Result<Self, Failure> {
        let database = stack.postgres().fresh_database(name).await?;
        let mut conn = PgConnection::connect(database.url()).await?;
        tailrace_idempotency::schema::install(&mut conn).await?;
        tailrace_idempotency::retention::make_partitions_ahead(&mut conn).await?;
        tailrace_saga::schema::install(&mut conn).await?;
        sqlx::raw_sql(EFFECTS).execute(&mut conn).await?;
        let mut relay = RelayProcess::start(&RelayArguments {
            database_url: database.url().to_owned(),
            brokers: stack.kafka().brokers().to_owned(),
            slot: unique(name),
            mode,
            gather: Some(options.gather(mode)),
        })?;
        relay.says("leading").await?;
        Ok(Self { database, relay })
    }
}

impl Site {
    async fn new(stack: &Stack, mode: Mode, options: &Options) -> Result<Self, Failure> {
        let brokers = stack.kafka().brokers().to_owned();
        let prefix = format!("{}.", unique("saga"));
        make_topics(&brokers, &prefix, i32::try_from(options.partitions)?).await?;
        let orders = Home::new(stack, "saga_orders", mode, options).await?;
        let mut conn = PgConnection::connect(orders.database.url()).await?;
        sqlx::raw_sql(TELL).execute(&mut conn).await?;
        let mut services = vec![Home::new(stack, "saga_service", mode, options).await?];
        let place = Place {
            database_url: orders.database.url().to_owned(),
            kafka_brokers: brokers,
            prefix,
            batch_wait_us: options.batch_wait_us,
            partitions: options.partitions,
        };
        let mut processes = vec![place.engine().await?];
        for (at, service) in Service::ALL.into_iter().enumerate() {
            if at > 0 && !options.one_database {
                services.push(Home::new(stack, "saga_service", mode, options).await?);
            }
            let home = services.last().ok_or("a service has a database")?;
            let database_url = home.database.url().to_owned();
            let place = Place { database_url, ..place.clone() };
            processes.push(place.participant(service).await?);
        }
        Ok(Self { orders, services, place, processes })
    }

    async fn measure(&mut self, mode: Mode, options: &Options) -> Result<Vec<Figure>, Failure> {
        let warm_up = u64::from(options.rate) * u64::from(options.warm_up_seconds);
        let counted = u64::from(options.rate) * u64::from(options.seconds);
        let schedule = Schedule {
            start: Instant::now(),
            rate: options.rate,
            first: 0,
            orders: warm_up + counted,
            warm_up,
        };
        let latencies = self.round(schedule).await?;
        let goal = match mode {
            Mode::ExactlyOnce => 150.0,
            Mode::AtLeastOnce => 80.0,
        };
        let variant = format!("end-to-end/{}/{}", options.rate, mode.name());
        let mut figures = vec![
            milliseconds(&variant, "p50_ms", quantile(&latencies, 0.5), goal),
            milliseconds(&variant, "p99_ms", quantile(&latencies, 0.99), goal),
        ];
        let held = match options.climb_seconds {
            0 => None,
            seconds => self.climb(mode, schedule, seconds).await,
        };
        if let Some(rate) = held {
            figures.push(Figure {
                variant: format!("end-to-end/{}", mode.name()),
                metric: "sagas_per_second_max",
                unit: "/s",
                value: f64::from(rate),
                reference: "the rate above",
                reference_value: f64::from(options.rate),
                ratio: f64::from(rate) / f64::from(options.rate),
                ..milliseconds(&variant, "", 0.0, 1.0)
            });
        }
        Ok(figures)
    }

    /// A quarter more each time, for so many seconds; answers with the last rate that held.
    async fn climb(&mut self, mode: Mode, mut schedule: Schedule, seconds: u32) -> Option<u32> {
        let mut held = None;
        loop {
            schedule.first += schedule.orders;
            schedule.rate += schedule.rate / 4;
            schedule.orders = u64::from(schedule.rate) * u64::from(seconds);
            schedule.warm_up = schedule.orders / 2;
            let latencies = match self.round(schedule).await {
                Ok(latencies) => latencies,
                Err(failure) => {
                    figure::tell(&format!("{} per second: {failure}", schedule.rate));
                    return held;
                }
            };
            let (half, rare) = (quantile(&latencies, 0.5), quantile(&latencies, 0.99));
            figure::tell(&format!(
                "{}, {} per second: {half:.1} ms (p50), {rare:.1} ms (p99)",
                mode.name(),
                schedule.rate,
            ));
            if rare > HELD_MS {
                return held;
            }
            held = Some(schedule.rate);
        }
    }

    /// Places orders and waits for the ends of their sagas; answers with the milliseconds of those that count.
    async fn round(&mut self, schedule: Schedule) -> Result<Vec<f64>, Failure> {
        let schedule = Schedule { start: Instant::now() + HEAD_START, ..schedule };
        let pool = PgPoolOptions::new()
            .max_connections(u32::try_from(WRITERS)? + 1)
            .connect(self.orders.database.url())
            .await?;
        let mut listener = PgListener::connect(self.orders.database.url()).await?;
        listener.listen("ended").await?;
        let topic = format!("{}{ORDERS}", self.place.prefix);
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            writers.spawn(write(pool.clone(), topic.clone(), schedule, writer));
        }
        let bar = ProgressBar::new(schedule.orders).with_message("sagas");
        let listening = listen(&mut listener, schedule, &bar);
        let latencies = self.orders.relay.during(listening).await?;
        while let Some(written) = writers.join_next().await {
            written??;
        }
        bar.finish_and_clear();
        pool.close().await;
        Ok(latencies)
    }

    async fn end(self) -> Result<(), Failure> {
        for process in self.processes {
            process.end().await?;
        }
        for home in self.services.into_iter().chain([self.orders]) {
            home.relay.end().await?;
        }
        Ok(())
    }
}

impl Schedule {
    fn due(&self, order: u64) -> Instant {
        self.start + Duration::from_secs_f64(order as f64 / f64::from(self.rate))
    }
}

/// Places every eighth order, each when it is due.
async fn write(
    pool: PgPool,
    topic: String,
    schedule: Schedule,
    writer: u64,
) -> Result<(), Failure> {
    let mut conn = pool.acquire().await?;
    for order in (writer..schedule.orders).step_by(usize::try_from(WRITERS)?) {
        let message = Message::builder(&*topic, ORDER_PLACED)
            .source("/shop")
            .key(format!("order-{}", schedule.first + order))
            .json(&Order::new(schedule.first + order))
            .build()?;
        sleep_until(schedule.due(order).into()).await;
        tailrace_outbox::write(&mut conn, &message).await?;
    }
    Ok(())
}

async fn listen(
    listener: &mut PgListener,
    schedule: Schedule,
    bar: &ProgressBar,
) -> Result<Vec<f64>, Failure> {
    let deadline = schedule.due(schedule.orders) + LATE_MAX;
    let mut latencies = Vec::new();
    let mut ended = 0;
    while ended < schedule.orders {
        let told = match timeout_at(deadline.into(), listener.recv()).await {
            Ok(told) => told?,
            Err(_) => return Err(format!("{ended} of {} sagas ended", schedule.orders).into()),
        };
        let seen = Instant::now();
        let number: u64 = told.payload().parse()?;
        // Of an earlier round, which was given up.
        let Some(order) = number.checked_sub(schedule.first) else { continue };
        ended += 1;
        if ended % 50 == 0 {
            bar.inc(50);
        }
        if order >= schedule.warm_up {
            latencies.push((seen - schedule.due(order)).as_secs_f64() * 1e3);
        }
    }
    Ok(latencies)
}

fn milliseconds(variant: &str, metric: &'static str, value: f64, goal: f64) -> Figure {
    Figure {
        scenario: "saga",
        variant: variant.to_owned(),
        metric,
        unit: "ms",
        value,
        reference: "goal of the 99th percentile",
        reference_value: goal,
        ratio: value / goal,
        runs: 1,
        min: value / goal,
        max: value / goal,
    }
}
