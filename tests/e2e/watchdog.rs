//! A relay that does not get on says so, and gets on again when it can.

use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::Executor;
use tailrace_stack::{Needs, Stack};
use tests::Site;
use tests::endpoint::Endpoint;
use tests::writers::{Dice, Written};

use crate::complaint::refuses;
use crate::run::{LEAD_MAX, all_is_well, node, published, site, stop};

/// From the fault until `/readyz` says so.
const RED_MAX: Duration = Duration::from_secs(10);
/// From the end of the fault until it is ready again.
const READY_MAX: Duration = Duration::from_secs(60);
/// A server that nobody keeps from stopping has stopped by then.
const SERVER_STOP_MAX: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const GAP: i32 = 4;
const TOKEN: &str = "a token that is long enough";

#[tokio::test]
async fn a_postgres_that_falls_silent_turns_a_relay_red_until_it_answers() {
    let site = site("silent").await;
    let mut dice = Dice::new("silent");
    let proxy = Stack::shared().await.postgres().proxy().unwrap();
    let through = format!("--database-url={}", proxy.url(site.database.url()));
    let mut arguments = site.run_arguments();
    arguments.retain(|argument| !argument.starts_with("--database-url="));
    arguments.push(through);
    let mut relay = site.cdc_relay(&arguments);
    let endpoint = Endpoint::of(&mut relay).await;
    endpoint.readiness(200, "role=leading", LEAD_MAX).await;
    let mut written = site.write(8, 2, &mut dice).await;
    published(&site).await;

    // Both ends believe that the connection stands.
    proxy.hold();
    let red = endpoint.readiness(503, "no bytes come from postgres", RED_MAX).await;
    written.add(site.write(8, 2, &mut dice).await);
    relay.says("the watchdog ended the session", RED_MAX).await;
    proxy.pass();

    endpoint.readiness(200, "role=leading", READY_MAX).await;
    written.add(site.write(8, 2, &mut dice).await);
    published(&site).await;
    let now = endpoint.status().await;
    assert_eq!(now["watchdog_restarts"], 1, "red after {red:?}: {now:#}");
    stop(&mut relay).await;
    all_is_well(&site, &written).await;
}

#[tokio::test]
async fn a_kafka_that_hangs_turns_a_relay_red_and_keeps_no_postgres_from_stopping() {
    let stack = Stack::start(Needs::BOTH.breakable()).await.unwrap();
    let site = Site::new(&stack, "hangs", 2, &node()).await;
    site.prepare_writers().await;
    let mut dice = Dice::new("hangs");
    let mut written = Written::default();
    let arguments = [site.run_arguments(), vec![format!("--http-token={TOKEN}")]].concat();
    let mut relay = site.cdc_relay(&arguments);
    let endpoint = Endpoint::of(&mut relay).await;
    endpoint.readiness(200, "role=leading", LEAD_MAX).await;
    written.add(site.write(8, 2, &mut dice).await);
    published(&site).await;

    stack.kafka().pause().await.unwrap();
    written.add(site.write(8, 2, &mut dice).await);
    endpoint.readiness(503, "", RED_MAX).await;
    slot_is_free(&site, RED_MAX).await;
    stops(&stack).await;
    stack.postgres().restart().await.unwrap();
    stack.kafka().resume().await.unwrap();
    endpoint.readiness(200, "role=leading", READY_MAX).await;
    published(&site).await;

    // Nor does a relay that was told to wait.
    let bearer = format!("Bearer {TOKEN}");
    assert_eq!(endpoint.post("/pause", Some(&bearer)).await.code, 200);
    written.add(site.write(8, 2, &mut dice).await);
    stops(&stack).await;
    stack.postgres().restart().await.unwrap();
    endpoint.readiness(200, "role=paused", READY_MAX).await;
    assert_eq!(endpoint.post("/resume", Some(&bearer)).await.code, 200);
    published(&site).await;

    stop(&mut relay).await;
    all_is_well(&site, &written).await;
}

/// A fast shutdown of Postgres, which waits for whoever reads its log.
async fn stops(stack: &Stack) {
    let from = Instant::now();
    let stopped = tokio::time::timeout(SERVER_STOP_MAX, stack.postgres().stop()).await;
    assert!(matches!(stopped, Ok(Ok(()))), "after {:?}: {stopped:?}", from.elapsed());
}

async fn slot_is_free(site: &Site, limit: Duration) {
    let free = async {
        let mut look = tokio::time::interval(LOOK_EVERY);
        while !site.slot_is_free().await {
            look.tick().await;
        }
    };
    let free = tokio::time::timeout(limit, free).await;
    assert!(free.is_ok(), "the relay still reads from the slot");
}

#[tokio::test]
async fn a_slot_in_danger_is_told_and_one_that_is_lost_ends_the_relay_once() {
    let stack = Stack::start(Needs::BOTH.breakable()).await.unwrap();
    let site = Site::new(&stack, "danger", 1, &node()).await;
    site.prepare_writers().await;
    for setting in ["alter system set max_slot_wal_keep_size = '64MB'", "select pg_reload_conf()"] {
        site.pool.execute(setting).await.unwrap();
    }
    let arguments = [site.run_arguments(), vec![format!("--http-token={TOKEN}")]].concat();
    let mut relay = site.cdc_relay(&arguments);
    let endpoint = Endpoint::of(&mut relay).await;
    endpoint.readiness(200, "role=leading", LEAD_MAX).await;
    let told = |now: &Value| now["slot_warning"].is_string();
    endpoint.status_until(READY_MAX, |now| now["slot_health"]["safe_bytes"].is_u64()).await;
    assert!(!told(&endpoint.status().await));

    let bearer = format!("Bearer {TOKEN}");
    endpoint.post("/pause", Some(&bearer)).await;
    // Before 18 the bound is some MB further away: where the slot begins in its segment decides.
    log_grows(&site, 56).await;
    endpoint.status_until(READY_MAX, told).await;
    let now = endpoint.status().await;
    assert_eq!(now["slot_health"]["wal_status"], "reserved", "{now:#}");
    let metrics = endpoint.get("/metrics").await.body;
    assert!(metrics.contains(&format!("slot_warning{{slot=\"{}\"}} 1\n", site.slot)), "{metrics}");

    endpoint.post("/resume", Some(&bearer)).await;
    endpoint.status_until(READY_MAX, |now| !told(now)).await;

    endpoint.post("/pause", Some(&bearer)).await;
    site.write(4, 2, &mut Dice::new("danger")).await;
    log_grows(&site, 128).await;
    // A server that gives a slot up waits for the end of its reader, which reads nothing. The relay
    // lets go, ends with one error and does not try again, and neither does one that a supervisor
    // starts in its place.
    let named = ["refused to stream slot", "cdc-relay adopt --accept-gap"];
    let (checkpoint, _) =
        tokio::join!(site.pool.execute("checkpoint"), refuses(&mut relay, GAP, &named));
    checkpoint.unwrap();
    refuses(&mut site.cdc_relay(&arguments), GAP, &named).await;
    let mut status = site.cdc_relay(&site.arguments(&["status"]));
    assert!(status.ends(READY_MAX).await.success(), "{}", status.log());
    for said in ["(lost)", "it was removed by the server"] {
        assert!(status.log().contains(said), "{said:?} is not in:\n{}", status.log());
    }

    let mut adopt = site.cdc_relay(&site.arguments(&["adopt", "--accept-gap"]));
    let adopted = adopt.ends(READY_MAX).await;
    assert!(adopted.success(), "{adopted}:\n{}", adopt.log());
    assert_eq!(site.read_to_end().await, [], "what it lost is not published in part");
    let mut relay = site.cdc_relay(&arguments);
    relay.says("leading", LEAD_MAX).await;
    let after = site.write(4, 2, &mut Dice::new("danger")).await;
    site.read_until(READY_MAX, move |seen| seen.len() >= after.messages).await;
    stop(&mut relay).await;
}

/// So many MB of log that no relay publishes.
async fn log_grows(site: &Site, megabytes: u32) {
    for _ in 0..megabytes {
        let message = "select pg_logical_emit_message(false, 'noise', repeat('x', 1048576))";
        site.pool.execute(message).await.expect("the server serves");
    }
}
