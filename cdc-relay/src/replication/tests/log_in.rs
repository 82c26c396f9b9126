use std::path::Path;

use tokio::net::TcpListener;
use tokio::time::timeout;

use super::server::{DEADLINE, Source};
use crate::error::{Error, Kind};
use crate::replication::{Client, Endpoint};

pub(super) async fn refusal(endpoint: &Endpoint) -> Error {
    let outcome = timeout(DEADLINE, Client::connect(endpoint)).await.expect("an answer");
    outcome.err().expect("the log-in fails")
}

#[tokio::test]
async fn scram_log_in_tells_who_we_are_and_whom_we_reached() {
    let mut source = Source::without_slot("scram_log_in").await;

    let row = source
        .sql
        .query(
            "SELECT pg_backend_pid(), current_setting('server_version_num'),
                    current_setting('application_name'), current_setting('client_encoding'),
                    current_database()",
        )
        .await
        .unwrap()
        .remove(0);

    assert_eq!(row.get(0), Some(source.sql.backend_pid().to_string().as_str()));
    assert_eq!(row.get(1), Some(source.sql.server_version().to_string().as_str()));
    assert_eq!(row.get(2), Some("cdc-relay"));
    assert_eq!(row.get(3), Some("UTF8"));
    assert_eq!(row.get(4), Some(source.endpoint.database()));
}

#[tokio::test]
async fn a_wrong_password_names_role_and_place_and_never_the_password() {
    let source = Source::without_slot("wrong_password").await;
    let endpoint = source.endpoint_with("password=not-the-password");

    let error = refusal(&endpoint).await;

    assert_eq!(error.kind(), Kind::Permission);
    assert_eq!(error.sqlstate(), Some("28P01"));
    assert!(error.to_string().contains(&endpoint.describe()), "{error}");
    assert!(error.mend().unwrap().contains(endpoint.user()));
    assert!(!format!("{error:?}").contains("not-the-password"), "{error:?}");
}

#[tokio::test]
async fn an_unknown_database_is_named() {
    let source = Source::without_slot("unknown_database").await;

    let error = refusal(&source.endpoint_with("dbname=no%20such%20database")).await;

    assert_eq!((error.kind(), error.sqlstate()), (Kind::Config, Some("3D000")));
    assert!(error.to_string().contains("no such database"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    // Taken and given back: nobody listens there now.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();

    for (host, place) in
        [("127.0.0.1", format!("127.0.0.1:{port}")), ("/nowhere", "/nowhere".into())]
    {
        let url = format!("postgres://u@/d?host={host}&port={port}");
        let error = refusal(&Endpoint::parse(&url).unwrap()).await;

        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains(&place), "{error}");
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[tokio::test]
async fn a_host_without_an_address_is_named() {
    let endpoint = Endpoint::parse("postgres://u@no-such-host.invalid/d").unwrap();

    let error = refusal(&endpoint).await;

    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("no-such-host.invalid:5432"), "{error}");
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    let mut source = Source::without_slot("unix_socket").await;
    let directories = source.value("SHOW unix_socket_directories").await;
    let directory = directories.split(',').next().unwrap().trim();
    let port = source.endpoint.port();
    if !Path::new(directory).join(format!(".s.PGSQL.{port}")).exists() {
        // A server of somebody else's, on another machine.
        return;
    }

    let endpoint = source.endpoint_with(&format!("host={directory}"));
    let mut client = Client::connect(&endpoint).await.unwrap();

    let rows = client.query("SELECT inet_server_addr() IS NULL").await.unwrap();
    assert_eq!(rows[0].get(0), Some("t"));
}

#[tokio::test]
async fn a_role_without_the_replication_right_is_told_how_to_get_it() {
    let mut source = Source::without_slot("no_replication").await;
    let role = source.slot.clone();
    source.run(&format!("CREATE ROLE {role} LOGIN PASSWORD 'secret'")).await;

    let error = refusal(&source.endpoint_with(&format!("user={role}&password=secret"))).await;

    assert_eq!((error.kind(), error.sqlstate()), (Kind::Permission, Some("42501")));
    assert!(error.mend().unwrap().contains("REPLICATION"), "{error:?}");
    source.run(&format!("DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_password_that_is_asked_for_and_not_given_is_an_error() {
    let source = Source::without_slot("no_password").await;
    let endpoint = &source.endpoint;
    let url = format!(
        "postgres://{}@{}:{}/{}",
        endpoint.user(),
        endpoint.host(),
        endpoint.port(),
        endpoint.database()
    );
    if endpoint.password().is_none() {
        // A server of somebody else's, which trusts us.
        return;
    }

    let error = refusal(&Endpoint::parse(&url).unwrap()).await;

    assert_eq!(error.kind(), Kind::Permission);
    assert!(error.to_string().contains("none is given"), "{error}");
}
