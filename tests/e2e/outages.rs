//! Servers that die under a relay that goes on.

use tailrace_stack::{Needs, Stack};
use tests::writers::Dice;
use tests::{Site, Variant};

use crate::run::{LEAD_MAX, PUBLISH_MAX, all_is_well, node, published, stop};

#[tokio::test]
async fn a_relay_survives_the_death_of_kafka_and_of_postgres() {
    let stack = Stack::start(Needs::BOTH.breakable()).await.unwrap();
    let site = Site::new(&stack, "outages", 2, &node()).await;
    site.prepare_writers().await;
    let mut dice = Dice::new("outages");
    let mut relay = site.relay(Variant::default());
    relay.says("leading", LEAD_MAX).await;

    // Each server dies when the relay is in full swing, with more being written.
    let kafka_dies = async {
        site.read_until(PUBLISH_MAX, |seen| seen.len() >= 50).await;
        stack.kafka().kill().await.unwrap();
    };
    let (mut written, ()) = tokio::join!(site.write(200, 4, &mut dice), kafka_dies);
    stack.kafka().restart().await.unwrap();
    written.add(site.write(12, 2, &mut dice).await);
    published(&site).await;

    let before = site.expected().await.len();
    let postgres_dies = async {
        site.read_until(PUBLISH_MAX, move |seen| seen.len() >= before + 50).await;
        stack.postgres().kill().await.unwrap();
    };
    written.add(site.write_until_cut(4, &mut dice, postgres_dies).await);
    stack.postgres().restart().await.unwrap();
    written.add(site.write(12, 2, &mut dice).await);
    published(&site).await;

    // It is the same process all the while.
    stop(&mut relay).await;
    all_is_well(&site, &written).await;
}
