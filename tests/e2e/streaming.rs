//! Large transactions that are received while they are in progress.

use std::collections::BTreeMap;
use std::ops::Range;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tests::crash_point::CrashPoint;
use tests::endpoint::Endpoint;
use tests::events::{MAPPING, numbers};
use tests::process::Process;
use tests::{Site, Streaming, Variant};

use crate::complaint::refuses;
use crate::run::{LEAD_MAX, PUBLISH_MAX, site, stop};

const SETTINGS: i32 = 2;

/// Far less than the transactions here have, so that most of each is spooled.
const STREAMING: Streaming = Streaming { memory: 100_000, spool_max: 1 << 30, off: false };

fn variant(streaming: Streaming) -> Variant {
    Variant { table: Some(MAPPING), rows_alone: Some(streaming), ..Variant::default() }
}

async fn site_of_events(name: &str) -> (Site, PgConnection) {
    let site = site(name).await;
    site.prepare_events().await;
    let connection = site.connect().await;
    (site, connection)
}

async fn leads(site: &Site, streaming: Streaming) -> Process {
    let mut relay = site.relay(variant(streaming));
    relay.says("leading", LEAD_MAX).await;
    relay
}

async fn insert(site: &Site, connection: &mut PgConnection, key: &str, numbers: Range<i32>) {
    site.insert_events(connection, key, 1, numbers).await;
}

async fn run(connection: &mut PgConnection, sql: &str) {
    connection.execute(AssertSqlSafe(sql.to_owned())).await.expect("the sql runs");
}

/// What the numbers of the keys are to be.
fn expect(keys: &[(&str, Range<i32>)]) -> BTreeMap<String, Vec<i32>> {
    keys.iter().map(|(key, range)| (format!("{key}0"), range.clone().collect())).collect()
}

/// Waits until there are so many records, stops the relay, and reads what is there then.
async fn published(site: &Site, relay: &mut Process, count: usize) -> BTreeMap<String, Vec<i32>> {
    site.read_until(PUBLISH_MAX, move |seen| seen.len() >= count).await;
    stop(relay).await;
    site.slot_is_not_above_the_checkpoint().await;
    numbers(&site.read_to_end().await)
}

#[tokio::test]
async fn what_is_streamed_is_published_once_in_order_when_it_commits_and_else_not() {
    let (site, mut one) = site_of_events("streamed").await;
    let mut two = site.connect().await;
    let mut relay = leads(&site, STREAMING).await;

    let mut a = one.begin().await.expect("a transaction");
    let mut b = two.begin().await.expect("a transaction");
    insert(&site, &mut a, "a", 0..3_000).await;
    insert(&site, &mut b, "b", 0..3_000).await;
    run(&mut a, "SAVEPOINT s").await;
    insert(&site, &mut a, "gone", 0..3_000).await;
    run(&mut a, "SAVEPOINT t").await;
    insert(&site, &mut a, "gone", 0..3_000).await;
    run(&mut a, "RELEASE t").await;
    insert(&site, &mut b, "b", 3_000..6_000).await;
    run(&mut a, "ROLLBACK TO s").await;
    insert(&site, &mut a, "a", 3_000..6_000).await;
    let mut three = site.connect().await;
    insert(&site, &mut three, "c", 0..10).await;
    b.rollback().await.expect("it is rolled back");
    // What commits meanwhile does not wait, and nothing else is there.
    site.read_until(PUBLISH_MAX, |seen| seen.len() == 10).await;
    a.commit().await.expect("it commits");
    let found = published(&site, &mut relay, 6_010).await;

    assert_eq!(found, expect(&[("a", 0..6_000), ("c", 0..10)]));
    assert!(relay.log().contains("streaming=true"), "{}", relay.log());
}

#[tokio::test]
async fn tables_that_change_inside_a_streamed_transaction_are_read_as_they_were() {
    let (site, mut one) = site_of_events("streamed_ddl").await;
    let mut relay = leads(&site, STREAMING).await;
    insert(&site, &mut one, "a", 0..10).await;

    let mut a = one.begin().await.expect("a transaction");
    insert(&site, &mut a, "a", 10..2_000).await;
    run(&mut a, "SAVEPOINT s; ALTER TABLE event RENAME body TO gone").await;
    run(&mut a, "INSERT INTO event (topic, key, gone) SELECT 't', 'gone', 'x' FROM generate_series(1, 2000)")
        .await;
    run(&mut a, "ROLLBACK TO s; ALTER TABLE event ADD more int DEFAULT 7, DROP kind").await;
    run(&mut a, "ALTER TABLE event ADD kind text NOT NULL DEFAULT 'Later'").await;
    insert(&site, &mut a, "a", 2_000..4_000).await;
    let topic = site.topics.first().expect("a site has topics");
    let mut copy = a
        .copy_in_raw("COPY event (topic, key, body) FROM STDIN")
        .await
        .expect("the server takes a copy");
    let lines: String = (4_000..6_000).map(|n| format!("{topic}\ta0\t{n}\n")).collect();
    copy.send(lines.as_bytes()).await.expect("rows are sent");
    copy.finish().await.expect("the copy ends");
    a.commit().await.expect("it commits");
    // Of the table as the streamed transaction has left it: the server does not describe it again.
    insert(&site, &mut one, "a", 6_000..6_010).await;
    let found = published(&site, &mut relay, 6_010).await;

    assert_eq!(found, expect(&[("a", 0..6_010)]));
    assert!(!relay.log().contains("dead letter"), "{}", relay.log());
}

#[tokio::test]
async fn a_row_too_large_to_be_received_becomes_a_dead_letter_streamed_or_not() {
    const ROW: &str = "INSERT INTO event (topic, key, kind, body)
                       VALUES ('t', 'large', 'K', repeat('x', 40 * 1024 * 1024))";
    for (name, off) in [("unread_streamed", false), ("unread_unstreamed", true)] {
        let (mut site, mut one) = site_of_events(name).await;
        let mut relay = leads(&site, Streaming { off, ..STREAMING }).await;

        let mut a = one.begin().await.expect("a transaction");
        insert(&site, &mut a, "a", 0..1_000).await;
        run(&mut a, ROW).await;
        insert(&site, &mut a, "a", 1_000..2_000).await;
        run(&mut a, "SAVEPOINT s").await;
        run(&mut a, ROW).await;
        run(&mut a, "ROLLBACK TO s").await;
        a.commit().await.expect("it commits");
        let found = published(&site, &mut relay, 2_000).await;

        assert_eq!(found, expect(&[("a", 0..2_000)]));
        site.topics = vec![format!("tailrace.dead-letter.{}", site.relay_id)];
        let letters = site.read_to_end().await;
        let [letter] = &*letters else { panic!("{letters:?}") };
        assert!(letter.header("tailrace-dead-detail").contains("longer than 32 MiB"), "{letter:?}");
    }
}

/// Killed in the middle of a transaction that is split, and gone on with in the other way each
/// time: an ordinal means the same in both.
#[tokio::test]
async fn a_split_transaction_goes_on_in_whichever_way_it_is_received() {
    let (site, mut one) = site_of_events("streamed_split").await;
    let mut relay = leads(&site, STREAMING).await;
    stop(&mut relay).await;
    let mut a = one.begin().await.expect("a transaction");
    let foreign =
        "SELECT pg_logical_emit_message(true, 'tailrace', 'x') FROM generate_series(1, 40)";
    insert(&site, &mut a, "a", 0..1_000).await;
    // Of these the server tells the relay, with no word that they were rolled back: what follows is
    // more than it keeps in memory.
    run(&mut a, &format!("{foreign}; SAVEPOINT s; {foreign}")).await;
    insert(&site, &mut a, "gone", 0..1_000).await;
    run(&mut a, "ROLLBACK TO s").await;
    insert(&site, &mut a, "a", 1_000..6_000).await;
    a.commit().await.expect("it commits");

    let unstreamed = Streaming { off: true, ..STREAMING };
    let no_room = Streaming { spool_max: 0, ..STREAMING };
    let lives = [
        (STREAMING, "committed:2"),
        (unstreamed, "flushed:1"),
        (STREAMING, "produced:900"),
        (no_room, "committed:1"),
        (STREAMING, "committing:2"),
        (unstreamed, "committed:1"),
    ];
    for (streaming, point) in lives {
        let die_at: CrashPoint = point.parse().expect("a point");
        let split_bytes = Some(100_000);
        let variant = Variant { die_at: Some(die_at), split_bytes, ..variant(streaming) };
        let mut relay = site.relay(variant);
        let status = relay.ends(LEAD_MAX).await;
        assert!(!status.success() && relay.log().contains("reached"), "{}", relay.log());
        site.slot_is_not_above_the_checkpoint().await;
    }
    let kept = Variant { rows_alone: None, ..variant(STREAMING) };
    let mut other = site.relay(kept);
    let status = other.ends(LEAD_MAX).await;
    assert_eq!(status.code(), Some(SETTINGS), "{}", other.log());
    assert!(other.log().contains("with relay.messages off"), "{}", other.log());
    let mut relay = leads(&site, STREAMING).await;
    let found = published(&site, &mut relay, 6_000).await;

    assert_eq!(found, expect(&[("a", 0..6_000)]));
    // From here on the other setting is free to be taken.
    let mut other = site.relay(kept);
    insert(&site, &mut one, "b", 0..10).await;
    let found = published(&site, &mut other, 6_010).await;
    assert_eq!(found, expect(&[("a", 0..6_000), ("b", 0..10)]));
}

#[tokio::test]
async fn a_full_spool_turns_streaming_off_and_loses_nothing() {
    let (site, mut one) = site_of_events("spool_full").await;
    let mut two = site.connect().await;
    let mut relay = leads(&site, Streaming { spool_max: 300_000, ..STREAMING }).await;

    let mut a = one.begin().await.expect("a transaction");
    insert(&site, &mut a, "a", 0..3_000).await;
    insert(&site, &mut two, "b", 0..10).await;
    insert(&site, &mut a, "a", 3_000..6_000).await;
    relay.says("going on without streaming", LEAD_MAX).await;
    relay.says("streaming=false", LEAD_MAX).await;
    insert(&site, &mut two, "b", 10..20).await;
    a.commit().await.expect("it commits");
    let found = published(&site, &mut relay, 6_020).await;

    assert_eq!(found, expect(&[("a", 0..6_000), ("b", 0..20)]));
}

#[tokio::test]
async fn a_spool_that_can_not_be_written_is_told_at_the_start_and_by_the_check() {
    let site = site("no_spool").await;
    let given = ["--no-messages", "--spool-directory=/nonexistent"].map(str::to_owned);

    let running = [site.run_arguments(), given.to_vec()].concat();
    refuses(&mut site.cdc_relay(&running), SETTINGS, &["/nonexistent", "--no-streaming"]).await;

    let checking = [site.arguments(&["check"]), given.to_vec()].concat();
    let mut check = site.cdc_relay(&checking);
    check.ends(LEAD_MAX).await;
    let log = check.log();
    assert!(log.lines().any(|line| line.starts_with("fail spool")), "{log}");
}

#[tokio::test]
async fn where_rows_alone_are_published_messages_are_counted_and_the_probe_still_returns() {
    let (site, mut one) = site_of_events("no_messages").await;
    let table = format!("--table={MAPPING}");
    let arguments = [site.run_arguments(), vec!["--no-messages".to_owned(), table]].concat();
    let mut relay = site.cdc_relay(&arguments);
    let endpoint = Endpoint::of(&mut relay).await;
    relay.says("leading", LEAD_MAX).await;

    let message =
        "SELECT pg_logical_emit_message(true, 'tailrace', 'x') FROM generate_series(1, 3)";
    run(&mut one, message).await;
    insert(&site, &mut one, "a", 0..5).await;
    let as_told = |status: &serde_json::Value| {
        let is = |key: &str, value: serde_json::Value| status.get(key) == Some(&value);
        is("streaming", true.into())
            && is("ignored", 3.into())
            && is("messages", 5.into())
            && status.get("probe_seconds").is_some_and(|took| took.is_number())
    };
    endpoint.status_until(PUBLISH_MAX, as_told).await;
    let found = published(&site, &mut relay, 5).await;

    assert_eq!(found, expect(&[("a", 0..5)]));
    assert_eq!(relay.log().matches("ignored a message").count(), 1, "{}", relay.log());
}
