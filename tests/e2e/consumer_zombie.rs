//! A consumer that is stopped inside its transaction, and the one that takes its partition over.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rustix::process::Signal;
use sqlx::PgPool;
use tailrace_idempotency::schema;
use tailrace_stack::Stack;
use tests::process::Process;
use uuid::Uuid;

use crate::run::{LEAD_MAX, STOP_MAX, node, stop};

/// All messages have their effect by then.
const APPLY_MAX: Duration = Duration::from_secs(90);

pub(crate) fn produce(brokers: &str, topic: &str, numbers: std::ops::Range<i64>) {
    produce_as("numbered.v1", brokers, topic, numbers);
}

pub(crate) fn produce_as(
    message_type: &str,
    brokers: &str,
    topic: &str,
    numbers: std::ops::Range<i64>,
) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a producer is made");
    for number in numbers {
        let id = Uuid::now_v7().to_string();
        let headers = [("ce_id", id.as_str()), ("ce_type", message_type)]
            .into_iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header { key, value: Some(value) })
            });
        let (key, payload) = (format!("key-{}", number % 7), format!(r#"{{"number":{number}}}"#));
        let record = BaseRecord::to(topic).key(&key).payload(&payload).headers(headers);
        producer.send(record).map_err(|(error, _)| error).expect("the queue has room");
    }
    producer.flush(APPLY_MAX).expect("the broker takes the records");
}

pub(crate) async fn applied(pool: &PgPool, count: i64) {
    let looking = async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            let found: i64 = sqlx::query_scalar("SELECT count(*) FROM effect")
                .fetch_one(pool)
                .await
                .expect("the effects are counted");
            if found >= count {
                return;
            }
        }
    };
    tokio::time::timeout(APPLY_MAX, looking).await.expect("the messages are applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_stopped_inside_its_transaction_is_ended_by_the_next_and_doubles_nothing() {
    let stack = Stack::shared().await;
    let database = stack.postgres().fresh_database("consumer_zombie").await.unwrap();
    let pool = PgPool::connect(database.url()).await.unwrap();
    schema::install(&mut pool.acquire().await.unwrap()).await.unwrap();
    sqlx::raw_sql("CREATE TABLE effect (message_id uuid, number bigint)")
        .execute(&pool)
        .await
        .unwrap();
    let topic = stack.kafka().fresh_topic("consumer_zombie", 1).await.unwrap();
    let brokers = stack.kafka().brokers();
    produce(brokers, &topic, 0..50);
    // The shortest session that brokers allow by default.
    let start = |more: &[&str]| {
        let arguments = [
            "consumer",
            "--database-url",
            database.url(),
            "--kafka-brokers",
            brokers,
            "--group",
            &topic,
            "--topic",
            &topic,
            "--session-ms",
            "6000",
            "--batch-records",
            "10",
            "--lanes",
            "2",
        ];
        Process::start(&node(), arguments.iter().chain(more))
    };

    // The server would give the zombie up after ten minutes.
    let mut zombie = start(&["--stop-at", "25", "--rebalance-deadline-ms", "600000"]);
    zombie.says("stopping inside the transaction", LEAD_MAX).await;
    let mut next = start(&["--rebalance-deadline-ms", "4000"]);
    applied(&pool, 50).await;
    zombie.signal(Signal::CONT);
    // Whether it hears of it from the group or meets the fence before.
    zombie.says("lost=true", LEAD_MAX).await;
    produce(brokers, &topic, 50..90);
    applied(&pool, 90).await;
    stop(&mut next).await;
    // It may have the partition again by now; in any case it ends well.
    zombie.signal(Signal::TERM);
    let ended = zombie.ends(STOP_MAX * 2).await;

    assert!(next.log().contains("was ended"), "{}", next.log());
    assert!(ended.success(), "{}", zombie.log());
    let doubled =
        "SELECT count(*) - count(DISTINCT message_id), count(DISTINCT number) FROM effect";
    let (doubled, numbers): (i64, i64) = sqlx::query_as(doubled).fetch_one(&pool).await.unwrap();
    assert_eq!((doubled, numbers), (0, 90));
}
