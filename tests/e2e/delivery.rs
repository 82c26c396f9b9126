//! The two modes of delivery, one after the other on one slot.

use std::collections::HashSet;

use tailrace_cdc_relay::Milestone;
use tests::Variant;
use tests::crash_point::CrashPoint;
use tests::verdict::Verdict;
use tests::writers::{Dice, Written};

use crate::run::{LEAD_MAX, published, site, stop};

const DEATHS: u32 = 12;

#[tokio::test]
async fn at_least_once_loses_nothing_keeps_the_order_and_repeats_only_after_a_crash() {
    let site = site("delivery").await;
    let mut dice = Dice::new("delivery");
    let mut written = Written::default();
    let calm = Variant { at_least_once: true, ..Variant::default() };
    let mut relay = site.relay(calm);
    relay.says("leading", LEAD_MAX).await;
    written.add(site.write(20, 4, &mut dice).await);
    published(&site).await;
    stop(&mut relay).await;
    let before = site.read_to_end().await;
    assert_eq!(before.len(), site.expected().await.len(), "no crash, no repetition");

    for death in 0..DEATHS {
        let milestone = match death % 4 {
            0 => Milestone::Decoded,
            1 => Milestone::Produced,
            2 => Milestone::Committing,
            _ => Milestone::Committed,
        };
        // Batches of one, so that there are commits to die at; and now and then the other mode.
        let die_at = Some(CrashPoint::at(milestone, 5));
        let at_least_once = death % 5 != 4;
        let mut doomed =
            site.relay(Variant { die_at, at_least_once, batch_records: Some(1), ..calm });
        let (_, part) = tokio::join!(doomed.ends(LEAD_MAX), site.write(12, 4, &mut dice));
        written.add(part);
        site.slot_is_not_above_the_checkpoint().await;
    }
    let mut relay = site.relay(Variant::default());
    relay.says("leading", LEAD_MAX).await;
    written.add(site.write(20, 4, &mut dice).await);
    let ids: HashSet<String> = site.expected().await.keys().map(ToString::to_string).collect();
    site.read_until(crate::run::PUBLISH_MAX, move |seen| {
        let seen: HashSet<_> = seen.iter().map(|record| record.header("ce_id")).collect();
        seen.len() >= ids.len()
    })
    .await;
    stop(&mut relay).await;

    let seen = site.read_to_end().await;
    let mut known = HashSet::new();
    let first = |record: &&_| known.insert(tests::reader::Seen::header(record, "ce_id").to_owned());
    let firsts: Vec<_> = seen.iter().filter(first).cloned().collect();
    let expected = site.expected().await;
    let verdict = Verdict::judge(&site.relay_id, &expected, &written.rolled_back, &firsts);
    assert!(verdict.holds(), "{verdict:#?}");
    assert!(seen.len() > firsts.len(), "relays died between records and checkpoint");
}
