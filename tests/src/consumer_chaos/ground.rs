//! The tables and the topic that the consumers work on: what is produced, when all of it has come through, and what
//! is true then.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use sqlx::PgPool;
use tailrace_idempotency::inbox::{self, By, Filter};
use tailrace_idempotency::{Kind, schema};
use tailrace_stack::{Database, Kafka, Postgres};
use uuid::Uuid;

use crate::proof::Report;
use crate::writers::Dice;

/// The brokers have taken a portion by then.
const PRODUCE_MAX: Duration = Duration::from_secs(60);
/// Rows of one statement.
const ROWS: usize = 10_000;
/// Keys that a person looks at in one go.
const KEYS_AT_ONCE: u32 = 1_000;
/// A second copy of a record is as far behind the first as this, at most, or anywhere in the topic.
const BEHIND: [u64; 3] = [1, 50, 2_000];

pub(super) const PARTITIONS: i32 = 6;

/// What is to have one effect.
struct Message {
    id: Uuid,
    key: String,
    /// Counted from 1 among the messages of its key.
    sequence: i64,
}

pub(super) struct Ground<'a> {
    kafka: &'a Kafka,
    pub(super) database: Database,
    pub(super) brokers: String,
    pub(super) topic: String,
    pool: PgPool,
    producer: Arc<BaseProducer>,
    messages: Arc<Vec<Message>>,
    /// Places in `messages`, each twice.
    records: Vec<usize>,
    produced: usize,
}

impl<'a> Ground<'a> {
    pub(super) async fn new(
        kafka: &'a Kafka,
        postgres: &Postgres,
        messages: usize,
        keys: u64,
        dice: &mut Dice,
    ) -> Self {
        let database = postgres.fresh_database("consumer_chaos").await.expect("a database is made");
        let topic = kafka.fresh_topic("consumer_chaos", PARTITIONS).await;
        let brokers = kafka.brokers().to_owned();
        let mut config = ClientConfig::new();
        // A record that the client sends again must not pass the next of its key.
        config.set("bootstrap.servers", &brokers).set("enable.idempotence", "true");
        let ground = Ground {
            kafka,
            pool: PgPool::connect_lazy(database.url()).expect("the stack's url is one"),
            database,
            brokers,
            topic: topic.expect("a topic is made"),
            producer: Arc::new(config.create().expect("a producer is made")),
            records: records(messages, dice),
            messages: Arc::new(make(messages, keys, dice)),
            produced: 0,
        };
        ground.prepare().await;
        ground
    }

    /// Until when brokers wait for members of the group that they do not hear of.
    pub(super) async fn set_session(&self, session: Duration) {
        let set = self.kafka.set_group_session(&self.topic, session).await;
        set.expect("the brokers take a session as short as that");
    }

    async fn prepare(&self) {
        let mut conn = self.pool.acquire().await.expect("the server serves");
        schema::install(&mut conn).await.expect("the schema is installed");
        sqlx::raw_sql(
            "CREATE TABLE account (key text PRIMARY KEY, effects bigint NOT NULL) WITH (fillfactor = 50);
             CREATE TABLE effect (written bigint GENERATED ALWAYS AS IDENTITY, key text, place bigint,
                 sequence bigint, message_id uuid);
             CREATE TABLE expected (message_id uuid, key text, sequence bigint);
             CREATE TABLE poisoned (key text PRIMARY KEY)",
        )
        .execute(&mut *conn)
        .await
        .expect("the tables are made");
        for messages in self.messages.chunks(ROWS) {
            sqlx::query(
                "INSERT INTO expected SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[])",
            )
            .bind(messages.iter().map(|message| message.id).collect::<Vec<_>>())
            .bind(messages.iter().map(|message| message.key.clone()).collect::<Vec<_>>())
            .bind(messages.iter().map(|message| message.sequence).collect::<Vec<_>>())
            .execute(&mut *conn)
            .await
            .expect("what is expected is written down");
        }
    }

    /// Produces so many more records.
    pub(super) async fn produce(&mut self, count: usize) {
        let records: Vec<usize> =
            self.records.iter().skip(self.produced).take(count).copied().collect();
        self.produced += records.len();
        let (producer, messages) = (Arc::clone(&self.producer), Arc::clone(&self.messages));
        let topic = self.topic.clone();
        let sending = tokio::task::spawn_blocking(move || {
            for message in records.iter().filter_map(|&at| messages.get(at)) {
                send(&producer, &topic, message);
            }
            producer.flush(PRODUCE_MAX).expect("the brokers take the records");
        });
        sending.await.expect("the records are sent");
    }

    pub(super) fn all_is_produced(&self) -> bool {
        self.produced == self.records.len()
    }

    pub(super) fn messages_produced(&self) -> usize {
        self.produced / 2
    }

    /// Messages of which a copy may have been produced and that have no effect yet.
    pub(super) async fn backlog(&self) -> usize {
        let effects: i64 =
            sqlx::query_scalar("SELECT coalesce(sum(effects), 0)::bigint FROM account")
                .fetch_one(&self.pool)
                .await
                .expect("the effects are counted");
        self.messages_produced().saturating_sub(usize::try_from(effects).unwrap_or_default())
    }

    /// Heals all keys that are poisoned, and poisons these.
    pub(super) async fn poison(&self, keys: &[u64]) {
        let keys: Vec<String> = keys.iter().map(|&key| name(key)).collect();
        sqlx::query(
            "WITH healed AS (DELETE FROM poisoned WHERE key <> ALL ($1))
             INSERT INTO poisoned SELECT DISTINCT unnest($1::text[]) ON CONFLICT DO NOTHING",
        )
        .bind(keys)
        .execute(&self.pool)
        .await
        .expect("keys are poisoned");
    }

    /// Retries by hand what waits for a person; answers with how much that was.
    pub(super) async fn retry_by_hand(&self) -> usize {
        let mut conn = self.pool.acquire().await.expect("the server serves");
        let stuck = Filter::default().consumer(&self.topic).state(inbox::State::Stuck);
        let entries =
            inbox::list(&mut conn, &stuck, KEYS_AT_ONCE).await.expect("the inbox is read");
        let mut retried = 0;
        for entry in entries {
            match inbox::retry(&mut conn, &entry, u32::MAX, &By::new("consumer-chaos")).await {
                Ok(_) => retried += 1,
                // Somebody was faster.
                Err(error) if error.kind() == Kind::Conflict => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        retried
    }

    /// Whether nothing is parked and everything up to these ends is seen to.
    pub(super) async fn is_drained(&self, ends: &[i64]) -> bool {
        let parked: i64 = self.count("SELECT count(*) FROM tailrace.parked_message").await;
        parked == 0 && self.progress().await == ends
    }

    /// Where each partition goes on, in their order.
    async fn progress(&self) -> Vec<i64> {
        sqlx::query_scalar(
            "SELECT coalesce(min(coalesce(next_offset, 0)), 0)
             FROM generate_series(0, $2 - 1) AS number
             LEFT JOIN tailrace.consumer_progress AS stored
                 ON stored.partition = number AND stored.consumer = $1 AND stored.topic = $1
             GROUP BY number ORDER BY number",
        )
        .bind(&self.topic)
        .bind(PARTITIONS)
        .fetch_all(&self.pool)
        .await
        .expect("progress is read")
    }

    /// Where each partition ends.
    pub(super) async fn ends(&self) -> Vec<i64> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        let topic = self.topic.clone();
        let asking = tokio::task::spawn_blocking(move || {
            let client: BaseConsumer = config.create().expect("a client is made");
            let end = |partition| {
                let marks = client.fetch_watermarks(&topic, partition, PRODUCE_MAX);
                marks.expect("the broker answers").1
            };
            (0..PARTITIONS).map(end).collect()
        });
        asking.await.expect("the brokers are asked")
    }

    /// What is true, by nothing but what was expected and what is there.
    pub(super) async fn judge(&self, report: &mut Report) {
        report.figure("effects", self.count("SELECT count(*) FROM effect").await);
        for (what, sql) in FAULTS {
            let found = self.count(sql).await;
            report.figure(what, found);
            if found != 0 {
                report.faults.push(format!("{what}: {found}"));
            }
        }
    }

    pub(super) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.expect("the rows are counted")
    }
}

/// Each of these counts is to be nothing.
const FAULTS: [(&str, &str); 6] = [
    (
        "messages without an effect",
        "SELECT count(*) FROM expected WHERE NOT EXISTS
             (SELECT FROM effect WHERE effect.message_id = expected.message_id)",
    ),
    (
        "effects too many",
        "SELECT count(*) - count(DISTINCT message_id) FROM effect",
    ),
    (
        "effects of no message",
        "SELECT count(*) FROM effect LEFT JOIN expected USING (message_id, key, sequence)
         WHERE expected.message_id IS NULL",
    ),
    (
        "effects out of order",
        "SELECT count(*) FROM (
             SELECT sequence, place, lag(sequence, 1, 0::bigint) OVER (PARTITION BY key ORDER BY written) AS before
             FROM effect) AS ordered
         WHERE sequence <> before + 1 OR place <> sequence",
    ),
    ("messages that are parked", "SELECT count(*) FROM tailrace.parked_message"),
    ("dead letters", "SELECT count(*) FROM tailrace.dead_letter"),
];

fn name(key: u64) -> String {
    format!("key-{key}")
}

fn make(messages: usize, keys: u64, dice: &mut Dice) -> Vec<Message> {
    let mut sequences = std::collections::HashMap::new();
    let message = |_| {
        let key = dice.below(keys);
        let sequence = sequences.entry(key).or_insert(0);
        *sequence += 1;
        Message { id: Uuid::now_v7(), key: name(key), sequence: *sequence }
    };
    (0..messages).map(message).collect()
}

/// The first copies in their order, and each second one somewhere behind its first.
fn records(messages: usize, dice: &mut Dice) -> Vec<usize> {
    let mut placed = Vec::with_capacity(2 * messages);
    for at in 0..messages {
        let furthest =
            usize::try_from(dice.below(4)).ok().and_then(|kind| BEHIND.get(kind).copied());
        let furthest = furthest.unwrap_or(messages as u64);
        let behind = usize::try_from(dice.below(furthest)).unwrap_or_default();
        // First copies come before the second ones of the same place.
        placed.push((at, false, at));
        placed.push((at + behind, true, at));
    }
    placed.sort_unstable();
    placed.into_iter().map(|(_, _, at)| at).collect()
}

fn send(producer: &BaseProducer, topic: &str, Message { id, key, sequence }: &Message) {
    let id = id.to_string();
    let headers = [("ce_id", id.as_str()), ("ce_type", "sequenced.v1")]
        .into_iter()
        .fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value) })
        });
    let payload = format!(r#"{{"sequence":{sequence}}}"#);
    let record = BaseRecord::to(topic).key(key).payload(&payload).headers(headers);
    producer.send(record).map_err(|(error, _)| error).expect("the queue has room");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_record_comes_twice_and_first_copies_in_their_order() {
        let records = records(1_000, &mut Dice::from_seed(7));

        let mut seen = std::collections::BTreeMap::new();
        let mut firsts = Vec::new();
        for at in records {
            let times = seen.entry(at).or_insert(0);
            *times += 1;
            if *times == 1 {
                firsts.push(at);
            }
        }
        assert_eq!(firsts, (0..1_000).collect::<Vec<_>>());
        assert!(seen.values().all(|times| *times == 2));
    }
}
