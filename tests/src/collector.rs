//! A collector of spans: OTLP over HTTP, of which it reads what a test looks at.
//!
//! The messages are those of `opentelemetry/proto/trace/v1/trace.proto`, by the numbers of the fields that are read here.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{Instant, interval};

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A span that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The process that it comes from, as `OTEL_SERVICE_NAME` called it.
    pub service: String,
    /// What it is called.
    pub name: String,
    /// The trace that it belongs to, in hexadecimal digits.
    pub trace: String,
    /// Itself.
    pub id: String,
    /// Its parent; empty where it has none.
    pub parent: String,
}

/// Takes spans until it is dropped.
#[derive(Debug)]
pub struct Collector {
    url: String,
    spans: Arc<Mutex<Vec<Span>>>,
    serving: AbortHandle,
}

impl Collector {
    /// A collector on a free port.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let url = format!("http://{}", listener.local_addr().expect("it has an address"));
        let spans = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&spans);
        let serving = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(take(socket, Arc::clone(&kept)));
            }
        });
        Collector { url, spans, serving: serving.abort_handle() }
    }

    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What it has of a trace.
    pub fn trace(&self, trace: &str) -> Vec<Span> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.iter().filter(|span| span.trace == trace).cloned().collect()
    }

    /// Waits until a trace is whole and has spans of all of these processes: each span but the first has a parent that is
    /// known.
    ///
    /// # Panics
    ///
    /// When it is not within `limit`, with what is missing.
    pub async fn whole(&self, trace: &str, services: &[&str], limit: Duration) -> Vec<Span> {
        let since = Instant::now();
        let mut look = interval(LOOK_EVERY);
        loop {
            look.tick().await;
            let spans = self.trace(trace);
            let missing = missing(&spans, services);
            if missing.is_empty() {
                return spans;
            }
            assert!(since.elapsed() < limit, "trace {trace}: {}\n{spans:#?}", missing.join("; "));
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// What keeps spans from being one whole trace.
fn missing(spans: &[Span], services: &[&str]) -> Vec<String> {
    let from: BTreeSet<&str> = spans.iter().map(|span| span.service.as_str()).collect();
    let ids: BTreeSet<&str> = spans.iter().map(|span| span.id.as_str()).collect();
    let silent = services.iter().filter(|service| !from.contains(**service));
    let silent = silent.map(|service| format!("{service} has sent nothing"));
    let has_parent = |span: &&Span| span.parent.is_empty() || ids.contains(span.parent.as_str());
    let orphans = spans.iter().filter(|span| !has_parent(span));
    let orphans = orphans.map(|span| format!("the parent of {} is not there", span.name));
    let roots = spans.iter().filter(|span| span.parent.is_empty()).count();
    let roots = (roots != 1).then(|| format!("{roots} spans have no parent"));
    silent.chain(orphans).chain(roots).collect()
}

/// One request, and an answer after which the connection is closed.
async fn take(socket: TcpStream, spans: Arc<Mutex<Vec<Span>>>) -> Option<()> {
    let mut socket = BufReader::new(socket);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && socket.read_line(&mut head).await.ok()? > 0 {}
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"))?;
    let mut body = vec![0; length.trim().parse().ok()?];
    socket.read_exact(&mut body).await.ok()?;
    let export = Export::decode(body.as_slice()).ok()?;
    spans.lock().unwrap_or_else(PoisonError::into_inner).extend(export.spans());
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\n\
                  content-length: 0\r\nconnection: close\r\n\r\n";
    socket.write_all(answer.as_bytes()).await.ok()
}

#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, tag = "1")]
    text: String,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<WireSpan>,
}

#[derive(Clone, PartialEq, Message)]
struct WireSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
}

impl Export {
    fn spans(self) -> Vec<Span> {
        let of_resource = self.resource_spans.into_iter().flat_map(|of| {
            let service = of.resource.and_then(Resource::service).unwrap_or_default();
            let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.map(move |span| span.of(&service))
        });
        of_resource.collect()
    }
}

impl Resource {
    fn service(self) -> Option<String> {
        let name = self.attributes.into_iter().find(|it| it.key == "service.name")?;
        Some(name.value?.text)
    }
}

impl WireSpan {
    fn of(self, service: &str) -> Span {
        let WireSpan { trace, id, parent, name } = self;
        let [trace, id, parent] = [trace, id, parent]
            .map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        Span { service: service.to_owned(), name, trace, id, parent }
    }
}
