//! The guard for HTTP: a request with an `Idempotency-Key` has its effect once, and its answer again.
//!
//! After [draft-ietf-httpapi-idempotency-key-header-07](https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/),
//! for any web framework: it takes texts and bytes and answers with a status. With the feature `tower` the module
//! `http_layer` does so around a service of Tower. The answer is stored in the transaction of
//! the handler's effect, so neither is there without the other.
//!
//! ```no_run
//! # async fn handle(
//! #     pool: sqlx::PgPool, caller: &str, header: Option<&str>, body: &[u8],
//! # ) -> Result<(u16, Vec<u8>), Box<dyn std::error::Error>> {
//! use tailrace_idempotency::http_key::{self, Begun, Fingerprint, Key, Response};
//!
//! let key = match Key::required(header) {
//!     Ok(key) => key,
//!     Err(refusal) => return Ok((refusal.status(), refusal.to_string().into_bytes())),
//! };
//! let fingerprint = Fingerprint::of("POST", "/payments", body);
//! let mut tx = pool.begin().await?;
//! let pending = match http_key::begin(&mut tx, caller, &key, &fingerprint).await? {
//!     Begun::First(pending) => pending,
//!     Begun::Replay(answer) => return Ok((answer.status, answer.body)),
//!     Begun::Refused(refusal) => return Ok((refusal.status(), refusal.to_string().into_bytes())),
//! };
//! sqlx::query("insert into payment (amount) values (10)").execute(&mut *tx).await?;
//! let answer = Response::new(201, br#"{"payment":"accepted"}"#.to_vec());
//! http_key::finish(&mut tx, pending, &answer).await?;
//! tx.commit().await?;
//! Ok((answer.status, answer.body))
//! # }
//! ```
//!
//! # Contract
//! - A transaction that rolls back stores nothing: the next request with the key is a first one. So an answer to a
//!   failure is stored only if the service commits it.
//! - While a request is being handled, another one with its key is refused ([`Refusal::InFlight`], 409) and does not
//!   wait. That is known by a lock of the transaction, so a service that dies holds no key.
//! - A key that comes with another request is refused ([`Refusal::OtherRequest`], 422).
//! - Keys of one caller are nothing to another: the scope is part of the key. It should name the authenticated caller,
//!   or one caller could read the answers of another.
//! - Answers are kept until [`forget`] deletes them. A request that comes again later is a first one: say how long they
//!   are kept in the API's own documentation.

use std::fmt;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;

use crate::error::{ABORTED, Error, Kind};
use crate::retention::age_seconds;

/// A key has no more bytes.
pub const KEY_BYTES_MAX: usize = 255;

/// A stored answer has no more bytes in its body.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// So many answers are deleted in one statement.
const ROWS_PER_DELETE: i64 = 5_000;

/// What the client gave in `Idempotency-Key`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(String);

impl Key {
    /// Reads the header's value: a string in quotation marks as the draft has it, or the bare text that many clients
    /// send.
    ///
    /// # Errors
    /// [`Refusal::BadKey`] if it is empty, too long, or not printable ASCII.
    pub fn read(header: &str) -> Result<Self, Refusal> {
        let header = header.trim();
        let quoted = header.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let key = quoted.unwrap_or(header);
        let is_good = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
        if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(is_good) {
            return Err(Refusal::BadKey);
        }
        Ok(Self(key.to_owned()))
    }

    /// As [`read`](Self::read), for a request that has to have one.
    ///
    /// # Errors
    /// [`Refusal::MissingKey`] without the header, and as [`read`](Self::read).
    pub fn required(header: Option<&str>) -> Result<Self, Refusal> {
        header.ok_or(Refusal::MissingKey).and_then(Self::read)
    }
}

/// What a request is, so that a key is not taken for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of the method, the path with its query, and the body as it came.
    pub fn of(method: &str, path: &str, body: &[u8]) -> Self {
        let mut digest = Sha256::new();
        for part in [method.as_bytes(), path.as_bytes(), body] {
            // With the lengths, so that no byte can move from one part to the next.
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        Self(digest.finalize().into())
    }
}

/// Why a request is not handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// It has no key, and needs one.
    MissingKey,
    /// Its key is empty, too long or not printable.
    BadKey,
    /// Another request with its key is being handled.
    InFlight,
    /// Its key came with another request before.
    OtherRequest,
}

impl Refusal {
    /// The status that the draft has for it.
    pub fn status(self) -> u16 {
        match self {
            Self::MissingKey | Self::BadKey => 400,
            Self::InFlight => 409,
            Self::OtherRequest => 422,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MissingKey => "the header Idempotency-Key is missing",
            Self::BadKey => {
                "the header Idempotency-Key is not a text of 1 to 255 printable characters"
            }
            Self::InFlight => {
                "a request with this Idempotency-Key is being handled; repeat it later"
            }
            Self::OtherRequest => "this Idempotency-Key was used for another request",
        })
    }
}

impl std::error::Error for Refusal {}

/// The answer to a request.
#[derive(Clone, PartialEq, Eq)]
pub struct Response {
    /// From 100 to 599.
    pub status: u16,
    /// Headers that belong to the answer, such as `content-type` and `location`, in their order. Those of the
    /// connection and the moment (`date`, `set-cookie`) do not.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body, at most [`BODY_BYTES_MAX`].
    pub body: Vec<u8>,
}

impl Response {
    /// An answer without headers.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No body and no header's value: they are the caller's.
        f.debug_struct("Response").field("status", &self.status).finish_non_exhaustive()
    }
}

/// A request that is being handled in this transaction.
#[derive(Debug)]
#[must_use = "the answer has to be stored by finish, in the same transaction"]
pub struct Pending {
    scope: String,
    key: Key,
    fingerprint: Fingerprint,
    /// The time of the transaction, in microseconds: no other one of the session has the same.
    began: i64,
}

/// What is to be done with a request.
#[derive(Debug)]
pub enum Begun {
    /// Handle it, and [`finish`] in the same transaction.
    First(Pending),
    /// Answer with this, and do nothing.
    Replay(Response),
    /// Answer with its status, and do nothing.
    Refused(Refusal),
}

/// Looks what is known of a request, in the caller's transaction, before anything else is done in it.
///
/// # Errors
/// What Postgres answers; the transaction is aborted then. Without an open transaction nothing tells that the request is
/// being handled.
pub async fn begin(
    conn: &mut PgConnection,
    scope: &str,
    key: &Key,
    fingerprint: &Fingerprint,
) -> Result<Begun, Error> {
    let failed = |error| Error::database("the key of a request cannot be looked up", error);
    // Two statements: the second one sees what was committed before the lock was free.
    let (alone, began): (bool, i64) = sqlx::query_as(
        "SELECT pg_try_advisory_xact_lock(hashtextextended($2, hashtextextended($1, 7))),
                (extract(epoch FROM now()) * 1000000)::bigint",
    )
    .bind(scope)
    .bind(&key.0)
    .fetch_one(&mut *conn)
    .await
    .map_err(failed)?;
    type Row = (Vec<u8>, i16, Vec<String>, Vec<Vec<u8>>, Vec<u8>);
    let stored: Option<Row> = sqlx::query_as(
        "SELECT fingerprint, status, header_names, header_values, body
         FROM tailrace.http_key WHERE scope = $1 AND key = $2",
    )
    .bind(scope)
    .bind(&key.0)
    .fetch_optional(conn)
    .await
    .map_err(failed)?;
    Ok(match stored {
        Some((of, ..)) if of != fingerprint.0 => Begun::Refused(Refusal::OtherRequest),
        Some((_, status, names, values, body)) => Begun::Replay(Response {
            status: status.unsigned_abs(),
            headers: names.into_iter().zip(values).collect(),
            body,
        }),
        None if !alone => Begun::Refused(Refusal::InFlight),
        None => {
            let (scope, key) = (scope.to_owned(), key.clone());
            Begun::First(Pending { scope, key, fingerprint: *fingerprint, began })
        }
    })
}

/// Stores the answer, in the transaction of [`begin`] and of the effect.
///
/// # Errors
/// [`Kind::Payload`] if the answer is too large or its status is none. What Postgres answers; the transaction is aborted
/// then, also where another request with the key was faster after all. [`Kind::Handler`], and nothing is stored, if this is
/// another transaction than that of [`begin`]: somebody has ended that, and the effect may be gone with it.
pub async fn finish(
    conn: &mut PgConnection,
    pending: Pending,
    answer: &Response,
) -> Result<(), Error> {
    let fault = |text: &'static str, mend| Err(Error::new(Kind::Payload, text).mended_by(mend));
    if answer.body.len() > BODY_BYTES_MAX {
        return fault("the answer has over 1 MB", "answer with a reference to what is large");
    }
    let Ok(status @ 100..=599) = i16::try_from(answer.status) else {
        return fault("the answer's status is not one of HTTP", "give one from 100 to 599");
    };
    let (names, values): (Vec<&str>, Vec<&[u8]>) =
        answer.headers.iter().map(|(name, value)| (&**name, &**value)).unzip();
    let stored = sqlx::query(
        "INSERT INTO tailrace.http_key (scope, key, fingerprint, status, header_names, header_values, body)
         SELECT $1::text, $2::text, $3::bytea, $4::smallint, $5::text[], $6::bytea[], $7::bytea
         WHERE (extract(epoch FROM now()) * 1000000)::bigint = $8",
    )
    .bind(&pending.scope)
    .bind(&pending.key.0)
    .bind(pending.fingerprint.0.as_slice())
    .bind(status)
    .bind(names)
    .bind(values)
    .bind(&answer.body)
    .bind(pending.began)
    .execute(conn)
    .await
    .map_err(|error| match &error {
        sqlx::Error::Database(cause) if cause.code().as_deref() == Some(ABORTED) => {
            Error::new(Kind::Handler, "a handler kept a failed statement to itself, which aborted the transaction of its request")
                .caused_by(error)
                .mended_by("return the error, or put the statement behind a savepoint")
        }
        _ => Error::database("the answer to a request cannot be stored", error),
    })?;
    if stored.rows_affected() == 0 {
        return Err(Error::new(Kind::Handler, "a handler ended the transaction of its request")
            .mended_by("handlers must neither commit nor roll back what they were given"));
    }
    Ok(())
}

/// How many answers are older than this.
///
/// # Errors
/// What Postgres answers.
pub async fn plan_forget(conn: &mut PgConnection, older_than: Duration) -> Result<u64, Error> {
    let count: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM tailrace.http_key WHERE created_at < now() - make_interval(secs => $1)",
    )
    .bind(age_seconds(older_than))
    .fetch_one(conn)
    .await
    .map_err(|error| Error::database("old answers cannot be counted", error))?;
    Ok(count.unsigned_abs())
}

/// Deletes answers that are older than this, at most 5,000, and says how many: call it until there are none.
///
/// # Errors
/// What Postgres answers.
pub async fn forget(conn: &mut PgConnection, older_than: Duration) -> Result<u64, Error> {
    let deleted = sqlx::query(
        "DELETE FROM tailrace.http_key WHERE (scope, key) IN (
             SELECT scope, key FROM tailrace.http_key
             WHERE created_at < now() - make_interval(secs => $1)
             ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(age_seconds(older_than))
    .bind(ROWS_PER_DELETE)
    .execute(conn)
    .await
    .map_err(|error| Error::database("old answers cannot be deleted", error))?;
    Ok(deleted.rows_affected())
}

#[cfg(test)]
#[cfg(feature = "kafka")]
mod tests;
