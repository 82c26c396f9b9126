//! Kafka is away for a while, and the shop goes on taking orders.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, interval};
use uuid::Uuid;

use crate::shop::Shop;

const ORDER_EVERY: Duration = Duration::from_millis(400);
/// A click of so many is a double one.
const TWICE_EVERY: u64 = 3;
/// It is seen by then that Kafka is away, or is back.
const SEEN_MAX: Duration = Duration::from_secs(60);
/// What was placed meanwhile has ended by then, and is in all books.
const END_MAX: Duration = Duration::from_secs(180);

/// Those whose work begins and ends at Kafka.
const RELAYS: [&str; 4] = ["orders_relay", "payments_relay", "stock_relay", "shipping_relay"];
const SERVICES: [&str; 5] = ["orders", "payments", "stock", "shipping", "storefront"];

/// What was seen.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Orders that were placed while Kafka was away.
    pub placed: u64,
    /// From its return until all of them had ended, and all books were right.
    pub ended_after: Duration,
}

/// Stops Kafka for so long, with orders of both styles placed all the time. What is done `beside` answers with how many more
/// it has placed.
///
/// # Panics
///
/// When an order is not taken, is lost or doubled, when nobody says what is wrong, or when a process does not live
/// through it.
pub async fn kafka_is_away(
    shop: &Shop,
    lasts: Duration,
    beside: impl Future<Output = u64>,
) -> Outcome {
    let before = shop.until("/api/state", END_MAX, |state| Seen::of(state).is_some()).await;
    let before = Seen::of(&before).expect("it was just so");
    shop.trouble("kafka-stopped", true).await;
    let from = Instant::now();
    shop.until("/api/state", SEEN_MAX, |state| state["kafka_away_since_ms"].is_u64()).await;

    let (placed, beside) = tokio::join!(place(shop, from + lasts), beside);
    let placed = placed + beside;

    shop.process("orders_relay").readiness(503, "afka", SEEN_MAX).await;
    for name in RELAYS.into_iter().chain(SERVICES) {
        // Nobody is to be started again for something that passes by itself.
        let answer = shop.process(name).get("/livez").await;
        assert_eq!(answer.code, 200, "{name}: {answer:?}");
    }
    shop.trouble("kafka-stopped", false).await;
    let back = Instant::now();
    let expected = Seen {
        ended: before.ended + placed,
        completed: before.completed + placed,
        ..before.clone()
    };
    let is_over = |state: &Value| {
        state["kafka_away_since_ms"].is_null() && Seen::of(state).as_ref() == Some(&expected)
    };
    shop.until("/api/state", END_MAX, is_over).await;
    let outcome = Outcome { placed, ended_after: back.elapsed() };
    assert_eq!(shop.json("/api/dead-letters").await, json!([]));
    for name in RELAYS.into_iter().chain(SERVICES) {
        shop.process(name).readiness(200, "", SEEN_MAX).await;
    }
    outcome
}

/// Places orders until then, each at once and some of them twice; answers with how many there are.
async fn place(shop: &Shop, until: Instant) -> u64 {
    let mut tick = interval(ORDER_EVERY);
    let mut placed = 0;
    while Instant::now() < until {
        tick.tick().await;
        let style = if placed % 2 == 0 { "choreography" } else { "orchestration" };
        let (order, wish) = (Uuid::now_v7(), json!({ "style": style }));
        let times = if placed % TWICE_EVERY == 0 { 2 } else { 1 };
        for _ in 0..times {
            let answer = shop.place(order, &wish).await;
            assert_eq!(answer.code, 201, "{answer:?}");
        }
        placed += 1;
    }
    placed
}

/// What the storefront tells, where the books are right and nothing is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    ended: u64,
    completed: u64,
    restarts: Value,
}

impl Seen {
    fn of(state: &Value) -> Option<Self> {
        let books = state.pointer("/stage/books/shop")?;
        let rests = ["running", "wrong", "settling"].into_iter().all(|name| books[name] == 0);
        let (ended, restarts) = (books["ended"].as_u64()?, state.pointer("/stage/restarts")?);
        let counts = state.pointer("/shop/counts")?.as_array()?;
        let of = |state: &str| -> u64 {
            let counts = counts.iter().filter(|count| count["state"] == state);
            counts.filter_map(|count| count["orders"].as_u64()).sum()
        };
        // The read model has heard of what the books say.
        let completed = of("completed");
        let rests = rests && completed + of("rejected") == ended;
        rests.then(|| Seen { ended, completed, restarts: restarts.clone() })
    }
}
