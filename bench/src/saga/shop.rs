//! The saga that is measured: an order, in three steps, each of which another service does.

use std::error::Error;
use std::time::Duration;

use clap::ValueEnum;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use serde::{Deserialize, Serialize};
use tailrace_saga::participant::Cx;
use tailrace_saga::{Command, Compensable, Forward, OnTimeout, Participant, Saga};

type Failure = Box<dyn Error + Send + Sync>;

/// The topic of the orders, and the message type that starts a saga.
pub(crate) const ORDERS: &str = "orders";
pub(crate) const ORDER_PLACED: &str = "order.placed.v1";

/// The topic of the replies.
pub(crate) const REPLIES: &str = "bench-order.replies";

/// Longer than anything here takes: a timer that comes due would be another transition.
const TIME_OUT: Duration = Duration::from_secs(3_600);

/// What a service writes for a command.
pub(crate) const EFFECTS: &str =
    "create table effect (saga uuid not null, step text not null, cents bigint not null)";

/// The data of the saga.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) number: u64,
    pub(crate) customer: String,
    pub(crate) cents: i64,
    pub(crate) hold: Option<i64>,
}

impl Order {
    pub(crate) fn new(number: u64) -> Self {
        let customer = format!("customer-{:05}", number % 10_000);
        Self { number, customer, cents: 1_999, hold: None }
    }
}

macro_rules! command {
    ($name:ident, $message_type:literal, $topic:literal, $reply:ty) => {
        #[derive(Clone, Debug, Serialize, Deserialize)]
        pub(crate) struct $name {
            customer: String,
            cents: i64,
        }

        impl Command for $name {
            const TYPE: &'static str = $message_type;
            const TOPIC: &'static str = $topic;
            type Reply = $reply;
            type Refusal = ();

            fn target(&self) -> Option<String> {
                Some(self.customer.clone())
            }
        }

        impl $name {
            fn of(order: &Order) -> Self {
                Self { customer: order.customer.clone(), cents: order.cents }
            }
        }
    };
}

command!(ReserveCredit, "credit.reserve.v1", "customers.commands", i64);
command!(AllocateStock, "stock.allocate.v1", "warehouse.commands", ());
command!(CapturePayment, "payment.capture.v1", "payments.commands", ());

impl Compensable for ReserveCredit {}
impl Compensable for AllocateStock {}

pub(crate) fn order_saga() -> Result<Saga<Order>, tailrace_saga::Error> {
    Saga::define("bench-order", 1)
        .replies(REPLIES)
        .start_on(ORDERS, ORDER_PLACED, |order: Order| order)
        .step("reserve-credit", ReserveCredit::of)
        .timeout(TIME_OUT, OnTimeout::Retry)
        .on_reply(|order, hold| order.hold = Some(hold))
        .compensate()
        .step("allocate-stock", AllocateStock::of)
        .timeout(TIME_OUT, OnTimeout::Retry)
        .compensate()
        .pivot("capture-payment", CapturePayment::of)
        .timeout(TIME_OUT, Forward::Retry)
        .build()
}

/// A service that does one of the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Service {
    Customers,
    Warehouse,
    Payments,
}

impl Service {
    pub(crate) const ALL: [Service; 3] =
        [Service::Customers, Service::Warehouse, Service::Payments];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Service::Customers => "customers",
            Service::Warehouse => "warehouse",
            Service::Payments => "payments",
        }
    }

    fn topic(self) -> &'static str {
        match self {
            Service::Customers => ReserveCredit::TOPIC,
            Service::Warehouse => AllocateStock::TOPIC,
            Service::Payments => CapturePayment::TOPIC,
        }
    }

    pub(crate) fn participant(self, prefix: &str) -> Participant {
        let participant = Participant::on(format!("{prefix}{}", self.topic()));
        match self {
            Service::Customers => participant.handle(reserve_credit).undo(release_credit),
            Service::Warehouse => participant.handle(allocate_stock).undo(free_stock),
            Service::Payments => participant.handle(capture_payment).done(),
        }
    }
}

/// Makes all topics of the shop, each of so many partitions.
pub(crate) async fn make_topics(
    brokers: &str,
    prefix: &str,
    partitions: i32,
) -> Result<(), Failure> {
    let topics = Service::ALL.map(Service::topic).into_iter().chain([ORDERS, REPLIES]);
    let names: Vec<String> = topics.map(|topic| format!("{prefix}{topic}")).collect();
    let new: Vec<NewTopic<'_>> = names
        .iter()
        .map(|name| NewTopic::new(name, partitions, TopicReplication::Fixed(-1)))
        .collect();
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    for made in admin.create_topics(&new, &AdminOptions::new()).await? {
        made.map_err(|(topic, code)| format!("the topic {topic} can not be made: {code}"))?;
    }
    Ok(())
}

async fn effect(cx: &mut Cx<'_>, cents: i64) -> Result<(), sqlx::Error> {
    sqlx::query("insert into effect (saga, step, cents) values ($1, $2, $3)")
        .bind(cx.saga.saga.as_uuid())
        .bind(&*cx.saga.step)
        .bind(cents)
        .execute(&mut *cx.conn)
        .await?;
    Ok(())
}

async fn reserve_credit(
    mut cx: Cx<'_>,
    command: ReserveCredit,
) -> Result<Result<i64, ()>, sqlx::Error> {
    effect(&mut cx, command.cents).await?;
    Ok(Ok(command.cents))
}

async fn release_credit(mut cx: Cx<'_>, _: ReserveCredit, cents: i64) -> Result<(), sqlx::Error> {
    effect(&mut cx, -cents).await
}

async fn allocate_stock(
    mut cx: Cx<'_>,
    command: AllocateStock,
) -> Result<Result<(), ()>, sqlx::Error> {
    effect(&mut cx, command.cents).await?;
    Ok(Ok(()))
}

async fn free_stock(mut cx: Cx<'_>, command: AllocateStock, _: ()) -> Result<(), sqlx::Error> {
    effect(&mut cx, -command.cents).await
}

async fn capture_payment(
    mut cx: Cx<'_>,
    command: CapturePayment,
) -> Result<Result<(), ()>, sqlx::Error> {
    effect(&mut cx, command.cents).await?;
    Ok(Ok(()))
}
