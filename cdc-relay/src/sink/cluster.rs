//! What every Kafka client of the relay shares: settings, logs, and the meaning of errors.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::DeliveryResult;
use rdkafka::metadata::Metadata;
use rdkafka::producer::ProducerContext;
use rdkafka::types::RDKafkaErrorCode;

use super::complaint::Heard;
use super::refusal::Refusal;
use super::right::denied_topic;
use crate::config::is_secret_property;
use crate::error::{Error, Kind};

/// A single answer of a broker that is not waited for longer. No commit may take longer either:
/// beyond it the relay leaves the slot, so that a dead Kafka never keeps Postgres from stopping.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// After it a first answer is waited for no longer where a wrong setting keeps it away.
const HOPE: Duration = Duration::from_secs(1);

/// Settings that the guarantees rest on; a user may not set them.
const RESERVED: [&str; 19] = [
    "acks",
    "allow.auto.create.topics",
    "bootstrap.servers",
    "delivery.report.only.error",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "isolation.level",
    "message.max.bytes",
    "message.timeout.ms",
    "metadata.broker.list",
    "partitioner",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "request.required.acks",
    "transaction.timeout.ms",
    "transactional.id",
    "auto.offset.reset",
];

/// The settings to reach a cluster by.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    brokers: String,
    properties: Vec<(String, String)>,
    heard: Arc<Heard>,
}

impl Cluster {
    pub(crate) fn new(brokers: &str, properties: &[(String, String)]) -> Self {
        Cluster {
            brokers: brokers.to_owned(),
            properties: properties.to_vec(),
            heard: Arc::default(),
        }
    }

    pub(crate) fn brokers(&self) -> &str {
        &self.brokers
    }

    /// The faults of the addresses, each in words.
    pub(crate) fn broker_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.brokers.trim().is_empty() {
            faults.push(
                "no kafka brokers given: set KAFKA_BROKERS, for example localhost:9092".to_owned(),
            );
        } else {
            let wrong = self.brokers.split(',').map(str::trim).filter(|broker| !is_address(broker));
            faults.extend(
                wrong.map(|broker| {
                    format!("KAFKA_BROKERS: {broker:?} is not of the form host:port")
                }),
            );
        }
        faults
    }

    /// The faults of the properties, each in words.
    pub(crate) fn property_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, value) in &self.properties {
            if RESERVED.contains(&name.as_str()) {
                faults.push(format!(
                    "kafka property {name} can not be set: the relay's guarantees rest on it"
                ));
            } else if let Err(error) = ClientConfig::new().set(name, value).create_native_config() {
                faults.push(format!("kafka properties: {}", self.words(&error)));
            }
        }
        faults
    }

    /// Whom the brokers take the relay for, as far as its settings tell.
    pub(super) fn principal(&self) -> String {
        let user = self.properties.iter().rfind(|(name, _)| name == "sasl.username");
        user.map_or_else(|| "the relay's principal".to_owned(), |(_, user)| format!("User:{user}"))
    }

    /// Whether a property is given.
    pub(super) fn sets(&self, name: &str) -> bool {
        self.properties.iter().any(|(given, _)| given == name)
    }

    /// Whether the producers are told to compress.
    pub(super) fn compresses(&self) -> bool {
        self.properties.iter().any(|(name, value)| {
            matches!(name.as_str(), "compression.codec" | "compression.type") && value != "none"
        })
    }

    pub(super) fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("client.id", "cdc-relay")
            .set("allow.auto.create.topics", "false")
            // The client's default lets a broker that is back wait for up to 15 s.
            .set("reconnect.backoff.max.ms", "1000");
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    /// What a client of this cluster calls back.
    pub(super) fn context(&self) -> Context {
        Context { heard: Arc::clone(&self.heard), ..Context::default() }
    }

    /// Asks for a topic; the first thing that any client asks. Blocks.
    pub(super) fn metadata<C: ClientContext>(
        &self,
        client: &Client<C>,
        topic: &str,
    ) -> KafkaResult<Metadata> {
        let answer = client.fetch_metadata(Some(topic), HOPE).or_else(|error| {
            if self.heard.is_hopeless() {
                return Err(error);
            }
            client.fetch_metadata(Some(topic), ANSWER_TIMEOUT.saturating_sub(HOPE))
        });
        answer.inspect(|_| self.heard.reached())
    }

    /// The error that follows from what librdkafka said while doing `what`.
    pub(super) fn error(&self, what: &str, error: KafkaError) -> Error {
        match (code_of(&error), &error) {
            (Some(code), _) => self.code_error(what, code).caused_by(error),
            // The cause is not kept: its text may hold a secret.
            (None, KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_)) => {
                self.misconfigured(what, &error)
            }
            (None, _) => self.unavailable(what).caused_by(error),
        }
    }

    /// The error of a client that can not be made.
    fn misconfigured(&self, what: &str, error: &KafkaError) -> Error {
        let words = self.words(error);
        let text = format!("kafka at {}: {what}: {words}", self.brokers);
        if words.starts_with(NO_THREAD) {
            return Error::new(Kind::Unavailable, text).hint("allow the process more threads");
        }
        Error::new(Kind::Config, text).hint(match words.contains("SASL mechanism") {
            true => {
                "set sasl.mechanism by --kafka-property to one that this build has: PLAIN, \
                 SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
            }
            false => "mend the settings under kafka.properties, or those given by --kafka-property",
        })
    }

    /// What the client library says is wrong, without the values of settings: it repeats them, and
    /// one may be a secret under a name that was misspelt.
    fn words(&self, error: &KafkaError) -> String {
        match error {
            KafkaError::ClientConfig(_, text, name, value) => {
                // Numbers are bounds that it names.
                let is_number = value.parse::<f64>().is_ok();
                let mut parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
                let without_name = text.replace(name.as_str(), "");
                if is_number || !parts.any(|part| without_name.contains(part)) {
                    let text = text.trim_end();
                    if text.contains(name.as_str()) {
                        text.to_owned()
                    } else {
                        format!("{name}: {text}")
                    }
                } else {
                    format!("the value of {name} is not one that it takes")
                }
            }
            KafkaError::ClientCreation(text) => {
                let secrets = self.properties.iter().filter(|(name, _)| is_secret_property(name));
                let values = secrets.map(|(_, value)| value).filter(|value| !value.is_empty());
                values.fold(text.clone(), |text, value| text.replace(value.as_str(), "(hidden)"))
            }
            error => error.to_string(),
        }
    }

    /// The error that follows from a code.
    pub(super) fn code_error(&self, what: &str, code: RDKafkaErrorCode) -> Error {
        let brokers = &self.brokers;
        match kind(code) {
            Kind::Unavailable => self.heard.error(brokers, what).unwrap_or_else(|| {
                let text = format!("kafka at {brokers}: {what}: {code}");
                Error::new(Kind::Unavailable, text).hint(REACH_HINT)
            }),
            kind @ Kind::Fenced => {
                Error::new(kind, format!("kafka at {brokers}: {what}: another relay took over"))
            }
            kind @ Kind::Permission => {
                Error::new(kind, format!("kafka at {brokers}: {what}: {code}")).hint(
                    "give the relay's principal the right, and check the sasl settings given by \
                     --kafka-property",
                )
            }
            kind => Error::new(kind, format!("kafka at {brokers}: {what}: {code}")),
        }
    }

    fn unavailable(&self, what: &str) -> Error {
        Error::new(Kind::Unavailable, format!("kafka at {}: {what} failed", self.brokers))
            .hint(REACH_HINT)
    }
}

/// The code behind an error of the client.
pub(super) fn code_of(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::Transaction(error) => Some(error.code()),
        error => error.rdkafka_error_code(),
    }
}

/// Whether it is `host:port`; an IPv6 address stands in brackets.
fn is_address(broker: &str) -> bool {
    let Some((host, port)) = broker.rsplit_once(':') else { return false };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_host = !bare.is_empty() && !bare.contains(['/', '[', ']', ' ']);
    is_host
        && (bare.len() < host.len() || !bare.contains(':'))
        && port.parse().is_ok_and(|port: u16| port > 0)
}

const REACH_HINT: &str = "check that a broker listens at KAFKA_BROKERS and advertises an address \
                          that this machine reaches; TLS and SASL are set by --kafka-property, \
                          for example security.protocol=SASL_SSL";

/// How librdkafka 2.12 begins to say so (`rdkafka.c`).
const NO_THREAD: &str = "Failed to create thread";

fn kind(code: RDKafkaErrorCode) -> Kind {
    match code {
        RDKafkaErrorCode::Fenced
        | RDKafkaErrorCode::ProducerFenced
        | RDKafkaErrorCode::InvalidProducerEpoch => Kind::Fenced,
        RDKafkaErrorCode::Authentication
        | RDKafkaErrorCode::SaslAuthenticationFailed
        | RDKafkaErrorCode::TopicAuthorizationFailed
        | RDKafkaErrorCode::GroupAuthorizationFailed
        | RDKafkaErrorCode::ClusterAuthorizationFailed
        | RDKafkaErrorCode::TransactionalIdAuthorizationFailed => Kind::Permission,
        RDKafkaErrorCode::MessageSizeTooLarge
        | RDKafkaErrorCode::InvalidRecord
        | RDKafkaErrorCode::InvalidTimestamp
        | RDKafkaErrorCode::UnsupportedForMessageFormat
        | RDKafkaErrorCode::InvalidTopic => Kind::Rejected,
        RDKafkaErrorCode::PolicyViolation
        | RDKafkaErrorCode::InvalidReplicationFactor
        | RDKafkaErrorCode::InvalidPartitions
        | RDKafkaErrorCode::InvalidConfig
        | RDKafkaErrorCode::UnsupportedFeature
        | RDKafkaErrorCode::UnsupportedVersion => Kind::Server,
        _ => Kind::Unavailable,
    }
}

/// Takes librdkafka's callbacks: logs go to `tracing`, a refused record is remembered.
#[derive(Debug, Default)]
pub(super) struct Context {
    heard: Arc<Heard>,
    refusal: Mutex<Option<Refusal>>,
    lost: Mutex<Option<RDKafkaErrorCode>>,
    denied: Mutex<Option<String>>,
}

impl Context {
    /// The refused record of this producer's life that tells the most.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.refusal.lock().expect("no panic while it is held").clone()
    }

    /// A topic that is not for this producer.
    pub(super) fn denied(&self) -> Option<String> {
        self.denied.lock().expect("no panic while it is held").clone()
    }

    /// Why the first record of this producer's life did not arrive.
    pub(super) fn lost(&self) -> Option<RDKafkaErrorCode> {
        *self.lost.lock().expect("no panic while it is held")
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        match facility {
            "FAIL" => self.heard.line(text),
            "ADDPARTS" => {
                if let Some(topic) = denied_topic(text) {
                    let mut denied = self.denied.lock().expect("no panic while it is held");
                    denied.get_or_insert_with(|| topic.to_owned());
                }
            }
            _ => {}
        }
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::debug!(facility, "librdkafka: {text}"),
            _ => tracing::trace!(facility, "librdkafka: {text}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // What else matters of it comes back from the call that it hinders.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.heard.all_down();
        }
        tracing::debug!(%error, "librdkafka: {reason}");
    }
}

impl ConsumerContext for Context {}

impl ProducerContext for Context {
    /// The record's timestamp, milliseconds since the Unix epoch.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, timestamp_ms: usize) {
        let Err((error, record)) = result else { return };
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        self.lost.lock().expect("no panic while it is held").get_or_insert(code);
        // What was purged or timed out says nothing about the record itself, nor does the fate of
        // another record of its batch.
        if !matches!(kind(code), Kind::Rejected | Kind::Permission) {
            return;
        }
        let refusal = Refusal::of(record, timestamp_ms.cast_signed() as i64, code);
        let mut known = self.refusal.lock().expect("no panic while it is held");
        if known.as_ref().is_none_or(|known| refusal.tells_more_than(known)) {
            *known = Some(refusal);
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::consumer::BaseConsumer;

    use super::Cluster;
    use crate::error::Kind;

    fn property(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn no_value_of_a_setting_is_repeated_in_an_error() {
        for (name, value, named) in [
            ("sasl.passwort", "SECRETX", "sasl.passwort"),
            ("sasl.jaas.config", "a password=\"SECRETX\";", "sasl.jaas.config"),
            ("sasl.oauthbearer.client.secret", "SECRETX", "sasl.oauthbearer.client.secret"),
            ("sasl.mechanism.of", "SECRETX", "sasl.mechanism.of"),
            // A secret in the place of another setting.
            ("debug", "all,SECRETX", "debug"),
            ("security.protocol", "SECRETX", "security.protocol"),
            ("compression.codec", "SECRETX", "compression.codec"),
            ("linger.ms", "SECRETX", "linger.ms"),
        ] {
            let cluster = Cluster::new("localhost:9092", &[property(name, value)]);
            let faults = cluster.property_faults();
            assert_eq!(faults.len(), 1, "{name}");
            assert!(faults[0].contains(named) && !faults[0].contains("SECRETX"), "{faults:?}");

            let made =
                cluster.config().create_with_context::<_, BaseConsumer<_>>(cluster.context());
            let error = cluster.error("creating the client", made.err().unwrap());
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(named) && !shown.contains("SECRETX"), "{shown}");
        }
        let number = [property("linger.ms", "900001000")];
        let faults = Cluster::new("localhost:9092", &number).property_faults();
        assert!(faults[0].contains("outside allowed range"), "{faults:?}");
    }

    #[test]
    fn a_way_to_log_in_that_is_not_built_in_is_a_wrong_setting() {
        let gssapi = [
            property("security.protocol", "sasl_plaintext"),
            property("sasl.mechanism", "GSSAPI"),
            property("sasl.password", "SECRETX"),
        ];
        let cluster = Cluster::new("localhost:9092", &gssapi);
        assert_eq!(cluster.property_faults(), Vec::<String>::new());

        let made = cluster.config().create_with_context::<_, BaseConsumer<_>>(cluster.context());
        let error = cluster.error("creating the client", made.err().unwrap());

        assert_eq!(error.kind(), Kind::Config);
        assert!(error.to_string().contains("GSSAPI"), "{error}");
        assert!(error.mend().unwrap().contains("SCRAM-SHA-512"), "{error:?}");
    }

    #[test]
    fn an_address_that_is_none_is_named() {
        let faults = |brokers: &str| Cluster::new(brokers, &[]).broker_faults();

        for right in ["a:1", "a:1, 10.0.0.1:9092", "[::1]:9092"] {
            assert_eq!(faults(right), Vec::<String>::new(), "{right}");
        }
        for wrong in ["a", ":1", "a:0", "a:99999", "http://a:1", "::1:9092", "a:1,", "a:b"] {
            assert_eq!(faults(wrong).len(), 1, "{wrong}");
        }
    }

    #[test]
    fn settings_that_guarantees_rest_on_are_refused_by_name() {
        let fine = [property("compression.codec", "zstd"), property("security.protocol", "ssl")];
        assert_eq!(Cluster::new("localhost:9092", &fine).property_faults(), Vec::<String>::new());

        let wrong = [property("acks", "1"), property("linger.msec", "1")];
        let faults = Cluster::new(" ", &wrong).property_faults();
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].contains("acks") && faults[1].contains("linger.msec"), "{faults:?}");
    }
}
