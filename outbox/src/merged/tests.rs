use sqlx::postgres::PgRow;
use sqlx::{Connection, Executor, FromRow, PgConnection, Row};

use crate::logged::{frames, logged, message, watched};
use crate::{Kind, Message, Reaction, frame, merge, schema};

mod misuse;

/// A table of orders, two of them there already.
async fn shop(name: &str) -> (tailrace_stack::Database, PgConnection, String) {
    let (database, mut connection, slot) = watched(name).await;
    connection
        .execute(
            "CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY, \
             customer text UNIQUE, total bigint, note bytea); \
             INSERT INTO orders (customer, total) VALUES ('first', 1), ('second', 2)",
        )
        .await
        .unwrap();
    (database, connection, slot)
}

async fn orders(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(connection).await.unwrap()
}

#[derive(Debug, PartialEq)]
struct Order {
    id: i64,
    customer: String,
}

impl FromRow<'_, PgRow> for Order {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Order { id: row.try_get("id")?, customer: row.try_get("customer")? })
    }
}

#[tokio::test]
async fn statement_and_message_commit_together_or_not_at_all() {
    let (_database, mut connection, slot) = shop("merged_commit").await;
    let [committed, rolled_back, undone, after] = [1, 2, 3, 4].map(message);
    let insert = "INSERT INTO orders (customer, total) VALUES ($1, $2) RETURNING id";

    let mut tx = connection.begin().await.unwrap();
    let (id,): (i64,) = merge(insert)
        .bind("third")
        .bind(3_i64)
        .message(&committed)
        .fetch_one(&mut tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    let write = merge(insert).bind("fourth").bind(4_i64).message(&rolled_back);
    write.fetch_one::<(i64,)>(&mut tx).await.unwrap();
    tx.rollback().await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    let mut savepoint = tx.begin().await.unwrap();
    let write = merge(insert).bind("fifth").bind(5_i64).message(&undone);
    write.fetch_one::<(i64,)>(&mut savepoint).await.unwrap();
    savepoint.rollback().await.unwrap();
    let write = merge("DELETE FROM orders WHERE id = $1").bind(id).message(&after);
    assert_eq!(write.execute(&mut tx).await.unwrap(), 1);
    tx.commit().await.unwrap();

    assert_eq!(id, 3);
    assert_eq!(orders(&mut connection).await, 2);
    assert_eq!(logged(&mut connection, &slot).await, frames([&committed, &after]));
}

#[tokio::test]
async fn a_statement_has_one_message_however_many_rows_it_touches() {
    let (_database, mut connection, slot) = shop("merged_many").await;
    let messages = [1, 2, 3, 4].map(message);
    let returning = "UPDATE orders SET total = total + $1 RETURNING id, customer";

    let all: Vec<Order> = merge(returning)
        .bind(1_i64)
        .message(&messages[0])
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let one: Order = merge(returning)
        .bind(1_i64)
        .message(&messages[1])
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let counted =
        merge(returning).bind(1_i64).message(&messages[2]).execute(&mut connection).await.unwrap();
    let silent = merge("UPDATE orders SET total = total + $1")
        .bind(1_i64)
        .message(&messages[3])
        .execute(&mut connection)
        .await
        .unwrap();

    assert_eq!((all.len(), counted, silent), (2, 2, 2));
    assert!(all.contains(&one));
    let total: i64 = sqlx::query_scalar("SELECT sum(total)::bigint FROM orders")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    // Every run changed both rows, those of which one row was asked too.
    assert_eq!(total, 1 + 2 + 4 * 2);
    assert_eq!(logged(&mut connection, &slot).await, frames(&messages));
}

#[tokio::test]
async fn a_statement_that_touches_no_row_writes_no_message() {
    let (_database, mut connection, slot) = shop("merged_none").await;
    let [untold, told] = [1, 2].map(message);
    let delete = || merge("DELETE FROM orders WHERE id = $1 RETURNING id").bind(99_i64);

    let mut tx = connection.begin().await.unwrap();
    let errors = [
        delete().message(&untold).fetch_one::<(i64,)>(&mut tx).await.unwrap_err(),
        delete().message(&untold).allow_none().fetch_one::<(i64,)>(&mut tx).await.unwrap_err(),
        delete().message(&untold).fetch_all::<(i64,)>(&mut tx).await.unwrap_err(),
        delete().message(&untold).execute(&mut tx).await.unwrap_err(),
    ];
    let none = delete().message(&untold).fetch_optional::<(i64,)>(&mut tx).await.unwrap();
    let no_rows =
        delete().message(&untold).allow_none().fetch_all::<(i64,)>(&mut tx).await.unwrap();
    let zero = delete().message(&untold).allow_none().execute(&mut tx).await.unwrap();
    let write = merge("UPDATE orders SET total = 0").message(&told);
    write.execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();

    for error in errors {
        assert!(error.is_no_row(), "{error:?}");
        assert_eq!((error.kind(), error.reaction()), (Kind::NoRow, Reaction::Reject));
    }
    assert_eq!((none, no_rows, zero), (None, vec![], 0));
    assert_eq!(logged(&mut connection, &slot).await, frames([&told]));
}

/// Why there is no way to hand in the whole statement: this one reads well, and loses its message.
#[tokio::test]
async fn a_message_written_by_hand_in_a_cte_nobody_reads_is_lost() {
    let (_database, mut connection, slot) = shop("merged_naive").await;
    let naive = "WITH placed AS (INSERT INTO orders (customer) VALUES ($1) RETURNING id), \
                 message AS (SELECT pg_logical_emit_message(true, 'tailrace', $2::bytea) FROM placed) \
                 SELECT id FROM placed";
    let lost = message(1);

    let (id,): (i64,) = sqlx::query_as(naive)
        .bind("third")
        .bind(frame::encode(&lost))
        .fetch_one(&mut connection)
        .await
        .unwrap();

    assert_eq!((id, orders(&mut connection).await), (3, 3));
    assert!(logged(&mut connection, &slot).await.is_empty());
    // The API refuses the text: it is a SELECT, whatever stands before it.
    let text = "WITH placed AS (INSERT INTO orders (customer) VALUES ('fourth') RETURNING id) \
                SELECT id FROM placed";
    let error = merge(text).message(&lost).execute(&mut connection).await.unwrap_err();
    assert!(error.is_invalid(), "{error:?}");
}

#[tokio::test]
async fn a_query_of_sqlx_keeps_what_is_bound_to_it() {
    let (_database, mut connection, slot) = shop("merged_query").await;
    let messages = [1, 2, 3].map(message);
    let insert = "INSERT INTO orders (customer, total) VALUES ($1, $2) RETURNING id, customer";

    let query = merge(sqlx::query(insert).bind("a").bind(1_i64)).message(&messages[0]);
    let a: Order = query.fetch_one(&mut connection).await.unwrap();
    let query = merge(sqlx::query_as::<_, Order>(insert).bind("b").bind(1_i64));
    let b: Order = query.message(&messages[1]).fetch_one(&mut connection).await.unwrap();
    let query = merge(sqlx::query(insert).bind("c").persistent(false)).bind(None::<i64>);
    let c = query.message(&messages[2]).fetch_optional::<Order>(&mut connection).await.unwrap();

    assert_eq!([a.id, b.id, c.unwrap().id], [3, 4, 5]);
    assert_eq!(logged(&mut connection, &slot).await, frames(&messages));
}

#[tokio::test]
async fn texts_of_every_shape_keep_their_meaning() {
    let (_database, mut connection, slot) = shop("merged_shapes").await;
    connection
        .execute(
            "CREATE TABLE business (tailrace_message text); \
             CREATE TABLE parted (n int) PARTITION BY LIST (n); \
             CREATE TABLE small PARTITION OF parted FOR VALUES IN (1, 2, 11); \
             CREATE TABLE large PARTITION OF parted DEFAULT; \
             INSERT INTO parted VALUES (1), (2), (3), (4); \
             CREATE VIEW seen AS SELECT n FROM parted WHERE n > 0",
        )
        .await
        .unwrap();
    let check = async |connection: &mut PgConnection, text: &'static str| {
        let message = message(1);
        merge(text).message(&message).execute(connection).await.expect(text);
        message
    };

    let written = [
        check(&mut connection, "-- placed\ninsert into orders (customer) values (';')  ; -- done").await,
        check(&mut connection, "delete from orders where customer = ';' -- gone").await,
        check(&mut connection, "insert into orders (note) values ($$) select 1 $$) /* ) */ ;").await,
        check(&mut connection, "insert into orders default values returning id, id, 'x', null").await,
        check(&mut connection, "with one as (select 7 as n) insert into orders (total) select n from one").await,
        check(&mut connection, "insert into orders (customer) values ('first') on conflict (customer) do update set total = 9").await,
        check(&mut connection, "with a as (insert into orders default values returning 1) update orders set total = 0").await,
        check(&mut connection, "update parted set n = n + 10").await,
        check(&mut connection, "insert into seen select n from parted").await,
    ];
    let row: (Option<String>, Option<String>) =
        merge("insert into business values ('a') returning *, tailrace_message")
            .message(&written[0])
            .fetch_one(&mut connection)
            .await
            .unwrap();

    assert_eq!(row, (Some("a".to_owned()), Some("a".to_owned())));
    let expected: Vec<&Message> = written.iter().chain([&written[0]]).collect();
    assert_eq!(logged(&mut connection, &slot).await, frames(expected));
}

#[tokio::test]
async fn misuse_is_an_error_before_anything_is_sent() {
    let (_database, mut connection, slot) = shop("merged_misuse").await;
    let message = message(1);
    let two = "INSERT INTO orders (customer, note) VALUES ($1, $2) RETURNING id";

    let mut tx = connection.begin().await.unwrap();
    for refused in [
        merge("").message(&message),
        merge("SELECT 1").message(&message),
        merge("DELETE FROM orders; DELETE FROM orders").message(&message),
        merge("DELETE FROM orders) SELECT 1 FROM (SELECT 1").message(&message),
        merge("DELETE FROM orders").message(&message),
        // The message would be the note.
        merge(two).bind("third").message(&message),
        merge(two).bind("third").bind(vec![1_u8]).bind(1_i64).message(&message),
    ] {
        let error = refused.fetch_one::<(i64,)>(&mut tx).await.unwrap_err();
        assert!(error.is_invalid(), "{error:?}");
    }
    // Nothing has failed on the server.
    assert_eq!(orders(&mut tx).await, 2);
    tx.commit().await.unwrap();

    assert!(logged(&mut connection, &slot).await.is_empty());
}

#[tokio::test]
async fn what_postgres_refuses_has_its_sqlstate() {
    let (_database, mut connection, slot) = shop("merged_refused").await;
    let message = message(1);
    let check = async |connection: &mut PgConnection, text: &'static str, expected, said: &str| {
        let error = merge(text).message(&message).execute(connection).await.expect_err(text);
        let said = format!("the merged write failed: {said}");
        assert_eq!((error.kind(), error.sqlstate()), (Kind::Database, Some(expected)), "{text}");
        assert!(error.to_string().starts_with(&said), "{error}");
    };

    let twice = "insert into orders (customer) values ('first')";
    check(&mut connection, twice, "23505", "duplicate key value violates unique constraint").await;
    let unknown = "relation \"ordres\" does not exist (at character 13 of the business statement)";
    check(&mut connection, "insert into ordres values (1)", "42P01", unknown).await;
    let text = "insert into orders (customer) values (1, )";
    let syntax = "syntax error at or near \")\" (at character 42 of the business statement); it is \
                  sent with a RETURNING, which Postgres takes neither of a MERGE before 17";
    check(&mut connection, text, "42601", syntax).await;
    // A value that is quoted by Postgres is in the source alone.
    let secret = "insert into orders (total) select 'hunter2' || id from orders";
    check(&mut connection, secret, "42804", "column \"total\" is of type bigint").await;
    let quoted = "insert into orders (total) select ('hunter' || id)::bigint from orders";
    let hidden = "Postgres does not take a value (SQLSTATE 22P02)";
    check(&mut connection, quoted, "22P02", hidden).await;

    let mut tx = connection.begin().await.unwrap();
    tx.execute("SELECT 1 / 0").await.unwrap_err();
    let write = merge("DELETE FROM orders").message(&message);
    let error = write.execute(&mut tx).await.unwrap_err();
    tx.rollback().await.unwrap();
    assert!(error.is_aborted(), "{error:?}");
    assert_eq!(orders(&mut connection).await, 2);
    assert!(logged(&mut connection, &slot).await.is_empty());
}

/// How many merged writes are prepared on this connection.
async fn prepared(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar(
        "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%tailrace_message'",
    )
    .fetch_one(connection)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_text_is_prepared_once() {
    let (_database, mut connection, _slot) = shop("merged_prepared").await;

    for n in 0..3_i64 {
        let write = merge("UPDATE orders SET total = $1").bind(n);
        write.message(&message(1)).execute(&mut connection).await.unwrap();
    }

    assert_eq!(prepared(&mut connection).await, 1);
}

/// The way that `Outbox::merge` shows for a message that needs a generated id.
#[tokio::test]
async fn the_database_writes_a_message_with_the_id_it_generated() {
    let (_database, mut connection, slot) = shop("merged_generated").await;
    schema::install(&mut connection).await.unwrap();

    let (id, minted): (i64, uuid::Uuid) = sqlx::query_as(
        "WITH placed AS ( \
             INSERT INTO orders (customer, total) VALUES ($1, $2) RETURNING id, customer \
         ) \
         SELECT id, tailrace.emit('orders', 'order-' || id, 'order.placed.v1', \
                                  jsonb_build_object('order', id, 'customer', customer)) \
         FROM placed",
    )
    .bind("third")
    .bind(3_i64)
    .fetch_one(&mut connection)
    .await
    .unwrap();

    let logged = logged(&mut connection, &slot).await;
    assert_eq!(logged.len(), 1);
    let read = frame::Frame::decode(&logged[0]).unwrap();
    assert_eq!((id, read.id(), read.key()), (3, minted, Some(&b"order-3"[..])));
}

#[tokio::test]
async fn a_mapped_query_is_taken_with_what_is_bound_to_it() {
    let (_database, mut connection, slot) = shop("merged_mapped").await;
    let message = message(1);
    // What the macros of sqlx make is a query of this type.
    let mapped = sqlx::query("DELETE FROM orders WHERE customer = $1 RETURNING id, customer")
        .bind("second")
        .map(|row: PgRow| row.len());

    let gone: Order = merge(mapped).message(&message).fetch_one(&mut connection).await.unwrap();

    assert_eq!(prepared(&mut connection).await, 1);
    assert_eq!(gone, Order { id: 2, customer: "second".to_owned() });
    assert_eq!(logged(&mut connection, &slot).await, frames([&message]));
}

#[tokio::test]
async fn a_statement_that_is_not_to_be_prepared_is_not() {
    let (_database, mut connection, slot) = shop("merged_unprepared").await;
    let message = message(1);
    let delete = sqlx::query("DELETE FROM orders").persistent(false);

    merge(delete).message(&message).execute(&mut connection).await.unwrap();

    assert_eq!(prepared(&mut connection).await, 0);
    assert_eq!(logged(&mut connection, &slot).await, frames([&message]));
}
