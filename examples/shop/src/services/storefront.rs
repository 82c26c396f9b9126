//! The storefront: the page, and behind it one place to ask. What it shows it keeps in a read model of its own.
//!
//! The contract with the page is in `examples/shop/ARCHITECTURE.md`.

use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::map_response;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{Stream, stream};
use serde_json::{Value, json};
use tailrace_idempotency::{BoxError, Consumer, Projection};
use tailrace_saga::story::Observer;
use uuid::Uuid;

use crate::Failure;
use crate::ledger;
use crate::order::{FACTS, ORDER_CHANGED};
use crate::place_order;
use crate::service::Service;
use crate::services::control::ControlOrder;
use crate::traces;

mod brokers;
mod embedded;
mod letters;
pub(crate) mod points;
mod read_model;
mod wish;

use brokers::Brokers;
use read_model::{Hearers, ReadModel};
use wish::Wish;

/// Between two looks at what has changed.
const FEED_EVERY: Duration = Duration::from_millis(500);
/// A page that waits shows nothing.
const SUMMARY_MAX: Duration = Duration::from_secs(1);
/// Another service answers by then, or the page is told that it does not.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// An order has a few short texts, each of them at most six times as long where it is escaped.
const ORDER_BYTES_MAX: usize = 16 * 1024;

#[derive(Clone)]
struct Front {
    model: ReadModel,
    hearers: Hearers,
    brokers: Brokers,
    client: reqwest::Client,
    orders_url: String,
    control_url: String,
    stage_url: String,
}

pub(crate) async fn run(service: Service) -> Result<(), Failure> {
    service.prepare(&[ledger::TABLES]).await?;
    let switch = points::Switch::default();
    let points = Consumer::new(service.config("points").state(switch.clone()))
        .topic(FACTS)
        .on(ORDER_CHANGED, points::credit);
    let facts = Consumer::new(service.projection_config(read_model::NAME))
        .topic(FACTS)
        .on_batch(ORDER_CHANGED, read_model::keep);
    let projection = Projection::new(facts, 1, read_model::TABLES);
    let stories = Observer::new()
        .choreography(&place_order::choreography()?)
        .saga(place_order::saga()?.definition());
    let client = reqwest::Client::builder().timeout(ANSWER_MAX).build()?;
    let front = Front {
        model: ReadModel::of(service.pool.clone()),
        hearers: Hearers::of_both(&place_order::choreography()?),
        brokers: Brokers::watch(&service.surroundings.kafka_brokers)?,
        client: client.clone(),
        orders_url: service.surroundings.orders_url.clone(),
        control_url: service.surroundings.control_url.clone(),
        stage_url: service.surroundings.stage_url.clone(),
    };
    let routes = routes(front, letters::routes(&service, client)).merge(switch.routes());
    tokio::try_join!(
        async { Ok::<_, Failure>(Box::pin(projection.run(service.stopped())).await?) },
        async { Ok(Box::pin(stories.run(service.config("stories"), service.stopped())).await?) },
        async { Ok(Box::pin(points.run(service.stopped())).await?) },
        service.serve(routes),
    )?;
    Ok(())
}

fn routes(front: Front, letters: Router) -> Router {
    Router::new()
        .route("/api/orders", get(orders).post(place))
        .layer(DefaultBodyLimit::max(ORDER_BYTES_MAX))
        .route("/api/orders/{saga}/story", get(story))
        .route("/api/state", get(state))
        .route("/api/feed", get(feed))
        .route("/api/troubles/{name}", post(trouble))
        .with_state(front)
        .merge(letters)
        .merge(embedded::routes())
        .layer(map_response(embedded::guarded))
}

/// Places an order. The header `Idempotency-Key` is the order's id, a UUID of version 7 that the page makes.
async fn place(
    State(front): State<Front>,
    headers: HeaderMap,
    asked: Result<Json<Value>, JsonRejection>,
) -> Result<Response, Problem> {
    let wrong = |problem| Problem(StatusCode::BAD_REQUEST, problem);
    let Json(asked) = asked.map_err(|rejection| unread(&rejection))?;
    let wish = Wish::read(asked).map_err(wrong)?;
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok());
    let id = key
        .and_then(|key| key.trim_matches('"').parse::<Uuid>().ok())
        .filter(|id| id.get_version_num() == 7)
        .ok_or(wrong("Idempotency-Key must be a UUID of version 7"))?;
    let cents = wish.cents;
    let trace = traces::headers(&traces::of_or_new(&headers));
    let request = front
        .client
        .post(format!("{}/orders", front.orders_url))
        .header("idempotency-key", format!("\"{id}\""))
        .headers(trace.clone())
        .json(&wish.order(id));
    let unanswered = Problem(StatusCode::SERVICE_UNAVAILABLE, "the orders service does not answer");
    let answer = request.send().await.map_err(|_| unanswered)?;
    let status = answer.status();
    let broken = Problem(StatusCode::BAD_GATEWAY, "the orders service breaks off");
    let body = answer.bytes().await.map_err(|_| broken)?;
    if status.is_success() {
        tokio::spawn(front.tell_control(ControlOrder { id, cents }, trace));
    }
    Ok((status, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Why what was sent is not even JSON.
fn unread(rejection: &JsonRejection) -> Problem {
    match rejection.status() {
        status @ StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            Problem(status, "the header Content-Type of an order is application/json")
        }
        status @ StatusCode::PAYLOAD_TOO_LARGE => {
            Problem(status, "an order has at most 16384 bytes")
        }
        _ => Problem(StatusCode::BAD_REQUEST, wish::SHAPE),
    }
}

async fn orders(State(front): State<Front>) -> Result<Json<Value>, Problem> {
    Ok(Json(front.model.latest().await?))
}

async fn story(State(front): State<Front>, Path(saga): Path<Uuid>) -> Result<Json<Value>, Problem> {
    Ok(Json(front.model.story(saga, &front.hearers).await?))
}

/// Everything that the page shows, in one answer.
async fn state(State(front): State<Front>) -> Json<Value> {
    Json(front.state().await)
}

/// The same, again and again: the page needs no other request to stay as things are.
async fn feed(State(front): State<Front>) -> Sse<impl Stream<Item = Result<Event, axum::Error>>> {
    let events = stream::unfold((front, 0_u64), |(front, number)| async move {
        if number > 0 {
            tokio::time::sleep(FEED_EVERY).await;
        }
        let event = Event::default().event("state").json_data(front.state().await);
        Some((event, (front, number + 1)))
    });
    Sse::new(events)
}

/// Switches a trouble on or off; whoever started the shop does it.
async fn trouble(
    State(front): State<Front>,
    Path(name): Path<String>,
    Json(wanted): Json<Value>,
) -> Result<Response, Problem> {
    let unanswered = Problem(StatusCode::SERVICE_UNAVAILABLE, "nobody is there to make trouble");
    let url = format!("{}/troubles/{name}", front.stage_url);
    let asked = front.client.post(url).json(&wanted).send().await.map_err(|_| unanswered)?;
    Ok(asked.status().into_response())
}

impl Front {
    /// The control lane gets each order too. Whether it takes it is its own affair.
    async fn tell_control(self, order: ControlOrder, trace: HeaderMap) {
        let url = format!("{}/orders", self.control_url);
        if let Err(error) = self.client.post(url).headers(trace).json(&order).send().await {
            tracing::info!(%error, "the control lane does not answer");
        }
    }

    async fn state(&self) -> Value {
        let summary = tokio::time::timeout(SUMMARY_MAX, self.model.summary());
        let (stage, summary) = tokio::join!(self.stage(), summary);
        let (shop, problem) = match summary.unwrap_or_else(|late| Err(late.into())) {
            Ok(shop) => (shop, None),
            // It says so rather than to show what is old as if it were new.
            Err(error) => (Value::Null, Some(error.to_string())),
        };
        json!({
            "shop": shop,
            "problem": problem,
            "kafka_away_since_ms": self.brokers.away_since_ms(),
            "staged": !self.stage_url.is_empty(),
            "stage": stage.unwrap_or(Value::Null),
        })
    }

    async fn stage(&self) -> Result<Value, BoxError> {
        let asked = self.client.get(format!("{}/stage", self.stage_url)).send().await?;
        Ok(asked.json().await?)
    }
}

/// What the page is told when something does not work, as JSON.
#[derive(Clone, Copy, Debug)]
struct Problem(StatusCode, &'static str);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "problem": self.1 }))).into_response()
    }
}

impl From<BoxError> for Problem {
    fn from(error: BoxError) -> Self {
        tracing::warn!(%error, "the read model does not answer");
        Problem(StatusCode::SERVICE_UNAVAILABLE, "the read model does not answer")
    }
}
