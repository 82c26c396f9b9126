//! What takes a server of its own: settings that need a restart, standbys, a lost slot.

use std::time::Instant;

use tailrace_stack::{Needs, Replication, Stack};

use super::site::{Finds, Site, strict};
use crate::check::Level;
use crate::config::Config;
use crate::replication::Client;

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

/// Settings of the server, and what they have to lead to; the last needs version 18.
const SETTINGS: &[(&str, &str, Finds)] = &[
    ("max_slot_wal_keep_size", "-1", ("max_slot_wal_keep_size", Level::Warn, "no limit")),
    ("max_slot_wal_keep_size", "64MB", ("max_slot_wal_keep_size", Level::Warn, "64MiB")),
    ("max_slot_wal_keep_size", "4GB", ("max_slot_wal_keep_size", Level::Ok, "4GiB")),
    ("wal_sender_timeout", "1s", ("wal_sender_timeout", Level::Warn, "1000 ms")),
    ("full_page_writes", "off", ("durability", Level::Warn, "full_page_writes off")),
    ("idle_replication_slot_timeout", "1h", ("idle_slot_timeout", Level::Warn, "3600 s")),
];

#[tokio::test]
async fn what_is_amiss_with_a_server_is_found() {
    let stack = Stack::start(Needs::BOTH.breakable()).await.unwrap();
    let postgres = stack.postgres();
    let mut site = Site::on(postgres, stack.kafka(), "check_server").await;

    for (setting, value, finds) in SETTINGS {
        if *setting == "idle_replication_slot_timeout" && postgres.major_version() < 18 {
            continue;
        }
        site.run(&format!("ALTER SYSTEM SET {setting} = '{value}'")).await;
        site.run("SELECT pg_reload_conf()").await;
        // A new session has what a reload has brought, as soon as it has.
        let deadline = Instant::now() + DEADLINE;
        let shows = format!("SELECT current_setting('{setting}')");
        while {
            site.reconnect().await;
            site.value(&shows).await != *value
        } {
            assert!(Instant::now() < deadline, "{setting} stays as it was");
        }
        site.finds(&site.config(), strict(), *finds).await;
        site.run(&format!("ALTER SYSTEM RESET {setting}")).await;
    }

    site.run("ALTER SYSTEM SET max_prepared_transactions = 5").await;
    site.run("ALTER SYSTEM SET max_replication_slots = 1").await;
    site.run("ALTER SYSTEM SET max_wal_senders = 2").await;
    postgres.restart().await.unwrap();
    site.reconnect().await;
    site.run("CREATE TABLE t (id int)").await;
    site.run("BEGIN").await;
    site.run("INSERT INTO t VALUES (1)").await;
    site.run("PREPARE TRANSACTION 'forgotten'").await;
    site.run("SELECT pg_create_physical_replication_slot('{slot}_other')").await;
    for finds in [
        ("prepared_transactions", Level::Warn, "forgotten"),
        ("replication_slots", Level::Fail, "all 1"),
        ("wal_senders", Level::Warn, "2 of 2"),
    ] {
        site.finds(&site.config(), strict(), finds).await;
    }

    site.run("ROLLBACK PREPARED 'forgotten'").await;
    site.run("SELECT pg_drop_replication_slot('{slot}_other')").await;
    site.run("ALTER SYSTEM SET wal_level = replica").await;
    postgres.restart().await.unwrap();
    let broken = site.config();
    site.finds(&broken, strict(), ("wal_level", Level::Fail, "replica")).await;
}

#[tokio::test]
async fn a_slot_that_is_lost_is_found() {
    let stack = Stack::start(Needs::BOTH.breakable()).await.unwrap();
    let mut site = Site::on(stack.postgres(), stack.kafka(), "check_lost").await;
    site.run("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')").await;
    for setting in
        ["max_slot_wal_keep_size = '1MB'", "max_wal_size = '32MB'", "min_wal_size = '32MB'"]
    {
        site.run(&format!("ALTER SYSTEM SET {setting}")).await;
    }
    site.run("SELECT pg_reload_conf()").await;
    let status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{slot}'";
    let deadline = Instant::now() + DEADLINE;
    while site.value(status).await != "lost" {
        assert!(Instant::now() < deadline, "the slot keeps its log");
        site.run("SELECT pg_logical_emit_message(false, 'p', ''), pg_switch_wal()").await;
        site.run("CHECKPOINT").await;
    }

    site.finds(&site.config(), strict(), ("slot_wal", Level::Fail, "lost")).await;
}

#[tokio::test]
async fn what_a_failover_needs_is_asked_for() {
    let stack = Stack::start(Needs::BOTH.breakable()).await.unwrap();
    let primary = stack.postgres();
    let mut site = Site::on(primary, stack.kafka(), "check_failover").await;
    let standby = primary.standby(Replication::Asynchronous).await.unwrap();
    let follower = Config::new(standby.url(), &site.brokers);
    site.finds(&follower, strict(), ("primary", Level::Fail, "standby")).await;
    // Before 17 no slot outlives a failover.
    if primary.major_version() < 17 {
        return;
    }
    site.run("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')").await;
    site.save_intent().await;

    site.finds(&site.config(), strict(), ("slot_failover", Level::Warn, "gone after a failover"))
        .await;
    site.finds(&site.config(), strict(), ("standby_waited_for", Level::Warn, "standby")).await;
    let physical = "SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'physical'";
    let physical = site.value(physical).await;
    site.run(&format!("ALTER SYSTEM SET synchronized_standby_slots = '{physical}'")).await;
    site.run("SELECT pg_reload_conf()").await;
    site.run("SELECT pg_drop_replication_slot('{slot}')").await;
    site.run("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput', false, false, true)")
        .await;
    site.reconnect().await;
    site.finds(&site.config(), strict(), ("standby_waited_for", Level::Ok, "wait")).await;
    site.finds(&site.config(), strict(), ("slot_failover", Level::Ok, "")).await;

    let mut other = Client::connect(&follower.endpoint().unwrap()).await.unwrap();
    other.query("ALTER SYSTEM SET sync_replication_slots = off").await.unwrap();
    other.query("ALTER SYSTEM SET hot_standby_feedback = off").await.unwrap();
    other.query("SELECT pg_reload_conf()").await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    let feeds_back = "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical' \
                      AND (xmin IS NOT NULL OR catalog_xmin IS NOT NULL)";
    while site.value(feeds_back).await != "0" {
        assert!(Instant::now() < deadline, "the standby goes on to feed back");
    }
    site.finds(&site.config(), strict(), ("standby_feedback", Level::Warn, "nothing")).await;
    site.finds(&site.config(), strict(), ("standby_slot_sync", Level::Warn, "no standby")).await;
}
