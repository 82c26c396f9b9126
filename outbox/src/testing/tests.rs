use sqlx::{Connection, Executor};

use super::{expect_messages, record};
use crate::database::fresh;
use crate::logged::{builder, frames, logged, message, watched};
use crate::{Message, Outbox, Store, schema};

const WAL: Outbox = Outbox::new(Store::Wal);

#[tokio::test]
async fn a_transaction_sees_what_it_wrote_and_the_log_has_it_after_commit() {
    let (_database, mut connection, slot) = watched("testing_record").await;
    connection.execute("CREATE TABLE orders (id int)").await.unwrap();
    let full = builder().subject("order-42").header("tenant", "acme").correlation_id("first");
    let messages = [full.json(&0).build().unwrap(), message(1), message(2), message(3)];

    let mut tx = connection.begin().await.unwrap();
    let outbox = record(&mut tx, &WAL).await.unwrap();
    outbox.write(&mut tx, &messages[0]).await.unwrap();
    outbox.write_all(&mut tx, &messages[1..3]).await.unwrap();
    let mut savepoint = tx.begin().await.unwrap();
    outbox.write(&mut savepoint, &message(99)).await.unwrap();
    savepoint.rollback().await.unwrap();
    let insert = outbox.merge("INSERT INTO orders VALUES (1), (2)").message(&messages[3]);
    insert.execute(&mut tx).await.unwrap();
    let written = expect_messages(&mut tx).await.unwrap().into_messages();
    tx.commit().await.unwrap();

    assert_eq!(written, messages);
    assert_eq!(logged(&mut connection, &slot).await, frames(&messages));
}

#[tokio::test]
async fn what_goes_into_the_journal_is_seen_too() {
    let (_database, mut connection) = fresh("testing_journal").await;
    schema::install(&mut connection).await.unwrap();
    connection.execute("CREATE TABLE orders (id int)").await.unwrap();
    let messages = [1, 2, 3, 4].map(message);

    let mut tx = connection.begin().await.unwrap();
    let outbox = record(&mut tx, &Outbox::new(Store::Journal)).await.unwrap();
    outbox.write(&mut tx, &messages[0]).await.unwrap();
    outbox.write_all(&mut tx, &messages[1..3]).await.unwrap();
    let insert = "INSERT INTO orders VALUES (1) RETURNING id";
    let insert = outbox.merge(insert).message(&messages[3]);
    insert.fetch_one::<(i32,)>(&mut tx).await.unwrap();
    let untold = message(9);
    let delete = outbox.merge("DELETE FROM orders WHERE id = 9").message(&untold);
    assert_eq!(delete.allow_none().execute(&mut tx).await.unwrap(), 0);
    let written = expect_messages(&mut tx).await.unwrap().into_messages();
    let (rows,): (i64,) =
        sqlx::query_as("SELECT count(*) FROM tailrace.outbox").fetch_one(&mut *tx).await.unwrap();

    assert_eq!(written, messages);
    assert_eq!(rows, 4);
}

#[tokio::test]
async fn each_transaction_is_looked_at_alone() {
    let (_database, mut connection) = fresh("testing_alone").await;
    let outbox = record(&mut connection, &WAL).await.unwrap();
    let again = record(&mut connection, &WAL).await.unwrap();

    let mut tx = connection.begin().await.unwrap();
    outbox.write(&mut tx, &message(1)).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    again.write(&mut tx, &message(2)).await.unwrap();
    let written: Vec<Message> = expect_messages(&mut tx).await.unwrap().into_messages();

    assert_eq!(written.len(), 1);
    assert_eq!(written[0].payload(), Some(&b"2"[..]));
}

#[tokio::test]
async fn another_connection_and_no_transaction_are_told_from_no_messages() {
    let (database, mut connection) = fresh("testing_nothing").await;
    let mut other = crate::database::connect(&database).await;
    let outbox = record(&mut connection, &WAL).await.unwrap();

    let mut tx = other.begin().await.unwrap();
    let written = outbox.write(&mut tx, &message(1)).await.unwrap_err();
    tx.rollback().await.unwrap();
    let mut tx = other.begin().await.unwrap();
    let expected = expect_messages(&mut tx).await.unwrap_err();
    tx.rollback().await.unwrap();
    outbox.write(&mut connection, &message(1)).await.unwrap();
    let outside = [
        expect_messages(&mut connection).await.unwrap_err(),
        expect_messages(&mut connection).await.unwrap_err(),
    ];
    connection.execute("BEGIN").await.unwrap();
    outbox.write(&mut connection, &message(2)).await.unwrap();
    let by_text = expect_messages(&mut connection).await.unwrap().into_messages();

    for error in [written, expected] {
        assert!(error.is_setup(), "{error:?}");
        assert!(error.to_string().starts_with("nothing is recorded on this connection"), "{error}");
    }
    for error in outside {
        assert!(error.is_ended(), "{error:?}");
        assert!(error.to_string().starts_with("no transaction is open, and what"), "{error}");
    }
    assert_eq!(by_text.len(), 1);
}

#[tokio::test]
async fn what_was_not_expected_fails_the_test_with_the_types_there_are() {
    let (_database, mut connection) = fresh("testing_panics").await;
    let mut tx = connection.begin().await.unwrap();
    let outbox = record(&mut tx, &WAL).await.unwrap();
    outbox.write(&mut tx, &message(1)).await.unwrap();
    let left = expect_messages(&mut tx).await.unwrap();
    let mut other = expect_messages(&mut tx).await.unwrap();
    let mut taken = expect_messages(&mut tx).await.unwrap();

    let text = |panic: Box<dyn std::any::Any + Send>| *panic.downcast::<String>().unwrap();
    let end = std::panic::catch_unwind(move || left.end()).unwrap_err();
    let next = std::panic::catch_unwind(move || other.next("order.lost")).unwrap_err();

    assert_eq!(taken.next("order.placed.v1").payload(), Some(&b"1"[..]));
    taken.end();
    assert_eq!(
        [text(end), text(next)],
        [
            "expected no further message, and there are [\"order.placed.v1\"]",
            "expected a message of type \"order.lost\" next, and there are [\"order.placed.v1\"]",
        ]
    );
}
