use proptest::collection::{btree_map, vec};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::{option, prop_assert_eq};
use uuid::Uuid;

use super::{Frame, Pairs, encode, encode_parts, encoded_len};
use crate::{Builder, Message};

/// One frame, every part of it present, byte by byte.
const GOLDEN: &[&[u8]] = &[
    b"TR",
    &[1],
    &[0],
    &[0x01, 0x8f, 0x2c, 0x4e, 0x00, 0x00, 0x70, 0x00, 0x80, 0x00, 0, 0, 0, 0, 0, 0x2a],
    // 1,700,000,000,123,456 µs: 2023-11-14 22:13:20.123456 UTC.
    &[0x00, 0x06, 0x0a, 0x24, 0x18, 0x20, 0x22, 0x40],
    &[0, 0, 0, 6],
    b"orders",
    &[0, 0, 0, 8],
    b"order-42",
    &[0, 0, 0, 15],
    b"order.placed.v1",
    &[0, 0, 0, 7],
    b"/orders",
    &[0, 0, 0, 9],
    b"Bestell\xc3\xb6",
    &[0, 0, 0, 16],
    b"application/json",
    // One system attribute.
    &[0, 0, 0, 1],
    &[0, 0, 0, 16],
    b"ce_correlationid",
    &[0, 0, 0, 3],
    b"c-1",
    // Two user headers; the second has an empty value.
    &[0, 0, 0, 2],
    &[0, 0, 0, 6],
    b"tenant",
    &[0, 0, 0, 4],
    b"acme",
    &[0, 0, 0, 1],
    b"x",
    &[0, 0, 0, 0],
    &[0, 0, 0, 7],
    b"{\"n\":1}",
];

/// The smallest frame: no key, no subject, no pairs, an empty payload.
const SMALLEST: &[&[u8]] = &[
    b"TR",
    &[1, 0],
    &[0xff; 16],
    &[0xff; 8],
    &[0, 0, 0, 1],
    b"t",
    &[0xff; 4],
    &[0, 0, 0, 1],
    b"y",
    &[0, 0, 0, 1],
    b"/",
    &[0xff; 4],
    &[0, 0, 0, 1],
    b"c",
    &[0; 4],
    &[0; 4],
    &[0; 4],
];

fn golden() -> Builder {
    Message::builder("orders", "order.placed.v1")
        .id(Uuid::from_u128(0x018f_2c4e_0000_7000_8000_0000_0000_002a))
        .time_micros(1_700_000_000_123_456)
        .source("/orders")
        .key("order-42")
        .subject("Bestellö")
        .correlation_id("c-1")
        .header("x", "")
        .header("tenant", "acme")
        .json(&serde_json::json!({ "n": 1 }))
}

#[test]
fn a_message_has_exactly_the_bytes_of_the_contract() {
    let message = golden().build().unwrap();

    assert_eq!(encode(&message), GOLDEN.concat());
}

#[test]
fn the_smallest_message_has_exactly_the_bytes_of_the_contract() {
    let message = Message::builder("t", "y")
        .id(Uuid::max())
        .time_micros(-1)
        .source("/")
        .content_type("c")
        .payload([])
        .build()
        .unwrap();

    assert_eq!(encode(&message), SMALLEST.concat());
}

#[test]
fn a_tombstone_has_its_flag_and_no_payload() {
    let bytes = encode(&golden().tombstone().build().unwrap());

    let mut expected = GOLDEN.concat();
    let payload_at = expected.len() - 11;
    expected.truncate(payload_at);
    expected.extend_from_slice(&[0xff; 4]);
    expected[3] = 1;
    assert_eq!(bytes, expected);
    assert!(Frame::decode(&bytes).unwrap().is_tombstone());
}

#[test]
fn a_decoded_frame_points_into_the_bytes_it_came_from() {
    let bytes = GOLDEN.concat();
    let frame = Frame::decode(&bytes).unwrap();

    let inside = bytes.as_ptr_range();
    assert!(inside.contains(&frame.payload().unwrap().as_ptr()));
    assert!(inside.contains(&frame.topic().as_ptr()));
    assert_eq!(frame.headers().get("tenant"), Some("acme"));
    assert_eq!(frame.headers().get("x"), Some(""));
    assert_eq!(frame.headers().get("y"), None);
    assert_eq!((frame.attributes().len(), frame.headers().len()), (1, 2));
    frame.validate().unwrap();
}

/// Where the parts of the golden frame begin, for the faults below.
const TOPIC_AT: usize = 28;
const KEY_AT: usize = TOPIC_AT + 4 + 6;
const TYPE_AT: usize = KEY_AT + 4 + 8;
const SOURCE_AT: usize = TYPE_AT + 4 + 15;
const SUBJECT_AT: usize = SOURCE_AT + 4 + 7;
const ATTRIBUTES_AT: usize = SUBJECT_AT + 4 + 9 + 4 + 16;
const HEADERS_AT: usize = ATTRIBUTES_AT + 4 + 4 + 16 + 4 + 3;
const PAYLOAD_AT: usize = HEADERS_AT + 4 + 4 + 6 + 4 + 4 + 4 + 1 + 4;

#[test]
fn every_fault_of_form_is_named_with_its_byte() {
    let check = |at: usize, patch: &[u8], expected: &str| {
        let mut bytes = GOLDEN.concat();
        bytes[at..at + patch.len()].copy_from_slice(patch);

        let error = Frame::decode(&bytes).expect_err(expected);

        assert_eq!(error.to_string(), expected);
    };

    check(1, b"S", "the magic is not TR, at byte 0 of the frame");
    check(2, &[2], "the version is unknown, at byte 2 of the frame");
    check(3, &[2], "the flag is unknown, at byte 3 of the frame");
    check(3, &[0x81], "the flag is unknown, at byte 3 of the frame");
    check(TOPIC_AT, &[0xff; 4], "the topic is null, at byte 28 of the frame");
    check(
        KEY_AT,
        &[0xff, 0xff, 0xff, 0xfe],
        "the key has a negative length, at byte 38 of the frame",
    );
    check(TYPE_AT, &[0xff; 4], "the type is null, at byte 50 of the frame");
    check(SOURCE_AT + 4, &[0xc3, 0x28], "the source is not UTF-8, at byte 73 of the frame");
    check(SUBJECT_AT + 4 + 8, &[0x28], "the subject is not UTF-8, at byte 91 of the frame");
    check(
        ATTRIBUTES_AT,
        &[0x80],
        "the system attribute has a negative count, at byte 113 of the frame",
    );
    check(HEADERS_AT + 4 + 4, &[0xff], "the user header is not UTF-8, at byte 152 of the frame");
    check(
        HEADERS_AT,
        &[0x7f, 0xff, 0xff, 0xff],
        "the user header is cut short, at byte 186 of the frame",
    );
    check(
        PAYLOAD_AT,
        &[0, 0, 0, 8],
        "the payload is longer than what is left, at byte 175 of the frame",
    );
    check(PAYLOAD_AT, &[0, 0, 0, 6], "the payload has bytes after it, at byte 185 of the frame");
    check(3, &[1], "the payload is present in a tombstone, at byte 175 of the frame");
}

#[test]
fn a_null_payload_without_the_flag_is_refused() {
    let mut bytes = GOLDEN.concat();
    bytes.truncate(PAYLOAD_AT);
    bytes.extend_from_slice(&[0xff; 4]);

    let error = Frame::decode(&bytes).unwrap_err();

    assert_eq!((error.at(), error.part()), (PAYLOAD_AT, "payload"));
    assert_eq!(error.what(), "is null without the tombstone flag");
}

#[test]
fn a_frame_cut_short_anywhere_or_lengthened_is_refused() {
    for golden in [GOLDEN.concat(), SMALLEST.concat()] {
        for end in 0..golden.len() {
            let error = Frame::decode(&golden[..end]).unwrap_err();
            assert!(error.at() <= end, "{error}");
        }
        let mut longer = golden.clone();
        longer.push(0);
        assert_eq!(Frame::decode(&longer).unwrap_err().at(), golden.len());
    }
}

#[test]
fn content_that_can_not_be_published_is_named() {
    let check = |at: usize, patch: &[u8], expected: &str| {
        let mut bytes = GOLDEN.concat();
        bytes[at..at + patch.len()].copy_from_slice(patch);

        let error = Frame::decode(&bytes).unwrap().validate().expect_err(expected);

        assert!(error.to_string().contains(expected), "{error}");
    };

    check(4, &[0; 16], "the id is nil");
    check(TOPIC_AT + 4, b"a b", "can not exist in Kafka");
    check(TYPE_AT + 4, b"\n", "the type contains a control character");
    check(ATTRIBUTES_AT + 8, b"no", "is not the name of a system attribute");
    check(HEADERS_AT + 8, b"ce_", "is reserved");
    check(HEADERS_AT + 8, b"\0", "contains a NUL");
}

fn text() -> impl Strategy<Value = String> {
    "[^\\x00-\\x1f\\x7f-\\x9f]{1,12}"
}

fn body() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![3 => vec(any::<u8>(), 0..64).prop_map(Some), 1 => Just(None)]
}

fn message() -> impl Strategy<Value = Message> {
    let names = ("[a-zA-Z0-9_-]{1,20}", text(), text(), option::of(text()), text());
    let pairs = (
        btree_map("h[^\\x00]{0,8}", "[^\\x00]{0,8}", 0..4),
        btree_map(proptest::sample::select(crate::header::OF_CAUSE.to_vec()), text(), 0..4),
    );
    (any::<u128>(), any::<i64>(), option::of(vec(any::<u8>(), 0..16)), body(), names, pairs)
        .prop_map(
            |(id, time, key, body, (topic, kind, source, subject, media), (headers, cause))| {
                let mut builder = Message::builder(topic, kind)
                    .id(Uuid::from_u128(id.max(1)))
                    .time_micros(time)
                    .source(source)
                    .content_type(media)
                    .caused_by(cause);
                if let Some(subject) = subject {
                    builder = builder.subject(subject);
                }
                for (name, value) in headers {
                    builder = builder.header(name, value);
                }
                match (key, body) {
                    (Some(key), Some(body)) => builder.key(key).payload(body),
                    (None, Some(body)) => builder.payload(body),
                    (key, None) => builder.key(key.unwrap_or_default()).tombstone(),
                }
                .build()
                .expect("the strategy keeps the rules")
            },
        )
}

fn list(pairs: Pairs<'_>) -> Vec<(&str, &str)> {
    pairs.iter().collect()
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(message in message()) {
        let bytes = encode(&message);
        let frame = Frame::decode(&bytes).expect("a frame of our own");

        prop_assert_eq!(bytes.len(), encoded_len(&message));
        prop_assert_eq!(frame.id(), message.id());
        prop_assert_eq!(frame.time_micros(), message.time_micros());
        prop_assert_eq!(frame.topic(), message.topic());
        prop_assert_eq!(frame.key(), message.key());
        prop_assert_eq!(frame.r#type(), message.r#type());
        prop_assert_eq!(frame.source(), message.source());
        prop_assert_eq!(frame.subject(), message.subject());
        prop_assert_eq!(frame.content_type(), message.content_type());
        prop_assert_eq!(list(frame.attributes()), message.attributes().collect::<Vec<_>>());
        prop_assert_eq!(list(frame.headers()), message.headers().collect::<Vec<_>>());
        prop_assert_eq!(frame.payload(), message.payload());
        prop_assert_eq!(frame.is_tombstone(), message.is_tombstone());
        frame.validate().expect("the builder and the frame keep the same rules");
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(tail in vec(any::<u8>(), 0..200), headed in any::<bool>()) {
        let mut bytes = if headed { b"TR\x01\x00".to_vec() } else { Vec::new() };
        bytes.extend(tail);
        read_all(&bytes);
    }

    #[test]
    fn no_mutation_of_a_frame_makes_the_decoder_panic(
        message in message(),
        edits in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        end in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = encode(&message);
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        read_all(&bytes);
        read_all(&bytes[..end.index(bytes.len())]);
    }
}

#[test]
fn what_the_fuzzer_starts_from_is_frames() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/frame");
    let read = |name: &str| std::fs::read(format!("{corpus}/{name}")).expect("it is there");
    let (golden, smallest, tombstone) = (read("golden"), read("smallest"), read("tombstone"));

    assert_eq!(golden, GOLDEN.concat());
    assert_eq!(smallest, SMALLEST.concat());
    assert_eq!(tombstone, encode(&self::golden().tombstone().build().unwrap()));
}

/// Decodes and, if that works, reads every pair, asks every rule and encodes it again.
fn read_all(bytes: &[u8]) {
    match Frame::decode(bytes) {
        Ok(frame) => {
            let read = frame.attributes().iter().count() + frame.headers().iter().count();
            assert_eq!(read, frame.attributes().len() + frame.headers().len());
            let mut again = Vec::new();
            let (attributes, headers) = (frame.attributes(), frame.headers());
            encode_parts(&mut again, &frame.parts(), attributes.iter(), headers.iter());
            assert_eq!(again, bytes);
            assert!(format!("{frame:?}").contains("topic"));
            // Any answer will do; a panic would not.
            drop(frame.validate());
        }
        Err(error) => assert!(error.at() <= bytes.len(), "{error}"),
    }
}
