use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tailrace_stack::Database;
use uuid::Uuid;

use super::{MIGRATIONS, Schema, check, install};
use crate::database::{connect, fresh, slot};
use crate::frame::{self, Frame};
use crate::logged::{logged, watched};
use crate::{Builder, Kind, Message, journal};

mod emit;

/// A database with the schema installed, and a slot that has seen nothing yet.
async fn installed(name: &str) -> (Database, PgConnection, String) {
    let (database, mut connection, slot) = watched(name).await;
    install(&mut connection).await.unwrap();
    (database, connection, slot)
}

async fn run(connection: &mut PgConnection, sql: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(connection).await.unwrap();
}

async fn count(connection: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

#[tokio::test]
async fn eight_installers_at_once_install_once() {
    let (database, mut connection) = fresh("schema_eight").await;

    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut connection = connect(&database).await;
        tasks.spawn(async move { install(&mut connection).await });
    }
    let results = tasks.join_all().await;

    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let versions = count(&mut connection, "SELECT count(*) FROM tailrace.outbox_version").await;
    assert_eq!(usize::try_from(versions).unwrap(), MIGRATIONS.len());
}

/// A session remembers names that it did not find, and in an open transaction takes note of what
/// others made only with its next lock on a table: so it is in every installer that has waited.
#[tokio::test]
async fn an_installer_that_looked_before_another_was_done_finds_its_work() {
    let (database, mut first) = fresh("schema_looked").await;
    let (mut second, mut watcher) = (connect(&database).await, connect(&database).await);
    let mut tx = first.begin().await.unwrap();
    install(&mut tx).await.unwrap();

    let waits = tokio::spawn(async move {
        check(&mut second).await.unwrap_err();
        install(&mut second).await
    });
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let begun = async { while count(&mut watcher, waiting).await == 0 {} };
    tokio::time::timeout(Duration::from_secs(20), begun).await.expect("the second one waits");
    tx.commit().await.unwrap();

    waits.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_schema_of_another_crate_is_left_alone() {
    let (_database, mut connection) = fresh("schema_shared").await;
    run(&mut connection, "CREATE SCHEMA tailrace; CREATE TABLE tailrace.mine AS SELECT 1").await;

    install(&mut connection).await.unwrap();

    check(&mut connection).await.unwrap();
    assert_eq!(count(&mut connection, "SELECT count(*) FROM tailrace.mine").await, 1);
}

#[tokio::test]
async fn a_missing_or_old_schema_says_how_to_mend_it() {
    let (_database, mut connection) = fresh("schema_missing").await;

    let missing = check(&mut connection).await.unwrap_err();
    let no_table = journal::insert(&mut connection, &message()).await.unwrap_err();
    install(&mut connection).await.unwrap();
    run(&mut connection, "UPDATE tailrace.outbox_version SET version = version - 1").await;
    let old = check(&mut connection).await.unwrap_err();

    for error in [missing, no_table, old] {
        assert_eq!(error.kind(), Kind::Setup);
        assert!(error.to_string().contains("schema::install"), "{error}");
    }
}

#[tokio::test]
async fn what_was_dropped_by_hand_is_missed_by_check_and_install() {
    let (_database, mut connection) = fresh("schema_dropped").await;
    install(&mut connection).await.unwrap();

    for (sql, gone) in [
        ("DROP FUNCTION tailrace.emit", "not emit:"),
        ("DROP TABLE tailrace.outbox", "not outbox, outbox_default, emit:"),
    ] {
        run(&mut connection, sql).await;
        for error in
            [check(&mut connection).await.unwrap_err(), install(&mut connection).await.unwrap_err()]
        {
            assert!(error.is_setup() && error.to_string().contains(gone), "{error}");
        }
    }
}

#[tokio::test]
async fn a_schema_that_was_renamed_is_found() {
    let (_database, mut connection) = fresh("schema_renamed").await;
    install(&mut connection).await.unwrap();
    run(&mut connection, "ALTER SCHEMA tailrace RENAME TO messaging").await;
    let renamed = Schema::named("messaging").unwrap();

    let error = renamed.check(&mut connection).await.unwrap_err();

    assert!(error.is_setup() && error.to_string().contains("had another name"), "{error}");
}

#[tokio::test]
async fn a_role_that_may_not_read_the_version_is_told_the_grant() {
    let (database, mut connection) = fresh("schema_unread").await;
    install(&mut connection).await.unwrap();
    let role = format!("{}_nobody", database.name());
    let mut tx = connection.begin().await.unwrap();
    run(&mut tx, format!("CREATE ROLE \"{role}\"; SET LOCAL ROLE \"{role}\"")).await;

    let error = check(&mut tx).await.unwrap_err();

    assert_eq!((error.kind(), error.sqlstate()), (Kind::Setup, Some("42501")), "{error:?}");
    assert!(error.to_string().contains("GRANT USAGE ON SCHEMA"), "{error}");
}

#[tokio::test]
async fn an_installation_that_is_rolled_back_leaves_nothing() {
    let (_database, mut connection) = fresh("schema_rollback").await;

    let mut tx = connection.begin().await.unwrap();
    install(&mut tx).await.unwrap();
    tx.rollback().await.unwrap();

    assert!(check(&mut connection).await.unwrap_err().is_setup());
    install(&mut connection).await.unwrap();
    check(&mut connection).await.unwrap();
}

#[tokio::test]
async fn every_earlier_version_is_upgraded_with_its_rows() {
    for earlier in 1..=MIGRATIONS.len() {
        let (_database, mut connection) = fresh("schema_upgrade").await;
        for migration in &MIGRATIONS[..earlier] {
            run(&mut connection, migration.sql).await;
        }
        journal::insert(&mut connection, &message()).await.unwrap();

        install(&mut connection).await.unwrap();
        install(&mut connection).await.unwrap();

        check(&mut connection).await.unwrap();
        assert_eq!(count(&mut connection, "SELECT count(*) FROM tailrace.outbox").await, 1);
        run(&mut connection, "SELECT tailrace.emit('orders', 'k', 't', '{}')").await;
        journal::insert(&mut connection, &message()).await.unwrap();
    }
}

#[tokio::test]
async fn migrations_count_up_and_are_named_after_their_version() {
    for (at, migration) in MIGRATIONS.iter().enumerate() {
        assert_eq!(usize::try_from(migration.version).unwrap(), at + 1);
        assert!(migration.name.starts_with(&format!("{:04}_", migration.version)));
        assert!(migration.sql.contains(&format!("VALUES ({});", migration.version)));
    }
}

#[tokio::test]
async fn everything_can_live_in_a_schema_of_another_name() {
    let (_database, mut connection) = fresh("schema_named").await;
    run(&mut connection, "CREATE PUBLICATION nothing").await;
    // A word of SQL, to see that it is quoted everywhere.
    let schema = Schema::named("order").unwrap();

    schema.install(&mut connection).await.unwrap();
    schema.check(&mut connection).await.unwrap();
    let journal = journal::Journal::new(&schema);
    journal.insert(&mut connection, &message()).await.unwrap();
    journal.maintain(&mut connection, &journal::Retention::default()).await.unwrap();
    run(&mut connection, journal.publication_sql("p\"q")).await;
    let slot = slot(&mut connection, "schema_named", "pgoutput").await;
    run(
        &mut connection,
        "SELECT \"order\".emit('orders', 'k', 't', '{}', headers => '{\"a\": \"b\"}')",
    )
    .await;

    assert_eq!(logged(&mut connection, &slot).await.len(), 1);
    assert_eq!(count(&mut connection, "SELECT count(*) FROM \"order\".outbox").await, 1);
    let ours = "SELECT count(*) FROM pg_namespace WHERE nspname = 'tailrace'";
    assert_eq!(count(&mut connection, ours).await, 0);
}

#[test]
fn a_schema_has_a_name_that_is_the_same_quoted_and_unquoted() {
    let longest = "a".repeat(63);
    let too_long = "a".repeat(64);

    for good in ["tailrace", "_a1", longest.as_str()] {
        assert_eq!(Schema::named(good).unwrap().name(), good);
    }
    for bad in ["", "1a", "A", "a b", "a\"b", "a'b", "pg_mine", "ü", too_long.as_str()] {
        assert!(Schema::named(bad).unwrap_err().is_invalid(), "{bad}");
    }
}

/// The grants at the head of the migration, for a role.
fn grants(role: &str) -> Vec<String> {
    let lines = MIGRATIONS[0].sql.lines().filter_map(|line| line.strip_prefix("--   "));
    lines.map(|grant| grant.replace("service;", &format!("\"{role}\";"))).collect()
}

/// A role with these grants reads the version, emits, writes to the journal, and can do no more.
async fn serves(connection: &mut PgConnection, role: &str, grants: &str) {
    let mut tx = connection.begin().await.unwrap();
    run(&mut tx, format!("CREATE ROLE \"{role}\" NOLOGIN; {grants}; SET LOCAL ROLE \"{role}\""))
        .await;
    check(&mut tx).await.unwrap();
    run(
        &mut tx,
        "SELECT tailrace.emit('orders', 'k', 't', '{}', headers => '{\"a\": \"b\"}', \
                  attributes => '{\"ce_dataschema\": \"/schema\"}')",
    )
    .await;
    journal::insert(&mut tx, &message()).await.unwrap();
    let read = "SELECT FROM tailrace.outbox";
    assert!(Executor::execute(&mut *tx, read).await.is_err());
    tx.rollback().await.unwrap();
}

#[tokio::test]
async fn a_role_with_the_documented_grants_alone_can_write_both_ways() {
    let (database, mut connection, _slot) = installed("schema_role").await;
    let role = format!("{}_service", database.name());
    let grants = grants(&role);
    let (execute, others): (Vec<_>, Vec<_>) =
        grants.iter().map(String::as_str).partition(|grant| grant.contains("EXECUTE"));
    assert_eq!((execute.len(), others.len()), (2, 3));

    serves(&mut connection, &role, &others.concat()).await;
    run(&mut connection, "REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA tailrace FROM PUBLIC").await;
    serves(&mut connection, &role, &grants.concat()).await;
}

#[tokio::test]
async fn a_trigger_publishes_the_rows_of_an_application_nobody_touched() {
    let (_database, mut connection, slot) = installed("schema_trigger").await;
    let table = "CREATE TABLE customers (id int PRIMARY KEY, name text, password_hash text)";
    run(&mut connection, format!("{table}; {}", include_str!("legacy_trigger.sql"))).await;

    run(&mut connection, "INSERT INTO customers VALUES (7, 'Ada', 'x'), (8, 'Bob', 'y')").await;
    run(&mut connection, "UPDATE customers SET name = 'Ann' WHERE id = 7").await;
    run(&mut connection, "BEGIN; DELETE FROM customers; ROLLBACK").await;
    run(&mut connection, "UPDATE customers SET id = 9 WHERE id = 7").await;
    run(&mut connection, "DELETE FROM customers WHERE id = 8").await;

    let frames = logged(&mut connection, &slot).await;
    let seen: Vec<_> = frames
        .iter()
        .map(|bytes| {
            let frame = Frame::decode(bytes).unwrap();
            frame.validate().unwrap();
            let text = |bytes| String::from_utf8(Vec::from(bytes)).unwrap();
            (frame.r#type(), frame.key().map(text), frame.payload().map(text))
        })
        .collect();
    let expected = [
        ("customer.created.v1", "7", Some(r#"{"id": 7, "name": "Ada"}"#)),
        ("customer.created.v1", "8", Some(r#"{"id": 8, "name": "Bob"}"#)),
        ("customer.changed.v1", "7", Some(r#"{"id": 7, "name": "Ann"}"#)),
        // A row under a new key leaves the old one.
        ("customer.deleted.v1", "7", None),
        ("customer.changed.v1", "9", Some(r#"{"id": 9, "name": "Ann"}"#)),
        ("customer.deleted.v1", "8", None),
    ]
    .map(|(r#type, key, payload)| (r#type, Some(key.to_owned()), payload.map(str::to_owned)));
    assert_eq!(seen, expected);
}

fn builder() -> Builder {
    Message::builder("orders", "order.placed.v1").source("/orders").key("order-42")
}

fn message() -> Message {
    builder().json(&1).build().unwrap()
}
