use super::*;
use crate::position::Offset;

const ID: &str = "019a9c6e-0000-7000-8000-000000000001";

/// A record of `orders` without headers.
pub(crate) fn delivery(offset: i64) -> Delivery {
    Delivery {
        position: Position { topic: "orders".into(), partition: 2, offset: Offset::new(offset) },
        timestamp: None,
        key: None,
        headers: Headers::default(),
        payload: Some(b"{}".to_vec()),
    }
}

fn read(pairs: &[(&str, &str)]) -> Result<Record, Error> {
    let mut delivery = delivery(7);
    for (name, value) in pairs {
        delivery.headers.push(name, Some(value.as_bytes()));
    }
    Record::read(delivery, None)
}

fn check_cause(extra: &[(&str, &str)], expected: &[(&str, &str)]) {
    let headers = [&[("ce_id", ID), ("ce_type", "order.placed.v1")], extra].concat();

    let cause = read(&headers).unwrap().meta.cause();

    let cause: Vec<_> = cause.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(cause, expected);
}

#[test]
fn a_conversation_begins_with_its_first_message_and_is_handed_on() {
    check_cause(&[], &[("ce_correlationid", ID), ("ce_causationid", ID)]);
    check_cause(
        &[
            ("ce_correlationid", "first"),
            ("ce_causationid", "before"),
            ("traceparent", "00-1-2-01"),
        ],
        &[("ce_correlationid", "first"), ("ce_causationid", ID), ("traceparent", "00-1-2-01")],
    );
}

#[test]
fn a_missing_or_unreadable_attribute_is_named_with_its_place() {
    let mut unreadable = delivery(7);
    unreadable.headers.push("ce_id", Some(b"\xff"));
    let unreadable = Record::read(unreadable, None).unwrap_err();
    let untyped = read(&[("ce_id", ID)]).unwrap_err();

    assert!(unreadable.to_string().contains("ce_id is not UTF-8"), "{unreadable}");
    assert!(untyped.to_string().contains("ce_type is missing"), "{untyped}");
    for error in [unreadable, untyped] {
        assert!(error.to_string().contains("topic orders partition 2 offset 7"), "{error}");
    }
}

#[test]
fn headers_keep_their_order_and_null_values_and_the_first_of_a_name_is_read() {
    let mut headers = Headers::default();
    headers.push("a", Some(b"1"));
    headers.push("b", None);
    headers.push("a", Some(b"2"));

    let all: Vec<_> = headers.iter().collect();

    assert_eq!(all, [("a", Some(&b"1"[..])), ("b", None), ("a", Some(&b"2"[..]))]);
    assert_eq!((headers.get("a"), headers.get("b")), (Some(&b"1"[..]), None));
    assert_eq!(format!("{headers:?}"), r#"["a", "b", "a"]"#);
}
