//! A consumer that knows messages by the sequence of the relay that has published them.

use std::collections::HashSet;
use std::time::Duration;

use rustix::process::Signal;
use sqlx::PgPool;
use tailrace_cdc_relay::Milestone;
use tailrace_idempotency::{Config, Consumer, Cx, Dedupe, Kind, Outcome};
use tailrace_outbox::Message;
use tests::crash_point::CrashPoint;
use tests::process::Process;
use tests::reader::Seen;
use tests::{Site, Variant};

use crate::run::{LEAD_MAX, PUBLISH_MAX, initialize, node, site, stop};

/// All messages have their effect by then.
const APPLY_MAX: Duration = Duration::from_secs(90);

const KEYS: i64 = 7;

async fn prepared(name: &str) -> Site {
    let site = site(name).await;
    let mut connection = site.connect().await;
    tailrace_idempotency::schema::install(&mut connection).await.expect("there are tables");
    sqlx::raw_sql("CREATE TABLE effect (n bigserial, message_id uuid, number bigint)")
        .execute(&mut connection)
        .await
        .expect("there is a table for effects");
    initialize(&site).await;
    site
}

fn topic(site: &Site) -> &str {
    site.topics.first().expect("a site has topics")
}

/// Commits a message after the other.
async fn write(site: &Site, numbers: std::ops::Range<i64>) {
    let mut connection = site.connect().await;
    for number in numbers {
        let message = Message::builder(topic(site), "numbered.v1").source("/orders");
        let message = message.key(format!("key-{}", number % KEYS));
        let message = message.json(&serde_json::json!({ "number": number }));
        let message = message.build().expect("it keeps every rule");
        tailrace_outbox::write(&mut connection, &message).await.expect("it is written");
    }
}

async fn count(pool: &PgPool, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(pool).await.expect("it is counted")
}

async fn applied(pool: &PgPool, enough: i64) {
    let looking = async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        while count(pool, "SELECT count(*) FROM effect").await < enough {
            tick.tick().await;
        }
    };
    tokio::time::timeout(APPLY_MAX, looking).await.expect("the messages are applied");
}

fn consumer(site: &Site, lanes: &str) -> Process {
    let arguments = [
        "consumer",
        "--database-url",
        &site.url,
        "--kafka-brokers",
        &site.brokers,
        "--group",
        "shop",
        "--topic",
        topic(site),
        "--batch-records",
        "5",
        "--by-position",
        // The shortest that brokers allow: one of them is killed.
        "--session-ms",
        "6000",
        "--lanes",
        lanes,
    ];
    Process::start(&node(), arguments)
}

#[tokio::test]
async fn a_relays_sequence_is_enough_through_deaths_of_both_sides_and_a_seek_back() {
    let site = prepared("positions").await;
    let dying = Variant {
        die_at: Some(CrashPoint::at(Milestone::Committing, 4)),
        batch_records: Some(10),
        ..Variant::default()
    };
    let mut doomed = site.relay(dying);
    let mut first = consumer(&site, "2");
    tokio::join!(write(&site, 0..150), doomed.ends(LEAD_MAX));
    let mut relay = site.relay(Variant::default());
    applied(&site.pool, 60).await;
    first.signal(Signal::KILL);
    first.ends(LEAD_MAX).await;
    let mut second = consumer(&site, "3");
    write(&site, 150..200).await;
    applied(&site.pool, 200).await;
    stop(&mut second).await;

    sqlx::query(
        "SELECT tailrace.seek_consumer('shop', $1, number, 0) FROM generate_series(0, 2) AS number",
    )
    .bind(topic(&site))
    .execute(&site.pool)
    .await
    .expect("progress is set back");
    let mut third = consumer(&site, "1");
    write(&site, 200..220).await;
    applied(&site.pool, 220).await;
    stop(&mut third).await;
    stop(&mut relay).await;

    let doubled = "SELECT count(*) - count(DISTINCT number) FROM effect";
    let disordered = "SELECT count(*) FROM (
        SELECT number < lag(number) OVER (PARTITION BY number % 7 ORDER BY n) AS late FROM effect) AS pairs
        WHERE late";
    assert_eq!(count(&site.pool, "SELECT count(*) FROM effect").await, 220);
    assert_eq!(count(&site.pool, doubled).await, 0);
    assert_eq!(count(&site.pool, disordered).await, 0);
    assert_eq!(count(&site.pool, "SELECT count(*) FROM tailrace.processed_message").await, 0);
}

async fn ignore(_: Cx<'_>, _: serde_json::Value) -> Result<Outcome, sqlx::Error> {
    Ok(Outcome::Done)
}

#[tokio::test]
async fn what_a_relay_that_delivers_at_least_once_repeats_halts_a_consumer_by_position() {
    let site = prepared("positions_repeated").await;
    let milestones = [Milestone::Committing, Milestone::Produced, Milestone::Committed];
    for (from, milestone) in (0..).step_by(10).zip(milestones) {
        let variant = Variant {
            die_at: Some(CrashPoint::at(milestone, 5)),
            batch_records: Some(1),
            at_least_once: true,
            ..Variant::default()
        };
        let mut doomed = site.relay(variant);
        tokio::join!(doomed.ends(LEAD_MAX), write(&site, from..from + 10));
    }
    let mut relay = site.relay(Variant { at_least_once: true, ..Variant::default() });
    site.read_until(PUBLISH_MAX, |seen| ids(seen).len() >= 30).await;
    stop(&mut relay).await;
    let seen = site.read_to_end().await;
    assert!(seen.len() > ids(&seen).len(), "relays died between records and checkpoint");

    let config = Config::new("shop", &site.brokers, site.pool.clone()).dedupe(Dedupe::Position);
    let consumer = Consumer::new(config).topic(topic(&site)).on("numbered.v1", ignore);
    let ended = tokio::time::timeout(APPLY_MAX, consumer.run(std::future::pending())).await;
    let error = ended.expect("the consumer ends").expect_err("it halts");

    assert_eq!(error.kind(), Kind::Sequence, "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("{:?} goes back", site.relay_id)), "{text}");
    assert!(text.contains("tailrace inbox dedupe"), "{text}");
}

fn ids(seen: &[Seen]) -> HashSet<&str> {
    seen.iter().map(|record| record.header("ce_id")).collect()
}
