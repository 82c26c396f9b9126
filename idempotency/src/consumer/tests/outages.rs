//! A database that is down while a consumer runs, and what shares its transaction.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;

/// The way to Postgres, which can be closed: connections end, and each new one as soon as it is made.
struct Door {
    port: u16,
    open: watch::Sender<bool>,
    knocks: Arc<AtomicU64>,
}

impl Door {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (open, opened) = watch::channel(true);
        let knocks = Arc::new(AtomicU64::new(0));
        let door = Self { port: listener.local_addr().unwrap().port(), open, knocks };
        let knocks = Arc::clone(&door.knocks);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                knocks.fetch_add(1, Ordering::Relaxed);
                let mut opened = opened.clone();
                tokio::spawn(async move {
                    if !*opened.borrow() {
                        return;
                    }
                    let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = opened.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        door
    }

    fn pool(&self, bed: &Bed) -> PgPool {
        let options: sqlx::postgres::PgConnectOptions = bed.database.url().parse().unwrap();
        PgPool::connect_lazy_with(options.host("127.0.0.1").port(self.port))
    }

    fn knocks(&self) -> u64 {
        self.knocks.load(Ordering::Relaxed)
    }
}

/// Longer away than the group waits for a member that does not poll.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_database_is_not_bombarded_and_the_consumer_stays_in_its_group_and_goes_on() {
    const LANES: u64 = 8;
    let bed = bed("outage_door").await;
    let topic = bed.topic("outage_door", 4).await;
    produce(bed.brokers(), &topic, &records(200, 40));
    let door = Door::to(bed.stack.postgres().port()).await;
    let config = Config::new(&topic, bed.brokers(), door.pool(&bed))
        .lanes(2)
        .retry_for(Duration::from_millis(500))
        .group_protocol(GroupProtocol::Classic)
        .kafka_property("session.timeout.ms", "3000")
        .kafka_property("heartbeat.interval.ms", "300")
        .kafka_property("max.poll.interval.ms", "3000");
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", effect));
    running.applied(200).await;

    door.open.send_replace(false);
    assert!(running.health.faults().is_empty());
    let (since, before) = (Instant::now(), door.knocks());
    produce(bed.brokers(), &topic, &records(2200, 40)[200..]);
    until(async || running.counters.report().outages == 1).await;
    until(async || since.elapsed() > Duration::from_secs(5)).await;
    let (knocks, seconds) = (door.knocks() - before, since.elapsed().as_secs());
    let faults = running.health.faults().join("; ");
    let hinted = ownership::committed_in_kafka(&bed, &topic, &topic);
    let reached = "SELECT min(next_offset) FROM tailrace.consumer_progress WHERE partition = 0";
    let reached = bed.count(reached).await;
    door.open.send_replace(true);
    running.applied(2200).await;
    let report = running.stop().await.unwrap();

    // Each lane may find out for itself, twice; then one tries each second.
    assert!(knocks <= 2 * LANES + 2 * seconds, "{knocks} in {seconds} s");
    assert!(faults.contains("postgres has been away"), "{faults}");
    assert_eq!(hinted, Some(reached), "no offset is committed for what waits");
    assert_eq!((report.outages, report.fenced, report.duplicates), (1, 0, 0));
    assert_eq!(bed.count("SELECT max(epoch) FROM tailrace.consumer_progress").await, 1);
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
}

/// A lane that was idle when its connection died, and finds the gate shut, does not shut it once more afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn outages_one_behind_the_other_are_each_told_once() {
    const OUTAGES: u64 = 4;
    let bed = bed("outage_series").await;
    let topic = bed.topic("outage_series", 4).await;
    let door = Door::to(bed.stack.postgres().port()).await;
    let config = Config::new(&topic, bed.brokers(), door.pool(&bed)).lanes(2);
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", effect));
    let records = records(100 * OUTAGES.cast_signed(), 40);

    for (outage, records) in (1..).zip(records.chunks(100)) {
        let (before, meanwhile) = records.split_at(50);
        produce(bed.brokers(), &topic, before);
        running.applied(100 * outage - 50).await;
        door.open.send_replace(false);
        produce(bed.brokers(), &topic, meanwhile);
        until(async || !running.health.faults().is_empty()).await;
        door.open.send_replace(true);
        running.applied(100 * outage).await;
        until(async || running.health.faults().is_empty()).await;
        assert_eq!(running.counters.report().outages, outage);
    }

    running.stop().await.unwrap();
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
}

/// Partitions that are assigned meanwhile are owned when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_assigned_while_the_database_is_down_are_owned_when_it_is_back() {
    let bed = bed("outage_assigned").await;
    let topic = bed.topic("outage_assigned", 4).await;
    produce(bed.brokers(), &topic, &records(200, 40));
    let door = Door::to(bed.stack.postgres().port()).await;
    let member = || {
        let config = Config::new(&topic, bed.brokers(), door.pool(&bed));
        start(Consumer::new(config).topic(&topic).on("numbered.v1", effect))
    };
    let (first, second) = (member(), member());
    let owned = "SELECT count(*) FROM tailrace.consumer_progress WHERE epoch > 1";
    until(async || bed.count(owned).await > 0).await;
    until(async || bed.count("SELECT count(*) FROM effect").await == 200).await;

    door.open.send_replace(false);
    // Its partitions go to the other one.
    first.stop().await.unwrap();
    produce(bed.brokers(), &topic, &records(400, 40));
    until(async || second.counters.report().outages == 1).await;
    door.open.send_replace(true);
    until(async || bed.count("SELECT count(*) FROM effect").await == 600).await;
    second.stop().await.unwrap();

    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn effect_claim_and_progress_are_written_by_one_transaction() {
    let bed = bed("outage_one").await;
    let topic = bed.topic("outage_one", 1).await;
    produce(bed.brokers(), &topic, &records(50, 5));

    let config = Config::new(&topic, bed.brokers(), bed.pool.clone()).batch_records_max(10);
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", effect));
    running.applied(50).await;
    running.stop().await.unwrap();

    let apart = "SELECT count(*) FROM effect
        LEFT JOIN tailrace.processed_message AS claim
            ON claim.message_id = effect.message_id AND claim.xmin = effect.xmin
        WHERE claim.message_id IS NULL";
    assert_eq!(bed.count(apart).await, 0);
    let last = "SELECT count(*) FROM effect JOIN tailrace.consumer_progress AS reached ON reached.xmin = effect.xmin";
    assert!(bed.count(last).await > 0);
}
