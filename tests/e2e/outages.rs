//! Servers that die under a relay that goes on.

use tailrace_stack::{Needs, Stack};
use tests::writers::Dice;
use tests::{Site, Variant};

use crate::run::{LEAD_MAX, all_is_well, node, published, stop};

#[tokio::test]
async fn a_relay_survives_the_death_of_kafka_and_of_postgres() {
    let stack = Stack::start(Needs::BOTH.breakable()).await.unwrap();
    let site = Site::new(&stack, "outages", 2, &node()).await;
    site.prepare_writers().await;
    let mut dice = Dice::new("outages");
    let mut relay = site.relay(Variant::default());
    relay.says("leading", LEAD_MAX).await;

    let (mut written, killed) = tokio::join!(site.write(60, 4, &mut dice), stack.kafka().kill());
    killed.unwrap();
    written.add(site.write(12, 2, &mut dice).await);
    stack.kafka().restart().await.unwrap();
    written.add(site.write(12, 2, &mut dice).await);
    published(&site).await;

    let publishing = site.write(24, 2, &mut dice).await;
    let (cut, killed) = tokio::join!(site.write_until_cut(4, &mut dice), stack.postgres().kill());
    killed.unwrap();
    stack.postgres().restart().await.unwrap();
    written.add(publishing);
    written.add(cut);
    written.add(site.write(12, 2, &mut dice).await);
    published(&site).await;

    // It is the same process all the while.
    stop(&mut relay).await;
    all_is_well(&site, &written).await;
}
