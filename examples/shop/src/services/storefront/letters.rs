//! What all services have set aside, in one list, and the way back. Each answers for itself over its own HTTP.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::future::join_all;
use reqwest::{Client, Url};
use serde::Serialize;
use tailrace_idempotency::BoxError;

use crate::service::Service;
use crate::set_aside::SetAside;

/// Where the consumers of each service are asked.
#[derive(Clone)]
struct Desks {
    client: Client,
    urls: Arc<[(&'static str, String)]>,
}

/// A message that is not applied, and in whose database it is.
#[derive(Serialize)]
struct Told {
    service: &'static str,
    #[serde(flatten)]
    letter: SetAside,
}

/// `GET /api/dead-letters` and `POST /api/dead-letters/{service}/{id}/retry`.
pub(super) fn routes(service: &Service, client: Client) -> Router {
    let of = &service.surroundings;
    let urls = [
        ("orders", of.orders_url.clone()),
        ("payments", of.payments_url.clone()),
        ("stock", of.stock_url.clone()),
        ("shipping", of.shipping_url.clone()),
        ("storefront", service.own_url()),
    ];
    Router::new()
        .route("/api/dead-letters", get(list))
        .route("/api/dead-letters/{service}/{id}/retry", post(retry))
        .with_state(Desks { client, urls: Arc::new(urls) })
}

/// A service that does not answer has no say; its processes are shown elsewhere.
async fn list(State(desks): State<Desks>) -> Json<Vec<Told>> {
    let asked = desks.urls.iter().map(async |(service, url)| (*service, desks.ask(url).await));
    let mut all = Vec::new();
    for (service, answer) in join_all(asked).await {
        match answer {
            Ok(letters) => all.extend(letters.into_iter().map(|letter| Told { service, letter })),
            Err(error) => {
                tracing::info!(%error, service, "a service does not say what it has set aside");
            }
        }
    }
    Json(all)
}

async fn retry(
    State(desks): State<Desks>,
    Path((service, id)): Path<(String, String)>,
) -> StatusCode {
    let Some((_, url)) = desks.urls.iter().find(|(name, _)| *name == service) else {
        return StatusCode::NOT_FOUND;
    };
    desks.retry(url, &id).await.unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
}

impl Desks {
    async fn ask(&self, url: &str) -> Result<Vec<SetAside>, BoxError> {
        let answer = self.client.get(format!("{url}/dead-letters")).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }

    async fn retry(&self, url: &str, id: &str) -> Result<StatusCode, BoxError> {
        let mut url = Url::parse(&format!("{url}/dead-letters"))?;
        // The id of a parked message has slashes in it.
        url.path_segments_mut().map_err(|()| "no address")?.push(id).push("retry");
        Ok(self.client.post(url).send().await?.status())
    }
}
