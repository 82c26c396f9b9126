//! The control lane: payments as most would write them, without outbox, deduplication and sagas.
//!
//! It takes the money of every order, also of one that the shop refuses, and does nothing else: what can be compared is
//! payments that are lost or doubled, and not how many orders complete.
//!
//! The order's row is committed and then the message is sent; the consumer does what the message says. Under the same
//! troubles its books go wrong, so a green check of the others means something.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use rdkafka::ClientConfig;
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, ThreadedProducer};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::Failure;
use crate::ledger::{self, IN_TRANSIT};
use crate::service::Service;

/// Orders that were placed, for payments.
pub(crate) const ORDERS: &str = "control.orders";
/// Payments that were taken, for orders.
pub(crate) const PAYMENTS: &str = "control.payments";

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS control_order (
        id uuid PRIMARY KEY, cents bigint NOT NULL, state text NOT NULL DEFAULT 'placed')";

const POLL_MAX: Duration = Duration::from_millis(200);
const SEND_MAX: Duration = Duration::from_secs(2);

/// An order of the control lane.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ControlOrder {
    pub(crate) id: Uuid,
    pub(crate) cents: i64,
}

#[derive(Clone)]
struct Lane {
    orders: PgPool,
    payments: PgPool,
    producer: Arc<ThreadedProducer<DefaultProducerContext>>,
    brokers: String,
}

pub(crate) async fn run(service: Service) -> Result<(), Failure> {
    service.prepare(&[ledger::TABLES, TABLES]).await?;
    let payments = PgPool::connect(&service.surroundings.control_database_url).await?;
    sqlx::raw_sql(ledger::TABLES).execute(&payments).await?;
    let brokers = service.surroundings.kafka_brokers.clone();
    let producer = ClientConfig::new()
        .set("bootstrap.servers", &brokers)
        .set("message.timeout.ms", SEND_MAX.as_millis().to_string())
        .create()?;
    let orders = service.pool.clone();
    let lane = Lane { orders, payments, producer: Arc::new(producer), brokers };
    for topic in [ORDERS, PAYMENTS] {
        let (lane, runtime) = (lane.clone(), Handle::current());
        std::thread::spawn(move || {
            if let Err(error) = lane.consume(topic, &runtime) {
                tracing::error!(%error, topic, "a consumer of the control lane has ended");
            }
        });
    }
    let routes = Router::new().route("/orders", post(place)).with_state(lane);
    service.serve(routes).await
}

/// The double write: what happens between the two is lost.
async fn place(State(lane): State<Lane>, Json(order): Json<ControlOrder>) -> StatusCode {
    match lane.place(&order).await {
        Ok(()) => StatusCode::CREATED,
        Err(error) => {
            tracing::warn!(%error, "an order of the control lane is not taken");
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

impl Lane {
    async fn place(&self, order: &ControlOrder) -> Result<(), Failure> {
        let mut tx = self.orders.begin().await?;
        sqlx::query("INSERT INTO control_order (id, cents) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(order.id)
            .bind(order.cents)
            .execute(&mut *tx)
            .await?;
        ledger::transfer(&mut tx, order.id, "customers", IN_TRANSIT, order.cents).await?;
        tx.commit().await?;
        self.send(ORDERS, order)
    }

    /// Hands a message to the Kafka client, which sends it, or drops it when that takes too long.
    fn send(&self, topic: &str, order: &ControlOrder) -> Result<(), Failure> {
        let (key, payload) = (order.id.to_string(), serde_json::to_vec(order)?);
        let record = BaseRecord::to(topic).key(&key).payload(&payload);
        Ok(self.producer.send(record).map_err(|(error, _)| error)?)
    }

    /// Consumes a topic as the client library has it by default: offsets are committed by the clock.
    fn consume(&self, topic: &str, runtime: &Handle) -> Result<(), Failure> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", format!("{topic}-consumer"))
            .set("auto.offset.reset", "earliest")
            .set("session.timeout.ms", "6000")
            .create()?;
        consumer.subscribe(&[topic])?;
        loop {
            let Some(Ok(record)) = consumer.poll(POLL_MAX) else { continue };
            let Some(order) = record.payload().and_then(|it| serde_json::from_slice(it).ok())
            else {
                continue;
            };
            let applied = runtime.block_on(self.apply(topic, &order));
            if let Err(error) = applied {
                tracing::warn!(%error, topic, "a message of the control lane is lost");
            }
        }
    }

    async fn apply(&self, topic: &str, order: &ControlOrder) -> Result<(), Failure> {
        if topic == ORDERS {
            let mut tx = self.payments.begin().await?;
            ledger::transfer(&mut tx, order.id, "cards", "bank", order.cents).await?;
            tx.commit().await?;
            return self.send(PAYMENTS, order);
        }
        let mut tx = self.orders.begin().await?;
        ledger::transfer(&mut tx, order.id, IN_TRANSIT, "sales", order.cents).await?;
        sqlx::query("UPDATE control_order SET state = 'completed' WHERE id = $1")
            .bind(order.id)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }
}
