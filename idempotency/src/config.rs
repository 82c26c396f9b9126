//! What a consumer needs to know before it starts.

use std::fmt;
use std::time::Duration;

use sqlx::PgPool;

use crate::breaker::Breaker;
use crate::dedupe::{Dedupe, Unsequenced};
use crate::error::{Error, Kind};
use crate::health::Health;
use crate::lanes::LANES_LIMIT;
use crate::outage;
use crate::retry::{OnFailure, OutOfHorizon, Policy};

/// Properties of librdkafka that the guarantees rest on.
const RESERVED: &[&str] = &[
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "group.id",
    "group.protocol",
    "isolation.level",
    "metadata.broker.list",
    "partition.assignment.strategy",
];

/// Properties that only the older group protocol has; with the newer one they are set at the brokers.
const CLASSIC_PROPERTIES: &[&str] =
    &["session.timeout.ms", "heartbeat.interval.ms", "group.protocol.type"];

/// The most records that one transaction may hold.
const BATCH_RECORDS_LIMIT: usize = 10_000;

/// Repetitions in place hold up the whole lane.
const RETRIES_LIMIT: u32 = 10;

/// Each call is a task, and its record is held in memory.
const CALLS_LIMIT: usize = 1000;

/// What is shorter has no room for the parts that it is divided into.
const REBALANCE_DEADLINE_MIN: Duration = Duration::from_millis(100);

/// `idle_in_transaction_session_timeout` is 31 bits of milliseconds, which are almost 25 days.
const REBALANCE_DEADLINE_MAX: Duration = Duration::from_secs(24 * 86_400);

/// Kafka's bound on the length of a group id is that of its protocol's strings; this one keeps keys short.
const CONSUMER_NAME_LENGTH_MAX: usize = 200;

/// Where a consumer without progress in a partition begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Start {
    /// At the oldest record that the topic still holds.
    #[default]
    Earliest,
    /// After the newest committed record. The place is stored for all partitions of the topic when the consumer meets
    /// it first: a restart before the first record skips nothing, and a partition that the topic gets later is read
    /// from its beginning.
    Latest,
    /// Where the group of this name has committed in Kafka, for a service that takes over from another consumer; at
    /// the oldest record in partitions without such an offset.
    KafkaCommitted,
}

/// How the members of a consumer group share the partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum GroupProtocol {
    /// The newer protocol where the brokers serve it, else the older one; a consumer finds out when it joins. The older
    /// one also where a property of it is set (see [`Config::kafka_property`]). Members of either can share a group
    /// while a service is rolled out, unless the brokers forbid it (`group.consumer.migration.policy`).
    #[default]
    Auto,
    /// The protocol of all brokers, cooperative: only partitions that move are interrupted.
    Classic,
    /// That of KIP-848 (Kafka 4.0): the brokers decide who reads what, and no member waits for the slowest. The
    /// consumer halts where they do not serve it.
    Consumer,
}

/// The configuration of a [`Consumer`](crate::Consumer).
///
/// The pool needs one connection per lane of each assigned partition for full speed, and works with one.
#[derive(Clone)]
pub struct Config<S = ()> {
    pub(crate) state: S,
    pub(crate) options: Options,
}

/// Everything but the state, whose type changes when it is given.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) consumer: String,
    pub(crate) brokers: String,
    pub(crate) pool: PgPool,
    pub(crate) start: Start,
    pub(crate) batch_records_max: usize,
    pub(crate) batch_wait: Duration,
    pub(crate) retry_for: Duration,
    pub(crate) database_breaker: Breaker,
    pub(crate) policy: Policy,
    pub(crate) dedupe: Dedupe,
    pub(crate) unsequenced: Unsequenced,
    pub(crate) calls_max: usize,
    pub(crate) start_deadline: Duration,
    pub(crate) shutdown_deadline: Duration,
    pub(crate) rebalance_deadline: Duration,
    /// None is what goes with the deadline for rebalances.
    pub(crate) handler_time_out: Option<Duration>,
    pub(crate) lanes: u16,
    pub(crate) group_protocol: GroupProtocol,
    pub(crate) kafka_properties: Vec<(String, String)>,
    pub(crate) health: Health,
}

impl Config {
    /// A configuration with the consumer's name, the brokers (`host:port`, comma-separated) and the database
    /// that holds both the service's tables and those of this crate.
    ///
    /// The name is the Kafka group id and the owner of claims and progress: two services that must both see
    /// every message need two names, and a renamed consumer begins anew.
    ///
    /// All processes of a consumer have the same database: claims and progress are there. Two of one name with different
    /// databases would share the partitions, and each effect would be in one database or in both; nothing tells them.
    pub fn new(consumer: impl Into<String>, brokers: impl Into<String>, pool: PgPool) -> Self {
        Self {
            state: (),
            options: Options {
                consumer: consumer.into(),
                brokers: brokers.into(),
                pool,
                start: Start::default(),
                batch_records_max: 500,
                batch_wait: Duration::from_millis(5),
                retry_for: Duration::from_secs(60),
                database_breaker: outage::breaker(),
                policy: Policy::default(),
                dedupe: Dedupe::default(),
                unsequenced: Unsequenced::default(),
                calls_max: 16,
                start_deadline: Duration::from_secs(10),
                shutdown_deadline: Duration::from_secs(20),
                rebalance_deadline: Duration::from_secs(20),
                handler_time_out: None,
                lanes: 1,
                group_protocol: GroupProtocol::default(),
                kafka_properties: Vec::new(),
                health: Health::default(),
            },
        }
    }

    /// The state that handlers share. Default: `()`.
    pub fn state<S>(self, state: S) -> Config<S> {
        Config { state, options: self.options }
    }
}

impl Options {
    /// By default some time is left before Postgres ends the session, so that it is known whose fault it was.
    pub(crate) fn handler_time_out(&self) -> Duration {
        self.handler_time_out.unwrap_or(self.rebalance_deadline / 4 * 3)
    }

    pub(crate) fn has_classic_properties(&self) -> bool {
        self.kafka_properties.iter().any(|(name, _)| CLASSIC_PROPERTIES.contains(&name.trim()))
    }
}

impl<S> Config<S> {
    /// The pool of its database, for whoever builds upon a consumer.
    pub fn pool(&self) -> &PgPool {
        &self.options.pool
    }

    /// Where to begin in a partition without progress. Default: [`Start::Earliest`].
    #[must_use]
    pub fn start(mut self, start: Start) -> Self {
        self.options.start = start;
        self
    }

    /// The most records that share a transaction, 1 to 10,000. Default: 500.
    #[must_use]
    pub fn batch_records_max(mut self, records: usize) -> Self {
        self.options.batch_records_max = records;
        self
    }

    /// How long a batch waits for more records, at most one second. Default: 5 ms.
    #[must_use]
    pub fn batch_wait(mut self, wait: Duration) -> Self {
        self.options.batch_wait = wait;
        self
    }

    /// How long a batch is repeated at transient faults of the database before the consumer halts. A database that is
    /// away is waited for without an end: see [`database_breaker`](Self::database_breaker). Default: 60 s.
    #[must_use]
    pub fn retry_for(mut self, time: Duration) -> Self {
        self.options.retry_for = time;
        self
    }

    /// The breaker around Postgres. Attempts that find nobody there open it: nothing is applied and nothing more is taken
    /// from Kafka, while the consumer stays in its group; then one lane tries now and then, and all go on when Postgres
    /// answers. Keep a clone to watch its state. Default: it opens at the second of four attempts that fails, and lets
    /// one through each second.
    #[must_use]
    pub fn database_breaker(mut self, breaker: Breaker) -> Self {
        self.options.database_breaker = breaker;
        self
    }

    /// How a message that was applied already is known. It is kept in the database with the first start, and another
    /// choice later halts the consumer: see [`Dedupe`]. Default: [`Dedupe::ProcessedMessages`].
    #[must_use]
    pub fn dedupe(mut self, dedupe: Dedupe) -> Self {
        self.options.dedupe = dedupe;
        self
    }

    /// What happens to a record without a sequence where messages are known by [`Dedupe::Position`]. Default:
    /// [`Unsequenced::Halt`].
    #[must_use]
    pub fn unsequenced(mut self, unsequenced: Unsequenced) -> Self {
        self.options.unsequenced = unsequenced;
        self
    }

    /// What happens to a message that keeps failing. Default: [`OnFailure::Park`].
    #[must_use]
    pub fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.options.policy.on_failure = on_failure;
        self
    }

    /// How often a failing message is tried again at once, before it is set aside, at most 10. It is not waited
    /// in between, since its lane would stand still meanwhile: waits are for parked messages. Default: 1.
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.options.policy.retries = retries;
        self
    }

    /// How long a parked message waits for its next attempt: `first`, and with each attempt twice as long, up to
    /// `max`. Up to a half is taken off at random. Default: 1 s and 5 minutes.
    #[must_use]
    pub fn parked_wait(mut self, first: Duration, max: Duration) -> Self {
        self.options.policy.parked_wait = first;
        self.options.policy.parked_wait_max = max;
        self
    }

    /// After how many attempts a parked message is stuck: it is not tried again until a person says so, and its
    /// key waits. Default: 20, which the default waits make about an hour.
    #[must_use]
    pub fn attempts_max(mut self, attempts: u32) -> Self {
        self.options.policy.attempts_max = attempts;
        self
    }

    /// How many keys of a partition may be parked. At that number nothing more is taken from the partition until
    /// fewer are: what fails for every key is no fault of the messages. Default: 1,000.
    #[must_use]
    pub fn parked_keys_max(mut self, keys: usize) -> Self {
        self.options.policy.parked_keys_max = keys;
        self
    }

    /// How many calls of a lane are made at once, 1 to 1,000: see [`Call`](crate::Call). Default: 16.
    #[must_use]
    pub fn calls_max(mut self, calls: usize) -> Self {
        self.options.calls_max = calls;
        self
    }

    /// What happens to a message that is older than claims are kept, or from the future. Default:
    /// [`OutOfHorizon::Reject`].
    #[must_use]
    pub fn out_of_horizon(mut self, out_of_horizon: OutOfHorizon) -> Self {
        self.options.policy.out_of_horizon = out_of_horizon;
        self
    }

    /// A topic to which dead letters are sent too, beside their row in `tailrace.dead_letter`. `{topic}` stands for
    /// the name of the record's topic, as in `{topic}.dead-letter`. They are written by the SQL function
    /// `tailrace.emit_bytes` of `tailrace-outbox`, in the transaction of the row, and published by its relay.
    /// Default: none.
    #[must_use]
    pub fn dead_letter_topic(mut self, topic: Option<impl Into<String>>) -> Self {
        self.options.policy.dead_letter_topic = topic.map(Into::into);
        self
    }

    /// How long the start waits for Postgres and for the brokers, each. Default: 10 s.
    #[must_use]
    pub fn start_deadline(mut self, deadline: Duration) -> Self {
        self.options.start_deadline = deadline;
        self
    }

    /// How long a shutdown, or a partition's move, waits for running batches; what takes longer is rolled
    /// back. A shutdown in the middle of a rebalance also waits for that, no longer in all, so that the group does not
    /// wait for a member that is gone. Default: 20 s.
    #[must_use]
    pub fn shutdown_deadline(mut self, deadline: Duration) -> Self {
        self.options.shutdown_deadline = deadline;
        self
    }

    /// How long a former owner of a partition that is stopped inside its transaction can hold up the next one, 100 ms
    /// to 24 days. A quarter of it is left to the former owner to finish, then its session is ended. It is also the
    /// `idle_in_transaction_session_timeout` of a batch: a handler that does something else for longer than this between
    /// two statements loses its transaction, and has failed. Default: 20 s.
    #[must_use]
    pub fn rebalance_deadline(mut self, deadline: Duration) -> Self {
        self.options.rebalance_deadline = deadline;
        self
    }

    /// How long a handler may take, for a message or, where it takes batches, for as many as it is given at once. One that
    /// takes longer is cut off: its transaction is rolled back, its connection closed, and its messages have failed as if
    /// it had answered with an error; with [`OnFailure::Halt`] a batch is tried once more before the consumer halts, for it
    /// may have been the process that stood still. One that blocks its thread is not cut off, but told by
    /// [`Health::faults`](crate::Health::faults).
    ///
    /// More than [`rebalance_deadline`](Self::rebalance_deadline) is of use for handlers whose statements take long:
    /// Postgres ends the session of one that waits for anything else for longer than that. Default: three quarters of
    /// `rebalance_deadline`, thus 15 s.
    #[must_use]
    pub fn handler_time_out(mut self, time: Duration) -> Self {
        self.options.handler_time_out = Some(time);
        self
    }

    /// How many batches of a partition run at once, 1 to 64. Records of a key keep their order, those of
    /// different keys may overtake one another; records without a key take turns over the lanes. Each lane of
    /// each assigned partition needs a connection for full speed. The number may change from one start to the
    /// next. Default: 1.
    #[must_use]
    pub fn lanes(mut self, lanes: u16) -> Self {
        self.options.lanes = lanes;
        self
    }

    /// How the members of the group share the partitions. Default: [`GroupProtocol::Auto`].
    #[must_use]
    pub fn group_protocol(mut self, protocol: GroupProtocol) -> Self {
        self.options.group_protocol = protocol;
        self
    }

    /// A property of librdkafka, for example for TLS or SASL. Those that the guarantees rest on are refused
    /// by [`validate`](Self::validate).
    #[must_use]
    pub fn kafka_property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.kafka_properties.push((name.into(), value.into()));
        self
    }

    /// A handle that tells how the consumer is, for whoever leaves its making to something else (a participant of sagas,
    /// a choreography, an observer). It is for one consumer. Default: one of its own, see
    /// [`Consumer::health`](crate::Consumer::health).
    #[must_use]
    pub fn health(mut self, health: Health) -> Self {
        self.options.health = health;
        self
    }

    /// Checks every option and lists all faults in one error. A consumer does so before it starts.
    ///
    /// # Errors
    /// [`Kind::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        faults(self.faults())
    }

    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |good: bool, fault: String| {
            if !good {
                faults.push(fault);
            }
        };
        check(
            (1..=CONSUMER_NAME_LENGTH_MAX).contains(&self.options.consumer.len()),
            format!("the consumer's name must have 1 to {CONSUMER_NAME_LENGTH_MAX} bytes"),
        );
        check(!self.options.brokers.trim().is_empty(), "the brokers are empty".to_owned());
        check(
            (1..=BATCH_RECORDS_LIMIT).contains(&self.options.batch_records_max),
            format!("batch_records_max must be 1 to {BATCH_RECORDS_LIMIT}"),
        );
        check(
            self.options.batch_wait <= Duration::from_secs(1),
            "batch_wait must be one second at most".to_owned(),
        );
        check(!self.options.start_deadline.is_zero(), "start_deadline must not be zero".to_owned());
        let shutdown_deadline = self.options.shutdown_deadline;
        check(!shutdown_deadline.is_zero(), "shutdown_deadline must not be zero".to_owned());
        let policy = &self.options.policy;
        check(policy.retries <= RETRIES_LIMIT, format!("retries must be {RETRIES_LIMIT} at most"));
        check(policy.attempts_max > 0, "attempts_max must not be zero".to_owned());
        check(
            (1..=CALLS_LIMIT).contains(&self.options.calls_max),
            format!("calls_max must be 1 to {CALLS_LIMIT}"),
        );
        check(policy.parked_keys_max > 0, "parked_keys_max must not be zero".to_owned());
        check(
            !policy.parked_wait.is_zero() && policy.parked_wait <= policy.parked_wait_max,
            "parked_wait must not be zero, and its first wait not longer than the longest"
                .to_owned(),
        );
        check(
            policy.dead_letter_topic.as_ref().is_none_or(|topic| !topic.is_empty()),
            "dead_letter_topic is empty".to_owned(),
        );
        check(
            (REBALANCE_DEADLINE_MIN..=REBALANCE_DEADLINE_MAX)
                .contains(&self.options.rebalance_deadline),
            "rebalance_deadline must be 100 ms to 24 days".to_owned(),
        );
        let time_out = self.options.handler_time_out();
        check(!time_out.is_zero(), "handler_time_out must not be zero".to_owned());
        check(
            (1..=LANES_LIMIT).contains(&self.options.lanes),
            format!("lanes must be 1 to {LANES_LIMIT}"),
        );
        check(
            self.options.group_protocol != GroupProtocol::Consumer
                || !self.options.has_classic_properties(),
            format!(
                "group_protocol is Consumer, in which the brokers set {}",
                CLASSIC_PROPERTIES.join(", ")
            ),
        );
        for fault in self.options.database_breaker.faults() {
            check(false, format!("database_breaker: {fault}"));
        }
        for (name, _) in &self.options.kafka_properties {
            check(
                !RESERVED.contains(&name.trim()),
                format!("the kafka property {name} is set by the consumer and cannot be changed"),
            );
        }
        faults
    }
}

pub(crate) fn faults(faults: Vec<String>) -> Result<(), Error> {
    if faults.is_empty() { Ok(()) } else { Err(Error::new(Kind::Config, faults.join("; "))) }
}

impl<S> fmt::Debug for Config<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values of properties may be passwords.
        let properties: Vec<_> =
            self.options.kafka_properties.iter().map(|(name, _)| name).collect();
        f.debug_struct("Config")
            .field("consumer", &self.options.consumer)
            .field("brokers", &self.options.brokers)
            .field("start", &self.options.start)
            .field("batch_records_max", &self.options.batch_records_max)
            .field("batch_wait", &self.options.batch_wait)
            .field("retry_for", &self.options.retry_for)
            .field("policy", &self.options.policy)
            .field("dedupe", &self.options.dedupe)
            .field("unsequenced", &self.options.unsequenced)
            .field("calls_max", &self.options.calls_max)
            .field("start_deadline", &self.options.start_deadline)
            .field("shutdown_deadline", &self.options.shutdown_deadline)
            .field("rebalance_deadline", &self.options.rebalance_deadline)
            .field("handler_time_out", &self.options.handler_time_out())
            .field("lanes", &self.options.lanes)
            .field("group_protocol", &self.options.group_protocol)
            .field("kafka_properties", &properties)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_faults_are_listed_at_once() {
        let pool = PgPool::connect_lazy("postgres://localhost/none").unwrap();
        let config = Config::new("", " ", pool)
            .batch_records_max(0)
            .kafka_property("enable.auto.commit", "true")
            .kafka_property("sasl.password", "secret");

        let error = config.validate().unwrap_err();

        let text = error.to_string();
        assert_eq!(error.kind(), Kind::Config);
        for part in ["name", "brokers", "batch_records_max", "enable.auto.commit"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        assert!(!format!("{config:?} {text}").contains("secret"));
    }

    #[tokio::test]
    async fn a_deadline_that_postgres_has_no_time_for_is_a_fault_and_no_panic() {
        let pool = PgPool::connect_lazy("postgres://localhost/none").unwrap();
        let config = |deadline| Config::new("c", "b:1", pool.clone()).rebalance_deadline(deadline);

        for wrong in [Duration::MAX, Duration::from_secs(25 * 86_400), Duration::from_millis(99)] {
            let error = config(wrong).validate().unwrap_err().to_string();
            assert!(error.contains("rebalance_deadline must be 100 ms to 24 days"), "{error}");
            assert!(format!("{:?}", config(wrong)).contains("handler_time_out"));
        }
        assert!(config(Duration::from_secs(24 * 86_400)).validate().is_ok());
        assert_eq!(config(Duration::from_secs(20)).options.handler_time_out().as_secs(), 15);
    }
}
