//! A shop whose orders are sagas: what its services do, for the tests that kill them.
//!
//! Each effect is a row of a table `effect`, +1 when it is done and -1 when it is undone, beside the money and the stock
//! that it moves: so what is left of a saga is a sum.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use tailrace_idempotency::{Answer, BoxError, CallCx};
use tailrace_saga::participant::{Cx, Outside};
use tailrace_saga::{
    Command, Compensable, Error, Forward, Irrefusable, LocalCx, Lock, OnTimeout, Participant,
    Retry, Saga, SagaId, local,
};

/// The topic of the orders that are placed.
pub const ORDERS: &str = "orders";
/// The message type that starts a saga.
pub const ORDER_PLACED: &str = "order.placed.v1";
/// The name of the saga.
pub const CREATE_ORDER: &str = "create-order";

/// The services that carry out commands, each with a database of its own.
pub const SERVICES: [Service; 3] = [Service::Customers, Service::Warehouse, Service::Payments];

/// A service of the shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Service {
    /// Knows what a customer may spend.
    Customers,
    /// Knows what is in stock.
    Warehouse,
    /// Takes the money.
    Payments,
}

impl Service {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Customers => "customers",
            Self::Warehouse => "warehouse",
            Self::Payments => "payments",
        }
    }

    /// The topic of its commands.
    pub fn topic(self) -> String {
        format!("{}.commands", self.name())
    }
}

/// An order, and how far it is: the data of the saga.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Its number.
    pub number: i64,
    /// Who orders.
    pub customer: String,
    /// For how much.
    pub cents: i64,
    /// The service that is going to refuse it.
    pub refused_by: Option<String>,
    /// What the customer service has put aside.
    pub hold: Option<i64>,
}

/// What is asked of a service for an order.
macro_rules! command {
    ($name:ident, $message_type:literal, $topic:literal, $reply:ty, $refusal:ty, $service:literal) => {
        #[doc = $message_type]
        #[derive(Clone, Debug, Serialize, Deserialize)]
        pub struct $name {
            customer: String,
            cents: i64,
            refuse: bool,
        }

        impl Command for $name {
            const TYPE: &'static str = $message_type;
            const TOPIC: &'static str = $topic;
            type Reply = $reply;
            type Refusal = $refusal;

            fn target(&self) -> Option<String> {
                Some(self.customer.clone())
            }
        }

        impl $name {
            fn of(order: &Order) -> Self {
                let refuse = order.refused_by.as_deref() == Some($service);
                Self { customer: order.customer.clone(), cents: order.cents, refuse }
            }
        }
    };
}

command!(ReserveCredit, "credit.reserve.v1", "customers.commands", i64, String, "customers");
command!(AllocateStock, "stock.allocate.v1", "warehouse.commands", (), String, "warehouse");
command!(QuoteShipping, "shipping.quote.v1", "warehouse.commands", i64, Irrefusable, "nobody");
command!(CapturePayment, "payment.capture.v1", "payments.commands", (), String, "payments");

impl Compensable for ReserveCredit {}
impl Compensable for AllocateStock {}

/// How a service behaves.
#[derive(Clone, Debug, Default)]
pub struct Manners {
    /// Where payments are charged, outside of the service's transactions.
    pub provider: Option<PgPool>,
    /// Of so many commands one takes long.
    pub slow_every: u64,
    /// How long.
    pub slow_for: Duration,
}

/// No two orders of one customer are under way at the same time.
const CUSTOMER: Lock =
    Lock::named("customer").wait(Duration::from_secs(600), OnTimeout::Compensate);

/// For how long a saga of an order waits. That may change under a running one.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// An attempt is given up after this.
    pub timeout: Duration,
    /// One of the pivot after this.
    pub pivot_timeout: Duration,
    /// After so many of them a person decides.
    pub pivot_attempts: u32,
}

/// The saga of an order. An attempt is given up after `timeout`, and nothing waits for a person.
///
/// # Errors
///
/// Where the definition is wrong.
pub fn create_order(version: u32, timeout: Duration) -> Result<Saga<Order>, Error> {
    create_order_by(version, Patience { timeout, pivot_timeout: timeout, pivot_attempts: 10_000 })
}

/// As [`create_order`], with another patience.
///
/// # Errors
///
/// Where the definition is wrong.
pub fn create_order_by(version: u32, patience: Patience) -> Result<Saga<Order>, Error> {
    define(version, patience, false)
}

/// As [`create_order`], and a customer's orders are done one after another.
///
/// # Errors
///
/// Where the definition is wrong.
pub fn create_order_in_turn(version: u32, timeout: Duration) -> Result<Saga<Order>, Error> {
    define(version, Patience { timeout, pivot_timeout: timeout, pivot_attempts: 10_000 }, true)
}

fn define(version: u32, patience: Patience, in_turn: bool) -> Result<Saga<Order>, Error> {
    let Patience { timeout, pivot_timeout, pivot_attempts } = patience;
    let short = Retry::exponential(Duration::from_millis(100), Duration::from_secs(2));
    let long = short.attempts(10_000).max_age(Duration::from_secs(3600));
    let saga = Saga::define(CREATE_ORDER, version)
        .start_on(ORDERS, ORDER_PLACED, |order: Order| order)
        .deadline(5 * timeout);
    let saga = match in_turn {
        true => {
            saga.lock_order(&["customer"]).lock(CUSTOMER, |order: &Order| [order.customer.clone()])
        }
        false => saga,
    };
    saga.step("reserve-credit", ReserveCredit::of)
        .retry(short.attempts(8))
        .timeout(timeout, OnTimeout::Retry)
        .retry_compensation(long)
        .on_reply(|order, hold| order.hold = Some(hold))
        .compensate()
        .parallel(|branches| {
            branches
                .step("allocate-stock", AllocateStock::of)
                .timeout(2 * timeout, OnTimeout::Compensate)
                .retry_compensation(long)
                .compensate()
                .step("quote-shipping", QuoteShipping::of)
                .timeout(timeout, OnTimeout::Retry)
                .no_effect()
        })
        .pivot("capture-payment", CapturePayment::of)
        .retry(long.attempts(pivot_attempts))
        .timeout(pivot_timeout, Forward::Retry)
        .retriable("approve-order", local(approve_order))
        .build()
}

/// The participant that a service is.
pub fn participant(service: Service, prefix: &str) -> Participant<Manners> {
    let participant = Participant::on(service.topic())
        .topic_prefix(prefix)
        .source(format!("/{}", service.name()));
    match service {
        Service::Customers => participant.handle(reserve_credit).undo(release_credit),
        Service::Warehouse => {
            let free = Outside::new(prepare_freeing, free, record_freed);
            participant.handle(allocate_stock).undo_call(free).handle(quote_shipping).done()
        }
        Service::Payments => {
            participant.call(Outside::new(prepare_payment, charge, record_payment)).done()
        }
    }
}

/// The tables of a service or of the orchestrator.
pub const TABLES: &str = "
    CREATE TABLE account (customer text PRIMARY KEY, free_cents bigint NOT NULL, held_cents bigint NOT NULL DEFAULT 0);
    CREATE TABLE effect (written bigint GENERATED ALWAYS AS IDENTITY, saga uuid, step text, delta integer, cents bigint);
    CREATE TABLE charge (key uuid PRIMARY KEY, saga uuid UNIQUE, cents bigint);
    CREATE TABLE freed (key uuid PRIMARY KEY, saga uuid UNIQUE)";

async fn effect(
    conn: &mut PgConnection,
    saga: &uuid::Uuid,
    step: &str,
    delta: i32,
    cents: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO effect (saga, step, delta, cents) VALUES ($1, $2, $3, $4)")
        .bind(saga)
        .bind(step)
        .bind(delta)
        .bind(cents)
        .execute(conn)
        .await
        .map(drop)
}

/// Some commands take long, by their saga and not by chance of the process.
async fn dawdle(cx: &Cx<'_, Manners>) {
    let Manners { slow_every, slow_for, .. } = *cx.state;
    let at = cx.saga.saga.as_uuid().as_u128() as u64;
    if slow_every > 0 && at.is_multiple_of(slow_every) {
        tokio::time::sleep(slow_for).await;
    }
}

async fn reserve_credit(
    cx: Cx<'_, Manners>,
    command: ReserveCredit,
) -> Result<Result<i64, String>, BoxError> {
    dawdle(&cx).await;
    // What a refusal leaves behind is to be undone with it.
    effect(cx.conn, cx.saga.saga.as_uuid(), "reserve-credit", 1, command.cents).await?;
    let held = sqlx::query(
        "UPDATE account SET free_cents = free_cents - $2, held_cents = held_cents + $2
         WHERE customer = $1 AND free_cents >= $2",
    )
    .bind(&command.customer)
    .bind(command.cents)
    .execute(cx.conn)
    .await?;
    if held.rows_affected() == 0 || command.refuse {
        return Ok(Err("the credit does not reach".to_owned()));
    }
    Ok(Ok(command.cents))
}

async fn release_credit(
    cx: Cx<'_, Manners>,
    command: ReserveCredit,
    held: i64,
) -> Result<(), BoxError> {
    dawdle(&cx).await;
    effect(cx.conn, cx.saga.saga.as_uuid(), "reserve-credit", -1, held).await?;
    sqlx::query(
        "UPDATE account SET free_cents = free_cents + $2, held_cents = held_cents - $2
         WHERE customer = $1",
    )
    .bind(&command.customer)
    .bind(held)
    .execute(cx.conn)
    .await?;
    Ok(())
}

async fn allocate_stock(
    cx: Cx<'_, Manners>,
    command: AllocateStock,
) -> Result<Result<(), String>, BoxError> {
    dawdle(&cx).await;
    effect(cx.conn, cx.saga.saga.as_uuid(), "allocate-stock", 1, 0).await?;
    Ok(if command.refuse { Err("out of stock".to_owned()) } else { Ok(()) })
}

/// The stock is freed by somebody outside: prepared, called, recorded.
async fn prepare_freeing(cx: Cx<'_, Manners>, _: AllocateStock, _: ()) -> Result<SagaId, BoxError> {
    Ok(cx.saga.saga)
}

/// Whoever frees the same stock under two keys is refused by the table.
async fn free(cx: CallCx<'_, Manners>, saga: SagaId) -> Result<Answer<()>, BoxError> {
    let pool = cx.state.provider.as_ref().ok_or("there is no provider")?;
    sqlx::query("INSERT INTO freed (key, saga) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING")
        .bind(cx.key.as_uuid())
        .bind(saga.as_uuid())
        .execute(pool)
        .await?;
    Ok(Answer::Done(()))
}

async fn record_freed(cx: Cx<'_, Manners>, saga: SagaId, _: ()) -> Result<(), BoxError> {
    dawdle(&cx).await;
    effect(cx.conn, saga.as_uuid(), "allocate-stock", -1, 0).await?;
    Ok(())
}

async fn quote_shipping(
    cx: Cx<'_, Manners>,
    _: QuoteShipping,
) -> Result<Result<i64, Irrefusable>, BoxError> {
    dawdle(&cx).await;
    Ok(Ok(490))
}

/// What the provider is asked for.
#[derive(Debug, Serialize, Deserialize)]
struct Charge {
    saga: SagaId,
    cents: i64,
}

async fn prepare_payment(
    cx: Cx<'_, Manners>,
    command: CapturePayment,
) -> Result<Result<Charge, String>, BoxError> {
    let saga = cx.saga.saga;
    if command.refuse {
        effect(cx.conn, saga.as_uuid(), "capture-payment", 1, command.cents).await?;
        return Ok(Err("the card is declined".to_owned()));
    }
    Ok(Ok(Charge { saga, cents: command.cents }))
}

/// The provider is a table that the transactions of the service have no part in.
async fn charge(cx: CallCx<'_, Manners>, charge: Charge) -> Result<Answer<i64>, BoxError> {
    let pool = cx.state.provider.as_ref().ok_or("there is no provider")?;
    sqlx::query("INSERT INTO charge (key, saga, cents) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
        .bind(cx.key.as_uuid())
        .bind(*charge.saga.as_uuid())
        .bind(charge.cents)
        .execute(pool)
        .await?;
    Ok(Answer::Done(charge.cents))
}

async fn record_payment(
    cx: Cx<'_, Manners>,
    charge: Charge,
    cents: i64,
) -> Result<Result<(), String>, BoxError> {
    dawdle(&cx).await;
    effect(cx.conn, charge.saga.as_uuid(), "capture-payment", 1, cents).await?;
    Ok(Ok(()))
}

async fn approve_order(cx: LocalCx<'_>, _: Order) -> Result<Result<(), Irrefusable>, BoxError> {
    effect(cx.conn, cx.saga.as_uuid(), "approve-order", 1, 0).await?;
    Ok(Ok(()))
}
