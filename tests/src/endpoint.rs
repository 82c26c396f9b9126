//! The HTTP endpoints of a relay, as a client sees them.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, interval, timeout};

use crate::process::Process;

/// A relay that serves says where by then.
const SERVE_MAX: Duration = Duration::from_secs(15);
/// An endpoint that does not answer by then does not answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Where a relay serves HTTP.
#[derive(Clone, Debug)]
pub struct Endpoint {
    address: String,
}

/// What it answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// Everything before the body.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Endpoint {
    /// That of a relay which says in its log where it serves.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub async fn of(relay: &mut Process) -> Endpoint {
        relay.says("serving http", SERVE_MAX).await;
        let log = relay.log();
        let line = log.lines().find(|line| line.contains("serving http"));
        let (_, address) =
            line.and_then(|line| line.split_once("address=")).expect("it says where");
        Endpoint { address: address.trim().to_owned() }
    }

    /// That of a server at this address, an IP address and a port.
    pub fn at(address: impl Into<String>) -> Endpoint {
        Endpoint { address: address.into() }
    }

    /// IP address and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Asks for a path.
    ///
    /// # Panics
    ///
    /// When there is no answer.
    pub async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "").await
    }

    /// Orders something, with the value of an `Authorization` header or without one.
    ///
    /// # Panics
    ///
    /// When there is no answer.
    pub async fn post(&self, path: &str, authorization: Option<&str>) -> Answer {
        let header = authorization.map(|value| format!("authorization: {value}\r\n"));
        self.ask("POST", path, &header.unwrap_or_default()).await
    }

    /// What `/status` says.
    ///
    /// # Panics
    ///
    /// When that is no JSON.
    pub async fn status(&self) -> Value {
        serde_json::from_str(&self.get("/status").await.body).expect("the status is json")
    }

    /// Waits until `/readyz` answers with this code and a text that has this in it; answers with
    /// how long that took.
    ///
    /// # Panics
    ///
    /// When it does not within `limit`.
    #[track_caller]
    pub fn readiness(
        &self,
        code: u16,
        text: &str,
        limit: Duration,
    ) -> impl Future<Output = Duration> {
        self.until("/readyz", limit, move |answer| {
            answer.code == code && answer.body.contains(text)
        })
    }

    /// Waits until `/status` is as it should be; answers with how long that took.
    ///
    /// # Panics
    ///
    /// When it is not within `limit`.
    #[track_caller]
    pub fn status_until(
        &self,
        limit: Duration,
        enough: impl Fn(&Value) -> bool,
    ) -> impl Future<Output = Duration> {
        self.until("/status", limit, move |answer| {
            serde_json::from_str(&answer.body).is_ok_and(|status| enough(&status))
        })
    }

    #[track_caller]
    fn until(
        &self,
        path: &str,
        limit: Duration,
        enough: impl Fn(&Answer) -> bool,
    ) -> impl Future<Output = Duration> {
        let caller = std::panic::Location::caller();
        async move {
            let from = Instant::now();
            let mut look = interval(LOOK_EVERY);
            loop {
                look.tick().await;
                let answer = self.get(path).await;
                let took = from.elapsed();
                if enough(&answer) {
                    return took;
                }
                assert!(took < limit, "{caller}: after {took:?} {path} still says {answer:?}");
            }
        }
    }

    async fn ask(&self, method: &str, path: &str, header: &str) -> Answer {
        let sent = timeout(ANSWER_MAX, self.send(method, path, header, ""));
        sent.await.expect("the endpoint answers in time")
    }

    /// Sends a request with these lines of headers and this body; the caller bounds the time.
    pub(crate) async fn send(&self, method: &str, path: &str, header: &str, body: &str) -> Answer {
        let asked = async {
            let mut socket = TcpStream::connect(&self.address).await?;
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\
                 content-length: {}\r\n{header}\r\n{body}",
                self.address,
                body.len()
            );
            socket.write_all(request.as_bytes()).await?;
            read(&mut BufReader::new(socket)).await
        };
        let (head, body) = asked.await.expect("the endpoint answers");
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Answer { code: code.expect("an answer has a code"), head, body }
    }
}

/// Head, in lower case, and body of an answer. Not every server hangs up at its end.
async fn read(socket: &mut BufReader<TcpStream>) -> std::io::Result<(String, String)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && socket.read_line(&mut head).await? > 0 {}
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let mut body = Vec::new();
    match length.and_then(|length| length.trim().parse().ok()) {
        Some(length) => socket.take(length).read_to_end(&mut body).await?,
        None => socket.read_to_end(&mut body).await?,
    };
    Ok((head, String::from_utf8_lossy(&body).into_owned()))
}
