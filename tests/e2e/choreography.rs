//! Sagas without an orchestrator over three services in databases of their own, on relays and Kafka.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rustix::process::Signal;
use sqlx::{PgPool, Row};
use tailrace_idempotency::inbox::{self, By, Entry};
use tailrace_idempotency::{Answer, BoxError, Breaker, CallCx, Config};
use tailrace_saga::SagaId;
use tailrace_saga::choreography::Reaction;
use tailrace_saga::participant::{Cx, Outside};
use tailrace_saga::story::{Observer, timeline};
use tailrace_stack::{Database, Stack, unique};
use tests::choreography_shop::{
    CHOREOGRAPHED, CHOREOGRAPHED_TABLES, OrderEvent, choreography, service,
};
use tests::process::Process;

use crate::run::{LEAD_MAX, node, stop};

/// Everything has come to rest by then.
const END_MAX: Duration = Duration::from_secs(90);
/// What nobody waits for.
const LONG: Duration = Duration::from_secs(600);

struct Shop {
    prefix: String,
    brokers: String,
    homes: BTreeMap<&'static str, (Database, PgPool)>,
    _relays: Vec<Process>,
}

impl Shop {
    async fn new(name: &str) -> Self {
        let stack = Stack::shared().await;
        let brokers = stack.kafka().brokers().to_owned();
        let prefix = format!("{}.", unique(name));
        let mut homes = BTreeMap::new();
        let mut relays = Vec::new();
        for service in CHOREOGRAPHED {
            let name = format!("{name}_{service}");
            let database = stack.postgres().fresh_database(&name).await.expect("the stack serves");
            let pool = PgPool::connect(database.url()).await.expect("the stack serves");
            let mut conn = pool.acquire().await.expect("the stack serves");
            tailrace_idempotency::schema::install(&mut conn).await.expect("the stack serves");
            tailrace_saga::schema::install(&mut conn).await.expect("the stack serves");
            sqlx::raw_sql(CHOREOGRAPHED_TABLES)
                .execute(&mut *conn)
                .await
                .expect("the stack serves");
            let slot = unique(&name);
            let place = ["relay", "--database-url", database.url(), "--kafka-brokers", &brokers];
            let named = ["--slot", &slot, "--relay-id", &slot];
            relays.push(Process::start(&node(), [&place[..], &named[..]].concat()));
            homes.insert(service, (database, pool));
        }
        make_topics(&brokers, &prefix).await;
        for relay in &mut relays {
            relay.says("leading", LEAD_MAX).await;
        }
        Self { prefix, brokers, homes, _relays: relays }
    }

    fn start(&self, service: &str) -> Process {
        let (database, _) = self.homes.get(service).expect("each service has a home");
        let place = ["choreographed", "--database-url", database.url()];
        let rest = ["--kafka-brokers", &self.brokers, "--prefix", &self.prefix];
        Process::start(&node(), [&place[..], &rest[..], &["--service", service]].concat())
    }

    fn pool(&self, service: &str) -> &PgPool {
        &self.homes.get(service).expect("each service has a home").1
    }

    async fn place(&self, order: OrderEvent, within: Duration) -> SagaId {
        let choreography = choreography(within).expect("the choreography is right");
        let starter = service(&choreography, "orders").topic_prefix(&self.prefix).starter();
        let mut tx = self.pool("orders").begin().await.expect("the stack serves");
        let saga = starter.start(&mut tx, &order).await.expect("the stack serves");
        effect(&mut tx, saga, "place-order").await;
        tx.commit().await.expect("the stack serves");
        saga
    }

    /// How a saga stands, by the handle of the service that has started it.
    async fn standing(&self, saga: SagaId) -> Option<tailrace_saga::choreography::Status> {
        let choreography = choreography(LONG).expect("the choreography is right");
        let starter = service(&choreography, "orders").starter();
        let mut conn = self.pool("orders").acquire().await.expect("the stack serves");
        starter.find(&mut conn, saga).await.expect("the stack serves").map(|found| found.status)
    }

    /// Waits until a statement that counts answers so.
    async fn counts(&self, service: &str, query: &'static str, saga: SagaId, expected: i64) {
        let counting = async {
            let mut tick = tokio::time::interval(Duration::from_millis(50));
            loop {
                tick.tick().await;
                let query = sqlx::query_scalar::<_, i64>(query).bind(saga.as_uuid());
                if query.fetch_one(self.pool(service)).await.expect("the stack serves") == expected
                {
                    return;
                }
            }
        };
        let counted = tokio::time::timeout(END_MAX, counting).await;
        assert!(
            counted.is_ok(),
            "{query} in {service} is not {expected}: {:?}",
            self.left(saga).await
        );
    }

    /// Waits until the first service sees a saga as completed, and every step of it was done once.
    async fn completes(&self, saga: SagaId) {
        self.counts("orders", COMPLETED, saga, 1).await;
        let left = self.left(saga).await;
        assert!(left.len() == 5 && left.values().all(|left| *left == (1, 1)), "{left:?}");
    }

    /// Waits until the first service sees a saga as undone, and nothing is left of it; no step was done twice, and the
    /// pivot not at all.
    async fn is_undone(&self, saga: SagaId) {
        self.counts("orders", UNDONE, saga, 1).await;
        let looking = async {
            let mut tick = tokio::time::interval(Duration::from_millis(50));
            while self.left(saga).await.values().any(|(sum, _)| *sum != 0) {
                tick.tick().await;
            }
        };
        let looked = tokio::time::timeout(END_MAX, looking).await;
        let left = self.left(saga).await;
        assert!(looked.is_ok(), "{left:?} is left");
        assert!(left.values().all(|(_, done)| *done == 1), "{left:?}");
        assert!(!left.contains_key("capture-payment"), "{left:?}");
    }

    /// The sum of every step, and how often it was done.
    async fn left(&self, saga: SagaId) -> BTreeMap<String, (i64, i64)> {
        let mut left = BTreeMap::new();
        for (_, pool) in self.homes.values() {
            let rows = sqlx::query(
                "SELECT step, sum(delta), count(*) FILTER (WHERE delta > 0)
                 FROM effect WHERE saga = $1 GROUP BY step",
            )
            .bind(saga.as_uuid())
            .fetch_all(pool)
            .await
            .expect("the stack serves");
            left.extend(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))));
        }
        left
    }

    async fn open(&self, service: &str, number: i64) {
        let opened = sqlx::query("INSERT INTO opened (number) VALUES ($1)").bind(number);
        opened.execute(self.pool(service)).await.expect("the stack serves");
    }
}

async fn make_topics(brokers: &str, prefix: &str) {
    let names = CHOREOGRAPHED.map(|service| format!("{prefix}{service}"));
    let topics = names.each_ref().map(|name| NewTopic::new(name, 3, TopicReplication::Fixed(-1)));
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().expect("the stack serves");
    for answer in
        admin.create_topics(&topics, &AdminOptions::new()).await.expect("the stack serves")
    {
        answer.expect("the stack serves");
    }
}

async fn effect(conn: &mut sqlx::PgConnection, saga: SagaId, step: &str) {
    sqlx::query("INSERT INTO effect (saga, step, delta) VALUES ($1, $2, 1)")
        .bind(saga.as_uuid())
        .bind(step)
        .execute(conn)
        .await
        .expect("the stack serves");
}

fn order(number: i64) -> OrderEvent {
    OrderEvent { number, ..OrderEvent::default() }
}

const COMPLETED: &str =
    "SELECT count(*) FROM tailrace.saga_choreography WHERE saga_id = $1 AND status = 'completed'";
const UNDONE: &str =
    "SELECT count(*) FROM tailrace.saga_choreography WHERE saga_id = $1 AND status = 'undone'";
const BLOCKED: &str = "SELECT count(*) FROM tailrace.saga_barrier
    WHERE saga_id = $1 AND compensation_epoch IS NOT NULL AND action_epoch IS NULL
        AND step IN ('open-account', 'reserve-credit')";
const OPENED: &str = "SELECT count(*) FROM effect WHERE saga = $1 AND step = 'open-account'";
const RESERVED: &str = "SELECT count(*) FROM effect WHERE saga = $1 AND step = 'reserve-credit'";
const CHARGED: &str = "SELECT count(*) FROM called WHERE saga = $1 AND what = 'charge'";
const CLOSED: &str = "SELECT count(*) FROM called WHERE saga = $1 AND what = 'close'";
const NOTICED: &str = "SELECT count(*) FROM noticed WHERE number = 1 AND $1::uuid IS NOT NULL";
const PARKED: &str = "SELECT count(*) FROM tailrace.parked_message WHERE $1::uuid IS NOT NULL";
const TOLD: &str = "SELECT count(*) FROM tailrace.saga_story WHERE saga_id = $1 AND type IN
    ('order.placed.v1', 'credit.reserved.v1', 'payment.refused.v1', 'credit.released.v1')";

#[tokio::test(flavor = "multi_thread")]
async fn services_that_react_to_each_other_complete_a_saga_or_undo_it() {
    let shop = Shop::new("choreography").await;
    let mut services = CHOREOGRAPHED.map(|service| shop.start(service));
    let (ending, ends) = tokio::sync::oneshot::channel::<()>();
    let name = format!("{}observer", shop.prefix);
    let config: Config = Config::new(name, shop.brokers.clone(), shop.pool("orders").clone());
    let observer =
        Observer::new().choreography(&choreography(LONG).unwrap()).topic_prefix(&shop.prefix);
    let observing = tokio::spawn(observer.run(config, async { ends.await.unwrap_or_default() }));

    let completed = shop.place(order(1), LONG).await;
    // Not before the account is open, which another topic leads to.
    let capture = || Some("capture-payment".to_owned());
    let refused = OrderEvent { refused_by: capture(), held_by: capture(), ..order(2) };
    let refused = shop.place(refused, LONG).await;
    // The refusal overtakes what leads to the account.
    let (refused_by, held_by) =
        (Some("reserve-credit".to_owned()), Some("open-account".to_owned()));
    let overtaken = shop.place(OrderEvent { refused_by, held_by, ..order(3) }, LONG).await;
    // Nobody answers in time, and the customer's service gets to it when all is over.
    let held_by = Some("reserve-credit".to_owned());
    let expired = shop.place(OrderEvent { held_by, ..order(4) }, Duration::from_millis(500)).await;

    shop.counts("payments", OPENED, refused, 1).await;
    shop.open("payments", 2).await;
    shop.counts("payments", BLOCKED, overtaken, 1).await;
    shop.open("payments", 3).await;
    shop.counts("customers", BLOCKED, expired, 1).await;
    shop.open("customers", 4).await;
    shop.completes(completed).await;
    shop.is_undone(refused).await;
    for service in ["payments", "customers"] {
        shop.counts(service, PARKED, overtaken, 0).await;
    }
    shop.is_undone(overtaken).await;
    shop.is_undone(expired).await;
    let standing = shop.standing(refused).await;
    assert_eq!(standing, Some(tailrace_saga::choreography::Status::Undone));
    assert!(!shop.left(overtaken).await.contains_key("open-account"));
    assert!(!shop.left(expired).await.contains_key("reserve-credit"));
    // The account of the refused order was opened, and closed by a call with a key of its own.
    shop.counts("payments", CHARGED, completed, 1).await;
    shop.counts("payments", CLOSED, refused, 1).await;
    for saga in [refused, overtaken, expired] {
        shop.counts("payments", CHARGED, saga, 0).await;
    }
    // By a handler beside those of the service.
    shop.counts("customers", NOTICED, completed, 1).await;
    shop.counts("orders", TOLD, refused, 4).await;
    let mut conn = shop.pool("orders").acquire().await.unwrap();
    let story = timeline(&mut conn, refused).await.unwrap();
    assert_eq!(story.entries()[0].message_type, "order.placed.v1");
    assert!(story.sequence().contains("participant s0 as /orders"), "{}", story.text());
    ending.send(()).unwrap();
    observing.await.unwrap().unwrap();
    for service in &mut services {
        stop(service).await;
    }
}

type Provider = Arc<AtomicBool>;

async fn reserves(
    cx: Cx<'_, Provider>,
    order: OrderEvent,
) -> Result<Result<(SagaId, OrderEvent), Reaction>, BoxError> {
    Ok(Ok((cx.saga.saga, order)))
}

/// The provider is away until it is told to be back.
async fn calls(cx: CallCx<'_, Provider>, _: (SagaId, OrderEvent)) -> Result<Answer<()>, BoxError> {
    if cx.state.load(Ordering::Relaxed) { Ok(Answer::Done(())) } else { Err("it is away".into()) }
}

async fn reserved(
    cx: Cx<'_, Provider>,
    (saga, order): (SagaId, OrderEvent),
    (): (),
) -> Result<Reaction, BoxError> {
    effect(cx.conn, saga, "reserve-credit").await;
    Ok(Reaction::emit("credit.reserved.v1", &order))
}

async fn releases(cx: Cx<'_, Provider>, order: OrderEvent) -> Result<Reaction, BoxError> {
    sqlx::query("INSERT INTO effect (saga, step, delta) VALUES ($1, 'reserve-credit', -1)")
        .bind(cx.saga.saga.as_uuid())
        .execute(cx.conn)
        .await?;
    Ok(Reaction::emit("credit.released.v1", &order))
}

/// What is parked in the database of a service, by the type of its message.
async fn parked(pool: &PgPool) -> BTreeMap<String, Entry> {
    let mut conn = pool.acquire().await.expect("the stack serves");
    let parked = inbox::list(&mut conn, &inbox::Filter::default(), 9).await;
    let parked = parked.expect("the stack serves").into_iter();
    parked.map(|entry| (entry.message_type.clone().unwrap_or_default(), entry)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compensation_waits_for_the_call_of_its_step_however_often_that_fails() {
    let shop = Shop::new("choreography_waits").await;
    let mut others = ["orders", "payments"].map(|service| shop.start(service));
    let provider = Provider::default();
    let pool = shop.pool("customers");
    let (short, name) = (Duration::from_millis(10), format!("{}customers", shop.prefix));
    // As by default, but for the waits: 20 attempts. The breaker lets every call through.
    let config = Config::new(name, shop.brokers.clone(), pool.clone())
        .parked_wait(short, short * 2)
        .state(Arc::clone(&provider));
    let reserve = Outside::new(reserves, calls, reserved)
        .breaker(Breaker::new().minimum_number_of_calls(100));
    let customers = choreography(LONG).unwrap().service("customers").topic_prefix(&shop.prefix);
    let customers = customers.call("reserve-credit", reserve).undo("release-credit", releases);
    let (ending, ends) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(customers.run(config, async { ends.await.unwrap_or_default() }));

    let saga = shop.place(order(1), Duration::from_millis(500)).await;
    // The call has failed for good, and the compensation, or the failure that is to be undone for, was looked at more often
    // than that: each time its row is written.
    let mut looks = BTreeSet::new();
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    let waiting = async {
        loop {
            tick.tick().await;
            let versions: Vec<i64> = sqlx::query_scalar(
                "SELECT xmin::text::bigint FROM tailrace.parked_message WHERE message_type = $1",
            )
            .bind("payment.called-off.v1")
            .fetch_all(pool)
            .await
            .unwrap();
            looks.extend(versions);
            let is_stuck = |entry: &Entry| entry.state == inbox::State::Stuck;
            let parked = parked(pool).await;
            let is_given_up = parked.get("order.placed.v1").is_some_and(is_stuck);
            if looks.len() > 25 && is_given_up && parked.contains_key("payment.called-off.v1") {
                return parked;
            }
        }
    };
    let parked = tokio::time::timeout(END_MAX, waiting).await.expect("nothing waits");
    let waits = &parked["payment.called-off.v1"];
    provider.store(true, Ordering::Relaxed);
    let mut conn = pool.acquire().await.unwrap();
    let by = By::new("test");
    inbox::retry(&mut conn, &parked["order.placed.v1"], 1, &by).await.unwrap();
    drop(conn);

    assert_eq!((waits.state, waits.attempts), (inbox::State::Waiting, 0));
    assert_eq!(waits.reason.as_deref(), Some("waits"));
    assert!(waits.detail.as_deref().unwrap().contains("reserve-credit"), "{:?}", waits.detail);
    // The call is made after all, and undone.
    shop.counts("customers", RESERVED, saga, 2).await;
    shop.is_undone(saga).await;
    assert_eq!(shop.left(saga).await["reserve-credit"], (0, 1));
    ending.send(()).unwrap();
    running.await.unwrap().unwrap();
    for service in &mut others {
        stop(service).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_killed_in_the_middle_does_its_part_once() {
    let shop = Shop::new("choreography_kill").await;
    let mut others = ["orders", "payments"].map(|service| shop.start(service));
    let mut killed = shop.start("customers");
    let mut sagas = Vec::new();
    for number in 0..60 {
        let refused_by = (number % 2 == 1).then(|| "capture-payment".to_owned());
        sagas.push(shop.place(OrderEvent { refused_by, ..order(number) }, LONG).await);
        if number == 30 {
            let begun = "SELECT count(*) FROM effect WHERE saga = $1 AND delta > 0";
            shop.counts("customers", begun, sagas[0], 1).await;
            killed.signal(Signal::KILL);
        }
    }

    killed.ends(END_MAX).await;
    let mut restarted = shop.start("customers");

    for (number, saga) in sagas.iter().enumerate() {
        match number % 2 {
            0 => shop.completes(*saga).await,
            _ => shop.is_undone(*saga).await,
        }
    }
    stop(&mut restarted).await;
    for service in &mut others {
        stop(service).await;
    }
}
