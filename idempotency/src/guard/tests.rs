use std::collections::HashSet;

use sqlx::Connection as _;

use super::*;
use crate::fixture::{id_of_day, installed, new_id};

#[tokio::test]
async fn the_first_claim_wins_and_each_consumer_has_its_own() {
    let bed = installed("guard_first").await;
    let id = new_id();

    let mut tx = bed.begin().await;
    assert_eq!(claim(&mut tx, "billing", &id).await.unwrap(), Claim::First);
    assert_eq!(claim(&mut tx, "billing", &id).await.unwrap(), Claim::Duplicate);
    tx.commit().await.unwrap();
    let mut tx = bed.begin().await;

    assert_eq!(claim(&mut tx, "billing", &id).await.unwrap(), Claim::Duplicate);
    assert_eq!(claim(&mut tx, "shipping", &id).await.unwrap(), Claim::First);
}

#[tokio::test]
async fn a_claim_that_was_rolled_back_is_free_again() {
    let bed = installed("guard_rolled_back").await;
    let id = new_id();

    let mut tx = bed.begin().await;
    assert_eq!(claim(&mut tx, "billing", &id).await.unwrap(), Claim::First);
    tx.rollback().await.unwrap();
    let mut tx = bed.begin().await;

    assert_eq!(claim(&mut tx, "billing", &id).await.unwrap(), Claim::First);
}

#[tokio::test]
async fn of_two_transactions_at_once_one_wins() {
    let bed = installed("guard_two").await;
    let id = new_id();
    let mut first = bed.begin().await;
    let mut second = bed.begin().await;

    assert_eq!(claim(&mut first, "billing", &id).await.unwrap(), Claim::First);
    let (waited, ()) = tokio::join!(claim(&mut second, "billing", &id), async {
        first.commit().await.unwrap();
    });

    assert_eq!(waited.unwrap(), Claim::Duplicate);
}

#[tokio::test]
async fn an_id_repeated_in_a_batch_is_first_at_its_first_place() {
    let bed = installed("guard_repeated").await;
    let (a, b, c) = (new_id(), new_id(), new_id());
    let mut tx = bed.begin().await;
    assert_eq!(claim(&mut tx, "billing", &b).await.unwrap(), Claim::First);

    let claims = claim_all(&mut tx, "billing", &[c, a, b, a, c]).await.unwrap();

    use Claim::{Duplicate, First};
    assert_eq!(claims, [First, First, Duplicate, Duplicate, Duplicate]);
}

#[tokio::test]
async fn batches_with_the_same_ids_in_different_order_do_not_deadlock() {
    let bed = installed("guard_order").await;
    let ids: Vec<_> = (0..2000).map(|_| new_id()).collect();
    let reversed: Vec<_> = ids.iter().rev().copied().collect();

    let claim_in = async |ids: &[MessageId]| {
        let mut tx = bed.begin().await;
        let claims = claim_all(&mut tx, "billing", ids).await.unwrap();
        tx.commit().await.unwrap();
        claims.iter().filter(|claim| **claim == Claim::First).count()
    };
    let (forward, backward) = tokio::join!(claim_in(&ids), claim_in(&reversed));

    assert_eq!(forward + backward, ids.len());
}

#[tokio::test]
async fn a_day_without_a_partition_gets_one_on_demand() {
    let bed = installed("guard_on_demand").await;
    let mut tx = bed.begin().await;
    let long_ago = id_of_day(&mut tx, -PAST_DAYS_MAX).await;
    let yesterday = id_of_day(&mut tx, -1).await;

    let claims = claim_all(&mut tx, "billing", &[long_ago, yesterday, new_id()]).await.unwrap();

    assert_eq!(claims, [Claim::First; 3]);
    assert_eq!(claim(&mut tx, "billing", &long_ago).await.unwrap(), Claim::Duplicate);
}

#[tokio::test]
async fn a_missing_partition_is_made_once_by_eight_connections_at_once() {
    let bed = installed("guard_eight").await;
    let shared = id_of_day(&mut bed.pool.acquire().await.unwrap(), -3).await;

    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let pool = bed.pool.clone();
        tasks.spawn(async move {
            let mut tx = pool.begin().await.unwrap();
            let own = id_of_day(&mut tx, -4).await.as_uuid().as_u128();
            let own = own & !0xffff_ffff | u128::from(rand_bits());
            let own = MessageId::try_from(Uuid::from_u128(own)).unwrap();
            let claims = claim_all(&mut tx, "billing", &[own, shared]).await.unwrap();
            tx.commit().await.unwrap();
            claims
        });
    }
    let claims: Vec<_> = tasks.join_all().await;

    assert!(claims.iter().all(|claims| claims[0] == Claim::First));
    assert_eq!(claims.iter().filter(|claims| claims[1] == Claim::First).count(), 1);
}

/// A session remembers names that it did not find, and in an open transaction may go on to after the
/// one that it has waited for has made the table.
#[tokio::test]
async fn who_waited_for_a_partition_finds_the_one_that_was_made() {
    let bed = installed("guard_waited").await;
    let (mut first, mut second) = (bed.begin().await, bed.begin().await);
    let day = id_of_day(&mut first, -20).await;
    // So that nothing is new to the sessions afterwards, and nothing makes them look again.
    for (tx, days) in [(&mut first, -30), (&mut second, -31)] {
        let earlier = id_of_day(tx, days).await;
        assert_eq!(claim(tx, "billing", &earlier).await.unwrap(), Claim::First);
        sqlx::query("COMMIT AND CHAIN").execute(&mut **tx).await.unwrap();
        assert_eq!(claim(tx, "billing", &new_id()).await.unwrap(), Claim::First);
    }
    assert_eq!(claim(&mut first, "billing", &day).await.unwrap(), Claim::First);

    let waits = tokio::spawn(async move {
        let claimed = claim(&mut second, "shipping", &day).await;
        second.commit().await.unwrap();
        claimed
    });
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let begun = async { while bed.count(waiting).await == 0 {} };
    tokio::time::timeout(crate::fixture::DEADLINE, begun).await.expect("it waits");
    first.commit().await.unwrap();

    assert_eq!(waits.await.unwrap().unwrap(), Claim::First);
}

fn rand_bits() -> u32 {
    u32::try_from(new_id().as_uuid().as_u128() & 0xffff_ffff).unwrap()
}

#[tokio::test]
async fn an_id_from_the_future_or_too_long_ago_is_named_and_claims_nothing() {
    let bed = installed("guard_range").await;
    let mut tx = bed.begin().await;
    let tomorrow = id_of_day(&mut tx, FUTURE_DAYS_MAX).await;
    let future = id_of_day(&mut tx, FUTURE_DAYS_MAX + 1).await;
    let past = id_of_day(&mut tx, -PAST_DAYS_MAX - 1).await;
    let good = new_id();

    for bad in [future, past] {
        let error = claim_all(&mut tx, "billing", &[good, bad]).await.unwrap_err();
        assert_eq!((error.kind(), error.message_id()), (Kind::MessageId, Some(bad)));
        assert!(error.to_string().contains(&bad.to_string()));
        assert!(error.hint().is_some());
    }

    assert_eq!(claim(&mut tx, "billing", &good).await.unwrap(), Claim::First);
    assert_eq!(claim(&mut tx, "billing", &tomorrow).await.unwrap(), Claim::First);
}

#[tokio::test]
async fn claims_go_on_in_other_days_while_a_partition_is_being_made() {
    let bed = installed("guard_goes_on").await;
    let mut maker = bed.begin().await;
    let old = id_of_day(&mut maker, -9).await;
    assert_eq!(claim(&mut maker, "billing", &old).await.unwrap(), Claim::First);

    let mut other = bed.begin().await;
    sqlx::query("SET LOCAL lock_timeout = '2s'").execute(&mut *other).await.unwrap();

    assert_eq!(claim(&mut other, "billing", &new_id()).await.unwrap(), Claim::First);
    maker.rollback().await.unwrap();
    assert_eq!(claim(&mut other, "billing", &old).await.unwrap(), Claim::First);
}

#[test]
fn answers_stand_in_the_order_of_the_ids() {
    let (a, b, c) = (new_id(), new_id(), new_id());

    let first = HashSet::from([*b.as_uuid()]);
    let answers =
        answers(&[a, b, b, c].map(Candidate::new), first, |id| (*id == c).then_some(Claim::TooOld));

    use Claim::{Duplicate, First, TooOld};
    assert_eq!(answers, [Duplicate, First, Duplicate, TooOld]);
}

/// A UUID v4, as of a foreign producer.
pub(crate) fn opaque_id() -> MessageId {
    let random = new_id().as_uuid().as_u128() << 48;
    uuid::Builder::from_random_bytes(random.to_be_bytes()).into_uuid().try_into().unwrap()
}

#[tokio::test]
async fn each_message_outside_the_horizon_is_told_by_itself_and_the_others_are_claimed() {
    let bed = installed("guard_each").await;
    let mut tx = bed.begin().await;
    let future = id_of_day(&mut tx, FUTURE_DAYS_MAX + 1).await;
    let past = id_of_day(&mut tx, -PAST_DAYS_MAX - 1).await;
    let old = id_of_day(&mut tx, -PAST_DAYS_MAX).await;
    let (good, opaque) = (new_id(), opaque_id());
    let batch = [past, good, future, opaque, old, past, good, opaque].map(Candidate::new);

    let claims = claim_each(&mut tx, "billing", &batch, Beyond::Tell).await.unwrap();
    let again = claim_each(&mut tx, "billing", &batch, Beyond::default()).await.unwrap();

    use Claim::{Duplicate, First, Future, TooOld};
    assert_eq!(claims, [TooOld, First, Future, First, First, TooOld, Duplicate, Duplicate]);
    let seen = Duplicate;
    assert_eq!(again, [TooOld, seen, Future, seen, seen, TooOld, seen, seen]);
}

#[tokio::test]
async fn what_is_accepted_beyond_the_horizon_is_applied_once_from_then_on() {
    let bed = installed("guard_accept").await;
    let mut tx = bed.begin().await;
    let past = id_of_day(&mut tx, -PAST_DAYS_MAX - 1).await;
    let ahead = id_of_day(&mut tx, FUTURE_DAYS_ACCEPTED_MAX).await;
    let beyond = id_of_day(&mut tx, FUTURE_DAYS_ACCEPTED_MAX + 1).await;
    let batch = [past, ahead, beyond].map(Candidate::new);

    let claims = claim_each(&mut tx, "billing", &batch, Beyond::Accept).await.unwrap();
    let again = claim_each(&mut tx, "billing", &batch, Beyond::Accept).await.unwrap();
    let told = claim_each(&mut tx, "billing", &batch, Beyond::Tell).await.unwrap();

    assert_eq!(claims, [Claim::First, Claim::First, Claim::Future]);
    assert_eq!(again, [Claim::Duplicate, Claim::Duplicate, Claim::Future]);
    assert_eq!(told, [Claim::TooOld, Claim::Future, Claim::Future]);
}

#[tokio::test]
async fn what_is_set_aside_from_the_future_is_known_when_its_day_has_come() {
    let bed = installed("guard_outside").await;
    let mut tx = bed.begin().await;
    let mut ids = vec!["invoice 4711".parse().unwrap()];
    for ahead in [-PAST_DAYS_MAX - 1, 3, FUTURE_DAYS_OUTSIDE_MAX, FUTURE_DAYS_OUTSIDE_MAX + 1] {
        ids.push(id_of_day(&mut tx, ahead).await);
    }
    let [opaque, past, soon, far, farther] = ids[..] else { unreachable!() };
    let twice: Vec<MessageId> = ids.iter().chain(&ids).copied().collect();

    let claims = claim_outside(&mut tx, "billing", &twice).await.unwrap();
    assert_eq!(claims[..5], [Claim::First; 5]);
    assert_eq!(claims[5..], [Claim::Duplicate; 5]);
    // When its day comes it is claimed there, and there alone: as if days up to then were accepted by now.
    for id in [soon, far] {
        let candidates = [Candidate::new(id)];
        let come =
            claim_timed(&mut tx, "billing", &candidates, FUTURE_DAYS_OUTSIDE_MAX, true).await;
        assert!(matches!(come.unwrap().first, First::These(new) if new.is_empty()));
    }
    let again = [opaque, past, soon, far, farther];
    // A day's partition knows them also when a horizon has passed since then.
    let mut later = tx.begin().await.unwrap();
    sqlx::query("DELETE FROM tailrace.processed_opaque").execute(&mut *later).await.unwrap();
    let known = claim_outside(&mut later, "billing", &again).await.unwrap();
    later.rollback().await.unwrap();
    let (first, duplicate) = (Claim::First, Claim::Duplicate);
    assert_eq!(known, [first, first, duplicate, duplicate, first]);
    // What was too far ahead for a partition is known also once it could have one.
    sqlx::query("DELETE FROM tailrace.processed_message").execute(&mut *tx).await.unwrap();
    let again = claim_outside(&mut tx, "billing", &again).await.unwrap();
    assert_eq!(again, [duplicate; 5]);
}

/// Postgres plans a statement five times for its values before it may keep a plan for any.
#[tokio::test]
async fn the_plan_of_a_claim_is_kept() {
    let bed = installed("guard_plan").await;
    let mut tx = bed.begin().await;

    for _ in 0..12 {
        assert_eq!(claim(&mut tx, "billing", &new_id()).await.unwrap(), Claim::First);
    }

    let (kept, anew): (i64, i64) = sqlx::query_as(
        "SELECT generic_plans, custom_plans FROM pg_prepared_statements
         WHERE statement LIKE '%INSERT INTO tailrace.processed_message %' AND NOT statement LIKE '%pg_prepared%'",
    )
    .fetch_one(&mut *tx)
    .await
    .unwrap();
    assert_eq!((kept, anew), (7, 5));
}

#[tokio::test]
async fn an_opaque_id_is_claimed_once_and_by_each_consumer() {
    let bed = installed("guard_opaque").await;
    let (id, text) = (opaque_id(), "invoice 4711".parse().unwrap());
    let mut tx = bed.begin().await;

    let claims = claim_all(&mut tx, "billing", &[id, text, id]).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = bed.begin().await;

    assert_eq!(claims, [Claim::First, Claim::First, Claim::Duplicate]);
    assert_eq!(claim(&mut tx, "billing", &text).await.unwrap(), Claim::Duplicate);
    assert_eq!(claim(&mut tx, "shipping", &id).await.unwrap(), Claim::First);
}

#[tokio::test]
async fn an_opaque_id_is_refused_where_its_claim_could_be_overlooked() {
    let bed = installed("guard_isolation").await;
    let mut tx = bed.begin().await;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *tx).await.unwrap();
    let timed = claim(&mut tx, "billing", &new_id()).await.unwrap();

    let error = claim(&mut tx, "billing", &opaque_id()).await.unwrap_err();

    assert_eq!((timed, error.kind()), (Claim::First, Kind::Database));
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("isolation level"), "{cause}");
}
