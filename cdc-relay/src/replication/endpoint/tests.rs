use std::time::Duration;

use proptest::prelude::{prop_assert, proptest};

use super::{Endpoint, Target};
use crate::error::{Error, Kind};
use crate::replication::encryption::{Attempt, SslMode};

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
    assert_eq!((endpoint.options(), endpoint.target()), (None, Target::Any));

    let endpoint = with("options=-c%20work_mem%3D1MB&target_session_attrs=primary");
    assert_eq!(endpoint.options(), Some("-c work_mem=1MB"));
    assert_eq!(endpoint.target(), Target::Primary);
    assert_eq!(with("target_session_attrs=read-write").target(), Target::ReadWrite);
}

/// The endpoint of `postgres://u@db/d` with these parameters.
fn with(parameters: &str) -> Endpoint {
    let url = format!("postgres://u@db/d?{parameters}");
    Endpoint::parse(&url).unwrap_or_else(|error| panic!("{parameters}: {error}"))
}

#[test]
fn several_hosts_are_tried_in_their_order() {
    for (url, expected) in [
        ("postgres://u@a:1,b:2/d", "a:1,b:2"),
        ("postgres://u@a,b/d", "a:5432,b:5432"),
        ("postgres://u@a,b:2/d", "a:5432,b:2"),
        ("postgres://u@a,[::1]:2/d", "a:5432,[::1]:2"),
        ("postgres://u@/d?host=a,b&port=1,2", "a:1,b:2"),
        ("postgres://u@/d?host=a,b&port=1", "a:1,b:1"),
        ("postgres://u@/d?host=a,/run&port=,2", "a:5432,/run:2"),
        ("postgres://u@,b/d", "localhost:5432,b:5432"),
    ] {
        let endpoint = Endpoint::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        assert_eq!(endpoint.address(), expected, "{url}");
        let alone: Vec<String> = endpoint.alternatives().map(|one| one.address()).collect();
        assert_eq!(alone.join(","), expected);
    }
    assert!(fault("postgres://u@a,b,c/d?port=1,2").to_string().contains("3 hosts and 2 ports"));
    assert!(fault(&format!("postgres://u@{}/d", "a,".repeat(16))).to_string().contains("16"));
}

#[test]
fn settings_of_tls_mean_what_they_mean_to_libpq() {
    for (parameters, mode) in [
        ("", SslMode::Prefer),
        ("sslmode=disable", SslMode::Disable),
        ("sslmode=allow", SslMode::Allow),
        ("sslmode=prefer", SslMode::Prefer),
        ("sslmode=require", SslMode::Require),
        ("sslmode=require&sslrootcert=/ca.pem", SslMode::VerifyCa),
        ("sslmode=verify-ca&sslrootcert=/ca.pem", SslMode::VerifyCa),
        ("sslmode=verify-full&sslrootcert=/ca.pem", SslMode::VerifyFull),
        ("sslrootcert=system", SslMode::VerifyFull),
        ("sslmode=verify-full&sslrootcert=system", SslMode::VerifyFull),
    ] {
        assert_eq!(with(parameters).encryption().mode, mode, "{parameters}");
    }
    let attempts = |parameters| with(parameters).encryption().attempts();
    assert_eq!(attempts("sslmode=disable"), [Attempt::Plain]);
    assert_eq!(attempts("sslmode=allow"), [Attempt::Plain, Attempt::Tls]);
    assert_eq!(attempts("sslmode=prefer"), [Attempt::TlsIfOffered, Attempt::Plain]);
    assert_eq!(attempts("sslmode=require"), [Attempt::Tls]);
    let identity = with("sslcert=/a%20b&sslkey=/c").encryption().identity.clone().unwrap();
    assert_eq!((identity.0.to_str(), identity.1.to_str()), (Some("/a b"), Some("/c")));
}

#[test]
fn settings_that_contradict_each_other_are_refused_and_never_downgraded() {
    for (parameters, expected) in [
        ("sslmode=off", "none of libpq's modes"),
        ("sslmode=verify-full", "needs an authority"),
        ("sslmode=verify-ca", "sslmode=verify-ca needs an authority"),
        ("sslrootcert=/ca.pem", "sslmode=prefer goes on without"),
        ("sslmode=allow&sslrootcert=/ca.pem", "sslmode=allow goes on without"),
        ("sslmode=require&sslrootcert=system", "sslrootcert=system with sslmode=require"),
        ("sslcert=/a", "without sslkey"),
        ("sslkey=/a", "without sslcert"),
        ("sslmode=disable&sslcert=/a&sslkey=/b", "never shows it"),
        ("sslnegotiation=direct", "sslmode=prefer"),
        ("sslnegotiation=maybe", "sslnegotiation"),
        ("sslmode=disable&channel_binding=require", "needs a connection with TLS"),
        ("host=/run&channel_binding=require", "needs a connection with TLS"),
        ("channel_binding=maybe", "channel_binding"),
        ("target_session_attrs=standby", "target_session_attrs=standby"),
        ("target_session_attrs=maybe", "target_session_attrs"),
        ("password=secret&password_file=/f", "more than one source"),
        ("password_file=/f&password_command=secret", "more than one source"),
    ] {
        let error = fault(&format!("postgres://u@db?{parameters}"));
        assert!(error.to_string().contains(expected), "{parameters}: {error}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}

#[test]
fn an_unknown_parameter_is_named_beside_the_known_ones() {
    let error = fault("postgres://u@db?gssencmode=disable");

    assert!(error.to_string().contains("`gssencmode`"), "{error}");
    assert!(error.mend().unwrap().contains("application_name, channel_binding"));
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
