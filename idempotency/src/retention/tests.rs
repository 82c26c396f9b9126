use sqlx::Executor as _;

use super::*;
use crate::fixture::{Bed, DEADLINE, id_of_day, installed, new_id};
use crate::guard::tests::opaque_id;
use crate::guard::{self, Beyond, Candidate, Claim};
use crate::message_id::MessageId;

const WEEK: Duration = Duration::from_secs(7 * 86_400);

async fn claim(bed: &Bed, id: MessageId) -> Claim {
    claim_written(bed, Candidate::new(id)).await
}

async fn claim_written(bed: &Bed, candidate: Candidate) -> Claim {
    let mut tx = bed.begin().await;
    let claims = guard::claim_each(&mut tx, "billing", &[candidate], Beyond::Tell).await.unwrap();
    tx.commit().await.unwrap();
    claims[0]
}

async fn maintained(bed: &Bed, keep: Duration) -> Maintained {
    maintain(&mut bed.pool.acquire().await.unwrap(), &Horizon::new(keep)).await.unwrap()
}

/// As if so much time had passed since the last claims of days long ago.
async fn pass(bed: &Bed, interval: &str) {
    let pass =
        "UPDATE tailrace.processed_message_day SET claimed_at = claimed_at - $1::text::interval";
    sqlx::query(pass).bind(interval).execute(&bed.pool).await.unwrap();
}

async fn old_id(bed: &Bed, ahead: i32) -> MessageId {
    id_of_day(&mut bed.pool.acquire().await.unwrap(), ahead).await
}

const PARTITIONS: &str = "SELECT count(*) FROM tailrace.processed_message_partition";

#[tokio::test]
async fn a_day_is_dropped_after_a_whole_horizon_without_a_claim_and_not_before() {
    let bed = installed("retention_quiet").await;
    let id = old_id(&bed, -9).await;
    assert_eq!(claim(&bed, id).await, Claim::First);

    let at_once = maintained(&bed, WEEK).await;
    pass(&bed, "7 days 50 minutes").await;
    let within_the_hour_of_the_mark = maintained(&bed, WEEK).await;
    assert_eq!(claim(&bed, id).await, Claim::Duplicate);
    let after_a_duplicate = maintained(&bed, WEEK).await;
    pass(&bed, "7 days 61 minutes").await;
    let after = maintained(&bed, WEEK).await;

    for report in [at_once, within_the_hour_of_the_mark, after_a_duplicate] {
        assert_eq!(report.dropped, [""; 0]);
    }
    assert_eq!(after.dropped.len(), 1);
    assert_eq!(after.days_ahead, 3);
}

/// wolverine#1725: the window of known messages was purged, and a redelivery was applied again.
#[tokio::test]
async fn a_redelivery_after_its_claim_was_dropped_is_told_and_not_applied() {
    let bed = installed("retention_redelivery").await;
    let id = old_id(&bed, -9).await;
    assert_eq!(claim(&bed, id).await, Claim::First);
    pass(&bed, "30 days").await;
    let same_day = MessageId::try_from(uuid::Uuid::from_u128(id.as_uuid().as_u128() ^ 1)).unwrap();

    assert_eq!(maintained(&bed, WEEK).await.dropped.len(), 1);

    assert_eq!(claim(&bed, id).await, Claim::TooOld);
    assert_eq!(claim(&bed, same_day).await, Claim::TooOld);
    let mut tx = bed.begin().await;
    let good = new_id();
    let error = guard::claim_all(&mut tx, "billing", &[good, id]).await.unwrap_err();
    assert_eq!((error.kind(), error.message_id()), (Kind::MessageId, Some(id)));
    assert_eq!(guard::claim(&mut tx, "billing", &good).await.unwrap(), Claim::First);
    assert_eq!(make_partitions(&mut tx, &[id.day().unwrap()]).await.unwrap(), 0);
    let accept = async |tx: &mut PgConnection| {
        guard::claim_each(tx, "billing", &[id.into()], Beyond::Accept).await.unwrap()
    };
    assert_eq!(accept(&mut tx).await, [Claim::First]);
    assert_eq!(accept(&mut tx).await, [Claim::Duplicate]);
}

/// eventuate-tram-core#46: the table of received messages only ever grew.
#[tokio::test]
async fn days_leave_by_themselves_and_nothing_but_the_horizon_stays() {
    let bed = installed("retention_cleaned").await;
    for ahead in [-30, -9, -8, -2, -1, 0] {
        assert_eq!(claim(&bed, old_id(&bed, ahead).await).await, Claim::First);
    }
    // The days that were claimed as a matter of course, and have no mark.
    bed.execute("UPDATE tailrace.processed_message_day SET claimed_at = NULL").await;

    let report = maintained(&bed, WEEK).await;
    let zero = maintained(&bed, Duration::ZERO).await;

    assert_eq!(report.dropped.len(), 2, "{report:?}");
    assert_eq!(zero.dropped.len(), 2, "{zero:?}");
    // Yesterday may still be claimed without a mark; today; three days ahead.
    assert_eq!(bed.count(PARTITIONS).await, 5);
    assert_eq!(bed.count("SELECT count(*) FROM tailrace.processed_message").await, 2);
}

#[tokio::test]
async fn a_late_claim_leaves_a_mark_once_an_hour() {
    let bed = installed("retention_mark").await;
    let marks = async || -> Vec<Option<f64>> {
        let marks = "SELECT extract(epoch FROM claimed_at)::float8 FROM tailrace.processed_message_day \
                     WHERE claimed_at IS NOT NULL";
        sqlx::query_scalar(marks).fetch_all(&bed.pool).await.unwrap()
    };

    assert_eq!(claim(&bed, old_id(&bed, -1).await).await, Claim::First);
    let none = marks().await;
    let id = old_id(&bed, -5).await;
    assert_eq!(claim(&bed, id).await, Claim::First);
    let first = marks().await;
    assert_eq!(claim(&bed, id).await, Claim::Duplicate);
    let second = marks().await;
    pass(&bed, "2 hours").await;
    assert_eq!(claim(&bed, id).await, Claim::Duplicate);
    let third = marks().await;

    assert_eq!((none.len(), first.len()), (0, 1));
    assert_eq!(first, second);
    assert!(third > first, "{first:?} {third:?}");
}

#[tokio::test]
async fn several_that_maintain_at_once_share_the_work() {
    let bed = installed("retention_several").await;
    for ahead in -29..-9 {
        assert_eq!(claim(&bed, old_id(&bed, ahead).await).await, Claim::First);
    }
    pass(&bed, "30 days").await;

    let (one, two, three) =
        tokio::join!(maintained(&bed, WEEK), maintained(&bed, WEEK), maintained(&bed, WEEK));
    let last = maintained(&bed, WEEK).await;

    let mut dropped: Vec<_> = [one, two, three, last].into_iter().flat_map(|r| r.dropped).collect();
    dropped.sort();
    let all = dropped.len();
    dropped.dedup();
    assert_eq!((all, dropped.len()), (20, 20));
}

/// wolverine#3116: the clean-up locked the inbox, and consumers stood still.
#[tokio::test]
async fn claims_go_on_while_days_are_dropped_and_a_long_transaction_postpones_it() {
    let bed = installed("retention_busy").await;
    let claimed_long_ago = async |days: std::ops::Range<i32>| {
        for ahead in days {
            assert_eq!(claim(&bed, old_id(&bed, ahead).await).await, Claim::First);
        }
        pass(&bed, "30 days").await;
    };
    claimed_long_ago(-19..-17).await;
    let mut long = bed.begin().await;
    assert_eq!(guard::claim(&mut long, "billing", &new_id()).await.unwrap(), Claim::First);
    let short = Horizon::new(WEEK).lock_wait(Duration::from_millis(1));
    let postponed = maintain(&mut bed.pool.acquire().await.unwrap(), &short).await.unwrap();
    long.commit().await.unwrap();

    claimed_long_ago(-17..-9).await;
    let mut claiming = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let pool = bed.pool.clone();
        claiming.spawn(async move {
            for _ in 0..50 {
                let mut tx = pool.begin().await.unwrap();
                let ids: Vec<_> = (0..20).map(|_| new_id()).collect();
                let claims = guard::claim_all(&mut tx, "shipping", &ids).await.unwrap();
                assert_eq!(claims, [Claim::First; 20]);
                tx.commit().await.unwrap();
            }
        });
    }
    let during = maintained(&bed, WEEK).await;
    claiming.join_all().await;
    let after = maintained(&bed, WEEK).await;

    assert_eq!((postponed.postponed.len(), postponed.dropped.len()), (2, 0));
    assert_eq!(during.dropped.len() + after.dropped.len(), 10, "{during:?} {after:?}");
    assert_eq!(bed.count("SELECT count(*) FROM tailrace.processed_message").await, 4001);
}

#[tokio::test]
async fn a_claim_that_waits_for_a_drop_finds_the_day_forgotten() {
    let bed = installed("retention_waits").await;
    let id = old_id(&bed, -9).await;
    assert_eq!(claim(&bed, id).await, Claim::First);
    pass(&bed, "30 days").await;
    let mut dropping = bed.begin().await;
    let mut earlier = bed.begin().await;
    let snapshot = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class";
    sqlx::raw_sql(snapshot).execute(&mut *earlier).await.unwrap();

    let drop = "SELECT tailrace.drop_processed_message_day(date '1970-01-01' + $1, 604800)";
    let done: bool =
        sqlx::query_scalar(drop).bind(id.day().unwrap().0).fetch_one(&mut *dropping).await.unwrap();
    let waiting = async {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation IS NOT NULL \
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        while bed.count(waiting).await == 0 {}
        dropping.commit().await.unwrap();
    };
    let (claimed, waited) = tokio::join!(claim(&bed, id), tokio::time::timeout(DEADLINE, waiting));
    waited.expect("the claim waits for the drop");
    let of_earlier = guard::claim(&mut earlier, "billing", &id).await;

    assert!(done);
    assert_eq!(claimed, Claim::TooOld);
    // It cannot see that the day was dropped, and must not make it anew.
    let error = of_earlier.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
}

#[tokio::test]
async fn an_opaque_id_is_known_beyond_the_end_of_its_generation() {
    let bed = installed("retention_opaque").await;
    let (id, now) = (opaque_id(), SystemTime::now());
    let long_ago = now - Duration::from_secs(86_400);
    assert_eq!(claim(&bed, id).await, Claim::First);

    let young = maintained(&bed, WEEK).await;
    let first = maintained(&bed, Duration::ZERO).await;
    assert_eq!(claim(&bed, id).await, Claim::Duplicate);
    let (of_second, of_third) = (opaque_id(), opaque_id());
    assert_eq!(
        claim_written(&bed, Candidate::new(of_second).written_at(Some(long_ago))).await,
        Claim::First
    );
    let second = maintained(&bed, Duration::ZERO).await;
    assert_eq!(claim(&bed, of_second).await, Claim::Duplicate);

    assert_eq!([young, first, second].map(|report| report.opaque_turned), [false, true, true]);
    // The first generation is forgotten now.
    let written = |id, at| Candidate::new(id).written_at(Some(at));
    assert_eq!(claim_written(&bed, written(id, long_ago)).await, Claim::TooOld);
    assert_eq!(
        claim_written(&bed, written(of_third, now + Duration::from_secs(7200))).await,
        Claim::First
    );
    assert_eq!(claim(&bed, id).await, Claim::First);
}

/// Two transactions on both sides of the border: the index of neither table alone would notice.
#[tokio::test]
async fn an_opaque_id_that_is_claimed_while_its_generation_ends_is_claimed_once() {
    let bed = installed("retention_border").await;
    let id = opaque_id();
    assert_eq!(claim(&bed, opaque_id()).await, Claim::First);
    let mut before = bed.begin().await;
    assert_eq!(guard::claim(&mut before, "billing", &id).await.unwrap(), Claim::First);
    let postponed = maintained(&bed, Duration::ZERO).await;
    let mut ending = bed.begin().await;

    let turned = async {
        let turn = sqlx::query("SELECT tailrace.turn_opaque_generation(0)");
        turn.execute(&mut *ending).await.unwrap();
        ending.commit().await.unwrap();
    };
    let waiting = async |count| {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation' \
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        let all_wait = async { while bed.count(waiting).await < count {} };
        tokio::time::timeout(DEADLINE, all_wait).await.expect("they wait");
    };
    let after = async {
        // The end of the generation stands in the queue first, and the claim behind it.
        waiting(1).await;
        let (claimed, ()) = tokio::join!(claim(&bed, id), async {
            waiting(2).await;
            before.commit().await.unwrap();
        });
        claimed
    };
    let ((), claimed) = tokio::join!(turned, after);

    assert_eq!(postponed.postponed, ["processed_opaque"]);
    assert_eq!(claimed, Claim::Duplicate);
    assert_eq!(bed.count("SELECT count(*) FROM tailrace.processed_opaque").await, 0);
    assert_eq!(bed.count("SELECT count(*) FROM tailrace.processed_opaque_before").await, 2);
}

#[tokio::test]
async fn a_table_that_somebody_else_attached_is_left_alone() {
    let bed = installed("retention_mine").await;
    bed.execute(
        "CREATE TABLE tailrace.processed_message_19700102 PARTITION OF tailrace.processed_message
             FOR VALUES FROM ('00000000-0000-0000-0000-000000000000') TO ('00000001-0000-0000-0000-000000000000');
         CREATE TABLE tailrace.mine PARTITION OF tailrace.processed_message
             FOR VALUES FROM (MINVALUE) TO ('00000000-0000-0000-0000-000000000000')",
    )
    .await;

    let report = maintained(&bed, Duration::ZERO).await;

    assert_eq!((report.dropped.len(), report.made.len()), (0, 1));
    assert_eq!(bed.count("SELECT count(*) FROM tailrace.mine").await, 0);
    assert_eq!(bed.count("SELECT count(*) FROM tailrace.processed_message_19700102").await, 0);
}

#[tokio::test]
async fn too_few_days_ahead_and_days_long_due_are_told() {
    let bed = installed("retention_status").await;
    let mut conn = bed.pool.acquire().await.unwrap();
    let week = Horizon::new(WEEK);

    let good = status(&mut conn, &week).await.unwrap();
    for ahead in -19..-9 {
        assert_eq!(claim(&bed, old_id(&bed, ahead).await).await, Claim::First);
    }
    pass(&bed, "30 days").await;
    let tomorrow = "DO $$ BEGIN EXECUTE format('DROP TABLE tailrace.processed_message_%s', \
                    to_char((now() AT TIME ZONE 'UTC')::date + 1, 'YYYYMMDD')); END $$";
    conn.execute(tomorrow).await.unwrap();
    let bad = status(&mut conn, &week).await.unwrap();
    maintain(&mut conn, &week).await.unwrap();
    let mended = status(&mut conn, &week).await.unwrap();

    assert_eq!((good.days_ahead, good.faults().len()), (2, 0));
    assert_eq!((bad.days_ahead, bad.faults().len()), (0, 2), "{:?}", bad.faults());
    assert_eq!((mended.days_ahead, mended.faults().len()), (3, 0));
    assert_eq!(mended.partitions.len(), 4);
}

#[tokio::test]
async fn a_role_with_the_right_to_execute_can_maintain_without_owning_anything() {
    let bed = installed("retention_role").await;
    assert_eq!(claim(&bed, old_id(&bed, -9).await).await, Claim::First);
    pass(&bed, "30 days").await;
    let role = bed.database.url().rsplit('/').next().unwrap().to_owned() + "_keeper";
    let setup = format!(
        "CREATE ROLE \"{role}\" NOLOGIN; GRANT USAGE ON SCHEMA tailrace TO \"{role}\";
         GRANT SELECT ON tailrace.processed_message_partition, tailrace.opaque_generation,
             tailrace.processed_opaque, tailrace.processed_opaque_before TO \"{role}\";
         GRANT SELECT, DELETE ON tailrace.processed_message_day TO \"{role}\";
         GRANT EXECUTE ON FUNCTION tailrace.make_processed_message_partitions(date[]),
             tailrace.drop_processed_message_day(date, double precision),
             tailrace.turn_opaque_generation(double precision) TO \"{role}\";
         SET ROLE \"{role}\""
    );
    let mut conn = bed.pool.acquire().await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(setup)).execute(&mut *conn).await.unwrap();

    let report = maintain(&mut conn, &Horizon::new(WEEK)).await.unwrap();
    let again = maintain(&mut conn, &Horizon::new(WEEK)).await.unwrap();
    let clear = format!("RESET ROLE; DROP OWNED BY \"{role}\"; DROP ROLE \"{role}\"");
    sqlx::raw_sql(sqlx::AssertSqlSafe(clear)).execute(&mut *conn).await.unwrap();

    assert_eq!((report.dropped.len(), again.dropped.len()), (1, 0));
}
