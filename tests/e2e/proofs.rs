//! Every proof, small.

use indicatif::ProgressBar;
use tailrace_stack::Stack;
use tests::proof::Bench;
use tests::{PROOFS, Scale};

use crate::run::node;

#[tokio::test]
async fn what_many_connections_commit_in_every_way_arrives_once_in_order() {
    check("outbox-arrival").await;
}

#[tokio::test]
async fn a_giant_transaction_is_published_once_in_order_in_little_memory() {
    check("giant-transaction").await;
}

#[tokio::test]
async fn a_relay_goes_on_by_itself_when_kafka_dies_inside_its_commits() {
    check("kafka-crash").await;
}

#[tokio::test]
async fn a_relay_that_is_killed_at_any_point_loses_and_doubles_nothing() {
    check("relay-crash").await;
}

#[tokio::test]
async fn a_relay_that_is_killed_in_a_transaction_of_any_shape_loses_and_doubles_nothing() {
    check("relay-shapes").await;
}

#[tokio::test]
async fn zombies_of_three_relays_that_wake_at_any_time_publish_nothing() {
    check("relay-zombies").await;
}

#[tokio::test]
async fn an_idle_slot_keeps_no_log_of_a_busy_neighbour() {
    check("foreign-wal").await;
}

#[tokio::test]
async fn the_memory_of_a_relay_stays_what_it_was() {
    check("soak").await;
}

#[tokio::test]
async fn through_chaos_each_effect_of_a_consumer_happens_once_in_order() {
    check("consumer-chaos").await;
}

#[tokio::test]
async fn through_chaos_every_saga_completes_or_leaves_nothing_behind() {
    check("saga-chaos").await;
}

#[tokio::test]
async fn sagas_stay_on_their_version_through_a_deploy_and_wait_where_nobody_runs_it() {
    check("saga-deploy").await;
}

#[tokio::test]
async fn the_books_of_the_shop_add_up_whatever_is_killed_and_delivered_twice() {
    check("shop").await;
}

async fn check(name: &str) {
    let proof = PROOFS.iter().find(|proof| proof.name == name).expect("the proof is there");
    let stack = Stack::shared().await;
    let bench = Bench { stack, node: node(), scale: Scale::Small, bar: ProgressBar::hidden() };

    let report = (proof.body)(bench).await;

    assert!(report.passes(), "{:#?}\n{:#?}", report.figures, report.faults);
}
