//! Every key of the configuration, with its names and its meaning.

use super::measure;
use super::{BadMessages, Config, Delivery, HttpSettings, LargeTransactions};

/// How a key's values are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// One value.
    One,
    /// Several: a list in the file, commas elsewhere.
    Many,
    /// Values under names of their own: a table in the file.
    Table,
}

/// The command line's name for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flag {
    /// It has none.
    None,
    /// It takes the value.
    Value(&'static str),
    /// It stands for `false`; with what it does.
    Off(&'static str, &'static str),
}

/// A key of the configuration.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Table and name in the file: `relay.slot`.
    pub(crate) key: &'static str,
    pub(crate) flag: Flag,
    /// A name in the environment beside [`Setting::variable`], by which other programs know it.
    pub(crate) common: Option<&'static str>,
    pub(crate) form: Form,
    /// The form of a value, for help texts.
    pub(crate) shape: &'static str,
    pub(crate) about: &'static str,
    /// As it would be written; empty where there is none.
    pub(crate) default: &'static str,
    /// Never shown.
    pub(crate) secret: bool,
    /// Takes a value in; the name is empty but in a [`Form::Table`].
    pub(crate) set: fn(Config, &str, &str) -> Result<Config, String>,
}

impl Setting {
    /// Its own name in the environment.
    pub(crate) fn variable(&self) -> String {
        format!("{VARIABLES}{}", self.key.replace('.', "__").to_uppercase())
    }
}

/// What the relay's own names in the environment begin with.
pub(crate) const VARIABLES: &str = "CDC_RELAY__";

/// The key whose flag has a short form: `-X`, as kcat and the Kafka tools have it.
pub(crate) const SHORT: &str = "kafka.properties";

/// What most keys share.
const PLAIN: Setting = Setting {
    key: "",
    flag: Flag::None,
    common: None,
    form: Form::One,
    shape: "NAME",
    about: "",
    default: "",
    secret: false,
    set: |config, _, _| Ok(config),
};

/// All of them, in the order in which they are shown.
pub(crate) const SETTINGS: &[Setting] = &[
    Setting {
        key: "database.url",
        flag: Flag::Value("database-url"),
        common: Some("DATABASE_URL"),
        shape: "URL",
        about: "The database, as postgres://user:password@host:port/database?sslmode=verify-full",
        secret: true,
        set: |config, _, text| Ok(Config { database_url: text.to_owned(), ..config }),
        ..PLAIN
    },
    Setting {
        key: "database.password_file",
        shape: "FILE",
        about: "A file with the password, read anew at each log-in",
        set: |config, _, text| Ok(config.password_file(text)),
        ..PLAIN
    },
    Setting {
        key: "database.password_command",
        shape: "COMMAND",
        about: "A command for sh that prints the password, run at each log-in",
        secret: true,
        set: |config, _, text| Ok(config.password_command(text)),
        ..PLAIN
    },
    Setting {
        key: "kafka.brokers",
        flag: Flag::Value("kafka-brokers"),
        common: Some("KAFKA_BROKERS"),
        shape: "HOST:PORT",
        about: "The brokers, as host:port, separated by commas",
        set: |config, _, text| Ok(Config { brokers: text.to_owned(), ..config }),
        ..PLAIN
    },
    Setting {
        key: "kafka.properties",
        flag: Flag::Value("kafka-property"),
        form: Form::Table,
        shape: "NAME=VALUE",
        about: "librdkafka settings for TLS, SASL and tuning; the flag may be repeated",
        set: |config, name, text| Ok(config.kafka_property(name, text)),
        ..PLAIN
    },
    Setting {
        key: "relay.id",
        flag: Flag::Value("relay-id"),
        about: "The relay's name in Kafka [default: SYSTEM-DATABASE-SLOT]",
        set: |config, _, text| Ok(config.relay_id(text)),
        ..PLAIN
    },
    Setting {
        key: "relay.slot",
        flag: Flag::Value("slot"),
        about: "The replication slot",
        default: "tailrace",
        set: |config, _, text| Ok(config.slot(text)),
        ..PLAIN
    },
    Setting {
        key: "relay.publication",
        flag: Flag::Value("publication"),
        about: "The publication; for messages alone it stays empty",
        default: "tailrace",
        set: |config, _, text| Ok(config.publication(text)),
        ..PLAIN
    },
    Setting {
        key: "relay.prefix",
        flag: Flag::Value("prefix"),
        about: "The prefix of the logical messages to publish",
        default: "tailrace",
        set: |config, _, text| Ok(config.prefix(text)),
        ..PLAIN
    },
    Setting {
        key: "relay.messages",
        flag: Flag::Off(
            "no-messages",
            "Publish rows of tables alone, and receive their large transactions while they are in \
             progress",
        ),
        shape: "BOOLEAN",
        about: "Publish logical messages; without them large transactions can be received while \
                they are in progress",
        default: "true",
        set: |config, _, text| Ok(config.messages(boolean(text)?)),
        ..PLAIN
    },
    Setting {
        key: "relay.schema",
        flag: Flag::Value("schema"),
        about: "The schema of the journal table",
        default: "tailrace",
        set: |config, _, text| Ok(config.schema(text)),
        ..PLAIN
    },
    Setting {
        key: "relay.tables",
        flag: Flag::Value("table"),
        form: Form::Table,
        shape: "TABLE=MAPPING",
        about: "One more table whose rows are messages: public.outbox=debezium, or with a column \
                for each part; the flag may be repeated",
        set: |config, name, text| match format!("{name}={text}").parse() {
            Ok(mapping) => Ok(config.table(mapping)),
            Err(error) => Err(format!("{text:?}: {error}")),
        },
        ..PLAIN
    },
    Setting {
        key: "relay.delivery",
        flag: Flag::Value("delivery"),
        shape: "MODE",
        about: "What readers may rely on: exactly-once (each message once, for read_committed \
                readers) or at-least-once (as early as can be; after a crash some come again)",
        default: "exactly-once",
        set: |config, _, text| match text {
            "exactly-once" => Ok(config.delivery(Delivery::ExactlyOnce)),
            "at-least-once" => Ok(config.delivery(Delivery::AtLeastOnce)),
            _ => Err(format!("{text:?} is neither exactly-once nor at-least-once")),
        },
        ..PLAIN
    },
    Setting {
        key: "relay.init",
        flag: Flag::Off("no-init", "Refuse to run when publication and slot are still to be made"),
        shape: "BOOLEAN",
        about: "Make publication, slot and checkpoint topic at the first run",
        default: "true",
        set: |config, _, text| Ok(config.init(boolean(text)?)),
        ..PLAIN
    },
    Setting {
        key: "relay.skip",
        flag: Flag::Value("skip"),
        form: Form::Many,
        shape: "LSN:ORDINAL",
        about: "Go past this message, as an earlier run has named it; may be repeated",
        set: |config, _, text| match text.parse() {
            Ok(place) => Ok(config.skip(place)),
            Err(error) => Err(format!("{text:?} is {error}")),
        },
        ..PLAIN
    },
    Setting {
        key: "transaction.linger",
        flag: Flag::Value("linger"),
        shape: "DURATION",
        about: "How long a batch waits for more once the relay has caught up [default: exactly \
                once as long as the commit before takes, at least once 200ms]",
        set: |config, _, text| Ok(config.linger(measure::duration(text)?)),
        ..PLAIN
    },
    Setting {
        key: "transaction.max_records",
        shape: "NUMBER",
        about: "Records after which a batch is sealed",
        default: "10000",
        set: |config, _, text| Ok(config.batch_records(number(text)?)),
        ..PLAIN
    },
    Setting {
        key: "transaction.max_bytes",
        shape: "SIZE",
        about: "A source transaction with more bytes is a large one",
        default: "64MiB",
        set: |config, _, text| Ok(config.split_bytes(measure::size(text)?)),
        ..PLAIN
    },
    Setting {
        key: "transaction.large_transactions",
        shape: "split|refuse",
        about: "Split a large source transaction over several Kafka transactions, or stop at it",
        default: "split",
        set: |config, _, text| match text {
            "split" => Ok(config.large_transactions(LargeTransactions::Split)),
            "refuse" => Ok(config.large_transactions(LargeTransactions::Refuse)),
            _ => Err(format!("{text:?} is neither split nor refuse")),
        },
        ..PLAIN
    },
    Setting {
        key: "streaming.enabled",
        flag: Flag::Off("no-streaming", "Receive large transactions once they have committed"),
        shape: "BOOLEAN",
        about: "Receive large transactions while they are in progress, where no logical messages \
                are published",
        default: "true",
        set: |config, _, text| Ok(config.streaming(boolean(text)?)),
        ..PLAIN
    },
    Setting {
        key: "streaming.memory",
        shape: "SIZE",
        about: "Memory for transactions in progress; what is more is spooled",
        default: "8MiB",
        set: |config, _, text| Ok(config.streaming_memory(measure::size(text)?)),
        ..PLAIN
    },
    Setting {
        key: "streaming.spool_directory",
        flag: Flag::Value("spool-directory"),
        shape: "DIRECTORY",
        about: "Where transactions in progress are spooled, best on a disk",
        default: "/var/tmp",
        set: |config, _, text| Ok(config.spool_directory(text)),
        ..PLAIN
    },
    Setting {
        key: "streaming.spool_max",
        shape: "SIZE",
        about: "The most that is spooled; beyond it Postgres keeps large transactions itself",
        default: "1GiB",
        set: |config, _, text| Ok(config.spool_max(measure::size(text)? as u64)),
        ..PLAIN
    },
    Setting {
        key: "topics.create",
        flag: Flag::Off(
            "no-create-topics",
            "Refuse messages whose topic does not exist instead of making it",
        ),
        shape: "BOOLEAN",
        about: "Make topics that are missing",
        default: "true",
        set: |config, _, text| Ok(config.create_topics(boolean(text)?)),
        ..PLAIN
    },
    Setting {
        key: "topics.partitions",
        shape: "NUMBER",
        about: "Partitions of topics that the relay makes [default: the brokers']",
        set: |config, _, text| Ok(config.topic_partitions(number(text)?)),
        ..PLAIN
    },
    Setting {
        key: "topics.replication_factor",
        shape: "NUMBER",
        about: "Replicas of topics that the relay makes, the checkpoint's among them [default: \
                the brokers']",
        set: |config, _, text| Ok(config.topic_replication_factor(number(text)?)),
        ..PLAIN
    },
    Setting {
        key: "topics.configs",
        form: Form::Table,
        shape: "NAME=VALUE",
        about: "Settings of topics that the relay makes, such as retention.ms",
        set: |config, name, text| Ok(config.topic_config(name, text)),
        ..PLAIN
    },
    Setting {
        key: "dead_letter.bad_messages",
        flag: Flag::Value("bad-messages"),
        shape: "WAY",
        about: "What becomes of a message that can not be published: dead-letter (its record goes \
                to the topic of dead letters, with the reason) or halt (the relay stops and names \
                it)",
        default: "dead-letter",
        set: |config, _, text| match text {
            "dead-letter" => Ok(config.bad_messages(BadMessages::DeadLetter)),
            "halt" => Ok(config.bad_messages(BadMessages::Halt)),
            _ => Err(format!("{text:?} is neither dead-letter nor halt")),
        },
        ..PLAIN
    },
    Setting {
        key: "dead_letter.topic",
        flag: Flag::Value("dead-letter-topic"),
        about: "The topic of dead letters [default: tailrace.dead-letter.RELAY_ID]",
        set: |config, _, text| Ok(config.dead_letter_topic(text)),
        ..PLAIN
    },
    Setting {
        key: "http.address",
        flag: Flag::Value("http"),
        shape: "ADDRESS:PORT",
        about: "Where the status page, health and metrics are served, as ADDRESS:PORT, or off",
        default: "127.0.0.1:9640",
        set: |config, _, text| {
            let http = HttpSettings { address: text.to_owned(), ..config.http.clone() };
            Ok(Config { http, ..config })
        },
        ..PLAIN
    },
    Setting {
        key: "http.token_file",
        flag: Flag::Value("http-token-file"),
        shape: "FILE",
        about: "A file with the token that POST /pause and /resume have to bring",
        set: |config, _, text| {
            let http = HttpSettings { token_file: Some(text.to_owned()), ..config.http.clone() };
            Ok(Config { http, ..config })
        },
        ..PLAIN
    },
    Setting {
        key: "http.token",
        flag: Flag::Value("http-token"),
        common: Some("CDC_RELAY_HTTP_TOKEN"),
        shape: "TOKEN",
        about: "The token itself, best by the environment",
        secret: true,
        set: |config, _, text| {
            let http = HttpSettings { token: Some(text.to_owned()), ..config.http.clone() };
            Ok(Config { http, ..config })
        },
        ..PLAIN
    },
];

fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("{text:?} is not a whole number, or too large"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Flag, Form, SETTINGS, SHORT};
    use crate::config::Config;

    #[test]
    fn keys_are_told_apart_and_defaults_are_what_a_config_has() {
        let keys: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.key).collect();
        assert_eq!(keys.len(), SETTINGS.len());
        let plain = Config::new("", "");

        for setting in SETTINGS.iter().filter(|setting| !setting.default.is_empty()) {
            let set = (setting.set)(plain.clone(), "", setting.default).unwrap();
            assert_eq!(set.everything(), plain.everything(), "{}", setting.key);
        }
    }

    #[test]
    fn the_manual_lists_every_setting() {
        let manual = include_str!("../../../docs/operating.md");

        for setting in SETTINGS {
            let mut row = format!("| `{}` | ", setting.key);
            if let Flag::Value(flag) | Flag::Off(flag, _) = setting.flag {
                row = match setting.form {
                    Form::Table if setting.key == SHORT => format!("{row}`-X`, `--{flag}` | "),
                    _ => format!("{row}`--{flag}`"),
                };
            }
            let row = manual.lines().find(|line| line.starts_with(&row));
            let row = row.unwrap_or_else(|| panic!("{} is not in the manual", setting.key));
            assert!(row.contains(setting.default), "{row}");
        }
    }

    #[test]
    fn a_value_of_the_wrong_shape_is_named() {
        for (key, wrong) in [
            ("relay.delivery", "twice"),
            ("relay.init", "maybe"),
            ("relay.skip", "16"),
            ("transaction.linger", "5"),
            ("transaction.max_records", "-1"),
            ("transaction.max_bytes", "8 apples"),
            ("transaction.large_transactions", "drop"),
            ("topics.partitions", "many"),
        ] {
            let setting = SETTINGS.iter().find(|setting| setting.key == key).unwrap();
            assert_eq!(setting.form == Form::Many, key == "relay.skip");
            let fault = (setting.set)(Config::new("", ""), "", wrong).unwrap_err();
            assert!(fault.contains(wrong), "{fault}");
        }
    }
}
