//! A consumer whose records come twice, and come again, and have their effect once.
//!
//! Then the same handler for the records of Debezium's outbox event router, whose id stands in the header `id`.
//!
//! Needs Rust, and Java 17 with Maven for a Postgres and a Kafka of its own (or servers of yours, see README.md).
//! Run it by
//!
//! ```sh
//! cargo run --release -p example-05-consumer
//! ```
#![expect(clippy::print_stdout, reason = "what it prints is what it shows")]

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde::Deserialize;
use sqlx::PgPool;
use tailrace_idempotency::{BoxError, Config, Consumer, Cx, IdFrom, Outcome, Report, schema};
use tailrace_stack::{Needs, Stack};
use tokio::sync::oneshot;
use uuid::Uuid;

const ORDERS: i64 = 6;

#[derive(Deserialize)]
struct OrderPlaced {
    article: String,
    pieces: i64,
}

/// Nothing here asks whether the message was here before. It changes a number, so a second time would be seen.
async fn reserve(cx: Cx<'_>, order: OrderPlaced) -> Result<Outcome, BoxError> {
    sqlx::query("update stock set reserved = reserved + $2 where article = $1")
        .bind(order.article)
        .bind(order.pieces)
        .execute(cx.conn)
        .await?;
    Ok(Outcome::Done)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let stack = Stack::start(Needs::BOTH).await?;
    let database = stack.postgres().fresh_database("consumer").await?;
    let pool = PgPool::connect(database.url()).await?;
    schema::install(&mut *pool.acquire().await?).await?;
    let tables =
        "create table stock (article text primary key, reserved bigint not null default 0);
                  insert into stock values ('cup'), ('plate')";
    sqlx::raw_sql(tables).execute(&pool).await?;
    let brokers = stack.kafka().brokers();
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;

    let orders = stack.kafka().fresh_topic("orders", 3).await?;
    let ids: Vec<Uuid> = (0..ORDERS).map(|_| Uuid::now_v7()).collect();
    for _ in 0..2 {
        for (number, id) in (0..).zip(&ids) {
            send(&producer, &orders, number, "ce_id", *id)?;
        }
    }
    producer.flush(Duration::from_secs(10))?;
    println!("{ORDERS} orders of 2 pieces are in Kafka, each of them twice.");
    let warehouse = || {
        let config = Config::new(orders.clone(), brokers, pool.clone());
        Consumer::new(config).topic(orders.clone()).on("order.placed.v1", reserve)
    };
    told(run(warehouse(), 12).await?, &pool).await?;

    // What `tailrace inbox seek --to 0 --yes` does for a person, after a look that nobody has moved progress for a minute,
    // and with a row in the audit. Progress is never set by an UPDATE: an owner that runs would overwrite it.
    sqlx::query("select tailrace.seek_consumer($1, $1, partition, 0) from generate_series(0, 2) as partition")
        .bind(&orders)
        .execute(&pool)
        .await?;
    println!("\nThe consumer is set back to the beginning, and Kafka gives it everything again.");
    told(run(warehouse(), 12).await?, &pool).await?;

    let routed = stack.kafka().fresh_topic("outbox_event_order", 1).await?;
    for number in 0..ORDERS {
        // Version 4, as most have them: any text would do.
        let id =
            Uuid::from_u128(0x67e55044_10b1_426f_9247_bb680e5fe0c8 + number.unsigned_abs() as u128);
        send(&producer, &routed, number, "id", id)?;
        send(&producer, &routed, number, "id", id)?;
    }
    producer.flush(Duration::from_secs(10))?;
    println!(
        "\nDebezium has routed {ORDERS} more, each of them twice, with ids in the header `id`."
    );
    let config = Config::new(routed.clone(), brokers, pool.clone());
    let debezium = Consumer::new(config)
        .topic(routed)
        // The type is where ours is too if the router is told so, by `table.fields.additional.placement =
        // type:header:ce_type`.
        .on("order.placed.v1", reserve)
        .id_from(IdFrom::header("id"));
    told(run(debezium, 12).await?, &pool).await
}

/// Runs a consumer until so many records were delivered and seen to.
async fn run(consumer: Consumer, records: u64) -> Result<Report, BoxError> {
    let counters = consumer.counters();
    let (stop, stopped) = oneshot::channel::<()>();
    let mut running = tokio::spawn(consumer.run(async { drop(stopped.await) }));
    loop {
        let report = counters.report();
        if report.applied + report.duplicates >= records {
            break;
        }
        tokio::select! {
            ended = &mut running => return Ok(ended??),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    drop(stop);
    Ok(running.await??)
}

async fn told(report: Report, pool: &PgPool) -> Result<(), BoxError> {
    let Report { delivered, applied, duplicates, .. } = report;
    println!("  delivered {delivered}, applied {applied}, duplicates {duplicates}");
    let stock: Vec<(String, i64)> =
        sqlx::query_as("select article, reserved from stock order by 1").fetch_all(pool).await?;
    for (article, reserved) in stock {
        println!("  {reserved} of article {article} are reserved");
    }
    Ok(())
}

fn send(
    producer: &BaseProducer,
    topic: &str,
    number: i64,
    header: &str,
    id: Uuid,
) -> Result<(), BoxError> {
    let article = if number % 2 == 0 { "cup" } else { "plate" };
    let payload = format!(r#"{{"article":"{article}","pieces":2}}"#);
    let id = id.to_string();
    let headers = OwnedHeaders::new()
        .insert(Header { key: header, value: Some(&id) })
        .insert(Header { key: "ce_type", value: Some("order.placed.v1") });
    let record = BaseRecord::to(topic).key(article).payload(&payload).headers(headers);
    producer.send(record).map_err(|(error, _)| error)?;
    Ok(())
}
