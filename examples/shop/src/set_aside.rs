//! What a service's consumers have set aside, dead letters and parked messages, and the way back, over its own HTTP.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use tailrace_idempotency::inbox::{self, By, Entry, Filter, Place, RETRIES_MAX};
use tailrace_idempotency::{Error, Kind};

/// Of a service at most so many are told, the oldest first.
const TOLD_MAX: u32 = 100;

/// A message that is not applied, for people.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SetAside {
    pub(crate) id: String,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// `dead`, or how it stands among the parked ones: `waiting` for its next attempt, or `stuck`.
    pub(crate) state: String,
    pub(crate) consumer: String,
    #[serde(rename = "type")]
    pub(crate) message_type: Option<String>,
    pub(crate) reason: String,
    pub(crate) attempts: u32,
    pub(crate) at_ms: u64,
    /// Messages of its key that wait behind it.
    pub(crate) behind: u64,
}

impl SetAside {
    /// None of what is only behind another one, or in the middle of a call.
    fn of(entry: Entry, now: SystemTime) -> Option<Self> {
        let reason = entry.reason?;
        let reason = entry.detail.unwrap_or(reason);
        let at = now.checked_sub(entry.age)?.duration_since(UNIX_EPOCH).ok()?;
        Some(SetAside {
            id: entry.place.to_string(),
            topic: entry.topic,
            partition: entry.partition,
            offset: entry.offset,
            state: entry.state.to_string(),
            consumer: entry.consumer,
            message_type: entry.message_type,
            reason,
            attempts: entry.attempts,
            at_ms: u64::try_from(at.as_millis()).ok()?,
            behind: entry.behind,
        })
    }
}

/// `GET /dead-letters` and `POST /dead-letters/{id}/retry`.
pub(crate) fn routes(pool: PgPool) -> Router {
    Router::new()
        .route("/dead-letters", get(list_all))
        .route("/dead-letters/{id}/retry", post(retry_one))
        .with_state(pool)
}

async fn list_all(State(pool): State<PgPool>) -> Result<Json<Vec<SetAside>>, StatusCode> {
    let mut conn = pool.acquire().await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    Ok(Json(list(&mut conn).await.map_err(|error| status(&error))?))
}

async fn retry_one(State(pool): State<PgPool>, Path(id): Path<String>) -> StatusCode {
    let Ok(mut conn) = pool.acquire().await else { return StatusCode::SERVICE_UNAVAILABLE };
    match retry(&mut conn, &id).await {
        Ok(()) => StatusCode::NO_CONTENT,
        Err(error) => {
            tracing::info!(%error, "a message is not tried again");
            status(&error)
        }
    }
}

/// Everything that a person may want to see.
async fn list(conn: &mut PgConnection) -> Result<Vec<SetAside>, Error> {
    let now = SystemTime::now();
    let entries = inbox::list(conn, &Filter::default(), TOLD_MAX).await?;
    Ok(entries.into_iter().filter_map(|entry| SetAside::of(entry, now)).collect())
}

/// Has one tried again: its consumer finds it by itself.
async fn retry(conn: &mut PgConnection, id: &str) -> Result<(), Error> {
    let place: Place = id.parse()?;
    let entry = inbox::get(conn, &place).await?;
    inbox::retry(conn, &entry, RETRIES_MAX, &By::new("shop")).await.map(drop)
}

fn status(error: &Error) -> StatusCode {
    match error.kind() {
        Kind::Config => StatusCode::NOT_FOUND,
        // It was applied meanwhile, or was retried so often that a person has to look first.
        Kind::Conflict => StatusCode::CONFLICT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}
