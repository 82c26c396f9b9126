//! Sagas, page by page.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use uuid::Uuid;

use super::{Filter, seconds, unread};
use crate::correlation::SagaId;
use crate::definition::Identity;
use crate::error::Error;
use crate::instance::{Instance, Status};

/// The most sagas that one call looks at, whether they fit or not.
pub const LOOK_MAX: u32 = 5_000;

/// The most sagas on one page.
pub const PAGE_MAX: u32 = 1_000;

/// Which page of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// Behind this saga. Default: from the beginning.
    pub after: Option<SagaId>,
    /// The other way round. Default: oldest first.
    pub newest_first: bool,
    /// So many, [`PAGE_MAX`] at most. Default: 100.
    pub max: u32,
}

impl Default for Paging {
    fn default() -> Self {
        Self { after: None, newest_first: false, max: 100 }
    }
}

/// Some of the sagas that fit.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Page {
    /// In the order of their ids. There may be fewer than were asked for, or none, and more behind them.
    pub sagas: Vec<Listed>,
    /// Where the next page begins; none where there is nothing more.
    pub next: Option<SagaId>,
}

/// A saga as it stands.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Listed {
    /// Its id.
    pub id: SagaId,
    /// The definition that it follows.
    pub definition: Identity,
    /// How it stands; none where a newer release has another word for it.
    pub status: Option<Status>,
    /// How often it has changed.
    pub revision: u64,
    /// How long ago it was started.
    pub age: Duration,
    /// How long it has been as it is.
    pub unchanged_for: Duration,
    /// What it has still to be told.
    pub inputs: u64,
    /// All of it; none where a newer release has written it.
    pub instance: Option<Instance>,
}

const COLUMNS: &str = "id, definition, version, hash, status, revision,
    extract(epoch FROM now() - started_at)::float8 AS age,
    extract(epoch FROM now() - changed_at)::float8 AS unchanged_for,
    (SELECT count(*) FROM tailrace.saga_input AS input WHERE input.saga_id = saga.id) AS inputs,
    instance::text AS instance";

const FITS: &str = "($3::text[] IS NULL OR status = ANY ($3))
    AND ($4::text IS NULL OR definition = $4) AND ($5::bigint IS NULL OR version = $5)
    AND ($6::float8 IS NULL OR started_at < now() - make_interval(secs => $6))
    AND ($7::float8 IS NULL OR started_at >= now() - make_interval(secs => $7))
    AND ($8::float8 IS NULL OR changed_at < now() - make_interval(secs => $8))
    AND ($9::text[] IS NULL OR EXISTS (
        SELECT FROM unnest($9) AS mark WHERE strpos(instance::text, mark) > 0))";

/// One page of the sagas that fit.
///
/// # Errors
/// What Postgres answers.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    paging: &Paging,
) -> Result<Page, Error> {
    let max = paging.max.clamp(1, PAGE_MAX);
    let (source, is_exact) = filter.source();
    let (first, behind, until, order, last) = match paging.newest_first {
        false => (Uuid::nil(), ">", "<=", "id", Uuid::max()),
        true => (Uuid::max(), "<", ">=", "id DESC", Uuid::nil()),
    };
    let after = paging.after.map_or(first, |id| *id.as_uuid());
    let horizon = format!(
        "SELECT id FROM tailrace.saga_instance WHERE {source} AND id {behind} $1
         ORDER BY {order} OFFSET {LOOK_MAX} - 1 LIMIT 1"
    );
    let horizon: Option<Uuid> = sqlx::query_scalar(AssertSqlSafe(horizon))
        .bind(after)
        .fetch_optional(&mut *conn)
        .await
        .map_err(unread)?;
    let page = format!(
        "SELECT {COLUMNS} FROM tailrace.saga_instance AS saga
         WHERE {source} AND id {behind} $1 AND id {until} $2 AND {FITS} ORDER BY {order} LIMIT $10"
    );
    let states: Vec<&str> = filter.states().iter().map(|state| state.as_str()).collect();
    let rows = sqlx::query(AssertSqlSafe(page))
        .bind(after)
        .bind(horizon.unwrap_or(last))
        .bind((!is_exact).then_some(states))
        .bind(&filter.definition)
        .bind(filter.version.map(i64::from))
        .bind(filter.older_than.map(|age| age.as_secs_f64()))
        .bind(filter.newer_than.map(|age| age.as_secs_f64()))
        .bind(filter.unchanged_for.map(|time| time.as_secs_f64()))
        .bind(filter.marks())
        .bind(i64::from(max))
        .fetch_all(conn)
        .await
        .map_err(unread)?;
    let is_full = rows.len() == max as usize;
    let mut sagas = rows.iter().map(listed).collect::<Result<Vec<_>, _>>().map_err(unread)?;
    let next = match sagas.last() {
        Some(last) if is_full => Some(last.id),
        _ => horizon.map(SagaId::from_uuid),
    };
    sagas.retain(|saga| filter.is_at(saga.instance.as_ref()));
    Ok(Page { sagas, next })
}

/// A saga as it stands, where there is one.
///
/// # Errors
/// What Postgres answers.
pub async fn get(conn: &mut PgConnection, id: SagaId) -> Result<Option<Listed>, Error> {
    Ok(several(conn, &[id]).await?.pop())
}

/// Those that are there, in the order of their ids.
pub(super) async fn several(conn: &mut PgConnection, ids: &[SagaId]) -> Result<Vec<Listed>, Error> {
    let sql = format!(
        "SELECT {COLUMNS} FROM tailrace.saga_instance AS saga WHERE id = ANY ($1) ORDER BY id"
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(ids.iter().map(|id| *id.as_uuid()).collect::<Vec<_>>())
        .fetch_all(conn)
        .await
        .map_err(unread)?;
    rows.iter().map(listed).collect::<Result<_, _>>().map_err(unread)
}

fn listed(row: &PgRow) -> Result<Listed, sqlx::Error> {
    let (version, revision): (i64, i64) = (row.try_get("version")?, row.try_get("revision")?);
    let (status, inputs): (&str, i64) = (row.try_get("status")?, row.try_get("inputs")?);
    Ok(Listed {
        id: SagaId::from_uuid(row.try_get("id")?),
        definition: Identity {
            name: row.try_get::<&str, _>("definition")?.into(),
            version: u32::try_from(version).unwrap_or(u32::MAX),
            hash: row.try_get::<&str, _>("hash")?.into(),
        },
        status: Status::named(status),
        revision: u64::try_from(revision).unwrap_or_default(),
        age: seconds(row.try_get("age")?),
        unchanged_for: seconds(row.try_get("unchanged_for")?),
        inputs: u64::try_from(inputs).unwrap_or_default(),
        instance: serde_json::from_str(row.try_get("instance")?).ok(),
    })
}
