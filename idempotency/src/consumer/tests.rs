//! The consumer against a real Kafka and a real Postgres.

mod batches;
mod brokers;
mod calls;
mod company;
mod faults;
mod lanes;
mod leaving;
mod outages;
mod overrun;
mod ownership;
mod parking;
mod position;
mod topics;
mod watching;

use std::sync::Arc;

use rdkafka::producer::Producer as _;
use serde::Deserialize;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use crate::error::BoxError;
use crate::fixture::{
    Bed, DEADLINE, Outgoing, installed, numbered, produce, producer, send, until,
};
use crate::handler::{Cx, Outcome};

use super::*;

#[derive(Deserialize)]
struct Numbered {
    number: i64,
}

/// What an effect is here: one more row. Nothing in the table hinders a second row for the same message.
const EFFECT: &str = "CREATE TABLE effect (
    n bigserial PRIMARY KEY, message_id uuid, key text, number bigint, partition int)";

async fn effect<S>(cx: Cx<'_, S>, message: Numbered) -> Result<Outcome, BoxError> {
    let key = cx.meta.key().and_then(|key| str::from_utf8(key).ok());
    sqlx::query("INSERT INTO effect (message_id, key, number, partition) VALUES ($1, $2, $3, $4)")
        .bind(cx.meta.message_id().as_uuid())
        .bind(key)
        .bind(message.number)
        .bind(cx.meta.position().partition)
        .execute(cx.conn)
        .await?;
    Ok(Outcome::Done)
}

async fn bed(name: &str) -> Bed {
    let bed = installed(name).await;
    bed.execute(EFFECT).await;
    bed
}

/// A consumer that runs until told to stop.
struct Started {
    counters: Counters,
    health: Health,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<Report, Error>>,
}

fn start<S: Send + Sync + 'static>(consumer: Consumer<S>) -> Started {
    let (counters, health) = (consumer.counters(), consumer.health());
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(consumer.run(async move { drop(stopped.await) }));
    Started { counters, health, stop, task }
}

impl Started {
    async fn applied(&self, count: u64) {
        until(async || self.counters.report().applied >= count).await;
    }

    async fn delivered(&self, count: u64) {
        until(async || {
            let Report { delivered, applied, duplicates, skipped, parked, dead_lettered, .. } =
                self.counters.report();
            let ended = applied + duplicates + skipped + parked + dead_lettered;
            delivered >= count && ended >= count
        })
        .await;
    }

    async fn stop(self) -> Result<Report, Error> {
        self.stop.send(()).expect("the consumer ended by itself");
        tokio::time::timeout(DEADLINE, self.task).await.expect("the consumer does not end").unwrap()
    }

    async fn end(self) -> Error {
        let ended = tokio::time::timeout(DEADLINE, self.task).await;
        ended.expect("the consumer does not end").unwrap().unwrap_err()
    }
}

fn consumer(bed: &Bed, name: &str, topic: &str) -> Consumer {
    Consumer::new(Config::new(name, bed.brokers(), bed.pool.clone()))
        .topic(topic)
        .on("numbered.v1", effect)
}

/// Records of so many keys in turn, numbered per topic.
fn records(count: i64, keys: i64) -> Vec<Outgoing> {
    (0..count).map(|number| numbered(&format!("key-{}", number % keys), number)).collect()
}

const DOUBLE_EFFECTS: &str = "SELECT count(*) - count(DISTINCT message_id) FROM effect";
const ORDER_VIOLATIONS: &str = "SELECT count(*) FROM (
    SELECT number < lag(number) OVER (PARTITION BY key ORDER BY n) AS late FROM effect) AS pairs WHERE late";

#[tokio::test(flavor = "multi_thread")]
async fn every_record_delivered_twice_is_applied_once() {
    let bed = bed("consumer_twice").await;
    let topic = bed.topic("consumer_twice", 3).await;
    let records = records(1000, 17);
    produce(bed.brokers(), &topic, &records);
    produce(bed.brokers(), &topic, &records);

    let running = start(consumer(&bed, &topic, &topic));
    running.delivered(2000).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.delivered, report.applied, report.duplicates), (2000, 1000, 1000));
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 1000);
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_sees_state_meta_data_and_cause() {
    struct App {
        prefix: &'static str,
    }
    async fn handler(
        cx: Cx<'_, App>,
        _: Option<serde_json::Value>,
    ) -> Result<Outcome, sqlx::Error> {
        let cause = cx.cause();
        let told = format!(
            "{} {:?} {:?} {:?} {:?}",
            cx.state.prefix,
            cx.meta.source(),
            cx.meta.sequence(),
            cx.meta.header("tenant").map(<[u8]>::len),
            cause.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
        );
        assert!(cx.meta.timestamp().is_some());
        sqlx::query("INSERT INTO effect (key) VALUES ($1)").bind(told).execute(cx.conn).await?;
        Ok(Outcome::Done)
    }
    let bed = bed("consumer_cx").await;
    let topic = bed.topic("consumer_cx", 1).await;
    let record = numbered("k", 1)
        .with("ce_sequence", "r1:0001")
        .with("tenant", "seven")
        .with("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    produce(bed.brokers(), &topic, std::slice::from_ref(&record));

    let config =
        Config::new(&topic, bed.brokers(), bed.pool.clone()).state(App { prefix: "north" });
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", handler));
    running.applied(1).await;
    running.stop().await.unwrap();

    let told: String =
        sqlx::query_scalar("SELECT key FROM effect").fetch_one(&bed.pool).await.unwrap();
    let id = record.id();
    assert_eq!(
        told,
        format!(
            "north Some(\"/test\") Some(\"r1:0001\") Some(5) [\"ce_correlationid={id}\", \"ce_causationid={id}\", \
             \"traceparent=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\"]"
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn types_without_a_handler_are_skipped_without_a_claim_or_halt() {
    let bed = bed("consumer_unhandled").await;
    let topic = bed.topic("consumer_unhandled", 1).await;
    let foreign = numbered("k", 2).with("ce_type", "foreign.v1");
    produce(bed.brokers(), &topic, &[numbered("k", 1), foreign.clone(), numbered("k", 3)]);

    let running = start(consumer(&bed, &topic, &topic));
    running.delivered(3).await;
    let report = running.stop().await.unwrap();
    let other = format!("{topic}-halting");
    let halted = start(consumer(&bed, &other, &topic).unhandled(Unhandled::Halt)).end().await;

    assert_eq!((report.applied, report.skipped), (2, 1));
    assert_eq!(bed.count("SELECT count(*) FROM tailrace.processed_message").await, 2);
    assert_eq!((halted.kind(), halted.message_id()), (Kind::Unhandled, Some(foreign.id())));
    assert_eq!(halted.position().unwrap().offset.get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn aborted_transactions_are_not_seen_and_gaps_are_passed() {
    let bed = bed("consumer_gaps").await;
    let topic = bed.topic("consumer_gaps", 1).await;
    let producer = producer(bed.brokers(), Some(&topic));
    producer.init_transactions(DEADLINE).unwrap();
    for (number, commit) in [(1, true), (2, false), (3, true)] {
        producer.begin_transaction().unwrap();
        send(&producer, &topic, &[numbered("k", number)]);
        if commit {
            producer.commit_transaction(DEADLINE).unwrap();
        } else {
            producer.abort_transaction(DEADLINE).unwrap();
        }
    }

    let running = start(consumer(&bed, &topic, &topic));
    running.applied(2).await;
    running.stop().await.unwrap();

    assert_eq!(bed.count("SELECT sum(number)::bigint FROM effect").await, 4);
    // Offsets 0 and 4 are the messages; 1, 3 and 5 end transactions, 2 was aborted.
    assert_eq!(bed.count("SELECT next_offset FROM tailrace.consumer_progress").await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_at_the_end_stays_there_over_a_restart() {
    let bed = bed("consumer_latest").await;
    let topic = bed.topic("consumer_latest", 1).await;
    produce(bed.brokers(), &topic, &records(10, 1));
    let latest = || {
        let config =
            Config::new(&topic, bed.brokers(), bed.pool.clone()).start(config::Start::Latest);
        Consumer::new(config).topic(&topic).on("numbered.v1", effect)
    };

    let first = start(latest());
    until(async || bed.count("SELECT count(*) FROM tailrace.consumer_progress").await == 1).await;
    first.stop().await.unwrap();
    produce(bed.brokers(), &topic, &[numbered("k", 100)]);
    let second = start(latest());
    second.applied(1).await;
    second.stop().await.unwrap();

    assert_eq!(bed.count("SELECT sum(number)::bigint FROM effect").await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_finishes_the_running_batch_and_tells_kafka() {
    struct Gate {
        entered: Semaphore,
        open: Semaphore,
    }
    async fn gated(cx: Cx<'_, Arc<Gate>>, message: Numbered) -> Result<Outcome, BoxError> {
        cx.state.entered.add_permits(1);
        cx.state.open.acquire().await?.forget();
        effect(cx, message).await
    }
    let bed = bed("consumer_graceful").await;
    let topic = bed.topic("consumer_graceful", 1).await;
    produce(bed.brokers(), &topic, &records(30, 3));
    let gate = Arc::new(Gate { entered: Semaphore::new(0), open: Semaphore::new(0) });
    let config = Config::new(&topic, bed.brokers(), bed.pool.clone())
        .batch_records_max(10)
        .state(Arc::clone(&gate));

    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", gated));
    gate.entered.acquire().await.unwrap().forget();
    running.stop.send(()).unwrap();
    gate.open.add_permits(30);
    let report = tokio::time::timeout(DEADLINE, running.task).await.unwrap().unwrap().unwrap();

    let applied = i64::try_from(report.applied).unwrap();
    assert!(applied >= 1, "{report:?}");
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, applied);
    assert_eq!(bed.count("SELECT next_offset FROM tailrace.consumer_progress").await, applied);
    assert_eq!(ownership::committed_in_kafka(&bed, &topic, &topic), Some(applied));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_slower_than_kafka_pauses_its_partition_and_loses_nothing() {
    let bed = bed("consumer_pause").await;
    let topic = bed.topic("consumer_pause", 2).await;
    produce(bed.brokers(), &topic, &records(30_000, 40));

    let running = start(consumer(&bed, &topic, &topic));
    running.applied(30_000).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.duplicates), (30_000, 0));
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_consumer_rolls_back_and_leaves_its_partitions_to_the_next() {
    async fn hangs(cx: Cx<'_, Arc<Semaphore>>, message: Numbered) -> Result<Outcome, BoxError> {
        let entered = cx.state;
        effect(Cx { conn: cx.conn, meta: cx.meta, state: &() }, message).await?;
        entered.add_permits(1);
        std::future::pending().await
    }
    let bed = bed("consumer_dropped").await;
    let topic = bed.topic("consumer_dropped", 1).await;
    produce(bed.brokers(), &topic, &records(10, 2));
    let entered = Arc::new(Semaphore::new(0));
    let config = Config::new(&topic, bed.brokers(), bed.pool.clone()).state(Arc::clone(&entered));

    let hanging = start(Consumer::new(config).topic(&topic).on("numbered.v1", hangs));
    entered.acquire().await.unwrap().forget();
    hanging.task.abort();
    let running = start(consumer(&bed, &topic, &topic));
    running.applied(10).await;
    running.stop().await.unwrap();

    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 10);
}
