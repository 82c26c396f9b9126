//! A consumer as a process of its own.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use clap::Args;
use rustix::process::Signal;
use serde::Deserialize;
use sqlx::PgPool;
use tailrace_idempotency::{Config, Consumer, Cx, Outcome};
use tokio::signal::unix::{SignalKind, signal};

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
}

#[derive(Deserialize)]
struct Numbered {
    number: i64,
}

struct Stopping {
    at: Option<u32>,
    seen: AtomicU32,
}

/// Writes a row of `effect` for each message.
async fn apply(cx: Cx<'_, Stopping>, message: Numbered) -> Result<Outcome, sqlx::Error> {
    sqlx::query("INSERT INTO effect (message_id, number) VALUES ($1, $2)")
        .bind(cx.meta.message_id().as_uuid())
        .bind(message.number)
        .execute(&mut *cx.conn)
        .await?;
    if cx.state.at == Some(cx.state.seen.fetch_add(1, Ordering::Relaxed) + 1) {
        tracing::info!("stopping inside the transaction");
        node::strike(Signal::STOP, None);
    }
    Ok(Outcome::Done)
}

pub(crate) async fn consume(arguments: ConsumerArgs) -> ExitCode {
    node::log();
    let pool = PgPool::connect(&arguments.database_url).await.expect("the server serves");
    let mut config = Config::new(arguments.group, arguments.kafka_brokers, pool)
        .lanes(arguments.lanes)
        .batch_records_max(arguments.batch_records)
        .rebalance_deadline(Duration::from_millis(arguments.rebalance_deadline_ms))
        .state(Stopping { at: arguments.stop_at, seen: AtomicU32::new(0) });
    if let Some(session) = arguments.session_ms {
        config = config.kafka_property("session.timeout.ms", session.to_string());
    }
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be listened for");
    let consumer = Consumer::new(config).topic(arguments.topic).on("numbered.v1", apply);
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
