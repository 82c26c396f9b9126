//! What runs beside the handlers.

use super::*;

#[derive(Debug, thiserror::Error)]
#[error("the table of the handlers is missing")]
struct Missing;

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_fails_ends_the_consumer_before_its_first_record() {
    let bed = bed("company_look").await;
    let topic = bed.topic("company_look", 1).await;
    produce(bed.brokers(), &topic, &records(1, 1));
    let consumer = consumer(&bed, &topic, &topic).starts_if(async |_| Err(Missing.into()));

    let error = start(consumer).end().await;

    assert_eq!(error.kind(), Kind::Config);
    assert!(error.into_source().unwrap().is::<Missing>());
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chore_is_done_while_the_consumer_runs_and_comes_to_its_end_with_it() {
    let bed = bed("company_chore").await;
    let topic = bed.topic("company_chore", 1).await;
    bed.execute("CREATE TABLE chore (what text)").await;
    let consumer = consumer(&bed, &topic, &topic).beside(async |pool: PgPool, mut ends: Ending| {
        let begun = sqlx::query("INSERT INTO chore VALUES ('begun')");
        begun.execute(&pool).await.unwrap();
        ends.wait().await;
        let ended = sqlx::query("INSERT INTO chore VALUES ('ended')");
        ended.execute(&pool).await.unwrap();
    });

    let running = start(consumer);
    let begun = "SELECT count(*) FROM chore";
    until(async || bed.count(begun).await == 1).await;
    running.stop().await.unwrap();

    assert_eq!(bed.count(begun).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chore_that_panics_ends_the_consumer() {
    let bed = bed("company_panic").await;
    let topic = bed.topic("company_panic", 1).await;
    let go = Arc::new(Semaphore::new(0));
    let waits = Arc::clone(&go);
    let consumer = consumer(&bed, &topic, &topic).beside(move |_, _| {
        let waits = Arc::clone(&waits);
        async move {
            let _permit = waits.acquire().await.unwrap();
            panic!("the chore breaks off")
        }
    });

    let running = start(consumer);
    until(async || running.health.faults().is_empty()).await;
    go.add_permits(1);

    assert_eq!(running.end().await.kind(), Kind::Internal);
}
