//! Several lanes of a partition.

use super::*;

fn with_lanes(bed: &Bed, topic: &str, lanes: u16) -> Consumer {
    let config =
        Config::new(topic, bed.brokers(), bed.pool.clone()).lanes(lanes).batch_records_max(20);
    Consumer::new(config).topic(topic).on("numbered.v1", effect)
}

const LOWEST: &str = "SELECT min(coalesce(next_offset, 0)) FROM tailrace.consumer_progress";
const ROWS: &str = "SELECT count(*) FROM tailrace.consumer_progress";
const EPOCHS: &str = "SELECT count(DISTINCT epoch) FROM tailrace.consumer_progress";

#[tokio::test(flavor = "multi_thread")]
async fn lanes_apply_each_record_once_in_order_per_key_and_every_lane_moves_on() {
    let bed = bed("lanes_order").await;
    let topic = bed.topic("lanes_order", 1).await;
    let records = records(2000, 40);
    produce(bed.brokers(), &topic, &records);
    produce(bed.brokers(), &topic, &records[..300]);
    // Records of one key: the other lanes have none of them.
    let last: Vec<_> = (2000..2100).map(|number| numbered("key-7", number)).collect();
    produce(bed.brokers(), &topic, &last);

    let running = start(with_lanes(&bed, &topic, 4));
    running.delivered(2400).await;
    until(async || bed.count(LOWEST).await == 2400).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.duplicates), (2100, 300));
    assert_eq!((bed.count(ROWS).await, bed.count(EPOCHS).await), (4, 1));
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
    assert_eq!(ownership::committed_in_kafka(&bed, &topic, &topic), Some(2400));
}

/// Lanes that end at different places, as after a crash, and come back as more or fewer. Claims are away, so that
/// a record which is only suppressed by its id would be applied twice.
#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_lanes_neither_loses_nor_doubles_even_without_claims() {
    let bed = bed("lanes_changed").await;
    let topic = bed.topic("lanes_changed", 1).await;
    produce(bed.brokers(), &topic, &records(600, 40));
    // The third lane stays where it is: its records wait for a lock.
    let lanes = Lanes::new(3);
    let stuck = (0..40).map(|key| format!("key-{key}"));
    let stuck: Vec<_> =
        stuck.filter(|key| lanes.of(Some(key.as_bytes()), crate::Offset::new(0)) == 2).collect();
    bed.execute("CREATE TABLE stuck (key text PRIMARY KEY)").await;
    sqlx::query("INSERT INTO stuck SELECT unnest($1::text[])")
        .bind(&stuck)
        .execute(&bed.pool)
        .await
        .unwrap();
    async fn waits<S: Sync>(cx: Cx<'_, S>, message: Numbered) -> Result<Outcome, BoxError> {
        let key = cx.meta.key().and_then(|key| str::from_utf8(key).ok());
        sqlx::query("SELECT FROM stuck WHERE key = $1 FOR UPDATE")
            .bind(key)
            .execute(&mut *cx.conn)
            .await?;
        effect(cx, message).await
    }
    let mut lock = bed.begin().await;
    sqlx::query("SELECT FROM stuck FOR UPDATE").execute(&mut *lock).await.unwrap();
    let config = Config::new(&topic, bed.brokers(), bed.pool.clone())
        .lanes(3)
        .batch_records_max(10)
        .shutdown_deadline(Duration::from_millis(500));
    let first = start(Consumer::new(config).topic(&topic).on("numbered.v1", waits));
    let free = (0..600).filter(|n| !stuck.contains(&format!("key-{}", n % 40))).count();
    first.applied(u64::try_from(free).unwrap()).await;
    first.stop().await.unwrap();
    drop(lock);

    for (lanes, more) in [(5, 0), (2, 40), (1, 40)] {
        bed.execute("TRUNCATE tailrace.processed_message").await;
        produce(bed.brokers(), &topic, &records(more, 40));
        let running = start(with_lanes(&bed, &topic, lanes));
        let end = bed.end_of(&topic);
        until(async || (bed.count(ROWS).await, bed.count(LOWEST).await) == (i64::from(lanes), end))
            .await;
        running.stop().await.unwrap();
    }

    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 680);
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
    let former = "SELECT count(*) FROM tailrace.consumer_progress WHERE former_lanes IS NOT NULL";
    assert_eq!(bed.count(former).await, 0);
}
