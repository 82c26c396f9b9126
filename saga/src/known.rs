//! Sagas that were started by a key of the business, so that the same wish twice is the same saga.

use sqlx::PgConnection;

use crate::correlation::SagaId;
use crate::error::{Error, Kind};

/// The longest key that a saga is started by. It is half of an entry of an index, which has room for a third of a page
/// (`BTMaxItemSize` in `src/include/access/nbtree.h`, 2,704 bytes); a longer one would fail with the transaction.
const KEY_BYTES_MAX: usize = 1_024;

/// Whether Postgres can store it.
fn is_key(key: &str) -> bool {
    key.len() <= KEY_BYTES_MAX && !key.contains('\0')
}

/// Takes a key for a saga, and answers with the saga that has it: another one, where there is one already. Who comes at the
/// same time with the same key waits for the transaction of the first.
pub(crate) async fn claim(
    conn: &mut PgConnection,
    definition: &str,
    key: &str,
    saga: SagaId,
) -> Result<SagaId, Error> {
    if !is_key(key) {
        let text =
            format!("a saga is started by a key of {KEY_BYTES_MAX} bytes at most, without NUL");
        return Err(Error::new(Kind::Conflict, text).mended_by("start it by a hash of the key"));
    }
    loop {
        let taken = sqlx::query(
            "INSERT INTO tailrace.saga_key (definition, key, saga_id) VALUES ($1, $2, $3)
             ON CONFLICT (definition, key) DO NOTHING",
        )
        .bind(definition)
        .bind(key)
        .bind(saga.as_uuid())
        .execute(&mut *conn)
        .await
        .map_err(failed)?;
        if taken.rows_affected() > 0 {
            return Ok(saga);
        }
        // The one who had it may have forgotten it between the two.
        if let Some(other) = find(conn, definition, key).await? {
            return Ok(other);
        }
    }
}

/// Gives a key back that was claimed for a saga which does not begin.
pub(crate) async fn give_back(
    conn: &mut PgConnection,
    definition: &str,
    key: &str,
    saga: SagaId,
) -> Result<(), Error> {
    sqlx::query("DELETE FROM tailrace.saga_key WHERE definition = $1 AND key = $2 AND saga_id = $3")
        .bind(definition)
        .bind(key)
        .bind(saga.as_uuid())
        .execute(conn)
        .await
        .map(drop)
        .map_err(failed)
}

/// The saga that was started by a key.
pub(crate) async fn find(
    conn: &mut PgConnection,
    definition: &str,
    key: &str,
) -> Result<Option<SagaId>, Error> {
    if !is_key(key) {
        return Ok(None);
    }
    let found = sqlx::query_scalar(
        "SELECT saga_id FROM tailrace.saga_key WHERE definition = $1 AND key = $2",
    )
    .bind(definition)
    .bind(key)
    .fetch_optional(conn)
    .await
    .map_err(failed)?;
    Ok(found.map(SagaId::from_uuid))
}

fn failed(error: sqlx::Error) -> Error {
    Error::database("by which key a saga was started cannot be read or stored", error)
}
