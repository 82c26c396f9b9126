//! What a server does only when something is wrong with it, played by a script. That the script
//! speaks as a server does is shown by all the other tests, which ask a real one.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::server::{DEADLINE, next, until_error};
use crate::error::{Error, Kind};
use crate::lsn::Lsn;
use crate::pgoutput::Timestamp;
use crate::replication::{Client, Endpoint, Event, Large, Stream};

pub(super) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

/// An authentication message.
pub(super) fn ask(method: u32, data: &[u8]) -> Vec<u8> {
    message(b'R', &[&method.to_be_bytes()[..], data].concat())
}

fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

/// The log-in's end, and the answer to the question for the version.
pub(super) fn logged_in(version: &str) -> [Vec<u8>; 2] {
    let pid = message(b'K', &[0, 0, 0, 7, 0, 0, 0, 9]);
    let length = u32::try_from(version.len()).unwrap().to_be_bytes();
    let row = message(b'D', &[&[0, 1][..], &length, version.as_bytes()].concat());
    [[ask(0, b""), pid, ready()].concat(), [row, ready()].concat()]
}

fn data(body: &[u8]) -> Vec<u8> {
    let header = [&b"w"[..], &7_u64.to_be_bytes(), &8_u64.to_be_bytes()].concat();
    let header = [&header[..], &9_u64.to_be_bytes()].concat();
    message(b'd', &[header, body.to_vec()].concat())
}

fn keepalive() -> Vec<u8> {
    message(b'd', &[&b"k"[..], &9_u64.to_be_bytes(), &[0; 8], &[1]].concat())
}

/// A server for one connection: waits for a message, sends the next answer, and at the end hangs
/// up and tells what it was sent.
async fn server(answers: Vec<Vec<u8>>) -> (Endpoint, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        for answer in answers {
            if socket.read_buf(&mut heard).await.unwrap() == 0 {
                break;
            }
            trickle(&mut socket, &answer).await;
        }
        // Hanging up on what was not read would break the connection in place of ending it.
        socket.shutdown().await.ok();
        socket.read_to_end(&mut heard).await.ok();
        heard
    });
    let url = format!("postgres://u:secret@127.0.0.1:{port}/d?sslmode=disable");
    (Endpoint::parse(&url).unwrap(), task)
}

/// Each byte in a packet of its own.
async fn trickle(socket: &mut TcpStream, answer: &[u8]) {
    socket.set_nodelay(true).unwrap();
    for byte in answer {
        if socket.write_all(&[*byte]).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

async fn log_in_refusal(answers: Vec<Vec<u8>>) -> (Error, Vec<u8>) {
    let (endpoint, task) = server(answers).await;
    let outcome = timeout(DEADLINE, Client::connect(&endpoint)).await.expect("an answer");
    let error = outcome.err().expect("the log-in fails");
    (error, timeout(DEADLINE, task).await.unwrap().unwrap())
}

async fn stream(answer: Vec<u8>) -> Stream {
    let [log_in, version] = logged_in("180006");
    let both = [message(b'W', &[0, 0, 0]), answer].concat();
    let (endpoint, _task) = server(vec![log_in, version, both]).await;
    let client = Client::connect(&endpoint).await.unwrap();
    assert_eq!((client.backend_pid(), client.server_version()), (7, 180_006));
    client.start_replication("slot", "publication", Large::AtCommit).await.unwrap()
}

#[tokio::test]
async fn events_come_whole_byte_by_byte() {
    let notice = message(b'N', b"SNOTICE\0\0");
    let changed = message(b'S', b"name\0value\0");
    let mut stream =
        stream([data(b"one"), notice, keepalive(), changed, data(b""), data(b"two")].concat())
            .await;

    let (wal_start, wal_end, sent_at) = (Lsn(7), Lsn(8), Timestamp(9));
    assert_eq!(next(&mut stream).await, Event::Data { wal_start, wal_end, sent_at, body: b"one" });
    assert_eq!(
        next(&mut stream).await,
        Event::Keepalive { wal_end: Lsn(9), reply_requested: true }
    );
    assert_eq!(next(&mut stream).await, Event::Data { wal_start, wal_end, sent_at, body: b"" });
    assert_eq!(next(&mut stream).await, Event::Data { wal_start, wal_end, sent_at, body: b"two" });
    assert_eq!(until_error(&mut stream).await.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn every_end_of_a_stream_is_an_error() {
    let gone = b"SFATAL\0C57P01\0Mshutting down\0\0";
    for (answer, kind, expected) in [
        (vec![], Kind::Unavailable, "closed the connection"),
        (data(b"cut short")[..20].to_vec(), Kind::Unavailable, "closed the connection"),
        (message(b'c', b""), Kind::Unavailable, "ended the stream"),
        (message(b'E', gone), Kind::Unavailable, "shutting down"),
        (message(b'E', b"C"), Kind::Malformed, "without an end"),
        (message(b'Q', b""), Kind::Malformed, "kind 'Q'"),
        (message(b'd', b"x"), Kind::Malformed, "unknown kind"),
        (message(b'd', b"w\0"), Kind::Malformed, "too early"),
        (message(b'd', b"k\0"), Kind::Malformed, "too early"),
        (vec![b'd', 0, 0, 0, 3], Kind::Malformed, "length as 3 bytes"),
    ] {
        let mut stream = stream(answer).await;

        let error = until_error(&mut stream).await;

        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_clear_text_password_is_not_sent() {
    let (error, heard) = log_in_refusal(vec![ask(3, b""), vec![]]).await;

    assert_eq!(error.kind(), Kind::Permission);
    assert!(!heard.windows(6).any(|window| window == b"secret"), "{heard:?}");
}

#[tokio::test]
async fn a_server_that_skips_its_own_proof_is_refused() {
    let offer = ask(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");

    for answers in [
        vec![offer.clone(), ask(0, b"")],
        vec![offer.clone(), ask(12, b"v=AAAA")],
        vec![offer.clone(), ask(11, b"r=not-ours,s=AAAA,i=4096")],
        vec![ask(11, b"")],
        vec![ask(12, b"")],
        vec![offer.clone(), ask(3, b"")],
        vec![offer.clone(), ask(5, b"salt")],
        vec![ask(5, b"salt"), offer],
    ] {
        let (error, _) = log_in_refusal(answers).await;
        assert_eq!(error.kind(), Kind::Permission, "{error}");
    }
}

#[tokio::test]
async fn a_server_is_not_ready_before_it_has_let_us_in() {
    let offer = ask(10, b"SCRAM-SHA-256\0\0");

    for (answers, kind) in [
        (vec![ready()], "'Z'"),
        (vec![offer, ready()], "'Z'"),
        (vec![[ask(0, b""), ask(3, b"")].concat()], "'R'"),
    ] {
        let (error, heard) = log_in_refusal(answers).await;
        assert_eq!(error.kind(), Kind::Malformed, "{error}");
        assert!(error.to_string().contains(kind), "{error}");
        assert!(!heard.windows(6).any(|window| window == b"secret"), "{heard:?}");
    }
}

#[tokio::test]
async fn what_the_relay_cannot_speak_is_named() {
    for (answer, kind, expected) in [
        (ask(7, b""), Kind::Permission, "authentication method 7"),
        (ask(10, b"OTHER\0\0"), Kind::Permission, "SCRAM-SHA-256"),
        (ask(10, b"OTHER"), Kind::Malformed, "without an end"),
        (ask(5, b"\0"), Kind::Malformed, "too early"),
        (message(b'd', b""), Kind::Malformed, "kind 'd'"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), Kind::Malformed, "length"),
        (vec![], Kind::Unavailable, "closed the connection"),
    ] {
        let (error, _) = log_in_refusal(vec![answer]).await;
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn an_old_server_is_refused() {
    for (version, expected) in [("140012", "version 14"), ("fourteen", "does not tell")] {
        let (error, _) = log_in_refusal(logged_in(version).to_vec()).await;
        assert_eq!(error.kind(), Kind::Server);
        assert!(error.to_string().contains(expected), "{error}");
    }
}
