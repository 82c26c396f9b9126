//! A consumer as a process of its own.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use clap::Args;
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tailrace_idempotency::{
    Answer, BoxError, Call, CallCx, Config, Consumer, Counters, Cx, Dedupe, OnFailure, Outcome,
    Prepared,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{interval, sleep};

use crate::node;

#[derive(Args)]
pub(crate) struct ConsumerArgs {
    #[arg(long)]
    database_url: String,
    #[arg(long)]
    kafka_brokers: String,
    #[arg(long)]
    group: String,
    #[arg(long)]
    topic: String,
    #[arg(long, default_value_t = 1)]
    lanes: u16,
    #[arg(long, default_value_t = 500)]
    batch_records: usize,
    /// How long a former owner can hold it up, and itself the next one
    #[arg(long, default_value_t = 20_000)]
    rebalance_deadline_ms: u64,
    /// After how long the group takes it for dead
    #[arg(long)]
    session_ms: Option<u32>,
    /// With its so-manieth message it stops itself, its transaction open
    #[arg(long)]
    stop_at: Option<u32>,
    /// Of so many messages one fails, for once
    #[arg(long)]
    fail_every: Option<u32>,
    /// The longest wait for the next attempt of a parked message
    #[arg(long)]
    parked_wait_ms: Option<u64>,
    /// After so many attempts a parked message waits for a person
    #[arg(long)]
    attempts_max: Option<u32>,
    /// The call of the message with this number aborts the process
    #[arg(long)]
    abort_at: Option<i64>,
    /// What keeps failing becomes a dead letter
    #[arg(long)]
    dead_letters: bool,
    /// How long every fourth sequenced message takes
    #[arg(long)]
    take_ms: Option<u64>,
    /// Know messages by the sequence of their relay
    #[arg(long)]
    by_position: bool,
    /// Say again and again what was counted, for whoever kills it
    #[arg(long)]
    tell: bool,
}

/// Of so many messages one takes long.
const TAKING: u32 = 4;
/// Between two times that it says what was counted.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// A Postgres that was restarted is back by then, also on a busy machine.
const START_MAX: Duration = Duration::from_secs(60);
/// A pool tells after this long that there is no server, and not after its usual 30 s.
const ACQUIRE_MAX: Duration = Duration::from_secs(5);
/// How long a message that is to come again stays away.
const AWAY: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
struct Numbered {
    number: i64,
}

#[derive(Deserialize)]
struct Sequenced {
    sequence: i64,
}

/// What goes wrong, and how far it has come to that.
struct Troubles {
    stop_at: Option<u32>,
    seen: AtomicU32,
    fail_every: Option<u32>,
    tried: AtomicU32,
    take: Option<Duration>,
    abort_at: Option<i64>,
}

/// Writes a row of `effect` for each message.
async fn apply(cx: Cx<'_, Troubles>, message: Numbered) -> Result<Outcome, sqlx::Error> {
    sqlx::query("INSERT INTO effect (message_id, number) VALUES ($1, $2)")
        .bind(cx.meta.message_id().as_uuid())
        .bind(message.number)
        .execute(&mut *cx.conn)
        .await?;
    if cx.state.stop_at == Some(cx.state.seen.fetch_add(1, Ordering::Relaxed) + 1) {
        tracing::info!("stopping inside the transaction");
        node::strike(Signal::STOP, None);
    }
    Ok(Outcome::Done)
}

#[derive(Serialize, Deserialize)]
struct Called {
    number: i64,
}

async fn prepare(_: Cx<'_, Troubles>, called: Called) -> Result<Prepared<Called>, BoxError> {
    Ok(Prepared::Call(called))
}

/// A call that goes well, or takes its process along as a stack that overflows would.
async fn call(cx: CallCx<'_, Troubles>, called: Called) -> Result<Answer<()>, BoxError> {
    if cx.state.abort_at == Some(called.number) {
        tracing::info!("aborting inside a call");
        // Else it might leave a file of its memory.
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        setrlimit(Resource::Core, none)?;
        std::process::abort();
    }
    Ok(Answer::Done(()))
}

/// Writes a row of `effect` for each call.
async fn record(cx: Cx<'_, Troubles>, called: Called, (): ()) -> Result<(), BoxError> {
    let message = Numbered { number: called.number };
    apply(cx, message).await?;
    Ok(())
}

/// Writes a row of `effect` with its place among the effects of the message's key, which the lock of the key's row
/// counts. A key of the table `poisoned` fails.
async fn enter(cx: Cx<'_, Troubles>, message: Sequenced) -> Result<Outcome, BoxError> {
    let key = std::str::from_utf8(cx.meta.key().ok_or("the message has no key")?)?;
    let tried = cx.state.tried.fetch_add(1, Ordering::Relaxed) + 1;
    if let Some(every) = cx.state.fail_every.filter(|every| tried.is_multiple_of(*every)) {
        match (tried / every) % 3 {
            0 => return Err("the message fails for once".into()),
            1 => return Ok(Outcome::retry(AWAY)),
            _ => {
                sqlx::query("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
                    .execute(&mut *cx.conn)
                    .await?;
            }
        }
    }
    if let Some(take) = cx.state.take.filter(|_| tried.is_multiple_of(TAKING)) {
        sleep(take).await;
    }
    let entered = sqlx::query(
        "WITH entered AS (
             INSERT INTO account AS held (key, effects)
             SELECT $1, 1 WHERE NOT EXISTS (SELECT FROM poisoned WHERE poisoned.key = $1)
             ON CONFLICT (key) DO UPDATE SET effects = held.effects + 1
             RETURNING effects)
         INSERT INTO effect (key, place, sequence, message_id) SELECT $1, effects, $2, $3 FROM entered",
    )
    .bind(key)
    .bind(message.sequence)
    .bind(cx.meta.message_id().as_uuid())
    .execute(&mut *cx.conn)
    .await?;
    match entered.rows_affected() {
        1 => Ok(Outcome::Done),
        _ => Err("the key is poisoned".into()),
    }
}

/// A process that is killed has no last word.
async fn tell(counters: Counters) {
    let mut tick = interval(TELL_EVERY);
    loop {
        tick.tick().await;
        tracing::info!(report = ?counters.report(), "counted");
    }
}

pub(crate) async fn consume(arguments: ConsumerArgs) -> ExitCode {
    node::log();
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be listened for");
    // The server may be away just now; the consumer waits for it.
    let pool = PgPoolOptions::new()
        .acquire_timeout(ACQUIRE_MAX)
        .connect_lazy(&arguments.database_url)
        .expect("the url is one");
    tracing::info!("a consumer begins");
    let consumer = consumer(arguments, pool);
    let shutdown = async move {
        terminate.recv().await;
    };
    match consumer.run(shutdown).await {
        Ok(report) => {
            tracing::info!(?report, "the consumer has ended");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(%error, "the consumer has ended");
            ExitCode::FAILURE
        }
    }
}

fn consumer(arguments: ConsumerArgs, pool: PgPool) -> Consumer<Troubles> {
    let troubles = Troubles {
        stop_at: arguments.stop_at,
        seen: AtomicU32::new(0),
        fail_every: arguments.fail_every,
        tried: AtomicU32::new(0),
        take: arguments.take_ms.map(Duration::from_millis),
        abort_at: arguments.abort_at,
    };
    let mut config = Config::new(arguments.group, arguments.kafka_brokers, pool)
        .start_deadline(START_MAX)
        .lanes(arguments.lanes)
        .batch_records_max(arguments.batch_records)
        .rebalance_deadline(Duration::from_millis(arguments.rebalance_deadline_ms))
        .state(troubles);
    if let Some(session) = arguments.session_ms {
        config = config
            .kafka_property("session.timeout.ms", session.to_string())
            // With it a member learns of a rebalance.
            .kafka_property("heartbeat.interval.ms", (session / 20).to_string());
    }
    if arguments.dead_letters {
        config = config.on_failure(OnFailure::DeadLetter);
    }
    if arguments.by_position {
        config = config.dedupe(Dedupe::Position);
    }
    if let Some(wait) = arguments.parked_wait_ms.map(Duration::from_millis) {
        config = config.parked_wait(wait, wait);
    }
    if let Some(attempts) = arguments.attempts_max {
        config = config.attempts_max(attempts);
    }
    let consumer = Consumer::new(config)
        .topic(arguments.topic)
        .on("numbered.v1", apply)
        .on("sequenced.v1", enter)
        .on_call("called.v1", Call::new(prepare, call, record));
    if arguments.tell {
        tokio::spawn(tell(consumer.counters()));
    }
    consumer
}
