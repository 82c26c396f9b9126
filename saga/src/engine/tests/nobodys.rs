//! What nobody can be told, and timers that nobody can run.

use super::*;

#[tokio::test]
async fn what_nobody_can_be_told_is_not_read_with_what_is_ready() {
    let shop = shop("engine_ready").await;
    let ids = shop.started(1).await;
    let mut tx = shop.bed.begin().await;
    sqlx::query(
        "INSERT INTO tailrace.saga_input (saga_id, input, reason)
         SELECT gen_random_uuid(), '{}', 'unknown' FROM generate_series(1, 3000)",
    )
    .execute(&mut *tx)
    .await
    .unwrap();
    sagas(&shop).cancel(&mut tx, ids[0]).await.unwrap();
    sqlx::query("ANALYZE tailrace.saga_input").execute(&mut *tx).await.unwrap();
    let read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables
        WHERE schemaname = 'tailrace' AND relname = 'saga_input'";
    let read = async |tx: &mut PgConnection| -> i64 {
        sqlx::query_scalar(read).fetch_one(tx).await.unwrap()
    };
    let mine = shop.core.registry.identities();
    let before = read(&mut tx).await;

    let ready = store::waiting(&mut tx, &mine, Look::Ready, 200).await.unwrap();
    let rows = read(&mut tx).await - before;
    let parked = store::waiting(&mut tx, &mine, Look::Parked, 200).await.unwrap();

    assert_eq!((ready.len(), parked.len()), (1, 0));
    assert!(rows < 10, "{rows} rows were read for one");
}

#[tokio::test]
async fn timers_that_nobody_can_run_are_due_again_later_and_no_other_ones() {
    let shop = shop("engine_nobodys").await;
    let ids = shop.started(3).await;
    let mut conn = shop.conn().await;
    shop.core.registry.beat(&mut conn, SILENCE_MAX).await.unwrap();
    let now = "UPDATE tailrace.saga_timer SET due_at = now() - interval '1 s'";
    shop.bed.execute(now).await;
    for (saga, change) in [(ids[0], "version = 9"), (ids[1], "version = 9, status = 'completed'")] {
        let changing = format!("UPDATE tailrace.saga_instance SET {change} WHERE id = '{saga}'");
        sqlx::raw_sql(sqlx::AssertSqlSafe(changing)).execute(&mut *conn).await.unwrap();
    }

    let put_off = store::put_off_nobodys_timers(&mut conn, SILENCE_MAX, 10).await.unwrap();
    let again = store::put_off_nobodys_timers(&mut conn, SILENCE_MAX, 10).await.unwrap();

    assert_eq!((put_off, again), (1, 0));
    let due: Vec<Uuid> =
        sqlx::query_scalar("SELECT saga_id FROM tailrace.saga_timer WHERE due_at <= now()")
            .fetch_all(&mut *conn)
            .await
            .unwrap();
    assert_eq!(due.len(), 2);
    assert!(!due.contains(ids[0].as_uuid()));
}
