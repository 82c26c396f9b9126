//! Payments: takes the money by way of a provider that may be slow, may decline, and has to be asked only once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use rustix::process::{Signal, getpid, kill_process};
use sqlx::{PgConnection, Row};
use tailrace_idempotency::{Answer, BoxError, CallCx};
use tailrace_saga::Participant;
use tailrace_saga::choreography::Reaction;
use tailrace_saga::participant::{Cx, Outside};
use tokio::time::interval;

use crate::Failure;
use crate::ledger::{self, IN_TRANSIT};
use crate::order::Order;
use crate::place_order::{self, CapturePayment};
use crate::provider_client::{Charge, ChargeRequest, ProviderClient};
use crate::service::Service;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS stand_in (
        key text PRIMARY KEY, order_id uuid NOT NULL, card text NOT NULL, cents bigint NOT NULL)";

const CARDS: &str = "cards";
const BANK: &str = "bank";
/// What was lent to somebody whose card was declined later.
const LOSSES: &str = "losses";

/// Between two attempts to get an answer.
const ASK_AGAIN: Duration = Duration::from_millis(400);

/// What the service's handlers share.
struct Till {
    provider: ProviderClient,
    /// The failpoint: the next payment is the last thing that this process does.
    dies: AtomicBool,
}

type Shared = Arc<Till>;

pub(crate) async fn run(service: Service) -> Result<(), Failure> {
    service.prepare(&[ledger::TABLES, TABLES]).await?;
    service.relay_is_ready().await?;
    let provider = ProviderClient::new(&service.surroundings.provider_url)?;
    let till: Shared = Arc::new(Till { provider, dies: AtomicBool::new(false) });
    let commands = Participant::on("payments.commands")
        .source("/payments")
        .call(Outside::new(prepare_on_command, charge, record_on_command))
        .done();
    let events = place_order::choreography()?
        .service("payments")
        .call("capture-payment", Outside::new(prepare_by_event, charge, record_by_event));
    let routes = Router::new()
        .route("/failpoint", post(die_at_the_next_payment))
        .with_state(Arc::clone(&till));
    tokio::select! {
        ended = service.run_with(Arc::clone(&till), commands, events, routes) => ended,
        never = settle(&service, &till) => match never {},
    }
}

async fn die_at_the_next_payment(State(till): State<Shared>) -> StatusCode {
    till.dies.store(true, Ordering::Relaxed);
    StatusCode::ACCEPTED
}

impl Till {
    /// Dies as a process does whose machine is cut from power, when it was asked to.
    fn may_die(&self) {
        if self.dies.load(Ordering::Relaxed) {
            // There is no way on for a process that cannot kill itself.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }
}

/// Books a payment. A card that was declined is not charged: that is the answer.
async fn book(
    conn: &mut PgConnection,
    till: &Till,
    key: &str,
    order: &Order,
    charge: Charge,
) -> Result<Result<(), String>, BoxError> {
    match charge {
        Charge::Declined => return Ok(Err("the card is declined".to_owned())),
        Charge::Charged => {
            ledger::transfer(conn, order.id, CARDS, BANK, order.cents).await?;
        }
        Charge::StoodIn => {
            sqlx::query(
                "INSERT INTO stand_in (key, order_id, card, cents) VALUES ($1, $2, $3, $4)",
            )
            .bind(key)
            .bind(order.id)
            .bind(&order.card)
            .bind(order.cents)
            .execute(&mut *conn)
            .await?;
            ledger::transfer(conn, order.id, CARDS, IN_TRANSIT, order.cents).await?;
        }
    }
    till.may_die();
    Ok(Ok(()))
}

/// With no transaction open, in both styles: a provider that is slow keeps no connection and no lock.
async fn charge(
    cx: CallCx<'_, Shared>,
    order: Order,
) -> Result<Answer<(String, Charge)>, BoxError> {
    let key = cx.key.to_string();
    Ok(match cx.state.provider.charge_or_stand_in(&key, &order).await {
        Ok(charge) => Answer::Done((key, charge)),
        Err(_) => Answer::retry(ASK_AGAIN),
    })
}

/// In a transaction before it: nothing but the order is needed for the call.
async fn prepare_on_command(
    _: Cx<'_, Shared>,
    CapturePayment(order): CapturePayment,
) -> Result<Result<Order, String>, BoxError> {
    Ok(Ok(order))
}

/// In a transaction after it.
async fn record_on_command(
    cx: Cx<'_, Shared>,
    order: Order,
    (key, charge): (String, Charge),
) -> Result<Result<(), String>, BoxError> {
    book(cx.conn, cx.state, &key, &order, charge).await
}

async fn prepare_by_event(
    _: Cx<'_, Shared>,
    order: Order,
) -> Result<Result<Order, Reaction>, BoxError> {
    Ok(Ok(order))
}

async fn record_by_event(
    cx: Cx<'_, Shared>,
    order: Order,
    (key, charge): (String, Charge),
) -> Result<Reaction, BoxError> {
    Ok(match book(cx.conn, cx.state, &key, &order, charge).await? {
        Ok(()) => Reaction::emit("payment.captured.v1", &order),
        Err(_) => Reaction::refuse("payment.refused.v1", &order),
    })
}

/// Collects what was lent, by the keys by which the provider may have been asked before.
async fn settle(service: &Service, till: &Till) -> std::convert::Infallible {
    let mut tick = interval(ASK_AGAIN);
    loop {
        tick.tick().await;
        if let Err(error) = settle_one(service, till).await {
            tracing::debug!(%error, "what was lent is not collected yet");
        }
    }
}

async fn settle_one(service: &Service, till: &Till) -> Result<(), BoxError> {
    let mut tx = service.pool.begin().await?;
    let lent = "SELECT key, order_id, card, cents FROM stand_in LIMIT 1 FOR UPDATE SKIP LOCKED";
    let Some(row) = sqlx::query(lent).fetch_optional(&mut *tx).await? else { return Ok(()) };
    let request = ChargeRequest {
        key: row.try_get(0)?,
        order: row.try_get(1)?,
        card: row.try_get(2)?,
        cents: row.try_get(3)?,
    };
    let Ok(charge) = till.provider.charge(&request).await else { return Ok(()) };
    let to = if charge == Charge::Charged { BANK } else { LOSSES };
    ledger::transfer(&mut tx, request.order, IN_TRANSIT, to, request.cents).await?;
    sqlx::query("DELETE FROM stand_in WHERE key = $1").bind(&request.key).execute(&mut *tx).await?;
    Ok(tx.commit().await?)
}
