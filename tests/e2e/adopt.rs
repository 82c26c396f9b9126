//! A gap that a person has accepted: it is told to the byte, and nothing beyond it is lost.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Executor};
use tailrace_outbox::Message;
use tailrace_stack::{Needs, Stack};
use tests::Site;
use tests::process::Process;

use crate::complaint::refuses;
use crate::run::{LEAD_MAX, PUBLISH_MAX, STOP_MAX, initialize, node, site, stop};

const GAP: i32 = 4;

/// Writes a message that is known by its subject; all of a site have one key, and so an order.
pub(crate) async fn say(site: &Site, subject: &str) {
    let topic = site.topics.first().expect("a site has topics");
    let message = Message::builder(topic, "thing.said.v1").source("/talk").key("one key");
    let message = message.subject(subject).json(&subject).build().expect("it keeps every rule");
    let mut transaction = site.pool.begin().await.expect("the server serves");
    tailrace_outbox::write(&mut transaction, &message).await.expect("it is written");
    transaction.commit().await.expect("it commits");
}

/// Publishes up to a message that is said last, and stops.
async fn publish(site: &Site, last: &'static str) {
    let mut relay = site.cdc_relay(&site.run_arguments());
    relay.says("leading", LEAD_MAX).await;
    say(site, last).await;
    let is_there = move |seen: &[tests::reader::Seen]| {
        seen.iter().any(|seen| seen.header("ce_subject") == last)
    };
    site.read_until(PUBLISH_MAX, is_there).await;
    stop(&mut relay).await;
}

/// The subjects of what a reader finds, in order.
async fn said(site: &Site) -> Vec<String> {
    let seen = site.read_to_end().await;
    let sequences: Vec<&str> = seen.iter().map(|seen| seen.header("ce_sequence")).collect();
    assert!(sequences.is_sorted(), "an incarnation is above those before: {sequences:?}");
    seen.iter().map(|seen| seen.header("ce_subject").to_owned()).collect()
}

/// The relay refuses; an adoption goes through and says these things.
async fn adopts(site: &Site, arguments: &[String], told: &[&str]) {
    let run: Vec<String> = [&["run".to_owned()], arguments.get(2..).unwrap_or_default()].concat();
    refuses(&mut site.cdc_relay(&run), GAP, &["cdc-relay adopt"]).await;

    let mut adopt = site.cdc_relay(arguments);
    let status = adopt.ends(LEAD_MAX).await;

    let log = adopt.log();
    assert!(status.success(), "{status}:\n{log}");
    for told in told {
        assert!(log.contains(told), "{told:?} is not in:\n{log}");
    }
    // It may be said again, and changes nothing then.
    let mut again = site.cdc_relay(arguments);
    let status = again.ends(LEAD_MAX).await;
    assert!(status.success() && again.log().contains("nothing to adopt"), "{}", again.log());
}

fn accept_gap(site: &Site) -> Vec<String> {
    site.arguments(&["adopt", "--accept-gap"])
}

#[tokio::test]
async fn a_slot_that_was_dropped_or_made_anew_is_adopted_with_what_is_lost() {
    for (name, make) in [
        ("adopt_dropped", ""),
        ("adopt_anew", "select pg_create_logical_replication_slot($1, 'pgoutput')"),
    ] {
        let site = site(name).await;
        publish(&site, "before").await;
        let published = lsn(site.checkpoint().await);

        site.on_slot("select pg_drop_replication_slot($1)").await;
        say(&site, "lost").await;
        if !make.is_empty() {
            site.on_slot(make).await;
            say(&site, "kept").await;
        }

        let lost = format!("what committed after {published} up to ");
        let refused = if make.is_empty() { "does not exist" } else { "the slot was flushed to" };
        let refused = ["refused    before because ", refused];
        adopts(&site, &accept_gap(&site), &[&lost, refused[0], refused[1]]).await;
        publish(&site, "after").await;
        let expected: &[&str] =
            if make.is_empty() { &["before", "after"] } else { &["before", "kept", "after"] };
        assert_eq!(said(&site).await, expected);
    }
}

#[tokio::test]
async fn a_slot_that_was_advanced_is_adopted_with_what_was_skipped() {
    let site = site("adopt_advanced").await;
    publish(&site, "before").await;
    let published = lsn(site.checkpoint().await);

    say(&site, "skipped").await;
    site.on_slot("select pg_replication_slot_advance($1, pg_current_wal_lsn())").await;
    let begin = lsn(site.confirmed_flush().await);
    say(&site, "kept").await;

    let lost = format!("what committed after {published} up to {begin} ");
    adopts(&site, &accept_gap(&site), &[&lost, &format!("goes on    after {begin}")]).await;
    publish(&site, "after").await;
    assert_eq!(said(&site).await, ["before", "kept", "after"]);
}

#[tokio::test]
async fn a_checkpoint_that_was_lost_is_made_anew_from_the_slot() {
    let site = site("adopt_checkpoint").await;
    publish(&site, "before").await;

    site.delete_topic(&format!("tailrace.checkpoint.{}", site.relay_id)).await;
    say(&site, "kept").await;

    adopts(&site, &accept_gap(&site), &["nobody knows up to where", "perhaps"]).await;
    publish(&site, "after").await;
    assert_eq!(said(&site).await, ["before", "kept", "after"]);
}

#[tokio::test]
async fn an_adoption_that_died_half_way_is_refused_and_finished_by_another() {
    let site = site("adopt_half").await;
    publish(&site, "before").await;
    site.on_slot("select pg_drop_replication_slot($1)").await;

    // A slot waits for every transaction that has written something.
    let mut open = site.pool.begin().await.expect("the server serves");
    open.execute("select pg_current_xact_id()").await.expect("it has an id");
    let mut half = site.cdc_relay(&accept_gap(&site));
    half.says("creating the slot", LEAD_MAX).await;
    half.signal(Signal::KILL);
    half.ends(STOP_MAX).await;
    open.rollback().await.expect("it rolls back");
    let mut half = site.cdc_relay(&site.run_arguments());
    refuses(&mut half, GAP, &["cdc-relay adopt"]).await;

    // The same with the slot made already, which a relay could take for its own.
    site.on_slot(
        "select pg_drop_replication_slot($1) from pg_replication_slots where slot_name = $1",
    )
    .await;
    site.on_slot("select pg_create_logical_replication_slot($1, 'pgoutput')").await;
    say(&site, "kept").await;
    adopts(&site, &accept_gap(&site), &["lost"]).await;
    publish(&site, "after").await;
    assert_eq!(said(&site).await, ["before", "kept", "after"]);
}

#[tokio::test]
async fn a_restored_database_is_adopted_on_its_own_timeline_and_on_a_new_one() {
    let stack = Stack::start(Needs::BOTH.breakable()).await.unwrap();
    for (name, new_timeline) in [("adopt_restored", false), ("adopt_timeline", true)] {
        let site = Site::new(&stack, name, 1, &node()).await;
        publish(&site, "before").await;
        let directory: (String,) =
            sqlx::query_as("show data_directory").fetch_one(&site.pool).await.unwrap();
        let data = PathBuf::from(directory.0);
        let copy = data.with_extension(name);
        stack.postgres().stop().await.unwrap();
        copy_tree(&data, &copy);
        stack.postgres().restart().await.unwrap();
        publish(&site, "gone").await;
        // A segment further on, so that the restored log stays behind.
        site.pool.execute("select pg_switch_wal()").await.unwrap();
        publish(&site, "gone too").await;
        let published = lsn(site.checkpoint().await);

        stack.postgres().stop().await.unwrap();
        std::fs::remove_dir_all(&data).unwrap();
        std::fs::rename(&copy, &data).unwrap();
        if new_timeline {
            let settings = data.join("postgresql.auto.conf");
            let before = std::fs::read_to_string(&settings).unwrap();
            std::fs::write(&settings, before + "restore_command = 'false'\n").unwrap();
            copy_tree(&data.join("PG_VERSION"), &data.join("recovery.signal"));
        }
        stack.postgres().restart().await.unwrap();
        primary(&site).await;
        say(&site, "kept").await;

        let phantom = format!("up to {published} ");
        let told = ["published, but not in this database", phantom.as_str()];
        adopts(&site, &accept_gap(&site), &told).await;
        publish(&site, "after").await;
        let mut said = said(&site).await;
        if !new_timeline {
            // Where the histories part nobody knows, so what the slot still has comes again; before
            // 17 a shutdown does not write down how far a slot was flushed.
            let mut before = BTreeSet::new();
            said.retain(|subject| before.insert(subject.clone()));
        }
        assert_eq!(said, ["before", "gone", "gone too", "kept", "after"], "{name}");
    }
}

#[tokio::test]
async fn another_cluster_is_adopted_as_an_upgrade_only_before_anybody_writes() {
    let mut site = site("adopt_upgraded").await;
    publish(&site, "before").await;
    let published = lsn(site.checkpoint().await);
    let stack = Stack::start(Needs::POSTGRES.breakable()).await.unwrap();
    let other = stack.postgres();
    let name = site.database.name();
    let admin = sqlx::PgPool::connect(other.url()).await.unwrap();
    admin.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
    // pg_upgrade lets the log go on above the old cluster's.
    let behind = format!(
        "select pg_current_wal_lsn() < '{published}', pg_logical_emit_message(false, '', ''), \
         pg_switch_wal()"
    );
    while sqlx::query_as::<_, (bool, String, String)>(AssertSqlSafe(format!(
        "select a, b::text, c::text from ({behind}) as moved(a, b, c)"
    )))
    .fetch_one(&admin)
    .await
    .unwrap()
    .0
    {}
    let url = other.url().replace("/postgres?", &format!("/{name}?"));
    let with_url = |mut arguments: Vec<String>| {
        arguments.retain(|argument| !argument.starts_with("--database-url"));
        arguments.push(format!("--database-url={url}"));
        arguments
    };
    let upgraded = with_url(site.arguments(&["adopt", "--upgraded"]));

    let writer = sqlx::PgPool::connect(&url).await.unwrap();
    let too_early: &mut Process = &mut site.cdc_relay(&upgraded);
    refuses(too_early, GAP, &["other clients are connected", "--accept-gap"]).await;
    writer.close().await;
    adopts(&site, &upgraded, &["lost       nothing", &published]).await;

    site.pool = sqlx::PgPool::connect(&url).await.unwrap();
    say(&site, "kept").await;
    let mut relay = site.cdc_relay(&with_url(site.run_arguments()));
    relay.says("leading", LEAD_MAX).await;
    site.read_until(PUBLISH_MAX, |seen| seen.len() == 2).await;
    stop(&mut relay).await;
    assert_eq!(said(&site).await, ["before", "kept"]);
}

#[tokio::test]
async fn what_a_relay_leads_is_not_adopted_and_not_dropped() {
    const LED: i32 = 7;
    let site = site("adopt_led").await;
    initialize(&site).await;
    let mut relay = site.cdc_relay(&site.run_arguments());
    relay.says("leading", LEAD_MAX).await;

    refuses(&mut site.cdc_relay(&accept_gap(&site)), LED, &["stop it"]).await;
    let drop_slot = site.arguments(&["drop-slot", "--yes"]);
    refuses(&mut site.cdc_relay(&drop_slot), LED, &["stop it"]).await;

    say(&site, "still").await;
    site.read_until(PUBLISH_MAX, |seen| seen.len() == 1).await;
    stop(&mut relay).await;
}

/// Waits until the server takes writes: after a recovery it serves readers first.
async fn primary(site: &Site) {
    let deadline = Instant::now() + LEAD_MAX;
    let question = "select pg_is_in_recovery()";
    loop {
        let answer = sqlx::query_as::<_, (bool,)>(question).fetch_one(&site.pool).await;
        if !answer.expect("the server serves readers").0 {
            return;
        }
        assert!(Instant::now() < deadline, "the server stays in recovery");
    }
}

/// With owners and rights: a server runs as a user of its own.
fn copy_tree(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().expect("cp starts");
    assert!(status.success(), "{status}");
}

/// A position as Postgres writes it.
fn lsn(bytes: Option<u64>) -> String {
    let bytes = bytes.expect("the relay has led");
    format!("{:X}/{:X}", bytes >> 32, bytes & 0xffff_ffff)
}
