//! How an order is carried through, declared twice: as an orchestrated saga, and as a choreography of the same services.
//!
//! Both do the same things in the same order: stock is reserved, a parcel is booked, the payment is captured (the point
//! of no return), the stock is issued, the parcel is dispatched, the order is approved.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tailrace_saga::{
    Choreography, Command, Compensable, Error, Forward, Irrefusable, OnRefused, OnTimeout, Retry,
    Saga, local,
};

use crate::order::Order;
use crate::services::orders;

/// The name of the orchestrated saga.
pub(crate) const PLACE_ORDER: &str = "place-order";

/// By then a saga is done or undone, whatever happens in between.
const ENDS_WITHIN: Duration = Duration::from_secs(180);
/// A command is repeated after this time. A restart takes longer, so under trouble participants are asked more than once,
/// and the barrier shows what it is for.
const REPEAT_AFTER: Duration = Duration::from_secs(5);

/// The topics of commands and replies.
pub(crate) const ORCHESTRATION_TOPICS: [&str; 4] =
    ["stock.commands", "shipping.commands", "payments.commands", REPLIES];
/// Where participants answer the engine.
pub(crate) const REPLIES: &str = "place-order.replies";

macro_rules! command {
    ($name:ident, $message_type:literal, $topic:literal, $refusal:ty) => {
        #[doc = concat!("The command `", $message_type, "`.")]
        #[derive(Clone, Debug, Serialize, Deserialize)]
        pub(crate) struct $name(pub(crate) Order);

        impl Command for $name {
            const TYPE: &'static str = $message_type;
            const TOPIC: &'static str = $topic;
            type Reply = ();
            type Refusal = $refusal;
        }

        impl $name {
            fn of(order: &Order) -> Self {
                Self(order.clone())
            }
        }
    };
}

command!(ReserveStock, "stock.reserve.v1", "stock.commands", String);
command!(IssueStock, "stock.issue.v1", "stock.commands", Irrefusable);
command!(BookParcel, "parcel.book.v1", "shipping.commands", String);
command!(DispatchParcel, "parcel.dispatch.v1", "shipping.commands", Irrefusable);
command!(CapturePayment, "payment.capture.v1", "payments.commands", String);

impl Compensable for ReserveStock {}
impl Compensable for BookParcel {}

/// The saga that the engine in the orders service drives.
pub(crate) fn saga() -> Result<Saga<Order>, Error> {
    let soon = Retry::exponential(Duration::from_millis(200), Duration::from_secs(2));
    let soon = soon.attempts(10_000).max_age(Duration::from_secs(3600));
    let refuse = |order: &mut Order, reason| {
        order.reason = Some(reason);
        OnRefused::Abort
    };
    Saga::define(PLACE_ORDER, 1)
        .deadline(ENDS_WITHIN)
        .step("accept-order", local(orders::accept_locally).undo(orders::reject_locally))
        .compensate()
        .step("reserve-stock", ReserveStock::of)
        .retry(soon)
        .timeout(REPEAT_AFTER, OnTimeout::Retry)
        .retry_compensation(soon)
        .on_refused(refuse)
        .compensate()
        .step("book-parcel", BookParcel::of)
        .retry(soon)
        .timeout(REPEAT_AFTER, OnTimeout::Retry)
        .retry_compensation(soon)
        .on_refused(refuse)
        .compensate()
        .pivot("capture-payment", CapturePayment::of)
        .retry(soon)
        .timeout(REPEAT_AFTER, Forward::Retry)
        .on_refused(|order, reason| order.reason = Some(reason))
        .retriable("issue-stock", IssueStock::of)
        .retry(soon)
        .timeout(REPEAT_AFTER, Forward::Retry)
        .retriable("dispatch-parcel", DispatchParcel::of)
        .retry(soon)
        .timeout(REPEAT_AFTER, Forward::Retry)
        .retriable("approve-order", local(orders::approve_locally))
        .build()
}

/// Which event leads to which step in which service.
pub(crate) fn choreography() -> Result<Choreography, Error> {
    Choreography::define("order-by-events", 1)
        .starts("orders", "accept-order")
        .emits("order.placed.v1")
        .compensated_by("reject-order")
        .step("stock", "reserve-stock", "order.placed.v1")
        .emits("stock.reserved.v1")
        .refuses("stock.refused.v1")
        .compensated_by("release-stock")
        .undone("stock.released.v1")
        .step("shipping", "book-parcel", "stock.reserved.v1")
        .emits("parcel.booked.v1")
        .refuses("parcel.refused.v1")
        .compensated_by("cancel-parcel")
        .undone("parcel.cancelled.v1")
        .step("payments", "capture-payment", "parcel.booked.v1")
        .emits("payment.captured.v1")
        .refuses("payment.refused.v1")
        .pivot("payment.called-off.v1")
        .step("stock", "issue-stock", "payment.captured.v1")
        .emits("stock.issued.v1")
        .retriable()
        .step("shipping", "dispatch-parcel", "stock.issued.v1")
        .emits("parcel.dispatched.v1")
        .retriable()
        .step("orders", "approve-order", "parcel.dispatched.v1")
        .emits("order.approved.v1")
        .retriable()
        .ends_with("order.approved.v1")
        .ends_within(ENDS_WITHIN, "order.expired.v1")
        .build()
}
