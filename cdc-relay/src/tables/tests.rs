//! Rows as Postgres sends them: the layout comes from the relation, the values in binary form.

use tailrace_outbox::Message;
use tailrace_outbox::frame::{Frame, encode};
use tailrace_outbox::mapping::Mapping;
use tailrace_outbox::schema::Schema;

use super::Tables;
use crate::lsn::Lsn;
use crate::pgoutput::{Change, Timestamp, decode};

const RELATION: u32 = 16_400;

/// A column's name, the OID of its type, and its value in binary form.
type Given = (&'static str, u32, Option<Vec<u8>>);

const BOOL: u32 = 16;
const BYTEA: u32 = 17;
const TEXT: u32 = 25;
const JSON: u32 = 114;
const VARCHAR: u32 = 1043;
const TIMESTAMPTZ: u32 = 1184;
const UUID: u32 = 2950;
const JSONB: u32 = 3802;
const OF_A_USER: u32 = 16_500;

/// A relation message for a table with these columns.
fn relation(schema: &str, table: &str, columns: &[Given]) -> Vec<u8> {
    let mut body = vec![b'R'];
    body.extend(RELATION.to_be_bytes());
    for text in [schema, table] {
        body.extend(text.as_bytes());
        body.push(0);
    }
    body.push(b'd');
    body.extend(u16::try_from(columns.len()).unwrap().to_be_bytes());
    for (name, oid, _) in columns {
        body.push(0);
        body.extend(name.as_bytes());
        body.push(0);
        body.extend(oid.to_be_bytes());
        body.extend([0xFF; 4]);
    }
    body
}

/// An insert message with the columns' values.
fn insert(columns: &[Given]) -> Vec<u8> {
    let mut body = vec![b'I'];
    body.extend(RELATION.to_be_bytes());
    body.push(b'N');
    body.extend(u16::try_from(columns.len()).unwrap().to_be_bytes());
    for (_, _, value) in columns {
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

fn text(text: &str) -> Option<Vec<u8>> {
    Some(text.as_bytes().to_vec())
}

fn row(message: &Message) -> Vec<Given> {
    let since_2000 = message.time_micros() - 946_684_800_000_000;
    vec![
        ("id", UUID, Some(message.id().as_bytes().to_vec())),
        ("created_at", TIMESTAMPTZ, Some(since_2000.to_be_bytes().to_vec())),
        ("topic", TEXT, text(message.topic())),
        ("key", BYTEA, message.key().map(<[u8]>::to_vec)),
        ("type", TEXT, text(message.r#type())),
        ("source", TEXT, text(message.source())),
        ("subject", TEXT, message.subject().and_then(text)),
        ("content_type", TEXT, text(message.content_type())),
        ("attributes", JSONB, jsonb(message.attributes())),
        ("headers", JSONB, jsonb(message.headers())),
        ("tombstone", BOOL, Some(vec![u8::from(message.is_tombstone())])),
        ("payload", BYTEA, message.payload().map(<[u8]>::to_vec)),
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

fn journal() -> Mapping {
    Mapping::journal(&Schema::default())
}

/// The frame of a row whose columns come in this order; else why there is none, and what is shown.
fn framed_by(mapping: &Mapping, columns: &[Given]) -> Result<Vec<u8>, (String, String)> {
    let mut tables = Tables::new(vec![mapping.clone()]);
    let body = relation(mapping.schema(), mapping.table(), columns);
    let Change::Relation(described) = decode(&body, Lsn(1)).unwrap() else { panic!("relation") };
    tables.relation(&described, 1);
    tables.begin(Timestamp(7));
    let body = insert(columns);
    let Change::Insert { relation, new } = decode(&body, Lsn(2)).unwrap() else { panic!("row") };
    assert!(tables.hold(relation));
    let mut bytes = Vec::new();
    if let Err(fault) = tables.frame(relation, new, &mut bytes) {
        bytes.clear();
        tables.show(relation, new, &mut bytes);
        return Err((fault.text.into_owned(), String::from_utf8(bytes).unwrap()));
    }
    Ok(bytes)
}

fn framed(columns: &[Given]) -> Result<Vec<u8>, String> {
    framed_by(&journal(), columns).map_err(|(why, _)| why)
}

#[test]
fn a_row_is_the_frame_of_its_message_whatever_the_columns_order() {
    let tombstone =
        Message::builder("orders", "order.gone.v1").source("/orders").key("k").tombstone();
    for message in [full(), tombstone.build().unwrap()] {
        let mut columns = row(&message);
        assert_eq!(framed(&columns).unwrap(), encode(&message));

        columns.reverse();
        columns.insert(3, ("a_column_of_a_later_version", 600, None));
        let frame = framed(&columns).unwrap();

        assert_eq!(frame, encode(&message));
        Frame::decode(&frame).unwrap().validate().unwrap();
    }
}

#[test]
fn a_row_that_is_no_message_is_named() {
    let with = |name: &str, value: Option<Vec<u8>>| {
        let mut columns = row(&full());
        columns.iter_mut().find(|(column, ..)| *column == name).unwrap().2 = value;
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
fn a_table_of_another_name_holds_no_messages() {
    let mut tables = Tables::new(vec![journal()]);
    for (schema, table) in [("public", "outbox"), ("tailrace", "inbox")] {
        let body = relation(schema, table, &[]);
        let Change::Relation(described) = decode(&body, Lsn(1)).unwrap() else { panic!("that") };

        tables.relation(&described, 1);

        assert!(!tables.hold(described.id));
    }
}

/// Each description is told from the others by a column that the mapping lacks.
#[test]
fn a_streamed_transaction_is_read_by_its_own_descriptions_and_leaves_the_newest() {
    let message = Message::builder("t", "t.v1").source("/t").payload("x").build().unwrap();
    let whole = row(&message);
    let broken = &whole[1..];
    let take = |tables: &mut Tables, columns: &[Given], arrival| {
        let body = relation("tailrace", "outbox", columns);
        let Change::Relation(described) = decode(&body, Lsn(1)).unwrap() else { panic!("that") };
        tables.relation(&described, arrival);
        described.id
    };
    let reads = |tables: &mut Tables, columns: &[Given]| {
        let body = insert(columns);
        let Change::Insert { relation, new } = decode(&body, Lsn(1)).unwrap() else { panic!() };
        tables.frame(relation, new, &mut Vec::new()).is_ok()
    };

    for (outside, inside, expected) in [(1, 2, true), (3, 2, false)] {
        let mut tables = Tables::new(vec![journal()]);
        let id = take(&mut tables, broken, outside);
        assert!(!reads(&mut tables, &whole));

        tables.begin_streamed();
        assert!(!tables.hold(id), "what it has not described itself is not there");
        take(&mut tables, &whole, inside);
        assert!(reads(&mut tables, &whole));
        tables.end_streamed();

        assert_eq!(reads(&mut tables, &whole), expected, "{outside} {inside}");
    }
}

const ID: [u8; 16] = [0x11; 16];

fn debezium() -> Vec<Given> {
    vec![
        ("id", UUID, Some(ID.to_vec())),
        ("aggregatetype", VARCHAR, text("Order")),
        ("aggregateid", VARCHAR, text("42")),
        ("type", VARCHAR, text("OrderPlaced")),
        ("payload", JSONB, text("\x01{\"a\": 1}")),
    ]
}

#[test]
fn a_row_of_debeziums_table_is_a_message_of_the_commits_time() {
    let mapping = Mapping::debezium("public.outbox").source("/orders").build().unwrap();

    let bytes = framed_by(&mapping, &debezium()).unwrap();

    let frame = Frame::decode(&bytes).unwrap();
    frame.validate().unwrap();
    assert_eq!(frame.id().into_bytes(), ID);
    assert_eq!(frame.topic(), "outbox.event.Order");
    assert_eq!(frame.key(), Some(&b"42"[..]));
    assert_eq!((frame.r#type(), frame.source()), ("OrderPlaced", "/orders"));
    assert_eq!(frame.content_type(), "application/json");
    assert_eq!(frame.payload(), Some(&b"{\"a\": 1}"[..]));
    assert_eq!(frame.time_micros(), 946_684_800_000_007);
    assert_eq!(frame.subject(), None);
    let headers: Vec<_> = frame.headers().iter().collect();
    assert_eq!(headers, [("id", "11111111-1111-1111-1111-111111111111")]);

    let mut gone = debezium();
    gone[4].2 = None;
    assert!(Frame::decode(&framed_by(&mapping, &gone).unwrap()).unwrap().is_tombstone());
    let strict: Mapping = "public.outbox=debezium, null_payload=error".parse().unwrap();
    let (why, shown) = framed_by(&strict, &gone).unwrap_err();
    assert!(why.contains("payload is null"), "{why}");
    let id = uuid::Uuid::from_bytes(ID).to_string();
    let expected = serde_json::json!({"id": id, "aggregatetype": "Order", "aggregateid": "42",
        "type": "OrderPlaced", "payload": null});
    assert_eq!(shown.parse::<serde_json::Value>().unwrap(), expected);
}

#[test]
fn every_type_that_a_column_may_have_is_read() {
    let mapping: Mapping = "a.b=topic=t, id:i:text, type:kind, payload:p:text, key:k:uuid, \
         headers:h:json, created_at:at, content_type:media, source:who, source=/a"
        .parse()
        .unwrap();
    let columns = |media: Option<Vec<u8>>| -> Vec<Given> {
        vec![
            ("i", OF_A_USER, text("11111111-1111-1111-1111-111111111111")),
            ("kind", OF_A_USER, text("placed")),
            ("p", TEXT, text("plain")),
            ("k", UUID, Some(ID.to_vec())),
            ("h", JSON, text("{\"b\": \"2\", \"a\": \"1\"}")),
            ("at", TIMESTAMPTZ, Some(0_i64.to_be_bytes().to_vec())),
            ("media", TEXT, media),
            ("who", TEXT, None),
        ]
    };

    let bytes = framed_by(&mapping, &columns(text("text/plain"))).unwrap();
    let frame = Frame::decode(&bytes).unwrap();
    assert_eq!(frame.id().into_bytes(), ID);
    assert_eq!((frame.topic(), frame.r#type(), frame.source()), ("t", "placed", "/a"));
    assert_eq!(frame.key(), Some(&b"11111111-1111-1111-1111-111111111111"[..]));
    assert_eq!(frame.payload(), Some(&b"plain"[..]));
    assert_eq!(frame.headers().iter().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
    assert_eq!(frame.content_type(), "text/plain");
    assert_eq!(frame.time_micros(), 946_684_800_000_000);
    let bytes = framed_by(&mapping, &columns(None)).unwrap();
    assert_eq!(Frame::decode(&bytes).unwrap().content_type(), "application/json");

    let mut wrong = columns(None);
    wrong[0].2 = text("one");
    wrong[2].2 = Some(vec![0xFF, 0]);
    let (why, shown) = framed_by(&mapping, &wrong).unwrap_err();
    assert_eq!(why, "its id is not a UUID");
    assert!(shown.contains(r#""i":"one""#) && shown.contains(r#""p":"\\xff00""#), "{shown}");
}

#[test]
fn a_table_that_changed_under_its_mapping_loses_nothing_unseen() {
    let mapping = Mapping::debezium("public.outbox").build().unwrap();
    let refused = |columns: &[Given]| framed_by(&mapping, columns).unwrap_err().0;
    let mut other_type = debezium();
    other_type[4].1 = TEXT;
    let mut dropped = debezium();
    dropped.remove(2);

    assert_eq!(refused(&other_type), "its column \"payload\" is not of type jsonb, as mapped");
    assert_eq!(refused(&dropped), "its table shows no column \"aggregateid\"");
}
