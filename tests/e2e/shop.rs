//! The shop that is open: its page, one trace through all of its services, dead letters and the way back, a service that
//! is killed, Kafka that is away, an order that is placed twice, and its end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tests::collector::Collector;
use tests::shop::Shop;
use tests::shop_outage::kafka_is_away;
use uuid::Uuid;

use crate::shop_page::Page;

/// An order has ended by then, whatever is in its way, on a busy machine and without optimisation.
const END_MAX: Duration = Duration::from_secs(90);
/// The last spans are sent by then.
const SENT_MAX: Duration = Duration::from_secs(30);

/// Everything has ended by then when the shop is asked to close.
const CLOSE_MAX: Duration = Duration::from_secs(60);
/// How long Kafka is away; in full, by `prove -- shop`, for a minute.
const AWAY: Duration = Duration::from_secs(10);

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

/// One shop for all of it: to open one takes longer than most of what is asked of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_while_the_page_is_open_is_put_right() {
    let collector = Collector::start().await;
    let environment =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()), ("OTEL_BSP_SCHEDULE_DELAY", "200")];
    let mut shop = Shop::open(&program(), &environment).await;
    // First, while nobody has ordered: the page has to say so. Where there is no browser it has been told.
    let page = Page::open(&shop).await;
    if let Some(page) = &page {
        page.shows_orders_and_what_becomes_of_them_in_trouble(&shop).await;
    }

    an_order_of_either_style_is_one_trace_from_the_request_to_the_provider(&shop, &collector).await;
    a_double_click_is_one_order_and_the_trace_that_is_given_is_kept(&shop).await;
    an_order_that_makes_no_sense_is_refused_in_words(&shop).await;
    dead_letters_are_listed_and_retried_once_the_fault_is_gone(&shop).await;
    shop_rests(&shop).await;
    orders_that_are_placed_while_kafka_is_away_end_when_it_is_back(&shop, page.as_ref()).await;
    a_kafka_that_hangs_is_named_until_it_answers(&shop, page.as_ref()).await;

    if let Some(page) = &page {
        page.has_asked_nobody_else_and_complained_of_nothing_else().await;
    }
    shop.closes(CLOSE_MAX).await;
}

async fn an_order_of_either_style_is_one_trace_from_the_request_to_the_provider(
    shop: &Shop,
    collector: &Collector,
) {
    for style in ["choreography", "orchestration"] {
        let order = Uuid::now_v7();
        let answer = shop.place(order, &json!({ "style": style })).await;
        assert_eq!(answer.code, 201, "{answer:?}");
        let answer: Value = serde_json::from_str(&answer.body).expect("it is json");
        let told = |name: &str| answer.get(name).and_then(Value::as_str).expect("it is told");
        let (saga, trace) = (told("saga"), told("trace"));
        shop.order_is(order, "completed", END_MAX).await;

        let spans = collector.whole(trace, &PROCESSES, SENT_MAX).await;

        let root = spans.iter().find(|span| span.parent.is_empty()).expect("a trace has a root");
        assert_eq!((&*root.service, &*root.name), ("storefront", "POST /api/orders"));
        let story = shop.json(&format!("/api/orders/{saga}/story")).await;
        assert_eq!(story.get("trace"), Some(&json!(trace)), "{style}");
    }
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
        // Postgres stores no NUL: once taken, it would be poison in every service.
        (json!({ "style": "choreography", "address": "Ki\u{0}el" }), "address"),
        (json!({ "style": "choreography", "quantity": 1.5 }), "quantity"),
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

/// Nothing is under way, and all books are right.
async fn shop_rests(shop: &Shop) {
    let rests = |state: &Value| {
        let books = |name: &str| state.pointer(&format!("/stage/books/shop/{name}"));
        ["running", "wrong", "settling"].into_iter().all(|name| books(name) == Some(&json!(0)))
    };
    shop.until("/api/state", END_MAX, rests).await;
}

async fn orders_that_are_placed_while_kafka_is_away_end_when_it_is_back(
    shop: &Shop,
    page: Option<&Page>,
) {
    if let Some(page) = page {
        page.stops_kafka().await;
    }
    let on_the_page = async {
        match page {
            Some(page) => page.takes_orders_and_says_that_kafka_is_stopped().await,
            None => 0,
        }
    };

    kafka_is_away(shop, AWAY, on_the_page).await;
}

/// Nobody has switched it off, so nobody can say that it is: it has to be seen.
async fn a_kafka_that_hangs_is_named_until_it_answers(shop: &Shop, page: Option<&Page>) {
    let broker = shop.broker();

    kill_process(broker, Signal::STOP).expect("it runs");

    shop.until("/api/state", END_MAX, |state| state["kafka_away_since_ms"].is_u64()).await;
    if let Some(page) = page {
        page.says("Kafka has not answered since").await;
    }
    kill_process(broker, Signal::CONT).expect("it is stopped");
    shop.until("/api/state", END_MAX, |state| state["kafka_away_since_ms"].is_null()).await;
    if let Some(page) = page {
        page.says("All is well").await;
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_one_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (arguments, told) in [
        (&["--http", &address][..], &[&address, "--http"][..]),
        (&["--http", "here"], &["--http", "here"]),
        (&["--http", "localhost:8080"], &["--http", "localhost:8080", "127.0.0.1:8080"]),
        (&["--headless", "--orders", "0"], &["--orders", "1..=100000"]),
        (&["--headless", "--seed", "seven"], &["--seed", "seven"]),
        (&["--headless", "--trouble", "floods"], &["--trouble", "floods", "relay-crash"]),
        (&["--headless", "--trouble", "all,none"], &["--trouble", "\"all\" stands alone"]),
        (&["--headless", "--inject-bug", "gremlins"], &["--inject-bug"]),
        (&["--orders", "5"], &["--headless"]),
        (&["--service", "kitchen"], &["kitchen", "payments"]),
        (&["--service", "payments"], &["DATABASE_URL", "KAFKA_BROKERS", "SHOP_PROVIDER_URL"]),
        (&["--prepare"], &["DATABASE_URL", "KAFKA_BROKERS"]),
    ] {
        let mut command = tokio::process::Command::new(program());
        command.args(arguments).kill_on_drop(true);
        command.env_remove("DATABASE_URL").env_remove("KAFKA_BROKERS");

        let output = tokio::time::timeout(Duration::from_secs(60), command.output()).await;

        let output = output.expect("it ends in time").expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert_eq!(said.matches("error:").count(), 1, "{arguments:?}: {said}");
        for told in told {
            assert!(said.contains(told), "{arguments:?}: {told} is not in {said}");
        }
    }
}
