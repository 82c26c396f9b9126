use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use uuid::Uuid;

use super::micros;
use crate::codec::Codec;
use crate::{Builder, FRAME_BYTES_MAX, Kind, Message, Reaction};

/// A message that breaks no rule.
fn good() -> Builder {
    Message::builder("orders", "order.placed.v1").source("/orders").key("order-42").json(&1)
}

#[test]
fn every_broken_rule_is_one_error_that_names_it() {
    let check = |builder: Builder, expected: &str| {
        let error = builder.build().expect_err(expected);

        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!((error.kind(), error.reaction()), (Kind::Invalid, Reaction::Reject));
        assert!(error.is_invalid());
    };
    let base = |topic: &str, kind: &str| Message::builder(topic, kind).source("/s").json(&1);

    check(Message::builder("orders", "t").json(&1), "no source; name the producing service");
    check(Message::builder("orders", "t").source("/s"), "no payload; give one");
    check(base("", "t"), "the topic is empty");
    check(base("a/b", "t"), "topic \"a/b\" can not exist in Kafka");
    check(base("..", "t"), "can not exist in Kafka");
    check(base(&"a".repeat(250), "t"), "the topic has 250 bytes, and Kafka takes 249");
    check(base("orders", ""), "the type is empty");
    check(base("orders", "a\nb"), "the type contains a control character");
    check(good().source(""), "the source is empty");
    check(good().source("\0"), "the source contains a control character");
    check(good().subject(""), "the subject is empty");
    check(good().content_type(""), "the content type is empty");
    check(good().id(Uuid::nil()), "the id is nil");
    check(good().header("", "v"), "a header has an empty name");
    check(good().header("CE_id", "v"), "header name \"CE_id\" is reserved; names that begin");
    check(good().header("traceparent", "v"), "is reserved");
    check(good().header("a", "1").header("b", "2").header("a", "3"), "header \"a\" is given twice");
    check(good().header("a", "x\0y"), "header \"a\" contains a NUL");
    check(
        good().of_saga([("ce_saga", "v")]),
        "\"ce_saga\" is not an attribute of a cause or a saga",
    );
    check(good().of_saga([("ce_sagaid", "")]), "the ce_sagaid is empty");
    check(good().caused_by([("tenant", "v")]), "\"tenant\" is not an attribute of a cause");
    check(good().caused_by([("ce_id", "v")]), "\"ce_id\" is not an attribute of a cause");
    check(good().correlation_id(""), "the ce_correlationid is empty");
    check(base("orders", "t").tombstone(), "a tombstone needs a key");
}

#[test]
fn a_payload_that_does_not_serialize_is_an_error_of_build() {
    let keys_are_no_text = BTreeMap::from([((1, 2), 3)]);

    let error = good().json(&keys_are_no_text).build().unwrap_err();

    assert!(error.is_invalid(), "{error}");
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn no_error_shows_a_payload_or_a_value() {
    for builder in [
        good().header("ce_x", "s3cret"),
        Message::builder("a b", "t").source("/s").payload("s3cret"),
        good().header("a", "s3cret").header("a", "s3cret"),
        good().correlation_id("s3cret\n"),
        good().payload("s3cret").frame_bytes_max(1),
    ] {
        let error = builder.build().unwrap_err();

        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    }
}

#[test]
fn the_limit_counts_the_whole_frame_and_can_be_raised() {
    let frame_without_payload = crate::frame::encoded_len(&good().payload([]).build().unwrap());
    let largest = vec![0; FRAME_BYTES_MAX - frame_without_payload];
    let mut too_large = largest.clone();
    too_large.push(0);

    assert!(good().payload(largest).build().is_ok());
    let error = good().payload(too_large.clone()).build().unwrap_err();
    assert!(error.is_too_large());
    assert!(error.to_string().contains("983041 bytes, and its limit is 983040"), "{error}");
    assert!(error.mend().unwrap().contains("frame_bytes_max"));
    assert!(good().payload(too_large).frame_bytes_max(FRAME_BYTES_MAX + 1).build().is_ok());
}

#[test]
fn what_is_given_is_what_the_message_has() {
    let message = good()
        .key([0xff, 0])
        .subject("order-42")
        .header("tenant", "acme")
        .header("Tenant", "other case, other name")
        .caused_by(vec![("traceparent".to_owned(), "00-a-b-01".to_owned())])
        .caused_by([("ce_correlationid", "first"), ("ce_causationid", "cause")])
        .correlation_id("last counts")
        .payload(b"raw".to_vec())
        .content_type("application/octet-stream")
        .build()
        .unwrap();

    assert_eq!(message.topic(), "orders");
    assert_eq!(message.r#type(), "order.placed.v1");
    assert_eq!(message.source(), "/orders");
    assert_eq!(message.key(), Some(&[0xff, 0][..]));
    assert_eq!(message.subject(), Some("order-42"));
    assert_eq!(message.content_type(), "application/octet-stream");
    assert_eq!(message.payload(), Some(&b"raw"[..]));
    assert_eq!(
        message.headers().collect::<Vec<_>>(),
        [("Tenant", "other case, other name"), ("tenant", "acme")]
    );
    assert_eq!(
        message.attributes().collect::<Vec<_>>(),
        [
            ("ce_causationid", "cause"),
            ("ce_correlationid", "last counts"),
            ("traceparent", "00-a-b-01")
        ]
    );
}

#[test]
fn what_a_foreign_cause_can_not_pass_on_is_left_out() {
    let cause = [("tracestate", ""), ("traceparent", "00-a\n"), ("ce_correlationid", "first")];

    let message = good().caused_by(cause).build().unwrap();

    assert_eq!(message.attributes().collect::<Vec<_>>(), [("ce_correlationid", "first")]);
}

#[test]
fn only_a_tombstone_has_no_payload() {
    let tombstone = good().tombstone().build().unwrap();
    let empty = good().payload([]).build().unwrap();
    let null = good().json(&()).build().unwrap();

    assert_eq!((tombstone.payload(), tombstone.is_tombstone()), (None, true));
    assert_eq!((empty.payload(), empty.is_tombstone()), (Some(&b""[..]), false));
    assert_eq!((null.payload(), null.is_tombstone()), (Some(&b"null"[..]), false));
}

#[test]
fn ids_of_one_process_rise_from_every_thread() {
    let ids = std::thread::scope(|scope| {
        let minters: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| (0..1_000).map(|_| good().build().unwrap().id()).collect::<Vec<_>>())
            })
            .collect();
        minters.into_iter().map(|minter| minter.join().unwrap()).collect::<Vec<_>>()
    });

    for of_one_thread in &ids {
        assert!(of_one_thread.is_sorted());
        assert!(of_one_thread.iter().all(|id| id.get_version_num() == 7));
    }
    let mut all = ids.concat();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 4_000);
}

#[test]
fn time_is_in_microseconds_and_negative_before_the_epoch() {
    assert_eq!(micros(UNIX_EPOCH), 0);
    assert_eq!(micros(UNIX_EPOCH + Duration::from_nanos(1_999)), 1);
    assert_eq!(micros(UNIX_EPOCH - Duration::from_micros(5)), -5);
}

#[test]
fn the_content_type_is_that_of_the_payload_given_last_unless_it_is_named() {
    struct Text;
    impl Codec<str> for Text {
        const CONTENT_TYPE: &'static str = "text/plain";
        fn encode(payload: &str) -> Result<Vec<u8>, crate::codec::BoxError> {
            Ok(payload.as_bytes().to_vec())
        }
    }
    let content_type = |builder: Builder| builder.build().unwrap().content_type().to_owned();

    assert_eq!(content_type(good().encoded::<Text, str>("x")), "text/plain");
    assert_eq!(content_type(good().encoded::<Text, str>("x").json(&1)), "application/json");
    assert_eq!(content_type(good().encoded::<Text, str>("x").content_type("a/b")), "a/b");
}
