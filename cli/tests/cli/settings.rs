//! Wrong settings: one error each, with the way to mend it, and never a password.

use crate::command::{fresh, tailrace};

/// The password in `scheme://user:password@host`.
fn password(url: &str) -> &str {
    let (login, _) = url.split_once('@').expect("the stack's url has a login");
    login.rsplit_once(':').expect("the login has a password").1
}

#[tokio::test]
async fn a_wrong_setting_is_one_error_that_names_it() {
    let (database, _connection) = fresh("cli_settings").await;
    let url = database.url();
    let password = password(url);
    let check = async |url: &str, code: i32, named: &[&str]| {
        for command in ["maintain", "install", "check"] {
            let answer = tailrace(url, &["outbox", command]).await;

            answer.refuses(code, named);
            for secret in [password, "hunter2"] {
                assert!(!answer.stderr.contains(secret), "a password is in {answer:?}");
            }
        }
    };

    check("", 2, &["DATABASE_URL is missing"]).await;
    check(&url.replace("postgres://", "mysql://"), 2, &["postgres://"]).await;
    check("postgres://me:hunter2@here:port/db", 2, &["not the url of a database"]).await;
    check("postgres://me:12/hunter2@here/db", 2, &["not percent-encoded", "%2F"]).await;
    check("postgres://me:12?hunter2@here/db", 2, &["not percent-encoded", "%3F"]).await;
    check("postgres://me:12#hunter2@here/db", 2, &["not percent-encoded", "%23"]).await;
    check(&url.replace("=disable", "=require"), 2, &["sslmode", "disable"]).await;
    check(&url.replace("=disable", "=prefer"), 2, &["sslmode", "disable"]).await;
    check(&url.replace(database.name(), "no_such_database"), 2, &["no_such_database"]).await;
    check(&url.replace(password, "hunter2"), 3, &["password", "postgres"]).await;
    check("postgres://me:hunter2@127.0.0.1:1/db", 6, &["127.0.0.1:1", "port"]).await;
}

#[tokio::test]
async fn arguments_that_are_not_understood_are_refused_before_anything_is_done() {
    let (database, _connection) = fresh("cli_arguments").await;
    let check = async |arguments: &[&str], named: &str| {
        let answer = tailrace(database.url(), arguments).await;

        assert_eq!(answer.code, Some(2), "{answer:?}");
        assert!(answer.stderr.contains(named), "{answer:?}");
        assert!(!answer.stderr.contains(password(database.url())), "{answer:?}");
    };

    check(&["outbox", "maintain", "--keep", "14"], "time unit").await;
    check(&["outbox", "maintain", "--keep", "two weeks"], "--keep").await;
    check(&["outbox", "maintain", "--keep=-1d"], "--keep").await;
    check(&["outbox", "maintain", "--days-ahead", "367"], "1..=366").await;
    check(&["outbox", "maintain", "--schema", "Mine"], "name of the schema").await;
    check(&["outbox", "schema", "--schema", "pg_mine"], "name of the schema").await;
    check(&["outbox", "check", "--store", "table"], "--table").await;
    check(&["outbox"], "Usage").await;
}

#[tokio::test]
async fn help_tells_no_setting_that_is_secret() {
    for arguments in [&["outbox", "maintain", "--help"][..], &["outbox", "check", "--help"]] {
        let help = tailrace("postgres://me:hunter2@here/db", arguments).await.good();

        assert!(help.contains("DATABASE_URL") && !help.contains("hunter2"), "{help}");
    }
    let help = tailrace("", &["--help"]).await.good();
    assert!(help.contains("Exit codes: 0 done"), "{help}");
}
