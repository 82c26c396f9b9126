//! Points for every order that is completed: no part of a saga, only a consumer whose effect must not happen twice.

use tailrace_idempotency::{BoxError, Cx, Outcome};

use crate::ledger;
use crate::order::{Fact, State};

pub(crate) const ISSUED: &str = "points-issued";
pub(crate) const CREDITED: &str = "points-credited";

/// The points of an order: one for each full euro.
pub(crate) fn points_of(cents: i64) -> i64 {
    cents / 100
}

/// Credits them. It asks nothing about duplicates: they never come here.
pub(super) async fn credit(cx: Cx<'_>, fact: Fact) -> Result<Outcome, BoxError> {
    if fact.state == State::Completed {
        let points = points_of(fact.order.cents);
        ledger::transfer(cx.conn, fact.order.id, ISSUED, CREDITED, points).await?;
    }
    Ok(Outcome::Done)
}
