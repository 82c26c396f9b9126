use super::*;
use crate::bed::{DEADLINE, bare};

#[tokio::test]
async fn eight_installers_at_once_install_once() {
    let bed = bare("saga_schema_eight").await;

    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let pool = bed.pool.clone();
        tasks.spawn(async move { install(&mut pool.acquire().await.unwrap()).await });
    }
    let results = tokio::time::timeout(DEADLINE, tasks.join_all()).await.expect("they end");

    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(
        bed.count("SELECT count(*) FROM tailrace.saga_version").await,
        MIGRATIONS.len() as i64
    );
}

#[tokio::test]
async fn a_missing_or_old_schema_says_how_to_mend_it() {
    let bed = bare("saga_schema_missing").await;
    let mut conn = bed.pool.acquire().await.unwrap();

    let missing = check(&mut conn).await.unwrap_err();
    install(&mut conn).await.unwrap();
    check(&mut conn).await.unwrap();
    bed.execute("UPDATE tailrace.saga_version SET version = version - 100").await;
    let old = check(&mut conn).await.unwrap_err();

    for error in [missing, old] {
        assert_eq!(error.kind(), Kind::Schema);
        assert!(error.to_string().contains("schema::install"), "{error}");
    }
}

#[tokio::test]
async fn a_migration_that_is_missing_below_others_is_found_and_applied() {
    let bed = bare("saga_schema_gap").await;
    let mut conn = bed.pool.acquire().await.unwrap();
    for migration in MIGRATIONS.iter().filter(|migration| migration.version != 4) {
        sqlx::raw_sql(migration.sql).execute(&mut *conn).await.unwrap();
    }

    let gap = check(&mut conn).await.unwrap_err();
    install(&mut conn).await.unwrap();

    assert!(gap.to_string().contains("0004_story.sql is missing"), "{gap}");
    check(&mut conn).await.unwrap();
    assert_eq!(bed.count("SELECT count(*) FROM tailrace.saga_story").await, 0);
}
