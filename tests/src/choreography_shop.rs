//! A shop whose services react to each other's events: what they do, and a process for each of them.
//!
//! Each effect is a row of a table `effect`, +1 when it is done and -1 when it is undone: so what is left of a saga is a
//! sum.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tailrace_idempotency::{Answer, BoxError, CallCx, Consumer, Outcome};
use tailrace_saga::choreography::{Reaction, Service};
use tailrace_saga::participant::{Cx, Outside};
use tailrace_saga::{Choreography, Error, SagaId};

use crate::node;
use crate::saga_role::{Place, ended, terminated};

/// The services, each with a database of its own. The first one starts the sagas.
pub const CHOREOGRAPHED: [&str; 3] = ["orders", "customers", "payments"];

/// The tables of each of them.
pub const CHOREOGRAPHED_TABLES: &str = "
    CREATE TABLE opened (number bigint PRIMARY KEY);
    CREATE TABLE called (key uuid PRIMARY KEY, saga uuid, what text, UNIQUE (saga, what));
    CREATE TABLE noticed (number bigint);
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
pub fn service(choreography: &Choreography, name: &str) -> Service<PgPool> {
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
            .undo_call("close-account", Outside::new(prepare_close, close, closed))
            .call("capture-payment", Outside::new(prepare_capture, capture, captured)),
        _ => panic!("there is no service {name}"),
    }
}

type Shared<'a> = Cx<'a, PgPool>;

/// Whether the order may go on at this step.
async fn is_open(cx: &mut Shared<'_>, order: &OrderEvent, step: &str) -> Result<(), BoxError> {
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
    Ok(())
}

/// Does a step, unless the order says otherwise.
async fn act(
    mut cx: Shared<'_>,
    order: OrderEvent,
    step: &str,
    done: &str,
    refused: &str,
) -> Result<Reaction, BoxError> {
    is_open(&mut cx, &order, step).await?;
    // What a refusal leaves behind is to be undone with it.
    effect(cx, step, 1).await?;
    Ok(match order.refused_by.as_deref() == Some(step) {
        true => Reaction::refuse(refused, &order),
        false => Reaction::emit(done, &order),
    })
}

/// The provider is a table that the transactions of the service have no part in.
async fn provide(cx: CallCx<'_, PgPool>, saga: SagaId, what: &str) -> Result<(), BoxError> {
    sqlx::query(
        "INSERT INTO called (key, saga, what) VALUES ($1, $2, $3) ON CONFLICT (key) DO NOTHING",
    )
    .bind(cx.key.as_uuid())
    .bind(saga.as_uuid())
    .bind(what)
    .execute(cx.state)
    .await?;
    Ok(())
}

/// What a call is made with.
#[derive(Serialize, Deserialize)]
struct Called {
    saga: SagaId,
    order: OrderEvent,
}

async fn prepare_capture(
    mut cx: Shared<'_>,
    order: OrderEvent,
) -> Result<Result<Called, Reaction>, BoxError> {
    is_open(&mut cx, &order, "capture-payment").await?;
    Ok(Ok(Called { saga: cx.saga.saga, order }))
}

/// What is declined is not charged.
async fn capture(cx: CallCx<'_, PgPool>, called: Called) -> Result<Answer<bool>, BoxError> {
    if called.order.refused_by.as_deref() == Some("capture-payment") {
        return Ok(Answer::Done(false));
    }
    provide(cx, called.saga, "charge").await?;
    Ok(Answer::Done(true))
}

async fn captured(cx: Shared<'_>, called: Called, charged: bool) -> Result<Reaction, BoxError> {
    effect(cx, "capture-payment", 1).await?;
    Ok(match charged {
        true => Reaction::emit("payment.captured.v1", &called.order),
        false => Reaction::refuse("payment.refused.v1", &called.order),
    })
}

async fn prepare_close(
    cx: Shared<'_>,
    order: OrderEvent,
) -> Result<Result<Called, Reaction>, BoxError> {
    Ok(Ok(Called { saga: cx.saga.saga, order }))
}

async fn close(cx: CallCx<'_, PgPool>, called: Called) -> Result<Answer<()>, BoxError> {
    provide(cx, called.saga, "close").await?;
    Ok(Answer::Done(()))
}

async fn closed(cx: Shared<'_>, _: Called, _: ()) -> Result<Reaction, BoxError> {
    effect(cx, "open-account", -1).await?;
    Ok(Reaction::done())
}

async fn effect(cx: Shared<'_>, step: &str, delta: i32) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO effect (saga, step, delta) VALUES ($1, $2, $3)")
        .bind(cx.saga.saga.as_uuid())
        .bind(step)
        .bind(delta)
        .execute(cx.conn)
        .await
        .map(drop)
}

async fn reserve_credit(cx: Shared<'_>, order: OrderEvent) -> Result<Reaction, BoxError> {
    act(cx, order, "reserve-credit", "credit.reserved.v1", "credit.refused.v1").await
}

async fn release_credit(cx: Shared<'_>, order: OrderEvent) -> Result<Reaction, BoxError> {
    effect(cx, "reserve-credit", -1).await?;
    Ok(Reaction::emit("credit.released.v1", &order))
}

async fn open_account(cx: Shared<'_>, order: OrderEvent) -> Result<Reaction, BoxError> {
    act(cx, order, "open-account", "account.opened.v1", "").await
}

async fn approve_order(cx: Shared<'_>, order: OrderEvent) -> Result<Reaction, BoxError> {
    act(cx, order, "approve-order", "order.approved.v1", "").await
}

async fn reject_order(cx: Shared<'_>, _: OrderEvent) -> Result<Reaction, BoxError> {
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
    let config = place.config(&name);
    let pool = config.pool().clone();
    let config = config.state(pool);
    if name != "customers" {
        return ended(service.run(config, stop).await);
    }
    // A consumer that has another handler too, of an event that is none of this service's business.
    let consumer = Consumer::new(config)
        .topic(format!("{}payments", place.prefix))
        .on("account.opened.v1", notice);
    ended(service.join(consumer).run(stop).await)
}

async fn notice(
    cx: tailrace_idempotency::Cx<'_, PgPool>,
    order: OrderEvent,
) -> Result<Outcome, BoxError> {
    let noticed = sqlx::query("INSERT INTO noticed (number) VALUES ($1)").bind(order.number);
    noticed.execute(cx.conn).await?;
    Ok(Outcome::Done)
}
