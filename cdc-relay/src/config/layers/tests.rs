use super::{Given, Layers, Settings};
use crate::config::file::File;
use crate::error::Kind;

const URL: &str = "postgres://relay:hunter2@db:6000/shop?sslmode=disable";

fn layers(file: &str, environment: &[(&str, &str)]) -> Layers {
    Layers {
        file: Some(File { name: "relay.toml".to_owned(), text: file.to_owned() }),
        environment: environment
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect(),
        flags: Vec::new(),
    }
}

fn flag(key: &'static str, flag: &'static str, name: &str, text: &str) -> Given {
    Given { key, flag, name: name.to_owned(), text: text.to_owned() }
}

/// What is shown of a key.
fn shown(settings: &Settings, key: &str) -> (String, String) {
    let lines = settings.lines();
    let line = lines.iter().find(|(shown, _, _)| shown == key);
    let (_, value, origin) = line.unwrap_or_else(|| panic!("{key} is not in {lines:?}"));
    (value.clone(), origin.clone())
}

#[test]
fn a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default() {
    let mut layers = layers(
        "[relay]\nslot = 'of_file'\nprefix = 'of_file'\npublication = 'of_file'\n\
         [kafka.properties]\n'linger.ms' = 1\n'sasl.password' = 'hunter2'\n",
        &[
            ("DATABASE_URL", URL),
            ("KAFKA_BROKERS", "common:1"),
            ("CDC_RELAY__KAFKA__BROKERS", "own:1"),
            ("CDC_RELAY__RELAY__SLOT", "of_environment"),
            ("CDC_RELAY__RELAY__PREFIX", "of_environment"),
            ("CDC_RELAY__KAFKA__PROPERTIES__LINGER_MS", "2"),
            ("CDC_RELAY__RELAY__ID", ""),
            ("HOME", "/"),
        ],
    );
    layers.flags = vec![flag("relay.slot", "slot", "", "of_flag")];

    let settings = layers.settings().unwrap();

    for (key, value, origin) in [
        ("relay.slot", "of_flag", "--slot"),
        ("relay.prefix", "of_environment", "environment CDC_RELAY__RELAY__PREFIX"),
        ("relay.publication", "of_file", "relay.toml:4"),
        ("relay.schema", "tailrace", "default"),
        ("kafka.brokers", "own:1", "environment CDC_RELAY__KAFKA__BROKERS"),
        ("kafka.properties.linger.ms", "2", "environment CDC_RELAY__KAFKA__PROPERTIES__LINGER_MS"),
        ("kafka.properties.sasl.password", "(hidden)", "relay.toml:7"),
        ("database.url", "relay@db:6000/shop (password hidden)", "environment DATABASE_URL"),
    ] {
        assert_eq!(shown(&settings, key), (value.to_owned(), origin.to_owned()), "{key}");
    }
    assert_eq!(settings.config.slot_name(), "of_flag");
    assert!(!format!("{:?}", settings.lines()).contains("hunter2"));
}

#[test]
fn what_is_given_to_the_program_that_prints_the_password_is_hidden() {
    for (command, seen) in [
        ("vault read -token=hunter2", "vault (arguments hidden)"),
        ("/bin/password", "/bin/password"),
        ("TOKEN=hunter2 vault", "(hidden)"),
    ] {
        let text = format!("[database]\npassword_command = '{command}'\n");
        let url = "postgres://relay@db:6000/shop";
        let layers = layers(&text, &[("DATABASE_URL", url), ("KAFKA_BROKERS", "common:1")]);

        let settings = layers.settings().unwrap();

        assert_eq!(shown(&settings, "database.password_command").0, seen);
    }
}

#[test]
fn every_fault_of_every_layer_is_told_with_its_place() {
    let mut layers = layers(
        "[relay]\nslto = 'x'\nslot = 'Big'\n[kafka]\nproperties.acks = 1\nbrokers.x = 1\n",
        &[
            ("CDC_RELAY__RELAY__PREFX", "x"),
            ("CDC_RELAY__TRANSACTION__MAX_BYTES", "lots"),
            ("CDC_RELAY__NOTHING_LIKE_IT", "x"),
        ],
    );
    layers.flags = vec![flag("transaction.linger", "linger", "", "5")];

    let error = layers.settings().unwrap_err();

    assert_eq!(error.kind(), Kind::Config);
    let text = error.to_string();
    for named in [
        "relay.toml:2: \"relay.slto\" is no setting; did you mean relay.slot?",
        "relay.slot (relay.toml:3): ",
        "kafka.properties (relay.toml:5): ",
        "relay.toml:6: \"kafka.brokers.x\" is no setting",
        "CDC_RELAY__RELAY__PREFX is no setting; did you mean CDC_RELAY__RELAY__PREFIX?",
        "transaction.max_bytes (environment CDC_RELAY__TRANSACTION__MAX_BYTES): ",
        "CDC_RELAY__NOTHING_LIKE_IT is no setting",
        "transaction.linger (--linger): ",
        "database.url: no database url",
        "kafka.brokers: no kafka brokers",
    ] {
        assert!(text.contains(named), "{named} is not in\n{text}");
    }
    assert_eq!(text.lines().count(), 10, "{text}");
}

#[test]
fn a_variable_takes_a_table_whole() {
    let tables = "public.my_outbox=debezium, source=/orders\n\n shop.events = debezium\n";
    let layers = |given: &[(&'static str, &'static str)]| {
        let common = [("DATABASE_URL", URL), ("KAFKA_BROKERS", "a:1")];
        layers("", &[&common[..], given].concat()).settings()
    };

    let settings = layers(&[
        ("CDC_RELAY__RELAY__TABLES", tables),
        ("CDC_RELAY__KAFKA__PROPERTIES", "sasl.password=hunter2=x\nlinger.ms=3"),
        ("CDC_RELAY__TOPICS__CONFIGS__RETENTION_MS", "1"),
    ])
    .unwrap();
    let fault = layers(&[("CDC_RELAY__KAFKA__PROPERTIES", "hunter2")]).unwrap_err();

    let origin = "environment CDC_RELAY__RELAY__TABLES".to_owned();
    let value = "debezium, source=/orders".to_owned();
    assert_eq!(shown(&settings, "relay.tables.public.my_outbox"), (value, origin));
    assert_eq!(shown(&settings, "relay.tables.shop.events").0, " debezium");
    assert_eq!(shown(&settings, "kafka.properties.linger.ms").0, "3");
    assert_eq!(shown(&settings, "kafka.properties.sasl.password").0, "(hidden)");
    assert!(fault.to_string().contains("CDC_RELAY__KAFKA__PROPERTIES has a line"), "{fault}");
    assert!(!fault.to_string().contains("hunter2"), "{fault}");
}

#[test]
fn what_has_changed_is_told_by_its_key() {
    let environment = [("DATABASE_URL", URL), ("KAFKA_BROKERS", "a:1")];
    let settings = |file: &str| layers(file, &environment).settings().unwrap();
    let before = settings("[relay]\nslot = 'a'\nprefix = 'p'\n");

    // Another origin or place of the same value is no change.
    let same = settings("relay.prefix = 'p'\nrelay.slot = 'a'\n");
    assert_eq!(before.changed(&same), (vec![], vec![]));

    let other = settings("relay.slot = 'b'\nkafka.properties.linger.ms = 1\n");
    let (identity, rest) = before.changed(&other);
    assert_eq!(identity, ["relay.slot", "relay.prefix"]);
    assert_eq!(rest, ["kafka.properties.linger.ms"]);
}

#[test]
fn a_broken_file_is_told_with_the_line_and_without_what_stands_there() {
    let error = layers("[database]\nurl = 'hunter2\n", &[]).settings().unwrap_err();

    let text = error.to_string();
    assert!(text.contains("relay.toml:2: "), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}
