//! The relay's HTTP endpoints.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::error::{Error, Kind};
use crate::status::{Role, Status};

mod visitors;

use visitors::Visitors;

/// A shorter token is guessed sooner or later.
const TOKEN_BYTES_MIN: usize = 16;

const PAGE: &str = include_str!("admin/status_page.html");

/// The page has all that it needs in itself, and reaches nobody but the relay.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
                           script-src 'unsafe-inline'; img-src data:; connect-src 'self'; \
                           base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Where and how a relay answers over HTTP.
///
/// | request | answer |
/// |---|---|
/// | `GET /` | a page to look at |
/// | `GET /livez` | 200 while the process serves |
/// | `GET /readyz` | 200 while it leads and gets on, is paused, or stands by; else 503 with the reason |
/// | `GET /status` | [`Snapshot`](crate::status::Snapshot) as JSON |
/// | `GET /metrics` | what was given to [`Http::metrics`]; else 404 |
/// | `POST /pause`, `POST /resume` | with a bearer token: [`Status::pause`], [`Status::resume`] |
///
/// It is plain HTTP, and what it shows is for everybody who can reach it: names, positions and
/// errors, no payloads and no secrets. At most 64 connections are served at a time.
///
/// ```no_run
/// # use tailrace_cdc_relay::{Config, Http, Relay};
/// # async fn run(config: Config) -> Result<(), tailrace_cdc_relay::Error> {
/// let http = Http::at("127.0.0.1:9640").token("a long secret of your own");
/// Relay::new(config).http(http).run(std::future::pending()).await
/// # }
/// ```
#[derive(Clone)]
pub struct Http {
    address: String,
    token: Option<String>,
    metrics: Option<Arc<dyn Fn() -> String + Send + Sync>>,
}

impl Http {
    /// Answers at this address, an IP address and a port; port 0 takes a free one, which the log
    /// names.
    pub fn at(address: impl Into<String>) -> Self {
        Http { address: address.into(), token: None, metrics: None }
    }

    /// The token that `POST` requests have to bring; without one they are refused. At least 16
    /// bytes. Default none.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Makes the text of `/metrics`, in the form that Prometheus reads. Default none.
    #[must_use]
    pub fn metrics(mut self, render: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.metrics = Some(Arc::new(render));
        self
    }

    /// Binds the address, and serves until the answer is dropped.
    pub(crate) async fn serve(self, status: Status) -> Result<Server, Error> {
        let address: SocketAddr = self.address.parse().map_err(|error| {
            let text = format!("http address {:?} is no IP address with a port", self.address);
            Error::new(Kind::Config, text).hint("for example 127.0.0.1:9640").caused_by(error)
        })?;
        if self.token.as_ref().is_some_and(|token| token.len() < TOKEN_BYTES_MIN) {
            let text = format!("the http token has fewer than {TOKEN_BYTES_MIN} bytes");
            return Err(Error::new(Kind::Config, text)
                .hint("make one, for example by: openssl rand -hex 32"));
        }
        let listener = TcpListener::bind(address).await.map_err(|error| {
            let text = format!("can not serve http at {address}");
            Error::new(Kind::Config, text)
                .hint("is it in use, by another relay perhaps? choose another by --http, or --http off")
                .caused_by(error)
        })?;
        let address = listener.local_addr().unwrap_or(address);
        tracing::info!(%address, "serving http");
        let admin = Arc::new(Admin { status, token: self.token, metrics: self.metrics });
        let router = Router::new()
            .route("/", get(page))
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/status", get(status_json))
            .route("/metrics", get(metrics))
            .route("/pause", post(pause))
            .route("/resume", post(resume))
            .with_state(admin);
        let task = tokio::spawn(async move {
            let served = axum::serve(Visitors::at(listener), router).await;
            tracing::error!(?served, "http has ended");
        });
        Ok(Server(task))
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Serves until it is dropped.
#[derive(Debug)]
pub(crate) struct Server(JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the answers are made of.
struct Admin {
    status: Status,
    token: Option<String>,
    metrics: Option<Arc<dyn Fn() -> String + Send + Sync>>,
}

type Shared = State<Arc<Admin>>;

/// Every answer is about this moment.
const FRESH: (HeaderName, &str) = (CACHE_CONTROL, "no-store");
const TEXT: (HeaderName, &str) = (CONTENT_TYPE, "text/plain; charset=utf-8");

async fn page() -> impl IntoResponse {
    let html = (CONTENT_TYPE, "text/html; charset=utf-8");
    ([html, FRESH, (CONTENT_SECURITY_POLICY, PAGE_POLICY)], PAGE)
}

async fn livez() -> impl IntoResponse {
    ([TEXT, FRESH], "ok\n")
}

async fn readyz(State(admin): Shared) -> impl IntoResponse {
    let now = admin.status.snapshot();
    let role = match now.role {
        Role::Starting => "starting",
        Role::StandingBy => "standby",
        Role::Leading => "leading",
        Role::Paused => "paused",
        Role::Stopping => "stopping",
    };
    let (code, text) = match now.not_ready {
        None => (StatusCode::OK, format!("ready role={role}\n")),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready role={role}: {why}\n")),
    };
    (code, [TEXT, FRESH], text)
}

async fn status_json(State(admin): Shared) -> Response {
    let json = (CONTENT_TYPE, "application/json");
    match serde_json::to_string(&admin.status.snapshot()) {
        Ok(text) => ([json, FRESH], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the status is no json");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn metrics(State(admin): Shared) -> Response {
    match &admin.metrics {
        Some(render) => {
            let form = (CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
            ([form, FRESH], render()).into_response()
        }
        None => {
            (StatusCode::NOT_FOUND, [TEXT, FRESH], "metrics are not served here\n").into_response()
        }
    }
}

async fn pause(State(admin): Shared, headers: HeaderMap) -> Response {
    admin.permitted(&headers, |status| {
        status.pause();
        "paused\n"
    })
}

async fn resume(State(admin): Shared, headers: HeaderMap) -> Response {
    admin.permitted(&headers, |status| {
        status.resume();
        "resumed\n"
    })
}

impl Admin {
    /// Does it for whoever brings the token.
    fn permitted(&self, headers: &HeaderMap, act: impl Fn(&Status) -> &'static str) -> Response {
        let Some(token) = &self.token else {
            let text = "no token is configured, so nothing can be ordered: give one by \
                        --http-token-file or CDC_RELAY_HTTP_TOKEN\n";
            return (StatusCode::FORBIDDEN, [TEXT, FRESH], text).into_response();
        };
        let given = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        if !given.is_some_and(|given| is_bearer(given, token)) {
            let ask = (WWW_AUTHENTICATE, "Bearer");
            let text = "the token is missing or wrong: send it as Authorization: Bearer TOKEN\n";
            return (StatusCode::UNAUTHORIZED, [TEXT, FRESH, ask], text).into_response();
        }
        ([TEXT, FRESH], act(&self.status)).into_response()
    }
}

/// Whether this is the token. Takes as long for a wrong one as for one that is almost right.
fn is_bearer(given: &[u8], token: &str) -> bool {
    let Some((scheme, given)) = given.split_at_checked("bearer ".len()) else { return false };
    let differences =
        given.iter().zip(token.as_bytes()).fold(0, |all, (one, other)| all | (one ^ other));
    scheme.eq_ignore_ascii_case(b"bearer ") && given.len() == token.len() && differences == 0
}

#[cfg(test)]
mod tests {
    use super::is_bearer;

    #[test]
    fn only_the_whole_token_is_the_token() {
        let token = "0123456789abcdef";

        assert!(is_bearer(b"Bearer 0123456789abcdef", token));
        assert!(is_bearer(b"bearer 0123456789abcdef", token));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer 0123456789abcdeF",
            "Basic 0123456789abcdef",
        ] {
            assert!(!is_bearer(wrong.as_bytes(), token), "{wrong}");
        }
    }
}
