//! A server that says anything, for the fuzzers and for tests.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;

use super::client::Client;
use super::connection::Connection;
use super::end_point::end_point_hash;
use super::endpoint::Endpoint;
use super::startup;
use super::stream::{Event, Stream};
use crate::error::Error;

/// In what the server says it stands for the client's nonce, without which no answer to SCRAM is
/// looked at.
const NONCE_MARK: u8 = b'*';

/// Not a word that a fuzzer comes upon.
const PASSWORD: &str = "fbb9Pn4Xq-1v3uTe";

/// More than any exchange of SCRAM has.
const HEARD_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    /// One for all inputs: to make it costs more than most of them.
    static RUNTIME: RefCell<Runtime> = RefCell::new(
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime needs no more than a few descriptors"),
    );
}

/// A log-in: messages of the server, each as kind, length in one byte, and body.
pub fn log_in(bytes: &[u8]) {
    let mut said = Vec::new();
    let mut rest = bytes;
    while let Some(([tag, length], after)) = rest.split_first_chunk() {
        let (body, after) = after.split_at(usize::from(*length).min(after.len()));
        said.push((*tag, body.to_vec()));
        rest = after;
    }
    said.reverse();
    run(async {
        let heard = Heard::default();
        let server = Script { said, left: Vec::new(), heard: heard.clone() };
        let mut connection = Connection::new(Box::new(server), Box::new(heard), &endpoint());
        // A certificate, to which the log-in could be bound.
        end_point_hash(bytes);
        startup::start(&mut connection).await.map_err(|refusal| known(&refusal.error)).ok();
    });
}

/// The bytes that a server sends, after a byte for their place: in answer to a query, or in the
/// stream of a slot; and one for the size of the pieces in which they come.
pub fn server(bytes: &[u8]) {
    let Some(([place, piece], bytes)) = bytes.split_first_chunk() else { return };
    let pieces = Pieces { left: bytes.to_vec(), piece: usize::from(*piece).max(1) };
    let connection = Connection::new(Box::new(pieces), Box::new(tokio::io::sink()), &endpoint());
    run(async {
        if place % 2 == 0 {
            let mut client = Client::over(connection);
            while client.query("SELECT 1").await.map_err(|error| known(&error)).is_ok() {}
            return;
        }
        let mut stream = Stream::new(connection, "slot");
        loop {
            match stream.next().await {
                Ok(Event::Data { body, .. } | Event::Unread { head: body, .. }) => {
                    assert!(body.len() <= bytes.len())
                }
                Ok(Event::Keepalive { .. }) => {}
                Err(error) => return known(&error),
            }
        }
    });
}

/// The server's words may be anything, and what is made of them does not show the password.
fn known(error: &Error) {
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains(PASSWORD), "{shown}");
}

fn endpoint() -> Endpoint {
    let url = format!("postgres://u:{PASSWORD}@db/d?sslmode=disable");
    Endpoint::parse(&url).expect("the url is valid")
}

fn run(work: impl Future<Output = ()>) {
    RUNTIME.with_borrow(|runtime| runtime.block_on(work));
}

/// Bytes in pieces of a size.
struct Pieces {
    left: Vec<u8>,
    piece: usize,
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.piece.min(self.left.len()).min(into.remaining());
        into.put_slice(&self.left.drain(..count).collect::<Vec<u8>>());
        Poll::Ready(Ok(()))
    }
}

/// What the client has said.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl Heard {
    /// The nonce of the client's first message of SCRAM, `…,r=nonce`, which ends with it.
    fn nonce(&self) -> Vec<u8> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = heard.windows(2).rposition(|two| two == b"r=");
        at.and_then(|at| heard.get(at + 2..)).unwrap_or_default().to_vec()
    }
}

impl AsyncWrite for Heard {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.len() > HEARD_BYTES_MAX {
            heard.clear();
        }
        heard.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Messages that a server sends one by one, so that each can answer what was said before it.
struct Script {
    /// The next one last.
    said: Vec<(u8, Vec<u8>)>,
    /// What is left of the current one.
    left: Vec<u8>,
    heard: Heard,
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left.is_empty()
            && let Some((tag, body)) = self.said.pop()
        {
            let nonce = self.heard.nonce();
            let body = body.split(|byte| *byte == NONCE_MARK).collect::<Vec<_>>().join(&nonce[..]);
            let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
            self.left = [&[tag][..], &length.to_be_bytes(), &body].concat();
        }
        let count = self.left.len().min(into.remaining());
        into.put_slice(&self.left.drain(..count).collect::<Vec<u8>>());
        Poll::Ready(Ok(()))
    }
}
