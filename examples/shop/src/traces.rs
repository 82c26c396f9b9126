//! The log of a process, and where its spans go: to the collector that the usual variables name, or nowhere.
//!
//! What is in a trace is not the shop's doing: consumers, participants and engines open spans in the trace of the message
//! that they work at, and hand it on. The shop has spans for its requests.

use std::io::IsTerminal as _;
use std::str::FromStr as _;
use std::time::Duration;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::Response;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracerProvider, Tracer};
use tailrace_idempotency::trace;
use tracing::{Instrument as _, Level, Span};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::writer::MakeWriterExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt};
use uuid::Uuid;

use crate::settings::LogFormat;

/// The standard names by which a collector is given
/// (<https://opentelemetry.io/docs/specs/otel/protocol/exporter/>).
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// How long the last spans are waited for at the end.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// Whose spans make up a trace.
const TRACED: [&str; 3] = ["shop", "tailrace_idempotency", "tailrace_saga"];

/// What stands at the head of whatever belongs to a trace.
pub(crate) type Attributes = Vec<(String, String)>;

/// The sending of spans, which ends with it.
#[must_use = "the last spans are sent when it is dropped"]
pub(crate) struct Traces(Option<SdkTracerProvider>);

impl Drop for Traces {
    fn drop(&mut self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown_with_timeout(FAREWELL_MAX)
        {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// Begins the log of this process, at this level where `RUST_LOG` names none, and the sending of its spans where the
/// environment names a collector.
pub(crate) fn begin(process: &'static str, level: &str, format: LogFormat) -> Traces {
    let said = std::env::var("RUST_LOG").ok();
    let log = said.and_then(|said| Targets::from_str(&said).ok());
    let log = log.unwrap_or_else(|| Targets::from_str(level).unwrap_or_default());
    let (provider, trouble) = match provider(process) {
        Some(Ok(provider)) => (Some(provider), None),
        Some(Err(error)) => (None, Some(error)),
        None => (None, None),
    };
    let tracer = provider.as_ref().map(|provider| provider.tracer("shop"));
    subscribe(log, tracer, format);
    if let Some(error) = trouble {
        tracing::warn!(%error, "no spans are sent");
    }
    Traces(provider)
}

/// None where nobody collects.
fn provider(process: &'static str) -> Option<Result<SdkTracerProvider, crate::Failure>> {
    ENDPOINTS.iter().find(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))?;
    let exporter = match opentelemetry_otlp::SpanExporter::builder().with_http().build() {
        Ok(exporter) => exporter,
        Err(error) => return Some(Err(error.into())),
    };
    // The resource takes in OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES by itself.
    let resource = match std::env::var_os("OTEL_SERVICE_NAME") {
        Some(_) => Resource::builder().build(),
        None => Resource::builder().with_service_name(process).build(),
    };
    let provider =
        SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    Some(Ok(provider))
}

fn subscribe(log: Targets, tracer: Option<Tracer>, format: LogFormat) {
    let heard = match &tracer {
        Some(_) => log.clone().with_targets(TRACED.map(|target| (target, Level::DEBUG))),
        None => log.clone(),
    };
    // Filters of single layers share a state, in which whoever only asks whether something is enabled leaves traces, and
    // spans are lost. Here what is no line of the log is not written.
    let writer =
        std::io::stderr.with_filter(move |about| log.would_enable(about.target(), about.level()));
    let lines = fmt::layer().with_writer(writer).with_ansi(std::io::stderr().is_terminal());
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let spans = tracer.map(|tracer| tracing_opentelemetry::layer().with_tracer(tracer));
    Registry::default().with(spans).with(lines).with(heard).init();
}

/// A span around each request that is to change something, in the trace that it names. Pages ask how things are twice a
/// second; that is no story.
pub(crate) async fn of_request(request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let path = request.extensions().get::<MatchedPath>();
    let path =
        path.map_or_else(|| request.uri().path().to_owned(), |path| path.as_str().to_owned());
    let span = tracing::info_span!(
        parent: None, "request",
        otel.name = %format_args!("POST {path}"), otel.kind = "server",
        otel.status_code = tracing::field::Empty,
        http.request.method = "POST", http.route = %path,
        http.response.status_code = tracing::field::Empty,
    );
    trace::follow(&span, pairs(request.headers()));
    let response = next.run(request).instrument(span.clone()).await;
    span.record("http.response.status_code", response.status().as_u16());
    if response.status().is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    response
}

fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
}

/// The trace in which a request is answered: that of its span, or else, where nobody collects spans, that which it names.
pub(crate) fn of(headers: &HeaderMap) -> Attributes {
    let here = trace::attributes(&Span::current());
    if !here.is_empty() {
        return here;
    }
    let named = pairs(headers).filter(|(name, _)| ["traceparent", "tracestate"].contains(name));
    named.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The same, or a new trace: for where requests come in from outside.
pub(crate) fn of_or_new(headers: &HeaderMap) -> Attributes {
    let attributes = of(headers);
    if id(&attributes).is_some() {
        return attributes;
    }
    let (trace, span) = (Uuid::now_v7().as_u128(), Uuid::now_v7().as_u64_pair().1);
    vec![("traceparent".to_owned(), format!("00-{trace:032x}-{span:016x}-01"))]
}

/// The id of the trace, where they name one.
pub(crate) fn id(attributes: &[(String, String)]) -> Option<&str> {
    let (_, parent) = attributes.iter().find(|(name, _)| name == "traceparent")?;
    id_in(parent)
}

/// The id of the trace that a `traceparent` names.
pub(crate) fn id_in(parent: &str) -> Option<&str> {
    let id = parent.split('-').nth(1)?;
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_id && id.bytes().any(|byte| byte != b'0')).then_some(id)
}

/// As headers of a request to another service.
pub(crate) fn headers(attributes: &[(String, String)]) -> HeaderMap {
    let pairs = attributes.iter().filter_map(|(name, value)| {
        let name = axum::http::HeaderName::try_from(name.as_str()).ok()?;
        Some((name, axum::http::HeaderValue::try_from(value.as_str()).ok()?))
    });
    pairs.collect()
}
