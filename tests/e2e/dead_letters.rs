//! What a consumer gives up arrives in the topic of dead letters, by way of the log and the relay.

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use tailrace_idempotency::{BoxError, Config, Consumer, Cx, Outcome};
use tailrace_outbox::schema;
use tests::Variant;
use tests::reader::Seen;
use tokio::sync::oneshot;

use crate::run::{LEAD_MAX, PUBLISH_MAX, site, stop};

const GOOD: &str = "019a9c6e-0000-7000-8000-000000000001";
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

async fn refuse(_: Cx<'_>, _: serde_json::Value) -> Result<Outcome, BoxError> {
    Ok(Outcome::reject("no such article"))
}

/// A record of a foreign producer: a header with bytes, one twice, and names that are not for writers.
fn headers(id: &str) -> OwnedHeaders {
    let texts = [
        ("ce_specversion", "1.0"),
        ("ce_id", id),
        ("ce_type", "order.placed.v1"),
        ("ce_source", "/orders"),
        ("ce_subject", "order-7"),
        ("ce_sequence", "r1:0000"),
        ("ce_correlationid", "first"),
        ("traceparent", TRACE),
        ("content-type", "application/json"),
        ("tenant", "acme"),
        ("tenant", "other"),
        ("Ce_odd", "x"),
    ];
    let texts = texts.into_iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value) })
    });
    texts.insert(Header { key: "bytes", value: Some(&b"\xff"[..]) })
}

#[tokio::test]
async fn what_a_consumer_gives_up_arrives_in_the_topic_of_dead_letters_as_it_was() {
    let mut site = site("consumers_dead_letters").await;
    let [from, to] = &*site.topics else { panic!("a site has two topics") };
    let (from, to) = (from.clone(), to.clone());
    let mut connection = site.connect().await;
    tailrace_idempotency::schema::install(&mut connection).await.expect("there are tables");
    schema::install(&mut connection).await.expect("the outbox has its functions");
    // What is written before there is a slot is published by nobody.
    let mut relay = site.relay(Variant::default());
    relay.says("leading", LEAD_MAX).await;
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &site.brokers);
    let producer: BaseProducer = config.create().expect("the settings are valid");
    for (id, key, payload) in [
        (GOOD, &b"order-7"[..], &br#"{"order":7}"#[..]),
        ("019a9c6e-0000-7000-8000-000000000002", b"\xfe\xff", b"no json"),
    ] {
        let record = BaseRecord::to(&from).key(key).payload(payload).partition(0);
        producer
            .send(record.headers(headers(id)))
            .map_err(|(error, _)| error)
            .expect("it is queued");
    }
    producer.flush(LEAD_MAX).expect("the records are sent");

    let (end, ended) = oneshot::channel::<()>();
    let config = Config::new("shop", &site.brokers, site.pool.clone()).dead_letter_topic(Some(&to));
    let consumer = Consumer::new(config).topic(&from).on("order.placed.v1", refuse);
    let consumer = tokio::spawn(consumer.run(async move { drop(ended.await) }));
    site.topics = vec![to];
    site.read_until(PUBLISH_MAX, |seen| seen.len() >= 2).await;
    end.send(()).expect("the consumer runs");
    let report = consumer.await.expect("it ends").expect("it ends well");
    stop(&mut relay).await;

    assert_eq!((report.dead_lettered, report.rejected), (2, 1));
    let mut seen = site.read_to_end().await;
    // They may stand in different partitions.
    seen.sort_by_key(|letter| letter.header("tailrace-dead-reason") != "rejected");
    let [rejected, undecodable] = &*seen else { panic!("{seen:?}") };
    assert_eq!(rejected.key.as_deref(), Some(&b"order-7"[..]));
    assert_eq!(rejected.value.as_deref(), Some(&br#"{"order":7}"#[..]));
    assert_eq!(told(rejected), golden(GOOD, &from, "0", "rejected", "no such article"));
    // No text holds the key of the other.
    assert_eq!(undecodable.key, None);
    assert_eq!(undecodable.header("tailrace-dead-key-hex"), "feff");
    assert_eq!(undecodable.value.as_deref(), Some(&b"no json"[..]));
    assert_eq!(undecodable.header("tailrace-dead-reason"), "undecodable");
    let rows: i64 = sqlx::query_scalar("select count(*) from tailrace.dead_letter")
        .fetch_one(&site.pool)
        .await
        .expect("the table is there");
    assert_eq!(rows, 2);
}

#[tokio::test]
async fn a_topic_of_dead_letters_needs_the_function_that_writes_to_it() {
    let site = site("dead_letters_unwritable").await;
    let topic = site.topics.first().expect("a site has topics").clone();
    let mut connection = site.connect().await;
    tailrace_idempotency::schema::install(&mut connection).await.expect("there are tables");
    let config = Config::new("shop", &site.brokers, site.pool.clone())
        .dead_letter_topic(Some("{topic}.dead-letter"));
    let consumer = Consumer::new(config).topic(&topic).on("order.placed.v1", refuse);

    let missing = consumer.run(std::future::pending()).await.expect_err("it is refused");

    assert!(missing.to_string().contains("tailrace.emit_bytes is missing"), "{missing}");
}

/// All headers but those that say when.
fn told(record: &Seen) -> Vec<(&str, &str)> {
    let mut told: Vec<(&str, &str)> = record
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| !["tailrace-dead-at", "ce_sequence", "ce_time"].contains(name))
        .collect();
    told.sort_unstable();
    told
}

/// The form that the wire contract gives a dead letter.
fn golden<'a>(
    id: &'a str,
    topic: &'a str,
    offset: &'a str,
    reason: &'a str,
    detail: &'a str,
) -> Vec<(&'a str, &'a str)> {
    vec![
        ("ce_correlationid", "first"),
        ("ce_id", id),
        ("ce_source", "/orders"),
        ("ce_specversion", "1.0"),
        ("ce_subject", "order-7"),
        ("ce_type", "order.placed.v1"),
        ("content-type", "application/json"),
        ("tailrace-dead-attempts", "1"),
        ("tailrace-dead-component", "shop"),
        ("tailrace-dead-detail", detail),
        ("tailrace-dead-offset", offset),
        ("tailrace-dead-partition", "0"),
        ("tailrace-dead-reason", reason),
        ("tailrace-dead-topic", topic),
        ("tenant", "acme"),
        ("traceparent", TRACE),
    ]
}
