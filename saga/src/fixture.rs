//! The saga that tests use: an order, with credit, stock and a shipping quote before the payment.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::builder::{Saga, Signal};
use crate::command::{Command, Compensable, Irrefusable};
use crate::correlation::SagaId;
use crate::definition::{Forward, OnTimeout};
use crate::retry::Retry;

pub(crate) const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) customer: String,
    pub(crate) cents: i64,
    pub(crate) hold: Option<i64>,
    pub(crate) missing_cents: Option<i64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReserveCredit {
    pub(crate) customer: String,
    pub(crate) cents: i64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CreditReserved {
    pub(crate) hold: i64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CreditLimitExceeded {
    pub(crate) missing_cents: i64,
}

impl Command for ReserveCredit {
    const TYPE: &'static str = "credit.reserve.v1";
    const TOPIC: &'static str = "customers.commands";
    type Reply = CreditReserved;
    type Refusal = CreditLimitExceeded;

    fn target(&self) -> Option<String> {
        Some(self.customer.clone())
    }
}

impl Compensable for ReserveCredit {}

/// Commands without anything of interest in them.
macro_rules! command {
    ($name:ident, $message_type:literal, $topic:literal, $refusal:ty) => {
        #[derive(Debug, Serialize, Deserialize)]
        pub(crate) struct $name {}

        impl Command for $name {
            const TYPE: &'static str = $message_type;
            const TOPIC: &'static str = $topic;
            type Reply = ();
            type Refusal = $refusal;
        }

        impl $name {
            pub(crate) fn of(_: &Order) -> Self {
                Self {}
            }
        }
    };
}

command!(AllocateStock, "stock.allocate.v1", "warehouse.commands", ());
command!(QuoteShipping, "shipping.quote.v1", "shipping.commands", ());
command!(CapturePayment, "payment.capture.v1", "payments.commands", ());
command!(SendMail, "mail.send.v1", "mail.commands", Irrefusable);

impl Compensable for AllocateStock {}

impl ReserveCredit {
    pub(crate) fn of(order: &Order) -> Self {
        Self { customer: order.customer.clone(), cents: order.cents }
    }
}

pub(crate) fn order() -> Order {
    Order { customer: "ada".to_owned(), cents: 1999, ..Order::default() }
}

pub(crate) fn create_order() -> Saga<Order> {
    Saga::define("create-order", 4)
        .deadline(3600 * SECOND)
        .step("reserve-credit", ReserveCredit::of)
        .retry(Retry::exponential(SECOND, 30 * SECOND).attempts(3))
        .timeout(20 * SECOND, OnTimeout::Retry)
        .on_reply(|order, reply| order.hold = Some(reply.hold))
        .on_refused(|order, refusal| order.missing_cents = Some(refusal.missing_cents))
        .retry_compensation(Retry::every(SECOND).attempts(3))
        .compensate()
        .parallel(|branches| {
            branches
                .step("allocate-stock", AllocateStock::of)
                .timeout(30 * SECOND, OnTimeout::Compensate)
                .retry_compensation(Retry::every(SECOND).attempts(2))
                .compensate()
                .step("quote-shipping", QuoteShipping::of)
                .no_effect()
        })
        .pivot("capture-payment", CapturePayment::of)
        .retry(Retry::every(SECOND).attempts(2))
        .timeout(10 * SECOND, Forward::Retry)
        .retriable("send-mail", SendMail::of)
        .timeout(60 * SECOND, Forward::Park)
        .build()
        .unwrap()
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Confirmed {
    pub(crate) by: String,
}

impl Signal for Confirmed {
    const TYPE: &'static str = "order.confirmed.v1";
}

pub(crate) fn saga_id() -> SagaId {
    SagaId::from_uuid(Uuid::from_u128(7))
}

pub(crate) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}
