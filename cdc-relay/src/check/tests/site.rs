//! A database, a slot's name and a relay id for each test.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use tailrace_stack::{Database, Kafka, Postgres, Stack};

use crate::check::{Bounds, Level, Report, check};
use crate::checkpoint::{INTENT_KEY, Intent, Source, topic};
use crate::config::Config;
use crate::position::Incarnation;
use crate::replication::Client;

/// An answer of a server takes no longer.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// What a line has to be: its name, its level, and a part of its text.
pub(super) type Finds = (&'static str, Level, &'static str);

/// A misconfiguration that SQL makes.
pub(super) struct Case {
    pub(super) sql: &'static str,
    pub(super) finds: Finds,
}

/// Every bound as tight as can be.
pub(super) fn strict() -> Bounds {
    Bounds { transaction_age: Duration::ZERO, abandoned_bytes: 0, ..Bounds::default() }
}

pub(super) struct Site {
    pub(super) slot: String,
    pub(super) brokers: String,
    database: Database,
    sql: Client,
}

impl Site {
    pub(super) async fn new(name: &str) -> Site {
        let stack = Stack::shared().await;
        Site::on(stack.postgres(), stack.kafka(), name).await
    }

    pub(super) async fn on(postgres: &Postgres, kafka: &Kafka, name: &str) -> Site {
        let database = postgres.fresh_database(name).await.unwrap();
        let endpoint = Config::new(database.url(), "").endpoint().unwrap();
        let sql = Client::connect(&endpoint).await.unwrap();
        let brokers = kafka.brokers().to_owned();
        // Unique on the server, and so in Kafka.
        Site { slot: database.name().to_owned(), brokers, database, sql }
    }

    pub(super) fn config(&self) -> Config {
        self.config_with("")
    }

    pub(super) fn url(&self) -> &str {
        self.database.url()
    }

    /// With more parameters in the URL.
    pub(super) fn config_with(&self, parameters: &str) -> Config {
        Config::new(format!("{}&{parameters}", self.database.url()), &self.brokers)
            .slot(&self.slot)
            .relay_id(&self.slot)
    }

    pub(super) async fn client(&self) -> Client {
        Client::connect(&self.config().endpoint().unwrap()).await.unwrap()
    }

    /// Goes on after the server was away.
    pub(super) async fn reconnect(&mut self) {
        self.sql = self.client().await;
    }

    /// Runs SQL with the slot's name in the place of `{slot}`.
    pub(super) async fn run(&mut self, sql: &str) {
        self.sql.query(&sql.replace("{slot}", &self.slot)).await.unwrap();
    }

    /// The only value that the query returns.
    pub(super) async fn value(&mut self, sql: &str) -> String {
        let rows = self.sql.query(&sql.replace("{slot}", &self.slot)).await.unwrap();
        rows[0].get(0).unwrap_or_default().to_owned()
    }

    /// Checks, and demands that one line is as it should be; where it is no pass, it says how to
    /// mend it.
    #[track_caller]
    pub(super) fn finds(
        &self,
        config: &Config,
        bounds: Bounds,
        (name, level, part): Finds,
    ) -> impl Future<Output = Report> {
        let caller = std::panic::Location::caller();
        async move {
            let report = check(config, bounds).await;
            let part = part.replace("{slot}", &self.slot);
            let found = report.findings.iter().any(|finding| {
                finding.name == name
                    && finding.level == level
                    && finding.text.contains(&part)
                    && (level == Level::Ok) == finding.mend.is_empty()
            });
            assert!(found, "{caller}: no {name} {level:?} {part:?} in\n{}", report.text());
            report
        }
    }

    /// Makes a topic with these settings.
    pub(super) async fn make_topic(
        &self,
        name: &str,
        partitions: i32,
        replicas: i32,
        config: &[(&str, &str)],
    ) {
        let admin: AdminClient<DefaultClientContext> = self.kafka().create().unwrap();
        let mut wanted = NewTopic::new(name, partitions, TopicReplication::Fixed(replicas));
        for (name, value) in config {
            wanted = wanted.set(name, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(ANSWER_MAX));
        let answers = admin.create_topics([&wanted], &options).await.unwrap();
        answers.into_iter().for_each(|answer| drop(answer.unwrap()));
    }

    /// Saves an entry as a relay of this site would.
    pub(super) async fn save(&self, key: &str, value: &[u8]) {
        let producer: ThreadedProducer<DefaultProducerContext> = self.kafka().create().unwrap();
        let topic = topic(&self.slot);
        let record = BaseRecord::to(&topic).key(key).payload(value).partition(0);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        tokio::task::spawn_blocking(move || producer.flush(ANSWER_MAX)).await.unwrap().unwrap();
    }

    /// Saves that a relay was about to make the slot.
    pub(super) async fn save_intent(&mut self) {
        let name = topic(&self.slot);
        self.make_topic(&name, 1, 1, &[("cleanup.policy", "compact")]).await;
        let source = Source {
            system_identifier: self
                .value("SELECT system_identifier FROM pg_control_system()")
                .await,
            timeline: 1,
            database: self.database.name().to_owned(),
            slot: self.slot.clone(),
            incarnation: Incarnation(1),
        };
        self.save(INTENT_KEY, &Intent { source }.encode(0)).await;
    }

    fn kafka(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }
}
