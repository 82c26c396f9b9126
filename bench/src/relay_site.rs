//! Database, topics and slots of one measurement, and what the servers promise about them.

use std::error::Error;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::Consumer;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tailrace_cdc_relay::Lsn;
use tailrace_outbox::Message;
use tailrace_outbox::journal::Retention;
use tailrace_stack::{Database, Stack, unique};
use tokio::time::{Instant, interval};

use crate::figure;
use crate::relay_backlog::Source;
use crate::relay_process::{Mode, RelayArguments, RelayProcess};
use crate::relay_reader::{self, Isolation};

type Failure = Box<dyn Error + Send + Sync>;

/// Partitions of the topic that takes the messages.
pub(crate) const PARTITIONS: i32 = 6;

const ANSWER_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What decides how durable a commit is, in Postgres.
const POSTGRES_SETTINGS: [&str; 7] = [
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "wal_sync_method",
    "shared_buffers",
    "max_wal_size",
];

/// The same in Kafka.
const KAFKA_SETTINGS: [&str; 6] = [
    "log.flush.interval.messages",
    "log.flush.interval.ms",
    "min.insync.replicas",
    "default.replication.factor",
    "transaction.state.log.replication.factor",
    "unclean.leader.election.enable",
];

/// A database with the outbox in it, and the topics that its messages go to.
pub(crate) struct Site {
    database: Database,
    brokers: String,
    pub(crate) connection: PgConnection,
    /// Of [`PARTITIONS`].
    pub(crate) topic: String,
    /// Of one partition, for the first message of all.
    pub(crate) first_topic: String,
    /// Of one partition, for the last message of all.
    pub(crate) last_topic: String,
}

impl Site {
    pub(crate) async fn new(stack: &Stack, name: &str) -> Result<Self, Failure> {
        let database = stack.postgres().fresh_database(name).await?;
        let mut connection = PgConnection::connect(database.url()).await?;
        tailrace_outbox::schema::install(&mut connection).await?;
        tailrace_outbox::journal::maintain(&mut connection, &Retention::default()).await?;
        let kafka = stack.kafka();
        Ok(Site {
            brokers: kafka.brokers().to_owned(),
            connection,
            topic: kafka.fresh_topic(name, PARTITIONS).await?,
            first_topic: kafka.fresh_topic(&format!("{name}_first"), 1).await?,
            last_topic: kafka.fresh_topic(&format!("{name}_last"), 1).await?,
            database,
        })
    }

    pub(crate) fn url(&self) -> &str {
        self.database.url()
    }

    pub(crate) fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Arguments of a relay that nobody has run yet.
    pub(crate) fn relay(&self, mode: Mode) -> RelayArguments {
        RelayArguments {
            database_url: self.url().to_owned(),
            brokers: self.brokers.clone(),
            slot: unique("tailrace"),
            mode,
            gather: None,
        }
    }

    /// Has a relay make its slot and its checkpoint, and go.
    pub(crate) async fn prepared(&self, mode: Mode) -> Result<RelayArguments, Failure> {
        let arguments = self.relay(mode);
        let mut relay = RelayProcess::start(&arguments)?;
        relay.says("leading").await?;
        relay.stop().await?;
        Ok(arguments)
    }

    /// A slot that no relay knows, at the present end of the log.
    pub(crate) async fn bare_slot(&mut self) -> Result<String, Failure> {
        let slot = unique("alone");
        sqlx::query("select pg_create_logical_replication_slot($1, 'pgoutput')")
            .bind(&slot)
            .execute(&mut self.connection)
            .await?;
        Ok(slot)
    }

    /// Writes one message in a transaction of its own; when this answers it is durable, and with
    /// it whatever was committed before.
    pub(crate) async fn write(&mut self, source: Source, message: &Message) -> Result<(), Failure> {
        Ok(source.outbox().write(&mut self.connection, message).await?)
    }

    /// A slot at the same place as this one.
    pub(crate) async fn copy_of_slot(&mut self, slot: &str) -> Result<String, Failure> {
        let copy = unique("copy");
        sqlx::query("select pg_copy_logical_replication_slot($1, $2)")
            .bind(slot)
            .bind(&copy)
            .execute(&mut self.connection)
            .await?;
        Ok(copy)
    }

    /// Where the durable log ends.
    pub(crate) async fn log_end(&mut self) -> Result<Lsn, Failure> {
        let end: String = sqlx::query_scalar("select pg_current_wal_flush_lsn()::text")
            .fetch_one(&mut self.connection)
            .await?;
        Ok(end.parse()?)
    }

    /// Frees the log and the disk; the database itself is the stack's.
    pub(crate) async fn clear(mut self) -> Result<(), Failure> {
        self.until_slots_are_free().await?;
        let drop_slots = "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
                          where database = current_database()";
        sqlx::query(drop_slots).execute(&mut self.connection).await?;
        sqlx::raw_sql("truncate tailrace.outbox; checkpoint").execute(&mut self.connection).await?;
        let topics = [&*self.topic, &*self.first_topic, &*self.last_topic];
        admin(&self.brokers)?.delete_topics(&topics, &patient()).await?;
        Ok(())
    }

    /// A walsender outlives its reader for a moment.
    async fn until_slots_are_free(&mut self) -> Result<(), Failure> {
        let active = "select count(*) from pg_replication_slots \
                      where database = current_database() and active";
        let deadline = Instant::now() + ANSWER_MAX;
        let mut look = interval(LOOK_EVERY);
        loop {
            look.tick().await;
            let count: i64 = sqlx::query_scalar(active).fetch_one(&mut self.connection).await?;
            if count == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!("{count} slots are still read from").into());
            }
        }
    }

    /// Says on standard error what a commit on these servers is worth.
    pub(crate) async fn tell_durability(&mut self) -> Result<(), Failure> {
        let mut postgres = Vec::new();
        for name in POSTGRES_SETTINGS {
            let show = AssertSqlSafe(format!("show {name}"));
            let value: String = sqlx::query_scalar(show).fetch_one(&mut self.connection).await?;
            postgres.push(format!("{name}={value}"));
        }
        figure::tell(&format!("postgres: {}", postgres.join(" ")));
        figure::tell(&format!("kafka: {}", self.kafka_durability().await?.join(" ")));
        figure::tell(
            "relay and producer alone: acks=all enable.idempotence=true transactional; \
             one topic of 6 partitions, 10000 keys in turn, no compression",
        );
        Ok(())
    }

    async fn kafka_durability(&self) -> Result<Vec<String>, Failure> {
        let (brokers, topic) = (self.brokers.clone(), self.topic.clone());
        let (broker, replicas) = relay_reader::blocking(move || {
            let consumer = relay_reader::consumer(&brokers, Isolation::Committed)?;
            let metadata = consumer.fetch_metadata(Some(&topic), ANSWER_MAX)?;
            let broker = metadata.brokers().first().ok_or("kafka has no broker")?.id();
            let partitions = metadata.topics().first().map(|topic| topic.partitions());
            let replicas = partitions.and_then(|all| Some(all.first()?.replicas().len()));
            Ok((broker, replicas.unwrap_or_default()))
        })
        .await?;
        let mut settings = vec![format!("replicas-of-the-topic={replicas}")];
        let resource = ResourceSpecifier::Broker(broker);
        for answer in admin(&self.brokers)?.describe_configs([&resource], &patient()).await? {
            let found = answer.map_err(|code| format!("kafka's settings: {code}"))?;
            let entries = found.entry_map();
            for name in KAFKA_SETTINGS {
                let value = entries.get(name).and_then(|entry| entry.value.clone());
                settings.push(format!("{name}={}", value.unwrap_or_else(|| "unset".to_owned())));
            }
        }
        Ok(settings)
    }
}

fn admin(brokers: &str) -> Result<AdminClient<DefaultClientContext>, Failure> {
    Ok(ClientConfig::new().set("bootstrap.servers", brokers).create()?)
}

fn patient() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER_MAX)).operation_timeout(Some(ANSWER_MAX))
}
