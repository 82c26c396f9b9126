//! Each misconfiguration, on real servers.

mod broken;
mod brokers;
mod site;

use std::time::Duration;

use super::{Bounds, Level, check};
use crate::config::Config;
use crate::replication::{Client, Large};
use site::{Case, Site, strict};
use tokio_postgres::NoTls;

#[tokio::test]
async fn a_fresh_database_and_broker_need_nothing_to_be_mended() {
    let mut site = Site::new("check_fresh").await;

    let report = check(&site.config(), Bounds::default()).await;
    assert_eq!(report.level(), Level::Warn, "{}", report.text());
    assert!(report.text().contains("does not exist yet"), "{}", report.text());

    site.run("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')").await;
    site.save_intent().await;
    site.run("CREATE PUBLICATION tailrace WITH (publish = 'insert')").await;
    let report = check(&site.config(), Bounds::default()).await;
    assert_ne!(report.level(), Level::Fail, "{}", report.text());
    for name in [
        "postgres",
        "wal_level",
        "primary",
        "replication_slots",
        "wal_senders",
        "wal_sender_timeout",
        "durability",
        "clock",
        "slot_wal",
        "checkpoint",
        "publication",
        "kafka",
        "kafka_version",
        "transaction_timeout",
        "checkpoint_topic",
        "new_topics",
    ] {
        let found = report.findings.iter().find(|finding| finding.name == name);
        let found = found.unwrap_or_else(|| panic!("{name} is not in\n{}", report.text()));
        assert_eq!(found.level, Level::Ok, "{name}: {}", report.text());
    }
    // Whatever else reads from the slot is told.
    let stranger = site.config_with("application_name=somebody").endpoint().unwrap();
    let stranger = Client::connect(&stranger).await.unwrap();
    let reads = stranger.start_replication(&site.slot, "tailrace", Large::AtCommit).await.unwrap();
    site.finds(&site.config(), strict(), ("slot_reader", Level::Warn, "somebody")).await;
    site.run(
        "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots \
         WHERE slot_name = '{slot}'",
    )
    .await;
    drop(reads);
    let json = report.json();
    assert_eq!(json["level"], "warn");
    assert_eq!(json["findings"].as_array().unwrap().len(), report.findings.len());
    site.run("SELECT pg_drop_replication_slot('{slot}')").await;
}

/// SQL with the site's `{slot}` in it, and what it has to lead to.
const IN_THE_DATABASE: &[Case] = &[
    Case {
        sql: "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')",
        finds: ("checkpoint", Level::Fail, "no checkpoint"),
    },
    Case {
        sql: "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')",
        finds: ("publication", Level::Fail, "though the slot does"),
    },
    Case {
        sql: "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput', false, true)",
        finds: ("slot", Level::Fail, "two_phase"),
    },
    Case {
        sql: "SELECT pg_create_physical_replication_slot('{slot}')",
        finds: ("slot", Level::Fail, "output plugin"),
    },
    Case {
        sql: "CREATE SCHEMA tailrace; CREATE TABLE tailrace.outbox (id int);
              CREATE PUBLICATION tailrace FOR TABLE tailrace.outbox",
        finds: ("publication", Level::Fail, "does not publish the journal"),
    },
    Case {
        sql: "CREATE SCHEMA tailrace; CREATE TABLE tailrace.outbox (id int);
              CREATE PUBLICATION tailrace",
        finds: ("journal", Level::Warn, "does not have it"),
    },
    Case {
        sql: "CREATE TABLE orders (id int); CREATE PUBLICATION tailrace FOR TABLE orders",
        finds: ("replica_identity", Level::Fail, "public.orders"),
    },
    Case {
        sql: "CREATE TABLE a (id int primary key); CREATE TABLE b (id int primary key);
              CREATE TABLE c (id int primary key); CREATE TABLE d (id int primary key);
              CREATE PUBLICATION tailrace FOR TABLE a, b, c, d",
        finds: ("publication_tables", Level::Warn, "1 more"),
    },
    Case {
        sql: "SELECT pg_create_logical_replication_slot('{slot}_other', 'pgoutput')",
        finds: ("other_slots", Level::Warn, "{slot}_other"),
    },
];

#[tokio::test]
async fn what_is_amiss_in_a_database_is_found_and_mended_by_what_is_said() {
    let mut slots = Vec::new();
    for (number, case) in IN_THE_DATABASE.iter().enumerate() {
        let mut site = Site::new(&format!("check_case_{number}")).await;
        site.run(case.sql).await;

        site.finds(&site.config(), strict(), case.finds).await;

        slots.push(site);
    }
    // A slot left behind would keep the log of the server that all tests share.
    for mut site in slots {
        site.run(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name IN ('{slot}', '{slot}_other')",
        )
        .await;
    }
}

#[tokio::test]
async fn a_role_is_told_what_it_lacks_and_what_it_has_too_much() {
    let mut site = Site::new("check_role").await;
    site.run(
        "CREATE ROLE \"{slot}_a\" LOGIN REPLICATION PASSWORD 'secret';
         CREATE ROLE \"{slot}_b\" LOGIN PASSWORD 'secret'",
    )
    .await;
    let as_role = |role: &str, password: &str| {
        let name = format!("{}_{role}", site.slot);
        site.config_with(&format!("user={name}&password={password}"))
    };
    let elsewhere =
        Config::new("postgres://relay:secret@127.0.0.1:1/shop?sslmode=disable", &site.brokers);

    for (config, finds) in [
        (site.config(), ("role", Level::Warn, "superuser")),
        (as_role("a", "secret"), ("role", Level::Ok, "")),
        (as_role("a", "secret"), ("publication", Level::Fail, "lacks CREATE")),
        (as_role("b", "secret"), ("role", Level::Fail, "")),
        (as_role("a", "guessed"), ("postgres", Level::Fail, "password")),
        (elsewhere, ("postgres", Level::Fail, "cannot reach")),
        (site.config().init(false), ("slot", Level::Fail, "relay.init is false")),
        (site.config_with("dbname=postgres").slot("x"), ("slot", Level::Warn, "does not exist")),
    ] {
        let report = site.finds(&config, strict(), finds).await;
        assert!(!report.text().contains("secret") && !report.text().contains("guessed"));
    }
    // Roles belong to the whole server, which may be somebody's own.
    site.run("DROP ROLE \"{slot}_a\", \"{slot}_b\"").await;
}

#[tokio::test]
async fn transactions_that_stay_open_are_found() {
    let mut site = Site::new("check_open").await;
    let (other, connection) = tokio_postgres::connect(site.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    other.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();

    site.finds(&site.config(), strict(), ("long_transactions", Level::Warn, "backends")).await;
    let patient = Bounds { transaction_age: Duration::from_secs(3_600), ..strict() };
    site.finds(&site.config(), patient, ("long_transactions", Level::Ok, "none")).await;

    // A role without the right to see sessions of others is not told that there is none.
    site.run("CREATE ROLE \"{slot}_a\" LOGIN REPLICATION PASSWORD 'secret'").await;
    let blind = site.config_with(&format!("user={}_a&password=secret", site.slot));
    site.finds(&blind, strict(), ("long_transactions", Level::Warn, "may not see")).await;
    other.batch_execute("ROLLBACK").await.unwrap();
    site.run("DROP ROLE \"{slot}_a\"").await;
}
