//! Whether an engine gets on, for whoever asks over HTTP or in the process.

use std::sync::{Arc, OnceLock};

use super::Counters;

/// A handle to how an engine is; it stays valid after the engine has ended.
///
/// With the feature `axum` it is a router to mount: see its method `routes`.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<OnceLock<Begun>>);

#[derive(Debug)]
struct Begun {
    consumer: tailrace_idempotency::Health,
    counters: Counters,
}

impl Health {
    /// Whether the process is worth keeping: as [`tailrace_idempotency::Health::is_live`].
    pub fn is_live(&self) -> bool {
        self.0.get().is_none_or(|begun| begun.consumer.is_live())
    }

    /// Everything that keeps it from driving sagas; empty while it is ready.
    pub fn faults(&self) -> Vec<String> {
        match self.0.get() {
            None => vec!["the engine has not started yet".to_owned()],
            Some(begun) => begun.consumer.faults(),
        }
    }

    /// Sagas that stand still since nobody can run them. This engine is as good as any other one: to take it out of
    /// service would help none of them, so they are no fault of it.
    pub fn degraded(&self) -> Vec<String> {
        let quarantined = self.0.get().map(|begun| begun.counters.quarantined());
        let say = |it: super::Quarantined| {
            format!(
                "{} sagas of {} ({}) wait for an engine that can run them",
                it.sagas, it.definition, it.definition.hash
            )
        };
        quarantined.unwrap_or_default().into_iter().map(say).collect()
    }

    pub(super) fn began(&self, consumer: tailrace_idempotency::Health, counters: Counters) {
        // An engine runs once.
        self.0.get_or_init(|| Begun { consumer, counters });
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
    use crate::definition::Identity;
    use crate::engine::Quarantined;

    #[test]
    fn an_engine_whose_sagas_nobody_can_run_is_degraded_and_no_less_ready() {
        let (health, counters) = (Health::default(), Counters::default());
        assert_eq!(health.faults(), ["the engine has not started yet"]);
        assert!(health.is_live() && health.degraded().is_empty());

        let consumer = tailrace_idempotency::Health::default();
        health.began(consumer.clone(), counters.clone());
        let name = "create-order".into();
        let definition = Identity { name, version: 3, hash: "abc".into() };
        counters.quarantine(vec![Quarantined { definition, sagas: 25 }]);

        assert_eq!(health.faults(), consumer.faults());
        assert_eq!(
            health.degraded(),
            ["25 sagas of create-order/3 (abc) wait for an engine that can run them"]
        );
    }
}
