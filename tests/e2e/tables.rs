//! Messages that are rows of tables which others made.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tailrace_outbox::mapping::Mapping;
use tailrace_outbox::{Message, Outbox, Store};
use tests::crash_point::CrashPoint;
use tests::{Site, Variant};

use crate::complaint::refuses;
use crate::run::{LEAD_MAX, PUBLISH_MAX, site, stop};

const SETTINGS: i32 = 2;
const BAD_MESSAGE: i32 = 5;

/// As Debezium's documentation has it.
const DEBEZIUM: &str = "CREATE TABLE outbox (id uuid NOT NULL PRIMARY KEY, \
     aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL, \
     type varchar(255) NOT NULL, payload jsonb)";

/// The topics of a test are made before, and have the name of the aggregate's type.
const MAPPING: &str = "public.outbox=debezium, topic=${aggregatetype}, source=/orders";

const VARIANT: Variant = Variant {
    die_at: None,
    batch_records: Some(16),
    split_bytes: None,
    at_least_once: false,
    table: Some(MAPPING),
    rows_alone: None,
};

/// Rounds of three rows each.
const ROUNDS: usize = 60;

/// What a row is to be in Kafka.
struct Expected {
    id: String,
    key: String,
    payload: Option<String>,
}

fn outbox(site: &Site) -> Outbox {
    let mapping: Mapping = MAPPING.parse().expect("a mapping");
    Outbox::new(Store::Table(mapping)).slot(site.slot.clone())
}

/// One row by the outbox, one by plain SQL, and one that is deleted where it was inserted.
async fn write_a_round(
    site: &Site,
    connection: &mut PgConnection,
    number: usize,
    expected: &mut Vec<Expected>,
) {
    let topic = site.topics.first().expect("a site has topics");
    let key = format!("order-{}", number % 7);
    let message = Message::builder(topic, "OrderPlaced").source("/orders").key(key.clone());
    let message = message.json(&number).build().expect("it keeps every rule");
    outbox(site).write(connection, &message).await.expect("a row is written");
    expected.push(Expected {
        id: message.id().to_string(),
        key: key.clone(),
        payload: Some(number.to_string()),
    });

    let mut tx = connection.begin().await.expect("a transaction begins");
    let (kept, payload): (String, Option<String>) = sqlx::query_as(
        "INSERT INTO outbox VALUES (gen_random_uuid(), $1, $2, 'OrderPlaced', \
         CASE WHEN $3 % 9 > 0 THEN jsonb_build_object('order', $3) END) \
         RETURNING id::text, payload::text",
    )
    .bind(topic)
    .bind(&key)
    .bind(i32::try_from(number).expect("small"))
    .fetch_one(&mut *tx)
    .await
    .expect("a row");
    expected.push(Expected { id: kept, key: key.clone(), payload });
    let (deleted,): (String,) = sqlx::query_as(
        "INSERT INTO outbox VALUES (gen_random_uuid(), $1, $2, 'OrderPlaced', '[]') \
         RETURNING id::text",
    )
    .bind(topic)
    .bind(&key)
    .fetch_one(&mut *tx)
    .await
    .expect("a row");
    let delete = "DELETE FROM outbox WHERE id::text = $1";
    sqlx::query(delete).bind(&deleted).execute(&mut *tx).await.expect("it is deleted");
    tx.commit().await.expect("it commits");
    expected.push(Expected { id: deleted, key, payload: Some("[]".to_owned()) });

    let mut tx = connection.begin().await.expect("a transaction begins");
    let never = Message::builder(topic, "OrderPlaced").source("/orders").key("never").json(&0);
    outbox(site).write(&mut tx, &never.build().expect("a message")).await.expect("a row");
    tx.rollback().await.expect("it is rolled back");
}

#[tokio::test]
async fn rows_of_debeziums_table_arrive_once_in_order_whoever_wrote_them() {
    let site = site("debezium_table").await;
    let mut connection = site.connect().await;
    connection.execute(DEBEZIUM).await.expect("the table is made");
    let mut relay = site.relay(VARIANT);
    relay.says("leading", LEAD_MAX).await;
    outbox(&site).check(&mut connection).await.expect("messages would arrive");
    stop(&mut relay).await;
    let mut expected = Vec::new();

    for (point, rounds) in
        ["produced:20", "committed:1", "flushed:1", "committing:2"].into_iter().zip([0, 1, 2, 3])
    {
        for number in 0..ROUNDS / 4 {
            write_a_round(&site, &mut connection, rounds * 15 + number, &mut expected).await;
        }
        let die_at: CrashPoint = point.parse().expect("a point");
        site.relay(Variant { die_at: Some(die_at), ..VARIANT }).ends(LEAD_MAX).await;
    }
    let mut relay = site.relay(VARIANT);
    let count = expected.len();
    site.read_until(PUBLISH_MAX, move |seen| seen.len() >= count).await;
    connection.execute("UPDATE outbox SET type = 'x'; TRUNCATE outbox").await.expect("it goes");
    stop(&mut relay).await;

    let mut seen = site.read_to_end().await;
    assert_eq!(seen.len(), expected.len());
    // What one key has is in one partition, so this is the order in which each key was read.
    for key in (0..7).map(|number| format!("order-{number}")) {
        let of_key = seen.extract_if(.., |record| record.key.as_deref() == Some(key.as_bytes()));
        let of_key: Vec<_> = of_key.collect();
        let wanted: Vec<_> = expected.iter().filter(|expected| expected.key == key).collect();
        assert_eq!(of_key.len(), wanted.len());
        for (record, expected) in of_key.iter().zip(wanted) {
            assert_eq!(record.header("ce_id"), expected.id);
            assert_eq!(record.header("id"), expected.id);
            assert_eq!(record.header("ce_type"), "OrderPlaced");
            assert_eq!(record.header("ce_source"), "/orders");
            assert_eq!(record.header("content-type"), "application/json");
            assert!(record.header("ce_sequence").starts_with(&site.relay_id));
            assert_eq!(record.value.as_deref(), expected.payload.as_deref().map(str::as_bytes));
        }
    }
    assert_eq!(seen, [], "no record of another key");
    assert!(!relay.log().contains("not published"), "{}", relay.log());
}

#[tokio::test]
async fn a_row_that_is_no_message_becomes_a_dead_letter_with_what_it_holds() {
    let mut site = site("bad_rows").await;
    let mut connection = site.connect().await;
    connection.execute(DEBEZIUM).await.expect("the table is made");
    let topic = site.topics.first().expect("a site has topics").clone();
    let arguments = [site.run_arguments(), vec![format!("--table={MAPPING}, null_payload=error")]];
    let mut relay = site.cdc_relay(&arguments.concat());
    relay.says("leading", LEAD_MAX).await;

    let insert = async |connection: &mut PgConnection, topic: &str, payload: &str| {
        let insert = format!(
            "INSERT INTO outbox VALUES (gen_random_uuid(), '{topic}', 'k', 'T', {payload})"
        );
        connection.execute(AssertSqlSafe(insert)).await.expect("a row is inserted");
    };
    insert(&mut connection, &topic, "'1'").await;
    insert(&mut connection, &topic, "NULL").await;
    insert(&mut connection, "a/b", "'2'").await;
    insert(&mut connection, &topic, "'3'").await;
    site.read_until(PUBLISH_MAX, |seen| seen.len() >= 2).await;
    stop(&mut relay).await;

    let seen = site.read_to_end().await;
    let values: Vec<_> =
        seen.iter().map(|record| record.value.as_deref().unwrap_or_default()).collect();
    assert_eq!(values, [b"1", b"3"]);
    site.topics = vec![format!("tailrace.dead-letter.{}", site.relay_id)];
    let letters = site.read_to_end().await;
    let [null, nowhere] = letters.as_slice() else { panic!("{letters:?}") };
    let why = null.header("tailrace-dead-detail");
    assert!(why.contains("\"public\".\"outbox\"") && why.contains("payload is null"), "{why}");
    let row = null.value.as_deref().expect("its columns are shown");
    let row: serde_json::Value = serde_json::from_slice(row).expect("as json");
    assert_eq!(row.get("aggregatetype").and_then(|value| value.as_str()), Some(&*topic));
    assert_eq!(row.get("payload"), Some(&serde_json::Value::Null));
    assert!(nowhere.header("tailrace-dead-detail").contains("a/b"), "{nowhere:?}");
    assert_eq!(nowhere.value.as_deref(), Some(&b"2"[..]));

    let halting = [arguments.concat(), vec!["--bad-messages=halt".to_owned()]].concat();
    insert(&mut connection, "x", "NULL").await;
    refuses(&mut site.cdc_relay(&halting), BAD_MESSAGE, &["payload is null", "--skip"]).await;
}

#[tokio::test]
async fn a_table_that_the_publication_does_not_show_is_refused_with_the_statement() {
    let site = site("unpublished_table").await;
    let mut connection = site.connect().await;
    let arguments = [site.run_arguments(), vec![format!("--table={MAPPING}")]].concat();
    let with = |mapping: &str| {
        [site.run_arguments(), vec![format!("--table=public.outbox={mapping}")]].concat()
    };
    let refused = async |arguments: &[String], named: &[&str]| {
        refuses(&mut site.cdc_relay(arguments), SETTINGS, named).await;
    };

    refused(&arguments, &["there is no table \"public\".\"outbox\""]).await;
    connection.execute(DEBEZIUM).await.expect("the table is made");
    refused(&with("debezium, key:order_no"), &["has no column \"order_no\""]).await;
    refused(&with("debezium, payload:payload:bytea"), &["of type jsonb", "as bytea"]).await;
    let twice = [arguments.clone(), vec![format!("--table={MAPPING}")]].concat();
    refused(&twice, &["--table public.outbox is given twice"]).await;
    let mut relay = site.cdc_relay(&site.run_arguments());
    relay.says("leading", LEAD_MAX).await;
    stop(&mut relay).await;
    let add = "ALTER PUBLICATION \"tailrace\" ADD TABLE \"public\".\"outbox\"";
    refused(&arguments, &["does not have table \"public\".\"outbox\"", add]).await;
    let narrow =
        "ALTER PUBLICATION tailrace ADD TABLE outbox (id, aggregatetype, aggregateid, type)";
    connection.execute(narrow).await.expect("some columns");
    refused(&arguments, &["leaves out column \"payload\"", "DROP TABLE"]).await;
    connection.execute("ALTER PUBLICATION tailrace DROP TABLE outbox").await.expect("it is out");
    connection.execute(add).await.expect("it is in");
    connection
        .execute("ALTER PUBLICATION tailrace SET (publish = 'update')")
        .await
        .expect("it is set");
    refused(&arguments, &["rows of \"public\".\"outbox\" as its own", "publish = 'insert'"]).await;
    connection
        .execute("ALTER PUBLICATION tailrace SET (publish = 'insert')")
        .await
        .expect("it is set");

    // Taken out under a relay that leads, put in again, and then the publication dropped.
    let mut relay = site.cdc_relay(&arguments);
    relay.says("leading", LEAD_MAX).await;
    connection.execute("ALTER PUBLICATION tailrace DROP TABLE outbox").await.expect("it is out");
    let lost = "may not have been published";
    refuses(&mut relay, SETTINGS, &["does not have table", add, "in the log after", lost]).await;
    connection.execute(add).await.expect("it is in");
    let mut relay = site.cdc_relay(&arguments);
    relay.says(lost, LEAD_MAX).await;
    relay.says("leading", LEAD_MAX).await;
    connection.execute("DROP PUBLICATION tailrace").await.expect("it is dropped");
    let again = "FOR TABLE \"public\".\"outbox\" WITH";
    refuses(&mut relay, SETTINGS, &["does not exist", lost, again]).await;
    refused(&arguments, &["does not exist", again]).await;
    let init = [site.arguments(&["init"]), vec![format!("--table={MAPPING}")]].concat();
    let mut init = site.cdc_relay(&init);
    let status = init.ends(LEAD_MAX).await;
    assert!(status.success() && init.log().contains("was missing and is made"), "{}", init.log());
    let mut relay = site.cdc_relay(&arguments);
    relay.says("leading", LEAD_MAX).await;
    stop(&mut relay).await;
}
