//! The format, byte by byte, and what breaks it. Real messages of a real server are decoded in
//! `replication/tests/stream.rs`.

use proptest::collection::vec;
use proptest::prelude::{any, prop_assert, proptest};
use proptest::sample::Index;

use super::{
    Change, Column, OldRow, Relation, RelationColumn, RelationId, ReplicaIdentity, Segment,
    Timestamp, Tuple, Xid, decode, decode_segment, decode_streamed,
};
use crate::error::{Error, Kind};
use crate::lsn::Lsn;

const LSN: Lsn = Lsn(0x16_B374_D848);

/// Joins the parts of a message.
macro_rules! bytes {
    ($($part:expr),* $(,)?) => { [$(&$part[..]),*].concat() };
}

fn begin() -> Vec<u8> {
    bytes![b"B", 7_u64.to_be_bytes(), (-5_i64).to_be_bytes(), 9_u32.to_be_bytes()]
}

fn message() -> Vec<u8> {
    bytes![b"M\x01", 7_u64.to_be_bytes(), b"prefix\0", 5_u32.to_be_bytes(), b"\0\xffabc"]
}

fn relation() -> Vec<u8> {
    bytes![
        b"R",
        42_u32.to_be_bytes(),
        b"\0orders\0f",
        2_u16.to_be_bytes(),
        b"\x01id\0",
        20_u32.to_be_bytes(),
        (-1_i32).to_be_bytes(),
        b"\0\xc3\xa4\0",
        1043_u32.to_be_bytes(),
        14_i32.to_be_bytes(),
    ]
}

/// Four columns, one of each kind.
fn tuple() -> Vec<u8> {
    bytes![4_u16.to_be_bytes(), b"nut", 2_u32.to_be_bytes(), b"hib", 0_u32.to_be_bytes()]
}

const COLUMNS: [Column<'_>; 4] =
    [Column::Null, Column::Unchanged, Column::Text(b"hi"), Column::Binary(b"")];

fn update(old: &[u8]) -> Vec<u8> {
    let old = if old.is_empty() { vec![] } else { bytes![old, tuple()] };
    bytes![b"U", 42_u32.to_be_bytes(), old, b"N", tuple()]
}

fn truncate() -> Vec<u8> {
    bytes![b"T", 2_u32.to_be_bytes(), b"\x03", 42_u32.to_be_bytes(), 43_u32.to_be_bytes()]
}

/// One of every message.
fn samples() -> Vec<Vec<u8>> {
    vec![
        begin(),
        bytes![b"C\0", 7_u64.to_be_bytes(), 8_u64.to_be_bytes(), 3_i64.to_be_bytes()],
        message(),
        relation(),
        bytes![b"Y", 600_u32.to_be_bytes(), b"public\0mood\0"],
        bytes![b"O", 7_u64.to_be_bytes(), b"upstream\0"],
        bytes![b"I", 42_u32.to_be_bytes(), b"N", tuple()],
        update(b""),
        update(b"K"),
        update(b"O"),
        bytes![b"D", 42_u32.to_be_bytes(), b"K", tuple()],
        bytes![b"D", 42_u32.to_be_bytes(), b"O", tuple()],
        truncate(),
        bytes![b"S", 9_u32.to_be_bytes(), b"\x01"],
        bytes![b"E"],
        bytes![
            b"c",
            9_u32.to_be_bytes(),
            b"\0",
            7_u64.to_be_bytes(),
            8_u64.to_be_bytes(),
            3_i64.to_be_bytes()
        ],
        bytes![b"A", 9_u32.to_be_bytes(), 10_u32.to_be_bytes()],
    ]
}

/// One of every message that is a change, as it comes in a segment.
fn streamed_samples() -> Vec<Vec<u8>> {
    let changes = samples().into_iter().filter(|sample| b"RIUDTMY".contains(&sample[0]));
    changes.map(|sample| bytes![sample[..1], 10_u32.to_be_bytes(), sample[1..]]).collect()
}

fn columns(tuple: Tuple<'_>) -> Vec<Column<'_>> {
    assert_eq!(tuple.columns().len(), tuple.len());
    tuple.columns().collect()
}

/// Walks over all of it, as a caller would.
fn walk(change: &Change<'_>) -> usize {
    let old = |row: &OldRow<'_>| match row {
        OldRow::Key(tuple) | OldRow::Full(tuple) => tuple.columns().count(),
    };
    match change {
        Change::Insert { new, .. } => new.columns().count(),
        Change::Update { old: row, new, .. } => row.as_ref().map_or(0, old) + new.columns().count(),
        Change::Delete { old: row, .. } => old(row),
        _ => 0,
    }
}

fn fault(body: &[u8]) -> Error {
    let error = decode(body, LSN).expect_err("a broken message is no change");
    assert_eq!(error.kind(), Kind::Malformed, "{body:?}");
    assert!(error.to_string().starts_with("pgoutput message at 16/B374D848: "), "{error}");
    error
}

#[test]
fn a_transaction_and_its_messages_are_read() {
    assert_eq!(
        decode(&begin(), LSN).unwrap(),
        Change::Begin { final_lsn: Lsn(7), timestamp: Timestamp(-5), xid: Xid(9) }
    );
    assert_eq!(
        decode(&message(), LSN).unwrap(),
        Change::Message {
            transactional: true,
            lsn: Lsn(7),
            prefix: "prefix",
            content: b"\0\xffabc"
        }
    );
    assert_eq!(
        decode(&samples()[1], LSN).unwrap(),
        Change::Commit { commit_lsn: Lsn(7), end_lsn: Lsn(8), timestamp: Timestamp(3) }
    );
    assert_eq!(Timestamp(0).unix_micros(), 946_684_800_000_000);
}

#[test]
fn tables_and_types_are_read() {
    let id = RelationColumn { key: true, name: "id", type_oid: 20, type_modifier: -1 };
    let umlaut = RelationColumn { key: false, name: "ä", type_oid: 1043, type_modifier: 14 };

    assert_eq!(
        decode(&relation(), LSN).unwrap(),
        Change::Relation(Relation {
            id: RelationId(42),
            namespace: "pg_catalog",
            name: "orders",
            replica_identity: ReplicaIdentity::Full,
            columns: vec![id, umlaut],
        })
    );
    assert_eq!(
        decode(&samples()[4], LSN).unwrap(),
        Change::Type { oid: 600, namespace: "public", name: "mood" }
    );
    assert_eq!(
        decode(&samples()[5], LSN).unwrap(),
        Change::Origin { commit_lsn: Lsn(7), name: "upstream" }
    );
}

#[test]
fn rows_are_read() {
    let insert = samples().remove(6);
    let Change::Insert { relation, new } = decode(&insert, LSN).unwrap() else {
        panic!("an insert")
    };
    assert_eq!((relation, columns(new)), (RelationId(42), COLUMNS.to_vec()));

    let (plain, with_key, full) = (update(b""), update(b"K"), update(b"O"));
    let old = |body| match decode(body, LSN).unwrap() {
        Change::Update { relation: RelationId(42), old, new } => {
            assert_eq!(columns(new), COLUMNS);
            old
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(old(&plain), None);
    assert!(matches!(old(&with_key), Some(OldRow::Key(row)) if columns(row) == COLUMNS));
    assert!(matches!(old(&full), Some(OldRow::Full(row)) if columns(row) == COLUMNS));

    let delete = samples().remove(10);
    let Change::Delete { relation: RelationId(42), old: OldRow::Key(row) } =
        decode(&delete, LSN).unwrap()
    else {
        panic!("a delete by key")
    };
    assert_eq!(columns(row), COLUMNS);
    assert_eq!(
        decode(&truncate(), LSN).unwrap(),
        Change::Truncate {
            relations: vec![RelationId(42), RelationId(43)],
            cascade: true,
            restart_identity: true
        }
    );
}

#[test]
fn streams_are_read() {
    let (xid, subtransaction) = (Xid(9), Xid(10));
    let (commit_lsn, end_lsn, timestamp) = (Lsn(7), Lsn(8), Timestamp(3));
    let sample = |kind| samples().into_iter().find(|sample| sample[0] == kind).unwrap();

    for (kind, expected) in [
        (b'S', Change::StreamStart { xid, first: true }),
        (b'E', Change::StreamStop),
        (b'c', Change::StreamCommit { xid, commit_lsn, end_lsn, timestamp }),
        (b'A', Change::StreamAbort { xid, subtransaction }),
    ] {
        assert_eq!(decode(&sample(kind), LSN).unwrap(), expected);
    }
}

#[test]
fn a_change_in_a_segment_is_the_change_and_whose_it_is() {
    for streamed in streamed_samples() {
        let plain = bytes![streamed[..1], streamed[5..]];
        let expected = match streamed[0] {
            b'R' => Segment::Relation(Xid(10)),
            b'Y' => Segment::Nothing,
            _ => Segment::Change(Xid(10)),
        };

        assert_eq!(decode_segment(&streamed, LSN).unwrap(), expected);
        let (xid, change) = decode_streamed(&streamed, LSN).unwrap();
        assert_eq!((xid, change), (Xid(10), decode(&plain, LSN).unwrap()));
        for length in 0..streamed.len() {
            let error = decode_streamed(&streamed[..length], LSN).unwrap_err();
            assert_eq!(error.kind(), Kind::Malformed);
        }
    }
    assert_eq!(decode_segment(b"E", LSN).unwrap(), Segment::Stop);
    assert_eq!(decode_segment(b"O", LSN).unwrap(), Segment::Nothing);
    for strange in [&b""[..], b"E\0", b"I\0\0\0", b"B", b"S\0\0\0\x01\x01", b"c", b"A", b"x"] {
        let error = decode_segment(strange, LSN).unwrap_err();
        assert_eq!(error.kind(), Kind::Malformed, "{strange:?}");
    }
}

#[test]
fn every_message_cut_short_or_with_a_byte_too_many_is_refused() {
    for sample in samples() {
        decode(&sample, LSN).unwrap();
        for length in 0..sample.len() {
            fault(&sample[..length]);
        }
        let longer = [&sample[..], &[0]].concat();
        assert!(fault(&longer).to_string().contains("byte"), "{longer:?}");
    }
}

#[test]
fn a_broken_message_names_its_byte() {
    let check = |body: &[u8], expected: &str| {
        let text = fault(body).to_string();
        assert_eq!(text.strip_prefix("pgoutput message at 16/B374D848: "), Some(expected));
    };
    let relation_with = |kind: u8| {
        let mut body = relation();
        body[13] = kind;
        body
    };

    check(b"", "the message ends too early at byte 0");
    check(b"x", "an unknown kind of message at byte 0");
    check(b"S\0\0\0\x01\x02", "unknown flags of a stream's start at byte 5");
    check(b"c\0\0\0\x01\x01", "unknown commit flags at byte 5");
    check(b"P", "a prepared transaction, which was not asked for at byte 0");
    check(b"B\0", "the message ends too early at byte 1");
    check(b"C\x01", "unknown commit flags at byte 1");
    check(b"M\x02", "unknown message flags at byte 1");
    check(b"M\x01\0\0\0\0\0\0\0\x01p", "a string without an end at byte 10");
    check(b"M\x01\0\0\0\0\0\0\0\x01p\0\xff\xff\xff\xff", "a negative length at byte 12");
    check(
        b"M\x01\0\0\0\0\0\0\0\x01p\0\x7f\xff\xff\xff",
        "a length that exceeds the message at byte 16",
    );
    check(&relation_with(b'x'), "an unknown replica identity at byte 13");
    check(b"I\0\0\0\x01K", "no new row in an insert at byte 5");
    check(b"U\0\0\0\x01X", "no row in an update at byte 5");
    check(b"U\0\0\0\x01K\0\0K", "no new row in an update at byte 8");
    check(b"D\0\0\0\x01N", "no old row in a delete at byte 5");
    check(b"I\0\0\0\x01N\xff\xff", "a negative count at byte 6");
    check(b"I\0\0\0\x01N\0\x01x", "an unknown kind of column at byte 8");
    check(b"T\xff\xff\xff\xff\0", "a count of tables that does not fit the message at byte 1");
    check(b"T\0\0\0\0\x04", "unknown truncate options at byte 5");
    check(b"T\0\0\0\0\0\0", "bytes after the message's end at byte 6");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(body in vec(any::<u8>(), 0..200)) {
        if let Ok(change) = decode(&body, LSN) {
            walk(&change);
        }
        let _ = decode_segment(&body, LSN);
    }

    #[test]
    fn arbitrary_bytes_of_a_known_kind_never_panic(
        kind in any::<Index>(),
        body in vec(any::<u8>(), 0..100),
    ) {
        let body = [&[*kind.get(b"BCMRYOIUDTSEcAbPKrp")][..], &body].concat();
        if let Ok(change) = decode(&body, LSN) {
            walk(&change);
        }
        let _ = decode_segment(&body, LSN);
        if let Ok((_, change)) = decode_streamed(&body, LSN) {
            walk(&change);
        }
    }

    #[test]
    fn damaged_messages_of_a_segment_never_panic(
        sample in any::<Index>(),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
        cut in any::<Index>(),
    ) {
        let mut body = streamed_samples().swap_remove(sample.index(streamed_samples().len()));
        for (place, byte) in damage {
            let place = place.index(body.len());
            body[place] = byte;
        }
        for body in [&body[..], &body[..cut.index(body.len())]] {
            if let Err(error) = decode_segment(body, LSN) {
                prop_assert!(error.kind() == Kind::Malformed);
            }
            match decode_streamed(body, LSN) {
                Ok((_, change)) => prop_assert!(walk(&change) <= body.len()),
                Err(error) => prop_assert!(error.kind() == Kind::Malformed),
            }
        }
    }

    #[test]
    fn damaged_messages_never_panic(
        sample in any::<Index>(),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
        cut in any::<Index>(),
    ) {
        let mut body = samples().swap_remove(sample.index(samples().len()));
        for (place, byte) in damage {
            let place = place.index(body.len());
            body[place] = byte;
        }
        for body in [&body[..], &body[..cut.index(body.len())]] {
            match decode(body, LSN) {
                Ok(change) => prop_assert!(walk(&change) <= body.len()),
                Err(error) => prop_assert!(error.kind() == Kind::Malformed),
            }
        }
    }
}

#[test]
fn a_prefix_that_is_no_text_is_nobodys() {
    let change = decode(b"M\x01\0\0\0\0\0\0\0\x01\xff\0\0\0\0\x01x", Lsn(1)).unwrap();

    assert!(matches!(change, Change::Message { prefix: "", content: b"x", .. }), "{change:?}");
}
