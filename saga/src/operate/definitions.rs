//! The structures of definitions, as engines have stored them.

use std::collections::BTreeMap;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use super::{unread, unwritten};
use crate::definition::Identity;
use crate::error::{Error, Kind};
use crate::structure::Structure;

/// An engine that has shown no sign of life for so long counts as gone.
pub(crate) const SILENCE_SECS_MAX: f64 = 15.0;

/// The most definitions that are told at once.
const DEFINITIONS_MAX: i64 = 1_000;

/// Stores what is not stored yet.
pub(crate) async fn register(
    conn: &mut PgConnection,
    structures: &[Structure],
) -> Result<(), Error> {
    let of = |read: fn(&Identity) -> &str| -> Vec<&str> {
        structures.iter().map(|structure| read(&structure.identity)).collect()
    };
    let texts: Result<Vec<String>, _> = structures.iter().map(serde_json::to_string).collect();
    let texts = texts.map_err(|error| {
        Error::new(Kind::Unreadable, "a structure does not encode as JSON").caused_by(error)
    })?;
    let versions = structures.iter().map(|structure| i64::from(structure.identity.version));
    sqlx::query(
        "INSERT INTO tailrace.saga_definition (definition, version, hash, structure)
         SELECT definition, version, hash, structure::json
         FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[]) AS known (definition, version, hash, structure)
         ORDER BY definition, version, hash
         ON CONFLICT DO NOTHING",
    )
    .bind(of(|identity| &identity.name))
    .bind(versions.collect::<Vec<_>>())
    .bind(of(|identity| &identity.hash))
    .bind(texts)
    .execute(conn)
    .await
    .map(drop)
    .map_err(unwritten)
}

/// Every definition that an engine could ever run here, newest version first.
///
/// # Errors
/// What Postgres answers.
pub async fn definitions(conn: &mut PgConnection) -> Result<Vec<Identity>, Error> {
    let rows = sqlx::query(
        "SELECT definition, version, hash FROM tailrace.saga_definition
         ORDER BY definition, version DESC, registered_at DESC LIMIT $1",
    )
    .bind(DEFINITIONS_MAX)
    .fetch_all(conn)
    .await
    .map_err(unread)?;
    rows.iter().map(identity).collect::<Result<_, _>>().map_err(unread)
}

/// The structure of this definition, of its newest version where none is said; of the newest form where a version has
/// had several.
///
/// # Errors
/// [`Kind::Schema`] where it was stored by a newer release; what Postgres answers.
pub async fn structure(
    conn: &mut PgConnection,
    definition: &str,
    version: Option<u32>,
) -> Result<Option<Structure>, Error> {
    let found: Option<String> = sqlx::query_scalar(
        "SELECT structure::text FROM tailrace.saga_definition
         WHERE definition = $1 AND ($2::bigint IS NULL OR version = $2)
         ORDER BY version DESC, registered_at DESC LIMIT 1",
    )
    .bind(definition)
    .bind(version.map(i64::from))
    .fetch_optional(conn)
    .await
    .map_err(unread)?;
    found.map(|text| read(&text)).transpose()
}

/// The structure of this form of a version.
///
/// # Errors
/// As [`structure`].
pub async fn structure_of(
    conn: &mut PgConnection,
    definition: &Identity,
) -> Result<Option<Structure>, Error> {
    Ok(structures(conn, std::slice::from_ref(definition)).await?.remove(definition))
}

/// The structures of these definitions, as far as they are known.
pub(crate) async fn structures(
    conn: &mut PgConnection,
    of: &[Identity],
) -> Result<BTreeMap<Identity, Structure>, Error> {
    let texts: Vec<String> = sqlx::query_scalar(
        "SELECT structure::text FROM tailrace.saga_definition
         WHERE (definition, version, hash) IN (
             SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[]))",
    )
    .bind(of.iter().map(|of| of.name.to_string()).collect::<Vec<_>>())
    .bind(of.iter().map(|of| i64::from(of.version)).collect::<Vec<_>>())
    .bind(of.iter().map(|of| of.hash.to_string()).collect::<Vec<_>>())
    .fetch_all(conn)
    .await
    .map_err(unread)?;
    let structures = texts.iter().map(|text| read(text));
    structures.map(|read| read.map(|read| (read.identity.clone(), read))).collect()
}

fn read(text: &str) -> Result<Structure, Error> {
    serde_json::from_str(text).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        Error::new(Kind::Schema, "the structure of a definition is not known to this version")
            .caused_by(place)
    })
}

/// Which engines live, and what they can run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Living(BTreeMap<uuid::Uuid, Vec<Identity>>);

impl Living {
    /// Whether one of them can run this.
    pub fn run(&self, definition: &Identity) -> bool {
        self.0.values().any(|known| known.contains(definition))
    }

    /// Whether one of them can run both.
    pub fn run_both(&self, one: &Identity, other: &Identity) -> bool {
        self.0.values().any(|known| known.contains(one) && known.contains(other))
    }

    /// The form of this version that one of them can run.
    pub fn form(&self, definition: &str, version: u32) -> Option<&Identity> {
        let is_meant = |known: &&Identity| &*known.name == definition && known.version == version;
        self.0.values().flatten().find(is_meant)
    }
}

/// The engines that have shown a sign of life of late.
///
/// # Errors
/// What Postgres answers.
pub async fn living(conn: &mut PgConnection) -> Result<Living, Error> {
    let rows = sqlx::query(
        "SELECT definition, version, hash, engine FROM tailrace.saga_engine
         WHERE seen_at > now() - interval '1 s' * $1",
    )
    .bind(SILENCE_SECS_MAX)
    .fetch_all(conn)
    .await
    .map_err(unread)?;
    let mut living = Living::default();
    for row in rows {
        let known = identity(&row).map_err(unread)?;
        living.0.entry(row.try_get(3).map_err(unread)?).or_default().push(known);
    }
    Ok(living)
}

fn identity(row: &PgRow) -> Result<Identity, sqlx::Error> {
    let version: i64 = row.try_get(1)?;
    Ok(Identity {
        name: row.try_get::<&str, _>(0)?.into(),
        version: u32::try_from(version).unwrap_or(u32::MAX),
        hash: row.try_get::<&str, _>(2)?.into(),
    })
}
