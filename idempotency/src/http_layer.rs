//! The guard for HTTP as a layer of Tower: around a router of axum, or any service of the crate `http`.
//!
//! ```no_run
//! # use axum::{Extension, Router, routing::post};
//! # use axum::http::{StatusCode, request::Parts};
//! use tailrace_idempotency::http_layer::{IdempotencyKeys, RequestTx};
//!
//! async fn pay(Extension(tx): Extension<RequestTx>) -> Result<StatusCode, StatusCode> {
//!     let mut conn = tx.conn().ok_or(StatusCode::INTERNAL_SERVER_ERROR)?;
//!     let paid = sqlx::query("insert into payment (cents) values (100)").execute(&mut *conn).await;
//!     paid.map(|_| StatusCode::CREATED).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
//! }
//!
//! # fn router(pool: sqlx::PgPool) -> Router {
//! // Keys of one caller are nothing to another: say who it is, as your authentication has found out.
//! let caller = |request: &Parts| request.extensions.get::<String>().cloned().unwrap_or_default();
//! Router::new().route("/payments", post(pay)).layer(IdempotencyKeys::new(pool, caller))
//! # }
//! ```
//!
//! # Contract
//! - Requests by POST and PATCH need the header `Idempotency-Key`; others pass through as they are.
//! - The layer opens a transaction and hands it to the service as the extension [`RequestTx`]. An answer below 400 is
//!   stored in it, and it is committed; with any other answer it is rolled back and nothing is stored, so that the same
//!   request is tried anew. [`IdempotencyKeys::keep`] changes which.
//! - A request that comes again is answered with what is stored, one that is being handled with 409, another request
//!   under the key with 422, a missing or unreadable key or more than one with 400: see [`http_key`].
//! - A handler that ends its transaction itself is answered for with 500, and nothing is stored: to commit and to roll
//!   back is the layer's.
//! - Bodies are held in memory: of requests up to [`IdempotencyKeys::body_max`] (413 beyond), of answers up to
//!   [`BODY_BYTES_MAX`].
//! - Where Postgres does not answer the layer does, with 503, and nothing has happened. The answer to a lost commit is
//!   503 too: whoever repeats the request learns what became of it.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tower_layer::Layer;
use tower_service::Service;

use crate::error::{BoxError, Error, Kind};
use crate::http_key::{self, BODY_BYTES_MAX, Begun, Fingerprint, Key, Pending};

const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Headers of the connection and of the moment, which are no part of an answer.
const MOMENTARY: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::DATE,
    header::SET_COOKIE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

type Caller = dyn Fn(&Parts) -> String + Send + Sync;

/// A layer that has requests with an `Idempotency-Key` handled once.
#[derive(Clone)]
pub struct IdempotencyKeys {
    pool: PgPool,
    caller: Arc<Caller>,
    keep: fn(StatusCode) -> bool,
    body_max: usize,
}

impl IdempotencyKeys {
    /// A layer with the database of the handlers' effects, and the function that says whose a request is.
    pub fn new(pool: PgPool, caller: impl Fn(&Parts) -> String + Send + Sync + 'static) -> Self {
        let keep = |status: StatusCode| status.as_u16() < 400;
        Self { pool, caller: Arc::new(caller), keep, body_max: BODY_BYTES_MAX }
    }

    /// Which answers are stored, and their transactions committed. Default: those with a status below 400.
    #[must_use]
    pub fn keep(mut self, keep: fn(StatusCode) -> bool) -> Self {
        self.keep = keep;
        self
    }

    /// The largest body of a request, in bytes. Default: 1 MB.
    #[must_use]
    pub fn body_max(mut self, bytes: usize) -> Self {
        self.body_max = bytes;
        self
    }
}

impl fmt::Debug for IdempotencyKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyKeys").field("body_max", &self.body_max).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for IdempotencyKeys {
    type Service = Guarded<S>;

    fn layer(&self, service: S) -> Guarded<S> {
        Guarded { keys: self.clone(), service }
    }
}

/// The transaction of a request, as an extension of it.
#[derive(Clone)]
pub struct RequestTx(Arc<Mutex<Option<Transaction<'static, Postgres>>>>);

impl RequestTx {
    /// The connection inside the transaction; none while another part of the handler has it, and after the answer.
    pub fn conn(&self) -> Option<RequestConn> {
        let guard = Arc::clone(&self.0).try_lock_owned().ok()?;
        guard.is_some().then_some(RequestConn(guard))
    }
}

impl fmt::Debug for RequestTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestTx")
    }
}

/// The connection of a request, for as long as it is held. To commit or to roll back is the layer's.
#[derive(Debug)]
pub struct RequestConn(OwnedMutexGuard<Option<Transaction<'static, Postgres>>>);

impl Deref for RequestConn {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.0
            .as_ref()
            .expect("it was there when the guard was made, and only the guard's holder takes it")
    }
}

impl DerefMut for RequestConn {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.0
            .as_mut()
            .expect("it was there when the guard was made, and only the guard's holder takes it")
    }
}

/// A service behind the layer.
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    keys: IdempotencyKeys,
    service: S,
}

type Answering<E> = Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, E>> + Send>>;

impl<S, B, R> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
    R: http_body::Body + Send + 'static,
    R::Data: Send,
    R::Error: Into<BoxError>,
{
    type Response = Response<Full<Bytes>>;
    type Error = S::Error;
    type Future = Answering<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The one that is ready is called, and its clone waits to become so.
        let clone = self.service.clone();
        let service = std::mem::replace(&mut self.service, clone);
        let keys = self.keys.clone();
        Box::pin(async move { keys.answer(service, request).await })
    }
}

impl IdempotencyKeys {
    async fn answer<S, B, R>(
        self,
        mut service: S,
        request: Request<B>,
    ) -> Result<Response<Full<Bytes>>, S::Error>
    where
        S: Service<Request<Full<Bytes>>, Response = Response<R>>,
        B: http_body::Body,
        B::Error: Into<BoxError>,
        R: http_body::Body,
        R::Error: Into<BoxError>,
    {
        let (mut parts, body) = request.into_parts();
        let body = match read(body, self.body_max).await {
            Ok(body) => body,
            Err(status) => return Ok(refused(status, "the body cannot be read")),
        };
        if !matches!(parts.method, Method::POST | Method::PATCH) {
            let answer = service.call(Request::from_parts(parts, Full::new(body))).await?;
            return Ok(whole(answer).await.unwrap_or_else(|refused| refused));
        }
        let (tx, pending) = match self.begin(&parts, &body).await {
            Ok(begun) => begun,
            Err(answer) => return Ok(answer),
        };
        let tx = RequestTx(Arc::new(Mutex::new(Some(tx))));
        parts.extensions.insert(tx.clone());
        let answer = service.call(Request::from_parts(parts, Full::new(body))).await?;
        match whole(answer).await {
            Ok(answer) if (self.keep)(answer.status()) => Ok(end(&tx, pending, answer).await),
            Ok(answer) | Err(answer) => {
                undo(&tx).await;
                Ok(answer)
            }
        }
    }

    /// The transaction of a first request; or the answer to any other.
    async fn begin(
        &self,
        parts: &Parts,
        body: &[u8],
    ) -> Result<(Transaction<'static, Postgres>, Pending), Response<Full<Bytes>>> {
        if parts.headers.get_all(IDEMPOTENCY_KEY).iter().count() > 1 {
            let why = "the header Idempotency-Key is given more than once";
            return Err(refused(StatusCode::BAD_REQUEST, why));
        }
        // Whatever cannot be read is no key.
        let given = parts.headers.get(IDEMPOTENCY_KEY);
        let given = given.map(|given| given.to_str().unwrap_or_default());
        let refusal = |refusal: http_key::Refusal| {
            let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
            refused(status, &refusal.to_string())
        };
        let key = Key::required(given).map_err(refusal)?;
        let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
        let fingerprint = Fingerprint::of(parts.method.as_str(), path, body);
        let away = |error: Error| unavailable(&error);
        let begun = self.pool.begin().await;
        let mut tx =
            begun.map_err(|error| away(Error::database("no connection to postgres", error)))?;
        let caller = (self.caller)(parts);
        match http_key::begin(&mut tx, &caller, &key, &fingerprint).await.map_err(away)? {
            Begun::First(pending) => Ok((tx, pending)),
            Begun::Replay(stored) => Err(replayed(stored)),
            Begun::Refused(why) => Err(refusal(why)),
        }
    }
}

/// What the handler did goes with its transaction, before the answer: whoever repeats the request upon it finds the key
/// free.
async fn undo(tx: &RequestTx) {
    let taken = tx.0.try_lock().ok().and_then(|mut tx| tx.take());
    if let Some(tx) = taken
        && let Err(error) = tx.rollback().await
    {
        tracing::debug!(%error, "the server rolls back what lost its connection");
    }
}

/// Stores the answer and commits, or answers that nothing has happened.
async fn end(
    tx: &RequestTx,
    pending: Pending,
    answer: Response<Full<Bytes>>,
) -> Response<Full<Bytes>> {
    let taken = tx.0.try_lock().ok().and_then(|mut tx| tx.take());
    let Some(mut tx) = taken else {
        tracing::error!(
            "a handler has answered and still holds the transaction of its request: it is rolled back"
        );
        return refused(StatusCode::INTERNAL_SERVER_ERROR, "the request was not handled");
    };
    let stored = async {
        http_key::finish(&mut tx, pending, &stored(&answer).await).await?;
        tx.commit().await.map_err(|error| Error::database("a request cannot be committed", error))
    };
    match stored.await {
        Ok(()) => answer,
        Err(error) if error.kind() == Kind::Handler => {
            tracing::error!(error = %error, "the answer to a request is not given");
            ended_by_its_handler()
        }
        Err(error) => unavailable(&error),
    }
}

/// The answer of the handler is not to be believed: what it did may be gone, or be there without the answer.
fn ended_by_its_handler() -> Response<Full<Bytes>> {
    let problem = r#"{"title":"The request was not handled as a whole","status":500,"detail":"Its handler ended the transaction that it was given. The answer is not stored."}"#;
    let mut answer = refused(StatusCode::INTERNAL_SERVER_ERROR, problem);
    let json = HeaderValue::from_static("application/problem+json");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer
}

/// The form in which an answer is stored.
async fn stored(answer: &Response<Full<Bytes>>) -> http_key::Response {
    let Ok(body) = answer.body().clone().collect().await;
    let kept = answer.headers().iter().filter(|(name, _)| !MOMENTARY.contains(name));
    kept.fold(
        http_key::Response::new(answer.status().as_u16(), body.to_bytes()),
        |all, (name, value)| all.header(name.as_str(), value.as_bytes()),
    )
}

fn replayed(stored: http_key::Response) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(stored.body.into()));
    *answer.status_mut() = StatusCode::from_u16(stored.status).unwrap_or(StatusCode::OK);
    for (name, value) in stored.headers {
        let header = (HeaderName::try_from(name), HeaderValue::try_from(value));
        if let (Ok(name), Ok(value)) = header {
            answer.headers_mut().append(name, value);
        }
    }
    answer
}

/// An answer with its body in memory.
async fn whole<R>(answer: Response<R>) -> Result<Response<Full<Bytes>>, Response<Full<Bytes>>>
where
    R: http_body::Body,
    R::Error: Into<BoxError>,
{
    let (parts, body) = answer.into_parts();
    match read(body, BODY_BYTES_MAX).await {
        Ok(body) => Ok(Response::from_parts(parts, Full::new(body))),
        Err(_) => {
            tracing::error!(
                "the answer to a request is larger than 1 MB or broke off, and is not given"
            );
            Err(refused(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be given"))
        }
    }
}

async fn read<B>(body: B, bytes_max: usize) -> Result<Bytes, StatusCode>
where
    B: http_body::Body,
    B::Error: Into<BoxError>,
{
    match Limited::new(body, bytes_max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => Err(StatusCode::BAD_REQUEST),
    }
}

fn refused(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(why.to_owned().into()));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, plain);
    answer
}

fn unavailable(error: &Error) -> Response<Full<Bytes>> {
    tracing::error!(error = %error, "a request with an idempotency key is not handled");
    refused(StatusCode::SERVICE_UNAVAILABLE, "the request was not handled; repeat it later")
}

#[cfg(test)]
#[cfg(feature = "kafka")]
mod tests;
