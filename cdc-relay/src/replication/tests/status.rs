use std::time::Duration;

use tokio::io::duplex;
use tokio::time::timeout;

use super::server::{DEADLINE, Source, next, until_commits, until_error};
use crate::error::Kind;
use crate::lsn::Lsn;
use crate::pgoutput::{Change, decode};
use crate::replication::connection::Connection;
use crate::replication::{Client, Endpoint, Event, Large, StatusHandle, Stream, quote_literal};

/// Reads to the end of the next transaction.
async fn next_end(stream: &mut Stream) -> Lsn {
    loop {
        let Event::Data { wal_start, body, .. } = next(stream).await else { continue };
        if let Change::Commit { end_lsn, .. } = decode(body, wal_start).unwrap() {
            return end_lsn;
        }
    }
}

fn confirmed(slot: &str) -> String {
    format!(
        "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = {}",
        quote_literal(slot)
    )
}

#[tokio::test]
async fn what_is_flushed_reaches_the_slot_and_never_goes_back() {
    let mut source = Source::new("what_is_flushed").await;
    let mut stream = source.stream().await;
    let status: StatusHandle = stream.status();
    let confirmed = confirmed(&source.slot);
    source.run("SELECT pg_logical_emit_message(true, 'p', 'a')").await;
    source.run("SELECT pg_logical_emit_message(true, 'p', 'b')").await;
    let first = next_end(&mut stream).await;
    let second = next_end(&mut stream).await;
    status.received(second);

    assert!(source.value(&confirmed).await.parse::<Lsn>().unwrap() < first);
    status.flushed(first);
    source.until(&format!("SELECT ({confirmed}) = '{first}'")).await;
    status.clone().flushed(second);
    source.until(&format!("SELECT ({confirmed}) = '{second}'")).await;

    status.flushed(first);
    status.reply_now();
    stream.close().await.unwrap();
    assert_eq!(source.value(&confirmed).await, second.to_string());
}

#[tokio::test]
async fn the_server_sees_what_was_received_before_it_is_flushed() {
    let mut source = Source::new("what_was_received").await;
    let client = Client::connect(&source.endpoint).await.unwrap();
    let pid = client.backend_pid();
    let mut stream =
        client.start_replication(&source.slot, &source.publication, Large::AtCommit).await.unwrap();
    source.run("SELECT pg_logical_emit_message(true, 'p', 'a')").await;
    let end = next_end(&mut stream).await;

    stream.status().received(end);

    source
        .until(&format!(
            "SELECT write_lsn = '{end}' AND flush_lsn IS DISTINCT FROM '{end}'
             FROM pg_stat_replication WHERE pid = {pid}"
        ))
        .await;
}

#[tokio::test]
async fn closing_takes_the_last_position_along() {
    let mut source = Source::new("closing_takes_the_last").await;

    for _ in 0..20 {
        let mut stream = source.stream().await;
        source.run("SELECT pg_logical_emit_message(true, 'p', 'a')").await;
        let end = next_end(&mut stream).await;
        stream.status().flushed(end);
        stream.close().await.unwrap();
        assert_eq!(source.value(&confirmed(&source.slot)).await, end.to_string());
    }
    source.run("SELECT pg_logical_emit_message(true, 'p', 'b')").await;
    let mut stream = source.stream().await;

    assert_eq!(until_commits(&mut stream, 1).await, ["begin", "p b", "commit"]);
}

/// A long produce: the relay reads nothing for three times the server's time-out.
#[tokio::test]
async fn a_relay_that_does_not_read_is_not_taken_for_dead() {
    let mut source = Source::new("does_not_read").await;
    let mut client = Client::connect(&source.endpoint).await.unwrap();
    client.query("SET wal_sender_timeout = '1s'").await.unwrap();
    let pid = client.backend_pid();
    let mut stream =
        client.start_replication(&source.slot, &source.publication, Large::AtCommit).await.unwrap();
    // Far more than the sockets hold, so that the server has to wait for us.
    source
        .run(
            "SELECT pg_logical_emit_message(true, 'p', repeat('x', 10000))
             FROM generate_series(1, 3000); SELECT 1",
        )
        .await;
    let row = format!("FROM pg_stat_replication WHERE pid = {pid}");
    source.until(&format!("SELECT reply_time IS NOT NULL {row}")).await;
    let before = source.value(&format!("SELECT reply_time {row}")).await;

    let moved = format!("SELECT reply_time > '{before}'::timestamptz + interval '3 s' {row}");
    source.until(&moved).await;

    assert_eq!(until_commits(&mut stream, 1).await.len(), 3002);
}

#[tokio::test]
async fn a_task_that_cannot_write_ends_the_wait_for_events() {
    let (reader, _quiet) = duplex(64);
    let (writer, gone) = duplex(64);
    drop(gone);
    let endpoint = Endpoint::parse("postgres://u@db:6000").unwrap();
    let connection = Connection::new(Box::new(reader), Box::new(writer), &endpoint);
    let mut stream = Stream::new(connection, "slot");

    for _ in 0..2 {
        let error = timeout(Duration::from_secs(5), until_error(&mut stream)).await.unwrap();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains("db:6000"), "{error}");
    }
    let closed = timeout(DEADLINE, stream.close()).await.unwrap();
    assert_eq!(closed.unwrap_err().kind(), Kind::Unavailable);
}
