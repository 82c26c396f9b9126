//! Servers that die under a relay that goes on.

use std::time::Duration;

use rustix::process::Signal;
use sqlx::{Connection, Executor};
use tailrace_cdc_relay::Milestone;
use tailrace_stack::{Needs, Stack};
use tests::crash_point::CrashPoint;
use tests::process::Process;
use tests::writers::Dice;
use tests::{Site, Variant};

use crate::consumer_zombie;
use crate::run::{LEAD_MAX, PUBLISH_MAX, all_is_well, node, published, stop};

/// What a consumer says when it is given partitions.
const ASSIGNED: &str = " assigned partitions=";

/// A server that nobody keeps from stopping has stopped by then.
const SERVER_STOP_MAX: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_relay_survives_the_death_of_kafka_and_of_postgres() {
    let stack = Stack::start(Needs::BOTH.breakable()).await.unwrap();
    let site = Site::new(&stack, "outages", 2, &node()).await;
    site.prepare_writers().await;
    let mut dice = Dice::new("outages");
    let first = CrashPoint::at(Milestone::Produced, 1).stop();
    let mut relay = site.relay(Variant { die_at: Some(first), ..Variant::default() });
    relay.says("leading", LEAD_MAX).await;

    // Kafka dies with a transaction open. Its death inside a commit has a proof of its own, `kafka-crash`.
    let mut written = site.write(60, 4, &mut dice).await;
    relay.says("reached", LEAD_MAX).await;
    stack.kafka().kill().await.unwrap();
    relay.signal(Signal::CONT);
    written.add(site.write(60, 4, &mut dice).await);
    relay.says("trying again", LEAD_MAX).await;
    // A fast shutdown of Postgres waits for who reads its log; nobody does while Kafka is away.
    let stopped = tokio::time::timeout(SERVER_STOP_MAX, stack.postgres().stop()).await;
    assert!(matches!(stopped, Ok(Ok(()))), "{stopped:?}:\n{}", relay.log());
    stack.postgres().restart().await.unwrap();
    stack.kafka().restart().await.unwrap();
    written.add(site.write(12, 2, &mut dice).await);
    published(&site).await;

    // Postgres dies when the relay is in full swing, with more being written.
    let before = site.expected().await.len();
    let postgres_dies = async {
        site.read_until(PUBLISH_MAX, move |seen| seen.len() >= before + 50).await;
        stack.postgres().kill().await.unwrap();
    };
    written.add(site.write_until_cut(4, &mut dice, postgres_dies).await);
    stack.postgres().restart().await.unwrap();
    written.add(site.write(12, 2, &mut dice).await);
    published(&site).await;

    // It is the same process all the while.
    stop(&mut relay).await;
    all_is_well(&site, &written).await;
}

/// One of two consumers ends while Postgres is stopped, so that its partitions are assigned without a database.
#[tokio::test]
async fn consumers_wait_for_a_postgres_that_is_stopped_and_go_on_when_it_is_back() {
    let stack = Stack::start(Needs::BOTH.breakable()).await.unwrap();
    let site = Site::new(&stack, "outages_consumers", 1, &node()).await;
    let mut connection = site.connect().await;
    tailrace_idempotency::schema::install(&mut connection).await.unwrap();
    connection.execute("CREATE TABLE effect (message_id uuid, number bigint)").await.unwrap();
    connection.close().await.unwrap();
    let topic = site.topics.first().expect("a site has topics");
    let consumer = || {
        let settings = [
            ("--database-url", site.url.as_str()),
            ("--kafka-brokers", &site.brokers),
            ("--group", "shop"),
            ("--topic", topic),
            ("--session-ms", "6000"),
            ("--lanes", "2"),
        ];
        let words = settings.iter().flat_map(|(name, value)| [*name, *value]);
        Process::start(&node(), ["consumer"].into_iter().chain(words))
    };
    let (mut first, mut second) = (consumer(), consumer());
    consumer_zombie::produce(&site.brokers, topic, 0..100);
    consumer_zombie::applied(&site.pool, 100).await;

    stack.postgres().stop().await.unwrap();
    consumer_zombie::produce(&site.brokers, topic, 100..300);
    second.says("postgres is away", LEAD_MAX).await;
    stop(&mut first).await;
    second.says("partitions are owned once postgres is back", LEAD_MAX).await;
    stack.postgres().restart().await.unwrap();
    second.says("postgres is back", LEAD_MAX).await;
    consumer_zombie::applied(&site.pool, 300).await;

    // Who is asked to leave while it tries to own what it was given leaves that to others.
    let mut third = consumer();
    third.says(ASSIGNED, LEAD_MAX).await;
    stack.postgres().stop().await.unwrap();
    let assigned = second.log().matches(ASSIGNED).count();
    stop(&mut third).await;
    second.says_times(ASSIGNED, assigned + 1, LEAD_MAX).await;
    stop(&mut second).await;
    stack.postgres().restart().await.unwrap();

    let doubled =
        "SELECT count(*) - count(DISTINCT message_id), count(DISTINCT number) FROM effect";
    let (doubled, numbers): (i64, i64) =
        sqlx::query_as(doubled).fetch_one(&site.pool).await.unwrap();
    assert_eq!((doubled, numbers), (0, 300), "{}", second.log());
}
