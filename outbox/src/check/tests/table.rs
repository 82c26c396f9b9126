//! What keeps the rows of a mapped table from being written, or from the relay.

use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tailrace_stack::{Database, unique};

use crate::database::{fresh, slot};
use crate::mapping::Mapping;
use crate::{Message, Outbox, Store};

const TABLE: &str = "CREATE SCHEMA shop; CREATE TABLE shop.outbox (id uuid, aggregatetype text, \
     aggregateid text, type text, payload jsonb); \
     CREATE PUBLICATION relay FOR TABLE shop.outbox WITH (publish = 'insert')";

/// A database with the table, on which nothing is wrong.
async fn shop(name: &str) -> (Database, PgConnection, Outbox) {
    let (database, mut connection) = fresh(name).await;
    run(&mut connection, TABLE).await;
    let slot = slot(&mut connection, name, "pgoutput").await;
    let mapping = Mapping::debezium("shop.outbox").source("/orders").build().unwrap();
    let outbox = Outbox::new(Store::Table(mapping)).slot(slot);
    outbox.check(&mut connection).await.unwrap();
    (database, connection, outbox)
}

async fn run(connection: &mut PgConnection, sql: impl Into<String>) {
    connection.execute(AssertSqlSafe(sql.into())).await.unwrap();
}

async fn write(connection: &mut PgConnection, outbox: &Outbox) -> Result<(), crate::Error> {
    let message = Message::builder("outbox.event.Order", "t").source("/orders").key("k").json(&1);
    outbox.write(connection, &message.build().unwrap()).await
}

async fn refused(connection: &mut PgConnection, outbox: &Outbox, expected: &str) {
    let error = outbox.check(connection).await.expect_err(expected);
    assert!(error.is_setup(), "{error:?}");
    assert!(error.to_string().starts_with(expected), "{expected:?} does not begin {error}");
}

#[tokio::test]
async fn a_publication_that_leaves_columns_out_is_none_for_messages() {
    let (_database, mut connection, outbox) = shop("check_columns").await;
    let list = "ALTER PUBLICATION relay SET TABLE shop.outbox (id, type, aggregatetype)";

    run(&mut connection, list).await;
    let named = "publication \"relay\" has a column list for \"shop\".\"outbox\" without \
                 aggregateid, payload; take the list away";
    refused(&mut connection, &outbox, named).await;
    // Another one that shows them is enough, and so is a list with all that is mapped.
    let whole = "CREATE PUBLICATION whole FOR TABLE shop.outbox WITH (publish = 'insert')";
    run(&mut connection, whole).await;
    outbox.check(&mut connection).await.unwrap();
    let list = "DROP PUBLICATION whole; ALTER TABLE shop.outbox ADD COLUMN note text; \
                ALTER PUBLICATION relay SET TABLE \
                shop.outbox (id, type, aggregatetype, aggregateid, payload)";
    run(&mut connection, list).await;

    outbox.check(&mut connection).await.unwrap();
}

#[tokio::test]
async fn a_column_that_postgres_makes_itself_takes_no_part_of_a_message() {
    let (_database, mut connection, outbox) = shop("check_generated").await;
    let generated = "ALTER TABLE shop.outbox DROP COLUMN type, \
                     ADD COLUMN type text GENERATED ALWAYS AS (aggregatetype || '.v1') STORED";

    run(&mut connection, generated).await;

    assert_eq!(write(&mut connection, &outbox).await.unwrap_err().sqlstate(), Some("428C9"));
    let named = "column \"type\" of \"shop\".\"outbox\" is generated";
    refused(&mut connection, &outbox, named).await;
}

#[tokio::test]
async fn row_security_that_lets_a_role_insert_nothing_is_found() {
    let (_database, mut connection, outbox) = shop("check_policy").await;
    let role = unique("check_policy");
    let as_role = |sql: &str| {
        let owner = "RESET ROLE; ";
        format!("{owner}{sql}; SET ROLE {role}")
    };
    let begin = format!(
        "CREATE ROLE {role}; GRANT USAGE ON SCHEMA shop TO {role}; \
         GRANT INSERT ON shop.outbox TO {role}; ALTER TABLE shop.outbox ENABLE ROW LEVEL SECURITY; \
         CREATE POLICY reads ON shop.outbox FOR SELECT USING (true); \
         CREATE POLICY others ON shop.outbox FOR INSERT TO pg_monitor WITH CHECK (true)"
    );

    run(&mut connection, begin).await;
    outbox.check(&mut connection).await.unwrap();
    run(&mut connection, as_role("SELECT 1")).await;
    assert_eq!(write(&mut connection, &outbox).await.unwrap_err().sqlstate(), Some("42501"));
    let named = format!(
        "row security of \"shop\".\"outbox\" lets role \"{role}\" insert nothing; run CREATE POLICY"
    );
    refused(&mut connection, &outbox, &named).await;
    let policy = "CREATE POLICY messages ON shop.outbox FOR INSERT TO public WITH CHECK (true)";
    run(&mut connection, as_role(policy)).await;
    let passes = outbox.check(&mut connection).await;
    let writes = write(&mut connection, &outbox).await;
    run(&mut connection, format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")).await;

    passes.unwrap();
    writes.unwrap();
}

#[tokio::test]
async fn a_domain_counts_as_the_type_below_all_domains() {
    let (_database, mut connection, outbox) = shop("check_domain").await;
    let domains = "CREATE DOMAIN name AS varchar(40); CREATE DOMAIN kind AS name; \
                   CREATE DOMAIN needed AS text NOT NULL; \
                   CREATE DOMAIN filled AS text NOT NULL DEFAULT 'x'; \
                   ALTER TABLE shop.outbox ALTER COLUMN type TYPE public.kind, \
                   ADD COLUMN a public.filled";

    run(&mut connection, domains).await;
    outbox.check(&mut connection).await.unwrap();
    write(&mut connection, &outbox).await.unwrap();
    run(&mut connection, "ALTER TABLE shop.outbox ADD COLUMN b public.needed DEFAULT 'x'").await;
    run(&mut connection, "ALTER TABLE shop.outbox ALTER COLUMN b DROP DEFAULT").await;

    assert_eq!(write(&mut connection, &outbox).await.unwrap_err().sqlstate(), Some("23502"));
    refused(&mut connection, &outbox, "column \"b\" of \"shop\".\"outbox\" is not null").await;
}
