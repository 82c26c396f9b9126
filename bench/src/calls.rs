//! How many effects outside Postgres a lane makes.
//!
//! Messages of many keys lie in a topic of one partition. In turn, one consumer makes a call for each of them
//! (`on_call`: prepare, call, record), and another one only does what the former records (`on`); both have one lane.
//! The call is a wait of so many milliseconds, so that what is measured is ours. Every message must have its effect
//! once, and be called once.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgPool};
use tailrace_idempotency::{
    Answer, BoxError, Call, CallCx, Config, Consumer, Counters, Cx, Outcome, Prepared, schema,
};
use tailrace_stack::{Needs, Stack, unique};
use tokio::sync::oneshot;

use crate::consumer_topic;
use crate::figure::{Figure, quantile};

type Failure = Box<dyn Error + Send + Sync>;

const SCHEMA: &str =
    "create table payment (message_id uuid not null, account text not null, cents bigint not null)";
/// All effects are there by then.
const LIMIT: Duration = Duration::from_secs(300);

/// What and how long is measured.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Pairs of turns, one with calls and one without
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
    /// Messages of a turn
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    messages: u64,
    /// How long a call takes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(..=10_000))]
    call_ms: u64,
    /// Calls that are made at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    calls_max: u64,
}

#[derive(Serialize, Deserialize)]
struct Booked {
    account: String,
    cents: i64,
}

/// What both consumers share.
struct Provider {
    takes: Duration,
    calls: AtomicU64,
}

/// Measures pairs of turns.
pub(crate) async fn measure(options: Options) -> Result<Vec<Figure>, Failure> {
    let stack = Stack::start(Needs::BOTH.measured()).await?;
    let topic = stack.kafka().fresh_topic("calls", 1).await?;
    consumer_topic::fill(stack.kafka().brokers(), &topic, options.messages).await?;
    let bar = ProgressBar::new(u64::from(options.runs) * 2).with_message("turns");
    let mut pairs = Vec::new();
    for _ in 0..options.runs {
        let called = turn(&stack, &topic, &options, true).await?;
        bar.inc(1);
        let plain = turn(&stack, &topic, &options, false).await?;
        bar.inc(1);
        pairs.push((called, plain));
    }
    bar.finish_and_clear();
    let ratios: Vec<f64> = pairs.iter().map(|(called, plain)| called / plain).collect();
    let median = |values: Vec<f64>| quantile(&values, 0.5);
    Ok(vec![Figure {
        scenario: "calls",
        variant: format!("{} ms, {} at once", options.call_ms, options.calls_max),
        metric: "messages_per_s",
        unit: "/s",
        value: median(pairs.iter().map(|(called, _)| *called).collect()),
        reference: "handler without a call",
        reference_value: median(pairs.iter().map(|(_, plain)| *plain).collect()),
        ratio: median(ratios.clone()),
        runs: pairs.len(),
        min: quantile(&ratios, 0.1),
        max: quantile(&ratios, 0.9),
    }])
}

/// Messages per second, from the first effect to the last.
async fn turn(
    stack: &Stack,
    topic: &str,
    options: &Options,
    with_calls: bool,
) -> Result<f64, Failure> {
    let database = stack.postgres().fresh_database("calls").await?;
    let pool = pool(database.url()).await?;
    let takes = Duration::from_millis(options.call_ms);
    let provider = Arc::new(Provider { takes, calls: AtomicU64::new(0) });
    let config = Config::new(unique("calls"), stack.kafka().brokers(), pool.clone())
        .calls_max(usize::try_from(options.calls_max)?)
        .state(Arc::clone(&provider));
    let consumer = Consumer::new(config).topic(topic);
    let consumer = match with_calls {
        true => consumer.on_call("booked.v1", Call::new(prepare, charge, record)),
        false => consumer.on("booked.v1", book),
    };
    let counters = consumer.counters();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(consumer.run(async move {
        stopped.await.ok();
    }));
    let first = reached(&counters, 1).await?;
    let began = Instant::now();
    let applied = reached(&counters, options.messages).await? - first;
    let per_second = applied as f64 / began.elapsed().as_secs_f64();
    stop.send(()).ok();
    running.await??;
    check(&pool, options.messages).await?;
    let calls = provider.calls.load(Ordering::Relaxed);
    if with_calls && calls != options.messages {
        return Err(format!("{calls} calls for {} messages", options.messages).into());
    }
    pool.close().await;
    Ok(per_second)
}

async fn pool(url: &str) -> Result<PgPool, Failure> {
    let options: PgConnectOptions = url.parse()?;
    let pool = PgPoolOptions::new()
        .max_connections(4)
        .connect_with(options.disable_statement_logging())
        .await?;
    let mut connection = pool.acquire().await?;
    schema::install(&mut connection).await?;
    sqlx::raw_sql(SCHEMA).execute(&mut *connection).await?;
    drop(connection);
    Ok(pool)
}

async fn prepare(_: Cx<'_, Arc<Provider>>, message: Booked) -> Result<Prepared<Booked>, BoxError> {
    Ok(Prepared::Call(message))
}

async fn charge(cx: CallCx<'_, Arc<Provider>>, _: Booked) -> Result<Answer<i64>, BoxError> {
    cx.state.calls.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(cx.state.takes).await;
    Ok(Answer::Done(0))
}

async fn record(cx: Cx<'_, Arc<Provider>>, message: Booked, _: i64) -> Result<(), BoxError> {
    book(cx, message).await?;
    Ok(())
}

async fn book(cx: Cx<'_, Arc<Provider>>, message: Booked) -> Result<Outcome, BoxError> {
    sqlx::query("insert into payment (message_id, account, cents) values ($1, $2, $3)")
        .bind(cx.meta.message_id().as_uuid())
        .bind(message.account)
        .bind(message.cents)
        .execute(cx.conn)
        .await?;
    Ok(Outcome::Done)
}

/// Waits for so many effects; answers with how many there are.
async fn reached(counters: &Counters, count: u64) -> Result<u64, Failure> {
    let deadline = Instant::now() + LIMIT;
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    loop {
        tick.tick().await;
        let report = counters.report();
        if report.applied >= count {
            return Ok(report.applied);
        }
        if Instant::now() > deadline {
            return Err(format!("not all messages had an effect in time: {report:?}").into());
        }
    }
}

/// Every message once, and nothing left behind.
async fn check(pool: &PgPool, messages: u64) -> Result<(), Failure> {
    let (effects, doubles, parked): (i64, i64, i64) = sqlx::query_as(
        "select count(*), count(*) - count(distinct message_id),
                (select count(*) from tailrace.parked_message) from payment",
    )
    .fetch_one(pool)
    .await?;
    if (u64::try_from(effects)?, doubles, parked) != (messages, 0, 0) {
        let text =
            format!("{effects} effects of {messages} messages, {doubles} doubled, {parked} parked");
        return Err(text.into());
    }
    Ok(())
}
