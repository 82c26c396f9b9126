//! The fence of a batch and its claims in one round trip.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Candidate, Claim, FUTURE_DAYS_MAX, First, PAST_DAYS_MAX, answers, cannot_claim, timed,
};
use crate::error::Error;
use crate::position::Offset;
use crate::progress::{Fenced, Owned};

// As `advance` of progress and then `CLAIM`. The ids are inserted only where the row of the fence was changed, so that the
// fence is taken before anything is waited for; and only where there is nothing to be said of any day.
const FENCED_CLAIM: &str = concat!(
    "WITH fenced AS (
        UPDATE tailrace.consumer_progress SET next_offset = $10, updated_at = now()
        WHERE consumer = $1 AND topic = $6 AND partition = $7 AND lane = $8 AND epoch = $9
        RETURNING pg_current_xact_id()::text AS xact
    ), ",
    odd_days!(),
    ", claimed AS (
        INSERT INTO tailrace.processed_message (consumer, message_id)
        SELECT $1, id FROM unnest((SELECT $2::uuid[])) AS id
        WHERE EXISTS (SELECT FROM fenced) AND NOT EXISTS (SELECT FROM odd)
        ORDER BY id
        ON CONFLICT DO NOTHING
        RETURNING message_id
    )
    SELECT xact, EXISTS (SELECT FROM odd),
           CASE WHEN (SELECT count(*) FROM claimed) < cardinality($2::uuid[])
                THEN ARRAY(SELECT message_id FROM claimed) END
    FROM fenced"
);

/// What became of a fence and the claims behind it.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) fenced: Fenced,
    /// None where nothing is claimed yet: a day is missing, or outside the horizon, or claimed in for the first time since
    /// long. [`claim_each`](super::claim_each) has the answer.
    pub(crate) claims: Option<Vec<Claim>>,
}

/// Whether all go by their day, which is what this is for.
pub(crate) fn is_for(candidates: &[Candidate]) -> bool {
    !candidates.is_empty() && candidates.iter().all(|candidate| candidate.id.day().is_some())
}

/// As [`advance`](crate::progress::advance), and then [`claim_each`](super::claim_each), where that has nothing to say but
/// whether an id is new. No answer means that another process owns the partition; nothing is claimed then.
pub(crate) async fn advance_and_claim(
    conn: &mut PgConnection,
    consumer: &str,
    owned: &Owned,
    next_offset: Offset,
    candidates: &[Candidate],
) -> Result<Option<Taken>, Error> {
    let (ids, days) = timed(candidates, &BTreeMap::new());
    let days: Vec<i32> = days.iter().map(|day| day.0).collect();
    let row: Option<(String, bool, Option<Vec<Uuid>>)> = sqlx::query_as(FENCED_CLAIM)
        .bind(consumer)
        .bind(ids)
        .bind(days)
        .bind(FUTURE_DAYS_MAX)
        .bind(PAST_DAYS_MAX)
        .bind(&*owned.partition.topic)
        .bind(owned.partition.number)
        .bind(owned.lane)
        .bind(owned.epoch.0)
        .bind(next_offset.get())
        .fetch_optional(conn)
        .await
        .map_err(cannot_claim)?;
    Ok(row.map(|(xact, is_odd, claimed)| {
        let claims = (!is_odd).then(|| match First::of(claimed) {
            First::All => vec![Claim::First; candidates.len()],
            First::These(first) => answers(candidates, first, |_| None),
        });
        Taken { fenced: Fenced::of(xact), claims }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{id_of_day, installed, new_id};
    use crate::guard::claim;
    use crate::message_id::MessageId;
    use crate::progress::{Epoch, Partition};

    const EPOCH: i64 = 7;

    fn owned(epoch: i64) -> Owned {
        let partition = Partition { topic: "orders".into(), number: 3 };
        Owned { partition, lane: 1, epoch: Epoch(epoch), next_offset: None }
    }

    async fn own(conn: &mut PgConnection) {
        sqlx::query(
            "INSERT INTO tailrace.consumer_progress (consumer, topic, partition, lane, epoch)
             VALUES ('billing', 'orders', 3, 1, $1), ('billing', 'orders', 3, 0, $1), ('other', 'orders', 3, 1, $1)",
        )
        .bind(EPOCH)
        .execute(conn)
        .await
        .unwrap();
    }

    async fn offsets(conn: &mut PgConnection) -> Vec<Option<i64>> {
        sqlx::query_scalar(
            "SELECT next_offset FROM tailrace.consumer_progress ORDER BY consumer, lane",
        )
        .fetch_all(conn)
        .await
        .unwrap()
    }

    async fn take(conn: &mut PgConnection, epoch: i64, ids: &[MessageId]) -> Option<Taken> {
        let candidates: Vec<Candidate> = ids.iter().copied().map(Candidate::new).collect();
        let (owned, next) = (owned(epoch), Offset::new(41));
        advance_and_claim(conn, "billing", &owned, next, &candidates).await.unwrap()
    }

    #[tokio::test]
    async fn the_owner_moves_its_lane_on_and_claims() {
        use Claim::{Duplicate, First};
        let bed = installed("fenced_owner").await;
        let (a, b) = (new_id(), new_id());
        let mut tx = bed.begin().await;
        own(&mut tx).await;

        let some = take(&mut tx, EPOCH, &[b]).await.unwrap();
        let both = take(&mut tx, EPOCH, &[a, b, a]).await.unwrap();

        assert_eq!(some.claims.unwrap(), [First]);
        assert_eq!(both.claims.unwrap(), [First, Duplicate, Duplicate]);
        assert_eq!(offsets(&mut tx).await, [None, Some(41), None]);
        assert_eq!(claim(&mut tx, "billing", &a).await.unwrap(), Duplicate);
        crate::progress::still_open(&mut tx, &both.fenced).await.unwrap();
    }

    #[tokio::test]
    async fn whoever_does_not_own_the_partition_claims_nothing() {
        let bed = installed("fenced_zombie").await;
        let id = new_id();
        let mut tx = bed.begin().await;
        own(&mut tx).await;

        let former = take(&mut tx, EPOCH - 1, &[id]).await;

        assert!(former.is_none());
        assert_eq!(offsets(&mut tx).await, [None; 3]);
        assert_eq!(claim(&mut tx, "billing", &id).await.unwrap(), Claim::First);
    }

    #[tokio::test]
    async fn where_a_day_is_odd_the_fence_alone_is_taken() {
        let bed = installed("fenced_odd").await;
        let mut tx = bed.begin().await;
        own(&mut tx).await;
        let (now, missing) = (new_id(), id_of_day(&mut tx, -10).await);

        let taken = take(&mut tx, EPOCH, &[now, missing]).await.unwrap();

        assert!(taken.claims.is_none());
        assert_eq!(offsets(&mut tx).await, [None, Some(41), None]);
        assert_eq!(claim(&mut tx, "billing", &now).await.unwrap(), Claim::First);
        assert_eq!(claim(&mut tx, "billing", &missing).await.unwrap(), Claim::First);
    }

    #[tokio::test]
    async fn a_new_owner_is_waited_for_before_anything_is_claimed() {
        let bed = installed("fenced_waits").await;
        let id = new_id();
        let mut setup = bed.begin().await;
        own(&mut setup).await;
        setup.commit().await.unwrap();
        let (mut newer, mut former) = (bed.begin().await, bed.begin().await);
        sqlx::query("UPDATE tailrace.consumer_progress SET epoch = epoch + 1")
            .execute(&mut *newer)
            .await
            .unwrap();

        let ids = [id];
        let (late, ()) = tokio::join!(take(&mut former, EPOCH, &ids), async {
            assert_eq!(claim(&mut newer, "billing", &id).await.unwrap(), Claim::First);
            newer.commit().await.unwrap();
        });

        assert!(late.is_none());
    }

    #[tokio::test]
    async fn the_plan_is_kept() {
        let bed = installed("fenced_plan").await;
        let mut tx = bed.begin().await;
        own(&mut tx).await;

        for _ in 0..12 {
            take(&mut tx, EPOCH, &[new_id()]).await.unwrap();
        }

        let (kept, anew): (i64, i64) = sqlx::query_as(
            "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement LIKE 'WITH fenced AS (%'",
        )
        .fetch_one(&mut *tx)
        .await
        .unwrap();
        assert_eq!((kept, anew), (7, 5));
    }
}
