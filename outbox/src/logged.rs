//! What a reader of a slot gets, for tests of the ways to write.

use sqlx::{Executor, PgConnection};
use tailrace_stack::Database;

use crate::database::{fresh, slot};
use crate::{Builder, Message, PREFIX, frame};

/// A connection to a fresh database, and a slot that has seen nothing yet.
pub(crate) async fn watched(name: &str) -> (Database, PgConnection, String) {
    let (database, mut connection) = fresh(name).await;
    connection.execute("CREATE PUBLICATION nothing").await.unwrap();
    let slot = slot(&mut connection, name, "pgoutput").await;
    (database, connection, slot)
}

/// What a reader of the slot gets, as far as it comes from messages.
pub(crate) async fn logged(connection: &mut PgConnection, slot: &str) -> Vec<Vec<u8>> {
    logged_under(connection, slot, PREFIX).await
}

/// The same for messages of any prefix; one of another prefix fails the test.
pub(crate) async fn logged_under(
    connection: &mut PgConnection,
    slot: &str,
    prefix: &str,
) -> Vec<Vec<u8>> {
    let changes: Vec<(Vec<u8>,)> = sqlx::query_as(
        "SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, \
         'proto_version', '2', 'publication_names', 'nothing', 'messages', 'true')",
    )
    .bind(slot)
    .fetch_all(connection)
    .await
    .unwrap();
    changes.iter().filter_map(|(change,)| content(change, prefix)).collect()
}

/// The content of a pgoutput `Message` change
/// (<https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>).
fn content(change: &[u8], prefix: &str) -> Option<Vec<u8>> {
    let message = change.strip_prefix(b"M")?;
    let (transactional, rest) = message.split_first().unwrap();
    let prefix_and_content = &rest[8..];
    let content = prefix_and_content.strip_prefix(prefix.as_bytes()).unwrap();
    assert_eq!(*transactional, 1);
    assert_eq!(content[0], 0);
    let length = u32::from_be_bytes(*content[1..].first_chunk().unwrap());
    assert_eq!(content[5..].len(), usize::try_from(length).unwrap());
    Some(content[5..].to_vec())
}

pub(crate) fn frames<'m>(messages: impl IntoIterator<Item = &'m Message>) -> Vec<Vec<u8>> {
    messages.into_iter().map(frame::encode).collect()
}

pub(crate) fn message(n: u32) -> Message {
    builder().json(&n).build().unwrap()
}

pub(crate) fn builder() -> Builder {
    Message::builder("orders", "order.placed.v1").source("/orders").key("order-42")
}
