//! What a relay tells over HTTP, and what it can be told.

use std::time::Duration;

use sqlx::Row;
use tests::Site;
use tests::endpoint::Endpoint;
use tests::process::Process;
use tests::writers::{Dice, Written};

use crate::complaint::refuses;
use crate::run::{LEAD_MAX, PUBLISH_MAX, all_is_well, published, site, stop};

const SETTINGS: i32 = 2;
const TOKEN: &str = "a token that is long enough";
/// A probe is written every four seconds and covered at once.
const PROBE_MAX: Duration = Duration::from_secs(20);
const PAUSE_MAX: Duration = Duration::from_secs(10);

async fn sidecar(site: &Site, more: &[&str]) -> (Process, Endpoint) {
    let mut arguments = site.run_arguments();
    arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    let mut relay = site.cdc_relay(&arguments);
    let endpoint = Endpoint::of(&mut relay).await;
    (relay, endpoint)
}

#[tokio::test]
async fn the_endpoints_tell_what_a_relay_does() {
    let site = site("endpoints").await;
    let mut dice = Dice::new("endpoints");
    let (mut relay, endpoint) = sidecar(&site, &[]).await;
    assert_eq!(endpoint.get("/livez").await.code, 200);
    endpoint.readiness(200, "role=leading", LEAD_MAX).await;
    let (mut standby, beside) = sidecar(&site, &[]).await;
    beside.readiness(200, "role=standby", LEAD_MAX).await;

    let written = site.write(40, 4, &mut dice).await;
    published(&site).await;
    let expected = site.expected().await.len() as u64;
    endpoint.status_until(PUBLISH_MAX, |now| now["messages"] == expected).await;
    endpoint.status_until(PROBE_MAX, |now| now["probe_seconds"].is_f64()).await;

    let now = endpoint.status().await;
    assert_eq!(now["role"], "leading", "{now:#}");
    assert_eq!(now["relay_id"], site.relay_id, "{now:#}");
    assert_eq!(now["slot_health"]["active"], true, "{now:#}");
    assert_eq!(now["slot_health"]["wal_status"], "reserved", "{now:#}");
    assert_eq!(now["slot_warning"], serde_json::Value::Null, "{now:#}");
    assert!(now["lag_bytes"].as_u64().is_some_and(|bytes| bytes < 16 << 20), "{now:#}");
    let metrics = endpoint.get("/metrics").await.body;
    let slot = &site.slot;
    for line in [
        "# TYPE cdc_relay_messages_total counter",
        "# TYPE cdc_relay_delivery_seconds histogram",
        "# HELP cdc_relay_lag_seconds ",
        &format!("cdc_relay_messages_total{{slot=\"{slot}\"}} {expected}\n"),
        &format!("cdc_relay_leading{{slot=\"{slot}\"}} 1\n"),
        &format!("cdc_relay_ready{{slot=\"{slot}\"}} 1\n"),
        &format!("cdc_relay_slot_lost{{slot=\"{slot}\"}} 0\n"),
        &format!("cdc_relay_slot_retained_bytes{{slot=\"{slot}\"}} "),
        &format!("cdc_relay_probe_seconds_bucket{{slot=\"{slot}\",le=\"0.001\"}} "),
    ] {
        assert!(metrics.contains(line), "{line:?} is not in:\n{metrics}");
    }
    let page = endpoint.get("/").await;
    assert!(page.head.contains("text/html") && page.body.contains("<svg"), "{page:?}");
    // It reaches for nothing that is not the relay's own.
    assert!(!page.body.replace("http://www.w3.org/2000/svg", "").contains("://"));
    assert_eq!(endpoint.get("/nothing").await.code, 404);

    // The standby takes over and says so.
    stop(&mut relay).await;
    beside.readiness(200, "role=leading", LEAD_MAX).await;
    stop(&mut standby).await;
    // Probes have published nothing.
    all_is_well(&site, &written).await;
}

#[tokio::test]
async fn a_port_that_is_in_use_or_no_address_is_one_error_that_says_so() {
    let site = site("ports").await;
    let (mut relay, endpoint) = sidecar(&site, &[]).await;
    endpoint.readiness(200, "role=leading", LEAD_MAX).await;
    let instead = |address: &str| {
        let arguments = site.run_arguments().into_iter();
        let others = arguments.filter(|argument| !argument.starts_with("--http="));
        others.chain([format!("--http={address}")]).collect::<Vec<_>>()
    };

    let in_use = &mut site.cdc_relay(&instead(endpoint.address()));
    refuses(in_use, SETTINGS, &[endpoint.address(), "in use", "--http"]).await;
    let no_address = &mut site.cdc_relay(&instead("localhost"));
    refuses(no_address, SETTINGS, &["localhost", "127.0.0.1:9640"]).await;
    let short = [site.run_arguments(), vec!["--http-token=short".to_owned()]].concat();
    refuses(&mut site.cdc_relay(&short), SETTINGS, &["token", "16 bytes"]).await;

    stop(&mut relay).await;
}

#[tokio::test]
async fn nobody_pauses_a_relay_without_its_token() {
    let site = site("token").await;
    let (mut open, endpoint) = sidecar(&site, &[]).await;
    let refused = endpoint.post("/pause", Some("Bearer anything at all")).await;
    assert_eq!(refused.code, 403, "{refused:?}");
    assert!(refused.body.contains("--http-token-file"), "{refused:?}");
    stop(&mut open).await;

    let (mut relay, endpoint) = sidecar(&site, &["--http-token", TOKEN]).await;
    endpoint.readiness(200, "role=leading", LEAD_MAX).await;
    for wrong in [None, Some("Bearer another one of this length"), Some(TOKEN)] {
        let refused = endpoint.post("/pause", wrong).await;
        assert_eq!(refused.code, 401, "{refused:?}");
    }
    assert_eq!(endpoint.get("/pause").await.code, 405);
    assert_eq!(endpoint.status().await["role"], "leading");
    stop(&mut relay).await;
}

#[tokio::test]
async fn a_paused_relay_publishes_nothing_stays_the_leader_and_loses_nothing() {
    let site = site("pause").await;
    let mut dice = Dice::new("pause");
    let bearer = format!("Bearer {TOKEN}");
    let (mut relay, endpoint) = sidecar(&site, &["--http-token", TOKEN]).await;
    endpoint.readiness(200, "role=leading", LEAD_MAX).await;
    let mut written = Written::default();

    // In the middle of a stream of transactions.
    let pause = async {
        site.read_until(PUBLISH_MAX, |seen| seen.len() >= 20).await;
        assert_eq!(endpoint.post("/pause", Some(&bearer)).await.code, 200);
    };
    let (more, ()) = tokio::join!(site.write(120, 4, &mut dice), pause);
    written.add(more);
    endpoint.readiness(200, "role=paused", PAUSE_MAX).await;
    endpoint.status_until(PAUSE_MAX, |now| now["lag_seconds"].as_f64() > Some(2.0)).await;
    let before = endpoint.status().await["messages"].clone();
    written.add(site.write(40, 4, &mut dice).await);
    let reported = reply_time(&site).await;
    endpoint.status_until(PAUSE_MAX, |now| now["lag_seconds"].as_f64() > Some(5.0)).await;

    let now = endpoint.status().await;
    assert_eq!(now["messages"], before, "{now:#}");
    assert_eq!(now["watchdog_restarts"], 0, "{now:#}");
    assert!(!site.slot_is_free().await);
    assert!(reply_time(&site).await > reported, "the server heard nothing during the pause");
    assert_eq!(endpoint.post("/resume", Some(&bearer)).await.code, 200);
    endpoint.readiness(200, "role=leading", PAUSE_MAX).await;
    published(&site).await;
    // A paused relay stops at once, too.
    assert_eq!(endpoint.post("/pause", Some(&bearer)).await.code, 200);
    written.add(site.write(8, 2, &mut dice).await);
    stop(&mut relay).await;
    let (mut next, _) = sidecar(&site, &[]).await;
    published(&site).await;
    stop(&mut next).await;
    all_is_well(&site, &written).await;
}

#[tokio::test]
async fn new_settings_keep_the_port_the_counts_and_a_pause() {
    let site = site("reload").await;
    let file = format!("{}/{}.toml", env!("CARGO_TARGET_TMPDIR"), site.slot);
    std::fs::write(&file, "").unwrap();
    let config = format!("--config={file}");
    let (mut relay, endpoint) = sidecar(&site, &["--http-token", TOKEN, &config]).await;
    endpoint.readiness(200, "role=leading", LEAD_MAX).await;
    let written = site.write(8, 2, &mut Dice::new("reload")).await;
    published(&site).await;
    let expected = site.expected().await.len() as u64;
    endpoint.status_until(PUBLISH_MAX, |now| now["messages"] == expected).await;
    let bearer = format!("Bearer {TOKEN}");
    assert_eq!(endpoint.post("/pause", Some(&bearer)).await.code, 200);

    std::fs::write(&file, "[transaction]\nmax_records = 100\n").unwrap();
    relay.signal(rustix::process::Signal::HUP);
    relay.says_times("leading", 2, LEAD_MAX).await;

    endpoint.readiness(200, "role=paused", PAUSE_MAX).await;
    let now = endpoint.status().await;
    assert_eq!((&now["messages"], &now["sessions"]), (&expected.into(), &2.into()), "{now:#}");
    stop(&mut relay).await;
    all_is_well(&site, &written).await;
}

/// When the server last heard from the relay, in seconds.
async fn reply_time(site: &Site) -> f64 {
    sqlx::query(
        "select extract(epoch from reply_time)::float8 from pg_stat_replication r \
         join pg_replication_slots s on s.active_pid = r.pid where s.slot_name = $1",
    )
    .bind(&site.slot)
    .fetch_one(&site.pool)
    .await
    .expect("the relay holds its slot")
    .get(0)
}
