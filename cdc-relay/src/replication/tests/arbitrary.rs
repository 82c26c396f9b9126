//! A server that says anything, or at some point nothing more.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use super::log_in::refusal;
use super::server::DEADLINE;
use super::wire::{ask, logged_in, message};
use crate::error::Kind;
use crate::replication::connection::Connection;
use crate::replication::{Endpoint, Stream, startup};

/// Messages of the kinds that a server sends, with contents of any kind.
fn messages() -> impl Strategy<Value = Vec<u8>> {
    let tag = prop_oneof![
        4 => Just(b'R'),
        1 => prop_oneof![Just(b'K'), Just(b'E'), Just(b'N'), Just(b'S'), Just(b'Z'), Just(b'd')],
        1 => any::<u8>(),
    ];
    let method =
        prop_oneof![Just(0_u32), Just(3), Just(5), Just(10), Just(11), Just(12), any::<u32>()];
    let text = prop_oneof![
        vec(any::<u8>(), 0..40),
        Just(b"SCRAM-SHA-256\0\0".to_vec()),
        Just(b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0".to_vec()),
        "r=[a-z]{0,9},s=[A-Za-z=]{0,9},i=[0-9]{1,4}".prop_map(String::into_bytes),
        "[ve]=[A-Za-z0-9+/=]{0,40}".prop_map(String::into_bytes),
    ];
    let one = (tag, method, text).prop_map(|(tag, method, text)| match tag {
        b'R' => ask(method, &text),
        tag => message(tag, &text),
    });
    prop_oneof![
        4 => vec(one, 0..8).prop_map(|all| all.concat()),
        1 => vec(any::<u8>(), 0..100),
    ]
}

/// What a client says is of no interest.
fn said(bytes: Vec<u8>) -> Connection {
    let (reader, mut server) = duplex(1 << 16);
    tokio::spawn(async move { server.write_all(&bytes).await });
    let endpoint = Endpoint::parse("postgres://u:secret@db/d").unwrap();
    Connection::new(Box::new(reader), Box::new(tokio::io::sink()), &endpoint)
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(DEADLINE, work).await.expect("it comes to an end") })
}

proptest! {
    #[test]
    fn nothing_that_a_server_says_makes_a_log_in_panic(bytes in messages()) {
        run(async { startup::start(&mut said(bytes)).await.map_err(|refusal| refusal.error).ok() });
    }

    #[test]
    fn nothing_that_a_server_says_makes_a_stream_panic(
        bytes in vec(
            prop_oneof![
                vec(any::<u8>(), 0..60).prop_map(|body| message(b'd', &body)),
                vec(any::<u8>(), 0..60).prop_map(|body| message(b'd', &[b"w", &body[..]].concat())),
                messages(),
            ],
            0..8,
        ).prop_map(|all| all.concat()),
    ) {
        run(async {
            let mut stream = Stream::new(said(bytes), "slot");
            while stream.next().await.is_ok() {}
        });
    }
}

/// A server that says this much, a piece for each message that it hears, and then falls silent.
async fn silent_after(answers: Vec<Vec<u8>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        for answer in answers {
            socket.read_buf(&mut heard).await.unwrap();
            socket.write_all(&answer).await.unwrap();
        }
        // Until the client hangs up.
        socket.read_to_end(&mut heard).await.ok();
    });
    port
}

#[tokio::test]
async fn a_server_that_falls_silent_is_given_up_wherever_it_does() {
    let [log_in, _] = logged_in("180006");
    let half = log_in[..log_in.len() - 3].to_vec();
    let offer = ask(10, b"SCRAM-SHA-256\0\0");
    let cases = [
        ("disable", vec![], "the log-in"),
        ("disable", vec![offer], "the log-in"),
        ("disable", vec![ask(5, b"salt")], "the log-in"),
        ("disable", vec![half], "the log-in"),
        ("disable", vec![log_in], "the first query"),
        ("require", vec![], "the question for TLS"),
        ("require", vec![b"S".to_vec()], "the TLS handshake"),
        ("prefer", vec![b"N".to_vec()], "the log-in"),
        ("prefer", vec![b"S".to_vec()], "the TLS handshake"),
    ];
    let began = Instant::now();

    let waits = cases.map(|(mode, answers, phase)| async move {
        let port = silent_after(answers).await;
        let parameters = format!("connect_timeout=1&sslmode={mode}");
        let url = format!("postgres://u:secret@127.0.0.1:{port}/d?{parameters}");
        let error = refusal(&Endpoint::parse(&url).unwrap()).await;
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        assert!(error.to_string().contains(&format!("{phase} within 1s")), "{phase}: {error}");
    });

    // All at once: each waits for its second.
    let tasks: Vec<_> = waits.into_iter().map(tokio::spawn).collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_password_that_does_not_come_is_given_up_too() {
    let port = silent_after(vec![ask(10, b"SCRAM-SHA-256\0\0")]).await;
    let url = format!("postgres://u@127.0.0.1:{port}/d?connect_timeout=1&sslmode=disable");
    let endpoint = Endpoint::parse(&url).unwrap().password_command("exec sleep 60").unwrap();

    let error = refusal(&endpoint).await;

    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    let expected = "password_command has not ended within 800ms";
    assert!(error.to_string().contains(expected), "{error}");
}
