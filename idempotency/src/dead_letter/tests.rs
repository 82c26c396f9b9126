use std::sync::Arc;

use super::*;
use crate::failure::Reason;
use crate::progress::Partition;

fn letter(headers: &[(&str, Option<&[u8]>)], key: Option<&[u8]>) -> Letter {
    Letter {
        stored: Stored {
            offset: 7,
            key: key.map(<[u8]>::to_vec),
            message_id: uuid::Uuid::nil(),
            message_type: "order.placed.v1".to_owned(),
            payload: None,
            header_names: headers.iter().map(|(name, _)| (*name).to_owned()).collect(),
            header_values: headers.iter().map(|(_, value)| value.map(<[u8]>::to_vec)).collect(),
            written_at_ms: None,
        },
        cause: Cause::with_detail(Reason::Failed, "why"),
        attempts: 3,
    }
}

fn parts(headers: &[(&str, Option<&[u8]>)], key: Option<&[u8]>) -> Parts {
    let partition = Partition { topic: Arc::from("orders"), number: 2 };
    let table = Table { consumer: "billing", partition: &partition };
    Parts::of(table, &letter(headers, key))
}

fn texts(pairs: &Map<String, Value>) -> Vec<(&str, &str)> {
    pairs.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect()
}

const DEAD: [(&str, &str); 7] = [
    ("tailrace-dead-attempts", "3"),
    ("tailrace-dead-component", "billing"),
    ("tailrace-dead-detail", "why"),
    ("tailrace-dead-offset", "7"),
    ("tailrace-dead-partition", "2"),
    ("tailrace-dead-reason", "failed"),
    ("tailrace-dead-topic", "orders"),
];

#[test]
fn headers_and_attributes_are_kept_and_what_the_relay_writes_is_left_to_it() {
    let parts = parts(
        &[
            ("ce_id", Some(b"1")),
            ("ce_source", Some(b"/orders")),
            ("ce_sequence", Some(b"r:1")),
            ("ce_causationid", Some(b"cause")),
            ("content-type", Some(b"application/json")),
            ("a", Some(b"first")),
            ("a", Some(b"second")),
            ("b", None),
        ],
        Some(b"key"),
    );

    assert_eq!(parts.source.as_deref(), Some("/orders"));
    assert_eq!(parts.content_type.as_deref(), Some("application/json"));
    assert_eq!(texts(&parts.attributes), [("ce_causationid", "cause")]);
    assert_eq!(texts(&parts.headers), [&[("a", "first")][..], &DEAD].concat());
}

#[test]
fn what_no_text_holds_is_left_out_or_shown_in_hex() {
    let parts = parts(
        &[("bytes", Some(b"\xff")), ("CE_x", Some(b"1")), ("ce_subject", Some(b"a\nb"))],
        Some(b"\xfe\x01"),
    );

    let mut expected = DEAD.to_vec();
    expected.insert(3, ("tailrace-dead-key-hex", "fe01"));
    assert_eq!(texts(&parts.headers), expected);
    assert_eq!((parts.subject, parts.attributes.len()), (None, 0));
}
