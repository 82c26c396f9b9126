use sqlx::{Connection, Executor, PgConnection, Row};
use uuid::Uuid;

use super::{Journal, Retention, insert, maintain};
use crate::database::{fresh, slot};
use crate::{Kind, Message, frame, schema};

fn messages() -> Vec<Message> {
    let builder =
        || Message::builder("orders", "order.placed.v1").source("/orders").key("order-42");
    [
        builder()
            .subject("order-42")
            .correlation_id("z")
            .caused_by([("tracestate", "a=1"), ("ce_causationid", "c")])
            .header("zone", "b")
            .header("Zone", "line\nbreak \"quoted\"")
            .header("aa", "")
            .header("ünï", "größe €")
            .header("𝄞", "above the plane")
            .header("\u{e000}", "below it")
            .time_micros(1_795_219_200_123_457)
            .payload([0, 1, 0xff]),
        Message::builder("t", "x").source("/").payload([]),
        builder().tombstone(),
        builder().key(vec![0xff, 0]).time_micros(-1).json(&1),
        // Beyond the 53 bits of a double.
        builder().time_micros(253_402_300_799_999_999).json(&1),
        builder().time_micros(-62_135_596_799_999_999).json(&1),
    ]
    .map(|builder| builder.build().unwrap())
    .into()
}

/// The message that a row stands for, made as the module's page says.
fn of_row(row: &sqlx::postgres::PgRow) -> Message {
    let names: Vec<String> = row.get("names");
    let values: Vec<String> = row.get("contents");
    let builder = Message::builder(row.get::<String, _>("topic"), row.get::<String, _>("type"))
        .id(row.get::<Uuid, _>("id"))
        .time_micros(row.get("micros"))
        .source(row.get::<String, _>("source"))
        .content_type(row.get::<String, _>("content_type"))
        .caused_by(
            row.get::<Vec<String>, _>("attribute_names")
                .into_iter()
                .zip(row.get::<Vec<String>, _>("attribute_values")),
        );
    let builder =
        names.into_iter().zip(values).fold(builder, |b, (name, value)| b.header(name, value));
    let builder = match row.get::<Option<Vec<u8>>, _>("key") {
        Some(key) => builder.key(key),
        None => builder,
    };
    let builder = match row.get::<Option<String>, _>("subject") {
        Some(subject) => builder.subject(subject),
        None => builder,
    };
    let builder = match row.get::<Option<Vec<u8>>, _>("payload") {
        Some(payload) => builder.payload(payload),
        None => builder.tombstone(),
    };
    builder.build().unwrap()
}

async fn rows(connection: &mut PgConnection) -> Vec<Message> {
    sqlx::query(
        "SELECT *, (extract(epoch FROM created_at) * 1000000)::bigint AS micros, \
         ARRAY(SELECT key FROM jsonb_each_text(headers) ORDER BY key COLLATE \"C\") AS names, \
         ARRAY(SELECT value FROM jsonb_each_text(headers) ORDER BY key COLLATE \"C\") AS contents, \
         ARRAY(SELECT key FROM jsonb_each_text(attributes) ORDER BY key COLLATE \"C\") \
             AS attribute_names, \
         ARRAY(SELECT value FROM jsonb_each_text(attributes) ORDER BY key COLLATE \"C\") \
             AS attribute_values \
         FROM tailrace.outbox ORDER BY id",
    )
    .fetch_all(connection)
    .await
    .unwrap()
    .iter()
    .map(of_row)
    .collect()
}

#[tokio::test]
async fn a_row_and_a_frame_are_the_same_message() {
    let (_database, mut connection) = fresh("journal_row").await;
    schema::install(&mut connection).await.unwrap();
    let messages = messages();

    let mut tx = connection.begin().await.unwrap();
    for message in &messages {
        insert(&mut tx, message).await.unwrap();
    }
    tx.commit().await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    insert(&mut tx, &Message::builder("t", "x").source("/").payload([]).build().unwrap())
        .await
        .unwrap();
    tx.rollback().await.unwrap();

    let rows = rows(&mut connection).await;
    assert_eq!(rows, messages);
    let frames = |list: &[Message]| list.iter().map(frame::encode).collect::<Vec<_>>();
    assert_eq!(frames(&rows), frames(&messages));
}

#[tokio::test]
async fn a_null_payload_is_a_tombstone_also_for_rows_written_by_hand() {
    let (_database, mut connection) = fresh("journal_null").await;
    schema::install(&mut connection).await.unwrap();

    let refused = connection
        .execute(
            "INSERT INTO tailrace.outbox (id, created_at, topic, type, source) \
             VALUES (gen_random_uuid(), now(), 't', 't', '/')",
        )
        .await;

    assert!(refused.is_err());
}

#[tokio::test]
async fn a_missing_table_or_one_of_another_form_is_a_matter_of_setup() {
    let (_database, mut connection) = fresh("journal_form").await;
    connection
        .execute("CREATE SCHEMA tailrace; CREATE TABLE tailrace.outbox (id uuid)")
        .await
        .unwrap();

    let of_another_form = insert(&mut connection, &messages()[0]).await.unwrap_err();
    connection.execute("DROP TABLE tailrace.outbox").await.unwrap();
    let missing = maintain(&mut connection, &Retention::default()).await.unwrap_err();

    assert_eq!(of_another_form.kind(), Kind::Setup, "{of_another_form:?}");
    assert_eq!(missing.kind(), Kind::Setup, "{missing:?}");
}

#[tokio::test]
async fn a_dropped_day_takes_no_message_from_a_relay_that_has_not_read_it() {
    let (_database, mut connection) = fresh("journal_dropped").await;
    schema::install(&mut connection).await.unwrap();
    let publication = Journal::default().publication_sql("journal");
    connection.execute(sqlx::AssertSqlSafe(publication)).await.unwrap();
    let slot = slot(&mut connection, "journal_dropped", "pgoutput").await;
    // Large enough to stand in the table's TOAST, which is dropped with it.
    let payload = (0..40_000_u32).flat_map(u32::to_be_bytes).collect::<Vec<u8>>();
    let message = Message::builder("t", "x").source("/").payload(payload.clone()).build().unwrap();
    insert(&mut connection, &message).await.unwrap();
    let stray = Message::builder("t", "x").source("/").payload([]).id(Uuid::max()).build().unwrap();
    insert(&mut connection, &stray).await.unwrap();

    let days: Vec<String> = sqlx::query_scalar(
        "SELECT inhrelid::regclass::text FROM pg_inherits \
         WHERE inhparent = 'tailrace.outbox'::regclass",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    for day in days {
        connection.execute(sqlx::AssertSqlSafe(format!("DROP TABLE {day}"))).await.unwrap();
    }

    let changes: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, \
         'proto_version', '2', 'publication_names', 'journal', 'binary', 'true')",
    )
    .bind(&slot)
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let relation = changes.iter().find(|change| change[0] == b'R').unwrap();
    assert_eq!(&relation[5..21], b"tailrace\0outbox\0".as_slice());
    let rows: Vec<_> = changes.iter().filter(|change| change[0] == b'I').collect();
    assert_eq!(rows.len(), 2);
    assert!(rows[0].ends_with(&payload));
}
