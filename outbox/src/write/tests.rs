use sqlx::{Connection, Executor, PgConnection};

use super::write;
use crate::database::{connect, fresh, slot};
use crate::{Builder, FRAME_BYTES_MAX, Kind, Message, PREFIX, Reaction, frame};

fn message(n: u32) -> Message {
    builder().json(&n).build().unwrap()
}

fn builder() -> Builder {
    Message::builder("orders", "order.placed.v1").source("/orders").key("order-42")
}

/// A connection to a fresh database, and a slot that has seen nothing yet.
async fn watched(name: &str) -> (tailrace_stack::Database, PgConnection, String) {
    let (database, mut connection) = fresh(name).await;
    connection.execute("CREATE PUBLICATION nothing").await.unwrap();
    let slot = slot(&mut connection, name, "pgoutput").await;
    (database, connection, slot)
}

/// What a reader of the slot gets, as far as it comes from messages.
async fn logged(connection: &mut PgConnection, slot: &str) -> Vec<Vec<u8>> {
    let changes: Vec<(Vec<u8>,)> = sqlx::query_as(
        "SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, \
         'proto_version', '2', 'publication_names', 'nothing', 'messages', 'true')",
    )
    .bind(slot)
    .fetch_all(connection)
    .await
    .unwrap();
    changes.iter().filter_map(|(change,)| content(change)).collect()
}

/// The content of a pgoutput `Message` change
/// (<https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>).
fn content(change: &[u8]) -> Option<Vec<u8>> {
    let message = change.strip_prefix(b"M")?;
    let (transactional, rest) = message.split_first().unwrap();
    let prefix_and_content = &rest[8..];
    let content = prefix_and_content.strip_prefix(PREFIX.as_bytes()).unwrap();
    assert_eq!(*transactional, 1);
    assert_eq!(content[0], 0);
    let length = u32::from_be_bytes(*content[1..].first_chunk().unwrap());
    assert_eq!(content[5..].len(), usize::try_from(length).unwrap());
    Some(content[5..].to_vec())
}

fn frames(messages: &[&Message]) -> Vec<Vec<u8>> {
    messages.iter().map(|message| frame::encode(message)).collect()
}

#[tokio::test]
async fn a_message_is_in_the_log_exactly_if_its_transaction_committed() {
    let (_database, mut connection, slot) = watched("outbox_commit").await;
    let [committed, rolled_back, before, undone, after] = [1, 2, 3, 4, 5].map(message);

    let mut tx = connection.begin().await.unwrap();
    write(&mut tx, &committed).await.unwrap();
    tx.commit().await.unwrap();

    let mut tx = connection.begin().await.unwrap();
    write(&mut tx, &rolled_back).await.unwrap();
    tx.rollback().await.unwrap();

    let mut tx = connection.begin().await.unwrap();
    write(&mut tx, &before).await.unwrap();
    let mut savepoint = tx.begin().await.unwrap();
    write(&mut savepoint, &undone).await.unwrap();
    savepoint.rollback().await.unwrap();
    write(&mut tx, &after).await.unwrap();
    tx.commit().await.unwrap();

    assert_eq!(logged(&mut connection, &slot).await, frames(&[&committed, &before, &after]));
}

#[tokio::test]
async fn a_transaction_that_was_dropped_or_whose_connection_died_leaves_no_message() {
    let (database, mut connection, slot) = watched("outbox_dropped").await;

    let mut tx = connection.begin().await.unwrap();
    write(&mut tx, &message(1)).await.unwrap();
    drop(tx);
    let mut dying = connect(&database).await;
    dying.execute("BEGIN").await.unwrap();
    write(&mut dying, &message(2)).await.unwrap();
    dying.close_hard().await.unwrap();
    let last = message(3);
    write(&mut connection, &last).await.unwrap();

    assert_eq!(logged(&mut connection, &slot).await, frames(&[&last]));
}

#[tokio::test]
async fn the_largest_message_arrives_whole() {
    let (_database, mut connection, slot) = watched("outbox_largest").await;
    let overhead = frame::encoded_len(&builder().payload([]).build().unwrap());
    let largest = builder().payload(vec![0xa5; FRAME_BYTES_MAX - overhead]).build().unwrap();

    let mut tx = connection.begin().await.unwrap();
    write(&mut tx, &largest).await.unwrap();
    tx.commit().await.unwrap();

    let logged = logged(&mut connection, &slot).await;
    assert_eq!(logged[0].len(), FRAME_BYTES_MAX);
    assert!(logged == frames(&[&largest]));
}

#[tokio::test]
async fn an_aborted_transaction_is_an_error_that_says_so() {
    let (_database, mut connection) = fresh("outbox_aborted").await;
    let mut tx = connection.begin().await.unwrap();
    tx.execute("SELECT 1 / 0").await.unwrap_err();

    let error = write(&mut tx, &message(1)).await.unwrap_err();

    assert!(error.is_aborted(), "{error:?}");
    assert_eq!(error.reaction(), Reaction::Reject);
    assert_eq!(
        error.to_string(),
        "the message could not be written; roll back; the first error of the transaction tells why"
    );
    assert!(std::error::Error::source(&error).is_some());
}

#[tokio::test]
async fn a_lost_connection_asks_for_the_transaction_again() {
    let (database, mut connection) = fresh("outbox_lost").await;
    let mut other = connect(&database).await;
    let mut tx = connection.begin().await.unwrap();
    let (pid,): (i32,) =
        sqlx::query_as("SELECT pg_backend_pid()").fetch_one(&mut *tx).await.unwrap();
    // With a time-out the function answers once the backend is gone.
    sqlx::query("SELECT pg_terminate_backend($1, 20000)")
        .bind(pid)
        .execute(&mut other)
        .await
        .unwrap();

    let error = write(&mut tx, &message(1)).await.unwrap_err();

    assert_eq!((error.kind(), error.reaction()), (Kind::Unavailable, Reaction::Retry), "{error:?}");
}
