//! Rebalances, zombies, and whose offset counts.

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::*;
use crate::dedupe::Dedupe;
use crate::lanes::Lanes;
use crate::position::Offset;
use crate::progress::{self, Epoch, Owned, Partition, Taken, Takeover, Wanted};

pub(super) fn outsider(bed: &Bed, group: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", bed.brokers())
        .set("group.id", group)
        .create()
        .unwrap()
}

pub(super) fn partition_zero(topic: &str, offset: KafkaOffset) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, offset).unwrap();
    list
}

/// The offset that the group has committed for partition 0, as lag tools see it.
pub(super) fn committed_in_kafka(bed: &Bed, group: &str, topic: &str) -> Option<i64> {
    let asked = partition_zero(topic, KafkaOffset::Invalid);
    let answer = outsider(bed, group).committed_offsets(asked, DEADLINE).unwrap();
    match answer.elements()[0].offset() {
        KafkaOffset::Offset(offset) => Some(offset),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_in_the_middle_doubles_loses_and_reorders_nothing() {
    rebalance(GroupProtocol::Classic, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_by_the_brokers_doubles_loses_and_reorders_nothing() {
    rebalance(GroupProtocol::Consumer, 3).await;
}

async fn rebalance(protocol: GroupProtocol, lanes: u16) {
    let bed = bed("ownership_rebalance").await;
    let topic = bed.topic("ownership_rebalance", 4).await;
    let records = records(12_000, 50);
    let small = || {
        let config = Config::new(&topic, bed.brokers(), bed.pool.clone())
            .batch_records_max(50)
            .group_protocol(protocol)
            .lanes(lanes);
        let config = match protocol {
            // With it a member learns of a rebalance.
            GroupProtocol::Classic => config.kafka_property("heartbeat.interval.ms", "200"),
            _ => config,
        };
        Consumer::new(config).topic(&topic).on("numbered.v1", effect)
    };

    produce(bed.brokers(), &topic, &records[..6000]);
    let first = start(small());
    first.applied(500).await;
    let second = start(small());
    until(async || bed.count(OWNED_TWICE).await > 0).await;
    produce(bed.brokers(), &topic, &records[6000..]);
    second.applied(200).await;
    let third = start(small());
    let first = first.stop().await.unwrap();
    until(async || bed.count("SELECT count(DISTINCT message_id) FROM effect").await == 12_000)
        .await;
    let (second, third) = (second.stop().await.unwrap(), third.stop().await.unwrap());

    assert_eq!(first.applied + second.applied + third.applied, 12_000);
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_leaves_no_record_out_where_the_end_of_a_partition_was_told() {
    let bed = bed("ownership_end").await;
    let topic = bed.topic("ownership_end", 4).await;
    let records = records(400, 40);
    let producer = producer(bed.brokers(), Some(&topic));
    producer.init_transactions(DEADLINE).unwrap();
    producer.begin_transaction().unwrap();
    send(&producer, &topic, &records[..200]);
    producer.commit_transaction(DEADLINE).unwrap();
    let member = || {
        let config = Config::new(&topic, bed.brokers(), bed.pool.clone())
            .group_protocol(GroupProtocol::Consumer)
            .kafka_property("enable.partition.eof", "true");
        start(Consumer::new(config).topic(&topic).on("numbered.v1", effect))
    };

    let first = member();
    // Over the record that ends the transaction, progress goes by nothing but the client's word that this is the end.
    let passed = "SELECT coalesce(sum(next_offset), 0)::bigint FROM tailrace.consumer_progress";
    until(async || bed.count(passed).await == 204).await;
    let second = member();
    until(async || bed.count(OWNED_TWICE).await > 0).await;
    produce(bed.brokers(), &topic, &records[200..]);
    until(async || bed.count("SELECT count(DISTINCT message_id) FROM effect").await == 400).await;
    first.stop().await.unwrap();
    second.stop().await.unwrap();

    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
}

/// Makes the test the owner of a partition with one lane.
async fn own(bed: &Bed, consumer: &str, partition: &Partition) -> Owned {
    let wanted =
        [Wanted { partition: partition.clone(), start: None, topic_id: None, partitions: None }];
    let takeover = Takeover { lanes: Lanes::new(1), deadline: DEADLINE, dedupe: Dedupe::default() };
    let mut conn = bed.pool.acquire().await.unwrap();
    let taken = progress::take(&mut conn, consumer, &wanted, takeover).await.unwrap().remove(0);
    let Taken { partition, plan, .. } = taken;
    Owned { partition, lane: 0, epoch: Epoch(plan.epoch), next_offset: plan.resumes_at() }
}

const OWNED_TWICE: &str = "SELECT count(*) FROM tailrace.consumer_progress WHERE epoch > 1";

#[tokio::test]
async fn the_fence_holds_back_a_former_owner() {
    let bed = bed("ownership_fence").await;
    let partition = Partition { topic: "orders".into(), number: 3 };
    let former = own(&bed, "billing", &partition).await;
    let mut tx = bed.begin().await;
    let advance = progress::advance(&mut tx, "billing", &former, Offset::new(10), &[]);
    assert!(advance.await.unwrap().is_some());
    tx.commit().await.unwrap();

    let owner = own(&bed, "billing", &partition).await;
    let mut tx = bed.begin().await;
    let late = progress::advance(&mut tx, "billing", &former, Offset::new(20), &[]).await;

    assert_eq!(late.unwrap(), None);
    assert_eq!(owner.next_offset, Some(Offset::new(10)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_whose_epoch_was_raised_commits_nothing_with_the_old_one_and_owns_again() {
    let bed = bed("ownership_zombie").await;
    let topic = bed.topic("ownership_zombie", 1).await;
    let records = records(100, 5);
    produce(bed.brokers(), &topic, &records[..50]);
    let running = start(consumer(&bed, &topic, &topic));
    running.applied(50).await;

    bed.execute("UPDATE tailrace.consumer_progress SET epoch = epoch + 1").await;
    produce(bed.brokers(), &topic, &records[50..]);
    running.applied(100).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.duplicates, report.fenced), (100, 0, 1));
    assert_eq!(bed.count("SELECT epoch FROM tailrace.consumer_progress").await, 3);
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_stopped_inside_its_transaction_holds_the_next_one_up_for_a_bounded_time() {
    let bed = bed("ownership_stopped").await;
    let topic = bed.topic("ownership_stopped", 1).await;
    produce(bed.brokers(), &topic, &records(10, 1));
    let partition = Partition { topic: topic.as_str().into(), number: 0 };
    let zombie = own(&bed, &topic, &partition).await;
    // The server's own patience is out of the way: it is the new owner that ends the session.
    let mut tx = progress::begin_in(&bed.pool, Duration::from_secs(3600), "").await.unwrap();
    let advance = progress::advance(&mut tx, &topic, &zombie, Offset::new(10), &[]);
    assert!(advance.await.unwrap().is_some());

    let config = Config::new(&topic, bed.brokers(), bed.pool.clone())
        .rebalance_deadline(Duration::from_secs(2));
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", effect));
    running.applied(10).await;
    running.stop().await.unwrap();

    assert!(tx.commit().await.is_err());
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_where_postgres_says_whatever_kafka_says() {
    let bed = bed("ownership_restart").await;
    let topic = bed.topic("ownership_restart", 1).await;
    produce(bed.brokers(), &topic, &records(40, 4));
    let running = start(consumer(&bed, &topic, &topic));
    running.applied(40).await;
    running.stop().await.unwrap();

    for (round, hint) in [(1, 0), (2, 80)] {
        outsider(&bed, &topic)
            .commit(&partition_zero(&topic, KafkaOffset::Offset(hint)), CommitMode::Sync)
            .unwrap();
        produce(bed.brokers(), &topic, &records(20, 4));
        let running = start(consumer(&bed, &topic, &topic));
        running.applied(20).await;
        let report = running.stop().await.unwrap();

        assert_eq!((report.delivered, report.applied), (20, 20), "round {round}");
    }
    assert_eq!(bed.count("SELECT count(DISTINCT message_id) FROM effect").await, 80);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_is_gone_halts_and_names_the_partition() {
    let bed = bed("ownership_gone").await;
    let topic = bed.topic("ownership_gone", 1).await;
    produce(bed.brokers(), &topic, &records(5, 1));
    sqlx::query("INSERT INTO tailrace.consumer_progress VALUES ($1, $1, 0, 0, 1, 4711)")
        .bind(&topic)
        .execute(&bed.pool)
        .await
        .unwrap();

    let error = start(consumer(&bed, &topic, &topic)).end().await;

    assert_eq!(error.kind(), Kind::OffsetGone);
    assert!(
        error.to_string().contains(&format!("topic {topic} partition 0 offset 4711")),
        "{error}"
    );
}
