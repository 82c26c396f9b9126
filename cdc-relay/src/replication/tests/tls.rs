//! Over TLS, against a real server.

use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, DnType, KeyPair};
use tailrace_stack::{Login, Needs, Stack, unique};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::log_in::refusal;
use super::server::{DEADLINE, until_commits};
use crate::error::Kind;
use crate::replication::{Client, Endpoint, Large};

const ENCRYPTED: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// One server with TLS serves all tests.
async fn secure() -> Arc<Stack> {
    static STACK: OnceCell<Arc<Stack>> = OnceCell::const_new();
    let start = || async { Arc::new(Stack::start(Needs::POSTGRES.tls()).await.unwrap()) };
    Arc::clone(STACK.get_or_init(start).await)
}

fn endpoint(url: &str, parameters: &str) -> Endpoint {
    let (place, _) = url.split_once('?').unwrap();
    Endpoint::parse(&format!("{place}?{parameters}")).unwrap()
}

async fn encrypted(endpoint: &Endpoint) -> bool {
    let mut client = Client::connect(endpoint).await.unwrap();
    let rows = client.query(ENCRYPTED).await.unwrap();
    rows[0].get(0) == Some("t")
}

fn encoded(path: &Path) -> String {
    path.to_str().unwrap().replace('/', "%2F")
}

#[tokio::test]
async fn each_mode_encrypts_as_far_as_it_says() {
    let stack = secure().await;
    let (url, version) = (stack.postgres().url(), stack.postgres().major_version());
    let ca = encoded(&stack.certificates().ca());
    for (parameters, expected) in [
        ("sslmode=disable".to_owned(), false),
        ("sslmode=allow".to_owned(), false),
        (String::new(), true),
        ("sslmode=prefer".to_owned(), true),
        ("sslmode=require".to_owned(), true),
        (format!("sslmode=verify-ca&sslrootcert={ca}"), true),
        (format!("sslmode=verify-full&sslrootcert={ca}"), true),
        ("sslmode=require&channel_binding=require".to_owned(), true),
        ("sslmode=require&channel_binding=disable".to_owned(), true),
    ] {
        assert_eq!(encrypted(&endpoint(url, &parameters)).await, expected, "{parameters}");
    }
    let direct = endpoint(url, "sslmode=require&sslnegotiation=direct");
    if version >= 17 {
        assert!(encrypted(&direct).await);
    } else {
        let error = refusal(&direct).await;
        assert_eq!(error.kind(), Kind::Config, "{error}");
        assert!(error.to_string().contains("sslnegotiation=direct"), "{error}");
    }
}

#[tokio::test]
async fn allow_encrypts_where_the_server_insists_and_disable_is_turned_away() {
    let stack = secure().await;
    let url = stack.postgres().tls_url(Login::Scram);

    assert!(encrypted(&endpoint(&url, "sslmode=allow")).await);
    let error = refusal(&endpoint(&url, "sslmode=disable")).await;

    assert_eq!((error.kind(), error.sqlstate()), (Kind::Permission, Some("28000")));
    assert!(error.mend().unwrap().contains("sslmode"), "{error:?}");
}

#[tokio::test]
async fn a_wrong_password_is_no_reason_to_try_without_tls() {
    let stack = secure().await;
    let url = stack.postgres().tls_url(Login::Scram);

    for mode in ["allow", "prefer"] {
        let error = refusal(&endpoint(&url, &format!("sslmode={mode}&password=wrong"))).await;
        assert_eq!(error.sqlstate(), Some("28P01"), "{mode}: {error}");
    }
}

#[tokio::test]
async fn a_server_without_tls_serves_only_those_who_can_do_without() {
    let stack = Stack::shared().await;
    let url = stack.postgres().url();
    for mode in ["disable", "allow", "prefer"] {
        assert!(!encrypted(&endpoint(url, &format!("sslmode={mode}"))).await, "{mode}");
    }

    for parameters in ["sslmode=require", "sslrootcert=system"] {
        let error = refusal(&endpoint(url, parameters)).await;
        assert_eq!(error.kind(), Kind::Config, "{error}");
        assert!(error.to_string().contains("does not offer TLS"), "{error}");
        assert!(error.mend().unwrap().contains("ssl = on"));
    }
}

#[tokio::test]
async fn each_way_to_log_in_works_over_tls_and_the_stream_too() {
    let stack = secure().await;
    for (login, slot) in
        [(Login::Scram, "tls_scram"), (Login::Md5, "tls_md5"), (Login::Certificate, "tls_cert")]
    {
        let database = stack.postgres().fresh_database(slot).await.unwrap();
        let endpoint = Endpoint::parse(&database.tls_url(login)).unwrap();
        let mut sql = Client::connect(&endpoint).await.unwrap();
        sql.query("CREATE PUBLICATION p").await.unwrap();
        sql.query(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"))
            .await
            .unwrap();
        // Some records of TLS, each with many messages, and one message over many records.
        sql.query(
            "SELECT pg_logical_emit_message(true, 'p', 'x') FROM generate_series(1, 20000);
             SELECT pg_logical_emit_message(true, 'p', repeat('0123456789', 200000))",
        )
        .await
        .unwrap();

        let client = Client::connect(&endpoint).await.unwrap();
        let mut stream = client.start_replication(slot, "p", Large::AtCommit).await.unwrap();
        let lines = until_commits(&mut stream, 1).await;

        assert_eq!(lines.len(), 20_003);
        assert!(lines[20_001].len() > 2_000_000);
        stream.close().await.unwrap();
    }
}

#[tokio::test]
async fn an_authority_that_did_not_sign_is_named() {
    let stack = secure().await;
    let other = encoded(&stack.certificates().other_ca());

    for mode in ["require", "verify-ca", "verify-full"] {
        let parameters = format!("sslmode={mode}&sslrootcert={other}");
        let error = refusal(&endpoint(stack.postgres().url(), &parameters)).await;
        assert_eq!(error.kind(), Kind::Config, "{error}");
        assert!(error.to_string().contains("other_ca.pem"), "{error}");
        assert!(error.mend().unwrap().contains("sslrootcert"));
    }
    let error = refusal(&endpoint(stack.postgres().url(), "sslrootcert=system")).await;
    assert_eq!(error.kind(), Kind::Config, "{error}");
    assert!(error.to_string().contains("system"), "{error}");
}

#[tokio::test]
async fn a_server_of_another_name_is_told_with_both_names() {
    let stack = Stack::start(Needs::POSTGRES.tls()).await.unwrap();
    let endpoint = Endpoint::parse(&stack.postgres().tls_url(Login::Scram)).unwrap();
    let mut client = Client::connect(&endpoint).await.unwrap();
    client.query("ALTER SYSTEM SET ssl_cert_file = 'misnamed.pem'").await.unwrap();
    client.query("SELECT pg_reload_conf()").await.unwrap();

    // The reload is not at once.
    let deadline = Instant::now() + DEADLINE;
    let error = loop {
        assert!(Instant::now() < deadline, "the certificate stays the old one");
        if let Err(error) = Client::connect(&endpoint).await {
            break error;
        }
    };

    assert_eq!(error.kind(), Kind::Config, "{error}");
    let text = error.to_string();
    assert!(text.contains(".test, and not for 127.0.0.1"), "{text}");
}

#[tokio::test]
async fn only_scram_can_be_bound_to_the_channel() {
    let stack = secure().await;

    for login in [Login::Md5, Login::Certificate] {
        let url = format!("{}&channel_binding=require", stack.postgres().tls_url(login));
        let error = refusal(&Endpoint::parse(&url).unwrap()).await;
        assert_eq!(error.kind(), Kind::Permission, "{error}");
        assert!(error.to_string().contains("SCRAM-SHA-256-PLUS"), "{error}");
    }
}

#[tokio::test]
async fn a_client_certificate_that_is_missing_or_not_known_is_told_with_its_mend() {
    let stack = secure().await;
    let url = stack.postgres().tls_url(Login::Certificate);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "certificate");
    let folder = std::env::temp_dir().join(unique("unknown_certificate"));
    std::fs::create_dir(&folder).unwrap();
    let (certificate, key_file) = (folder.join("client.pem"), folder.join("client.key"));
    std::fs::write(&certificate, params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let show = |certificate: &Path, key: &Path| {
        let (certificate, key) = (encoded(certificate), encoded(key));
        endpoint(&url, &format!("sslmode=require&sslcert={certificate}&sslkey={key}"))
    };

    let missing = refusal(&endpoint(&url, "sslmode=require")).await;
    let unknown = refusal(&show(&certificate, &key_file)).await;
    let mixed = refusal(&show(&stack.certificates().client_certificate(), &key_file)).await;
    let no_key = refusal(&show(&certificate, &certificate)).await;
    let no_certificate = refusal(&show(&key_file, &key_file)).await;
    let no_file = refusal(&show(&folder.join("none.pem"), &key_file)).await;

    std::fs::remove_dir_all(&folder).unwrap();
    for (error, kind, text) in [
        (&missing, Kind::Permission, "certificate"),
        (&unknown, Kind::Permission, "refuses the certificate in sslcert"),
        (&mixed, Kind::Config, "does not belong"),
        (&no_key, Kind::Config, "no private key"),
        (&no_certificate, Kind::Config, "no certificate in it"),
        (&no_file, Kind::Config, "none.pem cannot be read"),
    ] {
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.to_string().contains(text), "{error}");
    }
    assert!(missing.mend().unwrap().contains("sslcert=FILE"), "{missing:?}");
    assert!(unknown.mend().unwrap().contains("ssl_ca_file"), "{unknown:?}");
}
