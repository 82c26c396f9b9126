//! A slot that does not belong to what was published: refused with the gap, never skipped.

use tests::Site;
use tests::writers::Dice;

use crate::complaint::refuses;
use crate::run::{LEAD_MAX, PUBLISH_MAX, initialize, site, stop};

const GAP: i32 = 4;

#[tokio::test]
async fn a_slot_that_was_dropped_is_a_gap() {
    let site = site("dropped").await;
    initialize(&site).await;
    let published = lsn(site.checkpoint().await);

    site.on_slot("select pg_drop_replication_slot($1)").await;

    refused(&site, &["does not exist", &published, "cdc-relay adopt"]).await;
}

#[tokio::test]
async fn a_slot_that_was_advanced_by_hand_is_a_gap() {
    let site = site("advanced").await;
    initialize(&site).await;
    let published = lsn(site.checkpoint().await);
    site.write(3, 1, &mut Dice::new("advanced")).await;

    site.on_slot("select pg_replication_slot_advance($1, pg_current_wal_lsn())").await;

    let flushed = lsn(site.confirmed_flush().await);
    refused(&site, &[&flushed, &published, "skipped"]).await;
}

#[tokio::test]
async fn a_slot_that_something_else_made_is_a_gap() {
    let site = site("foreign").await;

    site.on_slot("select pg_create_logical_replication_slot($1, 'pgoutput')").await;

    refused(&site, &[&site.slot, "no checkpoint"]).await;
}

#[tokio::test]
async fn a_relay_id_that_was_copied_is_refused_and_fences_nobody() {
    let leads = site("copied_id").await;
    let mut relay = leads.cdc_relay(&leads.run_arguments());
    relay.says("leading", LEAD_MAX).await;
    let mut copy = site("copied_id_copy").await;
    copy.relay_id.clone_from(&leads.relay_id);

    let whose = [leads.slot.as_str(), leads.database.name(), "--relay-id"];
    refuses(&mut copy.cdc_relay(&copy.run_arguments()), GAP, &whose).await;
    refuses(&mut copy.cdc_relay(&copy.arguments(&["init"])), GAP, &whose).await;
    let adopt = copy.arguments(&["adopt", "--accept-gap"]);
    refuses(&mut copy.cdc_relay(&adopt), GAP, &[&whose[..], &["--take-over"]].concat()).await;

    crate::adopt::say(&leads, "still").await;
    leads.read_until(PUBLISH_MAX, |seen| seen.len() == 1).await;
    stop(&mut relay).await;
    assert_eq!(relay.log().matches("leading").count(), 1, "{}", relay.log());
}

async fn refused(site: &Site, named: &[&str]) {
    let before = site.confirmed_flush().await;

    refuses(&mut site.cdc_relay(&site.run_arguments()), GAP, named).await;

    assert_eq!(site.confirmed_flush().await, before, "the slot was moved");
    assert_eq!(site.read_to_end().await, []);
}

/// A position as Postgres writes it.
fn lsn(bytes: Option<u64>) -> String {
    let bytes = bytes.expect("the relay has led");
    format!("{:X}/{:X}", bytes >> 32, bytes & 0xffff_ffff)
}
