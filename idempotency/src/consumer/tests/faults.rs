//! What stands in the way: bad records, failing handlers, a failing database, a bad start.

use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tailrace_stack::Towards;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::fixture::bare;
use crate::retry::{OnFailure, OutOfHorizon};

/// A consumer whose first batch holds exactly so many records, and that halts at whatever fails.
fn one_batch(bed: &Bed, topic: &str, count: usize) -> Config {
    Config::new(topic, bed.brokers(), bed.pool.clone())
        .on_failure(OnFailure::Halt)
        .out_of_horizon(OutOfHorizon::Halt)
        .batch_records_max(count)
        .batch_wait(Duration::from_secs(1))
}

async fn nothing_is_committed(bed: &Bed) {
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 0);
    assert_eq!(bed.count("SELECT count(*) FROM tailrace.processed_message").await, 0);
    assert_eq!(bed.count("SELECT count(next_offset) FROM tailrace.consumer_progress").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_error_halts_names_the_record_and_commits_nothing() {
    async fn fails_at_seven(cx: Cx<'_>, message: Numbered) -> Result<Outcome, BoxError> {
        if message.number == 7 {
            return Err("out of stock".into());
        }
        effect(cx, message).await
    }
    let bed = bed("faults_handler").await;
    let topic = bed.topic("faults_handler", 1).await;
    let records = records(10, 2);
    produce(bed.brokers(), &topic, &records);

    let config = one_batch(&bed, &topic, 10);
    let halting = Consumer::new(config).topic(&topic).on("numbered.v1", fails_at_seven);
    let error = start(halting).end().await;

    assert_eq!((error.kind(), error.message_id()), (Kind::Handler, Some(records[7].id())));
    let text = error.to_string();
    assert!(text.contains(&format!("topic {topic} partition 0 offset 7")), "{text}");
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.to_string().contains("out of stock"));
    nothing_is_committed(&bed).await;

    let running = start(consumer(&bed, &topic, &topic));
    running.applied(10).await;
    running.stop().await.unwrap();
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_halts_and_names_the_record() {
    async fn panics(_: Cx<'_>, message: Numbered) -> Result<Outcome, BoxError> {
        assert_ne!(message.number, 3, "planted");
        Ok(Outcome::Done)
    }
    let bed = bed("faults_panic").await;
    let topic = bed.topic("faults_panic", 1).await;
    produce(bed.brokers(), &topic, &records(5, 1));

    let config = one_batch(&bed, &topic, 5);
    let error = start(Consumer::new(config).topic(&topic).on("numbered.v1", panics)).end().await;

    assert_eq!(error.kind(), Kind::Handler);
    assert_eq!(error.position().unwrap().offset.get(), 3);
    nothing_is_committed(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_statement_that_a_handler_keeps_to_itself_loses_no_batch() {
    async fn swallows(cx: Cx<'_>, message: Numbered) -> Result<Outcome, BoxError> {
        if message.number == 4 {
            drop(sqlx::query("SELECT 1 / 0").execute(cx.conn).await);
            return Ok(Outcome::Done);
        }
        effect(cx, message).await
    }
    let bed = bed("faults_swallow").await;
    let topic = bed.topic("faults_swallow", 1).await;
    produce(bed.brokers(), &topic, &records(5, 1));

    let config = one_batch(&bed, &topic, 5);
    let error = start(Consumer::new(config).topic(&topic).on("numbered.v1", swallows)).end().await;

    assert_eq!(error.kind(), Kind::Handler);
    assert!(error.to_string().contains("aborted"), "{error}");
    nothing_is_committed(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_commits_by_itself_is_found_out() {
    async fn commits(cx: Cx<'_>, _: Numbered) -> Result<Outcome, BoxError> {
        sqlx::raw_sql("COMMIT").execute(cx.conn).await?;
        Ok(Outcome::Done)
    }
    let bed = bed("faults_commits").await;
    let topic = bed.topic("faults_commits", 1).await;
    produce(bed.brokers(), &topic, &records(1, 1));

    let ended = async |count| {
        let config = one_batch(&bed, &topic, count);
        start(Consumer::new(config).topic(&topic).on("numbered.v1", commits)).end().await
    };

    let error = ended(1).await;
    assert_eq!((error.kind(), error.position().unwrap().offset.get()), (Kind::Handler, 0));
    assert!(error.message_id().is_some());
    assert!(error.to_string().contains("ended the transaction"), "{error}");
    // What it committed counts as applied.
    produce(bed.brokers(), &topic, &records(3, 1));
    let error = ended(3).await;
    let text = error.to_string();
    assert!(text.contains("somewhere up to offset 3, at topic"), "{text}");
    assert!(text.contains("offset 1"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_break_the_contract_halt_and_are_named() {
    let nobodys = "00000000-0000-0000-0000-000000000000";
    let future = "0f000000-0000-7000-8000-000000000001";
    let with_payload = |payload: &str| Outgoing { payload: payload.to_owned(), ..numbered("k", 1) };
    let bad = [
        (numbered("k", 1).without("ce_id"), Kind::Record, "ce_id is missing"),
        (numbered("k", 1).without("ce_type"), Kind::Record, "ce_type is missing"),
        (numbered("k", 1).with("ce_id", ""), Kind::MessageId, "is empty"),
        (numbered("k", 1).with("ce_id", nobodys), Kind::MessageId, "of no message"),
        (numbered("k", 1).with("ce_id", " order-1"), Kind::MessageId, "with white space"),
        (numbered("k", 1).with("ce_id", "order-1\n"), Kind::MessageId, "a control character"),
        (numbered("k", 1).with("ce_id", future), Kind::MessageId, "ahead of the database's clock"),
        (with_payload(r#"{"number":"top secret"}"#), Kind::Payload, "does not fit"),
        (with_payload("top secret"), Kind::Payload, "not JSON"),
    ];
    let bed = bed("faults_contract").await;
    let mut running = Vec::new();
    for (record, kind, text) in bad {
        let topic = bed.topic("faults_contract", 1).await;
        produce(bed.brokers(), &topic, &[numbered("k", 0), record]);
        let config = one_batch(&bed, &topic, 2);
        let started = start(Consumer::new(config).topic(&topic).on("numbered.v1", effect));
        running.push((started, topic, kind, text));
    }

    for (started, topic, kind, text) in running {
        let error = started.end().await;
        let shown = error.to_string();
        assert_eq!(error.kind(), kind, "{shown}");
        assert!(shown.contains(text), "{shown}");
        assert!(shown.contains(&format!("topic {topic} partition 0 offset 1")), "{shown}");
        assert!(!format!("{error:?}").contains("secret"));
    }
    nothing_is_committed(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transient_fault_repeats_the_batch_and_applies_it_once() {
    async fn deadlocks_once(
        cx: Cx<'_, AtomicBool>,
        message: Numbered,
    ) -> Result<Outcome, BoxError> {
        if message.number == 5 && !cx.state.swap(true, Ordering::Relaxed) {
            sqlx::query("DO $$ BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '40P01'; END $$")
                .execute(&mut *cx.conn)
                .await?;
        }
        effect(cx, message).await
    }
    let bed = bed("faults_transient").await;
    let topic = bed.topic("faults_transient", 1).await;
    produce(bed.brokers(), &topic, &records(10, 2));

    let config = one_batch(&bed, &topic, 10).state(AtomicBool::new(false));
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", deadlocks_once));
    running.applied(10).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.duplicates, report.retried_batches), (10, 0, 1));
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transient_fault_that_stays_halts_when_the_time_for_retries_is_up() {
    async fn always(cx: Cx<'_>, _: Numbered) -> Result<Outcome, BoxError> {
        sqlx::query("DO $$ BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '40001'; END $$")
            .execute(cx.conn)
            .await?;
        Ok(Outcome::Done)
    }
    let bed = bed("faults_stays").await;
    let topic = bed.topic("faults_stays", 1).await;
    produce(bed.brokers(), &topic, &records(1, 1));

    let config = one_batch(&bed, &topic, 1).retry_for(Duration::from_millis(200));
    let error = start(Consumer::new(config).topic(&topic).on("numbered.v1", always)).end().await;

    assert_eq!(error.kind(), Kind::Handler);
    assert!(error.is_transient());
    assert_eq!(error.position().unwrap().offset.get(), 0);
    nothing_is_committed(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_process_that_dies_at_the_commit_applies_nothing_twice() {
    let bed = bed("faults_dies").await;
    let topic = bed.topic("faults_dies", 1).await;
    // A sequence survives the roll-back, so only the first commit dies.
    bed.execute(
        "CREATE SEQUENCE commits;
         CREATE FUNCTION die_once() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF nextval('commits') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
             RETURN NULL;
         END $$;
         CREATE CONSTRAINT TRIGGER die AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION die_once()",
    )
    .await;
    produce(bed.brokers(), &topic, &records(10, 2));

    let config = one_batch(&bed, &topic, 10);
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", effect));
    running.applied(10).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.duplicates, report.retried_batches), (10, 0, 1));
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 10);
}

/// Forwards connections to Postgres. Once `cut` is false, it lets one COMMIT through, waits for the answer,
/// and drops the connection instead of passing the answer on.
async fn cutting(port: u16, cut: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listening = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            tokio::spawn(forward(client, server, Arc::clone(&cut)));
        }
    });
    listening
}

async fn forward(mut client: TcpStream, mut server: TcpStream, cut: Arc<AtomicBool>) {
    let (mut asked, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(length @ 1..) = read else { return };
                server.write_all(&asked[..length]).await.unwrap();
                let commits = asked[..length].windows(7).any(|bytes| bytes == b"COMMIT\0");
                if commits && !cut.swap(true, Ordering::Relaxed) {
                    assert!(server.read(&mut answered).await.unwrap() > 0);
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(length @ 1..) = read else { return };
                if client.write_all(&answered[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_looked_up_and_not_repeated() {
    let bed = bed("faults_lost_answer").await;
    let topic = bed.topic("faults_lost_answer", 1).await;
    produce(bed.brokers(), &topic, &records(10, 2));
    let cut = Arc::new(AtomicBool::new(true));
    let port = cutting(bed.stack.postgres().port(), Arc::clone(&cut)).await;
    let options: sqlx::postgres::PgConnectOptions = bed.database.url().parse().unwrap();
    let pool = PgPool::connect_with(options.host("127.0.0.1").port(port)).await.unwrap();
    let mut config = one_batch(&bed, &topic, 10);
    config.options.pool = pool;

    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", effect));
    running.applied(10).await;
    cut.store(false, Ordering::Relaxed);
    produce(bed.brokers(), &topic, &records(10, 2));
    running.applied(20).await;
    let report = running.stop().await.unwrap();

    assert!(cut.load(Ordering::Relaxed));
    assert_eq!((report.applied, report.duplicates, report.retried_batches), (20, 0, 1));
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_tables_topic_or_servers_is_one_clear_error() {
    let bed = bare("faults_start").await;
    let topic = bed.topic("faults_start", 1).await;
    let tables = start(consumer(&bed, &topic, &topic)).end().await;
    crate::schema::install(&mut bed.pool.acquire().await.unwrap()).await.unwrap();
    let short = Duration::from_millis(500);

    let missing = start(consumer(&bed, &topic, "no-such-topic")).end().await;
    let nobody = Config::new(&topic, "127.0.0.1:1", bed.pool.clone()).start_deadline(short);
    let nobody = start(Consumer::new(nobody).topic(&topic).on("numbered.v1", effect)).end().await;
    let with = async |options: PgConnectOptions| {
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
        let config = Config::new(&topic, bed.brokers(), pool).start_deadline(DEADLINE);
        start(Consumer::new(config).topic(&topic).on("numbered.v1", effect)).end().await
    };
    let options = bed.pool.connect_options();
    let unknown = with(PgConnectOptions::clone(&options).database("no_such_database")).await;
    let property = Config::new(&topic, bed.brokers(), bed.pool.clone());
    let property = property.kafka_property("no.such.property", "secret");
    let property =
        start(Consumer::new(property).topic(&topic).on("numbered.v1", effect)).end().await;
    let absent = PgPool::connect_lazy("postgres://127.0.0.1:1/none").unwrap();
    let absent = Config::new(&topic, bed.brokers(), absent).start_deadline(short);
    let absent = start(Consumer::new(absent).topic(&topic).on("numbered.v1", effect)).end().await;

    for (error, kind, text) in [
        (tables, Kind::Schema, "schema::install"),
        (missing, Kind::Kafka, "the topic no-such-topic does not exist"),
        (nobody, Kind::Kafka, "no broker of 127.0.0.1:1 answered"),
        (absent, Kind::Database, "reached at 127.0.0.1:1, database none: "),
        (unknown, Kind::Database, "database no_such_database: there is no such database"),
        (property, Kind::Config, "the kafka client refuses the property no.such.property"),
    ] {
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_in_the_moment_in_which_postgres_goes_down_waits_for_it() {
    let bed = bed("faults_restart").await;
    let topic = bed.topic("faults_restart", 1).await;
    produce(bed.brokers(), &topic, &records(10, 2));
    let proxy = bed.stack.postgres().proxy().unwrap();
    // A server that is shutting down takes connections still, and ends them.
    proxy.cut_after(Towards::Client, 200);
    let pool = PgPool::connect_lazy(&proxy.url(bed.database.url())).unwrap();

    let config = Config::new(&topic, bed.brokers(), pool);
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", effect));
    running.applied(10).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.duplicates), (10, 0));
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 10);
}

#[tokio::test]
async fn what_is_missing_or_doubled_is_listed_before_anything_starts() {
    let pool = PgPool::connect_lazy("postgres://127.0.0.1:1/none").unwrap();
    let empty = Consumer::<()>::new(Config::new("", "b:1", pool.clone()));
    let doubled = Consumer::new(Config::new("c", "b:1", pool))
        .topic("^all")
        .on("numbered.v1", effect)
        .on("numbered.v1", effect);

    let empty = empty.run(std::future::pending()).await.unwrap_err().to_string();
    let doubled = doubled.run(std::future::pending()).await.unwrap_err().to_string();

    for part in ["name", "no topic", "no handler"] {
        assert!(empty.contains(part), "{empty}");
    }
    for part in ["exact names", "numbered.v1 has two handlers"] {
        assert!(doubled.contains(part), "{doubled}");
    }
}
