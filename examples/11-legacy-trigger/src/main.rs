//! An application that nobody may touch writes to its tables as it always did. A trigger makes messages of its rows, in
//! its own transactions, and another service keeps a copy of what it is to know.
//!
//! Needs Rust, and Java 17 with Maven for a Postgres and a Kafka of its own (or servers of yours, see README.md).
//! Run it by
//!
//! ```sh
//! cargo run --release -p example-11-legacy-trigger
//! ```
#![expect(clippy::print_stdout, reason = "what it prints is what it shows")]

use std::time::Duration;

use serde::Deserialize;
use sqlx::PgPool;
use tailrace_cdc_relay::Relay;
use tailrace_idempotency::{BoxError, Config, Consumer, Cx, Outcome};
use tailrace_stack::{Needs, Stack};
use tokio::sync::oneshot;

/// What is waited for has come by then, or the example fails.
const WAIT_MAX: Duration = Duration::from_secs(60);

const TABLE: &str = "create table customers (id bigint primary key, name text, email text, password_hash text);
    insert into customers values (1, 'Anna', 'Anna@example.org', 'x'), (2, 'Ben', 'ben@example.org', 'y')";

/// What the application does. It has never heard of messages.
const APPLICATION: [&str; 4] = [
    "insert into customers values (3, 'Carla', 'Carla@example.org', 'z')",
    "update customers set email = lower(email)",
    "begin; update customers set name = 'nobody'; rollback",
    "delete from customers where name = 'Ben'",
];

/// Two rows from before, one that is new, three that change, one that goes.
const MESSAGES: u64 = 7;

#[derive(Deserialize)]
struct Customer {
    id: i64,
    name: String,
    email: String,
}

/// In the other service.
async fn keep(cx: Cx<'_>, customer: Customer) -> Result<Outcome, BoxError> {
    sqlx::query(
        "insert into customer values ($1, $2, $3)
         on conflict (id) do update set name = $2, email = $3",
    )
    .bind(customer.id)
    .bind(customer.name)
    .bind(customer.email)
    .execute(cx.conn)
    .await?;
    Ok(Outcome::Done)
}

/// The message has no payload: on a compacted topic it deletes what stands under its key.
async fn forget(cx: Cx<'_>, _: Option<Customer>) -> Result<Outcome, BoxError> {
    let id: i64 = str::from_utf8(cx.meta.key().unwrap_or_default())?.parse()?;
    sqlx::query("delete from customer where id = $1").bind(id).execute(cx.conn).await?;
    Ok(Outcome::Done)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let stack = Stack::start(Needs::BOTH).await?;
    let (legacy_database, copy_database) = (
        stack.postgres().fresh_database("legacy").await?,
        stack.postgres().fresh_database("copy").await?,
    );
    let (brokers, topic) =
        (stack.kafka().brokers(), stack.kafka().fresh_topic("customers", 3).await?);
    let legacy = PgPool::connect(legacy_database.url()).await?;
    sqlx::raw_sql(TABLE).execute(&legacy).await?;

    // The slot first: what is written before there is one would not be published.
    let config = tailrace_cdc_relay::Config::new(legacy_database.url(), brokers);
    let relay = Relay::new(config.slot(legacy_database.name()));
    let (stop_relay, stopped) = oneshot::channel::<()>();
    let relay = tokio::spawn(relay.run_on_own_thread(async { drop(stopped.await) }));
    let slot = legacy_database.name();
    until(async || Ok(tailrace_outbox::check(&legacy, slot).await.is_ok())).await?;
    tailrace_outbox::schema::install(&mut *legacy.acquire().await?).await?;
    let trigger = include_str!("trigger.sql").replace(":'topic'", &format!("'{topic}'"));
    // Statements that are sent together are one transaction.
    sqlx::raw_sql(sqlx::AssertSqlSafe(trigger)).execute(&legacy).await?;
    println!("Two customers are there. The trigger is made, and each of them published.");

    println!("\nThe application works on:");
    for statement in APPLICATION {
        sqlx::raw_sql(statement).execute(&legacy).await?;
        println!("  {statement}");
    }

    let copy = PgPool::connect(copy_database.url()).await?;
    tailrace_idempotency::schema::install(&mut *copy.acquire().await?).await?;
    let table = "create table customer (id bigint primary key, name text, email text)";
    sqlx::raw_sql(table).execute(&copy).await?;
    let consumer = Consumer::new(Config::new(topic.clone(), brokers, copy.clone()))
        .topic(topic)
        .on("customer.changed.v1", keep)
        .on("customer.deleted.v1", forget);
    let counters = consumer.counters();
    let (stop, stopped) = oneshot::channel::<()>();
    let consumer = tokio::spawn(consumer.run(async { drop(stopped.await) }));
    until(async || Ok(counters.report().applied >= MESSAGES)).await?;
    drop(stop);
    let applied = consumer.await??.applied;
    drop(stop_relay);
    relay.await??;

    println!(
        "\n{applied} messages were applied. What the application has, and what the other service:"
    );
    let there = "select id, name, email from customers order by id";
    let here = "select id, name, email from customer order by id";
    println!("  {:?}\n  {:?}", rows(&legacy, there).await?, rows(&copy, here).await?);
    Ok(())
}

async fn rows(pool: &PgPool, query: &'static str) -> Result<Vec<(i64, String, String)>, BoxError> {
    Ok(sqlx::query_as(query).fetch_all(pool).await?)
}

async fn until(mut holds: impl AsyncFnMut() -> Result<bool, BoxError>) -> Result<(), BoxError> {
    let waiting = async {
        while !holds().await? {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    tokio::time::timeout(WAIT_MAX, waiting).await?
}
