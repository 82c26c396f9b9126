//! The relay inside of a service: no second thing to deploy. Two replicas of the service run; the relay of one leads, and
//! that of the other takes over when the first one is stopped in the middle of the work.
//!
//! Needs Rust, and Java 17 with Maven for a Postgres and a Kafka of its own (or servers of yours, see README.md).
//! Run it by
//!
//! ```sh
//! cargo run --release -p example-04-relay-embedded
//! ```
#![expect(clippy::print_stdout, reason = "what it prints is what it shows")]

#[path = "../../reader.rs"]
mod reader;

use std::time::Duration;

use sqlx::PgPool;
use tailrace_cdc_relay::status::Role;
use tailrace_cdc_relay::{Config, Error, Relay, Status};
use tailrace_outbox::{Message, Outbox, Store};
use tailrace_stack::{Needs, Stack};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What is waited for has come by then, or the example fails.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A process of the service. Everything else that it does would be here too.
struct Replica {
    relay: JoinHandle<Result<(), Error>>,
    status: Status,
    stop: oneshot::Sender<()>,
}

impl Replica {
    fn start(config: &Config) -> Self {
        let relay = Relay::new(config.clone());
        let status = relay.status();
        let (stop, stopped) = oneshot::channel::<()>();
        // On a thread of its own it costs half of what it does among the tasks of a service.
        let relay = tokio::spawn(relay.run_on_own_thread(async { drop(stopped.await) }));
        Self { relay, status, stop }
    }

    /// Waits for its relay to become this. A relay that ends by itself is one that found no way on, and its error is
    /// for whoever supervises the service.
    async fn becomes(&mut self, role: Role) -> Result<(), Failure> {
        let waiting = until(|| self.status.snapshot().role == role);
        tokio::select! {
            waited = waiting => waited,
            ended = &mut self.relay => Err(format!("the relay has ended: {ended:?}").into()),
        }
    }

    /// What its relay has begun is finished.
    async fn stop(self) -> Result<(), Failure> {
        drop(self.stop);
        Ok(self.relay.await??)
    }
}

/// What the service does, whichever of its replicas: no relay is asked, so none can hold it up.
async fn place(pool: &PgPool, outbox: &Outbox, topic: &str, order: i64) -> Result<(), Failure> {
    let message = Message::builder(topic, "order.placed.v1").source("/orders").key("cups");
    let message = message.json(&order).build()?;
    let mut tx = pool.begin().await?;
    outbox
        .merge("insert into orders values ($1)")
        .bind(order)
        .message(&message)
        .execute(&mut tx)
        .await?;
    Ok(tx.commit().await?)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let stack = Stack::start(Needs::BOTH).await?;
    let database = stack.postgres().fresh_database("embedded").await?;
    let topic = stack.kafka().fresh_topic("orders", 1).await?;
    let pool = PgPool::connect(database.url()).await?;
    sqlx::raw_sql("create table orders (number bigint primary key)").execute(&pool).await?;

    let config = Config::new(database.url(), stack.kafka().brokers()).slot(database.name());
    let mut first = Replica::start(&config);
    first.becomes(Role::Leading).await?;
    let mut second = Replica::start(&config);
    second.becomes(Role::StandingBy).await?;
    println!("Two replicas run. The relay of the first one leads, that of the second stands by.");

    let outbox = Outbox::new(Store::Wal).slot(database.name().to_owned());
    outbox.check(&pool).await?;
    for order in 0..100 {
        place(&pool, &outbox, &topic, order).await?;
    }
    let of_first = first.status.clone();
    let more = async {
        for order in 100..200 {
            place(&pool, &outbox, &topic, order).await?;
        }
        Ok(())
    };
    tokio::try_join!(first.stop(), more)?;
    second.becomes(Role::Leading).await?;
    println!(
        "200 orders were placed. Half-way the first replica was stopped, and the second leads."
    );

    let published = || of_first.snapshot().messages + second.status.snapshot().messages;
    until(|| published() >= 200).await?;
    second.stop().await?;
    let orders: Vec<i64> =
        sqlx::query_scalar("select number from orders order by number").fetch_all(&pool).await?;
    let records = reader::read(stack.kafka().brokers(), &topic)?;
    println!("In Postgres are {} orders, in Kafka {} records.", orders.len(), records.len());
    let same = orders.iter().map(i64::to_string).eq(records);
    println!("The same ones, each of them once, in their order: {same}.");
    Ok(())
}

async fn until(holds: impl Fn() -> bool) -> Result<(), Failure> {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    Ok(tokio::time::timeout(WAIT_MAX, waiting).await?)
}
