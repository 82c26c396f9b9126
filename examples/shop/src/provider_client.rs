//! The way to the payment provider: two time-outs, a circuit breaker, and something to fall back on.

use std::time::Duration;

use metrics::gauge;
use serde::{Deserialize, Serialize};
use tailrace_idempotency::{BoxError, Breaker, BreakerState, NotDone, SlidingWindow, trace};
use tracing::Span;

use crate::order::Order;
use crate::traces;

const CONNECT_MAX: Duration = Duration::from_millis(250);
/// Between two reads of an answer.
const READ_MAX: Duration = Duration::from_millis(400);
/// Up to this amount the shop gives credit of its own while the provider is left alone.
const STAND_IN_CENTS_MAX: i64 = 2_000;

/// 0 while the breaker before the provider is closed, 1 while it is half open, 2 while it is open.
pub(crate) const BREAKER_STATE: &str = "shop_provider_breaker_state";

/// How the provider is asked for money.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ChargeRequest {
    /// A repetition with the same key charges nothing.
    pub(crate) key: String,
    /// For the books: whose charge it is.
    pub(crate) order: uuid::Uuid,
    pub(crate) card: String,
    pub(crate) cents: i64,
}

/// How a payment was taken, or was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Charge {
    Charged,
    Declined,
    /// The provider was not asked: the shop lends the money, and asks later, by the same key.
    StoodIn,
}

/// The provider as the payments service knows it.
#[derive(Clone, Debug)]
pub(crate) struct ProviderClient {
    client: reqwest::Client,
    url: String,
    breaker: Breaker,
}

/// It was not asked, or has not answered: whether the card is charged is not known.
#[derive(Debug)]
pub(crate) struct Unanswered;

impl ProviderClient {
    pub(crate) fn new(url: &str) -> Result<Self, BoxError> {
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_MAX)
            .read_timeout(READ_MAX)
            .build()?;
        let breaker = Breaker::new()
            .sliding_window(SlidingWindow::CountBased(10))
            .minimum_number_of_calls(4)
            .wait_duration_in_open_state(Duration::from_millis(1500))
            .permitted_number_of_calls_in_half_open_state(2);
        Ok(ProviderClient { client, url: format!("{url}/charges"), breaker })
    }

    /// Asks for the money. Small amounts are lent while the breaker is open, all others have to wait.
    pub(crate) async fn charge_or_stand_in(
        &self,
        key: &str,
        order: &Order,
    ) -> Result<Charge, Unanswered> {
        let request = ChargeRequest {
            key: key.to_owned(),
            order: order.id,
            card: order.card.clone(),
            cents: order.cents,
        };
        match self.charge(&request).await {
            Err(NotDone::Open) if order.cents <= STAND_IN_CENTS_MAX => Ok(Charge::StoodIn),
            charged => charged.map_err(|_| Unanswered),
        }
    }

    /// Asks for the money, unless the breaker is open.
    pub(crate) async fn charge(
        &self,
        request: &ChargeRequest,
    ) -> Result<Charge, NotDone<BoxError>> {
        let charged = self.breaker.call(self.post(request)).await;
        gauge!(BREAKER_STATE).set(match self.breaker.state() {
            BreakerState::Closed => 0.0,
            BreakerState::HalfOpen => 1.0,
            _ => 2.0,
        });
        charged
    }

    async fn post(&self, request: &ChargeRequest) -> Result<Charge, BoxError> {
        // In the trace of whatever is paid for.
        let trace = traces::headers(&trace::attributes(&Span::current()));
        let asking = self.client.post(&self.url).headers(trace).json(request);
        let answer = asking.send().await?.error_for_status()?;
        Ok(answer.json().await?)
    }
}
