//! `tailrace outbox …` does its work, and says what is in the way.

use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tailrace_outbox::{Message, Outbox, Store};
use tailrace_stack::unique;

use crate::command::{fresh, tailrace, url_of_role};

/// The 29th of February 2000, as a partition.
const OLD: &str = "outbox_20000229";

/// Gives the journal a day of long ago.
async fn make_old_day(connection: &mut PgConnection) {
    let make = "CREATE TABLE tailrace.outbox_20000229 (LIKE tailrace.outbox INCLUDING ALL); \
                ALTER TABLE tailrace.outbox ATTACH PARTITION tailrace.outbox_20000229 \
                FOR VALUES FROM ('00dd9aa6-e000-0000-0000-000000000000') \
                TO ('00dd9fcd-3c00-0000-0000-000000000000')";
    connection.execute(make).await.expect("a partition");
}

/// The days that have a partition, in order.
async fn days(connection: &mut PgConnection) -> Vec<String> {
    let sql = "SELECT relname::text FROM pg_class JOIN pg_inherits ON oid = inhrelid \
               WHERE inhparent = 'tailrace.outbox'::regclass AND relname <> 'outbox_default' \
               ORDER BY relname";
    sqlx::query_scalar(sql).fetch_all(connection).await.expect("a catalog")
}

/// The names behind a word in the lines of an answer.
fn behind(word: &str, answer: &str) -> Vec<String> {
    let prefix = format!("{word:<10}  tailrace.");
    let name = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    answer.lines().filter_map(|line| line.strip_prefix(&prefix)).map(name).collect()
}

#[tokio::test]
async fn install_is_done_once_however_often_and_from_where_it_is_called() {
    let (database, mut connection) = fresh("cli_install").await;

    let (one, other) = tokio::join!(
        tailrace(database.url(), &["outbox", "install"]),
        tailrace(database.url(), &["outbox", "install"]),
    );
    let again = tailrace(database.url(), &["outbox", "install"]).await.good();

    let answers = [one.good(), other.good()].concat();
    assert!(answers.contains("installed into schema \"tailrace\"\n"), "{answers}");
    assert_eq!(again, "schema \"tailrace\" has everything already\n");
    tailrace_outbox::schema::check(&mut connection).await.unwrap();
    assert_eq!(days(&mut connection).await.len(), 4);
}

#[tokio::test]
async fn the_printed_schema_is_what_install_brings() {
    let (database, mut connection) = fresh("cli_schema").await;

    let script = tailrace("", &["outbox", "schema", "--schema", "messaging"]).await.good();
    let mut tx = sqlx::Connection::begin(&mut connection).await.unwrap();
    tx.execute(AssertSqlSafe(script)).await.unwrap();
    tx.commit().await.unwrap();
    let there = tailrace(database.url(), &["outbox", "install", "--schema", "messaging"]).await;
    let made = tailrace(database.url(), &["outbox", "maintain", "--schema=messaging"]).await;

    assert_eq!(there.good(), "schema \"messaging\" has everything already\n");
    assert_eq!(made.good().lines().filter(|line| line.starts_with("made ")).count(), 4);
}

#[tokio::test]
async fn maintain_says_what_it_made_and_dropped() {
    let (database, mut connection) = fresh("cli_maintain").await;
    tailrace(database.url(), &["outbox", "install"]).await.good();
    make_old_day(&mut connection).await;
    let before = days(&mut connection).await;
    let arguments = ["outbox", "maintain", "--keep=14d", "--days-ahead=5"];

    let planned = tailrace(database.url(), &[&arguments[..], &["--dry-run"]].concat()).await;
    let unchanged = days(&mut connection).await;
    let done = tailrace(database.url(), &arguments).await.good();
    let after = days(&mut connection).await;
    let again = tailrace(database.url(), &arguments).await.good();

    let planned = planned.good();
    assert_eq!(unchanged, before);
    assert_eq!(behind("would drop", &planned), [OLD]);
    assert_eq!(behind("would make", &planned), behind("made", &done));
    assert_eq!(behind("dropped", &done), [OLD]);
    assert_eq!(behind("made", &done), after[4..]);
    assert_eq!((before.len(), after.len()), (5, 6));
    assert_eq!(again, "nothing to do\n");
}

#[tokio::test]
async fn maintain_answers_with_one_json_object() {
    let (database, mut connection) = fresh("cli_json").await;
    tailrace(database.url(), &["outbox", "install"]).await.good();
    make_old_day(&mut connection).await;
    let arguments = ["outbox", "maintain", "--keep", "100000d", "--json"];

    let kept = tailrace(database.url(), &arguments).await.good();
    let planned = tailrace(database.url(), &["outbox", "maintain", "--dry-run", "--json"]).await;
    let done = tailrace(database.url(), &["outbox", "maintain", "--json"]).await.good();

    let report = |dry_run: bool, dropped: &[&str]| {
        serde_json::json!({
            "schema": "tailrace", "dry_run": dry_run, "made": [], "dropped": dropped,
            "postponed": [], "blocked": [], "strays_deleted": 0, "elsewhere": false,
        })
    };
    let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(read(&kept), report(false, &[]));
    assert_eq!(read(&planned.good()), report(true, &[OLD]));
    assert_eq!(read(&done), report(false, &[OLD]));
}

#[tokio::test]
async fn two_that_maintain_at_once_share_the_work() {
    let (database, mut connection) = fresh("cli_two").await;
    tailrace(database.url(), &["outbox", "install"]).await.good();
    make_old_day(&mut connection).await;
    let arguments = ["outbox", "maintain", "--days-ahead", "40"];

    let (one, other) =
        tokio::join!(tailrace(database.url(), &arguments), tailrace(database.url(), &arguments),);

    let answers = [one.good(), other.good()].concat();
    let mut made = behind("made", &answers);
    made.sort();
    assert_eq!(made, days(&mut connection).await[4..], "{answers}");
    assert_eq!(behind("dropped", &answers), [OLD], "{answers}");
}

#[tokio::test]
async fn a_day_in_use_is_postponed_and_that_is_no_error() {
    let (database, mut connection) = fresh("cli_busy").await;
    tailrace(database.url(), &["outbox", "install"]).await.good();
    make_old_day(&mut connection).await;
    let message = Message::builder("t", "x").source("/").payload([]).build().unwrap();
    let mut tx = sqlx::Connection::begin(&mut connection).await.unwrap();
    Outbox::new(Store::Journal).write(&mut tx, &message).await.unwrap();

    let meanwhile = tailrace(database.url(), &["outbox", "maintain"]).await.good();
    tx.commit().await.unwrap();
    let afterwards = tailrace(database.url(), &["outbox", "maintain"]).await.good();

    assert!(meanwhile.starts_with("postponed   tailrace.outbox_20000229 "), "{meanwhile}");
    assert_eq!(behind("dropped", &afterwards), [OLD]);
}

#[tokio::test]
async fn a_schema_that_is_missing_is_one_error_that_names_install() {
    let (database, mut connection) = fresh("cli_missing").await;
    let url = database.url();

    for more in [&[][..], &["--dry-run"], &["--json"]] {
        let arguments = [&["outbox", "maintain"], more].concat();
        let answer = tailrace(url, &arguments).await;
        answer
            .refuses(2, &["schema \"tailrace\" does not exist", "run `tailrace outbox install`\n"]);
    }
    connection.execute("CREATE SCHEMA messaging").await.unwrap();
    let answer = tailrace(url, &["outbox", "maintain", "--schema=messaging"]).await;
    answer.refuses(2, &["run `tailrace outbox install --schema messaging`\n"]);
}

#[tokio::test]
async fn a_role_that_does_not_own_the_tables_is_told_who_may() {
    let (database, mut connection) = fresh("cli_role").await;
    let role = unique("cli_role");
    let create = format!("CREATE ROLE {role} LOGIN PASSWORD 'of-nobody'");
    connection.execute(AssertSqlSafe(create)).await.unwrap();
    let url = url_of_role(database.url(), &role, "of-nobody");

    let install = tailrace(&url, &["outbox", "install"]).await;
    tailrace(database.url(), &["outbox", "install"]).await.good();
    let grant = format!("GRANT USAGE, CREATE ON SCHEMA tailrace TO {role}");
    connection.execute(AssertSqlSafe(grant)).await.unwrap();
    let maintain = tailrace(&url, &["outbox", "maintain", "--days-ahead=9"]).await;
    connection.execute(AssertSqlSafe(format!("DROP OWNED BY {role}"))).await.unwrap();
    connection.execute(AssertSqlSafe(format!("DROP ROLE {role}"))).await.unwrap();

    install.refuses(3, &["can not be installed", "may create", "`tailrace outbox schema`"]);
    maintain.refuses(3, &["permission denied", "role that owns tailrace.outbox"]);
}

#[tokio::test]
async fn check_answers_by_its_exit_code() {
    let (database, mut connection) = fresh("cli_check").await;
    let (url, slot) = (database.url(), unique("cli_check"));
    let of_log = ["outbox", "check", "--slot", &slot];
    let of_journal = [&of_log[..], &["--store", "journal"]].concat();

    let no_slot = tailrace(url, &of_log).await;
    sqlx::query("SELECT pg_create_logical_replication_slot($1, 'pgoutput')")
        .bind(&slot)
        .execute(&mut connection)
        .await
        .unwrap();
    let of_log = tailrace(url, &of_log).await;
    let no_table = tailrace(url, &of_journal).await;
    tailrace(url, &["outbox", "install"]).await.good();
    let no_publication = tailrace(url, &of_journal).await;
    let publish = tailrace_outbox::journal::Journal::default().publication_sql("relay");
    connection.execute(AssertSqlSafe(publish)).await.unwrap();
    let of_journal = tailrace(url, &of_journal).await;

    no_slot.refuses(1, &["no replication slot", &slot, "start cdc-relay"]);
    no_table.refuses(1, &["there is no table", "run `tailrace outbox install`\n"]);
    no_publication.refuses(1, &["in no publication"]);
    let good = format!("ok: a message written now reaches the relay of slot {slot:?}\n");
    assert_eq!((of_log.good(), of_journal.good()), (good.clone(), good));
}

#[tokio::test]
async fn check_needs_no_more_rights_than_a_writer() {
    let (database, mut connection) = fresh("cli_writer").await;
    let (role, slot) = (unique("cli_writer"), unique("cli_writer_slot"));
    tailrace(database.url(), &["outbox", "install"]).await.good();
    let publish = tailrace_outbox::journal::Journal::default().publication_sql("relay");
    let sql = format!(
        "{publish}; CREATE ROLE {role} LOGIN PASSWORD 'of-nobody'; \
         GRANT USAGE ON SCHEMA tailrace TO {role}; GRANT INSERT ON tailrace.outbox TO {role}"
    );
    connection.execute(AssertSqlSafe(sql)).await.unwrap();
    let make = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    connection.execute(AssertSqlSafe(make)).await.unwrap();
    let url = url_of_role(database.url(), &role, "of-nobody");

    let answer = tailrace(&url, &["outbox", "check", "--slot", &slot, "--store=journal"]).await;
    connection.execute(AssertSqlSafe(format!("DROP OWNED BY {role}"))).await.unwrap();
    let revoked = tailrace(&url, &["outbox", "check", "--slot", &slot, "--store=journal"]).await;
    connection.execute(AssertSqlSafe(format!("DROP ROLE {role}"))).await.unwrap();

    answer.good();
    revoked.refuses(1, &["may not use schema", "GRANT USAGE ON SCHEMA \"tailrace\" TO"]);
}

#[tokio::test]
async fn check_takes_a_table_by_the_mapping_of_the_relay() {
    let (database, mut connection) = fresh("cli_table").await;
    let (url, slot) = (database.url(), unique("cli_table"));
    let make = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    connection.execute(AssertSqlSafe(make)).await.unwrap();
    let table = "CREATE TABLE outbox (id uuid, aggregatetype text, aggregateid text, type text, \
                 payload jsonb)";
    connection.execute(table).await.unwrap();
    let check = ["outbox", "check", "--slot", &slot, "--table=public.outbox=debezium, source=/o"];

    let unpublished = tailrace(url, &check).await;
    connection.execute("CREATE PUBLICATION relay FOR TABLE outbox").await.unwrap();
    let published = tailrace(url, &check).await;
    let said = tailrace(url, &[&check[..], &["--store", "table"]].concat()).await;
    let none = tailrace(url, &["outbox", "check", "--store", "table"]).await;
    let both = tailrace(url, &[&check[..], &["--store", "wal"]].concat()).await;
    let wrong = tailrace(url, &["outbox", "check", "--table", "outbox=debezium"]).await;

    unpublished.refuses(1, &["in no publication", "ALTER PUBLICATION"]);
    assert_eq!(published.good(), said.good());
    none.refuses(2, &["--store table needs", "--table 'public.outbox=debezium"]);
    both.refuses(2, &["--table is for --store table"]);
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.stderr.contains("schema.table"), "{wrong:?}");
}

#[tokio::test]
async fn a_dry_run_tells_blocked_days_and_old_rows_too() {
    let (database, mut connection) = fresh("cli_strays").await;
    tailrace(database.url(), &["outbox", "install"]).await.good();
    let stray = "INSERT INTO tailrace.outbox (id, created_at, topic, type, source, payload) \
                 VALUES ('ffffffff-ffff-ffff-ffff-ffffffffffff', 'epoch', 't', 't', '/', '')";
    connection.execute(stray).await.unwrap();
    let last = days(&mut connection).await.pop().unwrap();
    connection.execute(AssertSqlSafe(format!("DROP TABLE tailrace.{last}"))).await.unwrap();
    connection.execute(AssertSqlSafe(format!("CREATE TABLE tailrace.{last} ()"))).await.unwrap();

    let planned = tailrace(database.url(), &["outbox", "maintain", "--dry-run"]).await.good();
    let done = tailrace(database.url(), &["outbox", "maintain"]).await.good();

    assert_eq!(behind("blocked", &planned).len(), 1, "{planned}");
    assert!(planned.contains("would delete  1 old rows of tailrace.outbox_default\n"), "{planned}");
    assert_eq!(planned.replace("would delete  ", "deleted     "), done);
}
