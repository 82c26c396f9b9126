//! Points for every order that is completed: no part of a saga, only a consumer whose effect must not happen twice.
//!
//! It can be given a fault, so that dead letters are to be seen: as a handler that was deployed with one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::routing::put;
use axum::{Json, Router};
use tailrace_idempotency::{BoxError, Cx, Outcome};

use crate::ledger;
use crate::order::{Fact, State};

pub(crate) const ISSUED: &str = "points-issued";
pub(crate) const CREDITED: &str = "points-credited";

/// The points of an order: one for each full euro.
pub(crate) fn points_of(cents: i64) -> i64 {
    cents / 100
}

/// Whether the handler has its fault.
#[derive(Clone, Debug, Default)]
pub(super) struct Switch(Arc<AtomicBool>);

impl Switch {
    /// `PUT /points/fault` with a bare `true` or `false`.
    pub(super) fn routes(self) -> Router {
        Router::new().route("/points/fault", put(set)).with_state(self)
    }
}

async fn set(Shared(switch): Shared<Switch>, Json(on): Json<bool>) -> StatusCode {
    switch.0.store(on, Ordering::Relaxed);
    StatusCode::NO_CONTENT
}

/// Credits them. It asks nothing about duplicates: they never come here.
pub(super) async fn credit(cx: Cx<'_, Switch>, fact: Fact) -> Result<Outcome, BoxError> {
    if fact.state == State::Completed {
        if cx.state.0.load(Ordering::Relaxed) {
            return Ok(Outcome::reject("there is no rate for the points of this order"));
        }
        let points = points_of(fact.order.cents);
        ledger::transfer(cx.conn, fact.order.id, ISSUED, CREDITED, points).await?;
    }
    Ok(Outcome::Done)
}
