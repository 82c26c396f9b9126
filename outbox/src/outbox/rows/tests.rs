use sqlx::{Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::database::{fresh, slot};
use crate::mapping::Mapping;
use crate::{Builder, Kind, Message, Outbox, Store};

const DEBEZIUM: &str = "CREATE TABLE outbox (id uuid PRIMARY KEY, aggregatetype varchar(255) \
     NOT NULL, aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb)";

const OTHER: &str = "CREATE SCHEMA \"the shop\"; CREATE TABLE \"the shop\".\"Events\" ( \
     seq bigint GENERATED ALWAYS AS IDENTITY, \"key\" uuid, body bytea, \"ID\" text NOT NULL, \
     kind text, head json, attr jsonb, at timestamptz, who text, about text, media text, \
     gone boolean, noted_at timestamptz NOT NULL DEFAULT now())";

fn debezium() -> Outbox {
    let mapping = Mapping::debezium("public.outbox").source("/orders");
    Outbox::new(Store::Table(mapping.build().unwrap()))
}

fn other() -> Outbox {
    let mapping: Mapping = "the shop.Events=topic=orders, key:key:uuid, payload:body:bytea, \
         id:ID:text, type:kind, headers:head:json, attributes:attr, created_at:at, source:who, \
         subject:about, content_type:media, tombstone:gone"
        .parse()
        .unwrap();
    Outbox::new(Store::Table(mapping))
}

fn order(number: u32) -> Builder {
    Message::builder("outbox.event.Order", "OrderPlaced")
        .source("/orders")
        .key("42")
        .json(&serde_json::json!({ "order": number }))
}

fn built<const N: usize>(builders: [Builder; N]) -> Vec<Message> {
    builders.map(|builder| builder.build().unwrap()).into()
}

/// Writes the seven messages in every way there is over sqlx.
async fn write_all_ways(outbox: &Outbox, connection: &mut PgConnection, messages: &[Message]) {
    connection.execute("CREATE TEMPORARY TABLE orders (id int)").await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    outbox.write(&mut tx, &messages[0]).await.unwrap();
    outbox.write_all(&mut tx, &messages[1..4]).await.unwrap();
    let insert = outbox.merge("INSERT INTO orders VALUES ($1), (2) RETURNING id");
    let insert = insert.bind(1).message(&messages[4]);
    assert_eq!(insert.fetch_all::<(i32,)>(&mut tx).await.unwrap(), [(1,), (2,)]);
    let update = outbox.merge("UPDATE orders SET id = id").message(&messages[5]);
    assert_eq!(update.execute(&mut tx).await.unwrap(), 2);
    let delete = outbox.merge("DELETE FROM orders WHERE id = 9").message(&messages[6]);
    assert!(delete.execute(&mut tx).await.unwrap_err().is_no_row());
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn every_way_to_write_makes_the_row_that_debezium_reads() {
    let (_database, mut connection) = fresh("table_debezium").await;
    connection.execute(DEBEZIUM).await.unwrap();
    let messages = built([
        order(1),
        order(2),
        order(3).tombstone(),
        order(4).key("ä"),
        order(5),
        order(6),
        order(9),
    ]);

    write_all_ways(&debezium(), &mut connection, &messages).await;

    let rows: Vec<(Uuid, String, String, String, Option<String>)> = sqlx::query_as(
        "SELECT id, aggregatetype, aggregateid, type, payload::text FROM outbox ORDER BY id",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert_eq!(rows.len(), 6);
    for (number, (row, message)) in rows.iter().zip(&messages).enumerate() {
        let key = String::from_utf8(message.key().unwrap().to_vec()).unwrap();
        let payload = format!("{{\"order\": {}}}", number + 1);
        let payload = (!message.is_tombstone()).then_some(payload);
        let expected = (message.id(), "Order".to_owned(), key, "OrderPlaced".to_owned(), payload);
        assert_eq!(*row, expected);
    }
}

#[tokio::test]
async fn a_table_of_other_types_and_names_holds_every_part() {
    let (_database, mut connection) = fresh("table_other").await;
    connection.execute(OTHER).await.unwrap();
    let key = Uuid::now_v7();
    let full = |number: u8| {
        Message::builder("orders", "placed")
            .source("/a")
            .key(key.to_string())
            .subject("s")
            .header("zone", "a\"b")
            .correlation_id("c")
            .content_type("application/octet-stream")
            .time_micros(-1_500_000)
            .payload([0xFF, 0, number])
    };
    let least = || Message::builder("orders", "placed").source("/b").payload([]);
    let gone = full(3).tombstone();
    let messages = built([full(1), least(), gone, full(4), full(5), full(6), full(9)]);

    write_all_ways(&other(), &mut connection, &messages).await;

    let rows: Vec<(String, Option<String>)> = sqlx::query_as(
        "SELECT concat_ws('|', \"ID\", \"key\", kind, head, attr, \
         extract(epoch FROM at)::numeric(20,6), who, about, media, gone), encode(body, 'hex') \
         FROM \"the shop\".\"Events\" ORDER BY seq",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let expected = |place: usize, payload: Option<&str>| {
        let id = messages[place].id();
        let gone = if payload.is_none() { "t" } else { "f" };
        let text = format!(
            "{id}|{key}|placed|{{\"zone\":\"a\\\"b\"}}|{{\"ce_correlationid\": \"c\"}}|\
             -1.500000|/a|s|application/octet-stream|{gone}"
        );
        (text, payload.map(str::to_owned))
    };
    assert_eq!(rows[0], expected(0, Some("ff0001")));
    assert!(rows[1].0.ends_with("|/b|application/json|f"), "{}", rows[1].0);
    assert_eq!(rows[1].1.as_deref(), Some(""));
    assert_eq!(rows[2], expected(2, None));
    assert_eq!(
        rows[3..],
        [(3, "ff0004"), (4, "ff0005"), (5, "ff0006")]
            .map(|(place, payload)| { expected(place, Some(payload)) })
    );
}

#[tokio::test]
async fn what_a_row_has_no_place_for_is_refused_and_nothing_is_sent() {
    let (_database, mut connection) = fresh("table_unmapped").await;
    // There is no table: what is sent fails in another way.
    let mut check = async |outbox: &Outbox, builder: Builder, kind: Kind, named: &str| {
        let messages = built([builder, order(2)]);
        let errors = [
            outbox.write(&mut connection, &messages[0]).await.unwrap_err(),
            outbox.write_all(&mut connection, &messages).await.unwrap_err(),
            outbox
                .merge("DELETE FROM nowhere")
                .message(&messages[0])
                .execute(&mut connection)
                .await
                .unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), kind, "{error:?}");
            assert!(error.to_string().contains(named), "{named:?} is not in {error}");
        }
    };

    let unmapped = [
        (order(1).header("a", "b"), "no column for the headers"),
        (order(1).correlation_id("c"), "no column for the attributes"),
        (order(1).subject("s"), "no column for the subject"),
        (order(1).source("/shop"), "the source \"/orders\" for all rows"),
        (order(1).content_type("text/plain"), "the content_type \"application/json\""),
    ];
    for (builder, named) in unmapped {
        check(&debezium(), builder, Kind::Unmapped, named).await;
    }
    let elsewhere = Message::builder("orders", "t").source("/orders").json(&1);
    check(&debezium(), elsewhere, Kind::Unmapped, "outbox.event.${aggregatetype}").await;
    let nothing = Message::builder("outbox.event.", "t").source("/orders").json(&1);
    check(&debezium(), nothing, Kind::Unmapped, "outbox.event.${aggregatetype}").await;
    check(&debezium(), order(1).key([0xFF]), Kind::Invalid, "takes text").await;
    check(&debezium(), order(1).key("a\0b"), Kind::Invalid, "without NUL").await;
    check(&debezium(), order(1).payload("{"), Kind::Invalid, "takes JSON").await;
    let nul = "column \"payload\" takes JSON without \\u0000, and the message's payload is none";
    check(&debezium(), order(1).json("a\0b"), Kind::Invalid, nul).await;
    check(&debezium(), order(1).payload(r#"["\ud800"]"#), Kind::Invalid, "surrogates").await;
    check(&debezium(), order(1).payload("1e999999"), Kind::Invalid, "range of numeric").await;
    for micros in [i64::MIN, -62_135_596_800_000_001, 253_402_300_800_000_000, i64::MAX] {
        let timed = order(1).time_micros(micros);
        check(&Outbox::new(Store::Journal), timed, Kind::Invalid, "the years 1 to 9999").await;
    }
    let capitals = "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11";
    let keyed = Message::builder("orders", "t").source("/o").key(capitals).json(&1);
    check(&other(), keyed, Kind::Invalid, "UUID").await;
    let least: Mapping = "a.b=topic=t, id:id, type:type, payload:payload".parse().unwrap();
    let least = Outbox::new(Store::Table(least));
    let keyed = Message::builder("t", "t").source("/a.b").key("k");
    check(&least, keyed.json(&1), Kind::Unmapped, "no column for the key").await;
    let mapping = Mapping::debezium("public.outbox").source("/orders");
    let strict = mapping.null_payload_is_tombstone(false).build().unwrap();
    let strict = Outbox::new(Store::Table(strict));
    check(&strict, order(1).tombstone(), Kind::Unmapped, "takes no tombstones").await;
}

#[tokio::test]
async fn a_row_that_a_trigger_keeps_out_is_an_error() {
    let (_database, mut connection) = fresh("table_trigger").await;
    connection.execute(DEBEZIUM).await.unwrap();
    let trigger = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN RETURN NULL; END'; CREATE TRIGGER refuse BEFORE INSERT ON outbox FOR EACH ROW \
         EXECUTE FUNCTION refuse(); CREATE TABLE orders (id int)";
    connection.execute(trigger).await.unwrap();
    let messages = built([order(1), order(2)]);
    let outbox = debezium();

    let errors = [
        outbox.write(&mut connection, &messages[0]).await.unwrap_err(),
        outbox.write_all(&mut connection, &messages).await.unwrap_err(),
        outbox
            .merge("INSERT INTO orders VALUES (1)")
            .message(&messages[0])
            .execute(&mut connection)
            .await
            .unwrap_err(),
    ];

    for error in errors {
        assert_eq!(error.kind(), Kind::Database, "{error:?}");
        assert!(error.to_string().contains("did not write"), "{error}");
    }
}

/// The bounds that are known before anything is sent are those of Postgres.
#[tokio::test]
async fn what_is_taken_for_jsonb_is_taken_by_postgres_and_what_is_not_is_not() {
    let (_database, mut connection) = fresh("table_jsonb").await;
    connection.execute(DEBEZIUM).await.unwrap();
    let whole = format!("[{}, 1e131071, 0e5, 1e-16383]", "9".repeat(131_072));
    let deep = format!("{}{}", "[".repeat(1_000), "]".repeat(1_000));

    for good in [r#"{"a": "\\u0000 \ud83d\ude00 \u00e9"}"#, &whole, &deep] {
        let message = order(1).payload(good).build().unwrap();
        debezium().write(&mut connection, &message).await.unwrap();
    }
    let long = "9".repeat(131_073);
    for bad in [r#""\u0000""#, r#""\ud800""#, r#""\udc00""#, "1e131072", "1e-16384", &long] {
        let message = order(1).payload(bad).build().unwrap();
        let error = debezium().write(&mut connection, &message).await.unwrap_err();
        let by_postgres = sqlx::query("SELECT $1::text::jsonb").bind(bad).execute(&mut connection);

        assert!(by_postgres.await.is_err(), "{bad:.50}");
        assert!(error.is_invalid() && error.sqlstate().is_none(), "{error:?}");
    }
    // What only the table knows is the message's fault too, and is said without the value.
    connection
        .execute("TRUNCATE outbox; ALTER TABLE outbox ALTER COLUMN type TYPE varchar(3)")
        .await
        .unwrap();
    let error = debezium().write(&mut connection, &order(1).build().unwrap()).await.unwrap_err();
    assert_eq!((error.kind(), error.sqlstate()), (Kind::Invalid, Some("22001")), "{error:?}");
    assert!(error.to_string().contains("value too long for type"), "{error}");
}

#[tokio::test]
async fn the_check_names_what_is_wrong_with_a_table() {
    let (_database, mut connection) = fresh("table_check").await;
    let slot = slot(&mut connection, "table_check", "pgoutput").await;
    let outbox = debezium().slot(slot);
    let mut after = async |sql: &'static str, expected: &str| {
        connection.execute(sql).await.unwrap();
        let error = outbox.check(&mut connection).await.expect_err(expected);
        assert!(error.is_setup(), "{error:?}");
        assert!(error.to_string().contains(expected), "{expected:?} is not in {error}");
    };

    after("SELECT 1", "there is no table \"public\".\"outbox\"").await;
    after(DEBEZIUM, "ALTER PUBLICATION tailrace ADD TABLE \"public\".\"outbox\"").await;
    let leaves = "CREATE PUBLICATION tailrace FOR TABLE outbox WITH (publish = 'update')";
    after(leaves, "is in no publication").await;
    let wider = "ALTER PUBLICATION tailrace SET (publish = 'insert'); \
         ALTER TABLE outbox ADD COLUMN tenant text NOT NULL";
    after(wider, "column \"tenant\" of \"public\".\"outbox\" is not null").await;
    let other = "ALTER TABLE outbox ALTER COLUMN tenant SET DEFAULT 'x', \
         ALTER COLUMN payload TYPE text";
    after(other, "is of type text, and the mapping says jsonb").await;
    after("ALTER TABLE outbox DROP COLUMN payload", "has no column \"payload\"").await;
    connection.execute("ALTER TABLE outbox ADD COLUMN payload jsonb").await.unwrap();

    outbox.check(&mut connection).await.unwrap();
}

#[cfg(feature = "tokio-postgres")]
#[tokio::test]
async fn the_other_client_makes_the_same_rows() {
    use ::tokio_postgres::NoTls;

    use crate::tokio_postgres::{check, prepare, write, write_all};

    let (database, mut connection) = fresh("table_tokio").await;
    connection.execute(DEBEZIUM).await.unwrap();
    connection.execute("CREATE TABLE orders (id int)").await.unwrap();
    let (client, session) = ::tokio_postgres::connect(database.url(), NoTls).await.unwrap();
    tokio::spawn(session);
    let outbox = debezium();
    let messages = built([order(1), order(2), order(3).tombstone(), order(4)]);
    let unmapped = order(5).header("a", "b").build().unwrap();
    let insert = prepare(&outbox, &client, "INSERT INTO orders VALUES ($1)").await.unwrap();

    write(&outbox, &client, &messages[0]).await.unwrap();
    write_all(&outbox, &client, &messages[1..3]).await.unwrap();
    assert_eq!(insert.execute(&client, &[&1], &messages[3]).await.unwrap(), 1);
    let errors = [
        write(&outbox, &client, &unmapped).await.unwrap_err(),
        write_all(&outbox, &client, &[messages[0].clone(), unmapped.clone()]).await.unwrap_err(),
        insert.execute(&client, &[&1], &unmapped).await.unwrap_err(),
    ];

    assert!(check(&outbox, &client).await.unwrap_err().is_setup());
    assert!(errors.iter().all(|error| error.is_unmapped()), "{errors:?}");
    let rows = client
        .query("SELECT id, aggregatetype, aggregateid, payload::text FROM outbox ORDER BY id", &[])
        .await
        .unwrap();
    let rows: Vec<(Uuid, String, String, Option<String>)> =
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect();
    let expected: Vec<_> = messages
        .iter()
        .zip(1..)
        .map(|(message, number)| {
            let payload = (!message.is_tombstone()).then(|| format!("{{\"order\": {number}}}"));
            (message.id(), "Order".to_owned(), "42".to_owned(), payload)
        })
        .collect();
    assert_eq!(rows, expected);
}

#[cfg(feature = "testing")]
#[tokio::test]
async fn a_test_sees_what_goes_into_a_table() {
    use crate::testing::{expect_messages, record};

    let (_database, mut connection) = fresh("table_testing").await;
    connection.execute(DEBEZIUM).await.unwrap();
    let messages = built([order(1), order(2), order(3)]);

    let mut tx = connection.begin().await.unwrap();
    let outbox = record(&mut tx, &debezium()).await.unwrap();
    outbox.write(&mut tx, &messages[0]).await.unwrap();
    outbox.write_all(&mut tx, &messages[1..]).await.unwrap();
    let written = expect_messages(&mut tx).await.unwrap().into_messages();

    assert_eq!(written, messages);
}
