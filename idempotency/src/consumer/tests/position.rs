//! Messages that are known by their place in the source.

use super::*;
use crate::dedupe::{Dedupe, Unsequenced};
use crate::inbox::{self, By, To};

fn by_position(bed: &Bed, topic: &str) -> Config {
    Config::new(topic, bed.brokers(), bed.pool.clone())
        .dedupe(Dedupe::Position)
        .batch_records_max(20)
}

fn with(config: Config, topic: &str) -> Consumer {
    Consumer::new(config).topic(topic).on("numbered.v1", effect)
}

fn sequence(incarnation: u32, lsn: u64) -> String {
    format!("orders:{incarnation:08x}{lsn:016x}{:08x}", 0)
}

/// As a relay that delivers exactly once publishes them: one after another, numbered over all partitions.
fn published(numbers: std::ops::Range<i64>, keys: i64) -> Vec<Outgoing> {
    let record = |number: i64| {
        let sequence = sequence(1, u64::try_from(number).unwrap() + 100);
        numbered(&format!("key-{}", number % keys), number).with("ce_sequence", &sequence)
    };
    numbers.map(record).collect()
}

async fn sought(bed: &Bed, topic: &str, to: i64) {
    let quiet = "UPDATE tailrace.consumer_progress SET updated_at = now() - interval '5 minutes'";
    bed.execute(quiet).await;
    let mut conn = bed.pool.acquire().await.unwrap();
    inbox::seek(&mut conn, topic, topic, 0, To::Offset(to), &By::new("anna")).await.unwrap();
}

async fn changed(bed: &Bed, consumer: &str, to: Dedupe) {
    let quiet = "UPDATE tailrace.consumer_progress SET updated_at = now() - interval '5 minutes'";
    bed.execute(quiet).await;
    let mut conn = bed.pool.acquire().await.unwrap();
    inbox::set_dedupe(&mut conn, consumer, to, &By::new("anna")).await.unwrap();
}

const CLAIMS: &str = "SELECT (SELECT count(*) FROM tailrace.processed_message)
    + (SELECT count(*) FROM tailrace.processed_opaque)";

#[tokio::test(flavor = "multi_thread")]
async fn progress_that_was_set_back_repeats_no_effect_without_a_row_per_message() {
    let bed = bed("position_back").await;
    let topic = bed.topic("position_back", 1).await;
    produce(bed.brokers(), &topic, &published(0..300, 17));

    for (lanes, back_to) in [(3, 0), (2, 120), (4, 7)] {
        let running = start(with(by_position(&bed, &topic).lanes(lanes), &topic));
        let end = bed.end_of(&topic);
        until(async || bed.count(LOWEST).await == end).await;
        running.stop().await.unwrap();
        sought(&bed, &topic, back_to).await;
        let more = published(end..end + 40, 17);
        produce(bed.brokers(), &topic, &more);
    }
    let running = start(with(by_position(&bed, &topic), &topic));
    until(async || bed.count(LOWEST).await == 420).await;
    let report = running.stop().await.unwrap();

    assert_eq!(report.applied, 40);
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 420);
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
    assert_eq!(bed.count(CLAIMS).await, 0);
    let highest = r#"SELECT max("offset") FROM tailrace.consumer_position WHERE relay = 'orders'"#;
    assert_eq!(bed.count(highest).await, 419);
}

const LOWEST: &str =
    "SELECT coalesce(min(coalesce(next_offset, 0)), 0) FROM tailrace.consumer_progress";

/// Everything that positions rest on is broken once.
#[tokio::test(flavor = "multi_thread")]
async fn what_positions_rest_on_is_told_with_a_way_on_and_nothing_is_applied_twice() {
    let bed = bed("position_breaks").await;
    let before = || published(0..10, 3);
    let again = numbered("key-1", 99).with("ce_sequence", &sequence(1, 50));
    let anew = numbered("key-1", 99).with("ce_sequence", &sequence(2, 7));
    let replayed = numbered("key-1", 99).with("ce_replay", "1");
    let cases = [
        (before()[9].clone(), "goes back behind offset"),
        (again, "goes back behind offset"),
        (anew, "has begun incarnation 2 after 1"),
        (replayed, "a record of a replay has no ce_sequence"),
        (numbered("key-1", 99).with("ce_sequence", "orders:7"), "not what a relay writes"),
    ];
    let mut halting = Vec::new();
    for (record, text) in cases {
        let topic = bed.topic("position_breaks", 1).await;
        produce(bed.brokers(), &topic, &before());
        produce(bed.brokers(), &topic, &[record]);
        halting.push((start(with(by_position(&bed, &topic), &topic)), topic, text));
    }
    for (running, topic, text) in halting {
        let error = running.end().await;

        let shown = error.to_string();
        assert_eq!(error.kind(), Kind::Sequence, "{shown}");
        assert!(shown.contains(text), "{shown}");
        assert!(shown.contains(&format!("topic {topic} partition 0 offset 10")), "{shown}");
        assert!(shown.contains("tailrace inbox "), "{shown}");
    }
    // What stands before is applied: whoever passes over the record by hand passes over nothing else.
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 50);
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_on_from_a_repetition_is_to_pass_over_it_and_that_from_a_new_incarnation_to_begin_anew()
 {
    let bed = bed("position_ways_on").await;
    let topic = bed.topic("position_ways_on", 1).await;
    let first = published(0..10, 3);
    produce(bed.brokers(), &topic, &first);
    produce(bed.brokers(), &topic, &first[6..]);
    produce(bed.brokers(), &topic, &published(10..20, 3));
    let repeated = start(with(by_position(&bed, &topic), &topic)).end().await;
    assert_eq!(repeated.position().unwrap().offset.get(), 10);

    sought(&bed, &topic, 14).await;
    let anew = numbered("key-1", 20).with("ce_sequence", &sequence(2, 1));
    produce(bed.brokers(), &topic, &[anew]);
    let halted = start(with(by_position(&bed, &topic), &topic)).end().await;
    assert_eq!(halted.position().unwrap().offset.get(), 24);
    changed(&bed, &topic, Dedupe::Position).await;
    let running = start(with(by_position(&bed, &topic), &topic));
    until(async || bed.count("SELECT count(*) FROM effect").await == 21).await;
    running.stop().await.unwrap();

    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_way_to_know_messages_is_told_at_the_start_and_changed_by_hand_alone() {
    let bed = bed("position_changed").await;
    let topic = bed.topic("position_changed", 1).await;
    produce(bed.brokers(), &topic, &published(0..30, 5));
    let by_ids = || consumer(&bed, &topic, &topic);
    let running = start(by_ids());
    running.applied(30).await;
    running.stop().await.unwrap();

    let refused = start(with(by_position(&bed, &topic), &topic)).end().await;
    changed(&bed, &topic, Dedupe::Position).await;
    produce(bed.brokers(), &topic, &published(30..60, 5));
    let running = start(with(by_position(&bed, &topic), &topic));
    running.applied(30).await;
    running.stop().await.unwrap();
    let refused_back = start(by_ids()).end().await;
    changed(&bed, &topic, Dedupe::ProcessedMessages).await;
    // Of the second half there are no ids: that it is applied is known by what was reached.
    sought(&bed, &topic, 0).await;
    produce(bed.brokers(), &topic, &published(60..90, 5));
    let running = start(by_ids());
    running.applied(30).await;
    running.stop().await.unwrap();

    for refused in [refused, refused_back] {
        assert_eq!(refused.kind(), Kind::Sequence, "{refused}");
        assert!(refused.to_string().contains("is configured to know them by"), "{refused}");
    }
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 90);
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_grows_halts_a_consumer_by_position_also_while_it_runs() {
    let bed = bed("position_grows").await;
    let topic = bed.topic("position_grows", 1).await;
    produce(bed.brokers(), &topic, &published(0..10, 3));
    let running = start(with(by_position(&bed, &topic), &topic));
    running.applied(10).await;

    topics::grow(&bed, &topic, 3).await;
    let error = running.end().await;
    let again = start(with(by_position(&bed, &topic), &topic)).end().await;

    for error in [error, again] {
        assert_eq!(error.kind(), Kind::Sequence, "{error}");
        assert!(error.to_string().contains("has 3 partitions and had 1"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_without_a_sequence_may_be_known_by_their_ids() {
    let bed = bed("position_unsequenced").await;
    let topic = bed.topic("position_unsequenced", 1).await;
    let foreign: Vec<_> = (100..110).map(|number| numbered("key-1", number)).collect();
    produce(bed.brokers(), &topic, &published(0..10, 3));
    produce(bed.brokers(), &topic, &foreign);
    produce(bed.brokers(), &topic, &foreign);
    produce(bed.brokers(), &topic, &published(10..20, 3));

    let config = by_position(&bed, &topic).unsequenced(Unsequenced::Claim);
    let running = start(with(config, &topic));
    running.delivered(40).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.duplicates), (30, 10));
    assert_eq!(bed.count(CLAIMS).await, 10);
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_is_known_by_its_row_and_is_applied_once() {
    async fn picky(cx: Cx<'_>, message: Numbered) -> Result<Outcome, BoxError> {
        let open: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM gate)").fetch_one(&mut *cx.conn).await?;
        if !open && cx.meta.key() == Some(b"key-1") {
            return Err("closed".into());
        }
        effect(cx, message).await
    }
    let bed = bed("position_parked").await;
    bed.execute("CREATE TABLE gate (open bool)").await;
    let topic = bed.topic("position_parked", 1).await;
    produce(bed.brokers(), &topic, &published(0..60, 3));
    let short = Duration::from_millis(50);
    let config = || by_position(&bed, &topic).parked_wait(short, short).attempts_max(10_000);
    let picky = || Consumer::new(config()).topic(&topic).on("numbered.v1", picky);
    let running = start(picky());
    until(async || bed.count(LOWEST).await == 60).await;
    running.stop().await.unwrap();
    assert_eq!(bed.count("SELECT count(*) FROM tailrace.parked_message").await, 20);

    sought(&bed, &topic, 0).await;
    let running = start(picky());
    until(async || bed.count(LOWEST).await == 60).await;
    bed.execute("INSERT INTO gate VALUES (true)").await;
    until(async || bed.count("SELECT count(*) FROM tailrace.parked_message").await == 0).await;
    running.stop().await.unwrap();

    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 60);
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
}
