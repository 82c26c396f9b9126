//! What the tests of this crate start from: a database with the tables.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tailrace_stack::{Database, Stack};

use crate::schema;

/// Longer than anything here takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A database; it goes when this is dropped.
pub(crate) struct Bed {
    _database: Database,
    pub(crate) pool: PgPool,
}

pub(crate) async fn bare(name: &str) -> Bed {
    let stack = Stack::shared().await;
    let database = stack.postgres().fresh_database(name).await.unwrap();
    let pool = PgPoolOptions::new().max_connections(16).connect(database.url()).await.unwrap();
    Bed { _database: database, pool }
}

pub(crate) async fn installed(name: &str) -> Bed {
    let bed = bare(name).await;
    schema::install(&mut bed.pool.acquire().await.unwrap()).await.unwrap();
    bed
}

impl Bed {
    pub(crate) async fn count(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&self.pool).await.unwrap()
    }

    pub(crate) async fn execute(&self, statement: &'static str) {
        sqlx::raw_sql(statement).execute(&self.pool).await.unwrap();
    }

    /// A transaction on a connection of its own.
    pub(crate) async fn begin(&self) -> sqlx::Transaction<'static, sqlx::Postgres> {
        self.pool.begin().await.unwrap()
    }
}
