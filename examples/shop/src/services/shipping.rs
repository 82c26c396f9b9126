//! Shipping: books parcels with the carrier, and dispatches them.

use sqlx::PgConnection;
use tailrace_idempotency::BoxError;
use tailrace_saga::choreography::Reaction;
use tailrace_saga::participant::Cx;
use tailrace_saga::{Irrefusable, Participant};

use crate::Failure;
use crate::ledger::{self, IN_TRANSIT};
use crate::order::{Order, UNREACHABLE};
use crate::place_order::{self, BookParcel, DispatchParcel};
use crate::service::Service;

const BUDGET: &str = "postage-budget";
const CARRIER: &str = "carrier";

/// Cents of a parcel.
pub(crate) const POSTAGE: i64 = 490;

pub(crate) async fn run(service: Service) -> Result<(), Failure> {
    service.prepare(&[ledger::TABLES]).await?;
    service.relay_is_ready().await?;
    let commands = Participant::on("shipping.commands")
        .source("/shipping")
        .handle(book_on_command)
        .undo(cancel_on_command)
        .handle(dispatch_on_command)
        .done();
    let events = place_order::choreography()?
        .service("shipping")
        .handle("book-parcel", book_by_event)
        .undo("cancel-parcel", cancel_by_event)
        .handle("dispatch-parcel", dispatch_by_event);
    service.run(commands, events).await
}

/// Books a parcel, or says why the carrier does not take it.
async fn book(conn: &mut PgConnection, order: &Order) -> Result<Result<(), String>, BoxError> {
    if order.address == UNREACHABLE {
        return Ok(Err("the carrier refuses".to_owned()));
    }
    ledger::transfer(conn, order.id, BUDGET, IN_TRANSIT, POSTAGE).await?;
    Ok(Ok(()))
}

async fn cancel(conn: &mut PgConnection, order: &Order) -> Result<(), BoxError> {
    ledger::transfer(conn, order.id, IN_TRANSIT, BUDGET, POSTAGE).await?;
    Ok(())
}

async fn dispatch(conn: &mut PgConnection, order: &Order) -> Result<(), BoxError> {
    ledger::transfer(conn, order.id, IN_TRANSIT, CARRIER, POSTAGE).await?;
    Ok(())
}

async fn book_on_command(
    cx: Cx<'_>,
    BookParcel(order): BookParcel,
) -> Result<Result<(), String>, BoxError> {
    book(cx.conn, &order).await
}

async fn cancel_on_command(
    cx: Cx<'_>,
    BookParcel(order): BookParcel,
    (): (),
) -> Result<(), BoxError> {
    cancel(cx.conn, &order).await
}

async fn dispatch_on_command(
    cx: Cx<'_>,
    DispatchParcel(order): DispatchParcel,
) -> Result<Result<(), Irrefusable>, BoxError> {
    dispatch(cx.conn, &order).await.map(Ok)
}

async fn book_by_event(cx: Cx<'_>, order: Order) -> Result<Reaction, BoxError> {
    Ok(match book(cx.conn, &order).await? {
        Ok(()) => Reaction::emit("parcel.booked.v1", &order),
        Err(_) => Reaction::refuse("parcel.refused.v1", &order),
    })
}

async fn cancel_by_event(cx: Cx<'_>, order: Order) -> Result<Reaction, BoxError> {
    cancel(cx.conn, &order).await?;
    Ok(Reaction::emit("parcel.cancelled.v1", &order))
}

async fn dispatch_by_event(cx: Cx<'_>, order: Order) -> Result<Reaction, BoxError> {
    dispatch(cx.conn, &order).await?;
    Ok(Reaction::emit("parcel.dispatched.v1", &order))
}
