use super::super::tests::{order, trip};
use super::*;
use crate::bed::{Bed, DEADLINE, installed};

const ROWS: &str = "SELECT count(*) FROM tailrace.saga_choreography";
const UNDONE: &str = "SELECT count(*) FROM tailrace.saga_choreography WHERE status = 'undone'";

async fn started(bed: &Bed, choreography: &Choreography, within: &str) -> (Starter, SagaId) {
    let service = choreography.map().start().map(|(_, start)| start.service.clone()).unwrap();
    let starter = choreography.service::<()>(&service).starter();
    let mut tx = bed.begin().await;
    let saga = starter.start(&mut tx, &7).await.unwrap();
    sqlx::query("UPDATE tailrace.saga_choreography SET due_at = now() + $1::interval")
        .bind(within)
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    (starter, saga)
}

#[tokio::test]
async fn a_saga_that_is_not_committed_was_never_started() {
    let bed = installed("choreography_start").await;
    let choreography = order().build().unwrap();
    let starter = choreography.service::<()>("orders").starter();
    let other = choreography.service::<()>("customers").starter();

    let mut tx = bed.begin().await;
    starter.start(&mut tx, &7).await.unwrap();
    tx.rollback().await.unwrap();
    let mut tx = bed.begin().await;
    let refused = other.start(&mut tx, &7).await.unwrap_err();

    assert_eq!(bed.count(ROWS).await, 0);
    assert_eq!(bed.count("SELECT count(*) FROM tailrace.saga_barrier").await, 0);
    assert!(refused.to_string().contains("orders starts it, and not customers"), "{refused}");
}

#[tokio::test]
async fn a_key_whose_saga_does_not_begin_is_free_in_the_same_transaction() {
    let bed = installed("choreography_key_free").await;
    let starter = order().build().unwrap().service::<()>("orders").starter();
    let without_text_keys = std::collections::BTreeMap::from([((7, 7), 7)]);
    let mut tx = bed.begin().await;

    let refused = starter.start_once(&mut tx, "order 7", &without_text_keys, Vec::new()).await;
    let again = starter.start_once(&mut tx, "order 7", &7, Vec::new()).await;
    tx.commit().await.unwrap();

    assert_eq!(refused.unwrap_err().kind(), Kind::Unreadable);
    assert_eq!(again.unwrap().1, Started::Now);
    assert_eq!(bed.count(ROWS).await, 1);
}

#[tokio::test]
async fn a_deadline_is_taken_once_and_only_when_it_has_passed() {
    let bed = installed("choreography_due").await;
    let choreography = order().build().unwrap();
    let (starter, _) = started(&bed, &choreography, "1 hour").await;
    let mut conn = bed.pool.acquire().await.unwrap();

    assert_eq!(starter.expire(&mut conn).await.unwrap(), 0);
    bed.execute("UPDATE tailrace.saga_choreography SET due_at = now() - interval '1 second'").await;
    let mut other = bed.begin().await;
    sqlx::query("SELECT FROM tailrace.saga_choreography FOR UPDATE")
        .execute(&mut *other)
        .await
        .unwrap();
    assert_eq!(starter.expire(&mut conn).await.unwrap(), 0);
    other.rollback().await.unwrap();

    assert_eq!(starter.expire(&mut conn).await.unwrap(), 1);
    assert_eq!(starter.expire(&mut conn).await.unwrap(), 0);
}

#[tokio::test]
async fn an_end_that_is_heard_before_its_start_is_visible_waits_for_that() {
    let bed = installed("choreography_early").await;
    let choreography = order().build().unwrap();
    let starter = choreography.service::<()>("orders").starter();
    let mut starts = bed.begin().await;
    let saga = starter.start(&mut starts, &7).await.unwrap();

    let mut hearing = bed.begin().await;
    let heard = tokio::spawn(async move {
        fails(&mut hearing, saga).await.unwrap();
        hearing.commit().await.unwrap();
    });
    let waits = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let somebody_waits = async { while bed.count(waits).await == 0 {} };
    tokio::time::timeout(DEADLINE, somebody_waits).await.unwrap();
    starts.commit().await.unwrap();
    heard.await.unwrap();
    assert_eq!(bed.count(UNDONE).await, 1);

    // One that was forgotten leaves nothing.
    bed.execute("DELETE FROM tailrace.saga_choreography").await;
    fails(&mut *bed.begin().await, saga).await.unwrap();
    assert_eq!(bed.count(ROWS).await, 0);
}

#[tokio::test]
async fn a_saga_that_hangs_behind_its_pivot_is_overdue_until_it_ends() {
    let bed = installed("choreography_overdue").await;
    let choreography = order().build().unwrap();
    let (starter, saga) = started(&bed, &choreography, "-1 second").await;
    let mut conn = bed.pool.acquire().await.unwrap();

    starter.expire(&mut conn).await.unwrap();
    let overdue = starter.overdue(&mut conn, 10).await.unwrap();
    hears(&mut conn, choreography.map(), saga, "order.approved").await.unwrap();

    assert_eq!(overdue.iter().map(|overdue| overdue.saga).collect::<Vec<_>>(), [saga]);
    assert_eq!(starter.overdue(&mut conn, 10).await.unwrap(), []);
    let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
    assert_eq!(forget(&mut conn, tomorrow, 10).await.unwrap(), 1);
    assert_eq!(bed.count(ROWS).await, 0);
}

#[tokio::test]
async fn without_a_pivot_the_deadline_and_the_ends_race_at_one_row() {
    let bed = installed("choreography_race").await;
    let choreography = trip().build().unwrap();
    let (starter, saga) = started(&bed, &choreography, "-1 second").await;
    let mut conn = bed.pool.acquire().await.unwrap();

    hears(&mut conn, choreography.map(), saga, "flight.booked").await.unwrap();
    assert_eq!(starter.expire(&mut conn).await.unwrap(), 1);
    hears(&mut conn, choreography.map(), saga, "insurance.noted").await.unwrap();

    assert_eq!(bed.count(UNDONE).await, 1);
    let (_, quick) = started(&bed, &choreography, "-1 second").await;
    hears(&mut conn, choreography.map(), quick, "flight.booked").await.unwrap();
    hears(&mut conn, choreography.map(), quick, "insurance.noted").await.unwrap();
    assert_eq!(starter.expire(&mut conn).await.unwrap(), 0);
    fails(&mut conn, quick).await.unwrap();
    assert_eq!(bed.count(UNDONE).await, 1);
}
