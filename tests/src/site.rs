//! What one test has for itself on the servers: database, slot, relay id, topics.

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection, Row};
use tailrace_stack::{Database, Postgres, Stack, unique};

use crate::crash_point::CrashPoint;
use crate::process::{Node, Process};

/// More than the writers of a proof use at once.
const CONNECTIONS_MAX: u32 = 16;

/// A database, slot, relay id and topics that no other test has, and the program to run on them.
#[derive(Debug)]
pub struct Site {
    /// Its database, on the server that is the primary now.
    pub url: String,
    /// Removed at the end, on the server where it was made.
    pub database: Database,
    /// Connections to it.
    pub pool: PgPool,
    /// The brokers' addresses.
    pub brokers: String,
    /// A slot that does not exist yet.
    pub slot: String,
    /// A relay id that nobody has used.
    pub relay_id: String,
    /// Topics that exist and are empty.
    pub topics: Vec<String>,
    node: Node,
}

/// How a relay of the `node` program differs from the usual one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Variant {
    /// Where it ends itself.
    pub die_at: Option<CrashPoint>,
    /// Records after which a batch is sealed.
    pub batch_records: Option<usize>,
    /// Bytes above which a source transaction is split.
    pub split_bytes: Option<usize>,
    /// Each message as early as can be, some of them again after a crash.
    pub at_least_once: bool,
    /// A table whose rows are messages too.
    pub table: Option<&'static str>,
    /// Rows alone are published, and large transactions are received while they are in progress.
    pub rows_alone: Option<Streaming>,
}

/// What a relay may keep of transactions in progress.
#[derive(Clone, Copy, Debug)]
pub struct Streaming {
    /// Bytes in memory.
    pub memory: usize,
    /// Bytes in files.
    pub spool_max: u64,
    /// They are received once they have committed, like all others.
    pub off: bool,
}

impl Site {
    /// Makes all of it on the servers of this stack.
    ///
    /// # Panics
    ///
    /// When a server refuses.
    pub async fn new(stack: &Stack, name: &str, topics: usize, node: &Node) -> Self {
        let database = stack.postgres().fresh_database(name).await.expect("a database is made");
        let mut made = Vec::new();
        for _ in 0..topics {
            made.push(stack.kafka().fresh_topic(name, 3).await.expect("a topic is made"));
        }
        Site {
            pool: pool(database.url()),
            url: database.url().to_owned(),
            brokers: stack.kafka().brokers().to_owned(),
            slot: unique(name),
            relay_id: unique(name),
            topics: made,
            node: node.clone(),
            database,
        }
    }

    /// Goes on with the copy of the database on another server, a standby that was promoted.
    pub fn fail_over(&mut self, server: &Postgres) {
        let name = self.database.url().rsplit_once('/').map_or("", |(_, name)| name);
        let host = server.url().rsplit_once('/').map_or("", |(host, _)| host);
        self.url = format!("{host}/{name}");
        self.pool = pool(&self.url);
    }

    /// Starts a relay that says what it does.
    pub fn relay(&self, variant: Variant) -> Process {
        let mut arguments = vec!["relay".to_owned()];
        let mut give = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        give("--database-url", self.url.clone());
        give("--kafka-brokers", self.brokers.clone());
        give("--slot", self.slot.clone());
        give("--relay-id", self.relay_id.clone());
        if let Some(point) = variant.die_at {
            give("--die-at", point.to_string());
        }
        if let Some(records) = variant.batch_records {
            give("--batch-records", records.to_string());
        }
        if let Some(bytes) = variant.split_bytes {
            give("--split-bytes", bytes.to_string());
        }
        if let Some(table) = variant.table {
            give("--table", table.to_owned());
        }
        if let Some(Streaming { memory, spool_max, off }) = variant.rows_alone {
            arguments.extend(off.then(|| "--no-streaming".to_owned()));
            arguments.push("--rows-alone".to_owned());
            arguments.extend(["--streaming-memory".to_owned(), memory.to_string()]);
            arguments.extend(["--spool-max".to_owned(), spool_max.to_string()]);
        }
        if variant.at_least_once {
            arguments.push("--at-least-once".to_owned());
        }
        self.start(arguments)
    }

    /// Starts the program in the role that the arguments name.
    pub(crate) fn start(&self, arguments: Vec<String>) -> Process {
        Process::start(&self.node, arguments)
    }

    /// The arguments that `cdc-relay run` needs here.
    pub fn run_arguments(&self) -> Vec<String> {
        self.arguments(&["run"])
    }

    /// A command of the sidecar with the arguments that it needs here.
    pub fn arguments(&self, command: &[&str]) -> Vec<String> {
        let give = |name: &str, value: &str| format!("--{name}={value}");
        let mut arguments: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
        arguments.extend([
            give("database-url", &self.url),
            give("kafka-brokers", &self.brokers),
            give("slot", &self.slot),
            give("relay-id", &self.relay_id),
            // A free one: the tests run side by side.
            give("http", "127.0.0.1:0"),
        ]);
        arguments
    }

    /// Starts the sidecar as it is shipped.
    pub fn cdc_relay(&self, arguments: &[String]) -> Process {
        Process::start(&self.node, [&["cdc-relay".to_owned()], arguments].concat())
    }

    /// Where the slot is confirmed flushed, in bytes of the log; `None` while there is no slot.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    pub async fn confirmed_flush(&self) -> Option<u64> {
        let row = sqlx::query(
            "select (confirmed_flush_lsn - '0/0')::bigint from pg_replication_slots \
             where slot_name = $1",
        )
        .bind(&self.slot)
        .fetch_optional(&self.pool)
        .await
        .expect("the server answers");
        let bytes: Option<i64> = row?.try_get(0).expect("the column is a number");
        bytes.and_then(|bytes| u64::try_from(bytes).ok())
    }

    /// Whether the slot exists and nobody reads from it.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    pub async fn slot_is_free(&self) -> bool {
        let row = sqlx::query("select not active from pg_replication_slots where slot_name = $1")
            .bind(&self.slot)
            .fetch_optional(&self.pool)
            .await
            .expect("the server answers");
        row.is_some_and(|row| row.get(0))
    }

    /// Runs SQL with the slot's name as its one parameter.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn on_slot(&self, sql: &'static str) {
        sqlx::query(sql).bind(&self.slot).execute(&self.pool).await.expect("the sql runs");
    }

    /// A connection of its own.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("the server takes a connection")
    }

    /// Deletes a topic.
    ///
    /// # Panics
    ///
    /// When the broker refuses.
    pub async fn delete_topic(&self, name: &str) {
        let admin: AdminClient<DefaultClientContext> =
            self.kafka().create().expect("the settings are valid");
        let answers = admin.delete_topics(&[name], &AdminOptions::new()).await;
        for answer in answers.expect("the broker answers") {
            answer.expect("the topic is deleted");
        }
    }

    /// Settings of an independent Kafka client.
    pub(crate) fn kafka(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }
}

fn pool(url: &str) -> PgPool {
    let options: PgConnectOptions = url.parse().expect("the stack's url is one");
    PgPoolOptions::new().max_connections(CONNECTIONS_MAX).connect_lazy_with(options)
}
