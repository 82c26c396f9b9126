//! An order that goes through four services, each of which reacts to what the one before has said. One is approved; one
//! is refused half-way, and what was done for it is undone.
//!
//! Each service has a database of its own, and a relay from there to Kafka. Nobody stands in the middle; that everything
//! fits together is declared in one place, and checked. Example 07 is the same order with an orchestrator.
//!
//! Needs Rust, and Java 17 with Maven for a Postgres and a Kafka of its own (or servers of yours, see README.md).
//! Run it by
//!
//! ```sh
//! cargo run --release -p example-08-choreographed-saga
//! ```
#![expect(clippy::print_stdout, reason = "what it prints is what it shows")]

mod services;
#[path = "../../site.rs"]
mod site;

use std::time::Duration;

use sqlx::PgPool;
use tailrace_idempotency::BoxError;
use tailrace_saga::choreography::{Starter, diagram};
use tailrace_saga::story::{Observer, timeline};
use tailrace_saga::{Choreography, Error};

use crate::services::{Order, customers, orders, payments, set_state, warehouse};
use crate::site::Site;

/// Which event leads to which step in which service, and what undoes it. From it each service gets its subscriptions,
/// those to the failures of others among them. What does not fit together is an error here, and not in production.
fn create_order() -> Result<Choreography, Error> {
    Choreography::define("create-order", 1)
        .starts("orders", "place-order")
        .emits("order.placed.v1")
        .compensated_by("reject-order")
        .undone("order.rejected.v1")
        .step("customers", "reserve-credit", "order.placed.v1")
        .emits("credit.reserved.v1")
        .refuses("credit.refused.v1")
        .compensated_by("release-credit")
        .undone("credit.released.v1")
        .step("warehouse", "allocate-stock", "credit.reserved.v1")
        .emits("stock.allocated.v1")
        .refuses("stock.refused.v1")
        .compensated_by("free-stock")
        .undone("stock.freed.v1")
        .step("payments", "capture-payment", "stock.allocated.v1")
        .emits("payment.captured.v1")
        .refuses("payment.refused.v1")
        .pivot("payment.called-off.v1")
        .step("orders", "approve-order", "payment.captured.v1")
        .emits("order.approved.v1")
        .retriable()
        .ends_with("order.approved.v1")
        .ends_within(Duration::from_secs(60), "order.expired.v1")
        .build()
}

/// The databases of the services, that of orders first.
struct Shop {
    orders: PgPool,
    others: Vec<PgPool>,
    starter: Starter,
}

/// Starts all services in one program. Each would be one of its own; they share the declaration, and nothing else.
async fn open(site: &mut Site, create_order: &Choreography) -> Result<Shop, BoxError> {
    let table = "create table orders (number bigint primary key, state text)";
    let pool = site.database("orders", table).await?;
    let service = orders(create_order).topic_prefix(&site.prefix);
    let starter = service.starter();
    site.start(service.run(site.config("orders", &pool), site.stopped()));
    let observer = Observer::new().topic_prefix(&site.prefix).choreography(create_order);
    site.start(observer.run(site.config("observer", &pool), site.stopped()));

    let customers = customers(create_order);
    let warehouse = warehouse(create_order);
    let payments = payments(create_order);
    let services = [
        ("customers", customers, "create table amount as select 'anna' name, 10000::bigint value"),
        ("warehouse", warehouse, "create table amount as select 'cup' name, 10::bigint value"),
        ("payments", payments, "create table amount as select 'till' name, 0::bigint value"),
    ];
    let mut others = Vec::new();
    for (name, service, table) in services {
        let pool = site.database(name, table).await?;
        let service = service.topic_prefix(&site.prefix);
        site.start(service.run(site.config(name, &pool), site.stopped()));
        others.push(pool);
    }
    Ok(Shop { orders: pool, others, starter })
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let create_order = create_order()?;
    let mut site = Site::new("choreographed", create_order.topics()).await?;
    let shop = open(&mut site, &create_order).await?;
    let mut conn = shop.orders.acquire().await?;
    println!("{}", diagram::states(&create_order));
    println!("Before: {}\n", shop.balances().await?);

    // The card takes the first one. Nobody but the observer sees all of a saga: it is over when its story has so many
    // messages.
    for (number, cents, messages) in [(1, 2_000, 5), (2, 5_000, 7)] {
        let (customer, article) = ("anna".to_owned(), "cup".to_owned());
        let order = Order { number, customer, article, pieces: 2, cents };
        let mut tx = shop.orders.begin().await?;
        set_state(&mut tx, number, "pending").await?;
        let saga = shop.starter.start(&mut tx, &order).await?;
        tx.commit().await?;

        let told = async || {
            let story = timeline(&mut conn, saga).await?;
            Ok((story.entries().len() == messages).then_some(story))
        };
        let story = site.until(told).await?;
        println!("After order {number} of {cents} cents: {}", shop.balances().await?);
        println!("{}", story.text());
    }
    site.stop().await
}

impl Shop {
    /// A message can be read a moment before its transaction is seen in Postgres: a read that locks waits for that.
    async fn balances(&self) -> Result<String, BoxError> {
        let mut balances = String::new();
        for pool in &self.others {
            let (name, value): (String, i64) =
                sqlx::query_as("select * from amount for share").fetch_one(pool).await?;
            balances += &format!("{name} {value}, ");
        }
        let states: Vec<String> =
            sqlx::query_scalar("select state from orders order by number for share")
                .fetch_all(&self.orders)
                .await?;
        Ok(format!("{balances}orders {states:?}"))
    }
}
