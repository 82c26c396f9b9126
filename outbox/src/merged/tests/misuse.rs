//! Mistakes of the caller, and of who set the database up: each is a typed error.

use super::*;
use crate::mapping::Mapping;
use crate::{Error, Outbox, Store};

const INSERT: &str = "INSERT INTO orders (customer) VALUES ('third') RETURNING id";

/// Every way to write, on a connection that need not be in a transaction any more.
async fn every_way(outbox: &Outbox, connection: &mut PgConnection) -> [Result<(), Error>; 5] {
    let [one, two] = [1, 2].map(message);
    [
        outbox.write(connection, &one).await,
        outbox.write_all(connection, &[one.clone(), two]).await,
        outbox.merge(INSERT).message(&one).execute(connection).await.map(drop),
        outbox.merge(INSERT).message(&one).fetch_one::<(i64,)>(connection).await.map(drop),
        outbox
            .merge(sqlx::query("DELETE FROM orders").persistent(false))
            .message(&one)
            .execute(connection)
            .await
            .map(drop),
    ]
}

#[tokio::test]
async fn a_write_after_the_transaction_was_ended_by_a_text_is_refused() {
    let (_database, mut connection, slot) = shop("misuse_ended").await;
    schema::install(&mut connection).await.unwrap();
    let stores = [Outbox::new(Store::Wal), Outbox::new(Store::Journal)];

    for outbox in &stores {
        for end in ["COMMIT", "ROLLBACK"] {
            let mut tx = connection.begin().await.unwrap();
            tx.execute(end).await.unwrap();
            // Twice: with statements that are new to the connection, and with prepared ones.
            for result in [every_way(outbox, &mut tx).await, every_way(outbox, &mut tx).await] {
                for error in result.map(Result::unwrap_err) {
                    assert!(error.is_ended(), "{error:?}");
                    assert_eq!(error.reaction(), Reaction::Reject);
                    assert!(error.to_string().contains("nothing was written"), "{error}");
                }
            }
            tx.rollback().await.unwrap();
        }
    }

    assert_eq!(orders(&mut connection).await, 2);
    let rows = "SELECT count(*) FROM tailrace.outbox";
    assert_eq!(sqlx::query_scalar::<_, i64>(rows).fetch_one(&mut connection).await.unwrap(), 0);
    assert!(logged(&mut connection, &slot).await.is_empty());
}

#[tokio::test]
async fn a_transaction_that_is_open_is_never_taken_for_ended() {
    let (database, mut connection, _slot) = shop("misuse_open").await;
    schema::install(&mut connection).await.unwrap();
    connection.execute("ALTER TABLE orders DROP CONSTRAINT orders_customer_key").await.unwrap();
    let stores = [Outbox::new(Store::Wal), Outbox::new(Store::Journal)];
    let pool = sqlx::PgPool::connect(database.url()).await.unwrap();

    for outbox in &stores {
        for _ in 0..200 {
            // The write is the first statement of the transaction.
            let mut tx = pool.begin().await.unwrap();
            outbox.write(&mut tx, &message(1)).await.unwrap();
            tx.commit().await.unwrap();
        }
        let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL SERIALIZABLE").await.unwrap();
        let mut savepoint = tx.begin().await.unwrap();
        every_way(outbox, &mut savepoint).await.into_iter().for_each(Result::unwrap);
        savepoint.commit().await.unwrap();
        // What begins at once with the end of another is a transaction too.
        tx.execute("COMMIT AND CHAIN").await.unwrap();
        every_way(outbox, &mut tx).await[0].as_ref().unwrap();
        tx.rollback().await.unwrap();
        // One that sqlx knows nothing of, and none at all.
        let mut plain = pool.acquire().await.unwrap();
        let plain = &mut *plain;
        plain.execute("BEGIN").await.unwrap();
        outbox.write(plain, &message(1)).await.unwrap();
        plain.execute("COMMIT").await.unwrap();
        outbox.write(plain, &message(1)).await.unwrap();
    }
}

#[tokio::test]
async fn what_the_store_misses_is_one_kind_of_error_in_every_way_to_write() {
    let (_database, mut connection, _slot) = shop("misuse_missing").await;
    let role = tailrace_stack::unique("misuse_missing");
    let mapping = Mapping::debezium("shop.messages").source("/orders").build().unwrap();
    let of_table = Outbox::new(Store::Table(mapping));
    let journal = Outbox::new(Store::Journal);
    let order = || Message::builder("outbox.event.a", "t").source("/orders").json(&1);
    let check = async |outbox: &Outbox, connection: &mut PgConnection, state: &str, said: &str| {
        let message = order().build().unwrap();
        let errors = [
            outbox.write(connection, &message).await.unwrap_err(),
            outbox.write_all(connection, &[message.clone(), message.clone()]).await.unwrap_err(),
            outbox.merge(INSERT).message(&message).execute(connection).await.unwrap_err(),
            outbox
                .merge(INSERT)
                .message(&message)
                .fetch_one::<(i64,)>(connection)
                .await
                .unwrap_err(),
        ];
        for error in errors {
            assert_eq!((error.kind(), error.sqlstate()), (Kind::Setup, Some(state)), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(said) && text.contains("call check of this outbox"), "{text}");
        }
    };

    check(&journal, &mut connection, "42P01", "relation \"tailrace.outbox\" does not exist").await;
    check(&of_table, &mut connection, "42P01", "relation \"shop.messages\" does not exist").await;
    let other = "CREATE SCHEMA shop; CREATE TABLE shop.messages (id uuid)";
    connection.execute(other).await.unwrap();
    check(&of_table, &mut connection, "42703", "column \"aggregateid\"").await;
    schema::install(&mut connection).await.unwrap();
    let one = message(1);
    crate::journal::insert(&mut connection, &one).await.unwrap();
    let grants =
        format!("CREATE ROLE {role}; GRANT INSERT, SELECT ON orders TO {role}; SET ROLE {role}");
    connection.execute(sqlx::AssertSqlSafe(grants)).await.unwrap();
    // A prepared statement knows the table already, and asks the schema no more.
    connection.clear_cached_statements().await.unwrap();
    check(&journal, &mut connection, "42501", "permission denied for schema tailrace").await;
    let usage = format!("RESET ROLE; GRANT USAGE ON SCHEMA tailrace TO {role}; SET ROLE {role}");
    connection.execute(sqlx::AssertSqlSafe(usage)).await.unwrap();
    check(&journal, &mut connection, "42501", "permission denied for table outbox").await;
    // The business statement's own faults stay what they are.
    let update = merge("UPDATE orders SET total = 0").message(&one);
    let error = update.execute(&mut connection).await.unwrap_err();
    let end = format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}");
    connection.execute(sqlx::AssertSqlSafe(end)).await.unwrap();

    assert_eq!((error.kind(), error.sqlstate()), (Kind::Database, Some("42501")), "{error:?}");
}

#[tokio::test]
async fn what_can_not_stand_in_ours_is_said_in_terms_of_the_callers() {
    let (_database, mut connection, _slot) = shop("misuse_form").await;
    schema::install(&mut connection).await.unwrap();
    let journal = Outbox::new(Store::Journal);
    let message = message(1);

    let nested = "with a as (insert into orders default values returning 1) delete from orders";
    let nested =
        journal.merge(nested).message(&message).execute(&mut connection).await.unwrap_err();
    let unknown = journal.merge("update ordres set total = 1").message(&message);
    let unknown = unknown.execute(&mut connection).await.unwrap_err();
    connection.execute("CREATE RULE none AS ON DELETE TO orders DO INSTEAD NOTHING").await.unwrap();
    let ruled = merge("delete from orders").message(&message);
    let ruled = ruled.execute(&mut connection).await.unwrap_err();

    for (error, state, place, mend) in [
        (nested, "0A000", "(at character 6 of the business statement)", "it is sent inside WITH"),
        (unknown, "42P01", "(at character 8 of the business statement)", ""),
        (ruled, "0A000", "", "it is sent with a RETURNING"),
    ] {
        assert_eq!((error.kind(), error.sqlstate()), (Kind::Database, Some(state)), "{error:?}");
        assert!(error.to_string().contains(place), "{error}");
        assert!(error.mend().unwrap_or_default().starts_with(mend), "{error}");
    }
}

#[tokio::test]
async fn a_row_of_another_type_says_that_everything_else_is_done() {
    let (_database, mut connection, slot) = shop("misuse_type").await;
    let message = message(1);

    let insert = merge(INSERT).message(&message);
    let error = insert.fetch_one::<(String,)>(&mut connection).await.unwrap_err();

    assert_eq!((error.kind(), error.sqlstate()), (Kind::Database, None), "{error:?}");
    assert!(error.to_string().starts_with("the statement has run with its message"), "{error}");
    assert_eq!(orders(&mut connection).await, 3);
    assert_eq!(logged(&mut connection, &slot).await, frames([&message]));
}

#[tokio::test]
async fn more_parameters_than_postgres_takes_are_named() {
    let (_database, mut connection, _slot) = shop("misuse_many").await;
    let message = message(1);
    let text = (1..=65_535).map(|n| format!("(${n}::int)")).collect::<Vec<_>>().join(", ");
    let insert = format!("INSERT INTO orders (total) VALUES {text}");

    let many = (0..65_535).fold(merge(sqlx::AssertSqlSafe(insert)), |merge, _| merge.bind(1));
    let error = many.message(&message).execute(&mut connection).await.unwrap_err();

    assert!(error.is_invalid(), "{error:?}");
    assert!(
        error.to_string().contains("has 65535 parameters, and with 1 of the message"),
        "{error}"
    );
}

#[tokio::test]
async fn a_wait_that_was_cut_short_asks_for_the_transaction_again() {
    let (database, mut connection, _slot) = shop("misuse_waits").await;
    let mut other = crate::database::connect(&database).await;
    let mut holds = other.begin().await.unwrap();
    holds.execute("LOCK TABLE orders").await.unwrap();
    let message = message(1);

    for (setting, state, kind) in [
        ("SET statement_timeout = 0; SET lock_timeout = '50ms'", "55P03", Kind::Conflict),
        ("SET lock_timeout = 0; SET statement_timeout = '50ms'", "57014", Kind::Unavailable),
    ] {
        connection.execute(setting).await.unwrap();
        let delete = merge("DELETE FROM orders").message(&message);
        let error = delete.execute(&mut connection).await.unwrap_err();

        assert_eq!((error.kind(), error.sqlstate()), (kind, Some(state)), "{error:?}");
        assert_eq!(error.reaction(), Reaction::Retry);
    }
    holds.rollback().await.unwrap();
}
