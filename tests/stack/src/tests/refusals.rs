//! What cannot work is one clear error.

use std::ffi::OsString;
use std::path::PathBuf;

use sqlx::Executor;

use super::{connect, environment};
use crate::settings::{DATABASE_URL, Docker, KAFKA_BROKERS, PG_VERSION, Settings};
use crate::{Kind, Needs, Stack, unique};

/// A machine with nothing on it.
fn bare() -> Settings {
    Settings {
        database_url: None,
        kafka_brokers: None,
        cache: std::env::temp_dir().join(unique("tailrace_no_cache")),
        postgres_version: None,
        path: OsString::new(),
        java_home: None,
        postgres_places: Vec::new(),
        docker: Docker::default(),
        ..environment()
    }
}

#[tokio::test]
async fn with_an_empty_path_one_error_lists_every_way() {
    let settings = bare();
    let cache = settings.cache.clone();

    let error = Stack::start_in(Needs::BOTH, settings).await.unwrap_err();

    assert_eq!(error.kind(), Kind::Missing);
    let text = format!("{error:?}");
    for way in [DATABASE_URL, KAFKA_BROKERS, PG_VERSION, "Java 17", "mvn", "install postgresql"] {
        assert!(text.contains(way), "{way} is not in: {text}");
    }
    assert!(!cache.exists(), "nothing was begun");
}

#[tokio::test]
async fn servers_to_be_killed_are_never_those_of_somebody_else() {
    let url = String::from("postgres://127.0.0.1:1/postgres");
    let settings = Settings { database_url: Some(url), ..bare() };

    let error = Stack::start_in(Needs::POSTGRES.breakable(), settings).await.unwrap_err();

    assert_eq!(error.kind(), Kind::Missing);
}

/// Each is refused with the name of its variable, and without the password.
#[tokio::test]
async fn wrong_addresses_are_refused_by_the_name_of_their_variable() {
    let database = |url: &str| Settings { database_url: Some(url.to_owned()), ..bare() };
    let brokers = |brokers: &str| Settings { kafka_brokers: Some(brokers.to_owned()), ..bare() };
    let nobody_listens = "postgres://admin:hunter2@127.0.0.1:1/postgres";
    let cases = [
        (Needs::POSTGRES, database(nobody_listens), DATABASE_URL),
        (Needs::POSTGRES, database("postgres:/admin:hunter2@nowhere:x"), DATABASE_URL),
        (Needs::KAFKA, brokers("127.0.0.1:1"), KAFKA_BROKERS),
        (Needs::KAFKA, brokers("nonsense"), KAFKA_BROKERS),
    ];

    for (needs, settings, variable) in cases {
        let error = Stack::start_in(needs, settings).await.unwrap_err();

        assert_eq!(error.kind(), Kind::Environment, "{error:?}");
        let text = format!("{error:?}");
        assert!(text.contains(variable) && !text.contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn a_wrong_password_and_a_server_without_logical_wal_are_refused() {
    let stack = Stack::start(Needs::POSTGRES.breakable()).await.unwrap();
    let url = stack.postgres().url();
    let (before, after) = url.split_once('@').unwrap();
    let wrong = format!("{}x@{after}", before.to_owned());
    let settings = Settings { database_url: Some(wrong), ..bare() };
    let error = Stack::start_in(Needs::POSTGRES, settings).await.unwrap_err();
    assert!(format!("{error:?}").contains("password authentication failed"), "{error:?}");

    connect(url).await.execute("alter system set wal_level = replica").await.unwrap();
    stack.postgres().restart().await.unwrap();

    let settings = Settings { database_url: Some(url.to_owned()), ..bare() };
    let error = Stack::start_in(Needs::POSTGRES, settings).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Environment);
    let text = format!("{error:?}");
    assert!(text.contains(DATABASE_URL) && text.contains("wal_level is replica"), "{text}");
}

#[tokio::test]
async fn a_runtime_that_is_not_java_is_named() {
    let place = PathBuf::from("/bin/false");
    let folder = std::env::temp_dir().join(unique("tailrace_no_java"));
    std::fs::create_dir_all(folder.join("bin")).unwrap();
    std::os::unix::fs::symlink(place, folder.join("bin/java")).unwrap();

    let settings = Settings { java_home: Some(folder.clone()), ..bare() };
    let error = Stack::start_in(Needs::KAFKA, settings).await.unwrap_err();

    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(error.kind(), Kind::Missing);
    assert!(error.to_string().contains("bin/java does not run"), "{error}");
}
