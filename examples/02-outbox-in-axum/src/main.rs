//! A service that takes orders over HTTP: the order and its message are one statement, a double click is one order, and
//! a stop lets what is under way come to its end.
//!
//! Needs Rust, and Java 17 with Maven for a Postgres and a Kafka of its own (or servers of yours, see README.md).
//! Run it by
//!
//! ```sh
//! cargo run --release -p example-02-outbox-in-axum
//! ```
#![expect(clippy::print_stdout, reason = "what it prints is what it shows")]

mod client;
#[path = "../../reader.rs"]
mod reader;

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::routing::post;
use axum::{Extension, Json, Router};
use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tailrace_cdc_relay::{Config, Relay};
use tailrace_idempotency::BoxError;
use tailrace_idempotency::http_layer::{IdempotencyKeys, RequestTx};
use tailrace_outbox::{Message, Outbox, Store};
use tailrace_stack::{Needs, Stack};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::client::{place, refused, until};
use crate::reader::read;

/// What all requests need.
struct Shop {
    outbox: Outbox,
    topic: String,
}

#[derive(Deserialize)]
struct PlaceOrder {
    article: String,
    pieces: i32,
}

/// The answer, and the payload of the message.
#[derive(Serialize)]
struct OrderPlaced {
    id: Uuid,
    article: String,
    pieces: i32,
}

/// In the transaction of the request. The layer below commits it, together with the answer; an answer of 400 or above
/// rolls it back.
async fn place_order(
    State(shop): State<Arc<Shop>>,
    Extension(tx): Extension<RequestTx>,
    Json(order): Json<PlaceOrder>,
) -> Result<(StatusCode, Json<OrderPlaced>), StatusCode> {
    if order.pieces < 1 {
        return Err(StatusCode::UNPROCESSABLE_ENTITY);
    }
    let placed = OrderPlaced { id: Uuid::now_v7(), article: order.article, pieces: order.pieces };
    let written = write(&shop, &tx, &placed).await;
    // What has failed is for the log of the service, and not for its client.
    written.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok((StatusCode::CREATED, Json(placed)))
}

/// Row and message go to Postgres in one statement. Neither can be there without the other.
async fn write(shop: &Shop, tx: &RequestTx, placed: &OrderPlaced) -> Result<(), BoxError> {
    let message = Message::builder(&shop.topic, "order.placed.v1")
        .source("/orders")
        .key(placed.id.to_string())
        .json(placed)
        .build()?;
    let mut conn = tx.conn().ok_or("somebody else has the transaction")?;
    shop.outbox
        .merge("insert into orders (id, article, pieces) values ($1, $2, $3)")
        .bind(placed.id)
        .bind(&placed.article)
        .bind(placed.pieces)
        .message(&message)
        .execute(&mut conn)
        .await?;
    Ok(())
}

fn service(shop: Shop, pool: PgPool) -> Router {
    // Whose a key is: in a service of yours, what its authentication has found out.
    let caller = |request: &Parts| {
        let customer = request.headers.get("customer").and_then(|name| name.to_str().ok());
        customer.unwrap_or_default().to_owned()
    };
    Router::new()
        .route("/orders", post(place_order))
        .with_state(Arc::new(shop))
        .layer(IdempotencyKeys::new(pool, caller))
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let stack = Stack::start(Needs::BOTH).await?;
    let database = stack.postgres().fresh_database("axum").await?;
    let topic = stack.kafka().fresh_topic("orders", 1).await?;
    let pool = PgPool::connect(database.url()).await?;
    tailrace_idempotency::schema::install(&mut *pool.acquire().await?).await?;
    let table = "create table orders (id uuid primary key, article text, pieces integer)";
    sqlx::raw_sql(table).execute(&pool).await?;

    // The relay is a sidecar elsewhere; example 03 is about it.
    let config = Config::new(database.url(), stack.kafka().brokers()).slot(database.name());
    let relay = Relay::new(config);
    let status = relay.status();
    let (stop_relay, stopped) = oneshot::channel::<()>();
    let relay = tokio::spawn(relay.run_on_own_thread(async { drop(stopped.await) }));

    // A service does not start before its messages are kept.
    let outbox = Outbox::new(Store::Wal).slot(database.name().to_owned());
    until(async || Ok(outbox.check(&pool).await.is_ok())).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move { terminate.recv().await.unwrap_or_default() };
    let service = service(Shop { outbox, topic: topic.clone() }, pool.clone());
    let serving = axum::serve(listener, service).with_graceful_shutdown(stop);
    let serving = tokio::spawn(serving.into_future());

    let cups = r#"{"article":"cup","pieces":2}"#;
    println!("An order, and the same again, as a double click sends it:");
    let (first, again) =
        (place(address, "key-1", cups).await?, place(address, "key-1", cups).await?);
    println!("  {first}\n  {again}");
    println!("Both have the same id: {}.", first == again);
    println!("An order of nothing:");
    println!("  {}", place(address, "key-2", r#"{"article":"cup","pieces":0}"#).await?);

    println!("\nSIGTERM comes while an order waits for a lock. The service is closed to others:");
    let mut lock = pool.begin().await?;
    sqlx::query("lock table orders in exclusive mode").execute(&mut *lock).await?;
    let plates = r#"{"article":"plate","pieces":1}"#;
    let waiting = tokio::spawn(place(address, "key-3", plates));
    let waits =
        "select exists (select from pg_locks where not granted and relation = 'orders'::regclass)";
    until(async || Ok(sqlx::query_scalar(waits).fetch_one(&pool).await?)).await?;
    kill_process(getpid(), Signal::TERM)?;
    until(async || Ok(refused(address).await)).await?;
    lock.commit().await?;
    println!("  {}", waiting.await??);
    serving.await??;
    println!("Then it has ended.");

    until(async || Ok(status.snapshot().messages == 2)).await?;
    drop(stop_relay);
    relay.await??;
    let orders: i64 = sqlx::query_scalar("select count(*) from orders").fetch_one(&pool).await?;
    println!("\nIn Postgres are {orders} orders, and in Kafka:");
    for payload in read(stack.kafka().brokers(), &topic)? {
        println!("  {payload}");
    }
    Ok(())
}
