//! How many transitions an engine makes of replies that lie in Kafka, beside the same rows by hand.
//!
//! Sagas that wait for their first reply are made by SQL, and all replies to all of their steps lie in a topic. In turn, an
//! engine takes them from there, and hand-written code writes what it leaves, in batches of the same size over as many
//! connections, each in a fresh database. The code by hand reads no topic and decides nothing: its texts are made before.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgPool};
use tailrace_idempotency::Config;
use tailrace_saga::{Counters, Engine, REPLY_TYPE, SagaId};
use tailrace_stack::{Database, Stack, unique};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::by_hand;
use super::shop::{REPLIES, make_topics, order_saga};
use super::template::Template;
use crate::figure::{self, Figure, quantile};
use crate::relay_reader::blocking;

type Failure = Box<dyn Error + Send + Sync>;

/// How long one turn may take.
const LIMIT: Duration = Duration::from_secs(300);

/// Partitions of the topic with the replies, and connections that write by hand.
pub(crate) const PARTITIONS: i32 = 6;

/// Records of a transaction: what an engine takes at most.
const BATCH_RECORDS: usize = 200;

/// What decides how durable a commit is.
const SETTINGS: &str = "select string_agg(name || '=' || setting, ' ' order by name) from pg_settings \
     where name in ('fsync', 'synchronous_commit', 'full_page_writes', 'wal_level', 'shared_buffers', 'max_wal_size')";

/// How much is measured.
#[derive(Args, Debug)]
#[group(skip)]
pub(crate) struct Options {
    /// Sagas of a turn; each has three transitions
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    sagas: u64,
    /// Pairs of turns, one of the engine and one by hand
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
}

/// Sagas that wait for their first reply, and a topic with all of their replies.
pub(crate) struct Backlog {
    pub(crate) template: Arc<Template>,
    brokers: String,
    prefix: String,
    ids: Vec<Uuid>,
}

/// A database with the tables of an orchestrator.
pub(crate) struct Orchestrator {
    _database: Database,
    pub(crate) pool: PgPool,
}

pub(crate) async fn measure(stack: &Stack, options: &Options) -> Result<Vec<Figure>, Failure> {
    let bar = ProgressBar::new(u64::from(options.runs) * 2).with_message("turns");
    let backlog = Backlog::new(stack, options.sagas).await?;
    let mut rounds = Vec::new();
    for run in 0..options.runs {
        let ours = async || backlog.drain(&Orchestrator::new(stack).await?, &bar).await;
        let by_hand = async || backlog.by_hand(&Orchestrator::new(stack).await?, &bar).await;
        // What the machine does besides is before the one and before the other.
        let (ours, by_hand) = if run % 2 == 0 {
            let by_hand = by_hand().await?;
            (ours().await?, by_hand)
        } else {
            (ours().await?, by_hand().await?)
        };
        rounds.push((ours, by_hand));
    }
    bar.finish_and_clear();
    let median =
        |of: &dyn Fn(&(f64, f64)) -> f64| quantile(&rounds.iter().map(of).collect::<Vec<_>>(), 0.5);
    let ratios: Vec<f64> = rounds.iter().map(|(ours, by_hand)| ours / by_hand).collect();
    Ok(vec![Figure {
        scenario: "saga",
        variant: "transitions".to_owned(),
        metric: "transitions_per_second",
        unit: "/s",
        value: median(&|round| round.0),
        reference: "the same rows by hand",
        reference_value: median(&|round| round.1),
        ratio: quantile(&ratios, 0.5),
        runs: rounds.len(),
        min: quantile(&ratios, 0.0),
        max: quantile(&ratios, 1.0),
    }])
}

impl Orchestrator {
    pub(crate) async fn new(stack: &Stack) -> Result<Self, Failure> {
        let database = stack.postgres().fresh_database("saga").await?;
        let options: PgConnectOptions = database.url().parse()?;
        let pool = PgPoolOptions::new()
            .max_connections(u32::try_from(PARTITIONS)? + 3)
            .connect_with(options.disable_statement_logging())
            .await?;
        let mut conn = pool.acquire().await?;
        tailrace_idempotency::schema::install(&mut conn).await?;
        tailrace_idempotency::retention::make_partitions_ahead(&mut conn).await?;
        tailrace_saga::schema::install(&mut conn).await?;
        drop(conn);
        Ok(Self { _database: database, pool })
    }
}

impl Backlog {
    pub(crate) async fn new(stack: &Stack, sagas: u64) -> Result<Self, Failure> {
        let template = Arc::new(Template::new()?);
        let prefix = format!("{}.", unique("saga"));
        let brokers = stack.kafka().brokers().to_owned();
        make_topics(&brokers, &prefix, PARTITIONS).await?;
        let ids: Vec<Uuid> = (0..sagas).map(|_| Uuid::now_v7()).collect();
        let backlog = Self { template, brokers, prefix, ids };
        backlog.fill_topic().await?;
        Ok(backlog)
    }

    /// All first replies, then all second ones, then all third ones.
    async fn fill_topic(&self) -> Result<(), Failure> {
        let (brokers, ids) = (self.brokers.clone(), self.ids.clone());
        let (topic, template) = (format!("{}{REPLIES}", self.prefix), Arc::clone(&self.template));
        blocking(move || {
            let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
                .set("bootstrap.servers", &brokers)
                .set("enable.idempotence", "true")
                .set("partitioner", "murmur2_random")
                .create()?;
            let asked = template.stages.iter().filter_map(|stage| stage.asks.as_ref());
            for (step, reply) in asked {
                let payload = serde_json::to_vec(reply)?;
                for id in &ids {
                    let headers = headers(&template, *id, step);
                    let key = id.to_string();
                    let mut record =
                        BaseRecord::to(&topic).key(&key).payload(&payload).headers(headers);
                    while let Err((error, refused)) = producer.send(record) {
                        let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
                        if error != full {
                            return Err(error.into());
                        }
                        producer.flush(LIMIT)?;
                        record = refused;
                    }
                }
            }
            producer.flush(LIMIT)?;
            Ok(())
        })
        .await
    }

    /// Makes the sagas that the replies are for.
    async fn place(&self, place: &Orchestrator) -> Result<(), Failure> {
        let mut conn = place.pool.acquire().await?;
        self.template.fill(&mut conn, &self.ids, 0, &ProgressBar::hidden()).await?;
        sqlx::raw_sql("analyze; checkpoint").execute(&mut *conn).await?;
        Ok(())
    }

    async fn by_hand(&self, place: &Orchestrator, bar: &ProgressBar) -> Result<f64, Failure> {
        self.place(place).await?;
        let settings: String = sqlx::query_scalar(SETTINGS).fetch_one(&place.pool).await?;
        if bar.position() == 0 {
            figure::tell(&format!("postgres: {settings}"));
        }
        let rate = by_hand::write(&place.pool, &self.template, &self.ids, BATCH_RECORDS).await?;
        self.must_be_over(place).await?;
        bar.inc(1);
        Ok(rate)
    }

    /// Has an engine take all replies; answers with the transitions per second.
    pub(crate) async fn drain(
        &self,
        place: &Orchestrator,
        bar: &ProgressBar,
    ) -> Result<f64, Failure> {
        self.place(place).await?;
        let config: Config = Config::new(unique("saga"), &self.brokers, place.pool.clone());
        let engine = Engine::new().topic_prefix(&self.prefix).saga(&order_saga()?);
        let counters = engine.counters();
        let (stop, stopped) = oneshot::channel::<()>();
        let mut running = tokio::spawn(engine.run(config, async move {
            stopped.await.ok();
        }));
        let all = u64::try_from(self.ids.len() * (self.template.stages.len() - 1))?;
        let rate = tokio::select! {
            rate = rate(&counters, all) => rate?,
            ended = &mut running => return Err(format!("the engine ended: {:?}", ended?).into()),
        };
        stop.send(()).ok();
        running.await??;
        self.must_be_over(place).await?;
        bar.inc(1);
        Ok(rate)
    }

    /// Both must have left the same.
    async fn must_be_over(&self, place: &Orchestrator) -> Result<(), Failure> {
        let (instances, entries, claims): (i64, i64, i64) = sqlx::query_as(
            "select (select count(*) from tailrace.saga_instance where id = any ($1) and status = 'completed'), \
                 (select count(*) from tailrace.saga_journal where saga_id = any ($1)), \
                 (select count(*) from tailrace.processed_message)",
        )
        .bind(&self.ids)
        .fetch_one(&place.pool)
        .await?;
        let sagas = i64::try_from(self.ids.len())?;
        let stages = i64::try_from(self.template.stages.len())?;
        if (instances, entries) != (sagas, sagas * stages) || claims < sagas * (stages - 1) {
            return Err(format!(
                "{instances} of {sagas} sagas are over, with {entries} entries and {claims} claims"
            )
            .into());
        }
        Ok(())
    }
}

fn headers(template: &Template, saga: Uuid, step: &str) -> OwnedHeaders {
    let id = Uuid::now_v7().to_string();
    let fixed = [
        ("ce_specversion", "1.0"),
        ("ce_id", id.as_str()),
        ("ce_type", REPLY_TYPE),
        ("ce_source", "/bench"),
        ("content-type", "application/json"),
        ("ce_correlationid", id.as_str()),
    ];
    let attributes = template.reply(SagaId::from_uuid(saga), step);
    let attributes = attributes.iter().map(|(name, value)| (*name, value.as_str()));
    fixed.into_iter().chain(attributes).fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value) })
    })
}

/// Transitions per second between the first look that finds some and the last one.
async fn rate(counters: &Counters, transitions: u64) -> Result<f64, Failure> {
    let deadline = Instant::now() + LIMIT;
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    let mut first = None;
    loop {
        tick.tick().await;
        let report = counters.report();
        let made = report.transitions;
        let (since, before) = match first {
            None if made == 0 => (Instant::now(), 0),
            None => *first.insert((Instant::now(), made)),
            Some(first) => first,
        };
        if made >= transitions {
            return Ok((made - before) as f64 / since.elapsed().as_secs_f64());
        }
        if Instant::now() > deadline {
            return Err(format!("of {transitions} transitions there are {report:?}").into());
        }
    }
}
