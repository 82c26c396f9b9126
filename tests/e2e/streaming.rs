//! Large transactions that are received while they are in progress.

use std::collections::BTreeMap;
use std::ops::Range;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tests::reader::Seen;
use tests::{Site, Streaming, Variant};

use crate::run::{LEAD_MAX, PUBLISH_MAX, site, stop};

const MAPPING: &str = "public.event=topic=${topic}, id:id:uuid, key:key:text, type:kind:text, \
                       payload:body:text, source=/events";

/// Far less than the transactions here have, so that most of each is spooled.
const STREAMING: Streaming = Streaming { memory: 100_000, spool_max: 1 << 30 };

fn variant() -> Variant {
    Variant { table: Some(MAPPING), rows_alone: Some(STREAMING), ..Variant::default() }
}

/// A site with a table of messages, whose server streams what has more than the least it takes.
async fn site_of_events(name: &str) -> (Site, PgConnection) {
    let site = site(name).await;
    let mut connection = site.connect().await;
    connection
        .execute(
            "CREATE TABLE event (id uuid NOT NULL DEFAULT gen_random_uuid(), topic text NOT NULL, \
             key text NOT NULL, kind text NOT NULL DEFAULT 'Happened', body text NOT NULL)",
        )
        .await
        .expect("the table is made");
    let least = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET logical_decoding_work_mem = \
                 ''64kB''', current_database()); END $$";
    connection.execute(least).await.expect("it is set");
    (site, connection)
}

/// Rows of a key, each with its number.
async fn insert(site: &Site, connection: &mut PgConnection, key: &str, numbers: Range<i32>) {
    let topic = site.topics.first().expect("a site has topics");
    let insert = "INSERT INTO event (topic, key, body) \
                  SELECT $1, $2, n::text FROM generate_series($3, $4 - 1) n";
    let insert = sqlx::query(insert).bind(topic).bind(key).bind(numbers.start).bind(numbers.end);
    insert.execute(connection).await.expect("rows are inserted");
}

async fn run(connection: &mut PgConnection, sql: &str) {
    connection.execute(AssertSqlSafe(sql.to_owned())).await.expect("the sql runs");
}

/// The numbers of each key in the order in which they were read.
fn numbers(seen: &[Seen]) -> BTreeMap<String, Vec<i32>> {
    let mut keys: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for record in seen {
        let text = |bytes: &Option<Vec<u8>>| {
            String::from_utf8(bytes.clone().unwrap_or_default()).expect("text")
        };
        let number = text(&record.value).parse().expect("a number");
        keys.entry(text(&record.key)).or_default().push(number);
    }
    keys
}

fn expect(keys: &[(&str, Range<i32>)]) -> BTreeMap<String, Vec<i32>> {
    keys.iter().map(|(key, range)| ((*key).to_owned(), range.clone().collect())).collect()
}

#[tokio::test]
async fn what_is_streamed_is_published_once_in_order_when_it_commits_and_else_not() {
    let (site, mut one) = site_of_events("streamed").await;
    let mut two = site.connect().await;
    let mut relay = site.relay(variant());
    relay.says("leading", LEAD_MAX).await;

    let mut a = one.begin().await.expect("a transaction");
    let mut b = two.begin().await.expect("a transaction");
    insert(&site, &mut a, "a", 0..4_000).await;
    insert(&site, &mut b, "b", 0..4_000).await;
    run(&mut a, "SAVEPOINT s").await;
    insert(&site, &mut a, "gone", 0..4_000).await;
    run(&mut a, "SAVEPOINT t").await;
    insert(&site, &mut a, "gone", 0..4_000).await;
    run(&mut a, "RELEASE t").await;
    insert(&site, &mut b, "b", 4_000..8_000).await;
    run(&mut a, "ROLLBACK TO s").await;
    insert(&site, &mut a, "a", 4_000..8_000).await;
    let mut three = site.connect().await;
    insert(&site, &mut three, "c", 0..10).await;
    b.rollback().await.expect("it is rolled back");
    site.read_until(PUBLISH_MAX, |seen| seen.len() == 10).await;
    a.commit().await.expect("it commits");
    site.read_until(PUBLISH_MAX, |seen| seen.len() >= 8_010).await;
    stop(&mut relay).await;

    let seen = site.read_to_end().await;
    assert_eq!(numbers(&seen), expect(&[("a", 0..8_000), ("c", 0..10)]));
    assert!(relay.log().contains("streaming=true"), "{}", relay.log());
}
