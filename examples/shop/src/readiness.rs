//! Whether a service is alive, and whether it can do its work: what all of its consumers say of themselves.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tailrace_idempotency::Health;
use tokio::sync::watch;

/// The consumers of a service, by name, and whether it has been asked to stop.
#[derive(Clone)]
pub(crate) struct Readiness {
    consumers: Arc<Mutex<Vec<(String, Health)>>>,
    stop: watch::Receiver<bool>,
}

impl Readiness {
    pub(crate) fn new(stop: watch::Receiver<bool>) -> Self {
        Readiness { consumers: Arc::default(), stop }
    }

    /// A handle for a consumer that is about to be made.
    pub(crate) fn of(&self, consumer: &str) -> Health {
        let health = Health::default();
        self.lock().push((consumer.to_owned(), health.clone()));
        health
    }

    /// `GET /livez` and `GET /readyz`: 200 or 503, with everything that is in the way.
    pub(crate) fn routes(&self) -> Router {
        let (live, ready) = (self.clone(), self.clone());
        Router::new()
            .route("/livez", get(async move || answer(live.is_live(), &live)))
            .route("/readyz", get(async move || answer(ready.faults().is_empty(), &ready)))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, Health)>> {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To start it again would mend nothing as long as no consumer has ended or stands still.
    fn is_live(&self) -> bool {
        self.lock().iter().all(|(_, health)| health.is_live())
    }

    fn faults(&self) -> Vec<String> {
        let stopping = self.stop.borrow().then(|| "it has been asked to stop".to_owned());
        let of_consumers = self
            .lock()
            .iter()
            .flat_map(|(name, health)| {
                health.faults().into_iter().map(move |fault| format!("{name}: {fault}"))
            })
            .collect::<Vec<_>>();
        stopping.into_iter().chain(of_consumers).collect()
    }
}

fn answer(is_well: bool, readiness: &Readiness) -> (StatusCode, Json<Value>) {
    let code = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({ "faults": readiness.faults() })))
}
