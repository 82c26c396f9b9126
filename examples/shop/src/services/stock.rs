//! Stock: reserves goods, and issues them once they are paid for.

use sqlx::PgConnection;
use tailrace_idempotency::BoxError;
use tailrace_saga::choreography::Reaction;
use tailrace_saga::participant::Cx;
use tailrace_saga::{Irrefusable, Participant};

use crate::Failure;
use crate::ledger::{self, IN_TRANSIT};
use crate::order::{Order, SOLD_OUT};
use crate::place_order::{self, IssueStock, ReserveStock};
use crate::service::Service;

const TABLES: &str =
    "CREATE TABLE IF NOT EXISTS article (sku text PRIMARY KEY, on_hand bigint NOT NULL)";

const STOCK: &str = "stock";
const SOLD: &str = "sold";

/// Of each article but the one that is sold out.
const ON_HAND: i64 = 1_000_000_000;
pub(crate) const ARTICLES: [&str; 5] = ["tea", "lamp", "kettle", "chair", "atlas"];

pub(crate) async fn run(service: Service) -> Result<(), Failure> {
    service.prepare(&[ledger::TABLES, TABLES]).await?;
    fill(&service).await?;
    service.relay_is_ready().await?;
    let commands = Participant::on("stock.commands")
        .source("/stock")
        .handle(reserve_on_command)
        .undo(release_on_command)
        .handle(issue_on_command)
        .done();
    let events = place_order::choreography()?
        .service("stock")
        .handle("reserve-stock", reserve_by_event)
        .undo("release-stock", release_by_event)
        .handle("issue-stock", issue_by_event);
    service.run(commands, events).await
}

async fn fill(service: &Service) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO article (sku, on_hand) SELECT unnest($1::text[]), $2
         UNION ALL SELECT $3, 0 ON CONFLICT DO NOTHING",
    )
    .bind(ARTICLES.as_slice())
    .bind(ON_HAND)
    .bind(SOLD_OUT)
    .execute(&service.pool)
    .await?;
    Ok(())
}

/// Keeps others from all articles, always in the same order. A consumer applies many orders in one transaction, and two
/// that took the articles one by one, as orders come, would wait for each other.
async fn lock(conn: &mut PgConnection) -> Result<(), BoxError> {
    sqlx::query("SELECT FROM article ORDER BY sku FOR NO KEY UPDATE").execute(conn).await?;
    Ok(())
}

/// Puts the goods of an order aside, or says why that cannot be.
async fn reserve(conn: &mut PgConnection, order: &Order) -> Result<Result<(), String>, BoxError> {
    lock(conn).await?;
    let taken =
        sqlx::query("UPDATE article SET on_hand = on_hand - $2 WHERE sku = $1 AND on_hand >= $2")
            .bind(&order.sku)
            .bind(order.quantity)
            .execute(&mut *conn)
            .await?;
    if taken.rows_affected() == 0 {
        return Ok(Err("out of stock".to_owned()));
    }
    ledger::transfer(conn, order.id, STOCK, IN_TRANSIT, order.quantity).await?;
    Ok(Ok(()))
}

/// Puts them back.
async fn release(conn: &mut PgConnection, order: &Order) -> Result<(), BoxError> {
    lock(conn).await?;
    sqlx::query("UPDATE article SET on_hand = on_hand + $2 WHERE sku = $1")
        .bind(&order.sku)
        .bind(order.quantity)
        .execute(&mut *conn)
        .await?;
    ledger::transfer(conn, order.id, IN_TRANSIT, STOCK, order.quantity).await?;
    Ok(())
}

/// Hands them over to shipping.
async fn issue(conn: &mut PgConnection, order: &Order) -> Result<(), BoxError> {
    ledger::transfer(conn, order.id, IN_TRANSIT, SOLD, order.quantity).await?;
    Ok(())
}

async fn reserve_on_command(
    cx: Cx<'_>,
    ReserveStock(order): ReserveStock,
) -> Result<Result<(), String>, BoxError> {
    reserve(cx.conn, &order).await
}

async fn release_on_command(
    cx: Cx<'_>,
    ReserveStock(order): ReserveStock,
    (): (),
) -> Result<(), BoxError> {
    release(cx.conn, &order).await
}

async fn issue_on_command(
    cx: Cx<'_>,
    IssueStock(order): IssueStock,
) -> Result<Result<(), Irrefusable>, BoxError> {
    issue(cx.conn, &order).await.map(Ok)
}

async fn reserve_by_event(cx: Cx<'_>, order: Order) -> Result<Reaction, BoxError> {
    Ok(match reserve(cx.conn, &order).await? {
        Ok(()) => Reaction::emit("stock.reserved.v1", &order),
        Err(_) => Reaction::refuse("stock.refused.v1", &order),
    })
}

async fn release_by_event(cx: Cx<'_>, order: Order) -> Result<Reaction, BoxError> {
    release(cx.conn, &order).await?;
    Ok(Reaction::emit("stock.released.v1", &order))
}

async fn issue_by_event(cx: Cx<'_>, order: Order) -> Result<Reaction, BoxError> {
    issue(cx.conn, &order).await?;
    Ok(Reaction::emit("stock.issued.v1", &order))
}
