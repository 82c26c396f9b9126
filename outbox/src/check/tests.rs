use sqlx::{Connection, Executor};
use tailrace_stack::unique;

use super::{Found, Slot, check, judge};
use crate::database::{fresh, slot};
use crate::{Kind, Message, Outbox, Reaction, Store};

mod table;

/// A database on which nothing is wrong.
const GOOD: Found<'_> = Found {
    wal_level: "logical",
    is_standby: false,
    database: "shop",
    wanted: "tailrace",
    slot: Some(Slot {
        name: "tailrace",
        is_logical: true,
        database: Some("shop"),
        plugin: Some("pgoutput"),
        is_complete: true,
        is_lost: false,
    }),
};

#[test]
fn what_keeps_messages_from_the_relay_is_said_with_the_way_to_mend_it() {
    let check = |found: Found<'_>, expected: &str| {
        let error = judge(&found).expect_err(expected);

        assert!(error.to_string().starts_with(expected), "{error}");
        assert!(error.is_setup());
        assert_eq!(error.reaction(), Reaction::Stop);
    };
    let slot = GOOD.slot.unwrap();

    judge(&GOOD).unwrap();
    check(Found { is_standby: true, ..GOOD }, "this server is a standby");
    check(
        Found { wal_level: "replica", ..GOOD },
        "wal_level is replica, and messages need logical; run ALTER SYSTEM SET wal_level",
    );
    check(
        Found { slot: None, ..GOOD },
        "there is no replication slot \"tailrace\"; start cdc-relay on database \"shop\"",
    );
    check(
        Found {
            slot: Some(Slot { is_logical: false, database: None, plugin: None, ..slot }),
            ..GOOD
        },
        "replication slot \"tailrace\" is physical",
    );
    check(
        Found { slot: Some(Slot { database: Some("other"), ..slot }), ..GOOD },
        "replication slot \"tailrace\" is of database \"other\", and this one is \"shop\"",
    );
    check(
        Found { slot: Some(Slot { plugin: Some("wal2json"), ..slot }), ..GOOD },
        "replication slot \"tailrace\" has the plugin \"wal2json\", and the relay reads pgoutput",
    );
    check(
        Found { slot: Some(Slot { is_complete: false, ..slot }), ..GOOD },
        "replication slot \"tailrace\" is still being made; wait",
    );
    check(
        Found { slot: Some(Slot { is_lost: true, ..slot }), ..GOOD },
        "replication slot \"tailrace\" is invalidated",
    );
}

#[tokio::test]
async fn a_slot_of_this_database_is_all_a_role_without_rights_needs() {
    let (database, mut connection) = fresh("outbox_check").await;
    let slot = slot(&mut connection, "outbox_check", "pgoutput").await;
    let pool = sqlx::PgPool::connect(database.url()).await.unwrap();

    check(&pool, &slot).await.unwrap();
    // A role that may do nothing; it is gone with the transaction.
    let role = unique("outbox_nobody");
    let mut tx = connection.begin().await.unwrap();
    tx.execute(sqlx::AssertSqlSafe(format!("CREATE ROLE {role}"))).await.unwrap();
    tx.execute(sqlx::AssertSqlSafe(format!("SET LOCAL ROLE {role}"))).await.unwrap();
    check(&mut *tx, &slot).await.unwrap();
    let message = Message::builder("orders", "t").source("/s").json(&1).build().unwrap();
    crate::write(&mut tx, &message).await.unwrap();
    tx.rollback().await.unwrap();
}

#[tokio::test]
async fn a_slot_that_is_missing_or_of_no_use_is_found_on_a_real_server() {
    let (_here, mut connection) = fresh("outbox_here").await;
    let (there, mut elsewhere) = fresh("outbox_there").await;
    let foreign = slot(&mut elsewhere, "outbox_foreign", "pgoutput").await;
    let decoding = slot(&mut connection, "outbox_decoding", "test_decoding").await;
    let physical = unique("outbox_physical");
    sqlx::query("SELECT pg_create_physical_replication_slot($1)")
        .bind(&physical)
        .execute(&mut connection)
        .await
        .unwrap();

    let missing = check(&mut connection, "outbox_missing").await.unwrap_err();
    let of_another_database = check(&mut connection, &foreign).await.unwrap_err();
    let of_another_plugin = check(&mut connection, &decoding).await.unwrap_err();
    let not_logical = check(&mut connection, &physical).await.unwrap_err();
    sqlx::query("SELECT pg_drop_replication_slot($1)")
        .bind(&physical)
        .execute(&mut connection)
        .await
        .unwrap();

    assert!(missing.to_string().starts_with("there is no replication slot \"outbox_missing\"; "));
    let named = format!("is of database {:?}", there.name());
    assert!(of_another_database.to_string().contains(&named), "{of_another_database}");
    assert!(of_another_plugin.to_string().contains("\"test_decoding\""), "{of_another_plugin}");
    assert!(not_logical.to_string().contains("is physical"), "{not_logical}");
    for error in [missing, of_another_database, of_another_plugin, not_logical] {
        assert!(error.is_setup() && error.mend().is_some(), "{error:?}");
    }
}

#[tokio::test]
async fn a_name_that_no_slot_and_no_prefix_can_have_is_a_fault_of_the_configuration() {
    let (_database, mut connection) = fresh("outbox_names").await;
    let message = Message::builder("orders", "t").source("/s").json(&1).build().unwrap();

    for name in ["", "a\0b", "Tailrace", "a b", &"a".repeat(64)] {
        let error = check(&mut connection, name).await.unwrap_err();
        assert!(error.to_string().starts_with("no replication slot can have the name"), "{error}");
        assert_eq!((error.kind(), error.reaction()), (Kind::Setup, Reaction::Stop));
    }
    for prefix in ["", "a\0b", "a\nb"] {
        let outbox = Outbox::new(Store::Wal).prefix(prefix);
        let merged = outbox.merge("DELETE FROM nowhere").message(&message);
        for error in [
            outbox.check(&mut connection).await.unwrap_err(),
            outbox.write(&mut connection, &message).await.unwrap_err(),
            outbox
                .write_all(&mut connection, &[message.clone(), message.clone()])
                .await
                .unwrap_err(),
            merged.execute(&mut connection).await.unwrap_err(),
        ] {
            assert!(error.to_string().starts_with("the prefix "), "{error}");
            assert_eq!((error.kind(), error.reaction()), (Kind::Setup, Reaction::Stop));
        }
    }
}

#[tokio::test]
async fn a_database_that_does_not_answer_is_not_a_fault_of_its_set_up() {
    let pool = sqlx::PgPool::connect_lazy("postgres://nobody@127.0.0.1:1/none").unwrap();
    pool.close().await;

    let error = check(&pool, "any").await.unwrap_err();

    assert_eq!((error.kind(), error.reaction()), (Kind::Unavailable, Reaction::Retry), "{error:?}");
}
