//! Orders that have not ended, and why: what was heard of them last, and which of their messages were set aside.

use std::time::SystemTime;

use sqlx::{PgPool, Row};
use tailrace_idempotency::inbox::{self, Filter};
use tailrace_saga::{SagaId, story};
use uuid::Uuid;

use crate::Failure;
use crate::stage::Stage;

/// Orders that are told; there may be more.
const TOLD_MAX: i64 = 5;
/// Whoever has consumers.
const HOMES: [&str; 5] = ["orders", "payments", "stock", "shipping", "storefront"];

/// A sentence for each of the first of them.
pub(crate) async fn tell(stage: &Stage) -> Result<Vec<String>, Failure> {
    let rows = sqlx::query(
        "SELECT id, saga, style, extract(epoch FROM clock_timestamp() - placed_at)::float8
         FROM orders WHERE ended_at IS NULL ORDER BY placed_at LIMIT $1",
    )
    .bind(TOLD_MAX)
    .fetch_all(&stage.home("orders")?.pool)
    .await?;
    let mut told = Vec::with_capacity(rows.len());
    for row in rows {
        let (id, saga): (Uuid, Uuid) = (row.try_get(0)?, row.try_get(1)?);
        let (style, age): (String, f64) = (row.try_get(2)?, row.try_get(3)?);
        let mut text = format!("order {id} ({style}) has not ended after {age:.0} s");
        match heard(&stage.home("storefront")?.pool, saga).await? {
            Some(last) => text.push_str(&format!("; the last that was heard is {last}")),
            None => text.push_str("; nothing was heard of it"),
        }
        for home in HOMES {
            for aside in set_aside(&stage.home(home)?.pool, saga).await? {
                text.push_str(&format!("; {home}: {aside}"));
            }
        }
        told.push(text);
    }
    Ok(told)
}

/// The last message of a saga.
async fn heard(pool: &PgPool, saga: Uuid) -> Result<Option<String>, Failure> {
    let mut conn = pool.acquire().await?;
    let timeline = story::timeline(&mut conn, SagaId::from_uuid(saga)).await?;
    let Some(last) = timeline.entries().last() else { return Ok(None) };
    let age = SystemTime::now().duration_since(last.at).unwrap_or_default().as_secs();
    Ok(Some(format!("{} of {}, {age} s ago", last.message_type, last.source)))
}

/// What of it a service's consumers have set aside: everything of a saga has its id for a key.
async fn set_aside(pool: &PgPool, saga: Uuid) -> Result<Vec<String>, Failure> {
    let mut conn = pool.acquire().await?;
    let entries = inbox::list(&mut conn, &Filter::default().key(saga.to_string()), 10).await?;
    let of = |entry: inbox::Entry| {
        let (reason, of) = (entry.reason?, entry.message_type.unwrap_or_default());
        let why = entry.detail.unwrap_or(reason);
        Some(format!("{of} is {} after {} attempts ({why})", entry.state, entry.attempts))
    };
    Ok(entries.into_iter().filter_map(of).collect())
}
