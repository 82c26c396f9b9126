//! What the services do about events. Subscriptions, repetitions, and what comes late or in another order are not their
//! business.

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tailrace_idempotency::BoxError;
use tailrace_saga::Choreography;
use tailrace_saga::choreography::{Reaction, Service};
use tailrace_saga::participant::Cx;

/// What all events carry: those further on need what nobody before them does.
#[derive(Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) number: i64,
    pub(crate) customer: String,
    pub(crate) article: String,
    pub(crate) pieces: i64,
    pub(crate) cents: i64,
}

/// Orders. The first step is done where an order is placed.
pub(crate) fn orders(create_order: &Choreography) -> Service {
    create_order
        .service("orders")
        .undo("reject-order", reject_order)
        .handle("approve-order", approve_order)
}

async fn reject_order(cx: Cx<'_>, order: Order) -> Result<Reaction, BoxError> {
    let failure = cx.meta.message_type();
    set_state(cx.conn, order.number, &format!("rejected: {failure}")).await?;
    Ok(Reaction::emit("order.rejected.v1", &order))
}

async fn approve_order(cx: Cx<'_>, order: Order) -> Result<Reaction, BoxError> {
    set_state(cx.conn, order.number, "approved").await?;
    Ok(Reaction::emit("order.approved.v1", &order))
}

pub(crate) async fn set_state(
    conn: &mut PgConnection,
    number: i64,
    state: &str,
) -> Result<(), BoxError> {
    let set = "insert into orders values ($1, $2) on conflict (number) do update set state = $2";
    sqlx::query(set).bind(number).bind(state).execute(conn).await?;
    Ok(())
}

/// Credit for customers.
pub(crate) fn customers(create_order: &Choreography) -> Service {
    create_order
        .service("customers")
        .handle("reserve-credit", reserve_credit)
        .undo("release-credit", release_credit)
}

async fn reserve_credit(cx: Cx<'_>, order: Order) -> Result<Reaction, BoxError> {
    Ok(match add(cx.conn, &order.customer, -order.cents).await? {
        true => Reaction::emit("credit.reserved.v1", &order),
        false => Reaction::refuse("credit.refused.v1", &order),
    })
}

async fn release_credit(cx: Cx<'_>, order: Order) -> Result<Reaction, BoxError> {
    add(cx.conn, &order.customer, order.cents).await?;
    Ok(Reaction::emit("credit.released.v1", &order))
}

/// Stock.
pub(crate) fn warehouse(create_order: &Choreography) -> Service {
    create_order
        .service("warehouse")
        .handle("allocate-stock", allocate_stock)
        .undo("free-stock", free_stock)
}

async fn allocate_stock(cx: Cx<'_>, order: Order) -> Result<Reaction, BoxError> {
    Ok(match add(cx.conn, &order.article, -order.pieces).await? {
        true => Reaction::emit("stock.allocated.v1", &order),
        false => Reaction::refuse("stock.refused.v1", &order),
    })
}

async fn free_stock(cx: Cx<'_>, order: Order) -> Result<Reaction, BoxError> {
    add(cx.conn, &order.article, order.pieces).await?;
    Ok(Reaction::emit("stock.freed.v1", &order))
}

/// Payments by card. They are the point of no return, so nothing undoes them.
pub(crate) fn payments(create_order: &Choreography) -> Service {
    create_order.service("payments").handle("capture-payment", capture_payment)
}

const CARD_LIMIT: i64 = 3_000;

async fn capture_payment(cx: Cx<'_>, order: Order) -> Result<Reaction, BoxError> {
    add(cx.conn, "till", order.cents).await?;
    // A refusal takes back what the step has done so far.
    Ok(match order.cents <= CARD_LIMIT {
        true => Reaction::emit("payment.captured.v1", &order),
        false => Reaction::refuse("payment.refused.v1", &order),
    })
}

/// Adds to an amount, or takes from it, unless it falls below zero; then false.
async fn add(conn: &mut PgConnection, name: &str, by: i64) -> Result<bool, BoxError> {
    let add = "update amount set value = value + $2 where name = $1 and value + $2 >= 0";
    let added = sqlx::query(add).bind(name).bind(by).execute(conn).await?;
    Ok(added.rows_affected() == 1)
}
