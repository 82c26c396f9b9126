//! The HTTP endpoints of a relay, as a client sees them.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
        let asked = async {
            let mut socket = TcpStream::connect(&self.address).await?;
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\
                 content-length: 0\r\n{header}\r\n"
            );
            socket.write_all(request.as_bytes()).await?;
            let mut text = String::new();
            socket.read_to_string(&mut text).await?;
            Ok::<_, std::io::Error>(text)
        };
        let text = timeout(ANSWER_MAX, asked).await.expect("the endpoint answers in time");
        let text = text.expect("the endpoint answers");
        let (head, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Answer {
            code: code.expect("an answer has a code"),
            head: head.to_lowercase(),
            body: body.to_owned(),
        }
    }
}
