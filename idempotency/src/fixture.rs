//! What the tests of this crate start from: a database, a topic, records, and waits with a deadline.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool};
use tailrace_stack::{Database, Stack};
use uuid::Uuid;

use crate::message_id::MessageId;
use crate::schema;

/// Longer than anything here takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A database with the tables; it goes when this is dropped.
pub(crate) struct Bed {
    pub(crate) stack: &'static Stack,
    pub(crate) database: Database,
    pub(crate) pool: PgPool,
}

pub(crate) async fn bare(name: &str) -> Bed {
    let stack = Stack::shared().await;
    let database = stack.postgres().fresh_database(name).await.unwrap();
    let pool = PgPoolOptions::new().max_connections(16).connect(database.url()).await.unwrap();
    Bed { stack, database, pool }
}

pub(crate) async fn installed(name: &str) -> Bed {
    let bed = bare(name).await;
    schema::install(&mut bed.pool.acquire().await.unwrap()).await.unwrap();
    bed
}

impl Bed {
    pub(crate) fn brokers(&self) -> &'static str {
        self.stack.kafka().brokers()
    }

    pub(crate) async fn topic(&self, name: &str, partitions: i32) -> String {
        self.stack.kafka().fresh_topic(name, partitions).await.unwrap()
    }

    /// The offset after the last record of a topic's first partition.
    pub(crate) fn end_of(&self, topic: &str) -> i64 {
        let client: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", self.brokers()).create().unwrap();
        client.fetch_watermarks(topic, 0, DEADLINE).unwrap().1
    }

    pub(crate) async fn count(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&self.pool).await.unwrap()
    }

    pub(crate) async fn execute(&self, statement: &'static str) {
        sqlx::raw_sql(statement).execute(&self.pool).await.unwrap();
    }

    /// A transaction on a connection of its own.
    pub(crate) async fn begin(&self) -> sqlx::Transaction<'static, sqlx::Postgres> {
        self.pool.begin().await.unwrap()
    }
}

/// A new id of today.
pub(crate) fn new_id() -> MessageId {
    Uuid::now_v7().try_into().unwrap()
}

/// An id of the day that lies so many days ahead of the database's.
pub(crate) async fn id_of_day(conn: &mut PgConnection, ahead: i32) -> MessageId {
    let uuid: Uuid = sqlx::query_scalar(
        "SELECT (lpad(to_hex((floor(extract(epoch FROM now()) / 86400)::bigint + $1) * 86400000), 12, '0')
                 || '7abc8def012345678901')::uuid",
    )
    .bind(ahead)
    .fetch_one(conn)
    .await
    .unwrap();
    uuid.try_into().unwrap()
}

/// A record to produce.
#[derive(Clone)]
pub(crate) struct Outgoing {
    pub(crate) key: String,
    pub(crate) payload: String,
    pub(crate) headers: Vec<(String, String)>,
}

/// A record as the wire contract wants it, numbered in its payload.
pub(crate) fn numbered(key: &str, number: i64) -> Outgoing {
    Outgoing {
        key: key.to_owned(),
        payload: format!(r#"{{"number":{number}}}"#),
        headers: [
            ("ce_specversion", "1.0".to_owned()),
            ("ce_id", new_id().to_string()),
            ("ce_type", "numbered.v1".to_owned()),
            ("ce_source", "/test".to_owned()),
            ("content-type", "application/json".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect(),
    }
}

impl Outgoing {
    pub(crate) fn id(&self) -> MessageId {
        self.headers.iter().find(|(name, _)| name == "ce_id").unwrap().1.parse().unwrap()
    }

    pub(crate) fn with(mut self, header: &str, value: &str) -> Self {
        self.headers.retain(|(name, _)| name != header);
        self.headers.push((header.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, header: &str) -> Self {
        self.headers.retain(|(name, _)| name != header);
        self
    }
}

pub(crate) fn producer(brokers: &str, transactional_id: Option<&str>) -> BaseProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("partitioner", "murmur2_random");
    if let Some(id) = transactional_id {
        config.set("transactional.id", id);
    }
    config.create().unwrap()
}

pub(crate) fn send(producer: &BaseProducer, topic: &str, records: &[Outgoing]) {
    for record in records {
        let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value) })
        });
        let message =
            BaseRecord::to(topic).key(&record.key).payload(&record.payload).headers(headers);
        producer.send(message).map_err(|(error, _)| error).unwrap();
        producer.poll(Duration::ZERO);
    }
    producer.flush(DEADLINE).unwrap();
}

pub(crate) fn produce(brokers: &str, topic: &str, records: &[Outgoing]) {
    send(&producer(brokers, None), topic, records);
}

/// Looks again and again until the condition holds; fails the caller at the deadline.
#[track_caller]
pub(crate) fn until<F: Future<Output = bool>>(
    mut holds: impl FnMut() -> F,
) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let looking = async {
            let mut tick = tokio::time::interval(Duration::from_millis(10));
            while !holds().await {
                tick.tick().await;
            }
        };
        assert!(
            tokio::time::timeout(DEADLINE, looking).await.is_ok(),
            "what {caller} waits for did not come"
        );
    }
}
