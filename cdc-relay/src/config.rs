//! What the relay is told.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tailrace_outbox::mapping::Mapping;
use tailrace_outbox::schema::Schema;

use crate::dead_letter;
use crate::error::{Error, Kind};
use crate::position::Place;
use crate::progress::{Counting, Limits};
use crate::replication::Endpoint;
use crate::sink::Cluster;
use crate::streamed;

pub(crate) mod file;
pub(crate) mod layers;
pub(crate) mod measure;
pub(crate) mod settings;

/// Longest name that Postgres keeps whole (`NAMEDATALEN` - 1).
const NAME_BYTES_MAX: usize = 63;

/// Measured: transactions of about this size cost least under backlog.
const BATCH_RECORDS: usize = 10_000;

/// A reader waits at least that long for each message.
const LINGER_MAX: Duration = Duration::from_secs(1);

/// A sixth of what a relay may take at most, and still a few of the pieces in which the server
/// sends transactions in progress.
const STREAM_BYTES: usize = 8 * 1024 * 1024;

/// On a disk wherever the Filesystem Hierarchy Standard is kept; `/tmp` is often memory.
const SPOOL_DIRECTORY: &str = "/var/tmp";

/// Little enough for the disk of a container.
const SPOOL_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Longest name of a topic that Kafka takes.
const TOPIC_BYTES_MAX: usize = 249;

/// A relay id names topics and transactional ids.
const RELAY_ID_BYTES_MAX: usize = 200;

/// What readers of the topics may rely on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// Readers with `isolation.level=read_committed` see each message once.
    #[default]
    ExactlyOnce,
    /// Every reader sees each message as early as can be; after a crash some come again.
    AtLeastOnce,
}

/// What becomes of a message that can not be published: its bytes are no frame, its topic can not
/// exist or is missing, or the brokers refuse its record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BadMessages {
    /// Its record goes to the topic of dead letters, with the reason; the others go on.
    #[default]
    DeadLetter,
    /// The relay stops and names it; see [`Config::skip`].
    Halt,
}

/// What happens to a source transaction that is too large for one Kafka transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LargeTransactions {
    /// It is split over several: readers see its first part before its last, each part once.
    #[default]
    Split,
    /// The relay stops at it, before any of it can be read.
    Refuse,
}

/// How topics are made that are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewTopics {
    pub(crate) create: bool,
    /// -1 for the brokers' default (KIP-464).
    pub(crate) partitions: i32,
    /// -1 for the brokers' default.
    pub(crate) replication_factor: i32,
    pub(crate) configs: Vec<(String, String)>,
}

/// Where the sidecar answers over HTTP.
#[derive(Clone, Debug)]
pub(crate) struct HttpSettings {
    /// `ADDRESS:PORT`, or `off`.
    pub(crate) address: String,
    pub(crate) token_file: Option<String>,
    pub(crate) token: Option<String>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        HttpSettings { address: "127.0.0.1:9640".to_owned(), token_file: None, token: None }
    }
}

/// Settings of a relay.
///
/// `Config::new` with the database's URL and the brokers is enough; everything else has a default.
/// [`Config::validate`] lists every fault at once.
///
/// ```
/// use tailrace_cdc_relay::Config;
///
/// let config = Config::new("postgres://relay:secret@localhost/shop?sslmode=disable", "localhost:9092")
///     .slot("shop_relay")
///     .kafka_property("compression.codec", "zstd");
/// config.validate().unwrap();
/// ```
#[derive(Clone)]
pub struct Config {
    database_url: String,
    password_file: Option<PathBuf>,
    password_command: Option<String>,
    brokers: String,
    /// Whether records go to Kafka at all.
    kafka: bool,
    slot: String,
    publication: String,
    prefix: String,
    outbox_schema: String,
    tables: Vec<Mapping>,
    /// For the sidecar alone: an embedded relay is told by [`crate::Relay::http`].
    http: HttpSettings,
    relay_id: Option<String>,
    init: bool,
    topics: NewTopics,
    delivery: Delivery,
    linger: Option<Duration>,
    batch_records: usize,
    split_bytes: usize,
    large: LargeTransactions,
    messages: bool,
    streaming: bool,
    streamed: streamed::Bounds,
    kafka_properties: Vec<(String, String)>,
    bad_messages: BadMessages,
    dead_letter_topic: Option<String>,
    skip: BTreeSet<Place>,
}

impl Config {
    /// Settings for one database and one Kafka cluster.
    pub fn new(database_url: impl Into<String>, brokers: impl Into<String>) -> Self {
        Config {
            database_url: database_url.into(),
            password_file: None,
            password_command: None,
            brokers: brokers.into(),
            kafka: true,
            slot: "tailrace".to_owned(),
            publication: "tailrace".to_owned(),
            prefix: "tailrace".to_owned(),
            outbox_schema: "tailrace".to_owned(),
            tables: Vec::new(),
            http: HttpSettings::default(),
            relay_id: None,
            init: true,
            topics: NewTopics {
                create: true,
                partitions: -1,
                replication_factor: -1,
                configs: Vec::new(),
            },
            delivery: Delivery::default(),
            linger: None,
            batch_records: BATCH_RECORDS,
            split_bytes: 64 * 1024 * 1024,
            large: LargeTransactions::default(),
            messages: true,
            streaming: true,
            streamed: streamed::Bounds {
                memory: STREAM_BYTES,
                directory: PathBuf::from(SPOOL_DIRECTORY),
                spool_max: SPOOL_BYTES_MAX,
            },
            kafka_properties: Vec::new(),
            bad_messages: BadMessages::default(),
            dead_letter_topic: None,
            skip: BTreeSet::new(),
        }
    }

    /// Settings for one database, for a relay with a sink of its own
    /// ([`Relay::with_sink`](crate::Relay::with_sink)): what concerns Kafka has no meaning then.
    pub fn for_sink(database_url: impl Into<String>) -> Self {
        Config { kafka: false, ..Config::new(database_url, "") }
    }

    /// A file with the database's password, read anew at each log-in, for passwords that change.
    /// Default none: the URL has it.
    #[must_use]
    pub fn password_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.password_file = Some(path.into());
        self
    }

    /// A command for `sh` that prints the database's password, run at each log-in, for passwords
    /// that expire. Default none: the URL has it.
    #[must_use]
    pub fn password_command(mut self, command: impl Into<String>) -> Self {
        self.password_command = Some(command.into());
        self
    }

    /// The replication slot. Default `tailrace`.
    #[must_use]
    pub fn slot(mut self, slot: impl Into<String>) -> Self {
        self.slot = slot.into();
        self
    }

    /// The publication, which pgoutput demands even where it is empty. Default `tailrace`.
    #[must_use]
    pub fn publication(mut self, publication: impl Into<String>) -> Self {
        self.publication = publication.into();
        self
    }

    /// The prefix of the logical messages that are published. Default `tailrace`.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Whether logical messages are published; rows of tables of messages are in any case. Without
    /// them the source is one of rows alone, whose large transactions are received while they are
    /// in progress: see [`Config::streaming`]. Messages with the relay's prefix are then ignored, with
    /// a warning. Default true.
    #[must_use]
    pub fn messages(mut self, messages: bool) -> Self {
        self.messages = messages;
        self
    }

    /// Whether a source of rows alone ([`Config::messages`]) sends large transactions before they
    /// commit, so that their last row is in Kafka sooner after the commit. What logical messages
    /// were rolled back with a savepoint is not told then, so with messages it has no effect.
    /// Default true.
    #[must_use]
    pub fn streaming(mut self, streaming: bool) -> Self {
        self.streaming = streaming;
        self
    }

    /// Memory for changes of transactions that have not committed; what is more goes to files.
    /// Default 8 MiB.
    #[must_use]
    pub fn streaming_memory(mut self, bytes: usize) -> Self {
        self.streamed.memory = bytes;
        self
    }

    /// Where these files are made. They have no name, and end with the relay. Default `/var/tmp`.
    #[must_use]
    pub fn spool_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.streamed.directory = directory.into();
        self
    }

    /// The most that all of these files may have together. Beyond it the slot is read without
    /// streaming, and Postgres keeps large transactions itself. Default 1 GiB.
    #[must_use]
    pub fn spool_max(mut self, bytes: u64) -> Self {
        self.streamed.spool_max = bytes;
        self
    }

    /// The schema of the journal table `outbox`, whose rows are published as messages where the
    /// publication has it. Default `tailrace`.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.outbox_schema = schema.into();
        self
    }

    /// One more table whose new rows are published as messages, as the mapping reads them. Default
    /// none but the journal.
    ///
    /// The publication must have the table: one that the relay makes at its first run does. Rows that
    /// were inserted before that are not published.
    #[must_use]
    pub fn table(mut self, mapping: Mapping) -> Self {
        self.tables.push(mapping);
        self
    }

    /// The relay's name in Kafka, of `[A-Za-z0-9._-]`, at most 200 bytes. Default system
    /// identifier, database and slot, so that a copy of a database never fences its original.
    #[must_use]
    pub fn relay_id(mut self, relay_id: impl Into<String>) -> Self {
        self.relay_id = Some(relay_id.into());
        self
    }

    /// Whether publication and slot are made at the first run. Default true.
    #[must_use]
    pub fn init(mut self, init: bool) -> Self {
        self.init = init;
        self
    }

    /// Whether missing topics are made. Default true.
    #[must_use]
    pub fn create_topics(mut self, create_topics: bool) -> Self {
        self.topics.create = create_topics;
        self
    }

    /// Partitions of the topics that the relay makes. Default the brokers'.
    #[must_use]
    pub fn topic_partitions(mut self, partitions: u16) -> Self {
        self.topics.partitions = i32::from(partitions);
        self
    }

    /// Replicas of the topics that the relay makes, the checkpoint's among them. Default the
    /// brokers'.
    #[must_use]
    pub fn topic_replication_factor(mut self, replicas: u16) -> Self {
        self.topics.replication_factor = i32::from(replicas);
        self
    }

    /// A setting of the topics that the relay makes, such as `retention.ms`. Default the brokers'.
    #[must_use]
    pub fn topic_config(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.topics.configs.push((name.into(), value.into()));
        self
    }

    /// What readers may rely on. Default exactly once.
    #[must_use]
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    /// How long a batch stays open for more source transactions when the relay has caught up. By
    /// default, exactly once, a batch is sealed as soon as the commit before it is done, which at
    /// low rates is at once; at least once, where readers do not wait for it, 200 ms.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = Some(linger);
        self
    }

    /// Records after which a batch is sealed, judged where a source transaction ends. Default
    /// 10,000.
    #[must_use]
    pub fn batch_records(mut self, records: usize) -> Self {
        self.batch_records = records;
        self
    }

    /// A source transaction with more bytes than this is a large one, as is one that takes longer
    /// than a Kafka transaction may (5 s): see [`Config::large_transactions`]. Default 64 MiB.
    #[must_use]
    pub fn split_bytes(mut self, bytes: usize) -> Self {
        self.split_bytes = bytes;
        self
    }

    /// What happens to a large source transaction. Split, readers see its first part before its
    /// last; a crash between them repeats nothing. Default split.
    #[must_use]
    pub fn large_transactions(mut self, large: LargeTransactions) -> Self {
        self.large = large;
        self
    }

    /// A librdkafka setting, for TLS, SASL and tuning. Those that the guarantees rest on are
    /// refused by name.
    #[must_use]
    pub fn kafka_property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.kafka_properties.push((name.into(), value.into()));
        self
    }

    /// What becomes of messages that can not be published. Default dead letters.
    #[must_use]
    pub fn bad_messages(mut self, bad_messages: BadMessages) -> Self {
        self.bad_messages = bad_messages;
        self
    }

    /// The topic of dead letters. Default `tailrace.dead-letter.RELAY_ID`; made where it is missing,
    /// unless [`Config::create_topics`] forbids it.
    #[must_use]
    pub fn dead_letter_topic(mut self, topic: impl Into<String>) -> Self {
        self.dead_letter_topic = Some(topic.into());
        self
    }

    /// Goes past one message without publishing it. Default none.
    #[must_use]
    pub fn skip(mut self, place: Place) -> Self {
        self.skip.insert(place);
        self
    }

    /// Checks everything that can be checked without a server, and names every fault.
    pub fn validate(&self) -> Result<(), Error> {
        let faults = self.faults();
        if faults.is_empty() {
            return Ok(());
        }
        let texts: Vec<String> = faults.into_iter().map(|(_, text)| text).collect();
        Err(Error::new(Kind::Config, texts.join("; ")).hint("correct what is named"))
    }

    /// Every fault, with the key of the setting that has it.
    pub(crate) fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        faults.extend(self.url_fault().map(|fault| ("database.url", fault)));
        if self.kafka {
            let cluster = self.cluster();
            faults.extend(cluster.broker_faults().into_iter().map(|text| ("kafka.brokers", text)));
            let properties = cluster.property_faults().into_iter();
            faults.extend(properties.map(|text| ("kafka.properties", text)));
        }
        let slot_bytes = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
        if !named(&self.slot, NAME_BYTES_MAX, slot_bytes) {
            let text = format!(
                "slot {:?}: lower case letters, digits and underscores, 1 to {NAME_BYTES_MAX}",
                self.slot
            );
            faults.push(("relay.slot", text));
        }
        for (key, what, name) in [
            ("relay.publication", "publication", &self.publication),
            ("relay.prefix", "prefix", &self.prefix),
            ("relay.schema", "schema", &self.outbox_schema),
        ] {
            if !named(name, NAME_BYTES_MAX, |byte| byte != 0) {
                faults.push((key, format!("{what} {name:?}: 1 to {NAME_BYTES_MAX} bytes")));
            }
        }
        faults.extend(self.table_twice().map(|fault| ("relay.tables", fault)));
        if let Some(relay_id) = &self.relay_id {
            faults.extend(relay_id_fault(relay_id).map(|fault| ("relay.id", fault)));
        }
        if let Some(topic) = &self.dead_letter_topic
            && !named(topic, TOPIC_BYTES_MAX, is_topic_byte)
        {
            let text = format!(
                "dead letter topic {topic:?}: letters, digits, '.', '_' and '-', 1 to \
                 {TOPIC_BYTES_MAX}"
            );
            faults.push(("dead_letter.topic", text));
        }
        let mut bounded = |key, within: bool, text: &str| {
            if !within {
                faults.push((key, text.to_owned()));
            }
        };
        let linger_fits = self.linger.is_none_or(|linger| linger <= LINGER_MAX);
        bounded("transaction.linger", linger_fits, "linger: at most 1s");
        bounded("transaction.max_records", self.batch_records > 0, "max_records: at least 1");
        bounded("transaction.max_bytes", self.split_bytes > 0, "max_bytes: at least 1B");
        bounded("streaming.memory", self.streamed.memory > 0, "memory: at least 1B");
        bounded("topics.partitions", self.topics.partitions != 0, "partitions: at least 1");
        let replicas = self.topics.replication_factor != 0;
        bounded("topics.replication_factor", replicas, "replication_factor: at least 1");
        faults
    }

    fn url_fault(&self) -> Option<String> {
        if self.database_url.trim().is_empty() {
            let text = "no database url given: set DATABASE_URL, for example \
                        postgres://user:password@localhost:5432/shop?sslmode=disable";
            return Some(text.to_owned());
        }
        let error = self.endpoint().err()?;
        Some(match error.mend() {
            Some(hint) => format!("{error} ({hint})"),
            None => error.to_string(),
        })
    }

    /// What of a setting with a secret in it may be shown.
    pub(crate) fn without_secret(&self, key: &str) -> String {
        match self.endpoint() {
            Ok(endpoint) if key == "database.url" => {
                format!("{} (password hidden)", endpoint.describe())
            }
            _ if key == "database.password_command" => self.password_program(),
            _ => "(hidden)".to_owned(),
        }
    }

    /// What is run for the password, without what is given to it.
    fn password_program(&self) -> String {
        let command = self.password_command.as_deref().unwrap_or_default().trim();
        let (program, arguments) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let is_path = |byte: u8| is_topic_byte(byte) || byte == b'/';
        match (program.bytes().all(is_path), arguments) {
            (false, _) => "(hidden)".to_owned(),
            (true, "") => program.to_owned(),
            (true, _) => format!("{program} (arguments hidden)"),
        }
    }

    pub(crate) fn endpoint(&self) -> Result<Endpoint, Error> {
        let mut endpoint = Endpoint::parse(&self.database_url)?;
        if let Some(path) = &self.password_file {
            endpoint = endpoint.password_file(path)?;
        }
        if let Some(command) = &self.password_command {
            endpoint = endpoint.password_command(command)?;
        }
        Ok(endpoint)
    }

    pub(crate) fn cluster(&self) -> Cluster {
        Cluster::new(&self.brokers, &self.kafka_properties)
    }

    pub(crate) fn delivery_mode(&self) -> Delivery {
        self.delivery
    }

    pub(crate) fn slot_name(&self) -> &str {
        &self.slot
    }

    pub(crate) fn publication_name(&self) -> &str {
        &self.publication
    }

    pub(crate) fn message_prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn outbox_schema(&self) -> &str {
        &self.outbox_schema
    }

    pub(crate) fn http_settings(&self) -> &HttpSettings {
        &self.http
    }

    /// The tables that are mapped, without the journal.
    pub(crate) fn tables(&self) -> &[Mapping] {
        &self.tables
    }

    /// All tables whose rows are messages. A schema whose name the outbox does not take has no
    /// journal of its making.
    pub(crate) fn message_tables(&self) -> Vec<Mapping> {
        let journal = Schema::named(&*self.outbox_schema).map(|schema| Mapping::journal(&schema));
        journal.into_iter().chain(self.tables.iter().cloned()).collect()
    }

    fn table_twice(&self) -> Option<String> {
        let tables: Vec<String> = self.message_tables().iter().map(Mapping::table_sql).collect();
        let mut named = BTreeSet::new();
        let twice = tables.iter().find(|table| !named.insert(*table))?;
        Some(format!("table {twice} is mapped twice; the journal is by itself"))
    }

    pub(crate) fn may_init(&self) -> bool {
        self.init
    }

    pub(crate) fn new_topics(&self) -> &NewTopics {
        &self.topics
    }

    pub(crate) fn refuses_large_transactions(&self) -> bool {
        self.large == LargeTransactions::Refuse
    }

    /// Every value, secrets too.
    #[cfg(test)]
    pub(crate) fn everything(&self) -> String {
        format!(
            "{:?}",
            (
                (&self.database_url, &self.password_file, &self.password_command),
                (&self.brokers, self.kafka, &self.slot, &self.publication),
                (&self.prefix, &self.outbox_schema, &self.relay_id, self.init, &self.topics),
                (&self.tables, &self.http),
                (self.delivery, self.linger, self.batch_records, self.split_bytes, self.large),
                (self.messages, self.streaming, &self.streamed),
                (&self.kafka_properties, &self.skip, self.bad_messages, &self.dead_letter_topic),
            )
        )
    }

    pub(crate) fn publishes_messages(&self) -> bool {
        self.messages
    }

    /// The prefix of the messages that are published, where such are.
    pub(crate) fn published_prefix(&self) -> Option<&str> {
        self.messages.then_some(&*self.prefix)
    }

    /// Whether the relay id was chosen by a person, and so may be another relay's too.
    pub(crate) fn has_chosen_id(&self) -> bool {
        self.relay_id.is_some()
    }

    /// What ordinals count.
    pub(crate) fn counting(&self) -> Counting {
        if self.messages { Counting::All } else { Counting::Rows }
    }

    /// How much of transactions in progress is kept, where such are received.
    pub(crate) fn streamed(&self) -> Option<&streamed::Bounds> {
        (self.streaming && !self.messages).then_some(&self.streamed)
    }

    /// Fails where transactions in progress could not be kept as they are to be.
    pub(crate) fn check_spool(&self) -> Result<(), Error> {
        let Some(bounds) = self.streamed() else { return Ok(()) };
        streamed::probe(&bounds.directory).map_err(|error| {
            let text = format!(
                "no file can be made in the spool directory {:?}: {error}",
                bounds.directory
            );
            Error::new(Kind::Config, text).caused_by(error).hint(
                "name a directory that the relay may write by streaming.spool_directory, or do \
                 without streaming by --no-streaming",
            )
        })
    }

    pub(crate) fn sets_aside(&self) -> bool {
        self.bad_messages == BadMessages::DeadLetter
    }

    pub(crate) fn dead_letter_topic_for(&self, relay_id: &str) -> String {
        self.dead_letter_topic.clone().unwrap_or_else(|| dead_letter::topic(relay_id))
    }

    pub(crate) fn skips(&self, place: Place) -> bool {
        self.skip.contains(&place)
    }

    /// The given relay id, or the default one where its parts fit.
    pub(crate) fn relay_id_for(&self, system: &str, database: &str) -> Result<String, Error> {
        if let Some(relay_id) = &self.relay_id {
            return Ok(relay_id.clone());
        }
        let default = format!("{system}-{database}-{}", self.slot);
        match relay_id_fault(&default) {
            None => Ok(default),
            Some(fault) => Err(Error::new(Kind::Config, format!("the default {fault}"))
                .hint("choose one by --relay-id, and keep it")),
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            batch_records: self.batch_records,
            batch_bytes: 8 * 1024 * 1024,
            linger: self.linger.unwrap_or(match self.delivery {
                Delivery::ExactlyOnce => Duration::ZERO,
                Delivery::AtLeastOnce => Duration::from_millis(200),
            }),
            behind_age: Duration::from_millis(100),
            split_bytes: self.split_bytes,
            // A third of the transaction time-out that the broker is given.
            split_age: Duration::from_secs(5),
            // One segment of the log.
            idle_bytes: 16 * 1024 * 1024,
            idle_age: Duration::from_secs(10),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL and the Kafka properties may hold passwords.
        f.debug_struct("Config")
            .field("brokers", &self.brokers)
            .field("slot", &self.slot)
            .field("publication", &self.publication)
            .field("prefix", &self.prefix)
            .field("relay_id", &self.relay_id)
            .finish_non_exhaustive()
    }
}

fn named(name: &str, bytes_max: usize, allowed: impl Fn(u8) -> bool) -> bool {
    !name.is_empty() && name.len() <= bytes_max && name.bytes().all(allowed)
}

/// Whether the value of a Kafka setting is for nobody to see.
pub(crate) fn is_secret_property(name: &str) -> bool {
    let secret = ["password", "secret", "pem", "jaas", "oauthbearer.config", "token", "credential"];
    let name = name.to_lowercase();
    secret.iter().any(|part| name.contains(part))
}

fn is_topic_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

fn relay_id_fault(relay_id: &str) -> Option<String> {
    if relay_id.ends_with(crate::replay::SUFFIX) {
        return Some(format!("relay id {relay_id:?} is the name of a relay's replays"));
    }
    (!named(relay_id, RELAY_ID_BYTES_MAX, is_topic_byte)).then(|| {
        format!(
            "relay id {relay_id:?}: letters, digits, '.', '_' and '-', 1 to {RELAY_ID_BYTES_MAX}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::Config;
    use crate::error::Kind;

    #[test]
    fn every_fault_is_listed_at_once() {
        let error = Config::new("mysql://nowhere", "")
            .slot("Has-Capitals")
            .publication("")
            .relay_id("a/b")
            .kafka_property("transactional.id", "mine")
            .validate()
            .unwrap_err();

        assert_eq!(error.kind(), Kind::Config);
        let text = error.to_string();
        for named in
            ["postgres://", "brokers", "Has-Capitals", "publication", "a/b", "transactional.id"]
        {
            assert!(text.contains(named), "{named} is not in {text}");
        }
    }

    #[test]
    fn a_password_has_one_source() {
        let config = |url: &str| Config::new(url, "localhost:9092").password_file("/run/password");

        config("postgres://relay@localhost/shop").validate().unwrap();
        let error = config("postgres://relay:secret@localhost/shop").validate().unwrap_err();
        assert!(error.to_string().contains("more than one source"), "{error}");
        let both = config("postgres://relay@localhost/shop").password_command("cat /run/other");
        assert!(both.validate().is_err());
    }

    #[test]
    fn the_default_relay_id_tells_copies_apart_and_fits() {
        let config = Config::new("postgres://relay@localhost/shop", "localhost:9092");

        assert_eq!(config.relay_id_for("742", "shop").unwrap(), "742-shop-tailrace");
        let replays = config.clone().relay_id("742.replay").validate().unwrap_err();
        assert!(replays.to_string().contains("replays"), "{replays}");
        assert_eq!(config.relay_id_for("742", "my shop").unwrap_err().kind(), Kind::Config);
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let config = Config::new("postgres://relay:hunter2@localhost/shop", "localhost:9092")
            .kafka_property("sasl.password", "hunter2");

        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
