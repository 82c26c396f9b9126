use super::*;
use crate::fixture::{bare, id_of_day, installed, new_id};
use crate::guard::{self, Claim};

#[tokio::test]
async fn eight_installers_at_once_install_once() {
    let bed = bare("schema_eight").await;

    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let pool = bed.pool.clone();
        tasks.spawn(async move { install(&mut pool.acquire().await.unwrap()).await });
    }
    let results = tasks.join_all().await;

    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(
        bed.count("SELECT count(*) FROM tailrace.idempotency_version").await,
        MIGRATIONS.len() as i64
    );
}

#[tokio::test]
async fn an_installer_that_looked_before_another_was_done_finds_its_work() {
    let bed = bare("schema_looked").await;
    let mut first = bed.begin().await;
    let mut second = bed.pool.acquire().await.unwrap();
    install(&mut first).await.unwrap();

    let waits = tokio::spawn(async move {
        check(&mut second).await.unwrap_err();
        install(&mut second).await
    });
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let begun = async { while bed.count(waiting).await == 0 {} };
    tokio::time::timeout(crate::fixture::DEADLINE, begun).await.expect("the second one waits");
    first.commit().await.unwrap();

    waits.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_schema_of_another_crate_is_left_alone() {
    let bed = bare("schema_shared").await;
    bed.execute("CREATE SCHEMA tailrace; CREATE TABLE tailrace.outbox (id uuid)").await;

    install(&mut bed.pool.acquire().await.unwrap()).await.unwrap();

    check(&mut bed.pool.acquire().await.unwrap()).await.unwrap();
    assert_eq!(bed.count("SELECT count(*) FROM tailrace.outbox").await, 0);
}

#[tokio::test]
async fn a_missing_or_old_schema_says_how_to_mend_it() {
    let bed = bare("schema_missing").await;
    let mut conn = bed.pool.acquire().await.unwrap();

    let missing = check(&mut conn).await.unwrap_err();
    install(&mut conn).await.unwrap();
    bed.execute("DELETE FROM tailrace.idempotency_version WHERE version > 1").await;
    let old = check(&mut conn).await.unwrap_err();

    for error in [missing, old] {
        assert_eq!(error.kind(), Kind::Schema);
        assert!(error.to_string().contains("schema::install"), "{error}");
    }
}

#[tokio::test]
async fn a_role_with_the_documented_grants_alone_can_claim_days_without_partition() {
    let bed = installed("schema_role").await;
    let role = bed.database.url().rsplit('/').next().unwrap().to_owned() + "_service";
    let grants = MIGRATIONS
        .iter()
        .flat_map(|migration| migration.sql.lines())
        .filter_map(|line| line.strip_prefix("--   "))
        .map(|grant| grant.replace("service;", &format!("\"{role}\";")))
        .collect::<String>();
    assert_eq!(grants.matches("GRANT").count(), 15);
    let mut tx = bed.begin().await;
    let setup = format!("CREATE ROLE \"{role}\" NOLOGIN; {grants} SET LOCAL ROLE \"{role}\"");
    sqlx::raw_sql(sqlx::AssertSqlSafe(setup)).execute(&mut *tx).await.unwrap();

    check(&mut tx).await.unwrap();
    let old = id_of_day(&mut tx, -7).await;
    let claims = guard::claim_all(&mut tx, "billing", &[old, new_id()]).await.unwrap();

    assert_eq!(claims, [Claim::First; 2]);
    let denied = sqlx::query("CREATE TABLE tailrace.mine (id int)").execute(&mut *tx).await;
    assert!(denied.is_err());
}

#[tokio::test]
async fn the_function_makes_no_partition_outside_its_range() {
    let bed = installed("schema_range").await;

    let far =
        sqlx::query("SELECT tailrace.make_processed_message_partitions(ARRAY[current_date + 500])")
            .execute(&bed.pool)
            .await;

    assert!(far.is_err());
}
