//! More than one broker's address.

use tests::writers::{Dice, Written};

use crate::run::{LEAD_MAX, all_is_well, published, site, stop};

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
