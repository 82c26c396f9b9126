//! The oldest Postgres, in short; `.ci/versions` runs every test on each.

use tailrace_cdc_relay::Milestone;
use tailrace_stack::{Needs, Stack};
use tests::crash_point::CrashPoint;
use tests::writers::{Dice, Written};
use tests::{Site, Variant};

use crate::run::{LEAD_MAX, all_is_well, node, published, stop};

const OLDEST: u32 = 15;
const MESSAGES: usize = 300;
const CONNECTIONS: usize = 8;

#[tokio::test]
async fn on_the_oldest_postgres_every_way_to_write_arrives_once_through_crashes() {
    let needs = Needs::BOTH.postgres_version(OLDEST);
    let stack = Stack::start(needs).await.expect("the servers start");
    assert_eq!(stack.postgres().major_version(), OLDEST);
    let site = Site::new(&stack, "oldest", 2, &node()).await;
    site.prepare_writers().await;
    site.prepare_journal().await;
    let mut dice = Dice::new("oldest");
    let mut written = Written::default();
    let crashes = [Milestone::SlotCreated, Milestone::Produced, Milestone::Committed];
    for milestone in crashes {
        let die_at = Some(CrashPoint::at(milestone, 1));
        let mut doomed = site.relay(Variant { die_at, ..Variant::default() });
        // Before the first has made the slot, messages would vanish.
        if milestone != Milestone::SlotCreated {
            written.add(site.write_in_every_way(MESSAGES, CONNECTIONS, &mut dice).await);
        }
        doomed.ends(LEAD_MAX).await;
        site.slot_is_not_above_the_checkpoint().await;
    }

    let mut relay = site.relay(Variant::default());
    published(&site).await;
    stop(&mut relay).await;
    all_is_well(&site, &written).await;
}
