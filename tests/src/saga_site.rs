//! The databases, topics and processes of the shop, and what is true of its sagas in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, Row};
use tailrace_outbox::Message;
use tailrace_saga::Definition;
use tailrace_saga::verify::{self, Verified};
use tailrace_stack::{Database, Postgres, unique};
use uuid::Uuid;

use crate::process::{Node, Process};
use crate::saga_shop::{ORDER_PLACED, ORDERS, Order, SERVICES, Service, TABLES};

const PARTITIONS: i32 = 3;
/// What a customer may spend.
const CREDIT_CENTS: i64 = 1_000_000;
/// Orders that are placed in one transaction.
const AT_ONCE: usize = 500;

/// A database with its relay's slot.
#[derive(Debug)]
pub struct Home {
    /// Of the service.
    pub pool: PgPool,
    database: Database,
    slot: String,
}

/// All of the shop.
#[derive(Debug)]
pub struct SagaSite {
    /// Of the orchestrator.
    pub orders: Home,
    /// Of each service.
    pub services: BTreeMap<&'static str, Home>,
    /// Before the names of groups and topics.
    pub prefix: String,
    /// Where Kafka is.
    pub brokers: String,
    node: Node,
}

/// How the sagas stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// All that were started.
    pub all: i64,
    /// Those whose every step is done.
    pub completed: i64,
    /// Those that are undone.
    pub compensated: i64,
    /// Those that wait for a person.
    pub parked: i64,
}

impl Standing {
    /// Those that have come to an end of their own.
    pub fn ended(self) -> i64 {
        self.completed + self.compensated
    }
}

impl Home {
    async fn new(postgres: &Postgres, name: &str, customers: &[String]) -> Self {
        let database = postgres.fresh_database(name).await.expect("a database is made");
        // The server may be restarted under it.
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .connect_lazy(database.url())
            .expect("the stack's url is one");
        let mut conn = pool.acquire().await.expect("the server serves");
        tailrace_idempotency::schema::install(&mut conn).await.expect("the schema is installed");
        tailrace_saga::schema::install(&mut conn).await.expect("the schema is installed");
        sqlx::raw_sql(TABLES).execute(&mut *conn).await.expect("the tables are made");
        sqlx::query("INSERT INTO account (customer, free_cents) SELECT unnest($1::text[]), $2")
            .bind(customers)
            .bind(CREDIT_CENTS)
            .execute(&mut *conn)
            .await
            .expect("the accounts are opened");
        drop(conn);
        Home { pool, slot: unique(name), database }
    }

    /// Its address.
    pub fn url(&self) -> &str {
        self.database.url()
    }

    fn relay(&self, site: &SagaSite) -> Process {
        let arguments = ["relay", "--database-url", self.url(), "--kafka-brokers", &site.brokers];
        let named = ["--slot", &self.slot, "--relay-id", &self.slot];
        Process::start(&site.node, [&arguments[..], &named[..]].concat())
    }
}

impl SagaSite {
    /// Makes all of it.
    ///
    /// # Panics
    ///
    /// When a server refuses.
    pub async fn new(
        postgres: &Postgres,
        brokers: &str,
        name: &str,
        customers: u64,
        node: &Node,
    ) -> Self {
        let prefix = format!("{}.", unique(name));
        let customers: Vec<String> = (0..customers).map(customer).collect();
        let mut services = BTreeMap::new();
        for service in SERVICES {
            let of = format!("{name}_{}", service.name());
            services.insert(service.name(), Home::new(postgres, &of, &customers).await);
        }
        let orders = Home::new(postgres, &format!("{name}_orders"), &[]).await;
        let site =
            SagaSite { orders, services, prefix, brokers: brokers.to_owned(), node: node.clone() };
        site.make_topics().await;
        site
    }

    async fn make_topics(&self) {
        let names = SERVICES.map(Service::topic).into_iter();
        let names = names.chain([ORDERS.to_owned(), "create-order.replies".to_owned()]);
        let names: Vec<String> = names.map(|name| format!("{}{name}", self.prefix)).collect();
        let topics: Vec<NewTopic<'_>> = names
            .iter()
            .map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(-1)))
            .collect();
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .create()
            .expect("the settings are valid");
        let answers = admin.create_topics(&topics, &AdminOptions::new()).await;
        for answer in answers.expect("the broker answers") {
            answer.expect("the topic is made");
        }
    }

    /// A relay for each database.
    pub fn relays(&self) -> Vec<Process> {
        (0..=self.services.len()).map(|at| self.relay(at)).collect()
    }

    /// The relay of the database with this number; the last is the orchestrator's.
    pub fn relay(&self, at: usize) -> Process {
        self.services.values().nth(at).unwrap_or(&self.orders).relay(self)
    }

    /// An orchestrator.
    pub fn engine(&self, more: &[&str]) -> Process {
        self.start("saga-engine", &self.orders, more)
    }

    /// A process of a service.
    pub fn participant(&self, service: Service, more: &[&str]) -> Process {
        let named = ["--service", service.name()];
        self.start("saga-participant", self.home(service), &[&named[..], more].concat())
    }

    /// Where a service keeps what it knows.
    ///
    /// # Panics
    ///
    /// Never: each service has one.
    pub fn home(&self, service: Service) -> &Home {
        self.services.get(service.name()).expect("each service has a home")
    }

    fn start(&self, role: &str, home: &Home, more: &[&str]) -> Process {
        let place = [role, "--database-url", home.url(), "--kafka-brokers", &self.brokers];
        let prefix = ["--prefix", &self.prefix];
        Process::start(&self.node, [&place[..], &prefix[..], more].concat())
    }

    /// Places orders, each in the log of the orchestrator's database.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn place(&self, orders: &[Order]) {
        for orders in orders.chunks(AT_ONCE) {
            let mut tx = self.orders.pool.begin().await.expect("the server serves");
            let messages: Vec<Message> = orders.iter().map(|order| self.placed(order)).collect();
            tailrace_outbox::write_all(&mut tx, &messages).await.expect("orders are placed");
            tx.commit().await.expect("the server serves");
        }
    }

    fn placed(&self, order: &Order) -> Message {
        Message::builder(format!("{}{ORDERS}", self.prefix), ORDER_PLACED)
            .source("/shop")
            .key(format!("order-{}", order.number))
            .json(order)
            .build()
            .expect("an order is a message")
    }

    /// How the sagas stand.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn standing(&self) -> Standing {
        let row = sqlx::query(
            "SELECT count(*), count(*) FILTER (WHERE status = 'completed'),
                 count(*) FILTER (WHERE status = 'compensated'), count(*) FILTER (WHERE status = 'parked')
             FROM tailrace.saga_instance",
        )
        .fetch_one(&self.orders.pool)
        .await
        .expect("the sagas are counted");
        Standing {
            all: row.get(0),
            completed: row.get(1),
            compensated: row.get(2),
            parked: row.get(3),
        }
    }

    /// Waits until the orders with these numbers have sagas, which follow this version.
    ///
    /// # Panics
    ///
    /// When they do not within `limit`, or follow another one.
    pub async fn follow(&self, numbers: std::ops::Range<i64>, version: u32, limit: Duration) {
        let looking = async {
            let mut tick = tokio::time::interval(Duration::from_millis(50));
            loop {
                tick.tick().await;
                let versions: Vec<i64> = sqlx::query_scalar(
                    "SELECT version FROM tailrace.saga_instance
                     WHERE (instance -> 'data' ->> 'number')::bigint BETWEEN $1 AND $2 - 1",
                )
                .bind(numbers.start)
                .bind(numbers.end)
                .fetch_all(&self.orders.pool)
                .await
                .expect("the sagas are read");
                if versions.len() == numbers.clone().count() {
                    return versions;
                }
            }
        };
        let versions = tokio::time::timeout(limit, looking).await.expect("the sagas begin");
        assert!(versions.iter().all(|of| *of == i64::from(version)), "{numbers:?}: {versions:?}");
    }

    /// Waits until a service has carried out so many commands.
    ///
    /// # Panics
    ///
    /// When it does not within `limit`.
    pub async fn carried_out(&self, service: Service, commands: i64, limit: Duration) {
        let looking = async {
            let mut tick = tokio::time::interval(Duration::from_millis(20));
            loop {
                tick.tick().await;
                let done: i64 = sqlx::query_scalar("SELECT count(*) FROM tailrace.saga_barrier")
                    .fetch_one(&self.home(service).pool)
                    .await
                    .expect("the barrier is read");
                if done >= commands {
                    return;
                }
            }
        };
        tokio::time::timeout(limit, looking).await.expect("the commands are carried out");
    }

    /// Waits until so many sagas have ended.
    ///
    /// # Panics
    ///
    /// When they do not within `limit`, with what is left of them.
    #[track_caller]
    pub fn ended(&self, sagas: i64, limit: Duration) -> impl Future<Output = Standing> {
        let caller = std::panic::Location::caller();
        async move {
            let looking = async {
                let mut tick = tokio::time::interval(Duration::from_millis(50));
                loop {
                    tick.tick().await;
                    let standing = self.standing().await;
                    if standing.ended() >= sagas {
                        return standing;
                    }
                }
            };
            match tokio::time::timeout(limit, looking).await {
                Ok(standing) => standing,
                Err(_) => {
                    let left = self.left().await;
                    panic!("{caller}: {:?} after {limit:?}: {left:#?}", self.standing().await)
                }
            }
        }
    }

    /// Why sagas were undone, and how often.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn causes(&self) -> Vec<(&'static str, i64)> {
        let names = [
            ("undone: refused", "refused"),
            ("undone: timed out", "timed_out"),
            ("undone: deadline", "deadline"),
        ];
        let mut causes = Vec::new();
        for (name, because) in names {
            let count: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM tailrace.saga_instance
                 WHERE instance -> 'cause' ->> 'because' = $1",
            )
            .bind(because)
            .fetch_one(&self.orders.pool)
            .await
            .expect("the sagas are counted");
            causes.push((name, count));
        }
        causes
    }

    /// Why there are dead letters, where there are any.
    ///
    /// # Panics
    ///
    /// When a server refuses.
    pub async fn dead_letters(&self) -> Vec<String> {
        let mut found = Vec::new();
        for home in self.services.values().chain([&self.orders]) {
            let letters: Vec<String> = sqlx::query_scalar(
                "SELECT concat(consumer, ' ', message_type, ' ', reason, ' ', detail)
                 FROM tailrace.dead_letter LIMIT 5",
            )
            .fetch_all(&home.pool)
            .await
            .expect("the dead letters are read");
            found.extend(letters);
        }
        found
    }

    /// A few sagas that have not ended.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn left(&self) -> Vec<String> {
        sqlx::query_scalar(
            "SELECT concat(id, ' ', status, ' ', instance) FROM tailrace.saga_instance
             WHERE status IN ('running', 'compensating', 'parked') LIMIT 3",
        )
        .fetch_all(&self.orders.pool)
        .await
        .expect("the sagas are read")
    }

    /// What is wrong with what the sagas have left behind. For a time when nothing moves.
    ///
    /// # Panics
    ///
    /// When a server refuses.
    pub async fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let sagas = self.sagas().await;
        let mut held = 0;
        for (place, steps) in [
            ("customers", &["reserve-credit"][..]),
            ("warehouse", &["allocate-stock"][..]),
            ("payments", &["capture-payment"][..]),
            ("orders", &["approve-order"][..]),
        ] {
            let home = self.services.get(place).unwrap_or(&self.orders);
            let effects = effects(home).await;
            for (saga, (status, cents)) in &sagas {
                let is_done = status == "completed";
                for step in steps {
                    let (done, undone) =
                        effects.get(&(*saga, (*step).to_owned())).copied().unwrap_or_default();
                    let is_right = done <= 1 && done - undone == i64::from(is_done);
                    if !is_right && (is_done || status == "compensated") {
                        faults.push(format!(
                            "saga {saga} is {status}, and {step} was done {done} and undone {undone} times"
                        ));
                    }
                }
                if is_done && place == "customers" {
                    held += cents;
                }
            }
            let foreign = effects.keys().filter(|(saga, _)| !sagas.contains_key(saga)).count();
            if foreign > 0 {
                faults.push(format!("{place} has {foreign} effects of no saga"));
            }
        }
        let row = sqlx::query(
            "SELECT sum(free_cents)::bigint, sum(held_cents)::bigint, count(*), count(*) FILTER (WHERE free_cents < 0 OR held_cents < 0)
             FROM account",
        )
        .fetch_one(&self.home(Service::Customers).pool)
        .await
        .expect("the accounts are read");
        let (free, on_hold, accounts): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        if free + on_hold != accounts * CREDIT_CENTS || row.get::<i64, _>(3) > 0 {
            faults.push(format!("{accounts} accounts have {free} and {on_hold} cents"));
        }
        let charged: Vec<Uuid> = sqlx::query_scalar("SELECT saga FROM charge")
            .fetch_all(&self.home(Service::Payments).pool)
            .await
            .expect("the charges are read");
        let charged: BTreeSet<Uuid> = charged.into_iter().collect();
        let completed = sagas.iter().filter(|(_, (status, _))| status == "completed");
        if charged
            .iter()
            .any(|saga| sagas.get(saga).is_some_and(|(status, _)| status == "compensated"))
            || completed.clone().any(|(saga, _)| !charged.contains(saga))
        {
            let (charged, completed) = (charged.len(), completed.count());
            faults.push(format!("{charged} sagas are charged, and {completed} are completed"));
        }
        if self.standing().await.parked == 0 && on_hold != held {
            faults.push(format!("{on_hold} cents are held, and {held} of completed sagas"));
        }
        faults
    }

    /// What is stored of sagas otherwise than the machine makes it of what they were told, and how many there are.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn verified(&self, definition: &Definition) -> Verified {
        let mut conn = self.orders.pool.acquire().await.expect("the server serves");
        let mut found = Verified::default();
        loop {
            let page = verify::page(&mut conn, definition, found.next, verify::PAGE_MAX).await;
            found.merge(page.expect("the sagas are read"));
            if found.next.is_none() {
                return found;
            }
        }
    }

    /// Status and amount of every saga.
    async fn sagas(&self) -> BTreeMap<Uuid, (String, i64)> {
        let rows = sqlx::query(
            "SELECT id, status, (instance -> 'data' ->> 'cents')::bigint FROM tailrace.saga_instance",
        )
        .fetch_all(&self.orders.pool)
        .await
        .expect("the sagas are read");
        rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect()
    }
}

/// How often each step was done and undone.
async fn effects(home: &Home) -> BTreeMap<(Uuid, String), (i64, i64)> {
    let rows = sqlx::query(
        "SELECT saga, step, count(*) FILTER (WHERE delta > 0), count(*) FILTER (WHERE delta < 0)
         FROM effect GROUP BY saga, step",
    )
    .fetch_all(&home.pool)
    .await
    .expect("the effects are read");
    rows.iter().map(|row| ((row.get(0), row.get(1)), (row.get(2), row.get(3)))).collect()
}

/// The name of a customer.
pub fn customer(number: u64) -> String {
    format!("customer-{number}")
}
