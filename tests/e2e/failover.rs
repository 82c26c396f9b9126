//! A primary that dies for good, and the standby that takes its place.

use std::time::Duration;

use tailrace_cdc_relay::Milestone;
use tailrace_stack::{Needs, Postgres, Replication, Stack};
use tests::crash_point::CrashPoint;
use tests::process::Process;
use tests::writers::{Dice, Written};
use tests::{Site, Variant};

use crate::complaint::refuses;
use crate::run::{LEAD_MAX, all_is_well, node, published, stop};

/// The first version whose slots can be kept by a standby.
const FAILOVER_SLOTS: u32 = 17;
/// The standby has a lasting copy of the slot by then.
const KEPT_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);

const GAP: i32 = 4;
const OUT_OF_REACH: [&str; 2] = ["does not exist", "out of reach"];

#[tokio::test]
async fn after_a_failover_a_relay_goes_on_without_loss_or_is_told_the_gap() {
    let stack = Stack::start(Needs::BOTH.breakable()).await.unwrap();
    let primary = stack.postgres();
    let standby = primary.standby(Replication::Synchronous).await.unwrap();
    let mut site = Site::new(&stack, "failover", 2, &node()).await;
    site.prepare_writers().await;
    let mut dice = Dice::new("failover");
    let mut relay = site.relay(Variant::default());
    relay.says("leading", LEAD_MAX).await;
    let mut written = site.write(20, 4, &mut dice).await;
    let mut unkept = Site::new(&stack, "unkept", 2, &node()).await;
    unkept.prepare_writers().await;
    let mut beside = without_failover(&unkept).await;
    unkept.write(4, 2, &mut dice).await;
    published(&unkept).await;
    let keeps_slots = primary.major_version() >= FAILOVER_SLOTS;
    if keeps_slots {
        written.add(until_kept(&site, &standby, &mut dice).await);
    }
    published(&site).await;
    // What the primary still commits is not published before it dies.
    relay.signal(rustix::process::Signal::STOP);
    written.add(site.write(20, 4, &mut dice).await);

    primary.kill().await.unwrap();
    drop(relay);
    beside.signal(rustix::process::Signal::KILL);
    beside.ends(LEAD_MAX).await;
    standby.promote().await.unwrap();
    site.fail_over(&standby);

    if keeps_slots {
        let mut relay = site.relay(Variant::default());
        relay.says("leading", LEAD_MAX).await;
        written.add(site.write(20, 4, &mut dice).await);
        published(&site).await;
        stop(&mut relay).await;
        all_is_well(&site, &written).await;
    } else {
        refuses(&mut site.cdc_relay(&site.run_arguments()), GAP, &OUT_OF_REACH).await;
    }
    unkept.fail_over(&standby);
    refuses(&mut unkept.cdc_relay(&unkept.run_arguments()), GAP, &OUT_OF_REACH).await;
}

/// A relay on a slot that no standby keeps, as one that was made by hand may be: it takes over
/// from a first start that died between intent and slot.
async fn without_failover(site: &Site) -> Process {
    let die_at = Some(CrashPoint::at(Milestone::Intended, 1));
    site.relay(Variant { die_at, ..Variant::default() }).ends(LEAD_MAX).await;
    site.on_slot("select pg_create_logical_replication_slot($1, 'pgoutput')").await;
    let mut relay = site.relay(Variant::default());
    relay.says("leading", LEAD_MAX).await;
    relay
}

/// Writes until the standby has a copy of the slot that outlives a promotion: it is a temporary
/// one until the relay has moved on from where the copy began.
async fn until_kept(site: &Site, standby: &Postgres, dice: &mut Dice) -> Written {
    let follower = sqlx::PgPool::connect(standby.url()).await.expect("it answers");
    let mut written = Written::default();
    let kept = async {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            look.tick().await;
            let lasting: i64 = sqlx::query_scalar(
                "select count(*) from pg_replication_slots \
                 where slot_name = $1 and synced and not temporary",
            )
            .bind(&site.slot)
            .fetch_one(&follower)
            .await
            .expect("the standby answers");
            if lasting > 0 {
                return;
            }
            sqlx::query("select pg_log_standby_snapshot()")
                .execute(&site.pool)
                .await
                .expect("the primary answers");
            written.add(site.write(2, 1, dice).await);
        }
    };
    tokio::time::timeout(KEPT_MAX, kept).await.expect("the standby keeps the slot");
    written
}
