//! A message that keeps failing holds back its own key and no other; a person mends it, and the key goes on in order.
//!
//! What the example does by `tailrace_idempotency::inbox` is what `tailrace inbox` does: it prints the command for it.
//!
//! Needs Rust, and Java 17 with Maven for a Postgres and a Kafka of its own (or servers of yours, see README.md).
//! Run it by
//!
//! ```sh
//! cargo run --release -p example-06-parking
//! ```
#![expect(clippy::print_stdout, reason = "what it prints is what it shows")]

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde::Deserialize;
use sqlx::PgPool;
use tailrace_idempotency::inbox::{self, By, Filter, State};
use tailrace_idempotency::{BoxError, Config, Consumer, Cx, Outcome, schema};
use tailrace_stack::{Needs, Stack};
use tokio::sync::oneshot;
use uuid::Uuid;

/// What is waited for has come by then, or the example fails.
const WAIT_MAX: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Deposit {
    account: String,
    cents: i64,
}

/// Fails for an account that is not there: a foreign key says so, and nobody here.
async fn book(cx: Cx<'_>, deposit: Deposit) -> Result<Outcome, BoxError> {
    if deposit.cents < 0 {
        return Ok(Outcome::reject("a deposit is not negative"));
    }
    sqlx::query("insert into booking (account, cents) values ($1, $2)")
        .bind(deposit.account)
        .bind(deposit.cents)
        .execute(cx.conn)
        .await?;
    Ok(Outcome::Done)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let stack = Stack::start(Needs::BOTH).await?;
    let database = stack.postgres().fresh_database("parking").await?;
    let pool = PgPool::connect(database.url()).await?;
    schema::install(&mut *pool.acquire().await?).await?;
    sqlx::raw_sql(
        "create table account (name text primary key);
         insert into account values ('ben'), ('carla');
         create table booking (n bigserial, account text references account, cents bigint)",
    )
    .execute(&pool)
    .await?;
    let (brokers, topic) =
        (stack.kafka().brokers(), stack.kafka().fresh_topic("deposits", 1).await?);
    produce(brokers, &topic)?;

    let config = Config::new(topic.clone(), brokers, pool.clone())
        .parked_wait(Duration::from_millis(50), Duration::from_millis(50))
        .attempts_max(3);
    let bank = Consumer::new(config).topic(topic).on("deposit.v1", book);
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(bank.run(async { drop(stopped.await) }));

    println!("Nobody has opened the account anna.");
    until(&pool, "select count(*) = 1 from tailrace.parked_message where state = 'stuck'").await?;
    until(&pool, "select count(*) = 2 from tailrace.dead_letter").await?;
    bookings(&pool).await?;
    list(&pool).await?;

    println!(
        "\nIt is opened, and the first message of its key is tried again: those behind it follow."
    );
    sqlx::query("insert into account values ('anna')").execute(&pool).await?;
    println!("$ tailrace inbox retry --key anna --yes");
    retry(&pool, Filter::default().key("anna").state(State::Stuck)).await?;
    until(&pool, "select count(*) = 0 from tailrace.parked_message").await?;
    bookings(&pool).await?;

    println!("\nThe message that could not be read is given a payload, and put back.");
    println!(
        "$ echo '{{\"account\":\"ben\",\"cents\":9}}' | tailrace inbox edit dead:1 --payload - --yes"
    );
    println!("$ tailrace inbox retry dead:1 --yes");
    let mut conn = pool.acquire().await?;
    let unread = inbox::get(&mut conn, &"dead:1".parse()?).await?;
    inbox::edit(&mut conn, &unread, br#"{"account":"ben","cents":9}"#, &By::new("example")).await?;
    drop(conn);
    retry(&pool, Filter::default().reason("undecodable")).await?;
    until(&pool, "select count(*) = 1 from booking where cents = 9").await?;
    bookings(&pool).await?;
    list(&pool).await?;

    drop(stop);
    running.await??;
    Ok(())
}

/// What `tailrace inbox list` shows.
async fn list(pool: &PgPool) -> Result<(), BoxError> {
    println!("$ tailrace inbox list");
    for entry in inbox::list(&mut *pool.acquire().await?, &Filter::default(), 10).await? {
        let key = String::from_utf8(entry.key.unwrap_or_default())?;
        let reason = entry.reason.unwrap_or_default();
        println!("  {key:5}  {:6}  {reason}", entry.state.name());
    }
    Ok(())
}

async fn retry(pool: &PgPool, chosen: Filter) -> Result<(), BoxError> {
    let mut conn = pool.acquire().await?;
    for entry in inbox::list(&mut conn, &chosen, 10).await? {
        inbox::retry(&mut conn, &entry, inbox::RETRIES_MAX, &By::new("example")).await?;
    }
    Ok(())
}

async fn bookings(pool: &PgPool) -> Result<(), BoxError> {
    let bookings: Vec<(String, Vec<i64>)> = sqlx::query_as(
        "select account, array_agg(cents order by n) from booking group by 1 order by 1",
    )
    .fetch_all(pool)
    .await?;
    for (account, cents) in bookings {
        println!("  booked for {account}: {cents:?}");
    }
    Ok(())
}

/// Three keys in turn, in one partition; then one message that is refused and one that is no JSON.
fn produce(brokers: &str, topic: &str) -> Result<(), BoxError> {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let deposits = (1..=3).flat_map(|cents| ["anna", "ben", "carla"].map(|name| (name, cents)));
    let payload = |(name, cents)| (name, format!(r#"{{"account":"{name}","cents":{cents}}}"#));
    let bad = [("ben", r#"{"account":"ben""#.to_owned()), payload(("carla", -5))];
    for (name, payload) in deposits.map(payload).chain(bad) {
        let id = Uuid::now_v7().to_string();
        let headers = OwnedHeaders::new()
            .insert(Header { key: "ce_id", value: Some(&id) })
            .insert(Header { key: "ce_type", value: Some("deposit.v1") });
        let record = BaseRecord::to(topic).key(name).payload(&payload).headers(headers);
        producer.send(record).map_err(|(error, _)| error)?;
    }
    Ok(producer.flush(WAIT_MAX)?)
}

/// Waits until a query answers with true.
async fn until(pool: &PgPool, query: &'static str) -> Result<(), BoxError> {
    let holds = async {
        while !sqlx::query_scalar::<_, bool>(query).fetch_one(pool).await? {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, BoxError>(())
    };
    tokio::time::timeout(WAIT_MAX, holds).await?
}
