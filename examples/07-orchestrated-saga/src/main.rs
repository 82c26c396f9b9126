//! An order that goes through four services as an orchestrated saga. One is approved; one is refused half-way, and what
//! was done for it is undone.
//!
//! Each service has a database of its own, and a relay from there to Kafka. What the engine asks of the others are
//! commands, what they answer are replies. Example 08 is the same order without an orchestrator.
//!
//! Needs Rust, and Java 17 with Maven for a Postgres and a Kafka of its own (or servers of yours, see README.md).
//! Run it by
//!
//! ```sh
//! cargo run --release -p example-07-orchestrated-saga
//! ```
#![expect(clippy::print_stdout, reason = "what it prints is what it shows")]

mod services;
#[path = "../../site.rs"]
mod site;

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use tailrace_idempotency::BoxError;
use tailrace_saga::story::{Observer, timeline};
use tailrace_saga::{Engine, Error, Irrefusable, LocalCx, Saga, SagaId, Sagas, diagram, local};

use crate::services::{
    AllocateStock, CapturePayment, ReserveCredit, customers, payments, warehouse,
};
use crate::site::Site;

/// The data of the saga: commands are made of it, and answers go into it.
#[derive(Serialize, Deserialize)]
struct Order {
    number: i64,
    customer: String,
    article: String,
    pieces: i64,
    cents: i64,
    rejected_for: Option<String>,
}

/// What follows what, and what is undone. Before the pivot everything can be, behind it nothing can be refused: a saga
/// that is put together otherwise does not compile.
fn create_order() -> Result<Saga<Order>, Error> {
    Saga::define("create-order", 1)
        .step("place-order", local(place_order).undo(reject_order))
        .compensate()
        .step("reserve-credit", reserve_credit)
        .on_refused(|order, why| order.rejected_for = Some(why))
        .compensate()
        .step("allocate-stock", allocate_stock)
        .on_refused(|order, why| order.rejected_for = Some(why))
        .compensate()
        .pivot("capture-payment", capture_payment)
        .on_refused(|order, why| order.rejected_for = Some(why))
        .retriable("approve-order", local(approve_order))
        .build()
}

fn reserve_credit(order: &Order) -> ReserveCredit {
    ReserveCredit { customer: order.customer.clone(), cents: order.cents }
}

fn allocate_stock(order: &Order) -> AllocateStock {
    AllocateStock { article: order.article.clone(), pieces: order.pieces }
}

fn capture_payment(order: &Order) -> CapturePayment {
    CapturePayment { cents: order.cents }
}

// What the service of orders does itself, in the transaction in which the saga goes on.

async fn place_order(cx: LocalCx<'_>, order: Order) -> Result<Result<(), Irrefusable>, BoxError> {
    set_state(cx.conn, order.number, "pending").await.map(Ok)
}

async fn reject_order(cx: LocalCx<'_>, order: Order) -> Result<(), BoxError> {
    let why = order.rejected_for.unwrap_or_default();
    set_state(cx.conn, order.number, &format!("rejected: {why}")).await
}

async fn approve_order(cx: LocalCx<'_>, order: Order) -> Result<Result<(), Irrefusable>, BoxError> {
    set_state(cx.conn, order.number, "approved").await.map(Ok)
}

async fn set_state(conn: &mut PgConnection, number: i64, state: &str) -> Result<(), BoxError> {
    let set = "insert into orders values ($1, $2) on conflict (number) do update set state = $2";
    sqlx::query(set).bind(number).bind(state).execute(conn).await?;
    Ok(())
}

/// Its database and those of the other services.
struct Shop {
    orders: PgPool,
    others: Vec<PgPool>,
    sagas: Sagas,
}

/// Starts all services in one program. Each would be one of its own; they share nothing.
async fn open(site: &mut Site, create_order: &Saga<Order>) -> Result<Shop, BoxError> {
    let table = "create table orders (number bigint primary key, state text)";
    let orders = site.database("orders", table).await?;
    let engine =
        Engine::new().source("/orders").topic_prefix(&site.prefix).saga(create_order).prepare()?;
    let sagas = engine.sagas();
    site.start(engine.run(site.config("orders", &orders), site.stopped()));
    let observer = Observer::new().topic_prefix(&site.prefix).saga(create_order);
    site.start(observer.run(site.config("observer", &orders), site.stopped()));

    let amounts = [
        (
            "customers",
            customers(),
            "create table amount as select 'anna' name, 10000::bigint value",
        ),
        ("warehouse", warehouse(), "create table amount as select 'cup' name, 10::bigint value"),
        ("payments", payments(), "create table amount as select 'till' name, 0::bigint value"),
    ];
    let mut others = Vec::new();
    for (name, participant, table) in amounts {
        let pool = site.database(name, table).await?;
        let participant = participant.topic_prefix(&site.prefix);
        site.start(participant.run(site.config(name, &pool), site.stopped()));
        others.push(pool);
    }
    Ok(Shop { orders, others, sagas })
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let create_order = create_order()?;
    let mut site = Site::new("orchestrated", create_order.definition().topics()).await?;
    let shop = open(&mut site, &create_order).await?;
    let mut conn = shop.orders.acquire().await?;
    println!("{}", diagram::states(create_order.definition()));
    println!("Before: {}\n", shop.balances().await?);

    // The card takes the first one. How many messages their stories have is known.
    for (number, cents, messages) in [(1, 2_000, 6), (2, 5_000, 10)] {
        let (customer, article) = ("anna".to_owned(), "cup".to_owned());
        let order = Order { number, customer, article, pieces: 2, cents, rejected_for: None };
        let id = SagaId::mint();
        let mut tx = shop.orders.begin().await?;
        shop.sagas.start(&mut tx, &create_order, id, &order).await?;
        tx.commit().await?;

        let ended = async || {
            let saga = shop.sagas.find(&mut conn, id).await?;
            Ok(saga.filter(|saga| saga.status().is_over()))
        };
        let ended = site.until(ended).await?;
        println!("Order {number} of {cents} cents is {}.", ended.status().as_str());
        println!("After:  {}", shop.balances().await?);
        let told = async || {
            let story = timeline(&mut conn, id).await?;
            Ok((story.entries().len() == messages).then_some(story))
        };
        println!("{}", site.until(told).await?.text());
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
