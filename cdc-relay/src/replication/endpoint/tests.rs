use std::time::Duration;

use proptest::prelude::{prop_assert, proptest};

use super::Endpoint;
use crate::error::{Error, Kind};

/// Host, port, user, password and database of a good URL.
fn check(url: &str, expected: (&str, u16, &str, Option<&str>, &str)) {
    let endpoint = Endpoint::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
    let found = (
        endpoint.host(),
        endpoint.port(),
        endpoint.user(),
        endpoint.password(),
        endpoint.database(),
    );
    assert_eq!(found, expected, "{url}");
}

fn fault(url: &str) -> Error {
    let error = Endpoint::parse(url).expect_err(url);
    assert_eq!(error.kind(), Kind::Config, "{url}");
    error
}

#[test]
fn urls_are_read_as_libpq_reads_them() {
    check("postgres://u:p@db:6000/shop", ("db", 6000, "u", Some("p"), "shop"));
    check("postgresql://u@db/shop?sslmode=disable", ("db", 5432, "u", None, "shop"));
    check("postgres://u@db", ("db", 5432, "u", None, "u"));
    check("postgres://u@db/", ("db", 5432, "u", None, "u"));
    check("postgres://u@db:/shop", ("db", 5432, "u", None, "shop"));
    check("postgres://u@/shop", ("localhost", 5432, "u", None, "shop"));
    check("postgres:///shop?user=u&host=db&port=1", ("db", 1, "u", None, "shop"));
    check("postgres://x:y@a:1/b?user=u&password=p&dbname=c", ("a", 1, "u", Some("p"), "c"));
    check("postgres://u@[::1]:6000/shop", ("::1", 6000, "u", None, "shop"));
    check("postgres://u@[fe80::1]/shop", ("fe80::1", 5432, "u", None, "shop"));
    check(
        "postgres://%2Fvar%2Frun:6000".replace("//", "//u@").as_str(),
        ("/var/run", 6000, "u", None, "u"),
    );
    check("postgres://u@/shop?host=/var/run", ("/var/run", 5432, "u", None, "shop"));
    check("postgres://a%40b:p%2F%3F%25+%3A@db/%C3%A4", ("db", 5432, "a@b", Some("p/?%+:"), "ä"));
    check("postgres://u:p@ss@db/shop", ("db", 5432, "u", Some("p@ss"), "shop"));
    check("postgres://u:@db/shop", ("db", 5432, "u", Some(""), "shop"));
}

#[test]
fn parameters_are_taken() {
    let endpoint =
        Endpoint::parse("postgres://u@db?connect_timeout=3&application_name=a%20b").unwrap();
    assert_eq!(endpoint.connect_timeout(), Duration::from_secs(3));
    assert_eq!(endpoint.application_name(), "a b");

    let endpoint = Endpoint::parse("postgres://u@db").unwrap();
    assert_eq!(endpoint.connect_timeout(), Duration::from_secs(10));
    assert_eq!(endpoint.application_name(), "cdc-relay");
}

#[test]
fn an_unsupported_sslmode_is_refused_by_name_and_never_downgraded() {
    for mode in ["allow", "prefer", "require", "verify-ca", "verify-full"] {
        let error = fault(&format!("postgres://u@db?sslmode={mode}"));
        assert!(error.to_string().contains(&format!("sslmode={mode}")), "{error}");
        assert!(error.mend().unwrap().contains("sslmode=disable"));
    }
    assert!(fault("postgres://u@db?sslmode=off").to_string().contains("sslmode"));
}

#[test]
fn an_unknown_parameter_is_named_beside_the_known_ones() {
    let error = fault("postgres://u@db?options=-c");

    assert!(error.to_string().contains("`options`"), "{error}");
    assert!(error.mend().unwrap().contains("application_name, connect_timeout"));
}

#[test]
fn a_broken_url_is_refused_without_repeating_it() {
    for (url, expected) in [
        ("", "postgres://"),
        ("mysql://u:secret@db", "postgres://"),
        ("host=db password=secret", "postgres://"),
        ("postgres://:secret@db", "no user"),
        ("postgres://db", "no user"),
        ("postgres://u:secret@db:0", "port"),
        ("postgres://u:secret@db:70000", "port"),
        ("postgres://u:secret@db:1:2", "port"),
        // Passwords that should have been percent-encoded.
        ("postgres://u:secret/more@db:1/shop", "port"),
        ("postgres://u:secret?more@db:1/shop", "port"),
        ("postgres://u@db/shop?secret@x", "no value"),
        ("postgres://u@db/shop?secret@x=1", "unknown parameter"),
        ("postgres://u:secret%@db", "percent-encoded"),
        ("postgres://u:secret%+1@db", "percent-encoded"),
        ("postgres://u:secret%00@db", "percent-encoded"),
        ("postgres://u:secret%ff@db", "percent-encoded"),
        ("postgres://u:secret@[::1", "bracket"),
        ("postgres://u:secret@[::1]x", "between"),
        ("postgres://u:secret@db?connect_timeout=0", "connect_timeout"),
        ("postgres://u:secret@db?connect_timeout=-1", "connect_timeout"),
        ("postgres://u:secret@a,b/shop", "several hosts"),
    ] {
        let error = fault(url);
        let text = format!("{error} {error:?}");
        assert!(error.to_string().contains(expected), "{url}: {text}");
        assert!(!text.contains("secret"), "{url}: {text}");
    }
}

#[test]
fn the_password_is_never_shown() {
    let endpoint = Endpoint::parse("postgres://u:secret@[::1]:6000/shop").unwrap();

    assert_eq!(endpoint.describe(), "u@[::1]:6000/shop");
    assert!(!format!("{endpoint:?}").contains("secret"));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(rest in "[u@:/?%&=\\[\\]0-9a-f\\PC]{0,60}") {
        if let Ok(endpoint) = Endpoint::parse(&format!("postgres://{rest}")) {
            prop_assert!(!endpoint.user().is_empty() && !endpoint.database().is_empty());
        }
    }

    #[test]
    fn any_password_survives_percent_encoding_and_is_never_shown(password in "\\PC{20,40}") {
        let encoded: String = password.bytes().map(|byte| format!("%{byte:02X}")).collect();

        let endpoint = Endpoint::parse(&format!("postgres://u:{encoded}@db")).unwrap();

        prop_assert!(endpoint.password() == Some(password.as_str()));
        let shown = format!("{endpoint:?} {}", endpoint.describe());
        prop_assert!(!shown.contains(&password));
    }
}
