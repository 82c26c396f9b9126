//! What loses its transaction each time, and rounds that end.

use tailrace_idempotency::BoxError;

use super::*;

/// A local step that does what a table says: it works, fails, or always meets what the database gives transactions up for.
async fn by_mood(cx: LocalCx<'_>, _: Order) -> Result<Result<(), String>, BoxError> {
    let mood: String = sqlx::query_scalar("SELECT mood FROM mood WHERE saga = $1")
        .bind(cx.saga.as_uuid())
        .fetch_one(&mut *cx.conn)
        .await?;
    match &*mood {
        "works" => Ok(Ok(())),
        "fails" => Err("planted".into()),
        _ => {
            let cancelled = "DO $$ BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '57014'; END $$";
            sqlx::query(cancelled).execute(&mut *cx.conn).await?;
            Ok(Ok(()))
        }
    }
}

/// Sagas that wait for the timer of their local step, or for what they are told then.
async fn moody(name: &str, sagas: usize, mood: &'static str) -> (Shop, Saga<Order>, Vec<SagaId>) {
    let bed = installed(name).await;
    bed.execute("CREATE TABLE mood (saga uuid PRIMARY KEY, mood text)").await;
    let saga = Saga::<Order>::define("create-order", 1)
        .step("reserve-credit", ReserveCredit::of)
        .compensate()
        .pivot("approve", local(by_mood))
        .timeout(Duration::from_secs(20), Forward::Retry)
        .build()
        .unwrap();
    let shop = Shop { bed, core: core_of(vec![saga.definition().clone()]) };
    let mut ids = Vec::new();
    let mut conn = shop.conn().await;
    for _ in 0..sagas {
        ids.push(new_id());
        let id = ids[ids.len() - 1];
        self::sagas(&shop).start(&mut conn, &saga, id, &order()).await.unwrap();
        let told = "INSERT INTO mood VALUES ($1, $2)";
        let told = sqlx::query(told).bind(id.as_uuid()).bind(mood).execute(&mut *conn).await;
        told.unwrap();
    }
    drop(conn);
    (shop, saga, ids)
}

impl Shop {
    async fn completed(&self, ids: &[SagaId]) -> Vec<bool> {
        let mut completed = Vec::new();
        for id in ids {
            completed.push(self.status(*id).await == Status::Completed);
        }
        completed
    }

    /// All but one work from now on.
    async fn spoil(&self, saga: SagaId) {
        self.bed.execute("UPDATE mood SET mood = 'works'").await;
        sqlx::query("UPDATE mood SET mood = 'is cancelled' WHERE saga = $1")
            .bind(saga.as_uuid())
            .execute(&self.bed.pool)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_local_step_that_always_loses_its_transaction_holds_up_no_timer_but_its_own() {
    let (shop, _, ids) = moody("engine_lost_timer", 7, "fails").await;
    shop.tell(ids.iter().map(|id| reserved(*id, 7)).collect()).await;
    shop.spoil(ids[3]).await;
    // All are due by then, and what is put off is not.
    let now = SystemTime::now() + Duration::from_secs(3600);

    let mut portion = time::Portion::default();
    let left = time::take(&shop.core, &shop.bed.pool, time::Due::Timers, &mut portion, now).await;

    assert_eq!(left.unwrap(), time::Left::Nothing);
    let all_but_one: Vec<bool> = (0..7).map(|at| at != 3).collect();
    assert_eq!(shop.completed(&ids).await, all_but_one);
    let put_off: bool = sqlx::query_scalar(
        "SELECT bool_and(due_at > to_timestamp($1 / 1000000.0)) FROM tailrace.saga_timer WHERE saga_id = $2",
    )
    .bind(store::micros(now))
    .bind(ids[3].as_uuid())
    .fetch_one(&shop.bed.pool)
    .await
    .unwrap();
    assert!(put_off);
}

#[tokio::test]
async fn an_input_that_always_loses_its_transaction_holds_up_no_other_one() {
    let (shop, _, ids) = moody("engine_lost_input", 7, "works").await;
    shop.spoil(ids[3]).await;
    let mut conn = shop.conn().await;
    let waits = |id: &SagaId| {
        let Told { saga, input, cause, .. } = reserved(*id, 7);
        store::Deferred { saga, input, cause, reason: Reason::Told, ticket: None }
    };
    store::defer(&mut conn, &ids.iter().map(waits).collect::<Vec<_>>(), 60.0).await.unwrap();
    drop(conn);

    let (mut portion, now) = (time::Portion::default(), SystemTime::now());
    let left =
        time::take(&shop.core, &shop.bed.pool, time::Due::Inputs(Look::Ready), &mut portion, now)
            .await;

    assert_eq!(left.unwrap(), time::Left::Nothing);
    let all_but_one: Vec<bool> = (0..7).map(|at| at != 3).collect();
    assert_eq!(shop.completed(&ids).await, all_but_one);
    let waits = "SELECT count(*) FROM tailrace.saga_input WHERE reason = 'failed' AND attempts > 0";
    assert_eq!(shop.bed.count(waits).await, 1);
}

#[tokio::test]
async fn a_round_ends_however_much_is_due() {
    let (shop, ..) = moody("engine_bounded", 1, "works").await;
    // They say nothing, and are taken all the same.
    shop.bed
        .execute(
            "INSERT INTO tailrace.saga_timer (due_at, saga_id, tick)
             SELECT now() - interval '1 hour', saga_id, tick FROM tailrace.saga_timer, generate_series(1, 4100)",
        )
        .await;
    let due = "SELECT count(*) FROM tailrace.saga_timer WHERE due_at < now()";
    let (mut portion, now) = (time::Portion::default(), SystemTime::now());
    let mut round = async || {
        let pool = &shop.bed.pool;
        time::take(&shop.core, pool, time::Due::Timers, &mut portion, now).await.unwrap()
    };

    let first = (round().await, shop.bed.count(due).await);
    let second = (round().await, shop.bed.count(due).await);

    let bound = i64::from(time::TAKE_MAX * time::PORTIONS_MAX);
    assert_eq!(first, (time::Left::More, 4100 - bound));
    assert_eq!(second, (time::Left::Nothing, 0));
}
