//! More than one broker's address.

use std::time::Duration;

use tailrace_cdc_relay::Milestone;
use tailrace_stack::{Needs, Stack};
use tests::crash_point::CrashPoint;
use tests::writers::{Dice, Written};
use tests::{Site, Variant};

use crate::run::{LEAD_MAX, all_is_well, node, published, site, stop};

/// Brokers of a cluster that goes on without one of them.
const BROKERS: u32 = 3;
/// Commits that a relay is in the midst of when a broker dies.
const COMMITS: u32 = 10;

#[tokio::test]
async fn one_dead_broker_of_several_is_no_obstacle() {
    let site = site("brokers").await;
    let mut written = Written::default();
    let mut dice = Dice::new("brokers");
    let mut arguments = site.run_arguments();
    // Nothing listens on port 1.
    for argument in &mut arguments {
        if argument.starts_with("--kafka-brokers=") {
            argument.insert_str("--kafka-brokers=".len(), "127.0.0.1:1,");
        }
    }

    // The first start and a later one take different ways to the checkpoint.
    for _ in 0..2 {
        let mut relay = site.cdc_relay(&arguments);
        relay.says("leading", LEAD_MAX).await;
        written.add(site.write(4, 2, &mut dice).await);
        published(&site).await;
        stop(&mut relay).await;
    }

    all_is_well(&site, &written).await;
}

#[tokio::test]
async fn a_broker_of_three_that_dies_in_the_midst_of_commits_loses_and_doubles_nothing() {
    let stack = Stack::start(Needs::BOTH.brokers(BROKERS)).await.unwrap();
    let site = Site::new(&stack, "three_brokers", 2, &node()).await;
    site.prepare_writers().await;
    let mut dice = Dice::new("three_brokers");
    let mut written = Written::default();
    for broker in 0..BROKERS as usize {
        // The relay is killed too, a little after the broker: so both a relay that lives on and one
        // that recovers meet what the broker left behind.
        let inside = CrashPoint::at(Milestone::Committing, COMMITS).after(Duration::from_millis(1));
        let mut doomed = site.relay(Variant {
            die_at: Some(inside),
            batch_records: Some(1),
            ..Variant::default()
        });
        doomed.says("leading", LEAD_MAX).await;
        written.add(site.write(40, 4, &mut dice).await);
        let broker = stack.kafka().broker(broker);
        broker.kill().await.unwrap();
        written.add(site.write(40, 4, &mut dice).await);
        doomed.ends(LEAD_MAX).await;

        let mut relay = site.relay(Variant { batch_records: Some(1), ..Variant::default() });
        relay.says("leading", LEAD_MAX).await;
        written.add(site.write(40, 4, &mut dice).await);
        published(&site).await;
        broker.restart().await.unwrap();
        stop(&mut relay).await;
    }

    all_is_well(&site, &written).await;
}
