//! Read models against a real Kafka and a real Postgres.

use std::sync::{Arc, Mutex};

use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::*;
use crate::call::{Answer, Call, CallCx, Prepared};
use crate::config::Config;
use crate::error::BoxError;
use crate::fixture::{Bed, DEADLINE, Outgoing, installed, numbered, produce, until};
use crate::handler::{Cx, Outcome};

#[derive(Deserialize)]
struct Numbered {
    number: i64,
}

/// What the handlers of a version share.
#[derive(Clone)]
struct App {
    version: i64,
    /// Each message takes one.
    gate: Arc<Semaphore>,
}

const TABLES: &str =
    "CREATE TABLE total (key text PRIMARY KEY, messages bigint, numbers bigint, version bigint)";

async fn add(cx: Cx<'_, App>, message: Numbered) -> Result<Outcome, BoxError> {
    cx.state.gate.acquire().await?.forget();
    sqlx::query(
        "INSERT INTO total AS t VALUES ($1, 1, $2, $3)
         ON CONFLICT (key) DO UPDATE SET messages = t.messages + 1, numbers = t.numbers + $2",
    )
    .bind(cx.meta.key().and_then(|key| str::from_utf8(key).ok()))
    .bind(message.number)
    .bind(cx.state.version)
    .execute(cx.conn)
    .await?;
    Ok(Outcome::Done)
}

/// A database, a topic, and a name that no other test has.
struct Site {
    bed: Bed,
    topic: String,
    name: String,
    gate: Arc<Semaphore>,
}

async fn site(name: &str) -> Site {
    let bed = installed(name).await;
    let topic = bed.topic(name, 3).await;
    let name = topic.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
    Site { bed, topic, name, gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)) }
}

impl Site {
    fn consumer(&self, version: i64) -> Consumer<App> {
        let app = App { version, gate: Arc::clone(&self.gate) };
        let config = Config::new(&self.name, self.bed.brokers(), self.bed.pool.clone());
        let config = config.batch_records_max(10).state(app);
        Consumer::new(config).topic(&self.topic).on("numbered.v1", add)
    }

    fn projection(&self, version: u32) -> Projection {
        Projection::new(self.consumer(version.into()), version, TABLES)
    }

    fn produce(&self, numbers: std::ops::Range<i64>) {
        let records: Vec<Outgoing> =
            numbers.map(|number| numbered(&format!("key-{}", number % 7), number)).collect();
        produce(self.bed.brokers(), &self.topic, &records);
    }

    /// What a reader sees: messages, and the version that has written them; none while there is no read model.
    async fn seen(&self) -> Option<(i64, i64)> {
        let query = format!("SELECT sum(messages)::bigint, min(version) FROM {}.total", self.name);
        let answer: Result<(Option<i64>, Option<i64>), _> =
            sqlx::query_as(sqlx::AssertSqlSafe(query)).fetch_one(&self.bed.pool).await;
        match answer {
            Ok((messages, version)) => Some((messages.unwrap_or(0), version.unwrap_or(0))),
            Err(error) if error.as_database_error()?.code().as_deref() == Some("42P01") => None,
            Err(error) => panic!("{error}"),
        }
    }

    async fn shows(&self, messages: i64, version: i64) {
        until(async || self.seen().await == Some((messages, version))).await;
    }

    async fn schemas(&self) -> i64 {
        let query = "SELECT count(*) FROM pg_namespace WHERE starts_with(nspname, $1)";
        sqlx::query_scalar(query).bind(&self.name).fetch_one(&self.bed.pool).await.unwrap()
    }
}

/// A process that keeps a read model up to date.
struct Started {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<Report, Error>>,
}

fn start(projection: Projection) -> Started {
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(projection.run(async move { drop(stopped.await) }));
    Started { stop, task }
}

impl Started {
    async fn stop(self) -> Report {
        self.stop.send(()).expect("it ended by itself");
        tokio::time::timeout(DEADLINE, self.task).await.unwrap().unwrap().unwrap()
    }

    async fn end(self) -> Error {
        tokio::time::timeout(DEADLINE, self.task).await.unwrap().unwrap().unwrap_err()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_the_old_version_until_the_switch_and_then_a_new_one_that_is_no_older() {
    let site = site("projection_readers").await;
    site.produce(0..300);
    let first = start(site.projection(1));
    site.shows(300, 1).await;

    let second = start(site.projection(2));
    let seen = Mutex::new(vec![]);
    let look = async || {
        let found = site.seen().await.expect("there is always a read model");
        seen.lock().unwrap().push(found);
        found
    };
    for chunk in 3..9 {
        site.produce(chunk * 100..(chunk + 1) * 100);
        for _ in 0..20 {
            look().await;
        }
    }
    until(async || look().await == (900, 2)).await;
    let replaced = first.end().await;
    site.produce(900..1000);
    site.shows(1000, 2).await;
    until(async || site.schemas().await == 1).await;
    second.stop().await;

    let seen = seen.into_inner().unwrap();
    assert!(seen.is_sorted_by_key(|(_, version)| *version), "{seen:?}");
    assert!(seen.is_sorted_by_key(|(messages, _)| *messages), "{seen:?}");
    assert_eq!(replaced.kind(), Kind::Conflict);
    assert!(replaced.to_string().contains("was replaced by version 2"), "{replaced}");
    let left = "SELECT count(*) FROM tailrace.consumer_progress WHERE consumer LIKE '%.1'";
    assert_eq!(site.bed.count(left).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_dies_is_continued_and_several_processes_build_together() {
    let site = site("projection_dies").await;
    site.produce(0..600);
    site.gate.forget_permits(Semaphore::MAX_PERMITS);
    site.gate.add_permits(200);

    let dies = start(site.projection(1));
    until(async || site.gate.available_permits() == 0).await;
    let applied = "SELECT coalesce(sum(next_offset), 0)::bigint FROM tailrace.consumer_progress";
    until(async || site.bed.count(applied).await > 0).await;
    dies.task.abort();
    let unseen = site.seen().await;
    site.gate.add_permits(10_000);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let next = site.projection(1).on_progress(move |progress| tell.lock().unwrap().push(*progress));
    let (next, other) = (start(next), start(site.projection(1)));
    site.shows(600, 1).await;
    // The other one may have switched.
    let is_live = |told: &[Progress]| told.last().is_some_and(|told| told.phase == Phase::Live);
    until(async || is_live(&told.lock().unwrap())).await;
    let (next, other) = (next.stop().await, other.stop().await);

    assert_eq!(unseen, None);
    let told = told.lock().unwrap();
    assert!(told[0].done > 0, "{:?}", told[0]);
    let last = told.last().unwrap();
    assert_eq!((last.phase, last.build, last.version), (Phase::Live, 1, 1));
    assert_eq!((last.done, last.total), (600, 600));
    assert!(next.applied + other.applied < 600, "{next:?} {other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_fails_half_way_leaves_all_as_it_was_and_is_made_later() {
    let site = site("projection_half").await;
    site.produce(0..100);
    let first = start(site.projection(1).keep_former(true));
    site.shows(100, 1).await;
    site.bed
        .execute(
            "CREATE SEQUENCE failed;
             CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 PERFORM nextval('failed');
                 RAISE SQLSTATE '57P01';
             END $$;
             CREATE TRIGGER fail BEFORE UPDATE ON tailrace.projection_build
                 FOR EACH ROW WHEN (NEW.state = 'live') EXECUTE FUNCTION fail()",
        )
        .await;

    let second = start(site.projection(2).keep_former(true));
    until(async || site.bed.count("SELECT last_value FROM failed").await >= 2).await;
    let between = site.seen().await;
    site.produce(100..150);
    site.shows(150, 1).await;
    site.bed.execute("DROP TRIGGER fail ON tailrace.projection_build").await;
    site.shows(150, 2).await;
    first.stop().await;
    second.stop().await;

    assert_eq!(between, Some((100, 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_version_that_is_kept_goes_on_and_can_be_gone_back_to() {
    let site = site("projection_back").await;
    site.produce(0..50);
    let first = start(site.projection(1));
    site.shows(50, 1).await;
    let second = start(site.projection(2).keep_former(true));
    site.shows(50, 2).await;

    site.produce(50..100);
    site.shows(100, 2).await;
    let behind = "SELECT count(*) FROM tailrace.consumer_progress AS a
                  JOIN tailrace.consumer_progress AS b USING (topic, partition)
                  WHERE a.next_offset <> b.next_offset";
    until(async || site.bed.count(behind).await == 0).await;
    let mut conn = site.bed.pool.acquire().await.unwrap();
    let version = switch_back(&mut conn, &site.name).await.unwrap();
    let back = site.seen().await;
    // Whoever starts again does not undo it.
    second.stop().await;
    let second = start(site.projection(2).keep_former(true));
    site.produce(100..150);
    site.shows(150, 1).await;
    until(async || site.bed.count(behind).await == 0).await;
    let forth = switch_back(&mut conn, &site.name).await.unwrap();

    assert_eq!((version, back, forth), (1, Some((100, 1)), 2));
    site.shows(150, 2).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_of_the_same_version_mends_it_and_its_processes_move_over() {
    let site = site("projection_anew").await;
    site.produce(0..100);
    let running = start(site.projection(1).reader("pg_monitor"));
    site.shows(100, 1).await;
    let spoil = format!("UPDATE {}.total SET messages = 0", site.name);
    sqlx::raw_sql(sqlx::AssertSqlSafe(spoil)).execute(&site.bed.pool).await.unwrap();

    let rebuilt = site.projection(1).reader("pg_monitor").rebuild(std::future::pending());
    let rebuilt = tokio::time::timeout(DEADLINE, rebuilt).await.unwrap().unwrap();
    let mended = site.seen().await;
    site.produce(100..200);
    site.shows(200, 1).await;
    until(async || site.schemas().await == 1).await;
    running.stop().await;

    assert_eq!((rebuilt.phase, rebuilt.build), (Phase::Live, 2));
    assert_eq!(mended, Some((100, 1)));
    let readable =
        format!("SELECT has_table_privilege('pg_monitor', '{}.total', 'SELECT')", site.name);
    let readable: bool =
        sqlx::query_scalar(sqlx::AssertSqlSafe(readable)).fetch_one(&site.bed.pool).await.unwrap();
    assert!(readable);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_use_of_a_projection_is_one_error() {
    async fn prepare(_: Cx<'_, App>, _: Numbered) -> Result<Prepared<i64>, BoxError> {
        Ok(Prepared::Call(1))
    }
    async fn call(_: CallCx<'_, App>, _: i64) -> Result<Answer<i64>, BoxError> {
        Ok(Answer::Done(1))
    }
    async fn record(_: Cx<'_, App>, _: i64, _: i64) -> Result<(), BoxError> {
        Ok(())
    }
    let site = site("projection_bad").await;
    let check = async |projection: Projection, kind: Kind, named: &[&str]| {
        let error = projection.run(std::future::pending()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        for name in named {
            assert!(error.to_string().contains(name), "{name:?} is not in {error}");
        }
    };
    let app = App { version: 1, gate: Arc::clone(&site.gate) };
    let config = Config::new("Bad Name", site.bed.brokers(), site.bed.pool.clone());
    let bad = Consumer::new(config.start(Start::Latest).state(app))
        .on_call("paid.v1", Call::new(prepare, call, record));

    let named = ["no topic", "makes no calls", "name of a read model", "beginning"];
    check(Projection::new(bad, 1, TABLES), Kind::Config, &named).await;
    let no_sql = Projection::new(site.consumer(1), 1, "CREATE TABEL");
    check(no_sql, Kind::Database, &["read model's tables fail"]).await;
    let live = site.projection(2).rebuild(std::future::pending());
    tokio::time::timeout(DEADLINE, live).await.unwrap().unwrap();
    check(site.projection(1), Kind::Conflict, &["was replaced by version 2", "deploy"]).await;
    let changed = Projection::new(site.consumer(2), 2, "CREATE TABLE other (id int)");
    check(changed, Kind::Conflict, &["other tables or topics", "higher version"]).await;
    let mut conn = site.bed.pool.acquire().await.unwrap();
    let none = switch_back(&mut conn, &site.name).await.unwrap_err();

    assert_eq!(none.kind(), Kind::Conflict);
    assert_eq!(site.schemas().await, 1);
}

#[tokio::test]
async fn a_build_that_is_behind_or_within_a_batch_or_has_parked_messages_is_not_switched_to() {
    let bed = installed("projection_switch").await;
    let mut conn = bed.pool.acquire().await.unwrap();
    let builds =
        Builds { name: "overview".to_owned(), tables: TABLES.to_owned(), readers: Vec::new() };
    let mut switches = async |version| {
        let wanted = Wanted { version, definition: Vec::new(), anew: false };
        let build = builds.choose(&mut conn, &wanted).await.unwrap();
        builds.switch(&mut conn, build.number, &["orders".to_owned()], false).await.unwrap()
    };
    let execute = async |statement: &'static str| bed.execute(statement).await;

    let first = switches(1).await;
    execute(
        "INSERT INTO tailrace.consumer_progress (consumer, topic, partition, lane, epoch, next_offset)
         VALUES ('overview.1', 'orders', 0, 0, 1, 100), ('overview.2', 'orders', 0, 0, 1, 99)",
    )
    .await;
    let behind = switches(2).await;
    execute("UPDATE tailrace.consumer_progress SET next_offset = 100").await;
    let mut batch = bed.begin().await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(builds.entering(2))).execute(&mut *batch).await.unwrap();
    let within = switches(2).await;
    batch.rollback().await.unwrap();
    execute(
        "INSERT INTO tailrace.parked_message
             (consumer, topic, partition, \"offset\", message_id, message_type, header_names, header_values, state)
         VALUES ('overview.2', 'orders', 0, 7, gen_random_uuid(), 'numbered.v1', '{}', '{}', 'stuck')",
    )
    .await;
    let parked = switches(2).await;
    execute("DELETE FROM tailrace.parked_message").await;
    let level = switches(2).await;

    assert_eq!([first, level], [Switched::Done; 2]);
    assert_eq!([behind, within, parked], [Switched::NotYet; 3]);
}
