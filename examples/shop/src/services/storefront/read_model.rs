//! How orders stand, and their stories, as the topics tell it: the storefront's own tables, and queries on them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use sqlx::{PgPool, Row};
use tailrace_idempotency::{BatchCx, BoxError, Item, Outcome};
use tailrace_saga::{Choreography, SagaId, story};
use uuid::Uuid;

use crate::order::Fact;
use crate::place_order::REPLIES;
use crate::traces;

/// The name of the read model, and of the schema that its readers use.
pub(super) const NAME: &str = "storefront";

pub(super) const TABLES: &str = "
    CREATE TABLE shop_order (
        id uuid PRIMARY KEY,
        saga uuid NOT NULL,
        style text NOT NULL,
        sku text NOT NULL,
        quantity bigint NOT NULL,
        cents bigint NOT NULL,
        state text NOT NULL,
        reason text,
        trace text,
        placed_at timestamptz,
        ended_at timestamptz);
    CREATE INDEX shop_order_latest ON shop_order (style, placed_at DESC);
    CREATE INDEX shop_order_ended ON shop_order (ended_at);
    CREATE INDEX shop_order_saga ON shop_order (saga)";

/// How many orders there are, and how long half and 99 % of them took.
macro_rules! durations {
    ($by:literal, $which:literal) => {
        concat!(
            "SELECT ",
            $by,
            ", count(*),
                 percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM ended_at - placed_at) * 1000)::float8,
                 percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM ended_at - placed_at) * 1000)::float8
             FROM storefront.shop_order ",
            $which
        )
    };
}

/// Orders of each style that the page shows.
const LATEST: i64 = 20;
const RECENT: &str = durations!(
    "style, 'ended'",
    "WHERE ended_at > clock_timestamp() - interval '10 seconds' GROUP BY style ORDER BY style"
);
const COUNTS: &str = durations!("style, state", "GROUP BY style, state ORDER BY style, state");

/// Keeps what the orders service says. Of an order, facts come in their order.
pub(super) async fn keep(cx: BatchCx<'_>, facts: Vec<Item<'_, Fact>>) -> Result<Outcome, BoxError> {
    for item in facts {
        let parent = item.meta.header("traceparent").and_then(|parent| str::from_utf8(parent).ok());
        let trace = parent.and_then(traces::id_in);
        let Fact { order, saga, state } = item.message;
        let at = item.meta.timestamp().unwrap_or(std::time::SystemTime::UNIX_EPOCH);
        let micros = i64::try_from(at.duration_since(std::time::UNIX_EPOCH)?.as_micros())?;
        sqlx::query(
            "INSERT INTO shop_order (id, saga, style, sku, quantity, cents, state, reason, trace, placed_at, ended_at)
             SELECT $1, $2, $3, $4, $5, $6, $7, $8, $10, CASE WHEN $7 = 'placed' THEN at END,
                 CASE WHEN $7 <> 'placed' THEN at END
             FROM (SELECT timestamptz 'epoch' + $9::bigint * interval '1 microsecond' AS at) AS said
             ON CONFLICT (id) DO UPDATE SET state = excluded.state, reason = excluded.reason,
                 ended_at = excluded.ended_at",
        )
        .bind(order.id)
        .bind(saga)
        .bind(order.style.as_str())
        .bind(order.sku)
        .bind(order.quantity)
        .bind(order.cents)
        .bind(state.as_str())
        .bind(order.reason)
        .bind(micros)
        .bind(trace)
        .execute(&mut *cx.conn)
        .await?;
    }
    Ok(Outcome::Done)
}

/// Queries on the read model.
#[derive(Clone)]
pub(super) struct ReadModel {
    pool: PgPool,
}

impl ReadModel {
    pub(super) fn of(pool: PgPool) -> Self {
        ReadModel { pool }
    }

    /// The latest orders of each style, the newest first.
    pub(super) async fn latest(&self) -> Result<Value, BoxError> {
        let text: Option<String> = sqlx::query_scalar(
            "SELECT json_agg(o)::text FROM (
                 SELECT id, saga, style, sku, quantity, cents, state, reason, trace,
                     (extract(epoch FROM placed_at) * 1000)::bigint AS placed_at_ms,
                     (extract(epoch FROM ended_at) * 1000)::bigint AS ended_at_ms
                 FROM unnest(ARRAY['choreography', 'orchestration']) AS of (of_style)
                 CROSS JOIN LATERAL (
                     SELECT * FROM storefront.shop_order WHERE style = of_style
                     ORDER BY placed_at DESC LIMIT $1) AS latest
                 ORDER BY placed_at DESC) AS o",
        )
        .bind(LATEST)
        .fetch_one(&self.pool)
        .await?;
        Ok(serde_json::from_str(text.as_deref().unwrap_or("[]"))?)
    }

    /// The latest orders, how many there are by style and state, and how long the last ones took.
    pub(super) async fn summary(&self) -> Result<Value, BoxError> {
        let counts = self.durations(COUNTS).await?;
        let recent = self.durations(RECENT).await?;
        Ok(json!({ "counts": counts, "recent": recent, "orders": self.latest().await? }))
    }

    async fn durations(&self, query: &'static str) -> Result<Vec<Value>, BoxError> {
        let rows = sqlx::query(query).fetch_all(&self.pool).await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            found.push(json!({
                "style": row.try_get::<String, _>(0)?,
                "state": row.try_get::<String, _>(1)?,
                "orders": row.try_get::<i64, _>(2)?,
                "p50_ms": row.try_get::<Option<f64>, _>(3)?,
                "p99_ms": row.try_get::<Option<f64>, _>(4)?,
            }));
        }
        Ok(found)
    }

    /// What the services have said to each other for one order, and to whom.
    pub(super) async fn story(&self, saga: Uuid, map: &Hearers) -> Result<Value, BoxError> {
        let mut conn = self.pool.acquire().await?;
        let trace: Option<Option<String>> =
            sqlx::query_scalar("SELECT trace FROM storefront.shop_order WHERE saga = $1 LIMIT 1")
                .bind(saga)
                .fetch_optional(&mut *conn)
                .await?;
        let timeline = story::timeline(&mut conn, SagaId::from_uuid(saga)).await?;
        let mut entries = Vec::with_capacity(timeline.entries().len());
        for entry in timeline.entries() {
            let at = entry.at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            entries.push(json!({
                "at_ms": u64::try_from(at.as_millis())?,
                "topic": entry.topic,
                "from": entry.source,
                "to": map.of(&entry.topic, &entry.message_type),
                "type": entry.message_type,
                "step": entry.step,
                "operation": entry.operation.as_str(),
                "outcome": entry.outcome.map(|outcome| outcome.as_str()),
            }));
        }
        let (trace, mermaid) = (trace.flatten(), timeline.sequence());
        Ok(json!({ "saga": saga, "trace": trace, "entries": entries, "mermaid": mermaid }))
    }
}

/// Who takes what: the services that each message is for.
#[derive(Clone)]
pub(super) struct Hearers(Arc<BTreeMap<String, Vec<String>>>);

impl Hearers {
    /// Commands have a topic for each participant, replies have one, and events are heard as the choreography says.
    pub(super) fn of_both(choreography: &Choreography) -> Self {
        let mut hearers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for service in choreography.services() {
            hearers.insert(format!("{service}.commands"), vec![service.to_owned()]);
            for event in choreography.subscriptions(service).into_keys() {
                hearers.entry(event.to_owned()).or_default().push(service.to_owned());
            }
        }
        hearers.insert(REPLIES.to_owned(), vec!["orders".to_owned()]);
        Hearers(Arc::new(hearers))
    }

    fn of(&self, topic: &str, message_type: &str) -> &[String] {
        let hearers = self.0.get(topic).or_else(|| self.0.get(message_type));
        hearers.map(Vec::as_slice).unwrap_or_default()
    }
}
