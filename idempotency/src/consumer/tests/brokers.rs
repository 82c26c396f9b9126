//! Brokers that fall silent, or whose records arrive damaged: a Kafka behind a proxy of its own.

use rdkafka::producer::BaseProducer;
use tailrace_stack::{Needs, Stack};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use super::*;

/// Its proxy belongs to one test at a time.
async fn proxied() -> MutexGuard<'static, Stack> {
    static STACK: OnceCell<Mutex<Stack>> = OnceCell::const_new();
    let start = async || Mutex::new(Stack::start(Needs::KAFKA.proxied()).await.unwrap());
    STACK.get_or_init(start).await.lock().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_that_falls_silent_is_a_fault_until_it_answers() {
    let stack = proxied().await;
    let (kafka, broker) = (stack.kafka(), stack.kafka().broker(0));
    let bed = bed("brokers_silent").await;
    let topic = kafka.fresh_topic("brokers_silent", 1).await.unwrap();
    produce(kafka.brokers(), &topic, &records(10, 2));
    let config = Config::new(&topic, kafka.proxied_brokers(), bed.pool.clone());
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", effect));
    running.applied(10).await;
    until(async || running.health.faults().is_empty()).await;

    broker.proxy().hold();
    let silent = "kafka has not answered for ";
    until(async || running.health.faults().iter().any(|fault| fault.starts_with(silent))).await;
    let is_live = running.health.is_live();
    broker.proxy().pass();
    until(async || running.health.faults().is_empty()).await;
    produce(kafka.brokers(), &topic, &records(10, 2));
    running.applied(20).await;
    running.stop().await.unwrap();

    assert!(is_live, "to restart it would mend nothing");
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
}

/// With this begins what is compressed by LZ4 (its frame format, "magic number"). A client that checks sums instead
/// (`check.crcs`) does not get over a wrong one: librdkafka 2.12.1 reads on at a wrong place then.
const LZ4: &str = "\x04\"M\x18";

/// The client counts what it complains of as handed over, and after a rebalance goes on behind it.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_client_has_complained_of_is_read_again_also_after_a_rebalance() {
    let stack = proxied().await;
    let (kafka, broker) = (stack.kafka(), stack.kafka().broker(0));
    let bed = bed("brokers_damaged").await;
    let topic = kafka.fresh_topic("brokers_damaged", 4).await.unwrap();
    let records = records(400, 40);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.brokers())
        .set("compression.codec", "lz4")
        .create()
        .unwrap();
    send(&producer, &topic, &records[..200]);
    let member = || {
        let config = Config::new(&topic, kafka.proxied_brokers(), bed.pool.clone())
            .group_protocol(GroupProtocol::Consumer);
        start(Consumer::new(config).topic(&topic).on("numbered.v1", effect))
    };
    let first = member();
    first.applied(200).await;

    broker.proxy().corrupt(LZ4);
    send(&producer, &topic, &records[200..]);
    // Each partition's several times.
    until(async || broker.proxy().corrupted() >= 40).await;
    let second = member();
    let owned_twice = "SELECT count(*) FROM tailrace.consumer_progress WHERE epoch > 1";
    until(async || bed.count(owned_twice).await > 0).await;
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 200);
    broker.proxy().pass();
    until(async || bed.count("SELECT count(DISTINCT message_id) FROM effect").await == 400).await;
    first.stop().await.unwrap();
    second.stop().await.unwrap();

    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
}
