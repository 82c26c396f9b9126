//! What the sidecar's other commands say and do.

use std::time::Duration;

use rustix::process::Signal;

use crate::complaint::refuses;
use crate::run::{LEAD_MAX, PUBLISH_MAX, site, stop};

const CHECK_FAILED: i32 = 1;
const SETTINGS: i32 = 2;
const GAP: i32 = 4;
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Runs a command to its good end, and answers with what it said.
async fn does(site: &tests::Site, command: &[&str]) -> String {
    let mut process = site.cdc_relay(&site.arguments(command));
    let status = process.ends(ANSWER_MAX).await;
    let log = process.log();
    assert!(status.success(), "{command:?}: {status}:\n{log}");
    log
}

#[tokio::test]
async fn a_slot_lives_from_init_to_drop_slot_and_status_tells_each_step() {
    let site = site("life_of_a_slot").await;

    let plan = does(&site, &["init", "--dry-run"]).await;
    for named in ["REPLICATION", "CREATE PUBLICATION", "CREATE_REPLICATION_SLOT", &site.relay_id] {
        assert!(plan.contains(named), "{named} is not in:\n{plan}");
    }
    assert_eq!(site.confirmed_flush().await, None);
    assert!(does(&site, &["status"]).await.contains("does not exist"));
    let mut early = site.cdc_relay(&site.arguments(&["run", "--no-init"]));
    refuses(&mut early, SETTINGS, &["cdc-relay init", &site.slot]).await;
    let json = &["run", "--no-init", "--log-format=json"];
    let mut early = site.cdc_relay(&site.arguments(json));
    assert_eq!(early.ends(ANSWER_MAX).await.code(), Some(SETTINGS));
    let log = early.log();
    let last: serde_json::Value = log.lines().last().unwrap_or_default().parse().expect("json");
    assert_eq!(last.pointer("/level"), Some(&"ERROR".into()), "{log}");
    assert_eq!(last.pointer("/fields/exit_code"), Some(&SETTINGS.into()), "{log}");
    assert!(last.pointer("/fields/mend").is_some(), "{log}");

    assert!(does(&site, &["init"]).await.contains("kept from now on"));
    assert!(does(&site, &["init"]).await.contains("nothing to do"));
    crate::adopt::say(&site, "between init and run").await;
    let mut relay = site.cdc_relay(&site.arguments(&["run", "--no-init"]));
    relay.says("leading", LEAD_MAX).await;
    site.read_until(PUBLISH_MAX, |seen| seen.len() == 1).await;

    let status = does(&site, &["status"]).await;
    assert!(status.contains("cdc-relay") && status.contains("incarnation"), "{status}");
    assert!(!status.contains("refused"), "{status}");
    let check = does(&site, &["check", "--json"]).await;
    assert!(check.contains("\"level\": \"warn\""), "{check}");
    let json = does(&site, &["status", "--json"]).await;
    let at = json.find('{').expect("there is json");
    let json: serde_json::Value = serde_json::from_str(json.get(at..).unwrap()).unwrap();
    for (pointer, is_there) in [
        ("/slot/lag_bytes", true),
        ("/slot/wal_status", true),
        ("/leader/pid", true),
        ("/checkpoint/flush_lsn", true),
        ("/checkpoint/written_ms", true),
        ("/refused", false),
    ] {
        let value = json.pointer(pointer).unwrap_or_else(|| panic!("{pointer}: {json:#}"));
        assert_eq!(!value.is_null(), is_there, "{pointer}: {json:#}");
    }
    stop(&mut relay).await;

    let mut unsure = site.cdc_relay(&site.arguments(&["drop-slot"]));
    refuses(&mut unsure, SETTINGS, &["--yes", "loses"]).await;
    assert!(does(&site, &["drop-slot", "--yes"]).await.contains("checkpoint stays"));
    assert_eq!(site.confirmed_flush().await, None);
    refuses(&mut site.cdc_relay(&site.run_arguments()), GAP, &["cdc-relay adopt"]).await;
    assert!(does(&site, &["status"]).await.contains("refused"));
    let mut check = site.cdc_relay(&site.arguments(&["check"]));
    let status = check.ends(ANSWER_MAX).await;
    assert_eq!(status.code(), Some(CHECK_FAILED), "{}", check.log());
    assert!(check.log().contains("fail slot "), "{}", check.log());
    assert!(check.log().contains("-> nothing was published"), "{}", check.log());
}

#[tokio::test]
async fn a_large_transaction_is_refused_whole_where_it_may_not_be_split() {
    const REJECTED: i32 = 5;
    let site = site("refused_large").await;
    let topic = site.topics.first().expect("a site has topics");
    let file =
        tempfile(&site.slot, "[transaction]\nmax_bytes = '64KiB'\nlarge_transactions = 'refuse'\n");
    let mut arguments = site.run_arguments();
    arguments.push(format!("--config={}", file.display()));
    let mut relay = site.cdc_relay(&arguments);
    relay.says("leading", LEAD_MAX).await;

    let mut transaction = site.pool.begin().await.unwrap();
    for _ in 0..100 {
        let message = tailrace_outbox::Message::builder(topic, "much.v1").source("/much");
        let message = message.payload(vec![b'x'; 4_096]).build().unwrap();
        tailrace_outbox::write(&mut transaction, &message).await.unwrap();
    }
    transaction.commit().await.unwrap();

    refuses(&mut relay, REJECTED, &["larger", "transaction.max_bytes"]).await;
    assert_eq!(site.read_to_end().await, []);
    let mut relay = site.cdc_relay(&site.run_arguments());
    site.read_until(PUBLISH_MAX, |seen| seen.len() == 100).await;
    stop(&mut relay).await;
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn a_hang_up_takes_up_new_settings_and_keeps_the_old_where_they_are_wrong() {
    let site = site("hang_up").await;
    let file = tempfile(&site.slot, "[transaction]\nmax_records = 100\n");
    let mut arguments = site.run_arguments();
    arguments.push(format!("--config={}", file.display()));
    // The slot and the database come from the file, to be changed there.
    arguments.retain(|given| !given.starts_with("--slot") && !given.starts_with("--database-url"));
    let text = |url: &str, slot: &str, rest: &str| {
        format!("[database]\nurl = '{url}'\n[relay]\nslot = '{slot}'\n{rest}")
    };
    let slot = |slot: &str, rest: &str| text(&site.url, slot, rest);
    let (login, host) = site.url.split_once('@').expect("the url has a password");
    let (user, _) = login.rsplit_once(':').expect("the url has a password");
    let wrong_url = format!("{user}:wrong@{host}");
    tempfile(&site.slot, &slot(&site.slot, ""));
    let mut relay = site.cdc_relay(&arguments);
    relay.says("leading", LEAD_MAX).await;

    for (text, said, leading) in [
        (slot(&site.slot, "slto = 'x'\n"), "did you mean relay.slot?", 1),
        (slot("another", ""), "[\"relay.slot\"]", 1),
        (slot(&site.slot, ""), "no setting has changed", 1),
        (slot(&site.slot, "prefix = 'other'\n"), "[\"relay.prefix\"]", 1),
        (slot(&site.slot, "[relay.tables]\n'public.none' = 'debezium'\n"), "there is no table", 1),
        (text(&wrong_url, &site.slot, ""), "password authentication failed", 1),
        (slot(&site.slot, "delivery = 'at-least-once'\n"), "new session", 2),
        (slot(&site.slot, ""), "relay.delivery", 3),
    ] {
        tempfile(&site.slot, &text);
        relay.signal(Signal::HUP);
        relay.says(said, ANSWER_MAX).await;
        relay.says_times("leading", leading, LEAD_MAX).await;
    }

    crate::adopt::say(&site, "after all that").await;
    site.read_until(PUBLISH_MAX, |seen| seen.len() == 1).await;
    stop(&mut relay).await;
    tempfile(&site.slot, &slot(&site.slot, "prefix = 'other'\n"));
    refuses(&mut site.cdc_relay(&arguments), GAP, &["\"tailrace\"", "\"other\""]).await;
    std::fs::remove_file(file).expect("the file is there");
}

/// A file of this test, in the system's place for such files.
fn tempfile(name: &str, text: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("{name}.toml"));
    std::fs::write(&path, text).expect("there is a place for temporary files");
    path
}
