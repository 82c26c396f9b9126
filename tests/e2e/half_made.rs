//! A relay that dies while its slot is being made.

use rustix::process::Signal;
use tests::Variant;
use tests::writers::{Dice, Written};

use crate::run::{LEAD_MAX, all_is_well, published, site, stop};

#[tokio::test]
async fn a_slot_that_was_given_up_while_it_was_made_is_made_anew() {
    let site = site("half_made").await;
    // A slot waits for every transaction that runs when it is begun.
    let mut running = site.pool.begin().await.expect("a transaction begins");
    sqlx::raw_sql("create table open_for_long (id int)")
        .execute(&mut *running)
        .await
        .expect("it has an id");
    let mut first = site.relay(Variant::default());
    first.says("the slot waits for the transactions of these backends", LEAD_MAX).await;

    first.signal(Signal::KILL);
    first.ends(LEAD_MAX).await;
    let mut second = site.relay(Variant::default());
    second.says("standing by", LEAD_MAX).await;
    running.commit().await.expect("it commits");
    second.says("leading", LEAD_MAX).await;

    let mut written = Written::default();
    written.add(site.write(4, 2, &mut Dice::new("half_made")).await);
    published(&site).await;
    stop(&mut second).await;
    all_is_well(&site, &written).await;
}
