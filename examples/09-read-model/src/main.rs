//! A read model from a topic, and its next version, which is built beside the one that readers see.
//!
//! Needs Rust, and Java 17 with Maven for a Postgres and a Kafka of its own (or servers of yours, see README.md).
//! Run it by
//!
//! ```sh
//! cargo run --release -p example-09-read-model
//! ```
#![expect(clippy::print_stdout, reason = "what it prints is what it shows")]

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde::Deserialize;
use sqlx::PgPool;
use tailrace_idempotency::projection::Phase;
use tailrace_idempotency::{
    BatchCx, BoxError, Config, Consumer, Item, Kind, Outcome, Projection, schema,
};
use tailrace_stack::{Needs, Stack};
use tokio::sync::oneshot;
use uuid::Uuid;

const ORDERS: u64 = 5_000;

/// What is waited for has come by then, or the example fails.
const WAIT_MAX: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct OrderPlaced {
    customer: String,
    cents: i64,
}

type Orders<'a> = Vec<Item<'a, OrderPlaced>>;

/// Version 1 counts the orders of a customer.
const TABLES_1: &str = "create table customer (name text primary key, orders bigint)";

/// The table has no schema's name: it is that of the build which the transaction writes to.
async fn count(cx: BatchCx<'_>, orders: Orders<'_>) -> Result<Outcome, BoxError> {
    let customers: Vec<String> = orders.into_iter().map(|order| order.message.customer).collect();
    sqlx::query(
        "insert into customer as c select name, count(*) from unnest($1::text[]) as name group by name order by name
         on conflict (name) do update set orders = c.orders + excluded.orders",
    )
    .bind(customers)
    .execute(cx.conn)
    .await?;
    Ok(Outcome::Done)
}

/// Version 2 has their worth as well, which nobody had kept: it is still in the topic.
const TABLES_2: &str = "create table customer (name text primary key, orders bigint, cents bigint)";

async fn count_and_sum(cx: BatchCx<'_>, orders: Orders<'_>) -> Result<Outcome, BoxError> {
    let (customers, cents): (Vec<String>, Vec<i64>) =
        orders.into_iter().map(|order| (order.message.customer, order.message.cents)).unzip();
    sqlx::query(
        "insert into customer as c
         select name, count(*), sum(cents) from unnest($1::text[], $2::bigint[]) as o (name, cents)
         group by name order by name
         on conflict (name) do update
             set orders = c.orders + excluded.orders, cents = c.cents + excluded.cents",
    )
    .bind(customers)
    .bind(cents)
    .execute(cx.conn)
    .await?;
    Ok(Outcome::Done)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let stack = Stack::start(Needs::BOTH).await?;
    let database = stack.postgres().fresh_database("read_model").await?;
    let pool = PgPool::connect(database.url()).await?;
    schema::install(&mut *pool.acquire().await?).await?;
    let (brokers, topic) = (stack.kafka().brokers(), stack.kafka().fresh_topic("orders", 3).await?);
    produce(brokers, &topic, ORDERS)?;

    // The name is that of the schema for readers. On a Kafka that is shared it would rather be "shop".
    let name = tailrace_stack::unique("shop");
    let consumer = || {
        Consumer::new(Config::new(&name, brokers, pool.clone()).batch_records_max(100))
            .topic(&topic)
    };
    let first = Projection::new(consumer().on_batch("order.placed.v1", count), 1, TABLES_1);
    let (_running, stopped) = oneshot::channel::<()>();
    let first = tokio::spawn(first.on_progress(draw()).run(async { drop(stopped.await) }));
    let orders = format!("select sum(orders)::bigint from {name}.customer");
    while ask(&pool, &orders).await? != Some(5_000) {
        pause().await;
    }
    println!(
        "Version 1 is built from {ORDERS} orders. Readers ask for the orders of 100 customers."
    );

    println!("\nVersion 2 is deployed; orders come all the while, and readers ask as before.");
    let second =
        Projection::new(consumer().on_batch("order.placed.v1", count_and_sum), 2, TABLES_2);
    let (stop, stopped) = oneshot::channel::<()>();
    let second = tokio::spawn(second.on_progress(draw()).run(async { drop(stopped.await) }));
    let (mut seen, mut failed, mut fewer) = (5_000, 0, 0);
    let columns = format!(
        "select count(*) from information_schema.columns where table_schema = '{name}' and column_name = 'cents'"
    );
    while ask(&pool, &columns).await? != Some(1) {
        produce(brokers, &topic, 10)?;
        match ask(&pool, &orders).await? {
            Some(now) => {
                fewer += u64::from(now < seen);
                seen = now;
            }
            None => failed += 1,
        }
    }
    println!("  answers that failed: {failed}, answers with fewer orders than before: {fewer}");

    let right = format!("select count(*) from {name}.customer where cents = orders * 250");
    println!(
        "  customers whose orders are worth what they should: {:?}",
        ask(&pool, &right).await?
    );
    match first.await? {
        Err(error) if error.kind() == Kind::Conflict => {
            println!("  version 1 ends: it was replaced by version 2");
        }
        ended => return Err(format!("version 1 ended otherwise: {ended:?}").into()),
    }
    drop(stop);
    second.await??;
    Ok(())
}

/// A bar, on standard error; the library only tells the numbers.
fn draw() -> impl Fn(&tailrace_idempotency::projection::Progress) + Send + Sync + 'static {
    let template = "version {msg} [{bar:40}] {human_pos}/{human_len} {per_sec}";
    let style = ProgressStyle::with_template(template).expect("the template is right");
    let bar = ProgressBar::new(0).with_style(style);
    move |progress| {
        bar.set_message(progress.version.to_string());
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        if progress.phase != Phase::Building && !bar.is_finished() {
            bar.finish();
        }
    }
}

/// What a reader is answered; none while there is no such table.
async fn ask(pool: &PgPool, query: &str) -> Result<Option<i64>, BoxError> {
    let query = sqlx::AssertSqlSafe(query.to_owned());
    match sqlx::query_scalar::<_, Option<i64>>(query).fetch_one(pool).await {
        Ok(number) => Ok(number),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

fn produce(brokers: &str, topic: &str, orders: u64) -> Result<(), BoxError> {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    for number in 0..orders {
        let (id, customer) = (Uuid::now_v7().to_string(), format!("customer-{}", number % 100));
        let payload = format!(r#"{{"customer":"{customer}","cents":250}}"#);
        let headers = OwnedHeaders::new()
            .insert(Header { key: "ce_id", value: Some(&id) })
            .insert(Header { key: "ce_type", value: Some("order.placed.v1") });
        let record = BaseRecord::to(topic).key(&customer).payload(&payload).headers(headers);
        producer.send(record).map_err(|(error, _)| error)?;
    }
    Ok(producer.flush(WAIT_MAX)?)
}
