//! More than one broker, and brokers behind proxies.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::{BOUND, consume, guarded};
use crate::{Kafka, Needs, Stack, unique};

#[tokio::test]
async fn a_topic_of_three_brokers_outlives_the_loss_of_its_leader() {
    let stack = Stack::start(Needs::KAFKA.brokers(3).breakable()).await.unwrap();
    let kafka = stack.kafka();
    let topic = kafka.fresh_topic("replicated", 1).await.unwrap();
    assert_eq!(replicas_and_minimum(kafka, &topic).await, (3, "2".to_owned()));
    let producer = transactional(kafka.brokers());
    publish(&producer, &topic, "first");
    let inner = replicas_and_minimum(kafka, "__transaction_state").await;
    assert_eq!(inner, (3, "2".to_owned()));

    let lost = kafka.leader(&topic, 0).await.unwrap();
    lost.kill().await.unwrap();

    publish(&producer, &topic, "second");
    assert_eq!(consume(kafka.brokers(), &topic), ["first", "second"]);
    let leader = kafka.leader(&topic, 0).await.unwrap();
    assert_ne!(leader.index(), lost.index());
    lost.restart().await.unwrap();
    publish(&producer, &topic, "third");
    assert_eq!(consume(&lost.address(), &topic), ["first", "second", "third"]);
}

#[tokio::test]
async fn all_that_a_client_learns_leads_through_the_proxy() {
    let kafka = guarded().await.kafka();
    let topic = kafka.fresh_topic("proxied", 1).await.unwrap();
    let (proxied, broker) = (kafka.proxied_brokers(), kafka.broker(0));
    let producer = transactional(&proxied);
    publish(&producer, &topic, "first");
    assert!(broker.proxy().connections() > 0);

    broker.proxy().cut();

    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &proxied).create().unwrap();
    client.fetch_metadata(None, Duration::from_millis(100)).map(drop).unwrap_err();
    assert_eq!(consume(kafka.brokers(), &topic), ["first"]);
    broker.proxy().pass();
    publish(&producer, &topic, "second");
    assert_eq!(consume(&proxied, &topic), ["first", "second"]);
}

fn transactional(brokers: &str) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("transactional.id", unique("stack"))
        .set("reconnect.backoff.max.ms", "100")
        .create()
        .unwrap();
    producer.init_transactions(BOUND).unwrap();
    producer
}

fn publish(producer: &BaseProducer, topic: &str, payload: &str) {
    producer.begin_transaction().unwrap();
    let record: BaseRecord<'_, (), str> = BaseRecord::to(topic).payload(payload);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.commit_transaction(BOUND).unwrap();
}

/// How many brokers hold the first partition, and how many of them a commit waits for.
async fn replicas_and_minimum(kafka: &Kafka, topic: &str) -> (usize, String) {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", kafka.brokers());
    let consumer: BaseConsumer = client.create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), BOUND).unwrap();
    let replicas = metadata.topics()[0].partitions()[0].replicas().len();
    let admin: AdminClient<DefaultClientContext> = client.create().unwrap();
    let described = admin
        .describe_configs(&[ResourceSpecifier::Topic(topic)], &AdminOptions::new())
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    let minimum = described.get("min.insync.replicas").unwrap();
    (replicas, minimum.value.clone().unwrap())
}
