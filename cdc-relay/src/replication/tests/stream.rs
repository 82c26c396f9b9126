use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::server::{DEADLINE, Source, next, until_commits, until_error};
use crate::error::Kind;
use crate::lsn::Lsn;
use crate::pgoutput::{Change, decode};
use crate::replication::{Client, Endpoint, Event, Large, Stream, quote_identifier};

fn emit(content: &str) -> String {
    format!("SELECT pg_logical_emit_message(true, 'p', '{content}');")
}

#[tokio::test]
async fn only_what_was_committed_comes_and_in_order() {
    let mut source = Source::new("only_what_was_committed").await;
    let mut stream = source.stream().await;

    source.run(&format!("BEGIN; {} {} COMMIT", emit("a"), emit("b"))).await;
    source.run(&format!("BEGIN; {} ROLLBACK", emit("gone"))).await;
    source
        .run(&format!(
            "BEGIN; {} SAVEPOINT s; {} ROLLBACK TO s; {} SAVEPOINT t; {} RELEASE t; COMMIT",
            emit("c"),
            emit("gone"),
            emit("d"),
            emit("e"),
        ))
        .await;
    source.run(&emit("f")).await;

    assert_eq!(
        until_commits(&mut stream, 3).await,
        [
            "begin", "p a", "p b", "commit", "begin", "p c", "p d", "p e", "commit", "begin",
            "p f", "commit"
        ]
    );
    stream.close().await.unwrap();
}

#[tokio::test]
async fn a_message_outside_its_transaction_stands_alone_even_when_that_is_rolled_back() {
    let mut source = Source::new("stands_alone").await;
    let mut stream = source.stream().await;

    source
        .run(&format!(
            "BEGIN; {} SELECT pg_logical_emit_message(false, 'p', 'n'); ROLLBACK",
            emit("gone")
        ))
        .await;
    source.run(&emit("a")).await;

    assert_eq!(until_commits(&mut stream, 1).await, ["p n alone", "begin", "p a", "commit"]);
}

#[tokio::test]
async fn positions_and_times_agree_with_the_servers_own() {
    let mut source = Source::new("positions_and_times").await;
    let mut stream = source.stream().await;

    let told = source.value(&emit("a")).await.parse::<Lsn>().unwrap();

    let mut seen = Vec::new();
    let mut micros = 0;
    loop {
        let Event::Data { wal_start, wal_end, sent_at, body } = next(&mut stream).await else {
            continue;
        };
        assert_eq!(wal_start, wal_end);
        match decode(body, wal_start).unwrap() {
            Change::Begin { final_lsn, timestamp, .. } => {
                micros = timestamp.unix_micros();
                assert!(timestamp <= sent_at, "{timestamp:?} {sent_at:?}");
                assert!(timestamp.until(sent_at) < Duration::from_secs(60), "{sent_at:?}");
                seen.push(final_lsn);
            }
            Change::Message { lsn, .. } => {
                assert_eq!(lsn, wal_start);
                // Where the message ends, as the function told.
                assert_eq!(lsn, told);
            }
            Change::Commit { commit_lsn, .. } => {
                seen.push(commit_lsn);
                break;
            }
            _ => {}
        }
    }
    assert_eq!(seen[0], seen[1]);
    let soon = format!("SELECT abs(extract(epoch FROM now()) - {micros} / 1e6) < 60");
    assert_eq!(source.value(&soon).await, "t");
}

#[tokio::test]
async fn a_large_message_comes_whole() {
    let mut source = Source::new("a_large_message").await;
    let mut stream = source.stream().await;

    source.run("SELECT pg_logical_emit_message(true, 'p', repeat('0123456789', 2000000))").await;

    loop {
        let Event::Data { wal_start, body, .. } = next(&mut stream).await else { continue };
        if let Change::Message { content, .. } = decode(body, wal_start).unwrap() {
            assert!(content == b"0123456789".repeat(2_000_000));
            break;
        }
    }
}

#[tokio::test]
async fn what_is_buffered_comes_without_waiting() {
    let mut source = Source::new("what_is_buffered").await;
    let mut stream = source.stream().await;
    source.run(&format!("BEGIN; {} {} COMMIT", emit("a"), emit("b"))).await;

    let mut kinds = Vec::new();
    while kinds.last() != Some(&b'C') {
        // One wait, then all that came with it.
        if let Event::Data { body, .. } = next(&mut stream).await {
            kinds.push(body[0]);
        }
        while let Some(event) = stream.try_next().unwrap() {
            if let Event::Data { body, .. } = event {
                kinds.push(body[0]);
            }
        }
    }

    assert_eq!(kinds, b"BMMC");
}

/// Polls `next` a single time and drops it.
async fn next_or_never(stream: &mut Stream) -> Option<u64> {
    let mut future = pin!(stream.next());
    let event = std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(event) => Poll::Ready(Some(event.unwrap())),
        Poll::Pending => Poll::Ready(None),
    })
    .await?;
    number(event)
}

/// The number that a message of [`a_dropped_wait_loses_nothing`] carries.
fn number(event: Event<'_>) -> Option<u64> {
    let Event::Data { wal_start, body, .. } = event else { return None };
    let Change::Message { content, .. } = decode(body, wal_start).unwrap() else { return None };
    let digits = content.split(|&byte| byte == b' ').next().unwrap();
    Some(std::str::from_utf8(digits).unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_dropped_wait_loses_nothing() {
    const MESSAGES: u64 = 20_000;
    let source = Source::new("a_dropped_wait").await;
    let mut stream = source.stream().await;
    let mut writer = source.sql;
    // Lengths from 1 byte to 9 kB, so that messages end anywhere in a packet.
    let writing = tokio::spawn(async move {
        for first in (0..MESSAGES).step_by(500) {
            writer
                .query(&format!(
                    "SELECT pg_logical_emit_message(true, 'p', n || ' ' || repeat('x', n * n % 9001))
                     FROM generate_series({first}, {}) AS n",
                    first + 499
                ))
                .await
                .unwrap();
        }
    });

    let deadline = Instant::now() + DEADLINE;
    let (mut expected, mut dropped) = (0, 0);
    while expected < MESSAGES {
        assert!(Instant::now() < deadline, "stopped before {expected}");
        let found = if dropped % 2 == 0 {
            next_or_never(&mut stream).await
        } else {
            let wait = Duration::from_micros(dropped % 3 * 500);
            timeout(wait, stream.next()).await.ok().and_then(|event| number(event.unwrap()))
        };
        match found {
            Some(number) => {
                assert_eq!(number, expected);
                expected += 1;
            }
            None => {
                dropped += 1;
                tokio::task::yield_now().await;
            }
        }
    }

    writing.await.unwrap();
    assert!(dropped > 100, "only {dropped} waits were dropped");
}

#[tokio::test]
async fn an_idle_stream_still_tells_how_far_the_server_is() {
    let mut source = Source::new("an_idle_stream").await;
    let mut stream = source.stream().await;
    source.run("CREATE TABLE nobody_publishes_this (x int)").await;
    let here = source.value("SELECT pg_current_wal_flush_lsn()").await.parse().unwrap();

    loop {
        match next(&mut stream).await {
            Event::Keepalive { wal_end, .. } if wal_end >= here => break,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_terminated_backend_ends_the_stream_with_the_servers_reason() {
    let mut source = Source::new("a_terminated_backend").await;
    let client = Client::connect(&source.endpoint).await.unwrap();
    let pid = client.backend_pid();
    let mut stream =
        client.start_replication(&source.slot, &source.publication, Large::AtCommit).await.unwrap();
    next(&mut stream).await;

    source.run(&format!("SELECT pg_terminate_backend({pid})")).await;
    let error = until_error(&mut stream).await;

    assert_eq!((error.kind(), error.sqlstate()), (Kind::Unavailable, Some("57P01")));
    assert!(error.to_string().contains(&source.slot), "{error}");
    assert_eq!(until_error(&mut stream).await.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_publication_that_is_missing_is_named() {
    let mut source = Source::new("a_publication_is_missing").await;
    source.run("CREATE TABLE t (x int)").await;
    source.publication = "no such publication".into();
    let mut stream = source.stream().await;

    source.run("INSERT INTO t VALUES (1)").await;
    source.run(&emit("a")).await;

    // From 18 on the server only warns, and messages need no publication.
    if source.sql.server_version() < 180_000 {
        let error = until_error(&mut stream).await;
        assert_eq!((error.kind(), error.sqlstate()), (Kind::Server, Some("42704")));
        assert!(error.to_string().contains("no such publication"), "{error}");
    } else {
        assert!(until_commits(&mut stream, 1).await.contains(&"p a".to_owned()));
    }
}

#[tokio::test]
async fn odd_names_of_database_and_publication_are_no_obstacle() {
    const ODD: &str = r#"O'dd "näme", \ x"#;
    let mut source = Source::without_slot("odd_names").await;
    let mut outside = Source::without_slot("odd_names_outside").await;
    let odd = format!("{ODD}{}", source.slot);
    let (before, after) = (quote_identifier(&source.slot), quote_identifier(&odd));
    source.run("CREATE TABLE t (x int)").await;
    source.run(&format!("CREATE PUBLICATION {} FOR TABLE t", quote_identifier(ODD))).await;
    source.make_slot().await;
    // A database can be renamed while nobody is in it.
    drop(source.sql);
    outside.run(&format!("ALTER DATABASE {before} RENAME TO {after}")).await;
    let encoded: String = odd.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let endpoint = Endpoint::parse(&source.url.replacen(&source.slot, &encoded, 1)).unwrap();

    let mut sql = Client::connect(&endpoint).await.unwrap();
    sql.query("INSERT INTO t VALUES (1)").await.unwrap();
    let client = Client::connect(&endpoint).await.unwrap();
    let mut stream = client.start_replication(&source.slot, ODD, Large::AtCommit).await.unwrap();
    let lines = until_commits(&mut stream, 1).await;

    assert!(lines.iter().any(|line| line.starts_with("Insert")), "{lines:?}");
    stream.close().await.unwrap();
    drop(sql);
    outside.run(&format!("ALTER DATABASE {after} RENAME TO {before}")).await;
}
