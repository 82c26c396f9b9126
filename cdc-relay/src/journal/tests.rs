//! Rows as Postgres sends them: the layout comes from the relation, the values in binary form.

use tailrace_outbox::Message;
use tailrace_outbox::frame::{Frame, encode};

use super::Journal;
use crate::lsn::Lsn;
use crate::pgoutput::{Change, decode};

const RELATION: u32 = 16_400;

/// A relation message for a table with these columns.
fn relation(schema: &str, columns: &[&str]) -> Vec<u8> {
    let mut body = vec![b'R'];
    body.extend(RELATION.to_be_bytes());
    for text in [schema, "outbox"] {
        body.extend(text.as_bytes());
        body.push(0);
    }
    body.push(b'd');
    body.extend(u16::try_from(columns.len()).unwrap().to_be_bytes());
    for column in columns {
        body.push(0);
        body.extend(column.as_bytes());
        body.push(0);
        body.extend([0; 8]);
    }
    body
}

/// An insert message with these values in binary form.
fn insert(values: &[Option<Vec<u8>>]) -> Vec<u8> {
    let mut body = vec![b'I'];
    body.extend(RELATION.to_be_bytes());
    body.push(b'N');
    body.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
    for value in values {
        match value {
            None => body.push(b'n'),
            Some(bytes) => {
                body.push(b'b');
                body.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
                body.extend(bytes);
            }
        }
    }
    body
}

fn jsonb<'m>(pairs: impl Iterator<Item = (&'m str, &'m str)>) -> Option<Vec<u8>> {
    let object: serde_json::Map<String, serde_json::Value> =
        pairs.map(|(name, value)| (name.to_owned(), value.into())).collect();
    let mut bytes = vec![1];
    bytes.extend(serde_json::to_vec(&object).unwrap());
    Some(bytes)
}

fn row(message: &Message) -> Vec<(&'static str, Option<Vec<u8>>)> {
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let since_2000 = message.time_micros() - 946_684_800_000_000;
    vec![
        ("id", Some(message.id().as_bytes().to_vec())),
        ("created_at", Some(since_2000.to_be_bytes().to_vec())),
        ("topic", text(message.topic())),
        ("key", message.key().map(<[u8]>::to_vec)),
        ("type", text(message.r#type())),
        ("source", text(message.source())),
        ("subject", message.subject().and_then(text)),
        ("content_type", text(message.content_type())),
        ("attributes", jsonb(message.attributes())),
        ("headers", jsonb(message.headers())),
        ("tombstone", Some(vec![u8::from(message.is_tombstone())])),
        ("payload", message.payload().map(<[u8]>::to_vec)),
    ]
}

fn full() -> Message {
    Message::builder("orders", "order.placed.v1")
        .source("/orders")
        .key("order-42")
        .subject("order-42")
        .header("zone", "ä\"1")
        .header("a", "")
        .correlation_id("c-1")
        .json(&serde_json::json!({"order": 42}))
        .build()
        .unwrap()
}

/// The frame of a row whose columns come in this order.
fn framed(columns: &[(&'static str, Option<Vec<u8>>)]) -> Result<Vec<u8>, String> {
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let values: Vec<Option<Vec<u8>>> = columns.iter().map(|(_, value)| value.clone()).collect();
    let mut journal = Journal::new("tailrace");
    let body = relation("tailrace", &names);
    let Change::Relation(described) = decode(&body, Lsn(1)).unwrap() else { panic!("relation") };
    journal.relation(&described);
    let body = insert(&values);
    let Change::Insert { relation, new } = decode(&body, Lsn(2)).unwrap() else { panic!("row") };
    assert!(journal.holds(relation));
    let mut frame = Vec::new();
    journal.frame(relation, new, &mut frame).map_err(|fault| fault.text.into_owned())?;
    Ok(frame)
}

#[test]
fn a_row_is_the_frame_of_its_message_whatever_the_columns_order() {
    let tombstone =
        Message::builder("orders", "order.gone.v1").source("/orders").key("k").tombstone();
    for message in [full(), tombstone.build().unwrap()] {
        let mut columns = row(&message);
        assert_eq!(framed(&columns).unwrap(), encode(&message));

        columns.reverse();
        columns.insert(3, ("a_column_of_a_later_version", None));
        let frame = framed(&columns).unwrap();

        assert_eq!(frame, encode(&message));
        Frame::decode(&frame).unwrap().validate().unwrap();
    }
}

#[test]
fn a_row_that_is_no_message_is_named() {
    let with = |name: &str, value: Option<Vec<u8>>| {
        let mut columns = row(&full());
        columns.iter_mut().find(|(column, _)| *column == name).unwrap().1 = value;
        framed(&columns).unwrap_err()
    };

    assert!(with("topic", None).contains("topic"));
    assert!(with("id", Some(vec![1, 2])).contains("id"));
    assert!(with("type", Some(vec![0xFF])).contains("type"));
    assert!(with("headers", Some(b"\x01[1]".to_vec())).contains("headers"));
    assert!(with("headers", Some(b"\x02{}".to_vec())).contains("headers"));
    assert!(with("attributes", Some(b"\x01{\"a\":1}".to_vec())).contains("attributes"));
    assert!(with("payload", None).contains("payload"));
    assert!(with("tombstone", Some(vec![1])).contains("payload"));
}

#[test]
fn a_table_of_another_name_is_no_journal() {
    let mut journal = Journal::new("tailrace");
    let body = relation("public", &["id"]);
    let Change::Relation(described) = decode(&body, Lsn(1)).unwrap() else { panic!("relation") };

    journal.relation(&described);

    assert!(!journal.holds(described.id));
}
