use std::time::Duration;

use tailrace_outbox::Store;

use super::*;
use crate::barrier::many::Many;
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
    let stored = Barrier { action: Some(past), compensation: Some(Epoch::new(2)), undoing: None };

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
        ..Barrier::default()
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
    // The horizon never sinks: what is gone does not come back.
    let again = forget(&mut conn, now - 45 * day, 1000).await.unwrap();

    assert_eq!((deleted, again), (1, 0));
    assert!(lock(&mut conn, &old, None).await.unwrap().forgotten);
    assert!(!lock(&mut conn, &young, None).await.unwrap().forgotten);
    assert!(!lock(&mut conn, &foreign, None).await.unwrap().forgotten);
    let commands = [&old, &young, &foreign].map(crate::barrier::many::alone);
    let rows = Many::lock(&mut conn, &commands).await.unwrap();
    let forgotten = commands.map(|command| rows.held(&command).unwrap().forgotten);
    assert_eq!(forgotten, [true, false, false]);
}

/// The id of a saga that began so long ago.
fn began_before(age: Duration) -> Uuid {
    Uuid::from_u128(first_id_of(SystemTime::now() - age).as_u128() | 0x7000 << 64)
}

#[tokio::test]
async fn who_makes_a_call_may_make_it_anew_and_everybody_else_waits_and_its_row_is_not_forgotten() {
    let bed = installed("barrier_caller").await;
    let saga = began_before(Duration::from_secs(7200));
    let compensation = correlation(saga, Operation::Compensation, 2);
    let asked = Request { operation: Operation::Compensation, epoch: Epoch::new(2), late: false };
    let done = Past { epoch: Epoch::FIRST, ended: Ended::Done };
    let under_way =
        Barrier { action: Some(done), compensation: None, undoing: Some(Epoch::new(2)) };
    let (caller, other): (MessageId, MessageId) =
        ("the one".parse().unwrap(), "other".parse().unwrap());
    let mut conn = bed.pool.acquire().await.unwrap();
    lock(&mut conn, &compensation, None).await.unwrap();

    calls(&mut conn, &compensation, under_way, caller, Some(b"7")).await.unwrap();
    let deleted =
        forget(&mut conn, SystemTime::now() - Duration::from_secs(3600), 10).await.unwrap();
    let held = lock(&mut conn, &compensation, None).await.unwrap();

    assert_eq!((deleted, held.barrier, held.reply.as_deref()), (0, under_way, Some(&b"7"[..])));
    assert_eq!(held.decide(asked, caller), Decision::Run);
    assert_eq!(held.decide(asked, other), Decision::Wait);
    let later = Request { epoch: Epoch::new(3), ..asked };
    assert_eq!(held.decide(later, caller), Decision::Wait);
}

#[tokio::test]
async fn what_is_stored_of_one_step_is_of_no_other_and_a_call_is_over_with_it() {
    let bed = installed("barrier_steps").await;
    let outbox = Outbox::new(Store::Wal);
    let saga = Uuid::now_v7();
    let reserve = correlation(saga, Operation::Compensation, 2);
    let pay = Correlation { step: "pay".into(), ..reserve.clone() };
    let other = Correlation { saga: SagaId::mint(), ..reserve.clone() };
    let done = Past { epoch: Epoch::FIRST, ended: Ended::Done };
    let acted = Barrier { action: Some(done), ..Barrier::default() };
    let under_way = Barrier { undoing: Some(Epoch::new(2)), ..acted };
    let undone = Barrier { compensation: Some(Epoch::new(2)), ..acted };
    let caller: MessageId = "the one".parse().unwrap();
    let mut conn = bed.pool.acquire().await.unwrap();
    for step in [&reserve, &pay, &other] {
        lock(&mut conn, step, None).await.unwrap();
    }

    remember(&mut conn, &outbox, &reserve, acted, Some(b"41"), &reply()).await.unwrap();
    calls(&mut conn, &reserve, under_way, caller, None).await.unwrap();
    let calling = lock(&mut conn, &reserve, None).await.unwrap();
    remember(&mut conn, &outbox, &reserve, undone, Some(b"41"), &reply()).await.unwrap();
    let over = lock(&mut conn, &reserve, None).await.unwrap();

    let kept = |held: &Held| (held.barrier, held.reply.clone(), held.caller.clone());
    let reply = Some(b"41".to_vec());
    assert_eq!(kept(&calling), (under_way, reply.clone(), Some(caller.to_string())));
    assert_eq!(kept(&over), (undone, reply, None));
    for step in [&pay, &other] {
        let held = lock(&mut conn, step, None).await.unwrap();
        assert_eq!(kept(&held), (Barrier::default(), None, None));
    }
}

#[tokio::test]
async fn rows_are_forgotten_in_portions_the_oldest_first_and_none_whose_action_is_under_way() {
    let bed = installed("barrier_portions").await;
    let hours = |hours: u64| began_before(Duration::from_secs(3600 * hours));
    let sagas = [hours(9), hours(8), hours(7), hours(6)];
    let under_way = Past { epoch: Epoch::FIRST, ended: Ended::Calling };
    let calling = Barrier { action: Some(under_way), ..Barrier::default() };
    let mut conn = bed.pool.acquire().await.unwrap();
    for saga in sagas {
        lock(&mut conn, &correlation(saga, Operation::Action, 1), None).await.unwrap();
    }
    let first = correlation(sagas[0], Operation::Action, 1);
    calls(&mut conn, &first, calling, "the one".parse().unwrap(), None).await.unwrap();

    let before = SystemTime::now() - Duration::from_secs(3600);
    let deleted = forget(&mut conn, before, 2).await.unwrap();
    let left = "SELECT saga_id FROM tailrace.saga_barrier ORDER BY saga_id";
    let left: Vec<Uuid> = sqlx::query_scalar(left).fetch_all(&mut *conn).await.unwrap();
    let rest = forget(&mut conn, before, 2).await.unwrap();

    assert_eq!((deleted, rest), (2, 1));
    assert_eq!(left, [sagas[0], sagas[3]]);
    assert_eq!(lock(&mut conn, &first, None).await.unwrap().barrier, calling);
}

/// The command has begun its statement, and waits for the row, before the horizon rises.
#[tokio::test]
async fn a_command_that_waits_for_a_row_that_is_being_forgotten_knows_that_it_was() {
    let bed = installed("barrier_forgetting").await;
    let old = correlation(began_before(Duration::from_secs(7200)), Operation::Action, 1);
    let mut conn = bed.pool.acquire().await.unwrap();
    lock(&mut conn, &old, None).await.unwrap();
    let mut forgetting = bed.begin().await;
    forget(&mut forgetting, SystemTime::now() - Duration::from_secs(3600), 10).await.unwrap();

    let mut other = bed.begin().await;
    let command = old.clone();
    let asking = tokio::spawn(async move { lock(&mut other, &command, None).await.unwrap() });
    let (mut another, command) = (bed.begin().await, crate::barrier::many::alone(&old));
    let asking_many = tokio::spawn(async move {
        let rows = Many::lock(&mut another, std::slice::from_ref(&command)).await.unwrap();
        let held = rows.held(&command).unwrap();
        another.rollback().await.unwrap();
        held
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND wait_event_type = 'Lock'";
    let begun = async { while bed.count(waiting).await < 2 {} };
    tokio::time::timeout(DEADLINE, begun).await.expect("the commands wait");
    forgetting.commit().await.unwrap();

    assert!(asking.await.unwrap().forgotten);
    assert!(asking_many.await.unwrap().forgotten);
}

#[tokio::test]
async fn sagas_of_the_last_minute_are_not_forgotten_whatever_is_asked_for() {
    let bed = installed("barrier_young").await;
    let young = correlation(Uuid::now_v7(), Operation::Action, 1);
    let mut conn = bed.pool.acquire().await.unwrap();
    lock(&mut conn, &young, None).await.unwrap();

    let deleted =
        forget(&mut conn, SystemTime::now() + Duration::from_secs(3600), 10).await.unwrap();

    assert_eq!(deleted, 0);
    assert!(!lock(&mut conn, &young, None).await.unwrap().forgotten);
}
