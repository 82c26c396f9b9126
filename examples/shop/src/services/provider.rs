//! The payment provider: somebody else's service, played by a stub. It charges once per key, also where it answers late.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::routing::{get, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Failure;
use crate::order::DECLINED_CARD;
use crate::provider_client::{Charge, ChargeRequest};
use crate::service::Service;

/// How the provider behaves.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Behaviour {
    /// It answers so much later.
    pub(crate) delay_ms: u64,
}

#[derive(Default)]
struct Accounts {
    behaviour: Behaviour,
    /// The answer to each key.
    answers: HashMap<String, Charge>,
    /// What each order was charged.
    charged: HashMap<Uuid, i64>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Accounts>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) async fn run(service: Service) -> Result<(), Failure> {
    let routes = Router::new()
        .route("/charges", get(charges).post(charge))
        .route("/behaviour", put(behave))
        .with_state(Shared::default());
    service.serve(routes).await
}

async fn charge(State(shared): State<Shared>, Json(request): Json<ChargeRequest>) -> Json<Charge> {
    let (answer, delay) = {
        let mut accounts = shared.lock();
        let delay = Duration::from_millis(accounts.behaviour.delay_ms);
        let answer = match accounts.answers.get(&request.key) {
            Some(answer) => *answer,
            None => accounts.charge(request),
        };
        (answer, delay)
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    Json(answer)
}

impl Accounts {
    fn charge(&mut self, request: ChargeRequest) -> Charge {
        let declined = request.card == DECLINED_CARD;
        let answer = if declined { Charge::Declined } else { Charge::Charged };
        if !declined {
            *self.charged.entry(request.order).or_default() += request.cents;
        }
        self.answers.insert(request.key, answer);
        answer
    }
}

/// What each order was charged, for the books.
async fn charges(State(shared): State<Shared>) -> Json<HashMap<Uuid, i64>> {
    Json(shared.lock().charged.clone())
}

async fn behave(State(shared): State<Shared>, Json(behaviour): Json<Behaviour>) {
    shared.lock().behaviour = behaviour;
}
