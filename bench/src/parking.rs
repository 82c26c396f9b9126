//! What one poisoned key costs the others.
//!
//! Messages of 10,000 keys are produced at fixed times, and a consumer of ours applies each by a handler call. In
//! every second turn the messages of one key fail until all have been produced; that turn's p99 of the other keys is
//! measured against the turn before. Then the key is cured, and every message of every key must have its effect, once
//! and in order. A latency counts from the time at which a message was to be produced to the statement that applies it
//! for good; producer and database share one clock.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use indicatif::ProgressBar;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgPool};
use tailrace_idempotency::{BoxError, Config, Consumer, Counters, Cx, Outcome, Report, schema};
use tailrace_stack::{Needs, Stack, unique};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::consumer_topic;
use crate::figure::{self, Figure, quantile};
use crate::relay_reader::blocking;

type Failure = Box<dyn Error + Send + Sync>;

const KEYS: u64 = 10_000;
const PARTITIONS: i32 = 6;
/// The number of the poisoned key.
const POISONED: u64 = 4_711;
/// How long the last message may be under way.
const LATE_MAX: Duration = Duration::from_secs(60);

const SCHEMA: &str = "create table booking (
    n bigserial, message_id uuid not null, account bigint not null, number bigint not null, late_ms float8 not null)";

/// What and how long is measured.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Pairs of turns, one without poison and one with it
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
    /// Messages per second
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(100..=100_000))]
    rate: u64,
    /// Seconds that count
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Seconds before them that do not
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(..=600))]
    warm_up_seconds: u64,
    /// Every so many messages one is of the poisoned key, whatever its share among the keys
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(2..=1_000_000))]
    poison_every: u64,
}

#[derive(Serialize, Deserialize)]
struct Booked {
    account: u64,
    number: u64,
    due_micros: u64,
}

/// Milliseconds of one turn.
struct Turn {
    p50: f64,
    p99: f64,
    report: Report,
}

/// Measures pairs of turns.
pub(crate) async fn measure(options: Options) -> Result<Vec<Figure>, Failure> {
    let stack = Stack::start(Needs::BOTH).await?;
    let bar = ProgressBar::new(u64::from(options.runs) * 2).with_message("turns");
    // Servers that have just started are slow, and would be so for the first turn alone.
    turn(&stack, &Options { seconds: 2, warm_up_seconds: 0, ..options }, false).await?;
    let mut pairs = Vec::new();
    for _ in 0..options.runs {
        let healthy = turn(&stack, &options, false).await?;
        bar.inc(1);
        let poisoned = turn(&stack, &options, true).await?;
        bar.inc(1);
        pairs.push((healthy, poisoned));
    }
    bar.finish_and_clear();
    if let Some((_, poisoned)) = pairs.last() {
        let Report { applied, parked, replayed, failed_attempts, .. } = poisoned.report;
        figure::tell(&format!(
            "last turn with poison: {applied} applied, {parked} parked, {replayed} replayed in order, \
             {failed_attempts} failed attempts"
        ));
    }
    Ok(vec![figure(&pairs, "p99_ms", |turn| turn.p99), figure(&pairs, "p50_ms", |turn| turn.p50)])
}

async fn turn(stack: &Stack, options: &Options, poison: bool) -> Result<Turn, Failure> {
    let database = stack.postgres().fresh_database("parking").await?;
    let pool = pool(database.url()).await?;
    let brokers = stack.kafka().brokers().to_owned();
    let topic = stack.kafka().fresh_topic("parking", PARTITIONS).await?;
    let poison = Arc::new(AtomicBool::new(poison));
    let config = Config::new(unique("parking"), &brokers, pool.clone()).state(Arc::clone(&poison));
    let consumer = Consumer::new(config).topic(&topic).on("booked.v1", book);
    let counters = consumer.counters();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(consumer.run(async move {
        stopped.await.ok();
    }));
    let warm_up = options.rate * options.warm_up_seconds;
    let messages = warm_up + options.rate * options.seconds;
    produce(&brokers, &topic, messages, options).await?;
    // Every message has its effect or is parked: what comes late counts too.
    wait(&counters, |report| report.applied + report.parked - report.replayed >= messages).await?;
    poison.store(false, Ordering::Relaxed);
    wait(&counters, |report| report.applied >= messages).await?;
    stop.send(()).ok();
    let report = running.await??;
    check(&pool, messages).await?;
    let p = |share: f64| late(&pool, warm_up, share);
    let turn = Turn { p50: p(0.5).await?, p99: p(0.99).await?, report };
    pool.close().await;
    Ok(turn)
}

async fn pool(url: &str) -> Result<PgPool, Failure> {
    let options: PgConnectOptions = url.parse()?;
    let pool = PgPoolOptions::new()
        .max_connections(u32::try_from(PARTITIONS)? + 2)
        .connect_with(options.disable_statement_logging())
        .await?;
    let mut connection = pool.acquire().await?;
    schema::install(&mut connection).await?;
    sqlx::raw_sql(SCHEMA).execute(&mut *connection).await?;
    drop(connection);
    Ok(pool)
}

async fn book(cx: Cx<'_, Arc<AtomicBool>>, message: Booked) -> Result<Outcome, BoxError> {
    sqlx::query(
        "insert into booking (message_id, account, number, late_ms) values ($1, $2, $3,
             extract(epoch from clock_timestamp())::float8 * 1000 - $4::float8 / 1000)",
    )
    .bind(cx.meta.message_id().as_uuid())
    .bind(i64::try_from(message.account)?)
    .bind(i64::try_from(message.number)?)
    .bind(message.due_micros as f64)
    .execute(cx.conn)
    .await?;
    match message.account == POISONED && cx.state.load(Ordering::Relaxed) {
        true => Err("poisoned".into()),
        false => Ok(Outcome::Done),
    }
}

/// Produces each message at its time; one that could not be sent in time counts from it all the same.
async fn produce(
    brokers: &str,
    topic: &str,
    messages: u64,
    options: &Options,
) -> Result<(), Failure> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    let (rate, poison_every) = (options.rate, options.poison_every);
    blocking(move || {
        let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "0")
            .create()?;
        let began = (Instant::now(), SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?);
        for number in 0..messages {
            let after = Duration::from_secs_f64(number as f64 / rate as f64);
            std::thread::sleep((began.0 + after).saturating_duration_since(Instant::now()));
            let due_micros = u64::try_from((began.1 + after).as_micros())?;
            let account = if number % poison_every == 0 { POISONED } else { number % KEYS };
            send(&producer, &topic, &Booked { account, number, due_micros })?;
        }
        producer.flush(LATE_MAX)?;
        Ok(())
    })
    .await
}

fn send(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    message: &Booked,
) -> Result<(), Failure> {
    let (id, key) = (Uuid::now_v7().to_string(), message.account.to_string());
    let payload = serde_json::to_vec(message)?;
    let record =
        BaseRecord::to(topic).key(&key).payload(&payload).headers(consumer_topic::headers(&id));
    producer.send(record).map_err(|(error, _)| error)?;
    Ok(())
}

async fn wait(counters: &Counters, holds: impl Fn(&Report) -> bool) -> Result<(), Failure> {
    let deadline = Instant::now() + LATE_MAX;
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    loop {
        tick.tick().await;
        let report = counters.report();
        if holds(&report) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("not all messages had an effect in time: {report:?}").into());
        }
    }
}

/// Every message once, in order per key, and nothing left behind.
async fn check(pool: &PgPool, messages: u64) -> Result<(), Failure> {
    let (effects, doubles, late, parked): (i64, i64, i64, i64) = sqlx::query_as(
        "select count(*), count(*) - count(distinct message_id),
                count(*) filter (where number < before),
                (select count(*) from tailrace.parked_message)
         from (select *, lag(number) over (partition by account order by n) as before from booking) b",
    )
    .fetch_one(pool)
    .await?;
    if (u64::try_from(effects)?, doubles, late, parked) != (messages, 0, 0, 0) {
        return Err(format!(
            "{effects} effects of {messages} messages, {doubles} doubled, {late} out of order, {parked} parked"
        )
        .into());
    }
    Ok(())
}

/// Milliseconds that messages of other keys were under way.
async fn late(pool: &PgPool, from: u64, share: f64) -> Result<f64, Failure> {
    let late: f64 = sqlx::query_scalar(
        "select percentile_cont($1) within group (order by late_ms) from booking
         where account <> $2 and number >= $3",
    )
    .bind(share)
    .bind(i64::try_from(POISONED)?)
    .bind(i64::try_from(from)?)
    .fetch_one(pool)
    .await?;
    Ok(late)
}

fn figure(pairs: &[(Turn, Turn)], metric: &'static str, of: impl Fn(&Turn) -> f64) -> Figure {
    let median = |values: Vec<f64>| quantile(&values, 0.5);
    let ratios: Vec<f64> =
        pairs.iter().map(|(healthy, poisoned)| of(poisoned) / of(healthy)).collect();
    Figure {
        scenario: "parking",
        variant: "other-keys".to_owned(),
        metric,
        unit: "ms",
        value: median(pairs.iter().map(|(_, poisoned)| of(poisoned)).collect()),
        reference: "no poison",
        reference_value: median(pairs.iter().map(|(healthy, _)| of(healthy)).collect()),
        ratio: quantile(&ratios, 0.5),
        runs: pairs.len(),
        min: quantile(&ratios, 0.1),
        max: quantile(&ratios, 0.9),
    }
}
