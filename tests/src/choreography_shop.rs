//! A shop whose services react to each other's events: what they do, and a process for each of them.
//!
//! Each effect is a row of a table `effect`, +1 when it is done and -1 when it is undone: so what is left of a saga is a
//! sum.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use tailrace_idempotency::BoxError;
use tailrace_saga::choreography::{Reaction, Service};
use tailrace_saga::participant::Cx;
use tailrace_saga::{Choreography, Error};

use crate::node;
use crate::saga_role::{Place, ended, terminated};

/// The services, each with a database of its own. The first one starts the sagas.
pub const CHOREOGRAPHED: [&str; 3] = ["orders", "customers", "payments"];

/// The tables of each of them.
pub const CHOREOGRAPHED_TABLES: &str = "
    CREATE TABLE opened (number bigint PRIMARY KEY);
    CREATE TABLE effect (written bigint GENERATED ALWAYS AS IDENTITY, saga uuid, step text, delta integer)";

/// An order: the payload of all events.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct OrderEvent {
    /// Its number.
    pub number: i64,
    /// The step that is going to refuse it.
    pub refused_by: Option<String>,
    /// The step that fails for it until its number stands in the table `opened`.
    pub held_by: Option<String>,
}

/// Which event leads to which. An account is opened beside the reservation, so that a refusal can overtake its cause.
///
/// # Errors
///
/// Never, unless the check of choreographies is wrong.
pub fn choreography(within: Duration) -> Result<Choreography, Error> {
    Choreography::define("choreographed-order", 1)
        .starts("orders", "place-order")
        .emits("order.placed.v1")
        .compensated_by("reject-order")
        .step("customers", "reserve-credit", "order.placed.v1")
        .emits("credit.reserved.v1")
        .refuses("credit.refused.v1")
        .compensated_by("release-credit")
        .undone("credit.released.v1")
        .step("payments", "open-account", "order.placed.v1")
        .emits("account.opened.v1")
        .compensated_by("close-account")
        .step("payments", "capture-payment", "credit.reserved.v1")
        .emits("payment.captured.v1")
        .refuses("payment.refused.v1")
        .pivot("payment.called-off.v1")
        .step("orders", "approve-order", "payment.captured.v1")
        .emits("order.approved.v1")
        .retriable()
        .ends_with("account.opened.v1")
        .ends_with("order.approved.v1")
        .ends_within(within, "order.expired.v1")
        .build()
}

/// A service with its handlers.
///
/// # Panics
///
/// When there is no such service.
pub fn service(choreography: &Choreography, name: &str) -> Service {
    let service = choreography.service(name);
    match name {
        "orders" => {
            service.handle("approve-order", approve_order).undo("reject-order", reject_order)
        }
        "customers" => {
            service.handle("reserve-credit", reserve_credit).undo("release-credit", release_credit)
        }
        "payments" => service
            .handle("open-account", open_account)
            .undo("close-account", close_account)
            .handle("capture-payment", capture_payment),
        _ => panic!("there is no service {name}"),
    }
}

/// Does a step, unless the order says otherwise.
async fn act(
    cx: Cx<'_>,
    order: OrderEvent,
    step: &str,
    done: &str,
    refused: &str,
) -> Result<Reaction, BoxError> {
    if order.held_by.as_deref() == Some(step) {
        let opened: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM opened WHERE number = $1)")
                .bind(order.number)
                .fetch_one(&mut *cx.conn)
                .await?;
        if !opened {
            return Err("it is held".into());
        }
    }
    // What a refusal leaves behind is to be undone with it.
    effect(cx, step, 1).await?;
    Ok(match order.refused_by.as_deref() == Some(step) {
        true => Reaction::refuse(refused, &order),
        false => Reaction::emit(done, &order),
    })
}

async fn effect(cx: Cx<'_>, step: &str, delta: i32) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO effect (saga, step, delta) VALUES ($1, $2, $3)")
        .bind(cx.saga.saga.as_uuid())
        .bind(step)
        .bind(delta)
        .execute(cx.conn)
        .await
        .map(drop)
}

async fn reserve_credit(cx: Cx<'_>, order: OrderEvent) -> Result<Reaction, BoxError> {
    act(cx, order, "reserve-credit", "credit.reserved.v1", "credit.refused.v1").await
}

async fn release_credit(cx: Cx<'_>, order: OrderEvent) -> Result<Reaction, BoxError> {
    effect(cx, "reserve-credit", -1).await?;
    Ok(Reaction::emit("credit.released.v1", &order))
}

async fn open_account(cx: Cx<'_>, order: OrderEvent) -> Result<Reaction, BoxError> {
    act(cx, order, "open-account", "account.opened.v1", "").await
}

async fn close_account(cx: Cx<'_>, _: OrderEvent) -> Result<Reaction, BoxError> {
    effect(cx, "open-account", -1).await?;
    Ok(Reaction::done())
}

async fn capture_payment(cx: Cx<'_>, order: OrderEvent) -> Result<Reaction, BoxError> {
    act(cx, order, "capture-payment", "payment.captured.v1", "payment.refused.v1").await
}

async fn approve_order(cx: Cx<'_>, order: OrderEvent) -> Result<Reaction, BoxError> {
    act(cx, order, "approve-order", "order.approved.v1", "").await
}

async fn reject_order(cx: Cx<'_>, _: OrderEvent) -> Result<Reaction, BoxError> {
    effect(cx, "place-order", -1).await?;
    Ok(Reaction::done())
}

#[derive(Args)]
pub(crate) struct ServiceArgs {
    #[command(flatten)]
    place: Place,
    #[arg(long)]
    service: String,
}

/// The deadline is that of whoever starts a saga, and here nobody does.
const ANY: Duration = Duration::from_secs(60);

pub(crate) async fn serve(arguments: ServiceArgs) -> ExitCode {
    node::log();
    let ServiceArgs { place, service: name } = arguments;
    let choreography = choreography(ANY).expect("the choreography is right");
    let stop = terminated();
    tracing::info!(service = name, "a service begins");
    let service = service(&choreography, &name).topic_prefix(&place.prefix);
    ended(service.run(place.config(&name), stop).await)
}
