//! The same over HTTP, as a router to mount in a service of yours.
//!
//! **It asks nobody who they are.** Mount it behind what does, at a place that only operators reach; everybody who
//! reaches it may end every saga of the database. What knows who asks may say so to the audit by the extension [`Actor`].
//!
//! ```no_run
//! use axum::extract::Request;
//! use axum::http::StatusCode;
//! use axum::middleware::{Next, from_fn};
//! use axum::response::{IntoResponse, Response};
//! use tailrace_saga::operate::http::{Actor, Routes};
//!
//! async fn only_operators(mut request: Request, next: Next) -> Response {
//!     match request.headers().get("x-forwarded-user").and_then(|name| name.to_str().ok()) {
//!         Some(name) => {
//!             let actor = Actor(name.to_owned());
//!             request.extensions_mut().insert(actor);
//!             next.run(request).await
//!         }
//!         None => StatusCode::UNAUTHORIZED.into_response(),
//!     }
//! }
//!
//! # fn example(pool: sqlx::PgPool) -> axum::Router {
//! axum::Router::new()
//!     .nest("/operate", Routes::new(pool).router())
//!     .layer(from_fn(only_operators))
//! # }
//! ```
//!
//! | request | answer |
//! |---|---|
//! | `GET /sagas` | a page: `sagas`, and `next`, which is `after` of the next page. By `state` (several with commas, or `all`), `definition`, `version`, `step`, `older_than`, `newer_than`, `unchanged_for` (as `90m`), `after`, `limit`, `newest` |
//! | `GET /sagas/ID` | one saga, what it has still to be told, and what people wanted of it |
//! | `GET /sagas/ID/timeline` | `journal`, and `messages` where an observer has kept them in this database |
//! | `GET /sagas/ID/diagram` | how far it is: `form` is `svg`, `states` or `sequence` |
//! | `GET /definitions` | what engines could ever run here |
//! | `GET /definitions/NAME/VERSION/diagram` | a definition |
//! | `POST /changes` | one bounded transaction of a change, or with `dry_run`, which is the default, what it would come to |
//!
//! A change is `{"verb": "retry", "step": …, "sagas": [ID, …], "note": …, "actor": …, "dry_run": false}`, or with
//! `query` instead of `sagas`: an object with the parameters of a list. Verbs are those of `tailrace saga`; `retry`, `skip`
//! and `unlock` take a `step`, `migrate` a [`MappingFile`] as `mapping`, and `signal` the message type as `signal` and the
//! payload as `data`; what a verb makes nothing of is refused. Sagas to `unlock` or to `signal` have to be named. Of a query
//! one page is changed; `next` of the answer is `after` of the next request, until there is none.
//!
//! Errors are `application/problem+json` (RFC 9457). Pages have [`PAGE_MAX`] sagas at most, changes [`BATCH_SAGAS_MAX`],
//! bodies [`BODY_BYTES_MAX`].

use std::borrow::Cow;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::pool::PoolConnection;
use uuid::Uuid;

use super::{BATCH_SAGAS_MAX, By, Change, Filter, PAGE_MAX, Paging};
use crate::correlation::SagaId;
use crate::diagram::Drawing;
use crate::error::{Error, Kind};
use crate::instance::Status;
use crate::mapping_file::MappingFile;
use crate::story;
use crate::transition::Verb;

/// The largest body of a request.
pub const BODY_BYTES_MAX: usize = 256 * 1024;

/// Who asks, for the audit: it takes precedence over what a request says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor(pub String);

/// What is to be mounted, over the database of an orchestrator.
#[derive(Clone, Debug)]
pub struct Routes {
    pool: PgPool,
    with_data: bool,
}

impl Routes {
    /// Its role needs the rights of operators, at the head of `0006_operating.sql`.
    pub fn new(pool: PgPool) -> Self {
        Self { pool, with_data: false }
    }

    /// Whether `GET /sagas/ID` tells the data of sagas and what participants were asked for. Default: false.
    #[must_use]
    pub fn with_data(mut self, with_data: bool) -> Self {
        self.with_data = with_data;
        self
    }

    /// The router: see the [module](self).
    pub fn router<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
        Router::new()
            .route("/sagas", get(list))
            .route("/sagas/{id}", get(show))
            .route("/sagas/{id}/timeline", get(timeline))
            .route("/sagas/{id}/diagram", get(saga_diagram))
            .route("/definitions", get(definitions))
            .route("/definitions/{name}/{version}/diagram", get(definition_diagram))
            .route("/changes", post(change))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(self)
    }

    async fn connection(&self) -> Result<PoolConnection<sqlx::Postgres>, Problem> {
        self.pool.acquire().await.map_err(|error| {
            tracing::warn!(%error, "an operator's request finds no connection to postgres");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "postgres is out of reach or busy")
        })
    }
}

/// Why a request is not answered.
#[derive(Debug)]
struct Problem {
    status: StatusCode,
    detail: Cow<'static, str>,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, detail: detail.into() }
    }

    fn wrong(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    fn no_such(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no {what}"))
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        tracing::warn!(error = %error, cause = ?std::error::Error::source(&error), "an operator's request fails");
        let status = match error.kind() {
            Kind::Conflict => StatusCode::CONFLICT,
            _ if error.is_transient() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        (self.status, kind, body.to_string()).into_response()
    }
}

/// Which sagas, in a list and in a change.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chosen {
    state: Option<String>,
    definition: Option<String>,
    version: Option<u32>,
    step: Option<String>,
    older_than: Option<String>,
    newer_than: Option<String>,
    unchanged_for: Option<String>,
    after: Option<SagaId>,
    limit: Option<u32>,
    #[serde(default)]
    newest: bool,
}

impl Chosen {
    fn filter(&self) -> Result<Filter, Problem> {
        let mut filter = Filter::default();
        for state in self.state.iter().flat_map(|states| states.split(',')) {
            filter = match (state, Status::named(state)) {
                ("all", _) => filter.any_state(),
                (_, Some(status)) => filter.state(status),
                (_, None) => {
                    return Err(Problem::wrong(format!("{state:?} is no state of a saga")));
                }
            };
        }
        let span = |name: &str, text: &Option<String>| -> Result<Option<Duration>, Problem> {
            let read = |text: &String| {
                humantime::parse_duration(text).map_err(|_| {
                    Problem::wrong(format!("{name} is no time: write it as 90m or 2d"))
                })
            };
            text.as_ref().map(read).transpose()
        };
        if let Some(name) = &self.definition {
            filter = filter.definition(name);
        }
        if let Some(version) = self.version {
            filter = filter.version(version);
        }
        if let Some(step) = &self.step {
            filter = filter.step(step);
        }
        if let Some(age) = span("older_than", &self.older_than)? {
            filter = filter.older_than(age);
        }
        if let Some(age) = span("newer_than", &self.newer_than)? {
            filter = filter.newer_than(age);
        }
        if let Some(time) = span("unchanged_for", &self.unchanged_for)? {
            filter = filter.unchanged_for(time);
        }
        Ok(filter)
    }

    fn paging(&self, limit_max: u32) -> Result<Paging, Problem> {
        let max = self.limit.unwrap_or(100);
        if max == 0 || max > limit_max {
            return Err(Problem::wrong(format!("limit is between 1 and {limit_max}")));
        }
        Ok(Paging { after: self.after, newest_first: self.newest, max })
    }
}

type Answer<T> = Result<T, Problem>;

async fn list(
    State(routes): State<Routes>,
    chosen: Result<Query<Chosen>, QueryRejection>,
) -> Answer<Json<Value>> {
    let Query(chosen) = chosen?;
    let (filter, paging) = (chosen.filter()?, chosen.paging(PAGE_MAX)?);
    let mut conn = routes.connection().await?;
    let page = super::list(&mut conn, &filter, &paging).await?;
    let sagas: Vec<Value> = page.sagas.iter().map(|saga| saga.to_json(false)).collect();
    Ok(Json(json!({ "sagas": sagas, "next": page.next.map(|id| id.to_string()) })))
}

/// The parameters of what has none: who gives one expects something of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

type NoQuery = Result<Query<Nothing>, QueryRejection>;

async fn show(
    State(routes): State<Routes>,
    Path(id): Path<String>,
    none: NoQuery,
) -> Answer<Json<Value>> {
    let (saga, Query(Nothing {})) = (saga_id(&id)?, none?);
    let mut conn = routes.connection().await?;
    let shown = super::show(&mut conn, saga).await?;
    let shown = shown.ok_or_else(|| Problem::no_such(&format!("saga {saga}")))?;
    Ok(Json(shown.to_json(routes.with_data)))
}

async fn timeline(
    State(routes): State<Routes>,
    Path(id): Path<String>,
    none: NoQuery,
) -> Answer<Json<Value>> {
    let (saga, Query(Nothing {})) = (saga_id(&id)?, none?);
    let mut conn = routes.connection().await?;
    let journal = super::journal(&mut conn, saga).await?;
    let messages = story::entries(&mut conn, saga).await?;
    if journal.is_empty() && messages.is_empty() {
        return Err(Problem::no_such(&format!("saga {saga}")));
    }
    let journal: Vec<Value> = journal.iter().map(super::Moment::to_json).collect();
    let messages: Vec<Value> = messages.iter().map(story::Entry::to_json).collect();
    Ok(Json(json!({ "saga": saga.to_string(), "journal": journal, "messages": messages })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    #[serde(default)]
    form: Drawn,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Drawn {
    #[default]
    Svg,
    States,
    Sequence,
}

impl Drawn {
    fn answer(self, drawing: Drawing<'_>) -> Response {
        let (kind, text) = match self {
            Self::Svg => ("image/svg+xml", drawing.svg()),
            Self::States => ("text/plain; charset=utf-8", drawing.states()),
            Self::Sequence => ("text/plain; charset=utf-8", drawing.sequence()),
        };
        ([(header::CONTENT_TYPE, kind)], text).into_response()
    }
}

async fn saga_diagram(
    State(routes): State<Routes>,
    Path(id): Path<String>,
    form: Result<Query<Form>, QueryRejection>,
) -> Answer<Response> {
    let (saga, Query(Form { form })) = (saga_id(&id)?, form?);
    let mut conn = routes.connection().await?;
    let found = super::get(&mut conn, saga).await?;
    let found = found.ok_or_else(|| Problem::no_such(&format!("saga {saga}")))?;
    let structure = super::structure_of(&mut conn, &found.definition).await?;
    let structure = structure
        .ok_or_else(|| Problem::no_such(&format!("structure of {} here", found.definition)))?;
    let drawing = Drawing::of(&structure);
    Ok(form.answer(found.instance.as_ref().map_or(drawing, |saga| drawing.at(saga))))
}

async fn definitions(State(routes): State<Routes>, none: NoQuery) -> Answer<Json<Value>> {
    let Query(Nothing {}) = none?;
    let mut conn = routes.connection().await?;
    let living = super::living(&mut conn).await?;
    let known = super::definitions(&mut conn).await?;
    let told = known.iter().map(|of| {
        json!({
            "definition": &*of.name, "version": of.version, "hash": &*of.hash,
            "has_engine": living.run(of),
        })
    });
    Ok(Json(json!({ "definitions": told.collect::<Vec<_>>() })))
}

async fn definition_diagram(
    State(routes): State<Routes>,
    Path((name, version)): Path<(String, String)>,
    form: Result<Query<Form>, QueryRejection>,
) -> Answer<Response> {
    let Query(Form { form }) = form?;
    let number: u32 =
        version.parse().map_err(|_| Problem::wrong(format!("{version:?} is no version")))?;
    let mut conn = routes.connection().await?;
    let structure = super::structure(&mut conn, &name, Some(number)).await?;
    let structure =
        structure.ok_or_else(|| Problem::no_such(&format!("definition {name}/{number} here")))?;
    Ok(form.answer(Drawing::of(&structure)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    verb: String,
    step: Option<String>,
    mapping: Option<MappingFile>,
    signal: Option<String>,
    data: Option<Value>,
    #[serde(default)]
    sagas: Vec<SagaId>,
    query: Option<Chosen>,
    actor: Option<String>,
    note: Option<String>,
    #[serde(default = "is_dry")]
    dry_run: bool,
}

/// Who says nothing changes nothing.
fn is_dry() -> bool {
    true
}

async fn change(
    State(routes): State<Routes>,
    actor: Option<Extension<Actor>>,
    wanted: Result<Json<Wanted>, JsonRejection>,
) -> Answer<Json<Value>> {
    let Json(wanted) = wanted?;
    wanted.must_fit()?;
    let by = wanted.by(actor)?;
    let mut conn = routes.connection().await?;
    let (sagas, query, next) = wanted.sagas(&mut conn).await?;
    let change = match (wanted.verb.as_str(), &wanted.mapping) {
        ("migrate", Some(mapping)) => {
            let target = MappingFile::identity(&mapping.to)
                .ok_or_else(|| Problem::wrong("to names no version: write it as create-order/4"))?;
            let to = super::structure(&mut conn, target.0, Some(target.1)).await?;
            let to =
                to.ok_or_else(|| Problem::no_such(&format!("definition {} here", mapping.to)))?;
            Change::migrate(to, mapping.clone(), by, format!("{query}; mapping {}", json!(mapping)))
        }
        ("signal", _) => wanted.signal(by, query)?,
        _ => Change::verb(wanted.verb()?, by, query),
    };
    let outcomes = match wanted.dry_run {
        true => change.plan(&mut conn, &sagas).await?,
        false => change.make(&mut conn, &sagas).await?,
    };
    let outcomes: Vec<Value> = outcomes.iter().map(super::Outcome::to_json).collect();
    let batch = (!wanted.dry_run).then(|| change.batch().to_string());
    Ok(Json(json!({
        "dry_run": wanted.dry_run, "batch": batch, "outcomes": outcomes,
        "next": next.map(|id| id.to_string()),
    })))
}

impl Wanted {
    fn by(&self, actor: Option<Extension<Actor>>) -> Result<By, Problem> {
        let actor = actor.map(|Extension(Actor(name))| name).or_else(|| self.actor.clone());
        let by = By::new(actor.ok_or_else(|| Problem::wrong("actor is missing: who wants it"))?);
        Ok(match &self.note {
            Some(note) => by.note(note),
            None => by,
        })
    }

    /// Whoever gives something expects it to be heeded: what the verb makes nothing of is no part of a change.
    fn must_fit(&self) -> Result<(), Problem> {
        let verb = self.verb.as_str();
        let taken: &[&str] = match verb {
            "retry" | "skip" | "unlock" => &["step"],
            "compensate" | "abort" => &[],
            "signal" => &["signal", "data"],
            "migrate" => &["mapping"],
            _ => return Err(self.unknown()),
        };
        let given = [
            ("step", self.step.is_some()),
            ("mapping", self.mapping.is_some()),
            ("signal", self.signal.is_some()),
            ("data", self.data.is_some()),
        ];
        let unused = given.iter().filter(|(name, is_given)| *is_given && !taken.contains(name));
        let unused: Vec<&str> = unused.map(|(name, _)| *name).collect();
        if !unused.is_empty() {
            return Err(Problem::wrong(format!("{verb} takes no {}", unused.join(" and no "))));
        }
        // Which saga an event is for nobody says in general, and whether it does harm to unlock one neither.
        if self.query.is_some() && matches!(verb, "signal" | "unlock") {
            return Err(Problem::wrong(format!("{verb} is for sagas that are named, not chosen")));
        }
        Ok(())
    }

    fn unknown(&self) -> Problem {
        Problem::wrong(format!(
            "{:?} is none of retry, skip, unlock, compensate, abort, signal, migrate",
            self.verb
        ))
    }

    fn signal(&self, by: By, query: String) -> Result<Change, Problem> {
        let Some(signal) = &self.signal else {
            return Err(Problem::wrong("signal needs the message type of the signal"));
        };
        let data = self.data.clone().unwrap_or_default();
        Ok(Change::signal(signal, data, by, query))
    }

    fn verb(&self) -> Result<Verb, Problem> {
        let step = self.step.as_deref().map(Box::from);
        match (self.verb.as_str(), step) {
            ("retry", step) => Ok(Verb::Retry { step }),
            ("skip", Some(step)) => Ok(Verb::Skip { step }),
            ("unlock", Some(step)) => Ok(Verb::Unlock { step }),
            ("unlock", None) => {
                Err(Problem::wrong("unlock needs the step, which is named after the lock"))
            }
            ("skip", None) => Err(Problem::wrong("skip needs the step that is passed over")),
            ("compensate", _) => Ok(Verb::Compensate),
            ("abort", _) => Ok(Verb::Abort),
            ("migrate", _) => Err(Problem::wrong("migrate needs a mapping")),
            _ => Err(self.unknown()),
        }
    }

    /// The sagas of this request, how they were chosen, and where the next request goes on.
    async fn sagas(
        &self,
        conn: &mut sqlx::PgConnection,
    ) -> Result<(Vec<SagaId>, String, Option<SagaId>), Problem> {
        match (&self.query, self.sagas.as_slice()) {
            (None, []) => Err(Problem::wrong("no saga is named or chosen: give sagas or query")),
            (Some(_), [_, ..]) => Err(Problem::wrong("sagas are both named and chosen")),
            (None, named) if named.len() > BATCH_SAGAS_MAX => {
                Err(Problem::wrong(format!("at most {BATCH_SAGAS_MAX} sagas in one request")))
            }
            (None, named) => Ok((named.to_vec(), "by id".to_owned(), None)),
            (Some(chosen), []) => {
                let max = u32::try_from(BATCH_SAGAS_MAX).unwrap_or(u32::MAX);
                let (filter, paging) = (chosen.filter()?, chosen.paging(max)?);
                let page = super::list(conn, &filter, &paging).await?;
                let sagas = page.sagas.iter().map(|saga| saga.id).collect();
                Ok((sagas, filter.to_string(), page.next))
            }
        }
    }
}

fn saga_id(text: &str) -> Result<SagaId, Problem> {
    Uuid::try_parse(text)
        .map(SagaId::from_uuid)
        .map_err(|_| Problem::wrong(format!("{text:?} is no id of a saga, which is a UUID")))
}

#[cfg(test)]
#[cfg(feature = "kafka")]
mod tests;
