//! Which definitions an engine can run, and which of them new sagas follow.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::definition::{Definition, Identity};
use crate::error::Error;
use crate::lock::Ordered;

/// The definitions of an engine, several versions side by side.
#[derive(Debug)]
pub(crate) struct Registry {
    engine: Uuid,
    definitions: BTreeMap<(Box<str>, u32), Definition>,
    /// The version that new sagas follow, by name, as of the last look at the other engines.
    current: Mutex<BTreeMap<Box<str>, u32>>,
}

/// Running sagas of a definition that no living engine can run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quarantined {
    /// The definition.
    pub definition: Identity,
    /// How many of its sagas are not over.
    pub sagas: u64,
}

impl Registry {
    pub(crate) fn new(definitions: Vec<Definition>) -> Self {
        let definitions: BTreeMap<_, _> = definitions
            .into_iter()
            .map(|definition| {
                let Identity { name, version, .. } = definition.identity();
                ((name.clone(), *version), definition)
            })
            .collect();
        Self { engine: Uuid::now_v7(), definitions, current: Mutex::default() }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Definition> {
        self.definitions.values()
    }

    pub(crate) fn identities(&self) -> Vec<Identity> {
        self.all().map(|definition| definition.identity().clone()).collect()
    }

    /// The names of its definitions, each once.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.definitions.keys().map(|(name, _)| &**name).collect();
        names.dedup();
        names
    }

    /// The definition that a saga follows, if it has still the structure that the saga began with.
    pub(crate) fn find(&self, identity: &Identity) -> Option<&Definition> {
        self.definitions
            .get(&(identity.name.clone(), identity.version))
            .filter(|definition| definition.identity() == identity)
    }

    /// The definition that a new saga of this name follows.
    pub(crate) fn current(&self, name: &str) -> Option<&Definition> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let version = current.get(name).copied();
        drop(current);
        let chosen = version.and_then(|version| self.definitions.get(&(name.into(), version)));
        chosen
            .or_else(|| self.all().filter(|definition| *definition.identity().name == *name).last())
    }

    /// Says that this engine lives and what it can run, and learns what all others can.
    pub(crate) async fn beat(
        &self,
        conn: &mut PgConnection,
        silence_max: Duration,
    ) -> Result<(), Error> {
        let mine = self.identities();
        sqlx::query(
            "INSERT INTO tailrace.saga_engine AS living (engine, definition, version, hash, lock_order)
             SELECT $1, name, version, hash, string_to_array(lock_order, ',')
             FROM unnest($2::text[], $3::bigint[], $4::text[], $5::text[]) AS mine (name, version, hash, lock_order)
             ON CONFLICT (engine, definition, version) DO UPDATE SET seen_at = now()",
        )
        .bind(self.engine)
        .bind(mine.iter().map(|mine| mine.name.to_string()).collect::<Vec<_>>())
        .bind(mine.iter().map(|mine| i64::from(mine.version)).collect::<Vec<_>>())
        .bind(mine.iter().map(|mine| mine.hash.to_string()).collect::<Vec<_>>())
        .bind(self.all().map(|mine| mine.lock_order().join(",")).collect::<Vec<_>>())
        .execute(&mut *conn)
        .await
        .map_err(failed)?;
        let living = sqlx::query(
            "SELECT engine, definition, version FROM tailrace.saga_engine
             WHERE seen_at > now() - interval '1 s' * $1",
        )
        .bind(silence_max.as_secs_f64())
        .fetch_all(conn)
        .await
        .map_err(failed)?;
        let mut runs: Vec<(Uuid, String, u32)> = Vec::new();
        for row in living {
            let version: i64 = row.try_get(2).map_err(failed)?;
            runs.push((
                row.try_get(0).map_err(failed)?,
                row.try_get(1).map_err(failed)?,
                u32::try_from(version).unwrap_or(u32::MAX),
            ));
        }
        let chosen = choose(&runs);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != chosen {
            tracing::info!(versions = ?chosen, "new sagas follow another version");
            *current = chosen;
        }
        Ok(())
    }

    /// Takes its leave, so that nobody waits for it.
    pub(crate) async fn leave(&self, conn: &mut PgConnection) -> Result<(), Error> {
        sqlx::query("DELETE FROM tailrace.saga_engine WHERE engine = $1")
            .bind(self.engine)
            .execute(conn)
            .await
            .map(drop)
            .map_err(failed)
    }
}

/// The version that new sagas follow: of each name the newest that every living engine of that name can run. Where there
/// is none, nothing is said, and each engine takes its own newest.
fn choose(runs: &[(Uuid, String, u32)]) -> BTreeMap<Box<str>, u32> {
    let mut chosen: BTreeMap<Box<str>, u32> = BTreeMap::new();
    for (_, name, version) in runs {
        let engines = runs.iter().filter(|(_, other, _)| other == name).map(|(engine, ..)| engine);
        let knows = |engine: &Uuid| {
            runs.iter().any(|(of, other, has)| of == engine && other == name && has == version)
        };
        if engines.into_iter().all(knows) {
            let best = chosen.entry(name.as_str().into()).or_insert(*version);
            *best = (*best).max(*version);
        }
    }
    chosen
}

/// The lock orders of all that living engines can run.
pub(crate) async fn lock_orders(
    conn: &mut PgConnection,
    silence_max: Duration,
) -> Result<Vec<Ordered>, Error> {
    let rows = sqlx::query(
        "SELECT DISTINCT definition || '/' || version, lock_order FROM tailrace.saga_engine
         WHERE seen_at > now() - interval '1 s' * $1 AND lock_order <> '{}' ORDER BY 1",
    )
    .bind(silence_max.as_secs_f64())
    .fetch_all(conn)
    .await
    .map_err(failed)?;
    rows.iter()
        .map(|row| {
            let locks: Vec<String> = row.try_get(1).map_err(failed)?;
            let of = row.try_get(0).map_err(failed)?;
            Ok(Ordered { of, locks: locks.into_iter().map(String::into_boxed_str).collect() })
        })
        .collect()
}

/// Running sagas that no living engine can run.
pub(crate) async fn quarantined(
    conn: &mut PgConnection,
    silence_max: Duration,
    mine: &[Identity],
) -> Result<Vec<Quarantined>, Error> {
    let rows = sqlx::query(
        // From one definition to the next by the index, however many sagas each of them has.
        "WITH RECURSIVE followed AS (
             (SELECT definition, version, hash FROM tailrace.saga_instance
              WHERE status IN ('running', 'compensating', 'parked')
              ORDER BY definition, version, hash LIMIT 1)
             UNION ALL
             SELECT next.* FROM followed, LATERAL (
                 SELECT definition, version, hash FROM tailrace.saga_instance
                 WHERE status IN ('running', 'compensating', 'parked')
                   AND (definition, version, hash) > (followed.definition, followed.version, followed.hash)
                 ORDER BY definition, version, hash LIMIT 1) AS next)
         SELECT saga.definition, saga.version, saga.hash,
             (SELECT count(*) FROM tailrace.saga_instance AS of
              WHERE of.status IN ('running', 'compensating', 'parked')
                AND (of.definition, of.version, of.hash) = (saga.definition, saga.version, saga.hash))
         FROM followed AS saga
         WHERE NOT EXISTS (SELECT FROM tailrace.saga_engine AS living
               WHERE living.seen_at > now() - interval '1 s' * $1
                 AND (living.definition, living.version, living.hash) = (saga.definition, saga.version, saga.hash))
           AND NOT EXISTS (SELECT FROM unnest($2::text[], $3::bigint[], $4::text[]) AS mine (name, version, hash)
               WHERE (saga.definition, saga.version, saga.hash) = (mine.name, mine.version, mine.hash))
         ORDER BY saga.definition, saga.version, saga.hash",
    )
    .bind(silence_max.as_secs_f64())
    .bind(mine.iter().map(|mine| mine.name.to_string()).collect::<Vec<_>>())
    .bind(mine.iter().map(|mine| i64::from(mine.version)).collect::<Vec<_>>())
    .bind(mine.iter().map(|mine| mine.hash.to_string()).collect::<Vec<_>>())
    .fetch_all(conn)
    .await
    .map_err(failed)?;
    rows.iter()
        .map(|row| {
            let version: i64 = row.try_get(1).map_err(failed)?;
            let sagas: i64 = row.try_get(3).map_err(failed)?;
            Ok(Quarantined {
                definition: Identity {
                    name: row.try_get::<String, _>(0).map_err(failed)?.into(),
                    version: u32::try_from(version).unwrap_or(u32::MAX),
                    hash: row.try_get::<String, _>(2).map_err(failed)?.into(),
                },
                sagas: u64::try_from(sagas).unwrap_or_default(),
            })
        })
        .collect()
}

fn failed(error: sqlx::Error) -> Error {
    Error::database("the engines that live cannot be known", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(runs: &[(u128, &str, u32)], expected: &[(&str, u32)]) {
        let runs: Vec<_> = runs
            .iter()
            .map(|(engine, name, version)| (Uuid::from_u128(*engine), (*name).to_owned(), *version))
            .collect();

        let chosen = choose(&runs);

        let expected: BTreeMap<Box<str>, u32> =
            expected.iter().map(|(name, version)| ((*name).into(), *version)).collect();
        assert_eq!(chosen, expected, "{runs:?}");
    }

    #[test]
    fn new_sagas_follow_the_newest_version_that_every_living_engine_knows() {
        check(&[(1, "order", 3)], &[("order", 3)]);
        check(&[(1, "order", 3), (2, "order", 3), (2, "order", 4)], &[("order", 3)]);
        let both = [(1, "order", 3), (1, "order", 4), (2, "order", 3), (2, "order", 4)];
        check(&both, &[("order", 4)]);
        check(&[(1, "order", 3), (2, "order", 4)], &[]);
        // An engine of other sagas has no say.
        check(&[(1, "order", 4), (2, "refund", 1)], &[("order", 4), ("refund", 1)]);
    }
}
