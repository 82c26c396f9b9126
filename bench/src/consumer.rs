//! How fast a consumer turns records into effects, beside what bounds it.
//!
//! The same messages are read from a topic and applied by a consumer of ours, and by one that is
//! written by hand and writes the same rows in transactions of the same shape and size. Beside them
//! stand the halves of the latter: polling and nothing else, and writing from memory. Where both
//! halves share the same cores nothing can be as fast as the slower of them.

use std::error::Error;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use serde::Deserialize;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgPool};
use tailrace_idempotency::{
    BatchCx, Config, Consumer, Counters, Cx, Dedupe, Item, Outcome, retention, schema,
};
use tailrace_stack::{Needs, Stack, unique};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::consumer_by_hand;
use crate::consumer_topic::{self, PARTITIONS};
use crate::figure::{Figure, quantile};

type Failure = Box<dyn Error + Send + Sync>;

/// How long one turn may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// Records of a transaction, by us and by hand.
pub(crate) const BATCH_RECORDS: usize = 500;

const SCHEMA: &str =
    "create table booking (message_id uuid not null, account text not null, cents bigint not null)";

/// What and how much is measured.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Messages of the topic
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    messages: u64,
    /// How often each variant is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
    /// Variants to measure, batch/ids, batch/position or each/ids; all when not given
    #[arg(long)]
    variant: Vec<String>,
}

/// How the handler is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// A statement for all messages of a transaction.
    Batch,
    /// The same without a row per message: known by the sequence of their relay.
    Position,
    /// A handler call and a statement for each.
    Each,
}

impl Variant {
    const ALL: [Variant; 3] = [Variant::Batch, Variant::Position, Variant::Each];

    fn name(self) -> &'static str {
        match self {
            Variant::Batch => "batch/ids",
            Variant::Position => "batch/position",
            Variant::Each => "each/ids",
        }
    }
}

/// The payload of a message.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Booked {
    pub(crate) account: String,
    pub(crate) cents: i64,
}

/// Messages per second of one round.
struct Round {
    ours: f64,
    by_hand: f64,
    poll: f64,
    write: f64,
}

/// Measures all variants.
pub(crate) async fn measure(options: Options) -> Result<Vec<Figure>, Failure> {
    let variants = options.variants()?;
    let stack = Stack::start(Needs::BOTH.measured()).await?;
    let topic = stack.kafka().fresh_topic("consumer", PARTITIONS).await?;
    let brokers = stack.kafka().brokers().to_owned();
    consumer_topic::fill(&brokers, &topic, options.messages).await?;
    let steps = variants.len() * usize::from(options.runs);
    let bar = ProgressBar::new(u64::try_from(steps)?).with_message("rounds");
    let mut figures = Vec::new();
    for variant in variants {
        let mut rounds = Vec::new();
        for _ in 0..options.runs {
            let database = stack.postgres().fresh_database("consumer").await?;
            let pool = pool(database.url()).await?;
            let poll = consumer_topic::poll(&brokers, &topic, options.messages).await?;
            let write = consumer_by_hand::write(&pool, variant, options.messages).await?;
            forget(&pool).await?;
            let by_hand =
                consumer_by_hand::consume(&pool, &brokers, &topic, variant, options.messages)
                    .await?;
            forget(&pool).await?;
            let ours = ours(&pool, &brokers, &topic, variant, options.messages).await?;
            rounds.push(Round { ours, by_hand, poll, write });
            pool.close().await;
            bar.inc(1);
        }
        figures.extend(of_rounds(variant, &rounds));
    }
    bar.finish_and_clear();
    Ok(figures)
}

impl Options {
    fn variants(&self) -> Result<Vec<Variant>, Failure> {
        let names: Vec<&str> = Variant::ALL.iter().map(|variant| variant.name()).collect();
        if let Some(unknown) = self.variant.iter().find(|name| !names.contains(&name.as_str())) {
            return Err(format!("no variant {unknown:?}; there are {}", names.join(", ")).into());
        }
        let wanted = |variant: &Variant| {
            self.variant.is_empty() || self.variant.iter().any(|name| name == variant.name())
        };
        Ok(Variant::ALL.into_iter().filter(wanted).collect())
    }
}

async fn pool(url: &str) -> Result<PgPool, Failure> {
    let options: PgConnectOptions = url.parse()?;
    let connections = u32::try_from(PARTITIONS)? + 2;
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .connect_with(options.disable_statement_logging())
        .await?;
    let mut connection = pool.acquire().await?;
    schema::install(&mut connection).await?;
    retention::make_partitions_ahead(&mut connection).await?;
    sqlx::raw_sql(SCHEMA).execute(&mut *connection).await?;
    drop(connection);
    Ok(pool)
}

/// Forgets what was written, so that the next finds the same tables.
async fn forget(pool: &PgPool) -> Result<(), Failure> {
    sqlx::raw_sql(
        "truncate booking; truncate tailrace.processed_message; \
         truncate tailrace.consumer_progress; truncate tailrace.consumer_position; checkpoint",
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// A consumer of ours, from its first effect's batch to the last.
async fn ours(
    pool: &PgPool,
    brokers: &str,
    topic: &str,
    variant: Variant,
    messages: u64,
) -> Result<f64, Failure> {
    let dedupe = match variant {
        Variant::Position => Dedupe::Position,
        Variant::Batch | Variant::Each => Dedupe::ProcessedMessages,
    };
    let config = Config::new(unique("consumer"), brokers, pool.clone())
        .batch_records_max(BATCH_RECORDS)
        .dedupe(dedupe);
    let consumer = Consumer::new(config).topic(topic);
    let consumer = match variant {
        Variant::Batch | Variant::Position => consumer.on_batch("booked.v1", book_all),
        Variant::Each => consumer.on("booked.v1", book),
    };
    let counters = consumer.counters();
    let (stop, stopped) = oneshot::channel::<()>();
    let mut running = tokio::spawn(consumer.run(async move {
        stopped.await.ok();
    }));
    let rate = tokio::select! {
        rate = rate(&counters, messages) => rate?,
        ended = &mut running => return Err(format!("the consumer ended: {:?}", ended?).into()),
    };
    stop.send(()).ok();
    running.await??;
    let effects: i64 = sqlx::query_scalar("select count(*) from booking").fetch_one(pool).await?;
    if u64::try_from(effects)? != messages {
        return Err(format!("{effects} effects of {messages} messages").into());
    }
    Ok(rate)
}

/// Messages per second between the first look that finds some applied and the last message.
async fn rate(counters: &Counters, messages: u64) -> Result<f64, Failure> {
    let deadline = Instant::now() + LIMIT;
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    let mut first = None;
    loop {
        tick.tick().await;
        let applied = counters.report().applied;
        let (since, before) = match first {
            None if applied == 0 => (Instant::now(), 0),
            None => *first.insert((Instant::now(), applied)),
            Some(first) => first,
        };
        if applied >= messages {
            return Ok((applied - before) as f64 / since.elapsed().as_secs_f64());
        }
        if Instant::now() > deadline {
            return Err(format!("{applied} of {messages} messages in {LIMIT:?}").into());
        }
    }
}

async fn book_all(
    cx: BatchCx<'_>,
    messages: Vec<Item<'_, Booked>>,
) -> Result<Outcome, sqlx::Error> {
    let ids: Vec<Uuid> =
        messages.iter().map(|message| *message.meta.message_id().as_uuid()).collect();
    let messages: Vec<&Booked> = messages.iter().map(|message| &message.message).collect();
    consumer_by_hand::book_all(cx.conn, &ids, &messages).await?;
    Ok(Outcome::Done)
}

async fn book(cx: Cx<'_>, message: Booked) -> Result<Outcome, sqlx::Error> {
    consumer_by_hand::book(cx.conn, cx.meta.message_id().as_uuid(), &message).await?;
    Ok(Outcome::Done)
}

/// Ours beside the consumer by hand, and beside the slower half of that one.
fn of_rounds(variant: Variant, rounds: &[Round]) -> [Figure; 2] {
    let median =
        |of: &dyn Fn(&Round) -> f64| quantile(&rounds.iter().map(of).collect::<Vec<_>>(), 0.5);
    let figure = |name: String, reference, of: &dyn Fn(&Round) -> f64| {
        let ratios: Vec<f64> = rounds.iter().map(|round| round.ours / of(round)).collect();
        Figure {
            scenario: "consumer",
            variant: name,
            metric: "messages_per_second",
            unit: "messages/s",
            value: median(&|round| round.ours),
            reference,
            reference_value: median(of),
            ratio: quantile(&ratios, 0.5),
            runs: rounds.len(),
            min: quantile(&ratios, 0.1),
            max: quantile(&ratios, 0.9),
        }
    };
    let polls_slower = median(&|round| round.poll) < median(&|round| round.write);
    let half = if polls_slower { "poll alone" } else { "database half alone" };
    let name = variant.name();
    [
        figure(name.to_owned(), "by hand", &|round| round.by_hand),
        figure(format!("topic-to-effect/{name}"), half, &|round| round.poll.min(round.write)),
    ]
}
