//! Whether what runs of sagas gets on, for whoever asks over HTTP or in the process.

use std::sync::{Arc, OnceLock};

/// A handle to how an engine, a participant or a service is; it stays valid after that has ended.
///
/// With the feature `axum` it is a router to mount: see its method `routes`.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<OnceLock<Begun>>);

struct Begun {
    consumer: tailrace_idempotency::Health,
    degraded: Degraded,
}

type Degraded = Box<dyn Fn() -> Vec<String> + Send + Sync>;

impl std::fmt::Debug for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Begun").field("consumer", &self.consumer).finish_non_exhaustive()
    }
}

impl Health {
    /// Whether the process is worth keeping: as [`tailrace_idempotency::Health::is_live`].
    pub fn is_live(&self) -> bool {
        self.0.get().is_none_or(|begun| begun.consumer.is_live())
    }

    /// Everything that keeps it from its work; empty while it is ready.
    pub fn faults(&self) -> Vec<String> {
        match self.0.get() {
            None => vec!["it has not started yet".to_owned()],
            Some(begun) => begun.consumer.faults(),
        }
    }

    /// Sagas that stand still: of an engine, those that nobody can run; of the service that starts choreographed sagas,
    /// those that are overdue. Every other process would find the same: to take this one out of service would help none of
    /// them, so they are no fault of it.
    pub fn degraded(&self) -> Vec<String> {
        self.0.get().map(|begun| (begun.degraded)()).unwrap_or_default()
    }

    pub(crate) fn began(
        &self,
        consumer: tailrace_idempotency::Health,
        degraded: impl Fn() -> Vec<String> + Send + Sync + 'static,
    ) {
        // It runs once.
        self.0.get_or_init(|| Begun { consumer, degraded: Box::new(degraded) });
    }
}

#[cfg(feature = "axum")]
mod routes {
    use axum::http::StatusCode;
    use axum::response::IntoResponse;
    use axum::routing::get;
    use axum::{Json, Router};

    use super::Health;

    impl Health {
        /// `GET /livez` and `GET /readyz`, which answer with 200 or 503, the faults, and what is degraded, as JSON.
        ///
        /// ```no_run
        /// # fn example(engine: tailrace_saga::Engine) -> axum::Router {
        /// let health = engine.health();
        /// axum::Router::new().nest("/sagas", health.routes())
        /// # }
        /// ```
        pub fn routes<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
            let (live, ready) = (self.clone(), self.clone());
            Router::new()
                .route("/livez", get(async move || answer(live.is_live(), &live)))
                .route("/readyz", get(async move || answer(ready.faults().is_empty(), &ready)))
        }
    }

    fn answer(is_well: bool, health: &Health) -> impl IntoResponse + use<> {
        let code = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let (faults, degraded) = (health.faults(), health.degraded());
        (code, Json(serde_json::json!({ "faults": faults, "degraded": degraded })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_still_degrades_and_is_no_fault() {
        let health = Health::default();
        assert_eq!(health.faults(), ["it has not started yet"]);
        assert!(health.is_live() && health.degraded().is_empty());

        let consumer = tailrace_idempotency::Health::default();
        health.began(consumer.clone(), || vec!["25 sagas wait".to_owned()]);

        assert_eq!(health.faults(), consumer.faults());
        assert_eq!(health.degraded(), ["25 sagas wait"]);
    }
}
