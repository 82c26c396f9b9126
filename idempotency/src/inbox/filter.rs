//! Which messages an operator means.

use std::time::Duration;

use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres};

use super::State;
use crate::retention::age_seconds;

/// Chooses messages; what is not said does not matter. Default: all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    consumer: Option<String>,
    topic: Option<String>,
    partition: Option<i32>,
    key: Option<Vec<u8>>,
    message_type: Option<String>,
    reason: Option<String>,
    state: Option<State>,
    older_than: Option<Duration>,
    newer_than: Option<Duration>,
}

impl Filter {
    /// Of this consumer.
    #[must_use]
    pub fn consumer(mut self, name: impl Into<String>) -> Self {
        self.consumer = Some(name.into());
        self
    }

    /// Of this topic.
    #[must_use]
    pub fn topic(mut self, name: impl Into<String>) -> Self {
        self.topic = Some(name.into());
        self
    }

    /// Of this partition.
    #[must_use]
    pub fn partition(mut self, number: i32) -> Self {
        self.partition = Some(number);
        self
    }

    /// Of this key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Of this message type.
    #[must_use]
    pub fn message_type(mut self, name: impl Into<String>) -> Self {
        self.message_type = Some(name.into());
        self
    }

    /// Set aside for this reason, a code such as `failed`.
    #[must_use]
    pub fn reason(mut self, code: impl Into<String>) -> Self {
        self.reason = Some(code.into());
        self
    }

    /// In this state.
    #[must_use]
    pub fn state(mut self, state: State) -> Self {
        self.state = Some(state);
        self
    }

    /// Set aside longer ago than this.
    #[must_use]
    pub fn older_than(mut self, age: Duration) -> Self {
        self.older_than = Some(age);
        self
    }

    /// Set aside no longer ago than this.
    #[must_use]
    pub fn newer_than(mut self, age: Duration) -> Self {
        self.newer_than = Some(age);
        self
    }

    /// A statement over the rows of [`ROWS`] that fit: `head`, then the condition, then `tail`. Its own parameters
    /// are bound behind the nine of the filter.
    pub(super) fn query(&self, head: &str, tail: &str) -> Query<'_, Postgres, PgArguments> {
        let sql = format!("{head} FROM ({ROWS}) AS entry WHERE {FITS} {tail}");
        sqlx::query(AssertSqlSafe(sql))
            .bind(&self.consumer)
            .bind(&self.topic)
            .bind(self.partition)
            .bind(&self.key)
            .bind(&self.message_type)
            .bind(&self.reason)
            .bind(self.state.map(State::name))
            .bind(self.older_than.map(age_seconds))
            .bind(self.newer_than.map(age_seconds))
    }
}

/// Parked messages and dead letters in the same columns.
const ROWS: &str = r#"
    SELECT NULL::bigint AS id, consumer, topic, partition, "offset", key, message_id, message_type, payload,
           header_names, header_values, written_at, state, reason, detail, attempts, parked_at AS since, retry_at,
           intent IS NOT NULL AS is_prepared
    FROM tailrace.parked_message
    UNION ALL
    SELECT id, consumer, topic, partition, "offset", key, message_id, message_type, payload,
           header_names, header_values, written_at, 'dead', reason, detail, attempts, dead_at, NULL, false
    FROM tailrace.dead_letter"#;

const FITS: &str = "($1::text IS NULL OR consumer = $1) AND ($2::text IS NULL OR topic = $2)
    AND ($3::int IS NULL OR partition = $3) AND ($4::bytea IS NULL OR key = $4)
    AND ($5::text IS NULL OR message_type = $5) AND ($6::text IS NULL OR reason = $6)
    AND ($7::text IS NULL OR state = $7)
    AND ($8::float8 IS NULL OR since < now() - make_interval(secs => $8))
    AND ($9::float8 IS NULL OR since >= now() - make_interval(secs => $9))";
