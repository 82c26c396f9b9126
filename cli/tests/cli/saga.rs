//! `tailrace saga …` tells first, does with `--yes`, and says what is in the way.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{Executor, PgConnection};
use tailrace_saga::testing::Scenario;
use tailrace_saga::{Command, Compensable, Forward, Instance, Saga, Signal};
use tailrace_stack::Database;

use crate::command::{fresh, tailrace};

#[derive(Serialize, Deserialize)]
struct Reserve {}

impl Command for Reserve {
    const TYPE: &'static str = "credit.reserve.v1";
    const TOPIC: &'static str = "customers.commands";
    type Reply = ();
    type Refusal = ();
}

impl Compensable for Reserve {}

#[derive(Serialize, Deserialize)]
struct Pay {}

impl Command for Pay {
    const TYPE: &'static str = "payment.capture.v1";
    const TOPIC: &'static str = "payments.commands";
    type Reply = ();
    type Refusal = ();
}

#[derive(Serialize, Deserialize)]
struct Order {
    secret: String,
}

fn definition(version: u32) -> Saga<Order> {
    Saga::define("create-order", version)
        .step("reserve", |_: &Order| Reserve {})
        .compensate()
        .pivot("pay", |_: &Order| Pay {})
        .timeout(Duration::from_secs(10), Forward::Park)
        .build()
        .expect("the saga is right")
}

const RUNNING: &str = "00000000-0000-7000-8000-000000000001";
const PARKED: [&str; 2] =
    ["00000000-0000-7000-8000-000000000002", "00000000-0000-7000-8000-000000000003"];

/// As an engine would have stored it.
async fn store(connection: &mut PgConnection, id: &str, saga: &Instance) {
    let text = serde_json::to_string(saga).expect("a saga is JSON");
    let text = text.replace(&saga.id().to_string(), id);
    let identity = saga.definition();
    sqlx::query(
        "INSERT INTO tailrace.saga_instance (id, definition, version, hash, status, revision, instance)
         VALUES ($1::uuid, $2, $3, $4, $5, $6, $7::json)",
    )
    .bind(id)
    .bind(&*identity.name)
    .bind(i64::from(identity.version))
    .bind(&*identity.hash)
    .bind(saga.status().as_str())
    .bind(i64::try_from(saga.revision()).expect("a small number"))
    .bind(text)
    .execute(&mut *connection)
    .await
    .expect("a row");
    let journal = "INSERT INTO tailrace.saga_journal (saga_id, revision, entries) VALUES ($1::uuid, 1, $2::json)";
    let entries = r#"[{"at":1700000000000000,"step":null,"what":"started"},
        {"at":1700000000250000,"step":"reserve","what":"asked","operation":"action","epoch":1,"attempt":1}]"#;
    sqlx::query(journal).bind(id).bind(entries).execute(connection).await.expect("a row");
}

/// A database with a saga that runs and two that wait for a person.
async fn site(name: &str) -> (Database, PgConnection) {
    let (database, mut connection) = fresh(name).await;
    assert_eq!(tailrace(database.url(), &["saga", "install"]).await.good(), "installed\n");
    let saga = definition(3);
    for version in [3, 4] {
        let saga = definition(version);
        let structure =
            serde_json::to_string(&saga.definition().structure()).expect("a structure is JSON");
        let identity = saga.definition().identity().clone();
        sqlx::query(
            "INSERT INTO tailrace.saga_definition (definition, version, hash, structure) VALUES ($1, $2, $3, $4::json)",
        )
        .bind(&*identity.name)
        .bind(i64::from(identity.version))
        .bind(&*identity.hash)
        .bind(structure)
        .execute(&mut connection)
        .await
        .expect("a row");
    }
    let begun = Scenario::given(&saga, &Order { secret: "top secret".to_owned() });
    store(&mut connection, RUNNING, begun.instance()).await;
    let parked = begun.when_done("reserve", &()).when_time_passes(Duration::from_secs(11));
    for id in PARKED {
        store(&mut connection, id, parked.instance()).await;
    }
    (database, connection)
}

async fn count(connection: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(connection).await.expect("a count")
}

#[tokio::test]
async fn sagas_are_listed_and_shown_and_their_data_on_request_alone() {
    let (database, _connection) = site("saga_list").await;
    let url = database.url();

    let list = tailrace(url, &["saga", "list"]).await.good();
    let page = tailrace(url, &["saga", "list", "--limit=2"]).await.good();
    let rest = tailrace(url, &["saga", "list", "--after", PARKED[0]]).await.good();
    let parked =
        tailrace(url, &["saga", "list", "--state=parked", "--step=pay", "--json"]).await.good();
    let none = tailrace(url, &["saga", "list", "--state=completed"]).await.good();
    let show = tailrace(url, &["saga", "show", PARKED[0]]).await.good();
    let data = tailrace(url, &["saga", "show", PARKED[0], "--data"]).await.good();
    let nobody = tailrace(url, &["saga", "show", "00000000-0000-7000-8000-000000000009"]).await;

    for named in [RUNNING, PARKED[1], "create-order/3", "pay: no answer to 1 attempts", "3 sagas\n"]
    {
        assert!(list.contains(named), "{named} is not in {list}");
    }
    assert!(page.ends_with(&format!("2 sagas; more behind --after {}\n", PARKED[0])), "{page}");
    assert!(rest.contains(PARKED[1]) && rest.ends_with("1 sagas\n"), "{rest}");
    let parked: Value = serde_json::from_str(&parked).unwrap();
    assert_eq!(parked["sagas"].as_array().unwrap().len(), 2);
    assert_eq!(parked["sagas"][0]["steps"][1]["state"], "stuck_acting");
    assert_eq!(none, "there is no saga that fits\n");
    for named in ["none lives that can run it", "stuck acting", "no answer to 1 attempts"] {
        assert!(show.contains(named), "{named} is not in {show}");
    }
    assert!(!list.contains("secret") && !show.contains("secret"), "{show}");
    assert!(data.contains("top secret"), "{data}");
    nobody.refuses(5, &["there is no saga", "saga list"]);
}

#[tokio::test]
async fn what_is_wanted_of_sagas_is_told_first_and_made_once_with_yes_and_audited() {
    let (database, mut connection) = site("saga_change").await;
    let url = database.url();
    let by = ["--yes", "--actor=anna", "--note=told so"];
    let retry = ["saga", "retry", "--state=parked"];

    let told = tailrace(url, &retry).await;
    let untouched = count(&mut connection, "SELECT count(*) FROM tailrace.saga_input").await;
    let done = tailrace(url, &[&retry[..], &by].concat()).await.good();
    let again = tailrace(url, &[&retry[..], &by, &["--json"]].concat()).await;
    let late = tailrace(url, &["saga", "compensate", PARKED[0], "--yes"]).await;
    let undone = tailrace(url, &[&["saga", "compensate", RUNNING][..], &by].concat()).await.good();
    let skipped = tailrace(url, &["saga", "skip", PARKED[0], "--step=pay", "--yes"]).await.good();
    let aborted = tailrace(url, &["saga", "abort", "--definition=create-order", "--limit=1"]).await;

    assert_eq!((told.code, untouched), (Some(8), 0));
    assert!(told.stdout.contains("asks again: pay"), "{told:?}");
    assert!(
        told.stdout.ends_with("2 sagas, 0 of them refused\nnothing was changed: --yes does it\n")
    );
    assert!(done.ends_with("2 sagas, 0 of them refused\n"), "{done}");
    let again_json: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!((again.code, again_json["refused"].as_u64()), (Some(5), Some(2)));
    late.refuses(5, &["its pivot pay was asked for", "too late"]);
    assert_eq!(undone, format!("{RUNNING}  is undone\n1 sagas, 0 of them refused\n"));
    assert!(skipped.contains("goes on without pay"), "{skipped}");
    assert!(aborted.stdout.contains("more were chosen"), "{aborted:?}");
    let audited = "SELECT count(*) FROM tailrace.saga_audit
        WHERE actor = 'anna' AND note = 'told so' AND query IN ('state=parked', 'by id')";
    assert_eq!(count(&mut connection, audited).await, 3);
    assert_eq!(count(&mut connection, "SELECT count(*) FROM tailrace.saga_input").await, 4);
    let shown = tailrace(url, &["saga", "show", PARKED[0]]).await.good();
    for named in ["retry, says anna (told", "retry by anna: told so"] {
        assert!(shown.contains(named), "{named} is not in {shown}");
    }
}

#[tokio::test]
async fn a_timeline_and_a_diagram_need_no_code_of_the_service() {
    let (database, _connection) = site("saga_timeline").await;
    let url = database.url();

    let timeline = tailrace(url, &["saga", "timeline", RUNNING]).await.good();
    let messages = tailrace(url, &["saga", "timeline", RUNNING, "--messages"]).await;
    let states = tailrace(url, &["saga", "diagram", "create-order/3"]).await.good();
    let coloured =
        tailrace(url, &["saga", "diagram", "--saga", PARKED[0], "--form=svg"]).await.good();
    let unknown = tailrace(url, &["saga", "diagram", "refund"]).await;
    let structure = tailrace(url, &["saga", "diagram", "create-order", "--form=json"]).await.good();
    let file = File::new("structure", &structure);
    let drawn =
        tailrace("", &["saga", "diagram", "--file", file.path(), "--form=sequence"]).await.good();

    assert!(
        timeline
            .ends_with("0.000 s  it begins\n       0.250 s  asks: reserve (epoch 1, attempt 1)\n"),
        "{timeline}"
    );
    messages.refuses(5, &["no message of saga", "observer"]);
    assert!(states.starts_with("stateDiagram-v2\n    g0 : reserve\n"), "{states}");
    assert!(
        coloured.starts_with("<svg") && coloured.contains(">stuck acting</text>"),
        "{coloured}"
    );
    unknown.refuses(5, &["refund is not stored", "create-order/4, create-order/3"]);
    assert!(drawn.starts_with("sequenceDiagram"), "{drawn}");
}

#[tokio::test]
async fn a_timeline_says_all_that_can_happen_in_words() {
    let (database, mut connection) = site("saga_timeline_words").await;
    let url = database.url();
    let entries = r#"[
        {"at":1700000001000000,"step":"account","what":"lock_wanted","key":"ada"},
        {"at":1700000001000000,"step":"account","what":"lock_held","key":"ada"},
        {"at":1700000001000000,"step":"account","what":"lock_left","key":"bob"},
        {"at":1700000001000000,"step":"account","what":"lock_expired"},
        {"at":1700000001000000,"step":"account","what":"unlocked"},
        {"at":1700000001000000,"step":null,"what":"part_asked","operation":"compensation","epoch":2},
        {"at":1700000001000000,"step":"flaky","what":"failed","attempt":2,"error":"no disk"},
        {"at":1700000001000000,"step":"reserve","what":"skipped"},
        {"at":1700000001000000,"step":"reserve","what":"asked","operation":"compensation","epoch":2,"attempt":1},
        {"at":1700000001000000,"step":"reserve","what":"skipped"}]"#;
    sqlx::query("INSERT INTO tailrace.saga_journal (saga_id, revision, entries) VALUES ($1::uuid, 2, $2::json)")
        .bind(RUNNING)
        .bind(entries)
        .execute(&mut connection)
        .await
        .expect("a row");

    let timeline = tailrace(url, &["saga", "timeline", RUNNING]).await.good();

    let said: Vec<&str> =
        timeline.lines().filter_map(|line| line.strip_prefix("       1.000 s  ")).collect();
    assert_eq!(
        said,
        [
            "stands in line: the lock account of ada",
            "has the lock account of ada",
            "does not want the lock account of bob any more",
            "holds the lock account for longer than was meant",
            "goes on without the lock account",
            "its whole asks: undo itself (epoch 2)",
            "fails: flaky (attempt 2): no disk",
            "goes on without reserve",
            "asks: undo reserve (epoch 2, attempt 1)",
            "leaves reserve as it is, not undone",
        ]
    );
}

/// A file that goes when this is dropped.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let name = format!("tailrace-cli-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).expect("a file can be written");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path is text")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap_or_default();
    }
}

#[tokio::test]
async fn a_migration_is_told_from_a_file_and_ordered_with_yes() {
    let (database, mut connection) = site("saga_migrate").await;
    let url = database.url();
    let good = File::new("mapping", r#"{"from": "create-order/3", "to": "create-order/4"}"#);
    let wrong = File::new("wrong", r#"{"from": "create-order/3", "to": "create-order/9"}"#);
    let migrate = ["saga", "migrate", "--mapping", good.path()];

    let told = tailrace(url, &migrate).await;
    let done = tailrace(url, &[&migrate[..], &["--yes"]].concat()).await.good();
    let shown = tailrace(url, &["saga", "show", RUNNING]).await.good();
    let nobody = tailrace(url, &["saga", "migrate", "--mapping", wrong.path()]).await;
    let no_file = tailrace(url, &["saga", "migrate", "--mapping=/no/such/file"]).await;
    let others = tailrace(url, &[&migrate[..], &["--definition=refund"]].concat()).await;
    let a_step = tailrace(url, &[&migrate[..], &["--step=pay", RUNNING]].concat()).await;

    assert_eq!(told.code, Some(8), "{told:?}");
    assert!(told.stdout.contains("goes on as create-order/4, once an engine has it"), "{told:?}");
    assert!(done.ends_with("3 sagas, 0 of them refused\n"), "{done}");
    assert!(shown.contains("migration    to create-order/4, wanted by unknown"), "{shown}");
    nobody.refuses(5, &["create-order/9", "deploy an engine"]);
    no_file.refuses(2, &["/no/such/file"]);
    others.refuses(2, &["the mapping is of create-order/3, and other sagas are chosen"]);
    a_step.refuses(2, &["--step says nothing here"]);
    let orders =
        "SELECT count(*) FROM tailrace.saga_migration WHERE version = 4 AND refused IS NULL";
    assert_eq!(count(&mut connection, orders).await, 3);
}

#[tokio::test]
async fn what_is_missing_or_said_twice_is_one_error() {
    let (database, mut connection) = fresh("saga_missing").await;
    let url = database.url();

    let no_tables = tailrace(url, &["saga", "list"]).await;
    tailrace(url, &["saga", "install"]).await.good();
    let nobody = tailrace(url, &["saga", "retry", "--yes"]).await;
    let both = tailrace(url, &["saga", "retry", RUNNING, "--state=parked"]).await;
    let no_step = tailrace(url, &["saga", "skip", RUNNING]).await;
    let no_filter = tailrace(url, &["saga", "abort", RUNNING, "--step=pay"]).await;
    let no_choice = tailrace(url, &["saga", "retry", RUNNING, "--limit=5"]).await;
    connection.execute("UPDATE tailrace.saga_version SET version = version - 1").await.unwrap();
    let old = tailrace(url, &["saga", "list"]).await;

    no_filter.refuses(2, &["--step says nothing here", "choose sagas by it"]);
    no_choice.refuses(2, &["--limit is of sagas that are chosen"]);
    no_tables.refuses(2, &["tables of tailrace-saga are missing", "tailrace saga install"]);
    nobody.refuses(2, &["no saga is named or chosen"]);
    both.refuses(2, &["both named and chosen"]);
    no_step.refuses(2, &["--step is missing"]);
    old.refuses(2, &["tailrace saga install"]);
}

/// The event that a saga waits for behind its pivot.
#[derive(Serialize, Deserialize)]
struct Collected {}

impl Signal for Collected {
    const TYPE: &'static str = "parcel.collected.v1";
}

#[tokio::test]
async fn a_signal_is_told_first_and_given_with_yes_and_stands_in_the_audit() {
    let (database, mut connection) = site("saga_signal").await;
    let url = database.url();
    let awaiting = Saga::<Order>::define("collect", 1)
        .pivot("pay", |_: &Order| Pay {})
        .wait::<Collected>("collected", Duration::from_secs(60), |_, _| ())
        .build()
        .expect("the saga is right");
    let begun = Scenario::given(&awaiting, &Order { secret: String::new() });
    let id = "00000000-0000-7000-8000-000000000004";
    store(&mut connection, id, begun.when_done("pay", &()).instance()).await;
    let structure = serde_json::to_string(&awaiting.definition().structure()).expect("it is JSON");
    let insert = "INSERT INTO tailrace.saga_definition (definition, version, hash, structure) VALUES ('collect', 1, $1, $2::json)";
    let hash = &*awaiting.definition().identity().hash;
    sqlx::query(insert).bind(hash).bind(structure).execute(&mut connection).await.expect("a row");
    let signal = ["saga", "signal", id, "parcel.collected.v1"];
    let by = ["--yes", "--actor=anna", "--data={\"by\": \"ada\"}"];

    let told = tailrace(url, &signal).await;
    let given = tailrace(url, &[&signal[..], &by].concat()).await.good();
    let again = tailrace(url, &[&signal[..], &by].concat()).await;
    let other = tailrace(url, &["saga", "signal", id, "order.cancelled.v1", "--yes"]).await;
    let no_json = tailrace(url, &[&signal[..], &["--data={by"]].concat()).await;

    assert_eq!(told.code, Some(8), "{told:?}");
    assert!(told.stdout.contains("collected takes parcel.collected.v1"), "{told:?}");
    assert!(given.ends_with("1 sagas, 0 of them refused\n"), "{given}");
    again.refuses(5, &["it has been told already"]);
    other.refuses(5, &["none of its steps waits for order.cancelled.v1"]);
    assert_eq!(no_json.code, Some(2), "{no_json:?}");
    assert!(no_json.stderr.contains("it is no JSON"), "{no_json:?}");
    let inserted = "SELECT count(*) FROM tailrace.saga_input
        WHERE input #>> '{signal,signal_type}' = 'parcel.collected.v1' AND input #>> '{signal,payload,by}' = 'ada'";
    assert_eq!(count(&mut connection, inserted).await, 1);
    let audited = "SELECT count(*) FROM tailrace.saga_audit
        WHERE actor = 'anna' AND action = 'signal parcel.collected.v1'";
    assert_eq!(count(&mut connection, audited).await, 1);
}
