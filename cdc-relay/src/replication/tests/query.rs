use std::time::Duration;

use super::server::Source;
use crate::error::Kind;
use crate::replication::{Row, quote_identifier, quote_literal};

/// Each character that SQL, a URL or a list of names could trip over.
const ODD: &str = r#"O'dd "näme", \ %2F $1 -- /* ; "#;

#[tokio::test]
async fn rows_come_as_text_and_null() {
    let mut source = Source::without_slot("rows_come_as_text").await;

    let rows = source.sql.query("SELECT 1, NULL, ''; SELECT 'ä' WHERE false; SELECT 'ä'").await;

    let rows: Vec<Row> = rows.unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!([rows[0].get(0), rows[0].get(1), rows[0].get(2)], [Some("1"), None, Some("")]);
    assert_eq!([rows[1].get(0), rows[1].get(1)], [Some("ä"), None]);
    assert!(source.sql.query("").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_refused_query_tells_why_and_the_next_one_works() {
    let mut source = Source::without_slot("a_refused_query").await;

    let error = source.sql.query("SELECT 1; SELECT no_such_function()").await.unwrap_err();

    assert_eq!((error.kind(), error.sqlstate()), (Kind::Server, Some("42883")));
    assert!(error.to_string().contains("no_such_function"), "{error}");
    assert_eq!(source.value("SELECT 2").await, "2");
}

#[tokio::test]
async fn a_query_past_its_limit_leaves_the_connection_unusable() {
    let mut source = Source::without_slot("past_its_limit").await;
    let limit = Duration::from_millis(50);

    let error = source.sql.query_within(limit, "SELECT pg_sleep(60)").await.unwrap_err();
    let next = source.sql.query("SELECT 1").await.unwrap_err();

    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("within 50ms"), "{error}");
    assert_eq!(next.kind(), Kind::Unavailable);
    assert!(next.to_string().contains("in the middle of a query"), "{next}");
}

#[tokio::test]
async fn an_answer_without_end_is_cut() {
    let mut source = Source::without_slot("answer_without_end").await;

    let error = source.sql.query("SELECT repeat('x', 1000000) FROM generate_series(1, 70)").await;

    assert_eq!(error.unwrap_err().kind(), Kind::Server);
}

#[tokio::test]
async fn a_terminated_query_tells_the_servers_reason() {
    let mut source = Source::without_slot("a_terminated_query").await;

    let error =
        source.sql.query("SELECT pg_terminate_backend(pg_backend_pid())").await.unwrap_err();

    assert_eq!((error.kind(), error.sqlstate()), (Kind::Unavailable, Some("57P01")));
}

#[tokio::test]
async fn a_copy_is_no_query() {
    let mut source = Source::without_slot("a_copy_is_no_query").await;

    let error = source.sql.query("COPY (SELECT 1) TO STDOUT").await.unwrap_err();

    assert_eq!(error.kind(), Kind::Malformed);
}

#[tokio::test]
async fn any_text_can_be_quoted() {
    let mut source = Source::without_slot("any_text_can_be_quoted").await;

    for conforming in ["on", "off"] {
        source.run(&format!("SET standard_conforming_strings = {conforming}")).await;
        assert_eq!(source.value(&format!("SELECT {}", quote_literal(ODD))).await, ODD);
    }
    source.run(&format!("CREATE TABLE {} (x int)", quote_identifier(ODD))).await;
    let name = source.value("SELECT relname FROM pg_class WHERE relname LIKE 'O%'").await;
    assert_eq!(name, ODD);
}

#[tokio::test]
async fn a_text_with_a_zero_byte_is_refused_before_it_is_sent() {
    let mut source = Source::without_slot("zero_byte").await;

    let error = source.sql.query("SELECT '\0'").await.unwrap_err();

    assert_eq!(error.kind(), Kind::Config);
    assert_eq!(source.value("SELECT 1").await, "1");
}
