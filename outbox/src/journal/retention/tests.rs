use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection};
use uuid::Uuid;

use super::{Day, Journal, Maintained, Outcome, Partitions, Retention, Step, plan};
use crate::database::{connect, fresh};
use crate::journal::{insert, maintain};
use crate::{Message, schema};

const DAY: Duration = Duration::from_secs(86_400);

fn message() -> Message {
    Message::builder("t", "x").source("/").payload([]).build().unwrap()
}

async fn installed(name: &str) -> (tailrace_stack::Database, PgConnection) {
    let (database, mut connection) = fresh(name).await;
    schema::install(&mut connection).await.unwrap();
    (database, connection)
}

async fn today(connection: &mut PgConnection) -> Day {
    Day::of(Journal::default().look(connection).await.unwrap().0)
}

/// Gives the journal a day of long ago.
async fn make(connection: &mut PgConnection, day: Day) {
    Journal::default().change(connection, Step::Make(day)).await.unwrap();
}

async fn count(connection: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

#[test]
fn a_day_is_dropped_when_its_last_moment_is_older_than_the_retention() {
    let day = |number: i64| Day::of(number * 86_400);
    let there = Partitions {
        ours: (95..=101).map(day).collect(),
        all: (95..=101).map(|number| day(number).ids()).collect(),
    };
    let retention = |days: u32| Retention::new(DAY * days).days_ahead(2);
    let noon = 100 * 86_400 + 43_200;

    let check = |now: i64, days: u32, made: &[i64], dropped: &[i64]| {
        let mut expected: Vec<_> = made.iter().map(|number| Step::Make(day(*number))).collect();
        expected.extend(dropped.iter().map(|number| Step::Drop(day(*number))));
        assert_eq!(plan(now, &there, &retention(days)), expected, "{now} {days}");
    };
    check(noon, 3, &[102], &[95, 96]);
    check(100 * 86_400, 3, &[102], &[95, 96]);
    check(100 * 86_400 - 1, 3, &[], &[95]);
    check(noon, 0, &[102], &[95, 96, 97, 98, 99]);
    check(noon, 100_000, &[102], &[]);
    check(200 * 86_400, 1, &[200, 201, 202], &[95, 96, 97, 98, 99, 100, 101]);
}

#[tokio::test]
async fn eight_maintainers_at_once_make_and_drop_each_day_once() {
    let (database, mut connection) = installed("retention_eight").await;
    let today = today(&mut connection).await;
    for ago in [20, 19, 2] {
        make(&mut connection, today.plus(-ago)).await;
    }

    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut connection = connect(&database).await;
        let retention = Retention::new(DAY * 7).days_ahead(6);
        tasks.spawn(async move { maintain(&mut connection, &retention).await.unwrap() });
    }
    let reports = tasks.join_all().await;
    let last = maintain(&mut connection, &Retention::new(DAY * 7).days_ahead(6)).await.unwrap();

    let all = |list: fn(&Maintained) -> &Vec<String>| {
        let mut names: Vec<_> = reports.iter().flat_map(list).cloned().collect();
        names.sort();
        names
    };
    let names = |days: &[i64]| days.iter().map(|d| today.plus(*d).partition()).collect::<Vec<_>>();
    assert_eq!(all(|report| &report.made), names(&[4, 5, 6]));
    assert_eq!(all(|report| &report.dropped), names(&[-20, -19]));
    assert!(all(|report| &report.postponed).is_empty());
    assert_eq!(last, Maintained::default());
}

#[tokio::test]
async fn a_day_that_another_made_meanwhile_is_not_made_again() {
    let (database, mut connection) = installed("retention_meanwhile").await;
    let mut other = connect(&database).await;
    let day = today(&mut connection).await.plus(30);
    let look = format!("SELECT to_regclass('tailrace.{}')", day.partition());
    connection.execute(sqlx::AssertSqlSafe(look)).await.unwrap();
    let mut tx = connection.begin().await.unwrap();

    make(&mut other, day).await;
    let outcome = Journal::default().change(&mut tx, Step::Make(day)).await.unwrap();

    assert!(matches!(outcome, Outcome::Nothing));
}

#[tokio::test]
async fn what_is_planned_is_what_maintenance_then_does() {
    let (_database, mut connection) = installed("retention_plan").await;
    let old = today(&mut connection).await.plus(-30);
    make(&mut connection, old).await;
    let (journal, retention) = (Journal::default(), Retention::default().days_ahead(5));

    let planned = journal.plan(&mut connection, &retention).await.unwrap();
    let again = journal.plan(&mut connection, &retention).await.unwrap();
    let done = journal.maintain(&mut connection, &retention).await.unwrap();

    assert_eq!((planned.make.len(), &planned.drop[..]), (2, &[old.partition()][..]));
    assert_eq!(planned, again);
    assert_eq!((planned.make, planned.drop), (done.made, done.dropped));
}

#[tokio::test]
async fn a_day_is_not_dropped_under_an_open_transaction_and_nobody_waits_long() {
    let (database, mut connection) = installed("retention_open").await;
    let old = today(&mut connection).await.plus(-30);
    make(&mut connection, old).await;
    let mut writer = connect(&database).await;
    let mut tx = writer.begin().await.unwrap();
    insert(&mut tx, &message()).await.unwrap();

    let meanwhile = maintain(&mut connection, &Retention::default().days_ahead(5)).await.unwrap();
    tx.commit().await.unwrap();
    let afterwards = maintain(&mut connection, &Retention::default().days_ahead(5)).await.unwrap();

    assert_eq!((meanwhile.made.len(), meanwhile.dropped.len()), (2, 0));
    assert_eq!(meanwhile.postponed, [old.partition()]);
    assert_eq!(afterwards.dropped, [old.partition()]);
    assert_eq!(count(&mut connection, "SELECT count(*) FROM tailrace.outbox").await, 1);
    let waits: String =
        sqlx::query_scalar("SHOW lock_timeout").fetch_one(&mut connection).await.unwrap();
    assert_eq!(waits, "0");
}

#[tokio::test]
async fn a_day_without_partition_fails_no_writer_and_its_rows_leave_by_their_age() {
    let (_database, mut connection) = installed("retention_late").await;
    let today = today(&mut connection).await;
    let drop = format!("DROP TABLE tailrace.{}", today.partition());
    connection.execute(sqlx::AssertSqlSafe(drop)).await.unwrap();
    insert(&mut connection, &message()).await.unwrap();
    let old = Message::builder("t", "x").source("/").payload([]).time_micros(1).id(Uuid::max());
    insert(&mut connection, &old.build().unwrap()).await.unwrap();

    let retention = Retention::default().days_ahead(4);
    let planned = Journal::default().plan(&mut connection, &retention).await.unwrap();
    let report = maintain(&mut connection, &retention).await.unwrap();

    assert_eq!((planned.strays, &planned.blocked), (1, &report.blocked));
    assert_eq!(planned.make, report.made);
    assert_eq!(report.blocked, [today.partition()]);
    assert_eq!(report.made, [today.plus(4).partition()]);
    assert_eq!(report.strays_deleted, 1);
    assert_eq!(count(&mut connection, "SELECT count(*) FROM tailrace.outbox_default").await, 1);
    // A row stays until the end of its day, however short the retention is.
    let short = Retention::new(std::time::Duration::from_millis(1)).days_ahead(4);
    assert_eq!(maintain(&mut connection, &short).await.unwrap().strays_deleted, 0);
}

#[tokio::test]
async fn a_row_stands_in_the_partition_of_its_ids_day() {
    let (_database, mut connection) = installed("retention_day").await;

    insert(&mut connection, &message()).await.unwrap();

    let partition: String =
        sqlx::query_scalar("SELECT tableoid::regclass::text FROM tailrace.outbox")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    let today = today(&mut connection).await;
    assert_eq!(partition, format!("tailrace.{}", today.partition()));
}

#[tokio::test]
async fn a_table_that_was_attached_by_hand_is_left_alone() {
    let (_database, mut connection) = installed("retention_mine").await;
    connection
        .execute(
            "CREATE TABLE tailrace.mine PARTITION OF tailrace.outbox \
             FOR VALUES FROM ('00000000-0000-0000-0000-000000000000') \
             TO ('00000001-0000-0000-0000-000000000000')",
        )
        .await
        .unwrap();

    let report = maintain(&mut connection, &Retention::new(Duration::ZERO)).await.unwrap();

    assert_eq!(report, Maintained::default());
    assert_eq!(count(&mut connection, "SELECT count(*) FROM tailrace.mine").await, 0);
}

#[tokio::test]
async fn a_table_is_known_by_its_bounds_and_not_by_its_name_alone() {
    let (_database, mut connection) = installed("retention_bounds").await;
    let today = today(&mut connection).await;
    let (old, near, ahead) = (today.plus(-30), today.plus(-2), today.plus(5));
    // A name of long ago over the ids of other days, some of them not old; a table of half a day
    // to come, one that covers whole days under a name of its own, and one that is no partition.
    let sql = format!(
        "CREATE TABLE tailrace.{} PARTITION OF tailrace.outbox FOR VALUES FROM ('{}') TO ('{}'); \
         CREATE TABLE tailrace.mine PARTITION OF tailrace.outbox FOR VALUES FROM ('{}') \
         TO ('{}'); \
         CREATE TABLE tailrace.ours PARTITION OF tailrace.outbox FOR VALUES FROM ('{}') TO ('{}'); \
         CREATE TABLE tailrace.{} (id int)",
        old.partition(),
        today.plus(-40).bound(),
        near.bound(),
        ahead.bound(),
        Uuid::from_u128(Uuid::try_parse(&ahead.bound()).unwrap().as_u128() + (1_000 << 80)),
        today.plus(6).bound(),
        today.plus(8).bound(),
        today.plus(4).partition(),
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    let retention = Retention::default().days_ahead(8);

    let planned = Journal::default().plan(&mut connection, &retention).await.unwrap();
    let report = maintain(&mut connection, &retention).await.unwrap();

    let blocked = [today.plus(4).partition(), ahead.partition()];
    assert_eq!((&planned.blocked, &report.blocked), (&blocked.to_vec(), &blocked.to_vec()));
    assert_eq!(report.made, [today.plus(8).partition()]);
    assert_eq!((planned.make, planned.drop), (report.made, report.dropped));
    let left = format!("SELECT to_regclass('tailrace.{}') IS NOT NULL", old.partition());
    assert!(
        sqlx::query_scalar::<_, bool>(sqlx::AssertSqlSafe(left))
            .fetch_one(&mut connection)
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn writers_go_on_while_days_are_made_and_dropped() {
    let (database, mut connection) = installed("retention_writers").await;
    let today = today(&mut connection).await;
    for ago in 10..20 {
        make(&mut connection, today.plus(-ago)).await;
    }
    // Beyond every day, so that the default partition is in use too.
    let stray = |n: u128| {
        Message::builder("t", "x").source("/").payload([]).id(Uuid::from_u128(u128::MAX - n))
    };

    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let mut writer = connect(&database).await;
        writers.spawn(async move {
            for n in 0..100 {
                let mut tx = writer.begin().await.unwrap();
                insert(&mut tx, &message()).await.unwrap();
                insert(&mut tx, &stray(n).build().unwrap()).await.unwrap();
                tx.commit().await.unwrap();
            }
        });
    }
    let mut reports = Vec::new();
    for days_ahead in 4..24 {
        let retention = Retention::default().days_ahead(days_ahead);
        reports.push(maintain(&mut connection, &retention).await.unwrap());
    }
    writers.join_all().await;
    // What a busy moment postponed is done by the next call.
    reports.push(maintain(&mut connection, &Retention::default().days_ahead(23)).await.unwrap());

    let total = |list: fn(&Maintained) -> &Vec<String>| {
        reports.iter().map(|report| list(report).len()).sum::<usize>()
    };
    assert_eq!((total(|report| &report.made), total(|report| &report.dropped)), (20, 10));
    assert_eq!(count(&mut connection, "SELECT count(*) FROM tailrace.outbox").await, 800);
}
