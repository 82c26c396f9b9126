use ::tokio_postgres::{Client, NoTls};

use super::{check, prepare, write, write_all};
use crate::database::{fresh, slot};
use crate::logged::{frames, logged, message, watched};
use crate::schema::Schema;
use crate::{Kind, Outbox, Store, schema};

const WAL: Outbox = Outbox::new(Store::Wal);

/// A client whose connection ends with the test.
async fn client(url: &str) -> Client {
    let (client, connection) = ::tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("SET statement_timeout = '20s'").await.unwrap();
    client
}

#[tokio::test]
async fn every_way_to_write_is_in_the_log_if_its_transaction_committed() {
    let (database, mut connection, slot) = watched("tokio_write").await;
    let mut client = client(database.url()).await;
    client.batch_execute("CREATE TABLE orders (id int, note bytea)").await.unwrap();
    let messages: Vec<_> = (0..6).map(message).collect();
    let insert = "INSERT INTO orders VALUES ($1), ($1 + 1) RETURNING id; -- two";
    let insert = prepare(&WAL, &client, insert).await.unwrap();
    let update = prepare(&WAL, &client, "UPDATE orders SET note = $1").await.unwrap();

    let tx = client.transaction().await.unwrap();
    write(&WAL, &tx, &messages[0]).await.unwrap();
    write_all(&WAL, &tx, &messages[1..3]).await.unwrap();
    write_all(&WAL, &tx, &[]).await.unwrap();
    let row = insert.query_one(&tx, &[&1], &messages[3]).await.unwrap();
    assert_eq!(insert.query(&tx, &[&3], &messages[4]).await.unwrap().len(), 2);
    assert_eq!(update.execute(&tx, &[&&b"note"[..]], &messages[5]).await.unwrap(), 4);
    tx.commit().await.unwrap();
    let tx = client.transaction().await.unwrap();
    write(&WAL, &tx, &message(98)).await.unwrap();
    insert.execute(&tx, &[&5], &message(99)).await.unwrap();
    tx.rollback().await.unwrap();

    assert_eq!(row.get::<_, i32>(0), 1);
    assert_eq!(logged(&mut connection, &slot).await, frames(&messages));
}

#[tokio::test]
async fn a_statement_that_touches_no_row_writes_no_message() {
    let (database, mut connection, slot) = watched("tokio_none").await;
    let mut client = client(database.url()).await;
    client.batch_execute("CREATE TABLE orders (id int)").await.unwrap();
    let silent = prepare(&WAL, &client, "DELETE FROM orders").await.unwrap();
    let returning = prepare(&WAL, &client, "DELETE FROM orders RETURNING id").await.unwrap();

    let tx = client.transaction().await.unwrap();
    let errors = [
        silent.execute(&tx, &[], &message(1)).await.unwrap_err(),
        returning.execute(&tx, &[], &message(1)).await.unwrap_err(),
        returning.query_one(&tx, &[], &message(1)).await.unwrap_err(),
    ];
    assert!(returning.query_opt(&tx, &[], &message(1)).await.unwrap().is_none());
    assert!(returning.query(&tx, &[], &message(1)).await.unwrap().is_empty());
    tx.commit().await.unwrap();

    for error in errors {
        assert_eq!(error.kind(), Kind::NoRow, "{error:?}");
    }
    assert!(logged(&mut connection, &slot).await.is_empty());
}

#[tokio::test]
async fn misuse_and_what_postgres_refuses_are_typed() {
    let (database, _connection, _slot) = watched("tokio_misuse").await;
    let mut client = client(database.url()).await;
    client.batch_execute("CREATE TABLE orders (id int UNIQUE, note bytea)").await.unwrap();
    client.batch_execute("INSERT INTO orders VALUES (1)").await.unwrap();
    let insert = prepare(&WAL, &client, "INSERT INTO orders VALUES ($1, $2)").await.unwrap();

    let select = prepare(&WAL, &client, "SELECT 1").await.unwrap_err();
    let missing = prepare(&WAL, &client, "DELETE FROM ordres").await.unwrap_err();
    let tx = client.transaction().await.unwrap();
    let few = insert.execute(&tx, &[&2], &message(1)).await.unwrap_err();
    let rows = insert.query(&tx, &[&2, &None::<Vec<u8>>], &message(1)).await.unwrap_err();
    let twice = insert.execute(&tx, &[&1, &None::<Vec<u8>>], &message(1)).await.unwrap_err();
    let aborted = write(&WAL, &tx, &message(1)).await.unwrap_err();

    for invalid in [select, few, rows] {
        assert!(invalid.is_invalid(), "{invalid:?}");
    }
    assert_eq!((missing.kind(), missing.sqlstate()), (Kind::Database, Some("42P01")));
    assert_eq!((twice.kind(), twice.sqlstate()), (Kind::Database, Some("23505")));
    assert!(aborted.is_aborted(), "{aborted:?}");
}

#[tokio::test]
async fn a_lost_connection_is_unavailable() {
    let (database, mut connection, _slot) = watched("tokio_lost").await;
    let lost = client(database.url()).await;
    let pid: i32 = lost.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    // With a time-out the function answers once the backend is gone.
    sqlx::query("SELECT pg_terminate_backend($1, 20000)")
        .bind(pid)
        .execute(&mut connection)
        .await
        .unwrap();

    let error = write(&WAL, &lost, &message(1)).await.unwrap_err();

    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
}

#[tokio::test]
async fn the_journal_takes_every_way_to_write() {
    let (database, mut connection) = fresh("tokio_journal").await;
    schema::install(&mut connection).await.unwrap();
    let client = client(database.url()).await;
    client.batch_execute("CREATE TABLE orders (id int)").await.unwrap();
    let journal = Outbox::new(Store::Journal);
    let messages: Vec<_> = (0..5).map(message).collect();
    let insert = "INSERT INTO orders VALUES ($1), ($1 + 1) RETURNING id";
    let insert = prepare(&journal, &client, insert).await.unwrap();
    let delete = prepare(&journal, &client, "DELETE FROM orders WHERE id = $1").await.unwrap();

    write(&journal, &client, &messages[0]).await.unwrap();
    write_all(&journal, &client, &messages[1..3]).await.unwrap();
    assert_eq!(insert.query(&client, &[&1], &messages[3]).await.unwrap().len(), 2);
    assert_eq!(delete.execute(&client, &[&1], &messages[4]).await.unwrap(), 1);
    let none = delete.execute(&client, &[&9], &message(9)).await.unwrap_err();

    assert_eq!(none.kind(), Kind::NoRow);
    let rows = "SELECT id, topic, payload FROM tailrace.outbox ORDER BY id";
    let rows = client.query(rows, &[]).await.unwrap();
    let rows: Vec<_> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let expected: Vec<(uuid::Uuid, &str, Option<&[u8]>)> =
        messages.iter().map(|message| (message.id(), message.topic(), message.payload())).collect();
    assert_eq!(rows, expected);
    let elsewhere = journal.schema(Schema::named("nowhere").unwrap());
    let error = write(&elsewhere, &client, &message(9)).await.unwrap_err();
    assert!(error.is_setup(), "{error:?}");
    assert!(check(&elsewhere, &client).await.unwrap_err().is_setup());
}

#[tokio::test]
async fn the_start_of_a_service_is_checked() {
    let (database, mut connection, _slot) = watched("tokio_check").await;
    let client = client(database.url()).await;
    let missing = WAL.slot("tokio_check_missing");
    let present = WAL.slot(slot(&mut connection, "tokio_check_there", "pgoutput").await);

    assert!(check(&missing, &client).await.unwrap_err().is_setup());
    check(&present, &client).await.unwrap();
}
