//! What happens to topics while somebody reads them, and where reading begins.

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::topic_partition_list::Offset as KafkaOffset;

use super::ownership::{outsider, partition_zero};
use super::*;

fn admin(bed: &Bed) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", bed.brokers()).create().unwrap()
}

/// Gives a topic more partitions and waits until brokers tell of them.
pub(super) async fn grow(bed: &Bed, topic: &str, partitions: usize) {
    let grown = NewPartitions::new(topic, partitions);
    admin(bed).create_partitions([&grown], &AdminOptions::new()).await.unwrap();
    until(async || {
        let client = outsider(bed, topic);
        let metadata = client.fetch_metadata(Some(topic), DEADLINE).unwrap();
        metadata.topics()[0].partitions().len() == partitions
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_a_topic_gets_while_it_is_read_are_read_from_their_beginning() {
    let bed = bed("topics_grow").await;
    let topic = bed.topic("topics_grow", 1).await;
    produce(bed.brokers(), &topic, &records(10, 5));
    let config = Config::new(&topic, bed.brokers(), bed.pool.clone())
        .start(config::Start::Latest)
        .kafka_property("topic.metadata.refresh.interval.ms", "300");
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", effect));
    until(async || bed.count("SELECT count(*) FROM tailrace.consumer_progress").await == 1).await;

    grow(&bed, &topic, 4).await;
    let more: Vec<_> =
        (100..200).map(|number| numbered(&format!("key-{number}"), number)).collect();
    produce(bed.brokers(), &topic, &more);
    running.applied(100).await;
    running.stop().await.unwrap();

    assert!(bed.count("SELECT count(DISTINCT partition) FROM effect").await > 1);
    assert_eq!(bed.count("SELECT min(number) FROM effect").await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_under_its_name_halts_until_somebody_says_where_to_go_on() {
    let bed = bed("topics_anew").await;
    let topic = bed.topic("topics_anew", 1).await;
    produce(bed.brokers(), &topic, &records(5, 5));
    let running = start(consumer(&bed, &topic, &topic));
    running.applied(5).await;
    running.stop().await.unwrap();

    let admin = admin(&bed);
    admin.delete_topics(&[&topic], &AdminOptions::new()).await.unwrap();
    let anew = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
    until(async || admin.create_topics([&anew], &AdminOptions::new()).await.unwrap()[0].is_ok())
        .await;
    // More than there were, so that the stored offset lies within the new topic.
    produce(bed.brokers(), &topic, &records(9, 5));
    let error = start(consumer(&bed, &topic, &topic)).end().await;
    let epoch: i64 = sqlx::query_scalar("SELECT tailrace.seek_consumer($1, $1, 0, 0)")
        .bind(&topic)
        .fetch_one(&bed.pool)
        .await
        .unwrap();
    let running = start(consumer(&bed, &topic, &topic));
    running.applied(9).await;
    running.stop().await.unwrap();

    assert_eq!(error.kind(), Kind::TopicReplaced);
    assert!(error.to_string().contains(&format!("{topic} was deleted")), "{error}");
    assert!(error.to_string().contains("partition 0"), "{error}");
    assert_eq!(epoch, 2);
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 14);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_under_its_reader_is_a_fault_or_an_error() {
    let bed = bed("topics_deleted").await;
    let reader = async |protocol| {
        let topic = bed.topic("topics_deleted", 1).await;
        let kept = bed.topic("topics_kept", 1).await;
        produce(bed.brokers(), &topic, &records(5, 5));
        let config = Config::new(&topic, bed.brokers(), bed.pool.clone())
            .group_protocol(protocol)
            .kafka_property("topic.metadata.refresh.interval.ms", "1000");
        let consumer = Consumer::new(config).topic(&topic).topic(&kept);
        let running = start(consumer.on("numbered.v1", effect));
        running.applied(5).await;
        until(async || running.health.faults().is_empty()).await;
        admin(&bed).delete_topics(&[&topic], &AdminOptions::new()).await.unwrap();
        (topic, running)
    };
    let (classic, newer) =
        tokio::join!(reader(GroupProtocol::Classic), reader(GroupProtocol::Consumer));

    // The brokers that share the partitions out by themselves take the topic away without a word.
    let (topic, running) = newer;
    let gone = format!("the topic {topic} does not exist any more");
    until(async || running.health.faults().contains(&gone)).await;
    assert!(running.health.is_live());
    running.stop().await.unwrap();
    // The client of a classic group finds out, and has the consumer halt.
    let (topic, running) = classic;
    let error = running.end().await;
    assert_eq!(error.kind(), Kind::Kafka);
    assert!(error.to_string().contains(&topic), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seek_makes_the_running_owner_look_again() {
    let bed = bed("topics_seek").await;
    let topic = bed.topic("topics_seek", 1).await;
    produce(bed.brokers(), &topic, &records(20, 5));
    let config = Config::new(&topic, bed.brokers(), bed.pool.clone()).lanes(2);
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", effect));
    running.applied(20).await;

    bed.execute("TRUNCATE tailrace.processed_message").await;
    sqlx::query("SELECT tailrace.seek_consumer($1, $1, 0, 15)")
        .bind(&topic)
        .execute(&bed.pool)
        .await
        .unwrap();
    // The owner finds out with its next transaction.
    produce(bed.brokers(), &topic, &records(1, 1));
    running.applied(26).await;
    running.stop().await.unwrap();

    assert_eq!(bed.count("SELECT count(*) FROM effect WHERE number >= 15").await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_takes_over_goes_on_where_the_group_has_committed() {
    let bed = bed("topics_committed").await;
    let topic = bed.topic("topics_committed", 1).await;
    produce(bed.brokers(), &topic, &records(10, 5));
    outsider(&bed, &topic)
        .commit(&partition_zero(&topic, KafkaOffset::Offset(7)), CommitMode::Sync)
        .unwrap();

    let config =
        Config::new(&topic, bed.brokers(), bed.pool.clone()).start(config::Start::KafkaCommitted);
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", effect));
    running.applied(3).await;
    running.stop().await.unwrap();

    assert_eq!(bed.count("SELECT min(number) FROM effect").await, 7);
}
