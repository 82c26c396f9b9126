use std::time::Duration;

use tailrace_outbox::Store;

use super::*;
use crate::bed::{DEADLINE, installed};
use crate::correlation::{Operation, SagaId};

fn correlation(saga: Uuid, operation: Operation, epoch: u32) -> Correlation {
    Correlation {
        saga: SagaId::from_uuid(saga),
        definition: "create-order/4".into(),
        step: "reserve-credit".into(),
        operation,
        epoch: Epoch::new(epoch),
    }
}

fn reply() -> Message {
    Message::builder("replies", "reply.v1").source("/customers").json(&7).build().unwrap()
}

#[tokio::test]
async fn what_was_done_for_a_step_is_read_as_it_was_stored() {
    let bed = installed("barrier_rows").await;
    let outbox = Outbox::new(Store::Wal);
    let action = correlation(Uuid::now_v7(), Operation::Action, 1);
    let past = Past { epoch: Epoch::FIRST, ended: Ended::Refused };
    let stored = Barrier { action: Some(past), compensation: Some(Epoch::new(2)) };

    let mut tx = bed.begin().await;
    let fresh = lock(&mut tx, &action, None).await.unwrap();
    remember(&mut tx, &outbox, &action, stored, Some(b"{}"), &reply()).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = bed.begin().await;
    let held = lock(&mut tx, &action, None).await.unwrap();

    assert_eq!((fresh.barrier, fresh.reply), (Barrier::default(), None));
    assert_eq!((held.barrier, held.reply.as_deref()), (stored, Some(&b"{}"[..])));
    assert!(!held.late && !held.forgotten);
}

#[tokio::test]
async fn a_compensation_waits_for_its_action_and_sees_what_it_did() {
    let bed = installed("barrier_waits").await;
    let outbox = Outbox::new(Store::Wal);
    let action = correlation(Uuid::now_v7(), Operation::Action, 1);
    let compensation = Correlation { operation: Operation::Compensation, ..action.clone() };
    let done = Barrier {
        action: Some(Past { epoch: Epoch::FIRST, ended: Ended::Done }),
        compensation: None,
    };

    let mut acting = bed.begin().await;
    lock(&mut acting, &action, None).await.unwrap();
    let mut other = bed.begin().await;
    let undoing =
        tokio::spawn(async move { lock(&mut other, &compensation, None).await.unwrap().barrier });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND wait_event_type = 'Lock'";
    let begun = async { while bed.count(waiting).await == 0 {} };
    tokio::time::timeout(DEADLINE, begun).await.expect("the compensation waits");
    remember(&mut acting, &outbox, &action, done, None, &reply()).await.unwrap();
    acting.commit().await.unwrap();

    assert_eq!(undoing.await.unwrap(), done);
}

#[tokio::test]
async fn a_deadline_is_judged_by_the_clock_of_the_database() {
    let bed = installed("barrier_late").await;
    let mut tx = bed.begin().await;
    let check = async |conn: &mut PgConnection, deadline, late| {
        let action = correlation(Uuid::now_v7(), Operation::Action, 1);
        assert_eq!(lock(conn, &action, Some(deadline)).await.unwrap().late, late);
    };

    check(&mut tx, SystemTime::now() - Duration::from_secs(60), true).await;
    check(&mut tx, SystemTime::now() + Duration::from_secs(60), false).await;
}

#[tokio::test]
async fn a_saga_whose_rows_may_be_gone_is_known_as_such() {
    let bed = installed("barrier_forgotten").await;
    let now = SystemTime::now();
    let day = Duration::from_secs(86_400);
    let old = correlation(first_id_of(now - 40 * day), Operation::Action, 1);
    let old = Correlation {
        saga: SagaId::from_uuid(Uuid::from_u128(old.saga.as_uuid().as_u128() | 0x7000 << 64)),
        ..old
    };
    let young = correlation(Uuid::now_v7(), Operation::Action, 1);
    // Less than any id of version 7 of these days, by chance.
    let foreign = Uuid::parse_str("00055044-10b1-426f-9247-bb680e5fe0c8").unwrap();
    let foreign = correlation(foreign, Operation::Action, 1);
    let mut conn = bed.pool.acquire().await.unwrap();
    for saga in [&old, &young, &foreign] {
        lock(&mut conn, saga, None).await.unwrap();
    }

    let deleted = forget(&mut conn, now - 30 * day, 1000).await.unwrap();
    let again = forget(&mut conn, now - 35 * day, 1000).await.unwrap();

    assert_eq!((deleted, again), (1, 0));
    assert!(lock(&mut conn, &old, None).await.unwrap().forgotten);
    assert!(!lock(&mut conn, &young, None).await.unwrap().forgotten);
    assert!(!lock(&mut conn, &foreign, None).await.unwrap().forgotten);
}
