use sqlx::{Connection, Executor, PgConnection};

use super::{Answer, Outbox, Place, Store, WRITTEN, literal};
use crate::database::{fresh, slot};
use crate::journal::Journal;
use crate::logged::{builder, message};
use crate::schema::Schema;
use crate::statement::Statement;
use crate::{Kind, Message, schema};

#[test]
fn the_message_stands_in_the_returning_of_the_statement() {
    let check = |text: &str, answer, first, expected: &str| {
        let statement = Statement::read(text).unwrap();
        let merged =
            Outbox::new(Store::Wal).prefix("p").merged(&statement, answer, first, Place::Anywhere);
        assert_eq!(merged, expected);
        assert!(merged.contains(WRITTEN));
    };

    check(
        "insert into t values ($1) returning id; -- done",
        Answer::Rows,
        2,
        "insert into t values ($1) returning id, \
         (SELECT pg_catalog.pg_logical_emit_message(true, 'p', $2::pg_catalog.bytea)::pg_catalog.text) \
         AS tailrace_message",
    );
    check(
        "delete from t",
        Answer::Count,
        1,
        "delete from t RETURNING \
         (SELECT pg_catalog.pg_logical_emit_message(true, 'p', $1::pg_catalog.bytea)::pg_catalog.text) \
         AS tailrace_message",
    );
}

#[test]
fn a_prefix_of_any_letters_stays_one_constant() {
    assert_eq!(literal("tailrace"), "'tailrace'");
    assert_eq!(literal("it's"), "'it''s'");
    assert_eq!(literal(r"\'"), r" E'\\'''");
}

/// What is in the journal, oldest first, as far as it tells messages and their columns apart.
async fn rows(connection: &mut PgConnection, table: &str) -> Vec<(uuid::Uuid, String)> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "SELECT id, concat_ws('|', topic, convert_from(key, 'UTF8'), type, source, subject, \
         content_type, attributes, headers, tombstone, convert_from(payload, 'UTF8'), \
         (extract(epoch FROM created_at) * 1000000)::bigint) FROM {table} ORDER BY id"
    )))
    .fetch_all(connection)
    .await
    .unwrap()
}

#[tokio::test]
async fn every_way_to_write_makes_the_same_row_of_the_journal() {
    let (_database, mut connection) = fresh("store_journal").await;
    schema::install(&mut connection).await.unwrap();
    connection.execute("CREATE TABLE orders (id int, note bytea)").await.unwrap();
    let outbox = Outbox::new(Store::Journal);
    let full = || {
        builder()
            .subject("order-42")
            .header("tenant", "a\"cme")
            .correlation_id("first")
            .time_micros(1_795_219_200_123_457)
            .json(&1)
    };
    let least = || builder().tombstone().time_micros(-1);
    let messages: Vec<Message> = [full(), least(), full(), least(), full(), least(), full()]
        .map(|builder| builder.build().unwrap())
        .into();

    let mut tx = connection.begin().await.unwrap();
    outbox.write(&mut tx, &messages[0]).await.unwrap();
    outbox.write(&mut tx, &messages[1]).await.unwrap();
    outbox.write_all(&mut tx, &messages[2..4]).await.unwrap();
    let insert = outbox.merge("INSERT INTO orders VALUES ($1, $2), (2, NULL) RETURNING id");
    let insert = insert.bind(1).bind(vec![7_u8]).message(&messages[4]);
    let ids: Vec<(i32,)> = insert.fetch_all(&mut tx).await.unwrap();
    let update = outbox.merge("UPDATE orders SET id = id").message(&messages[5]);
    assert_eq!(update.execute(&mut tx).await.unwrap(), 2);
    let untold = message(9);
    let delete = outbox.merge("DELETE FROM orders WHERE id = 9").message(&untold);
    assert!(delete.execute(&mut tx).await.unwrap_err().is_no_row());
    let delete = outbox.merge("DELETE FROM orders WHERE id = 9 RETURNING id").message(&untold);
    assert_eq!(delete.fetch_optional::<(i32,)>(&mut tx).await.unwrap(), None);
    let one = outbox.merge("UPDATE orders SET id = id RETURNING id").message(&messages[6]);
    one.fetch_one::<(i32,)>(&mut tx).await.unwrap();
    tx.commit().await.unwrap();

    assert_eq!(ids, [(1,), (2,)]);
    let rows = rows(&mut connection, "tailrace.outbox").await;
    let expected: Vec<_> = messages.iter().map(Message::id).collect();
    assert_eq!(rows.iter().map(|(id, _)| *id).collect::<Vec<_>>(), expected);
    for (place, (_, row)) in rows.iter().enumerate() {
        assert_eq!(*row, rows[place % 2].1, "row {place}");
    }
    assert!(rows[0].1.contains("tenant") && rows[0].1.ends_with("|f|1|1795219200123457"));
    assert!(rows[1].1.ends_with("|t|-1"), "{}", rows[1].1);
}

#[tokio::test]
async fn nothing_that_stands_before_pg_catalog_changes_what_is_written() {
    let (_database, mut connection) = fresh("store_path").await;
    schema::install(&mut connection).await.unwrap();
    // Types, by tables of their names, operators, and a function.
    connection
        .execute(
            "CREATE TABLE orders (id int); CREATE SCHEMA evil; \
             CREATE FUNCTION evil.wrong(timestamptz, interval) RETURNS timestamptz \
                 LANGUAGE sql RETURN now(); \
             CREATE FUNCTION evil.wrong(bigint, int) RETURNS boolean LANGUAGE sql RETURN false; \
             CREATE FUNCTION evil.wrong(bigint, bigint) RETURNS bigint LANGUAGE sql RETURN 7; \
             CREATE FUNCTION evil.count() RETURNS bigint LANGUAGE sql RETURN 0; \
             CREATE OPERATOR evil.+ \
                 (function = evil.wrong, leftarg = timestamptz, rightarg = interval); \
             CREATE OPERATOR evil.> (function = evil.wrong, leftarg = bigint, rightarg = int); \
             CREATE OPERATOR evil./ (function = evil.wrong, leftarg = bigint, rightarg = bigint); \
             CREATE TABLE evil.text (); CREATE TABLE evil.bytea (); CREATE TABLE evil.uuid (); \
             CREATE TABLE evil.int8 (); CREATE TABLE evil.bool (); CREATE TABLE evil.jsonb (); \
             SET search_path = evil, pg_catalog, public",
        )
        .await
        .unwrap();
    let messages = [1, 2, 3, 4, 5].map(message);

    for outbox in [Outbox::new(Store::Journal), Outbox::new(Store::Wal)] {
        let mut tx = connection.begin().await.unwrap();
        outbox.write(&mut tx, &messages[0]).await.unwrap();
        outbox.write_all(&mut tx, &messages[1..3]).await.unwrap();
        let insert = outbox.merge("INSERT INTO orders VALUES (1)").message(&messages[3]);
        assert_eq!(insert.execute(&mut tx).await.unwrap(), 1);
        let insert = outbox.merge("INSERT INTO orders VALUES (1) RETURNING id");
        insert.message(&messages[4]).fetch_one::<(i32,)>(&mut tx).await.unwrap();
        tx.commit().await.unwrap();
    }

    connection.execute("RESET search_path").await.unwrap();
    let rows = rows(&mut connection, "tailrace.outbox").await;
    let times: Vec<String> = messages.iter().map(|m| format!("|{}", m.time_micros())).collect();
    assert!(rows.iter().zip(&times).all(|((_, row), time)| row.ends_with(time)), "{rows:?}");
    assert_eq!(rows.len(), 5);
}

#[tokio::test]
async fn a_schema_of_its_own_holds_the_journal_and_a_wrong_one_is_setup() {
    let (_database, mut connection) = fresh("store_schema").await;
    let named = Schema::named("select").unwrap();
    named.install(&mut connection).await.unwrap();
    let there = Outbox::new(Store::Journal).schema(named);
    let nowhere = Outbox::new(Store::Journal);
    let messages = [message(1), message(2)];

    there.write(&mut connection, &messages[0]).await.unwrap();
    let errors = [
        nowhere.write(&mut connection, &messages[0]).await.unwrap_err(),
        nowhere.write_all(&mut connection, &messages).await.unwrap_err(),
    ];

    assert_eq!(rows(&mut connection, "\"select\".outbox").await.len(), 1);
    for error in errors {
        assert_eq!((error.kind(), error.is_setup()), (Kind::Setup, true), "{error:?}");
    }
}

#[tokio::test]
async fn the_check_passes_once_this_role_can_write_what_a_relay_sees() {
    let (_database, mut connection) = fresh("store_check").await;
    let slot = slot(&mut connection, "store_check", "pgoutput").await;
    let outbox = Outbox::new(Store::Journal).slot(slot.clone());
    let check = async |connection: &mut PgConnection, expected: &str| {
        let error = outbox.check(connection).await.expect_err(expected);
        assert!(error.is_setup(), "{error:?}");
        assert!(error.to_string().starts_with(expected), "{error}");
    };

    Outbox::new(Store::Wal).slot(slot).check(&mut connection).await.unwrap();
    check(&mut connection, "there is no table \"tailrace\".\"outbox\"; run tailrace_outbox").await;
    schema::install(&mut connection).await.unwrap();
    check(&mut connection, "\"tailrace\".\"outbox\" is in no publication").await;
    connection.execute("CREATE PUBLICATION leaves FOR TABLE tailrace.outbox").await.unwrap();
    check(&mut connection, "\"tailrace\".\"outbox\" is in no publication").await;
    let filtered = "CREATE PUBLICATION filtered FOR TABLE tailrace.outbox WHERE (false) \
                    WITH (publish = 'insert', publish_via_partition_root = true)";
    connection.execute(filtered).await.unwrap();
    check(&mut connection, "\"tailrace\".\"outbox\" is in no publication").await;
    let publication = Journal::default().publication_sql("journal");
    connection.execute(sqlx::AssertSqlSafe(publication)).await.unwrap();
    outbox.check(&mut connection).await.unwrap();

    let role = tailrace_stack::unique("outbox_stranger");
    connection.execute(sqlx::AssertSqlSafe(format!("CREATE ROLE {role}"))).await.unwrap();
    connection.execute(sqlx::AssertSqlSafe(format!("SET ROLE {role}"))).await.unwrap();
    let no_usage = format!(
        "role {role:?} may not use schema \"tailrace\"; run GRANT USAGE ON SCHEMA \"tailrace\" TO"
    );
    check(&mut connection, &no_usage).await;
    connection.execute("RESET ROLE").await.unwrap();
    let usage = format!("GRANT USAGE ON SCHEMA tailrace TO {role}; SET ROLE {role}");
    connection.execute(sqlx::AssertSqlSafe(usage)).await.unwrap();
    let no_insert = format!("role {role:?} may not insert into \"tailrace\".\"outbox\"; run GRANT");
    check(&mut connection, &no_insert).await;
    let insert = format!("RESET ROLE; GRANT INSERT ON tailrace.outbox TO {role}; SET ROLE {role}");
    connection.execute(sqlx::AssertSqlSafe(insert)).await.unwrap();
    outbox.check(&mut connection).await.unwrap();
    connection.execute("CREATE TEMPORARY TABLE orders (id int)").await.unwrap();
    let messages = [1, 2, 3, 4].map(message);
    outbox.write(&mut connection, &messages[0]).await.unwrap();
    outbox.write_all(&mut connection, &messages[1..3]).await.unwrap();
    let merged = outbox.merge("INSERT INTO orders VALUES (1)").message(&messages[3]);
    merged.execute(&mut connection).await.unwrap();
    let end = format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}");
    connection.execute(sqlx::AssertSqlSafe(end)).await.unwrap();

    assert_eq!(rows(&mut connection, "tailrace.outbox").await.len(), 4);
}
