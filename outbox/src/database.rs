//! A database and a slot of its own for each test, on a real Postgres.

use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection};
use tailrace_stack::{Database, Needs, Stack, unique};
use tokio::sync::OnceCell;

/// One server serves all tests of this binary; they meet nowhere but in it.
pub(crate) async fn fresh(name: &str) -> (Database, PgConnection) {
    static STACK: OnceCell<Stack> = OnceCell::const_new();
    let stack = STACK.get_or_init(async || Stack::start(Needs::POSTGRES).await.unwrap()).await;
    let database = stack.postgres().fresh_database(name).await.unwrap();
    let connection = connect(&database).await;
    (database, connection)
}

/// A connection on which no statement waits for ever: the making of a slot waits for every open
/// transaction of the server.
pub(crate) async fn connect(database: &Database) -> PgConnection {
    let connecting = PgConnection::connect(database.url());
    let answer_max = Duration::from_secs(20);
    let mut connection =
        tokio::time::timeout(answer_max, connecting).await.expect("Postgres answers").unwrap();
    connection.execute("SET statement_timeout = '20s'").await.unwrap();
    connection
}

/// Makes a logical slot in the connection's database.
pub(crate) async fn slot(connection: &mut PgConnection, name: &str, plugin: &str) -> String {
    let name = unique(name);
    sqlx::query("SELECT pg_create_logical_replication_slot($1, $2)")
        .bind(&name)
        .bind(plugin)
        .execute(connection)
        .await
        .unwrap();
    name
}
