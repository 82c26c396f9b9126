//! Orders: takes them, and says what became of them. The engine of the orchestrated sagas lives here.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde_json::json;
use sqlx::PgConnection;
use tailrace_idempotency::BoxError;
use tailrace_idempotency::http_layer::{IdempotencyKeys, RequestTx};
use tailrace_outbox::Message;
use tailrace_saga::choreography::{Reaction, Starter};
use tailrace_saga::participant::Cx;
use tailrace_saga::{Engine, Irrefusable, LocalCx, Saga, SagaId, Sagas};
use uuid::Uuid;

use crate::Failure;
use crate::ledger::{self, IN_TRANSIT};
use crate::order::{FACTS, Fact, ORDER_CHANGED, Order, State as Standing, Style};
use crate::place_order;
use crate::service::Service;
use crate::traces;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS orders (
        id uuid PRIMARY KEY,
        saga uuid NOT NULL,
        style text NOT NULL,
        cents bigint NOT NULL,
        quantity bigint NOT NULL,
        state text NOT NULL,
        reason text,
        placed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        ended_at timestamptz);
    CREATE INDEX IF NOT EXISTS orders_running ON orders (placed_at) WHERE ended_at IS NULL";

/// What the customer owes for nothing so far, what is sold, and in between what is on its way.
const CUSTOMERS: &str = "customers";
const SALES: &str = "sales";

/// What causes a message: pairs of attributes.
type Cause = Vec<(String, String)>;

pub(crate) async fn run(service: Service) -> Result<(), Failure> {
    service.prepare(&[ledger::TABLES, TABLES]).await?;
    service.relay_is_ready().await?;
    let by_commands = place_order::saga()?;
    let engine = Engine::new().source("/orders").saga(&by_commands).prepare()?;
    let by_events = place_order::choreography()?
        .service("orders")
        .handle("approve-order", approve_by_event)
        .undo("reject-order", reject_by_event);
    let (sagas, starter) = (engine.sagas(), by_events.starter());
    let desk = Desk { sagas, by_commands, starter };
    // A second click on the button is the same request: it is answered with what the first one was answered.
    let once = IdempotencyKeys::new(service.pool.clone(), |_| "storefront".to_owned());
    let routes = Router::new().route("/orders", post(place)).layer(once).with_state(desk);
    tokio::try_join!(
        async {
            Box::pin(engine.run(service.config("engine"), service.stopped()))
                .await
                .map(drop)
                .map_err(Failure::from)
        },
        async {
            let config = service.config("by-events");
            Box::pin(by_events.run(config, service.stopped()))
                .await
                .map(drop)
                .map_err(Failure::from)
        },
        service.serve(routes),
    )?;
    Ok(())
}

/// Where orders are taken.
#[derive(Clone)]
struct Desk {
    sagas: Sagas,
    by_commands: Saga<Order>,
    starter: Starter,
}

/// Takes an order: its row, its saga and the answer to the request are one transaction.
async fn place(
    State(desk): State<Desk>,
    Extension(tx): Extension<RequestTx>,
    headers: HeaderMap,
    Json(order): Json<Order>,
) -> Result<(StatusCode, Json<serde_json::Value>), StatusCode> {
    let mut conn = tx.conn().ok_or(StatusCode::INTERNAL_SERVER_ERROR)?;
    let trace = traces::of(&headers);
    let saga = desk.start(&mut conn, &order, trace.clone()).await.map_err(|error| {
        tracing::warn!(%error, "an order is not taken");
        StatusCode::SERVICE_UNAVAILABLE
    })?;
    let answer = json!({ "order": order.id, "saga": saga, "trace": traces::id(&trace) });
    Ok((StatusCode::CREATED, Json(answer)))
}

impl Desk {
    async fn start(
        &self,
        conn: &mut PgConnection,
        order: &Order,
        cause: Cause,
    ) -> Result<Uuid, BoxError> {
        match order.style {
            Style::Choreography => {
                let saga = self.starter.start_caused_by(conn, order, cause.clone()).await?;
                accept(conn, order, *saga.as_uuid(), cause).await?;
                Ok(*saga.as_uuid())
            }
            Style::Orchestration => {
                let saga = SagaId::from_uuid(order.id);
                self.sagas.start_caused_by(conn, &self.by_commands, saga, order, cause).await?;
                Ok(order.id)
            }
        }
    }
}

async fn accept(
    conn: &mut PgConnection,
    order: &Order,
    saga: Uuid,
    cause: Cause,
) -> Result<(), BoxError> {
    sqlx::query(
        "INSERT INTO orders (id, saga, style, cents, quantity, state)
         VALUES ($1, $2, $3, $4, $5, 'placed')",
    )
    .bind(order.id)
    .bind(saga)
    .bind(order.style.as_str())
    .bind(order.cents)
    .bind(order.quantity)
    .execute(&mut *conn)
    .await?;
    ledger::transfer(conn, order.id, CUSTOMERS, IN_TRANSIT, order.cents).await?;
    tell(conn, order, saga, Standing::Placed, cause).await
}

async fn end(
    conn: &mut PgConnection,
    order: &Order,
    saga: Uuid,
    state: Standing,
    cause: Cause,
) -> Result<(), BoxError> {
    sqlx::query(
        "UPDATE orders SET state = $2, reason = $3, ended_at = clock_timestamp() WHERE id = $1",
    )
    .bind(order.id)
    .bind(state.as_str())
    .bind(&order.reason)
    .execute(&mut *conn)
    .await?;
    let to = if state == Standing::Completed { SALES } else { CUSTOMERS };
    ledger::transfer(conn, order.id, IN_TRANSIT, to, order.cents).await?;
    tell(conn, order, saga, state, cause).await
}

/// Says how an order stands, for read models.
async fn tell(
    conn: &mut PgConnection,
    order: &Order,
    saga: Uuid,
    state: Standing,
    cause: Cause,
) -> Result<(), BoxError> {
    let fact = Message::builder(FACTS, ORDER_CHANGED)
        .source("/orders")
        .key(order.id.to_string())
        .json(&Fact { order: order.clone(), saga, state })
        .caused_by(cause)
        .build()?;
    Ok(tailrace_outbox::write(conn, &fact).await?)
}

/// The first step of the orchestrated saga, in the transaction of the request.
pub(crate) async fn accept_locally(
    cx: LocalCx<'_>,
    order: Order,
) -> Result<Result<(), Irrefusable>, BoxError> {
    let cause = cx.cause();
    accept(cx.conn, &order, *cx.saga.as_uuid(), cause).await.map(Ok)
}

/// What undoes it.
pub(crate) async fn reject_locally(cx: LocalCx<'_>, order: Order) -> Result<(), BoxError> {
    let cause = cx.cause();
    end(cx.conn, &order, *cx.saga.as_uuid(), Standing::Rejected, cause).await
}

/// The last step of the orchestrated saga.
pub(crate) async fn approve_locally(
    cx: LocalCx<'_>,
    order: Order,
) -> Result<Result<(), Irrefusable>, BoxError> {
    let cause = cx.cause();
    end(cx.conn, &order, *cx.saga.as_uuid(), Standing::Completed, cause).await.map(Ok)
}

async fn approve_by_event(cx: Cx<'_>, order: Order) -> Result<Reaction, BoxError> {
    let cause = cx.cause();
    end(cx.conn, &order, *cx.saga.saga.as_uuid(), Standing::Completed, cause).await?;
    Ok(Reaction::emit("order.approved.v1", &order))
}

/// The event that undoes the order says why.
async fn reject_by_event(cx: Cx<'_>, mut order: Order) -> Result<Reaction, BoxError> {
    let reason = match cx.meta.message_type() {
        "stock.refused.v1" => "out of stock",
        "parcel.refused.v1" => "the carrier refuses",
        "payment.refused.v1" => "the card is declined",
        _ => "it took too long",
    };
    order.reason = Some(reason.to_owned());
    let cause = cx.cause();
    end(cx.conn, &order, *cx.saga.saga.as_uuid(), Standing::Rejected, cause).await?;
    Ok(Reaction::done())
}
