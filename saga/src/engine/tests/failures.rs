//! Local steps that fail.

use tailrace_idempotency::BoxError;

use super::*;
use crate::instance::{Cause as Why, StepStatus, Trouble};
use crate::retry::Retry;

const PAUSE: Duration = Duration::from_millis(200);

/// Fails as long as the table says so.
async fn flaky(cx: LocalCx<'_>, _: Order) -> Result<Result<(), String>, BoxError> {
    sqlx::query("INSERT INTO approved (saga) VALUES ($1)")
        .bind(cx.saga.as_uuid())
        .execute(&mut *cx.conn)
        .await?;
    fail(cx).await.map(Ok)
}

async fn undo(cx: LocalCx<'_>, _: Order) -> Result<(), BoxError> {
    fail(cx).await
}

async fn fail(cx: LocalCx<'_>) -> Result<(), BoxError> {
    let fails: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM fails WHERE step = $1)")
        .bind(format!("{} {}", cx.of.operation.as_str(), cx.of.step))
        .fetch_one(cx.conn)
        .await?;
    if fails { Err("the file is\nlocked".into()) } else { Ok(()) }
}

/// A saga with a local step that fails twice at most, and a pivot that somebody else has to do.
async fn flaky_shop(name: &str, fails: &str) -> (Shop, SagaId) {
    let retry = Retry::every(PAUSE).attempts(2);
    let saga = Saga::<Order>::define("flaky", 1)
        .step("flaky", local(flaky).undo(undo))
        .retry(retry)
        .retry_compensation(retry)
        .compensate()
        .pivot("reserve-credit", ReserveCredit::of)
        .build()
        .unwrap();
    let bed = installed(name).await;
    bed.execute("CREATE TABLE approved (saga uuid)").await;
    bed.execute("CREATE TABLE fails (step text)").await;
    sqlx::query("INSERT INTO fails VALUES ($1)").bind(fails).execute(&bed.pool).await.unwrap();
    let shop = Shop { bed, core: core_of(vec![saga.definition().clone()]) };
    let id = new_id();
    let mut tx = shop.bed.begin().await;
    sagas(&shop).start(&mut tx, &saga, id, &order()).await.unwrap();
    tx.commit().await.unwrap();
    (shop, id)
}

fn failed() -> Trouble {
    Trouble::Failed { error: "the file is locked".to_owned() }
}

#[tokio::test]
async fn a_local_step_that_fails_runs_again_after_its_pause_and_not_after_its_time_out() {
    let (shop, id) = flaky_shop("engine_failed_once", "action flaky").await;
    let failing = shop.find(id).await;
    shop.bed.execute("DELETE FROM fails").await;

    shop.keep_time(PAUSE).await;
    let then = shop.find(id).await;
    // That of the time-out says nothing any more.
    shop.keep_time(Duration::from_secs(61)).await;

    let of = |saga: &Instance| {
        let step = saga.step("flaky").unwrap();
        (step.status(), step.attempts(), step.trouble().cloned())
    };
    assert_eq!(of(&failing), (StepStatus::Acting, 1, Some(failed())));
    assert_eq!(of(&then), (StepStatus::Done, 2, None));
    assert_eq!(of(&shop.find(id).await), (StepStatus::Done, 2, None));
    assert_eq!(shop.bed.count("SELECT count(*) FROM approved").await, 1);
}

#[tokio::test]
async fn a_saga_is_undone_when_the_last_attempt_of_a_local_step_has_failed() {
    let (shop, id) = flaky_shop("engine_failed_always", "action flaky").await;

    shop.keep_time(PAUSE).await;
    shop.keep_time(PAUSE).await;

    let saga = shop.find(id).await;
    assert_eq!(saga.status(), Status::Compensated);
    assert_eq!(saga.cause(), Some(&Why::Failed { step: "flaky".into() }));
    assert_eq!(shop.bed.count("SELECT count(*) FROM approved").await, 0);
}

#[tokio::test]
async fn a_local_compensation_that_always_fails_waits_for_a_person_who_is_told_why() {
    let (shop, id) = flaky_shop("engine_failed_undo", "compensation flaky").await;
    shop.tell(vec![reply(id, Answer::Refused, json!({ "missing_cents": 3 }))]).await;

    shop.keep_time(PAUSE).await;
    shop.keep_time(PAUSE).await;

    let saga = shop.find(id).await;
    let step = saga.step("flaky").unwrap();
    assert_eq!((saga.status(), step.status()), (Status::Parked, StepStatus::StuckCompensating));
    assert_eq!((step.attempts(), step.trouble()), (2, Some(&failed())));
}
