//! Payments by a provider that gets slow: its breaker opens, it is left alone, and each payment is made once.
//!
//! Needs Rust, and Java 17 with Maven for a Postgres and a Kafka of its own (or servers of yours, see README.md).
//! Run it by
//!
//! ```sh
//! cargo run --release -p example-10-circuit-breaker
//! ```
#![expect(clippy::print_stdout, reason = "what it prints is what it shows")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tailrace_idempotency::{
    Answer, BoxError, Breaker, BreakerState, Call, CallCx, Config, Consumer, Cx, Prepared,
    SlidingWindow, schema,
};
use tailrace_stack::{Needs, Stack};
use tokio::sync::oneshot;
use uuid::Uuid;

/// What is waited for has come by then, or the example fails.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What the provider answers within.
const TIME_OUT: Duration = Duration::from_millis(200);

#[derive(Serialize, Deserialize)]
struct Payment {
    cents: u64,
}

/// A provider, elsewhere: it charges once per key, and knows what it has answered.
#[derive(Default)]
struct Provider {
    is_slow: AtomicBool,
    asked: AtomicU32,
    charged: Mutex<HashMap<String, u64>>,
}

impl Provider {
    async fn charge(&self, key: String, cents: u64) -> u64 {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.charged.lock().unwrap_or_else(PoisonError::into_inner).insert(key, cents);
        if self.is_slow.load(Ordering::Relaxed) {
            tokio::time::sleep(TIME_OUT * 10).await;
        }
        cents
    }
}

/// In a transaction: what the call needs is stored.
async fn prepare(
    _: Cx<'_, Arc<Provider>>,
    payment: Payment,
) -> Result<Prepared<Payment>, BoxError> {
    Ok(Prepared::Call(payment))
}

/// With no transaction open. A repetition has the same key, so the provider does not charge twice.
async fn charge(cx: CallCx<'_, Arc<Provider>>, payment: Payment) -> Result<Answer<u64>, BoxError> {
    Ok(Answer::Done(cx.state.charge(cx.key.to_string(), payment.cents).await))
}

/// In a transaction again, once.
async fn record(cx: Cx<'_, Arc<Provider>>, _: Payment, cents: u64) -> Result<(), BoxError> {
    let paid = "insert into paid (cents) values ($1)";
    sqlx::query(paid).bind(i64::try_from(cents)?).execute(cx.conn).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let stack = Stack::start(Needs::BOTH).await?;
    let database = stack.postgres().fresh_database("circuit_breaker").await?;
    let pool = PgPool::connect(database.url()).await?;
    schema::install(&mut *pool.acquire().await?).await?;
    sqlx::raw_sql("create table paid (cents bigint)").execute(&pool).await?;
    let (brokers, topic) =
        (stack.kafka().brokers(), stack.kafka().fresh_topic("payments", 1).await?);

    let provider = Arc::new(Provider::default());
    let breaker = Breaker::new()
        .sliding_window(SlidingWindow::CountBased(8))
        .minimum_number_of_calls(4)
        .wait_duration_in_open_state(Duration::from_secs(1))
        .permitted_number_of_calls_in_half_open_state(2);
    let config = Config::new(topic.clone(), brokers, pool.clone())
        .parked_wait(Duration::from_millis(50), Duration::from_millis(200))
        .state(Arc::clone(&provider));
    let payments = Consumer::new(config).topic(topic.clone()).on_call(
        "payment.requested.v1",
        Call::new(prepare, charge, record).time_out(TIME_OUT).breaker(breaker.clone()),
    );
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(payments.run(async { drop(stopped.await) }));

    produce(brokers, &topic, 0..10)?;
    until(async || Ok(paid(&pool).await? == 10)).await?;
    println!("10 payments are made, the breaker is {:?}.", breaker.state());

    provider.is_slow.store(true, Ordering::Relaxed);
    produce(brokers, &topic, 10..30)?;
    until(async || Ok(breaker.state() == BreakerState::Open)).await?;
    let waiting = 30 - paid(&pool).await?;
    println!("The provider gets slow: the breaker is Open, {waiting} payments wait in Postgres.");
    let asked = provider.asked.load(Ordering::Relaxed);
    until(async || Ok(breaker.state() != BreakerState::Open)).await?;
    let more = provider.asked.load(Ordering::Relaxed) - asked;
    println!("While it was open the provider was asked {more} times.");

    provider.is_slow.store(false, Ordering::Relaxed);
    until(async || Ok(paid(&pool).await? == 30)).await?;
    until(async || Ok(breaker.state() == BreakerState::Closed)).await?;
    println!("The provider is well again: the breaker is Closed.");
    drop(stop);
    let report = running.await??;

    let charged = provider.charged.lock().unwrap_or_else(PoisonError::into_inner).len();
    let (failed, dead) = (report.failed_calls > 0, report.dead_lettered);
    println!(
        "{} payments are recorded, {charged} were charged, {dead} are lost; calls failed on the way: {failed}.",
        paid(&pool).await?
    );
    Ok(())
}

async fn paid(pool: &PgPool) -> Result<i64, BoxError> {
    Ok(sqlx::query_scalar("select count(*) from paid").fetch_one(pool).await?)
}

fn produce(brokers: &str, topic: &str, numbers: std::ops::Range<u64>) -> Result<(), BoxError> {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    for number in numbers {
        let (id, key) = (Uuid::now_v7().to_string(), format!("customer-{number}"));
        let payload = format!(r#"{{"cents":{}}}"#, 100 + number);
        let headers = OwnedHeaders::new()
            .insert(Header { key: "ce_id", value: Some(&id) })
            .insert(Header { key: "ce_type", value: Some("payment.requested.v1") });
        let record = BaseRecord::to(topic).key(&key).payload(&payload).headers(headers);
        producer.send(record).map_err(|(error, _)| error)?;
    }
    Ok(producer.flush(WAIT_MAX)?)
}

async fn until(mut holds: impl AsyncFnMut() -> Result<bool, BoxError>) -> Result<(), BoxError> {
    let waiting = async {
        while !holds().await? {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    };
    tokio::time::timeout(WAIT_MAX, waiting).await?
}
