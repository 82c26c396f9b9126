//! What the server streams of transactions in progress, and that it is the same as at the commit.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::server::{Source, next};
use crate::pgoutput::{Change, Xid, decode, decode_streamed};
use crate::replication::{Client, Event, Large, Stream};
use crate::streamed::{Bounds, Kept, Streamed};

/// A stream of a server that keeps no more of a transaction than the least that it can be told.
async fn stream(source: &Source, large: Large) -> Stream {
    let endpoint = source.endpoint_with("options=-c%20logical_decoding_work_mem%3D64kB");
    let client = Client::connect(&endpoint).await.unwrap();
    client.start_replication(&source.slot, &source.publication, large).await.unwrap()
}

async fn source(name: &str) -> Source {
    let mut source = Source::new(name).await;
    source.run("CREATE TABLE t (id int PRIMARY KEY, text text)").await;
    let add = format!("ALTER PUBLICATION \"{}\" ADD TABLE t", source.publication);
    source.run(&add).await;
    // The publication is looked for as of the slot's beginning.
    source.run(&format!("SELECT pg_drop_replication_slot('{}')", source.slot)).await;
    source.make_slot().await;
    source
}

fn insert(from: u32, to: u32) -> String {
    format!("INSERT INTO t SELECT n, repeat('x', 100) FROM generate_series({from}, {to}) n;")
}

/// The messages of one stream up to its first commit.
async fn until_commit(stream: &mut Stream) -> Vec<(crate::lsn::Lsn, Vec<u8>)> {
    let mut messages = Vec::new();
    loop {
        let Event::Data { wal_start, body, .. } = next(stream).await else { continue };
        messages.push((wal_start, body.to_vec()));
        if matches!(body[0], b'C' | b'c') {
            return messages;
        }
    }
}

/// Why sources of logical messages are not streamed: when this fails on some version of Postgres,
/// they can be.
#[tokio::test]
async fn a_streamed_message_says_the_top_transaction_and_so_can_not_be_rolled_back() {
    let mut source = source("streamed_message").await;
    let mut streamed = stream(&source, Large::InProgress).await;

    source
        .run(&format!(
            "BEGIN; {} SAVEPOINT s; SELECT pg_logical_emit_message(true, 'p', 'gone'); {} \
             ROLLBACK TO s; {} COMMIT",
            insert(1, 2_000),
            insert(3_000, 5_000),
            insert(6_000, 8_000)
        ))
        .await;

    let (mut message_of, mut rows_of, mut top, mut aborted) = (None, BTreeSet::new(), None, None);
    for (lsn, body) in until_commit(&mut streamed).await {
        match body[0] {
            b'S' | b'c' | b'A' => match decode(&body, lsn).unwrap() {
                Change::StreamStart { xid, .. } | Change::StreamCommit { xid, .. } => {
                    assert_eq!(*top.get_or_insert(xid), xid);
                }
                Change::StreamAbort { subtransaction, .. } => aborted = Some(subtransaction),
                other => panic!("{other:?}"),
            },
            b'E' => {}
            _ => match decode_streamed(&body, lsn).unwrap() {
                (xid, Change::Message { content, .. }) => {
                    assert_eq!(content, b"gone");
                    message_of = Some(xid);
                }
                (Xid(xid), Change::Insert { .. }) => drop(rows_of.insert(xid)),
                _ => {}
            },
        }
    }
    let (top, aborted) = (top.unwrap(), aborted.unwrap());
    assert_ne!(top, aborted);
    assert_eq!(message_of, Some(top), "the message of the savepoint is the top transaction's");
    assert!(rows_of.contains(&aborted.0), "its rows are not: {rows_of:?}");
    drop(streamed);

    let free =
        format!("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{}'", source.slot);
    source.until(&free).await;
    let mut at_commit = stream(&source, Large::AtCommit).await;
    let kinds: BTreeSet<u8> =
        until_commit(&mut at_commit).await.iter().map(|(_, body)| body[0]).collect();
    assert_eq!(kinds, BTreeSet::from([b'B', b'R', b'I', b'C']), "and is left out at the commit");
}

/// The rows of the first transaction that commits, each with its LSN, as they are published.
async fn rows(stream: &mut Stream) -> Vec<String> {
    let bounds = Bounds { memory: 50_000, directory: std::env::temp_dir(), spool_max: 1 << 30 };
    let mut streamed = Streamed::new(bounds, Arc::default());
    let mut rows = Vec::new();
    let mut tell = |lsn: crate::lsn::Lsn, change: Change<'_>| match change {
        Change::Insert { .. }
        | Change::Update { .. }
        | Change::Delete { .. }
        | Change::Truncate { .. } => rows.push(format!("{lsn} {change:?}")),
        _ => {}
    };
    loop {
        let Event::Data { wal_start, body, .. } = next(stream).await else { continue };
        if streamed.in_segment() {
            streamed.take(body, wal_start, || 0).await.unwrap();
            continue;
        }
        match decode(body, wal_start).unwrap() {
            Change::StreamStart { xid, first } => streamed.start(xid, first).unwrap(),
            Change::StreamAbort { xid, subtransaction } => {
                streamed.abort(xid, subtransaction).await.unwrap();
            }
            Change::StreamCommit { xid, .. } => {
                assert!(streamed.spooled() > 100_000, "it is spooled");
                let mut read_back = streamed.commit(xid).unwrap();
                while streamed.next_piece(&mut read_back).await.unwrap() {
                    while let Some(Kept { place, message }) = read_back.next_kept() {
                        let lsn = crate::lsn::Lsn(place);
                        tell(lsn, decode_streamed(message, lsn).unwrap().1);
                    }
                }
                return rows;
            }
            Change::Commit { .. } => return rows,
            change => tell(wal_start, change),
        }
    }
}

#[tokio::test]
async fn a_transaction_is_the_same_whether_it_is_streamed_or_not() {
    let mut source = source("same_streamed_or_not").await;
    let mut streamed = stream(&source, Large::InProgress).await;

    let mut sql = "BEGIN;".to_owned();
    sql += &insert(1, 3_000);
    // Savepoints in savepoints, of which some are rolled back when much of them was sent.
    sql += &format!("SAVEPOINT a; {} SAVEPOINT b; {}", insert(3_001, 4_000), insert(4_001, 6_000));
    sql += &format!("RELEASE b; {} ROLLBACK TO a;", insert(6_001, 7_000));
    sql += &format!("{} SAVEPOINT c; {}", insert(3_001, 3_500), insert(3_501, 5_000));
    sql += "SAVEPOINT d; ALTER TABLE t ADD gone int; UPDATE t SET gone = id WHERE id < 2000; \
            ROLLBACK TO d; RELEASE c;";
    sql += "ALTER TABLE t ADD more text DEFAULT 'm'; UPDATE t SET text = repeat('y', 200) WHERE id < 1500; \
            DELETE FROM t WHERE id > 4000;";
    // One row of its own in each of many savepoints, every third rolled back.
    sql += "DO $$ BEGIN FOR n IN 10000..10600 LOOP BEGIN INSERT INTO t VALUES (n, repeat('z', 100)); \
            IF n % 3 = 0 THEN RAISE 'no'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; \
            END LOOP; END $$;";
    // Out of line, so that it comes in pieces.
    sql += "INSERT INTO t SELECT 20000 + n, (SELECT string_agg(md5((n * k)::text), '') FROM \
            generate_series(1, 500) k) FROM generate_series(1, 20) n;";
    sql += "SAVEPOINT e; TRUNCATE t; ROLLBACK TO e;";
    sql += &insert(30_000, 32_000);
    sql += "COMMIT";
    source.run(&sql).await;

    let in_progress = rows(&mut streamed).await;
    drop(streamed);
    let free =
        format!("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{}'", source.slot);
    source.until(&free).await;
    let mut at_commit = stream(&source, Large::AtCommit).await;
    let whole = rows(&mut at_commit).await;

    assert!(whole.len() > 8_000, "{}", whole.len());
    assert_eq!(in_progress.len(), whole.len());
    for (streamed, whole) in in_progress.iter().zip(&whole) {
        assert_eq!(streamed, whole);
    }
}
