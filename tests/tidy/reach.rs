//! What a package may not pull in by any path, because its users would have to compile it.

/// A package with some features, and packages it must not reach.
pub(crate) struct Rule {
    pub(crate) package: &'static str,
    /// Arguments for cargo.
    pub(crate) features: &'static [&'static str],
    never: &'static [&'static str],
    why: &'static str,
}

const KAFKA: &[&str] = &["rdkafka", "rdkafka-sys"];
const SQLX: &[&str] = &["sqlx", "sqlx-core", "sqlx-postgres"];

pub(crate) const RULES: &[Rule] = &[
    Rule {
        package: "tailrace-outbox",
        features: &["--all-features"],
        never: KAFKA,
        why: "a service that writes messages does not talk to Kafka",
    },
    Rule {
        package: "tailrace-outbox",
        features: &["--no-default-features", "--features=sqlx"],
        never: &["tokio-postgres", "postgres-types", "rdkafka", "rdkafka-sys"],
        why: "a service has one database client, and this one's is sqlx",
    },
    Rule {
        package: "tailrace-outbox",
        features: &["--no-default-features", "--features=tokio-postgres"],
        never: &["sqlx", "sqlx-core", "sqlx-postgres", "rdkafka", "rdkafka-sys"],
        why: "a service has one database client, and this one's is tokio-postgres",
    },
    Rule {
        package: "tailrace-outbox",
        features: &["--no-default-features"],
        never: &["sqlx", "sqlx-core", "sqlx-postgres", "tokio", "rdkafka", "rdkafka-sys"],
        why: "the relay takes the message and its frame alone",
    },
    Rule {
        package: "tailrace-idempotency",
        features: &["--no-default-features"],
        never: KAFKA,
        why: "the guard works for any transport",
    },
    Rule {
        package: "tailrace-saga",
        features: &["--no-default-features"],
        never: KAFKA,
        why: "who operates sagas needs their database alone",
    },
    Rule {
        package: "tailrace-cli",
        features: &[],
        never: KAFKA,
        why: "an operator needs the database alone, and a program that builds in seconds",
    },
    Rule {
        package: "tailrace-cdc-relay",
        features: &[],
        never: SQLX,
        why: "the relay speaks the replication protocol itself",
    },
];

/// The paths on which the package reaches what it must not, in the answer of
/// `cargo tree --prefix depth`.
pub(crate) fn faults(rule: &Rule, tree: &str) -> Vec<String> {
    let mut path: Vec<&str> = Vec::new();
    let mut found = Vec::new();
    for line in tree.lines() {
        let name_at = line.find(|c: char| !c.is_ascii_digit()).unwrap_or(line.len());
        let (depth, package) = line.split_at(name_at);
        let (Ok(depth), Some(name)) = (depth.parse(), package.split_whitespace().next()) else {
            continue;
        };
        path.truncate(depth);
        path.push(name);
        if rule.never.contains(&name) {
            let features = rule.features.join(" ");
            let with = if features.is_empty() { "its default features" } else { &features };
            found.push(format!(
                "{} with {with} reaches {name} ({}), but {}: make that dependency optional, or \
                 move the code that needs it",
                rule.package,
                path.join(" -> "),
                rule.why
            ));
        }
    }
    found
}

#[test]
fn a_planted_path_is_found_and_shown() {
    let tree = "0tailrace-outbox v0.1.0 (outbox)\n1serde v1.0.0\n2serde_core v1.0.0\n\
                1broker v0.3.0\n2rdkafka v0.39.0\n3rdkafka-sys v4.10.0\n1uuid v1.29.1 (*)\n";

    let found = faults(&RULES[0], tree);

    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("(tailrace-outbox -> broker -> rdkafka)"), "{found:?}");
    assert_eq!(faults(&RULES[0], "0tailrace-outbox v0.1.0\n1sqlx v0.9.0\n"), [""; 0]);
}

#[test]
fn the_outbox_keeps_its_two_database_clients_apart() {
    let check = |feature: &str, client: &str, is_fault: bool| {
        let rule = RULES.iter().find(|rule| rule.features.contains(&feature)).unwrap();
        let found = faults(rule, &format!("0tailrace-outbox v0.1.0\n1{client} v0.9.0\n"));
        assert_eq!(!found.is_empty(), is_fault, "{feature} and {client}: {found:?}");
    };

    check("--features=sqlx", "tokio-postgres", true);
    check("--features=sqlx", "sqlx", false);
    check("--features=tokio-postgres", "sqlx", true);
    check("--features=tokio-postgres", "tokio-postgres", false);
}
