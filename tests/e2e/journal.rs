//! Messages that are kept as rows of the journal.

use sqlx::{Connection, Executor, PgConnection};
use tailrace_outbox::journal::{self, Retention};
use tailrace_outbox::{Message, Outbox, Store, schema};
use tailrace_stack::Stack;
use tests::crash_point::CrashPoint;
use tests::{Site, Variant};

use crate::complaint::refuses;
use crate::run::{LEAD_MAX, PUBLISH_MAX, initialize, node, site, stop};

const SETTINGS: i32 = 2;

/// A publication that was made before the journal does not have it: it is told before a row is
/// lost, refused once one is, and mended by what is said.
async fn left_out(site: &Site, connection: &mut PgConnection) {
    initialize(site).await;
    schema::install(connection).await.expect("the schema is installed");
    journal::maintain(connection, &Retention::default()).await.expect("there are partitions");
    let mut relay = site.cdc_relay(&site.run_arguments());
    relay.says("its rows would not be published", LEAD_MAX).await;
    let lost = Message::builder("t", "lost.v1").source("/orders").key("k").tombstone();
    let outbox = Outbox::new(Store::Journal);
    let lost = lost.build().expect("it keeps every rule");
    outbox.write(connection, &lost).await.expect("a row is written");
    let add = "ALTER PUBLICATION \"tailrace\" ADD TABLE \"tailrace\".outbox";
    let named = ["no publication has it", add, "cdc-relay replay"];
    refuses(&mut relay, SETTINGS, &named).await;
    refuses(&mut site.cdc_relay(&site.run_arguments()), SETTINGS, &named).await;
    connection.execute(add).await.expect("it is in");
}

/// Rows that are committed one by one.
const ROWS: usize = 200;

#[tokio::test]
async fn rows_of_the_journal_are_published_once_in_order_with_what_their_messages_say() {
    let site = site("journal").await;
    let mut connection = site.connect().await;
    left_out(&site, &mut connection).await;
    schema::install(&mut connection).await.expect("the schema is installed");
    journal::maintain(&mut connection, &Retention::default()).await.expect("there are partitions");
    let outbox = Outbox::new(Store::Journal).slot(site.slot.clone());
    let topic = site.topics.first().expect("a site has topics");
    let message = |number: usize| {
        let message = Message::builder(topic, "order.placed.v1").source("/orders").key("one key");
        message.subject("s").header("zone", "ä").header("a", number.to_string()).json(&number)
    };
    let mut relay = site.relay(Variant::default());
    relay.says("leading", LEAD_MAX).await;
    outbox.check(&mut connection).await.expect("messages would arrive");
    stop(&mut relay).await;

    let mut messages = Vec::new();
    for number in 0..ROWS {
        let message = message(number).build().expect("it keeps every rule");
        outbox.write(&mut connection, &message).await.expect("a row is written");
        messages.push(message);
    }
    let gone = Message::builder(topic, "order.gone.v1").source("/orders").key("one key");
    messages.push(gone.tombstone().build().expect("it keeps every rule"));
    outbox
        .write_all(&mut connection, messages.get(ROWS..).expect("the last"))
        .await
        .expect("a row");
    for milestone in ["produced:50", "committed:1"] {
        let die_at: CrashPoint = milestone.parse().expect("a point");
        let mut doomed = site.relay(Variant { die_at: Some(die_at), ..Variant::default() });
        doomed.ends(LEAD_MAX).await;
    }
    let mut relay = site.relay(Variant::default());
    site.read_until(PUBLISH_MAX, |seen| seen.len() > ROWS).await;
    stop(&mut relay).await;

    let seen = site.read_to_end().await;
    let ids: Vec<&str> = seen.iter().map(|record| record.header("ce_id")).collect();
    let expected: Vec<String> = messages.iter().map(|message| message.id().to_string()).collect();
    assert_eq!(ids, expected);
    for (record, message) in seen.iter().zip(&messages) {
        assert_eq!(record.value.as_deref(), message.payload());
        assert_eq!(record.key.as_deref(), message.key());
        assert_eq!(record.header("ce_type"), message.r#type());
        assert_eq!(record.header("ce_subject"), message.subject().unwrap_or_default());
        for (name, value) in message.headers() {
            assert_eq!(record.header(name), value);
        }
    }
}

/// There is no encoding there: a server that is asked for UTF-8 ends the stream at such bytes.
#[tokio::test]
async fn in_a_database_without_an_encoding_text_that_is_not_utf_8_costs_a_dead_letter() {
    let mut site = Site::new(Stack::shared().await, "sql_ascii", 1, &node()).await;
    let name = site.database.name().to_owned();
    let all = site.database.url().replace(&format!("/{name}"), "/postgres");
    let mut server = PgConnection::connect(&all).await.expect("it connects");
    let without = "encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C' template template0";
    for sql in [format!("drop database {name}"), format!("create database {name} {without}")] {
        server.execute(sqlx::AssertSqlSafe(sql)).await.expect("it is made anew");
    }
    let mut connection = site.connect().await;
    schema::install(&mut connection).await.expect("the schema is installed");
    let mut relay = site.cdc_relay(&site.run_arguments());
    relay.says("leading", LEAD_MAX).await;

    let topic = site.topics.first().expect("a site has topics").clone();
    let outbox = Outbox::new(Store::Journal);
    for number in 0..2 {
        let message = Message::builder(&topic, "order.placed.v1").source("/orders").key("one key");
        let message = message.json(&number).build().expect("it keeps every rule");
        outbox.write(&mut connection, &message).await.expect("a row is written");
        connection
            .execute(
                r"insert into tailrace.outbox (id, created_at, topic, type, source, payload)
                  select gen_random_uuid(), now(), topic, type, E'/x\xfe\xff', payload
                  from tailrace.outbox limit 1;
                  select pg_logical_emit_message(true, E'of\xfe', 'somebody else')",
            )
            .await
            .expect("any bytes can be written");
    }
    site.read_until(PUBLISH_MAX, |seen| seen.len() >= 2).await;
    site.topics = vec![format!("tailrace.dead-letter.{}", site.relay_id)];
    let letters = site.read_until(PUBLISH_MAX, |seen| seen.len() >= 2).await;
    stop(&mut relay).await;

    for letter in letters {
        assert!(
            letter.header("tailrace-dead-detail").contains("source is not UTF-8"),
            "{letter:?}"
        );
        let value = String::from_utf8(letter.value.expect("it has one")).expect("it is text");
        assert!(value.contains("2f78feff"), "{value}");
    }
}
