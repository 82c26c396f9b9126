//! Several hosts, sockets, and settings of the session.

use tokio::net::TcpListener;

use super::log_in::refusal;
use super::server::Source;
use crate::error::Kind;
use crate::replication::{Client, Endpoint, quote_identifier};

/// A port at which nobody listens.
async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// The same database, with other hosts before its own.
fn after(source: &Source, hosts: &str, parameters: &str) -> Endpoint {
    let (login, place) = source.url.rsplit_once('@').unwrap();
    Endpoint::parse(&format!("{login}@{hosts},{place}&{parameters}")).unwrap()
}

#[tokio::test]
async fn a_host_that_is_not_there_is_passed_over() {
    let source = Source::without_slot("passed_over").await;
    let hosts = format!("127.0.0.1:{},no-such-host.invalid", closed_port().await);

    let client = Client::connect(&after(&source, &hosts, "connect_timeout=5")).await.unwrap();

    assert!(client.backend_pid() > 0);
}

#[tokio::test]
async fn hosts_of_which_none_serves_are_all_named() {
    let (one, two) = (closed_port().await, closed_port().await);
    let url = format!("postgres://u@127.0.0.1:{one},127.0.0.1:{two}/d");

    let error = refusal(&Endpoint::parse(&url).unwrap()).await;

    assert_eq!(error.kind(), Kind::Unavailable);
    let text = error.to_string();
    assert!(text.contains(&one.to_string()) && text.contains(&two.to_string()), "{text}");
}

#[tokio::test]
async fn a_host_that_refuses_us_ends_the_search() {
    let source = Source::without_slot("ends_the_search").await;
    let port = source.endpoint.port();

    let error = refusal(&after(&source, &format!("127.0.0.1:{port}"), "password=wrong")).await;

    assert_eq!(error.sqlstate(), Some("28P01"), "{error}");
}

#[tokio::test]
async fn a_server_of_the_wrong_kind_is_passed_over() {
    let mut source = Source::without_slot("wrong_kind").await;
    let database = quote_identifier(source.endpoint.database());
    source.run(&format!("ALTER DATABASE {database} SET default_transaction_read_only = on")).await;

    Client::connect(&source.endpoint_with("target_session_attrs=primary")).await.unwrap();
    Client::connect(&source.endpoint_with("target_session_attrs=any")).await.unwrap();
    let error = refusal(&source.endpoint_with("target_session_attrs=read-write")).await;

    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("is not read-write"), "{error}");
    // `options` belong to the session, and are stronger than what the database has set.
    let writable = "options=-c%20default_transaction_read_only%3Doff";
    Client::connect(&source.endpoint_with(&format!("target_session_attrs=read-write&{writable}")))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_password_comes_from_a_command_at_each_log_in() {
    let source = Source::without_slot("from_a_command").await;
    let Some(password) = source.endpoint.password() else {
        // A server of somebody else's, which trusts us.
        return;
    };
    let (login, place) = source.url.rsplit_once('@').unwrap();
    let user = login.rsplit_once(':').unwrap().0;
    let without = Endpoint::parse(&format!("{user}@{place}")).unwrap();

    let good = without.clone().password_command(format!("printf %s '{password}'")).unwrap();
    let wrong = without.password_command("echo wrong").unwrap();

    Client::connect(&good).await.unwrap();
    assert_eq!(refusal(&wrong).await.sqlstate(), Some("28P01"));
}
