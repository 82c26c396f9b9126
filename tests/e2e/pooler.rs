//! A PgBouncer in front of the services, which the relay goes past.

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Executor};
use tailrace_outbox::mapping::Mapping;
use tailrace_outbox::{Message, Outbox, Store, tokio_postgres as through};
use tailrace_stack::Stack;
use tokio_postgres::NoTls;

use crate::complaint::refuses;
use crate::run::{LEAD_MAX, PUBLISH_MAX, site, stop};

const SETTINGS: i32 = 2;

#[tokio::test]
async fn a_relay_that_is_pointed_at_a_pooler_is_told_to_go_past_it() {
    let site = site("past_the_pooler").await;
    let pooler = Stack::shared().await.postgres().pooler(2).await.expect("it starts");
    let mut arguments = site.run_arguments();
    arguments.retain(|argument| !argument.starts_with("--database-url="));
    arguments.push(format!("--database-url={}", pooler.url(site.database.name())));

    let named = ["replication", "PgBouncer", "Postgres itself"];
    refuses(&mut site.cdc_relay(&arguments), SETTINGS, &named).await;
}

/// Connections to the server, for more clients than that.
const SERVERS: u32 = 2;
const SQLX_CLIENTS: usize = 6;
const TOKIO_POSTGRES_CLIENTS: usize = 3;

/// Transactions of a client that commit; besides, every third one is rolled back.
const ROUNDS: usize = 9;

const MAPPING: &str = "public.events=topic=${stream}, id:id:uuid, key:key, type:kind, payload:body, \
                       headers:headers, source=/pooled";
const BUSINESS: &str = "insert into business values ($1)";

/// One client: what it writes next.
struct Pen {
    topic: String,
    client: usize,
    place: usize,
    stores: Vec<Outbox>,
}

impl Pen {
    fn new(topic: &str, client: usize) -> Pen {
        let mapping: Mapping = MAPPING.parse().expect("a mapping");
        let stores = [Store::Wal, Store::Journal, Store::Table(mapping)];
        let stores = stores.map(|store| Outbox::new(store).unprepared()).into();
        Pen { topic: topic.to_owned(), client, place: 0, stores }
    }

    fn message(&mut self) -> Message {
        self.place += 1;
        let message = Message::builder(&self.topic, "t.v1").source("/pooled");
        let message = message.key(self.client.to_string());
        let message = message.header("place", self.place.to_string()).json(&1);
        message.build().expect("it keeps every rule")
    }
}

#[tokio::test]
async fn every_way_to_write_works_through_a_pooler_in_transaction_mode() {
    let site = site("pooler").await;
    site.prepare_journal().await;
    let tables = "create table business (id bigint); \
                  create table events (id uuid, key text, kind text, stream text, body jsonb, headers jsonb)";
    site.pool.execute(tables).await.expect("the tables are made");
    let mut relay =
        site.cdc_relay(&[site.run_arguments(), vec![format!("--table={MAPPING}")]].concat());
    relay.says("leading", LEAD_MAX).await;
    let pooler = Stack::shared().await.postgres().pooler(SERVERS).await.expect("it starts");
    let url = pooler.url(site.database.name());

    let topic = site.topics.first().expect("a site has topics");
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..SQLX_CLIENTS + TOKIO_POSTGRES_CLIENTS {
        let (url, slot, pen) = (url.clone(), site.slot.clone(), Pen::new(topic, client));
        match client < SQLX_CLIENTS {
            true => clients.spawn(Box::pin(write_by_sqlx(url, slot, pen))),
            false => clients.spawn(Box::pin(write_by_tokio_postgres(url, slot, pen))),
        };
    }
    let mut count = 0;
    while let Some(written) = clients.join_next().await {
        count += written.expect("a client does not panic");
    }
    nothing_is_left_in_a_session(&url).await;
    site.read_until(PUBLISH_MAX, move |seen| seen.len() >= count).await;
    stop(&mut relay).await;

    let seen = site.read_to_end().await;
    assert_eq!(seen.len(), count);
    for client in 0..SQLX_CLIENTS + TOKIO_POSTGRES_CLIENTS {
        let key = client.to_string();
        let of_client = seen.iter().filter(|seen| seen.key.as_deref() == Some(key.as_bytes()));
        let places: Vec<&str> = of_client.map(|seen| seen.header("place")).collect();
        let expected: Vec<String> = (1..=places.len()).map(|place| place.to_string()).collect();
        assert_eq!(places, expected, "client {client}");
    }
}

/// PgBouncer refuses a client that sets what it does not know.
fn options(url: &str) -> PgConnectOptions {
    let options: PgConnectOptions = url.parse().expect("a url");
    options.extra_float_digits(None)
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn write_by_sqlx(url: String, slot: String, mut pen: Pen) -> usize {
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options(&url));
    let write = async {
        // In a transaction, as every statement of sqlx through a pooler.
        let mut tx = pool.begin().await?;
        Outbox::new(Store::Wal).slot(slot).check(&mut *tx).await?;
        tx.commit().await?;
        for round in 0..ROUNDS * 3 / 2 {
            let (kept, stores) = (pen.place, pen.stores.clone());
            let mut tx = pool.begin().await?;
            for outbox in &stores {
                outbox.write(&mut tx, &pen.message()).await?;
                outbox.write_all(&mut tx, &[pen.message(), pen.message()]).await?;
                let message = pen.message();
                outbox.merge(BUSINESS).bind(1_i64).message(&message).execute(&mut tx).await?;
            }
            if round % 3 == 1 {
                tx.rollback().await?;
                pen.place = kept;
                continue;
            }
            tx.commit().await?;
        }
        Ok::<_, Failure>(())
    };
    write.await.unwrap_or_else(|error| panic!("sqlx: {error:?}"));
    pen.place
}

async fn write_by_tokio_postgres(url: String, slot: String, mut pen: Pen) -> usize {
    use tokio_postgres::types::Type;
    let write = async {
        let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        tokio::spawn(connection);
        through::check(&Outbox::new(Store::Wal).slot(slot), &client).await?;
        for round in 0..ROUNDS * 3 / 2 {
            let (kept, stores) = (pen.place, pen.stores.clone());
            let tx = client.transaction().await?;
            for outbox in &stores {
                through::write(outbox, &tx, &pen.message()).await?;
                let messages = [pen.message(), pen.message()];
                through::write_all(outbox, &tx, &messages).await?;
                let message = pen.message();
                through::execute_typed(outbox, &tx, BUSINESS, &[(&1_i64, Type::INT8)], &message)
                    .await?;
            }
            if round % 3 == 1 {
                tx.rollback().await?;
                pen.place = kept;
            } else {
                tx.commit().await?;
            }
        }
        Ok::<_, Failure>(())
    };
    write.await.unwrap_or_else(|error| panic!("tokio-postgres: {error:?}"));
    pen.place
}

/// The writers leave no statement on any of the pooler's connections.
async fn nothing_is_left_in_a_session(url: &str) {
    let left = "select count(*)::text from pg_prepared_statements";
    let mut open = Vec::new();
    for _ in 0..SERVERS {
        let mut connection = options(url).connect().await.expect("the pooler takes it");
        connection.execute("begin").await.expect("it begins");
        open.push(connection);
    }
    for connection in &mut open {
        let row = sqlx::Executor::fetch_one(&mut *connection, sqlx::raw_sql(left)).await;
        let count: String = sqlx::Row::get(&row.expect("it answers"), 0);
        assert_eq!(count, "0");
    }
}
