//! Two relays on one slot: one leads, the other stands by, and nothing is published twice.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tailrace_cdc_relay::Milestone;
use tests::Variant;
use tests::crash_point::CrashPoint;
use tests::writers::{Dice, Written};

use crate::run::{LEAD_MAX, all_is_well, published, site, stop};

/// From the silence of the leader until the standby leads.
const TAKEOVER_MAX: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_stopped_relay_is_fenced_when_it_wakes_and_may_lead_again() {
    let site = site("takeover").await;
    let mut dice = Dice::new("takeover");
    let mut written = Written::default();
    let die_at = Some(CrashPoint::at(Milestone::Produced, 5).stop());
    let mut first = site.relay(Variant { die_at, ..Variant::default() });
    first.says("leading", LEAD_MAX).await;
    let mut second = site.relay(Variant::default());
    second.says("standing by", LEAD_MAX).await;

    // The first stops itself with a transaction open.
    written.add(site.write(12, 2, &mut dice).await);
    let silent_at = Instant::now();
    second.says("leading", TAKEOVER_MAX).await;
    let takeover = silent_at.elapsed();
    written.add(site.write(12, 2, &mut dice).await);
    published(&site).await;

    first.signal(Signal::CONT);
    first.says("standing by", LEAD_MAX).await;
    written.add(site.write(12, 2, &mut dice).await);
    published(&site).await;
    stop(&mut second).await;
    first.says_times("leading", 2, LEAD_MAX).await;
    written.add(site.write(12, 2, &mut dice).await);
    published(&site).await;
    stop(&mut first).await;

    all_is_well(&site, &written).await;
    assert_eq!(second.log().matches("leading").count(), 1, "{takeover:?}\n{}", second.log());
}

#[tokio::test]
async fn a_relay_that_is_asked_to_stop_drains_and_frees_the_slot_at_once() {
    let site = site("drain").await;
    let mut dice = Dice::new("drain");
    let mut relay = site.relay(Variant::default());
    relay.says("leading", LEAD_MAX).await;

    let mut written = site.write(40, 4, &mut dice).await;
    stop(&mut relay).await;

    assert!(site.slot_is_free().await);
    // What was published is flushed: the next one has nothing to read again.
    assert_eq!(site.confirmed_flush().await, site.checkpoint().await);
    let mut next = site.relay(Variant::default());
    next.says("leading", LEAD_MAX).await;
    assert!(!next.log().contains("standing by"), "{}", next.log());
    written.add(site.write(4, 1, &mut dice).await);
    published(&site).await;
    stop(&mut next).await;
    all_is_well(&site, &written).await;
}

#[tokio::test]
async fn relays_that_start_together_on_a_fresh_database_publish_each_message_once() {
    tokio::join!(start_together(), start_together(), start_together());
}

async fn start_together() {
    let site = site("together").await;
    let mut dice = Dice::new("together");
    let mut relays = [(); 3].map(|()| site.relay(Variant::default()));
    let [one, two, three] = &mut relays;

    tokio::select! {
        () = one.says("leading", LEAD_MAX) => {}
        () = two.says("leading", LEAD_MAX) => {}
        () = three.says("leading", LEAD_MAX) => {}
    }
    let written = site.write(24, 4, &mut dice).await;
    published(&site).await;

    for relay in &mut relays {
        stop(relay).await;
    }
    all_is_well(&site, &written).await;
}
