//! A member that ends is not waited for, although its session would go on.

use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::*;

/// Longer than the client waits for an answer to its leave.
const LEAVE_SENT_FOR: Duration = Duration::from_secs(6);

fn classic(bed: &Bed, topic: &str) -> Consumer {
    let config =
        Config::new(topic, bed.brokers(), bed.pool.clone()).group_protocol(GroupProtocol::Classic);
    Consumer::new(config).topic(topic).on("numbered.v1", effect)
}

/// The state of a group, and the number of its members; none before it is known.
fn group(bed: &Bed, name: &str) -> Option<(String, usize)> {
    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", bed.brokers()).create().unwrap();
    let list = client.fetch_group_list(Some(name), DEADLINE).ok()?;
    list.groups().first().map(|group| (group.state().to_owned(), group.members().len()))
}

async fn until_group(bed: &Bed, name: &str, state: &str, members: usize) {
    until(async || group(bed, name) == Some((state.to_owned(), members))).await;
}

fn members(bed: &Bed, name: &str) -> usize {
    group(bed, name).expect("the group is there").1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_has_no_partition_leaves_the_group_when_it_ends() {
    let bed = bed("leaving_idle").await;
    let topic = bed.topic("leaving_idle", 1).await;
    let owner = start(classic(&bed, &topic));
    until_group(&bed, &topic, "Stable", 1).await;
    let idle = start(classic(&bed, &topic));
    until_group(&bed, &topic, "Stable", 2).await;

    idle.stop().await.unwrap();

    assert_eq!(members(&bed, &topic), 1);
    owner.stop().await.unwrap();
    assert_eq!(members(&bed, &topic), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_ends_while_a_rebalance_waits_for_others_leaves_the_group() {
    let bed = bed("leaving_rebalance").await;
    let topic = bed.topic("leaving_rebalance", 1).await;
    let owner = start(classic(&bed, &topic));
    until_group(&bed, &topic, "Stable", 1).await;
    // It joins by itself, and takes no part in the next rebalance before it has taken what this one gives it.
    let slow: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bed.brokers())
        .set("group.id", &topic)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .create()
        .unwrap();
    slow.subscribe(&[&topic]).unwrap();
    until_group(&bed, &topic, "Stable", 2).await;
    let mut leaving = start(classic(&bed, &topic));
    until_group(&bed, &topic, "PreparingRebalance", 3).await;

    leaving.stop.send(()).unwrap();
    let waits = tokio::time::timeout(LEAVE_SENT_FOR, &mut leaving.task).await;
    assert!(waits.is_err(), "it left nobody: {waits:?}");
    let goes_on = Arc::new(AtomicBool::new(true));
    let polls = Arc::clone(&goes_on);
    let polling = tokio::task::spawn_blocking(move || {
        while polls.load(Ordering::Relaxed) {
            drop(slow.poll(Duration::from_millis(10)));
        }
    });
    let left = tokio::time::timeout(DEADLINE, leaving.task).await;
    left.expect("the consumer does not end").unwrap().unwrap();

    assert_eq!(members(&bed, &topic), 2);
    goes_on.store(false, Ordering::Relaxed);
    polling.await.unwrap();
    owner.stop().await.unwrap();
}
