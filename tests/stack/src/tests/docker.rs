//! Servers in Docker. Built with the feature `docker` alone, and needs an engine that has, or can
//! get, the images.

use std::process::Command;

use sqlx::{Connection, Executor, PgConnection};

use super::{connect, consume, environment, number, produce};
use crate::settings::{Docker, Settings};
use crate::{Needs, Stack};

#[tokio::test]
async fn servers_in_docker_are_broken_and_mended_and_leave_nothing() {
    let settings = Settings { docker: Docker::wanted(), ..environment() };
    let stack = Stack::start_in(Needs::BOTH.breakable(), settings).await.unwrap();
    let (postgres, kafka) = (stack.postgres(), stack.kafka());
    let database = postgres.fresh_database("contained").await.unwrap();
    let topic = kafka.fresh_topic("contained", 1).await.unwrap();
    let mut connection = connect(database.url()).await;
    connection.execute("create table t (n bigint)").await.unwrap();
    connection.execute("insert into t values (41)").await.unwrap();
    produce(kafka.brokers(), &topic, "first");

    postgres.kill().await.unwrap();
    kafka.kill().await.unwrap();
    PgConnection::connect(database.url()).await.expect_err("nobody listens");
    postgres.restart().await.unwrap();
    kafka.restart().await.unwrap();

    let mut connection = connect(database.url()).await;
    connection.execute("insert into t values (1)").await.unwrap();
    produce(kafka.brokers(), &topic, "second");
    postgres.pause().await.unwrap();
    kafka.pause().await.unwrap();
    postgres.resume().await.unwrap();
    kafka.resume().await.unwrap();
    postgres.stop().await.unwrap();
    kafka.stop().await.unwrap();
    postgres.restart().await.unwrap();
    kafka.restart().await.unwrap();
    let mut connection = connect(database.url()).await;
    assert_eq!(number(&mut connection, "select sum(n)::bigint from t").await, 42);
    assert_eq!(consume(kafka.brokers(), &topic), ["first", "second"]);
    connection.close().await.unwrap();

    let ports = [postgres.port().to_string(), kafka.brokers().rsplit_once(':').unwrap().1.into()];
    assert!(ports.iter().all(|port| published(port)));
    drop(stack);
    assert!(!ports.iter().any(|port| published(port)));
}

#[tokio::test]
async fn what_docker_does_not_offer_comes_from_local_servers() {
    let settings = Settings { docker: Docker::wanted(), ..environment() };

    let stack = Stack::start_in(Needs::POSTGRES.tls(), settings).await.unwrap();

    assert!(!published(&stack.postgres().port().to_string()));
}

/// Whether a container has this port of the machine.
fn published(port: &str) -> bool {
    let filter = format!("publish={port}");
    let output = Command::new("docker").args(["ps", "--quiet", "--filter", &filter]).output();
    !output.unwrap().stdout.is_empty()
}
