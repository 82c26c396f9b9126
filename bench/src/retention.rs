//! What it takes to forget claims: a day of them dropped, beside DELETE and VACUUM, while claims go on.
//!
//! Traffic claims fresh ids at a steady rate all the while. Slices without a drop and slices with one
//! take turns, so that what else the machine does is in both.

use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, PgPool};
use tailrace_idempotency::guard::{self, Claim};
use tailrace_idempotency::retention::{self, Horizon};
use tailrace_idempotency::{MessageId, schema};
use tailrace_stack::{Needs, Stack};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::figure::{Figure, quantile, tell};

type Failure = Box<dyn Error + Send + Sync>;

/// Who claims meanwhile: so many connections, each a transaction of so many ids every so often.
const CLAIMANTS: u64 = 4;
const CLAIM_IDS: usize = 100;
const CLAIM_EVERY: Duration = Duration::from_millis(10);

/// How long claims are timed with a drop, and without one.
const SLICE: Duration = Duration::from_secs(4);

/// Days so far back have the ids that are dropped; the one behind them those that are deleted.
const FIRST_DAY: i32 = 20;

/// Connections that claim as fast as they can, and ids of a transaction of theirs.
const WRITERS: u64 = 2;
const WRITER_IDS: usize = 500;

/// How much is forgotten.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Ids of a day
    #[arg(long, default_value_t = 3_000_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    messages: u64,
    /// How often a day is dropped
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
}

/// The time and the log that a change took.
#[derive(Clone, Copy, Debug)]
struct Cost {
    seconds: f64,
    wal_bytes: f64,
}

/// A slice without a drop and one with it.
struct Round {
    without_ms: f64,
    with_ms: f64,
    drop_seconds: f64,
}

/// Measures everything.
pub(crate) async fn measure(options: Options) -> Result<Vec<Figure>, Failure> {
    let stack = Stack::start(Needs::POSTGRES).await?;
    let database = stack.postgres().fresh_database("retention").await?;
    let connect: PgConnectOptions = database.url().parse()?;
    let pool = PgPoolOptions::new()
        .max_connections(u32::try_from(CLAIMANTS)? + 2)
        .connect_with(connect.disable_statement_logging())
        .await?;
    let mut connection = pool.acquire().await?;
    schema::install(&mut connection).await?;
    let runs = i32::from(options.runs);
    let bar = ProgressBar::new(u64::try_from(2 * runs + 6)?).with_message("steps");
    for ago in FIRST_DAY..=FIRST_DAY + runs + 1 {
        fill(&mut connection, ago, options.messages).await?;
        bar.inc(1);
    }

    let deleted = cost(&mut connection, Change::Delete(FIRST_DAY + runs + 1)).await?;
    bar.inc(1);
    // The empty table, and what else a first run does.
    drop_day(&mut connection, FIRST_DAY + runs + 1).await?;
    let alone = cost(&mut connection, Change::Drop(FIRST_DAY + runs)).await?;
    let mut rounds = Vec::new();
    for ago in (FIRST_DAY..FIRST_DAY + runs).rev() {
        rounds.push(round(&pool, &mut connection, ago).await?);
        bar.inc(1);
    }
    let timed = rate(&pool, options.messages / 3, Uuid::now_v7).await?;
    bar.inc(1);
    let opaque = rate(&pool, options.messages / 3, Uuid::new_v4).await?;
    bar.finish_and_clear();
    tell(&format!(
        "{} ids in a day; claims meanwhile: {CLAIMANTS} connections, {CLAIM_IDS} ids every {CLAIM_EVERY:?}",
        options.messages
    ));
    Ok(figures(deleted, alone, &rounds, (timed, opaque)))
}

/// Gives a day of long ago so many claims, as they would stand after it.
async fn fill(connection: &mut PgConnection, ago: i32, ids: u64) -> Result<(), Failure> {
    let name = name(connection, ago).await?;
    sqlx::query("select tailrace.make_processed_message_partitions(array[(now() at time zone 'UTC')::date - $1])")
        .bind(ago)
        .execute(&mut *connection)
        .await?;
    let fill = format!(
        "insert into {name} select 'billing', (lpad(to_hex(
             ((extract(epoch from (now() at time zone 'UTC')::date - {ago})::bigint * 1000)
              + (n * 86399000 / {ids}))), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8'
              || substr(md5(n::text), 4, 15))::uuid
         from generate_series(0::bigint, {ids} - 1) as n"
    );
    sqlx::raw_sql(AssertSqlSafe(fill)).execute(&mut *connection).await?;
    sqlx::raw_sql(AssertSqlSafe(format!("vacuum (analyze) {name}"))).execute(connection).await?;
    Ok(())
}

async fn name(connection: &mut PgConnection, ago: i32) -> Result<String, Failure> {
    let name = "select 'tailrace.processed_message_' \
                || to_char((now() at time zone 'UTC')::date - $1, 'YYYYMMDD')";
    Ok(sqlx::query_scalar(name).bind(ago).fetch_one(connection).await?)
}

#[derive(Clone, Copy)]
enum Change {
    Drop(i32),
    Delete(i32),
}

/// Nothing else writes meanwhile.
async fn cost(connection: &mut PgConnection, change: Change) -> Result<Cost, Failure> {
    sqlx::raw_sql("checkpoint").execute(&mut *connection).await?;
    let lsn = "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn";
    let lsn = format!("select ({lsn})::float8");
    let from: f64 =
        sqlx::query_scalar(AssertSqlSafe(lsn.clone())).fetch_one(&mut *connection).await?;
    let began = Instant::now();
    match change {
        Change::Drop(ago) => drop_day(connection, ago).await?,
        Change::Delete(ago) => {
            let name = name(connection, ago).await?;
            for statement in [format!("delete from {name}"), format!("vacuum {name}")] {
                sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await?;
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let to: f64 = sqlx::query_scalar(AssertSqlSafe(lsn)).fetch_one(connection).await?;
    Ok(Cost { seconds, wal_bytes: to - from })
}

/// Drops the oldest day, as maintenance does; the horizon is such that no other one is due.
async fn drop_day(connection: &mut PgConnection, ago: i32) -> Result<(), Failure> {
    let horizon = Duration::from_secs(u64::try_from(ago - 2)? * 86_400);
    let report = retention::maintain(connection, &Horizon::new(horizon)).await?;
    if report.dropped.len() != 1 {
        return Err(format!("one day was to be dropped, but {report:?}").into());
    }
    Ok(())
}

async fn round(pool: &PgPool, connection: &mut PgConnection, ago: i32) -> Result<Round, Failure> {
    // What was filled is written out first, and not while claims are timed.
    sqlx::raw_sql("checkpoint").execute(&mut *connection).await?;
    let latencies: Arc<Mutex<Vec<f64>>> = Arc::default();
    let taken = || std::mem::take(&mut *latencies.lock().expect("nobody panics with it"));
    let mut claimants = JoinSet::new();
    for _ in 0..CLAIMANTS {
        claimants.spawn(claim_steadily(pool.clone(), Arc::clone(&latencies)));
    }
    // The first claims make plans and fill caches.
    tokio::time::sleep(SLICE / 4).await;
    taken();
    tokio::time::sleep(SLICE).await;
    let without = taken();
    let began = Instant::now();
    drop_day(connection, ago).await?;
    let drop_seconds = began.elapsed().as_secs_f64();
    tokio::time::sleep(SLICE.saturating_sub(began.elapsed())).await;
    let with = taken();
    if let Some(ended) = claimants.try_join_next() {
        ended??;
    }
    claimants.shutdown().await;
    Ok(Round { without_ms: quantile(&without, 0.99), with_ms: quantile(&with, 0.99), drop_seconds })
}

async fn claim_steadily(pool: PgPool, latencies: Arc<Mutex<Vec<f64>>>) -> Result<(), Failure> {
    let mut tick = tokio::time::interval(CLAIM_EVERY);
    loop {
        // From when it was due, so that a claim that waits does not hide those behind it.
        let due = tick.tick().await;
        claim(&pool, CLAIM_IDS, Uuid::now_v7).await?;
        let latency = due.elapsed().as_secs_f64() * 1000.0;
        latencies.lock().expect("nobody panics with it").push(latency);
    }
}

async fn claim(pool: &PgPool, count: usize, mint: fn() -> Uuid) -> Result<(), Failure> {
    let ids: Result<Vec<MessageId>, _> = (0..count).map(|_| mint().try_into()).collect();
    let mut tx = pool.begin().await?;
    let claims = guard::claim_all(&mut tx, "billing", &ids?).await?;
    tx.commit().await?;
    if claims.iter().any(|claim| *claim != Claim::First) {
        return Err("an id of this run was claimed already".into());
    }
    Ok(())
}

/// Ids per second, over so many ids.
async fn rate(pool: &PgPool, ids: u64, mint: fn() -> Uuid) -> Result<f64, Failure> {
    let began = Instant::now();
    let mut writers = JoinSet::new();
    let batches = ids / WRITERS / u64::try_from(WRITER_IDS)? + 1;
    for _ in 0..WRITERS {
        let pool = pool.clone();
        writers.spawn(async move {
            for _ in 0..batches {
                claim(&pool, WRITER_IDS, mint).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    let claimed = batches * WRITERS * u64::try_from(WRITER_IDS)?;
    Ok(claimed as f64 / began.elapsed().as_secs_f64())
}

fn figures(
    deleted: Cost,
    alone: Cost,
    rounds: &[Round],
    (timed, opaque): (f64, f64),
) -> Vec<Figure> {
    let of = |value: &dyn Fn(&Round) -> f64| rounds.iter().map(value).collect::<Vec<_>>();
    let ratios = of(&|round| round.with_ms / round.without_ms);
    let once = |variant: &str, metric, unit, value, reference, reference_value| Figure {
        scenario: "retention",
        variant: variant.to_owned(),
        metric,
        unit,
        value,
        reference,
        reference_value,
        ratio: value / reference_value,
        runs: 1,
        min: value / reference_value,
        max: value / reference_value,
    };
    let meanwhile = Figure {
        value: quantile(&of(&|round| round.with_ms), 0.5),
        reference_value: quantile(&of(&|round| round.without_ms), 0.5),
        ratio: quantile(&ratios, 0.5),
        runs: rounds.len(),
        min: quantile(&ratios, 0.1),
        max: quantile(&ratios, 0.9),
        ..once("claims-meanwhile", "p99_ms", "ms", 0.0, "without a drop", 1.0)
    };
    let seconds = of(&|round| round.drop_seconds);
    let under_claims = Figure {
        runs: rounds.len(),
        min: quantile(&seconds, 0.0) / deleted.seconds,
        max: quantile(&seconds, 1.0) / deleted.seconds,
        ..once(
            "drop/under-claims",
            "seconds",
            "s",
            quantile(&seconds, 0.5),
            BY_HAND,
            deleted.seconds,
        )
    };
    vec![
        once("drop", "seconds", "s", alone.seconds, BY_HAND, deleted.seconds),
        once("drop", "wal_bytes", "B", alone.wal_bytes, BY_HAND, deleted.wal_bytes),
        under_claims,
        meanwhile,
        once("claims/v4", "ids_per_second", "ids/s", opaque, "v7", timed),
    ]
}

/// What a drop is measured against.
const BY_HAND: &str = "delete and vacuum";
