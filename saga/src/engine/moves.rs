//! Sagas that people want to go on under another definition.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use sqlx::PgConnection;
use tailrace_idempotency::BoxError;
use uuid::Uuid;

use super::Core;
use crate::correlation::SagaId;
use crate::definition::{Definition, Identity};
use crate::engine::apply::{Moved, go_on};
use crate::error::Error;
use crate::mapping_file::MappingFile;
use crate::migrate::{Way, migrate_by};
use crate::operate;
use crate::store::{self, Kept};
use crate::structure::Structure;

/// Sagas in one transaction.
const TAKE_MAX: i64 = 100;

/// Somebody's wish.
struct Order {
    saga: SagaId,
    to: Identity,
    mapping: String,
}

/// Moves sagas to definitions that this engine has, and says how many wishes are settled by that.
pub(super) async fn take(
    core: &Core,
    conn: &mut PgConnection,
    now: SystemTime,
) -> Result<usize, BoxError> {
    let mut tx = super::begin_transaction(conn).await?;
    let orders = orders(&mut tx, &core.registry.identities()).await?;
    let settled = orders.len();
    if settled == 0 {
        return Ok(0);
    }
    let ids: Vec<SagaId> = orders.iter().map(|order| order.saga).collect();
    let mut kept = store::lock(&mut tx, &ids).await?;
    let follow: Vec<Identity> = kept.values().map(|kept| kept.identity.clone()).collect();
    let known = operate::structures(&mut tx, &follow).await?;
    let (mut moved, mut refused) = (Vec::new(), Vec::new());
    for order in orders {
        let kept = kept.remove(&order.saga);
        match moved_by(core, &order, kept, &known, now) {
            Ok(one) => moved.extend(one),
            Err(text) => refused.push((order.saga, text)),
        }
    }
    let (applied, failed) = go_on(core, &mut tx, moved, now).await?;
    refused.extend(failed);
    settle(&mut tx, &ids, &refused).await?;
    tx.commit().await?;
    super::report(&applied);
    core.counters.count(applied.tally);
    for (saga, text) in refused {
        tracing::error!(%saga, cause = %text, "a saga does not go on under another definition");
    }
    Ok(settled)
}

/// The saga under its new definition; none where it follows that already.
fn moved_by(
    core: &Core,
    order: &Order,
    kept: Option<Kept>,
    known: &BTreeMap<Identity, Structure>,
    now: SystemTime,
) -> Result<Option<Moved>, String> {
    let Kept { identity, instance, origin } = kept.ok_or("there is no such saga")?;
    if identity == order.to {
        return Ok(None);
    }
    let before = instance.ok_or("a newer release has written it")?;
    let to = core.registry.find(&order.to).ok_or("this engine has lost the definition")?;
    let code = core.registry.find(&identity);
    let structure = code.map(Definition::structure).or_else(|| known.get(&identity).cloned());
    let from = structure.ok_or_else(|| format!("the structure of {identity} is not known"))?;
    let mapping: MappingFile = serde_json::from_str(&order.mapping)
        .map_err(|_| "a newer release has written the mapping")?;
    let skipped = mapping.skipped();
    let map = |data| mapping.apply(data);
    let way = Way { skipped: &skipped, map: &map };
    // The service's code runs in it.
    let migrating = || migrate_by(&before, (&from, code), to, &way, now);
    let turn = catch_unwind(AssertUnwindSafe(migrating))
        .map_err(|_| "the saga's code panicked".to_owned())?
        .map_err(|error| match error.list() {
            [] => error.to_string(),
            faults => faults.join("; "),
        })?;
    Ok(Some(Moved { before, origin, definition: to.clone(), turn }))
}

async fn orders(conn: &mut PgConnection, mine: &[Identity]) -> Result<Vec<Order>, Error> {
    let rows: Vec<(Uuid, String, i64, String, String)> = sqlx::query_as(
        "SELECT wanted.saga_id, wanted.definition, wanted.version, wanted.hash, wanted.mapping::text
         FROM tailrace.saga_migration AS wanted
         WHERE wanted.refused IS NULL
           AND EXISTS (SELECT FROM unnest($1::text[], $2::bigint[], $3::text[]) AS mine (name, version, hash)
               WHERE (wanted.definition, wanted.version, wanted.hash) = (mine.name, mine.version, mine.hash))
         ORDER BY wanted.saga_id LIMIT $4
         FOR UPDATE SKIP LOCKED",
    )
    .bind(mine.iter().map(|mine| mine.name.to_string()).collect::<Vec<_>>())
    .bind(mine.iter().map(|mine| i64::from(mine.version)).collect::<Vec<_>>())
    .bind(mine.iter().map(|mine| mine.hash.to_string()).collect::<Vec<_>>())
    .bind(TAKE_MAX)
    .fetch_all(conn)
    .await
    .map_err(|error| Error::database("sagas that are to be migrated cannot be read", error))?;
    let order = |(saga, name, version, hash, mapping): (Uuid, String, i64, String, String)| Order {
        saga: SagaId::from_uuid(saga),
        to: Identity {
            name: name.into(),
            version: u32::try_from(version).unwrap_or(u32::MAX),
            hash: hash.into(),
        },
        mapping,
    };
    Ok(rows.into_iter().map(order).collect())
}

/// Deletes the wishes that are done, and keeps the others with the reason.
async fn settle(
    conn: &mut PgConnection,
    sagas: &[SagaId],
    refused: &[(SagaId, String)],
) -> Result<(), Error> {
    let failed = |error| Error::database("migrations of sagas cannot be settled", error);
    let is_done = |saga: &&SagaId| refused.iter().all(|(other, _)| other != *saga);
    sqlx::query("DELETE FROM tailrace.saga_migration WHERE saga_id = ANY ($1)")
        .bind(sagas.iter().filter(is_done).map(|saga| *saga.as_uuid()).collect::<Vec<_>>())
        .execute(&mut *conn)
        .await
        .map_err(failed)?;
    sqlx::query(
        "UPDATE tailrace.saga_migration AS wanted SET refused = settled.refused
         FROM unnest($1::uuid[], $2::text[]) AS settled (saga_id, refused)
         WHERE wanted.saga_id = settled.saga_id",
    )
    .bind(refused.iter().map(|(saga, _)| *saga.as_uuid()).collect::<Vec<_>>())
    .bind(refused.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>())
    .execute(conn)
    .await
    .map(drop)
    .map_err(failed)
}
