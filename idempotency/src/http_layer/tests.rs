//! The layer around a router of axum.

use axum::body::Body;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio::sync::Semaphore;

use super::*;
use crate::fixture::{Bed, installed, until};

/// Takes a permit for each payment, and fails where the body says so.
async fn pay(
    State(gate): State<Arc<Semaphore>>,
    Extension(tx): Extension<RequestTx>,
    body: String,
) -> (StatusCode, [(&'static str, &'static str); 2], String) {
    {
        let mut conn = tx.conn().unwrap();
        sqlx::query("INSERT INTO payment VALUES ($1)")
            .bind(&body)
            .execute(&mut *conn)
            .await
            .unwrap();
    }
    if let Some(statements) = match &*body {
        "rolled back" => Some("ROLLBACK"),
        "begun anew" => Some("ROLLBACK; BEGIN"),
        "committed" => Some("COMMIT"),
        _ => None,
    } {
        sqlx::raw_sql(statements).execute(&mut *tx.conn().unwrap()).await.unwrap();
    }
    gate.acquire().await.unwrap().forget();
    let status = if body == "broken" { StatusCode::BAD_GATEWAY } else { StatusCode::CREATED };
    (status, [("location", "/payments/1"), ("date", "today")], format!("paid {body}"))
}

async fn router(name: &str, permits: usize) -> (Bed, Router, Arc<Semaphore>) {
    let bed = installed(name).await;
    bed.execute("CREATE TABLE payment (body text)").await;
    let gate = Arc::new(Semaphore::new(permits));
    let caller = |request: &Parts| {
        let caller = request.headers.get("caller").and_then(|caller| caller.to_str().ok());
        caller.unwrap_or("nobody").to_owned()
    };
    let router = Router::new()
        .route("/payments", post(pay))
        .route("/health", get(async || "well"))
        .with_state(Arc::clone(&gate))
        .layer(IdempotencyKeys::new(bed.pool.clone(), caller).body_max(100));
    (bed, router, gate)
}

async fn ask(
    router: &Router,
    key: Option<&str>,
    caller: &str,
    body: &str,
) -> (u16, String, AnswerParts) {
    let mut request = Request::post("/payments").header("caller", caller);
    if let Some(key) = key {
        request = request.header("Idempotency-Key", key);
    }
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let answer = Service::call(&mut router.clone(), request).await.unwrap();
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), String::from_utf8(body.to_vec()).unwrap(), parts)
}

type AnswerParts = http::response::Parts;

const PAYMENTS: &str = "SELECT count(*) FROM payment";

#[tokio::test]
async fn a_request_that_comes_again_through_the_layer_has_no_effect_and_the_same_answer() {
    let (bed, router, _) = router("http_layer_again", 100).await;

    let first = ask(&router, Some("a"), "anna", "ten").await;
    let again = ask(&router, Some("\"a\""), "anna", "ten").await;
    let other = ask(&router, Some("a"), "anna", "twenty").await;
    let others_key = ask(&router, Some("a"), "ben", "ten").await;
    let missing = ask(&router, None, "anna", "ten").await;
    let large = ask(&router, Some("b"), "anna", &"x".repeat(101)).await;
    let health = Request::get("/health").body(Body::empty()).unwrap();
    let health = Service::call(&mut router.clone(), health).await.unwrap();

    assert_eq!((first.0, &*first.1), (201, "paid ten"));
    assert_eq!((again.0, &*again.1), (201, "paid ten"));
    assert_eq!(again.2.headers.get("location").unwrap(), "/payments/1");
    assert!(again.2.headers.get("date").is_none());
    assert_eq!([other.0, others_key.0, missing.0, large.0], [422, 201, 400, 413]);
    assert_eq!(health.status(), 200);
    assert_eq!(bed.count(PAYMENTS).await, 2);
}

#[tokio::test]
async fn a_handler_that_ends_its_transaction_is_found_out_and_its_answer_is_not_stored() {
    let (bed, router, _) = router("http_layer_ended", 100).await;

    for ended in ["rolled back", "begun anew", "committed"] {
        for _ in 0..2 {
            let (status, body, parts) = ask(&router, Some("ended"), "anna", ended).await;
            assert_eq!(status, 500, "{ended}: {body}");
            assert_eq!(parts.headers.get("content-type").unwrap(), "application/problem+json");
            assert!(body.contains("ended the transaction"), "{body}");
        }
    }

    assert_eq!(bed.count("SELECT count(*) FROM tailrace.http_key").await, 0);
    assert_eq!(ask(&router, Some("a"), "anna", "ten").await.0, 201);
}

#[tokio::test]
async fn two_keys_in_a_request_are_refused() {
    let (bed, router, _) = router("http_layer_two", 100).await;

    let request = Request::post("/payments").header("Idempotency-Key", "a");
    let request = request.header("Idempotency-Key", "b").body(Body::from("ten")).unwrap();
    let answer = Service::call(&mut router.clone(), request).await.unwrap();

    assert_eq!(answer.status(), 400);
    assert_eq!(bed.count(PAYMENTS).await, 0);
}

#[tokio::test]
async fn an_answer_that_is_not_kept_takes_its_effect_along() {
    let (bed, router, _) = router("http_layer_failed", 100).await;

    let broken = ask(&router, Some("a"), "anna", "broken").await;
    let again = ask(&router, Some("a"), "anna", "broken").await;
    let another = ask(&router, Some("a"), "anna", "ten").await;

    assert_eq!([broken.0, again.0, another.0], [502, 502, 201]);
    assert_eq!(bed.count(PAYMENTS).await, 1);
}

#[tokio::test]
async fn a_request_in_flight_refuses_its_repetition_through_the_layer() {
    let (bed, router, gate) = router("http_layer_flight", 0).await;
    let slow = router.clone();
    let first = tokio::spawn(async move { ask(&slow, Some("a"), "anna", "ten").await.0 });
    let open = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND state = 'idle in transaction' AND query LIKE 'INSERT%'";
    until(async || bed.count(open).await == 1).await;

    let meanwhile = ask(&router, Some("a"), "anna", "ten").await;
    gate.add_permits(1);

    assert_eq!(meanwhile.0, 409);
    assert_eq!(first.await.unwrap(), 201);
    assert_eq!(bed.count(PAYMENTS).await, 1);
}
