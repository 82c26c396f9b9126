//! The services that carry out commands. What they do is plain; nothing here asks for sagas, for repetitions, or for what
//! comes late or in another order.

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tailrace_idempotency::BoxError;
use tailrace_saga::participant::Cx;
use tailrace_saga::{Command, Compensable, Participant};

/// Credit for customers.
pub(crate) fn customers() -> Participant {
    Participant::on(ReserveCredit::TOPIC)
        .source("/customers")
        .handle(reserve_credit)
        .undo(release_credit)
}

#[derive(Serialize, Deserialize)]
pub(crate) struct ReserveCredit {
    pub(crate) customer: String,
    pub(crate) cents: i64,
}

impl Command for ReserveCredit {
    const TYPE: &'static str = "credit.reserve.v1";
    const TOPIC: &'static str = "customers.commands";
    type Reply = ();
    /// Why not.
    type Refusal = String;
}

impl Compensable for ReserveCredit {}

async fn reserve_credit(cx: Cx<'_>, asked: ReserveCredit) -> Result<Result<(), String>, BoxError> {
    Ok(match add(cx.conn, &asked.customer, -asked.cents).await? {
        true => Ok(()),
        false => Err("the credit is too low".to_owned()),
    })
}

async fn release_credit(cx: Cx<'_>, asked: ReserveCredit, _: ()) -> Result<(), BoxError> {
    add(cx.conn, &asked.customer, asked.cents).await.map(drop)
}

/// Stock.
pub(crate) fn warehouse() -> Participant {
    Participant::on(AllocateStock::TOPIC)
        .source("/warehouse")
        .handle(allocate_stock)
        .undo(free_stock)
}

#[derive(Serialize, Deserialize)]
pub(crate) struct AllocateStock {
    pub(crate) article: String,
    pub(crate) pieces: i64,
}

impl Command for AllocateStock {
    const TYPE: &'static str = "stock.allocate.v1";
    const TOPIC: &'static str = "warehouse.commands";
    type Reply = ();
    type Refusal = String;
}

impl Compensable for AllocateStock {}

async fn allocate_stock(cx: Cx<'_>, asked: AllocateStock) -> Result<Result<(), String>, BoxError> {
    Ok(match add(cx.conn, &asked.article, -asked.pieces).await? {
        true => Ok(()),
        false => Err("it is out of stock".to_owned()),
    })
}

async fn free_stock(cx: Cx<'_>, asked: AllocateStock, _: ()) -> Result<(), BoxError> {
    add(cx.conn, &asked.article, asked.pieces).await.map(drop)
}

/// Payments by card. They are the point of no return, so nothing undoes them.
pub(crate) fn payments() -> Participant {
    Participant::on(CapturePayment::TOPIC).source("/payments").handle(capture_payment).done()
}

#[derive(Serialize, Deserialize)]
pub(crate) struct CapturePayment {
    pub(crate) cents: i64,
}

impl Command for CapturePayment {
    const TYPE: &'static str = "payment.capture.v1";
    const TOPIC: &'static str = "payments.commands";
    type Reply = ();
    type Refusal = String;
}

const CARD_LIMIT: i64 = 3_000;

async fn capture_payment(
    cx: Cx<'_>,
    asked: CapturePayment,
) -> Result<Result<(), String>, BoxError> {
    add(cx.conn, "till", asked.cents).await?;
    // A refusal takes back what the action has done so far.
    Ok(match asked.cents <= CARD_LIMIT {
        true => Ok(()),
        false => Err("the card is declined".to_owned()),
    })
}

/// Adds to an amount, or takes from it, unless it falls below zero; then false.
async fn add(conn: &mut PgConnection, name: &str, by: i64) -> Result<bool, BoxError> {
    let add = "update amount set value = value + $2 where name = $1 and value + $2 >= 0";
    let added = sqlx::query(add).bind(name).bind(by).execute(conn).await?;
    Ok(added.rows_affected() == 1)
}
