//! The shop that is open: one trace through all of its services, dead letters and the way back, a service that is killed,
//! Kafka that is away, and an order that is placed twice.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tests::collector::Collector;
use tests::shop::Shop;
use uuid::Uuid;

/// An order has ended by then, whatever is in its way, on a busy machine and without optimisation.
const END_MAX: Duration = Duration::from_secs(90);
/// The last spans are sent by then.
const SENT_MAX: Duration = Duration::from_secs(30);

/// Everybody who has something to do with an order.
const PROCESSES: [&str; 10] = [
    "storefront",
    "orders",
    "stock",
    "shipping",
    "payments",
    "provider",
    "orders_relay",
    "stock_relay",
    "shipping_relay",
    "payments_relay",
];

fn program() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_node")).with_file_name("shop")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_of_either_style_is_one_trace_from_the_request_to_the_provider() {
    let collector = Collector::start().await;
    let shop = Shop::open(
        &program(),
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()), ("OTEL_BSP_SCHEDULE_DELAY", "200")],
    )
    .await;

    for style in ["choreography", "orchestration"] {
        let order = Uuid::now_v7();
        let answer = shop.place(order, &json!({ "style": style })).await;
        assert_eq!(answer.code, 201, "{answer:?}");
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        let (saga, trace) = (answer["saga"].as_str().unwrap(), answer["trace"].as_str().unwrap());
        shop.order_is(order, "completed", END_MAX).await;

        let spans = collector.whole(trace, &PROCESSES, SENT_MAX).await;

        let root = spans.iter().find(|span| span.parent.is_empty()).unwrap();
        assert_eq!((&*root.service, &*root.name), ("storefront", "POST /api/orders"));
        let story = shop.json(&format!("/api/orders/{saga}/story")).await;
        assert_eq!(story["trace"], trace, "{style}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_while_the_page_is_open_is_put_right() {
    let mut shop = Shop::open(&program(), &[]).await;

    a_double_click_is_one_order_and_the_trace_that_is_given_is_kept(&shop).await;
    an_order_that_makes_no_sense_is_refused_in_words(&shop).await;
    dead_letters_are_listed_and_retried_once_the_fault_is_gone(&shop).await;
    a_service_that_is_killed_comes_back_and_ends_what_was_under_way(&shop).await;
    kafka_may_be_away(&shop).await;
    books_are_right(&shop).await;

    shop.ask_to_stop();
    let status = shop.ends(Duration::from_secs(30)).await;
    assert!(status.success(), "{status}: {}", shop.log());
}

async fn a_double_click_is_one_order_and_the_trace_that_is_given_is_kept(shop: &Shop) {
    let (order, trace) = (Uuid::now_v7(), "4bf92f3577b34da6a3ce929d0e0e4736");
    let headers =
        format!("idempotency-key: {order}\r\ntraceparent: 00-{trace}-00f067aa0ba902b7-01\r\n");
    let body = json!({ "style": "orchestration" }).to_string();

    let click = || shop.ask("POST", "/api/orders", &headers, &body);
    let (first, second) = tokio::join!(click(), click());
    let third = click().await;

    // Of two at the same time the later one may be told that the earlier one is being handled.
    let told: Vec<_> = [first, second].into_iter().filter(|answer| answer.code != 409).collect();
    for answer in told.iter().chain([&third]) {
        assert_eq!((answer.code, &answer.body), (201, &third.body));
    }
    let answer: Value = serde_json::from_str(&third.body).expect("it is json");
    assert_eq!(answer.get("trace"), Some(&json!(trace)));
    let orders = shop.order_is(order, "completed", END_MAX).await;
    let is = |it: &&Value| it.get("id") == Some(&json!(order.to_string()));
    assert_eq!(orders.as_array().into_iter().flatten().filter(is).count(), 1);
}

/// A negative quantity would put goods on the shelf, and a negative price money into a pocket.
async fn an_order_that_makes_no_sense_is_refused_in_words(shop: &Shop) {
    for (wish, about) in [
        (json!({}), "style"),
        (json!({ "style": "orchestration", "quantity": -1 }), "quantity"),
        (json!({ "style": "choreography", "cents": 0 }), "cents"),
        (json!({ "style": "choreography", "sku": "" }), "sku"),
    ] {
        let answer = shop.place(Uuid::now_v7(), &wish).await;
        assert_eq!(answer.code, 400, "{answer:?}");
        let told: Value = serde_json::from_str(&answer.body).expect("it is json");
        let problem = told.get("problem").and_then(Value::as_str).unwrap_or_default();
        assert!(problem.contains(about), "{answer:?}");
    }
}

async fn dead_letters_are_listed_and_retried_once_the_fault_is_gone(shop: &Shop) {
    shop.trouble("poison", true).await;
    let order = Uuid::now_v7();
    shop.place(order, &json!({ "style": "choreography" })).await;
    shop.order_is(order, "completed", END_MAX).await;
    let is_one = |letters: &Value| letters.as_array().is_some_and(|all| all.len() == 1);
    let letters = shop.until("/api/dead-letters", END_MAX, is_one).await;
    let told = |name: &str| letters.pointer(&format!("/0/{name}")).and_then(Value::as_str);
    assert_eq!((told("service"), told("topic")), (Some("storefront"), Some("orders.facts")));
    assert_eq!(told("state"), Some("dead"));
    let path = format!("/api/dead-letters/storefront/{}/retry", told("id").expect("it has an id"));

    shop.trouble("poison", false).await;
    let answer = shop.ask("POST", &path, "", "").await;

    assert_eq!(answer.code, 204, "{answer:?}");
    let is_empty = |letters: &Value| letters.as_array().is_some_and(Vec::is_empty);
    shop.until("/api/dead-letters", END_MAX, is_empty).await;
    assert_eq!(shop.ask("POST", &path, "", "").await.code, 409);
    let nowhere = shop.ask("POST", "/api/dead-letters/nobody/dead:1/retry", "", "").await;
    assert_eq!(nowhere.code, 404);
}

async fn a_service_that_is_killed_comes_back_and_ends_what_was_under_way(shop: &Shop) {
    let orders = [Uuid::now_v7(), Uuid::now_v7()];
    for (order, style) in orders.into_iter().zip(["choreography", "orchestration"]) {
        let answer = shop.place(order, &json!({ "style": style })).await;
        assert_eq!(answer.code, 201, "{answer:?}");
    }

    kill_process(shop.pid("stock"), Signal::KILL).expect("it runs");

    for order in orders {
        shop.order_is(order, "completed", END_MAX).await;
    }
    shop.process("stock").readiness(200, "", END_MAX).await;
}

async fn kafka_may_be_away(shop: &Shop) {
    shop.trouble("kafka-stopped", true).await;
    let order = Uuid::now_v7();
    let answer = shop.place(order, &json!({ "style": "orchestration" })).await;
    assert_eq!(answer.code, 201, "{answer:?}");

    shop.trouble("kafka-stopped", false).await;

    shop.order_is(order, "completed", END_MAX).await;
}

async fn books_are_right(shop: &Shop) {
    let right = |state: &Value| {
        let books = |name: &str| state.pointer(&format!("/stage/books/shop/{name}"));
        let is_zero = |name: &str| books(name) == Some(&json!(0));
        books("ended") == Some(&json!(5))
            && ["running", "wrong", "settling"].into_iter().all(is_zero)
    };
    shop.until("/api/state", END_MAX, right).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_the_flag_that_takes_another() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = tokio::process::Command::new(program());
    command.args(["--http", &address]).kill_on_drop(true);

    let output = tokio::time::timeout(Duration::from_secs(120), command.output()).await;

    let output = output.expect("it ends in time").expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(&address) && said.contains("--http"), "{said}");
}
