use std::time::Duration;

use sqlx::Connection as _;

use super::*;
use crate::bed::installed;
use crate::correlation::SagaId;
use crate::definition::Definition;
use crate::fixture::{create_order, order};
use crate::machine;
use crate::testing::Scenario;

/// Beyond as many runs Postgres may keep a plan: `choose_custom_plan` in `src/backend/utils/cache/plancache.c`.
const RUNS: usize = 8;

fn changed(instances: &[Instance], begun: Option<Cause>) -> Vec<Changed> {
    let changed =
        |instance: &Instance| Changed { instance: instance.clone(), begun: begun.clone() };
    instances.iter().map(changed).collect()
}

fn running(count: usize) -> Vec<Instance> {
    let given = Scenario::given(&create_order(), &order());
    (0..count).map(|_| Instance { id: SagaId::mint(), ..given.instance().clone() }).collect()
}

/// All that an engine does with every batch, and ten times a second.
async fn engine(conn: &mut PgConnection, definition: &Definition, sagas: &[Instance]) {
    let mine = [definition.identity().clone()];
    let ids: Vec<SagaId> = sagas.iter().map(Instance::id).collect();
    assert_eq!(lock(conn, &ids).await.unwrap().len(), sagas.len());
    write(conn, &changed(sagas, None), &[], &[]).await.unwrap();
    let late = SystemTime::now() + Duration::from_secs(1_000);
    take_timers(conn, &mine, late, 200).await.unwrap();
    waiting(conn, &mine, Look::Ready, 200).await.unwrap();
    waiting(conn, &mine, Look::Parked, 200).await.unwrap();
}

async fn read_from_end_to_end(conn: &mut PgConnection) -> i64 {
    sqlx::query_scalar(
        "SELECT seq_tup_read FROM pg_stat_xact_user_tables
         WHERE schemaname = 'tailrace' AND relname = 'saga_instance'",
    )
    .fetch_one(conn)
    .await
    .unwrap()
}

#[tokio::test]
async fn plans_that_were_made_for_an_empty_store_read_no_table_from_end_to_end() {
    let bed = installed("store_plans").await;
    let definition = create_order().definition().clone();
    let sagas = running(1_000);
    let (few, many) = sagas.split_at(3);
    let mut conn = bed.pool.acquire().await.unwrap();

    write(&mut conn, &changed(few, Some(Cause::new())), &[], &[]).await.unwrap();
    for _ in 0..RUNS {
        engine(&mut conn, &definition, few).await;
    }
    write(&mut conn, &changed(many, Some(Cause::new())), &[], &[]).await.unwrap();
    let told: Vec<Deferred> = sagas
        .iter()
        .take(20)
        .map(|saga| Deferred {
            saga: saga.id(),
            input: Input::Cancel,
            cause: Cause::new(),
            reason: Reason::Told,
            ticket: None,
        })
        .collect();
    defer(&mut conn, &told, 0.0).await.unwrap();
    let mut tx = conn.begin().await.unwrap();
    engine(&mut tx, &definition, &sagas[..20]).await;

    assert_eq!(read_from_end_to_end(&mut tx).await, 0);
}

#[tokio::test]
async fn inputs_and_timers_of_sagas_that_somebody_has_are_passed_over() {
    let bed = installed("store_passed_over").await;
    let definition = create_order().definition().clone();
    let mine = [definition.identity().clone()];
    let sagas = running(2);
    let mut conn = bed.pool.acquire().await.unwrap();
    let now = SystemTime::now();
    let data = serde_json::to_value(order()).unwrap();
    let begun = Instance::new(&definition, SagaId::mint(), data, now);
    let tick =
        machine::step(&definition, &begun, Input::Start, now).unwrap().timers[0].tick.clone();
    let timers: Vec<(SagaId, Timer)> =
        sagas.iter().map(|saga| (saga.id(), Timer { due: now, tick: tick.clone() })).collect();
    write(&mut conn, &changed(&sagas, Some(Cause::new())), &[], &timers).await.unwrap();

    let mut elsewhere = bed.begin().await;
    lock(&mut elsewhere, &[sagas[0].id()]).await.unwrap();
    let mut tx = bed.begin().await;
    let taken = take_timers(&mut tx, &mine, now + Duration::from_secs(1), 200).await.unwrap();

    let taken: Vec<SagaId> = taken.into_iter().map(|(saga, _)| saga).collect();
    assert_eq!(taken, [sagas[1].id()]);
}
