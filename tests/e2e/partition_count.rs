//! A topic that somebody gives more partitions, while the relay is away and while it runs.

use std::collections::{BTreeMap, BTreeSet};

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use tailrace_outbox::Message;
use tests::{Site, Variant};

use crate::run::{LEAD_MAX, PUBLISH_MAX, site, stop};

#[tokio::test]
async fn a_topics_partition_count_is_written_down_with_the_records_and_a_change_is_told() {
    let site = site("partition_count").await;
    let topic = site.topics.first().expect("a site has topics").clone();

    let told = publish_one(&site, &topic, 1).await;
    assert!(!told.contains("number of partitions"), "{told}");
    assert_eq!(written_down(&site, &topic).await, [3]);

    let told = publish_one(&site, &topic, 2).await;
    assert!(!told.contains("number of partitions"), "{told}");
    assert_eq!(written_down(&site, &topic).await, [3], "only a change is written");

    add_partitions(&site, &topic, 6).await;
    let mut relay = site.relay(Variant::default());
    relay.says("leading", LEAD_MAX).await;
    publish(&site, &topic, &["k"], 3).await;
    relay.says(CHANGED, PUBLISH_MAX).await;

    // While it runs; from then on all producers go by the new count.
    add_partitions(&site, &topic, 13).await;
    relay.says_times(CHANGED, 2, PUBLISH_MAX).await;
    let keys: Vec<String> = (0..8).map(|number| format!("new-{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    for round in 1..=4 {
        publish(&site, &topic, &keys, 3 + 8 * round).await;
    }
    stop(&mut relay).await;
    assert_eq!(relay.log().matches(CHANGED).count(), 2, "{}", relay.log());
    assert_eq!(written_down(&site, &topic).await, [3, 6, 13]);
    let mut of_key = BTreeMap::<_, BTreeSet<i32>>::new();
    for record in site.read_to_end().await {
        if record.key.as_deref().is_some_and(|key| key.starts_with(b"new-")) {
            of_key.entry(record.key).or_default().insert(record.partition);
        }
    }
    assert!(of_key.values().all(|partitions| partitions.len() == 1), "{of_key:?}");
    assert!(of_key.values().flatten().any(|partition| *partition >= 6), "{of_key:?}");
}

const CHANGED: &str = "the number of partitions has changed";

async fn add_partitions(site: &Site, topic: &str, count: usize) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &site.brokers);
    let admin: AdminClient<DefaultClientContext> = config.create().expect("the settings are valid");
    let more = NewPartitions::new(topic, count);
    let answers = admin.create_partitions([&more], &AdminOptions::new()).await;
    answers.expect("the broker answers").pop().expect("one answer").expect("partitions are added");
}

/// Has a relay publish one more message; answers with what it said.
async fn publish_one(site: &Site, topic: &str, published: usize) -> String {
    let mut relay = site.relay(Variant::default());
    relay.says("leading", LEAD_MAX).await;
    publish(site, topic, &["k"], published).await;
    stop(&mut relay).await;
    relay.log()
}

/// Writes a message of each key, and waits until so many are published in all.
async fn publish(site: &Site, topic: &str, keys: &[&str], published: usize) {
    let mut connection = site.connect().await;
    for key in keys {
        let message = Message::builder(topic, "order.placed.v1").source("/orders").key(*key);
        let message = message.json(&published).build().expect("it keeps every rule");
        tailrace_outbox::write(&mut connection, &message).await.expect("it is written");
    }
    site.read_until(PUBLISH_MAX, move |seen| seen.len() >= published).await;
}

/// The counts of a topic in the relay's checkpoint topic, oldest first.
async fn written_down(site: &Site, topic: &str) -> Vec<u64> {
    let key = format!("partitions:{topic}");
    let records = site.read_checkpoint_topic().await;
    let ours = records.iter().filter(|record| record.key.as_deref() == Some(key.as_bytes()));
    let count = |value: &[u8]| {
        let value: serde_json::Value = serde_json::from_slice(value).expect("it is json");
        let number = |name: &str| value.get(name).and_then(serde_json::Value::as_u64);
        assert_eq!(number("version"), Some(1));
        number("partitions").expect("it is a count")
    };
    ours.map(|record| count(record.value.as_deref().expect("a count"))).collect()
}
