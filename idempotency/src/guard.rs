//! Claim a message id in your own transaction: the first claim wins.
//!
//! ```no_run
//! # async fn apply(mut tx: sqlx::Transaction<'_, sqlx::Postgres>) -> Result<(), Box<dyn std::error::Error>> {
//! use tailrace_idempotency::guard::{self, Claim};
//! use tailrace_idempotency::MessageId;
//!
//! let id: MessageId = "019a9c6e-0000-7000-8000-000000000001".parse()?;
//! if guard::claim(&mut tx, "billing", &id).await? == Claim::First {
//!     sqlx::query("update account set balance = balance - 10").execute(&mut *tx).await?;
//! }
//! tx.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! The claim is a row of `tailrace.processed_message` and shares the fate of the transaction: when that rolls
//! back, the id is free again. A second transaction that claims the same id waits for the first one to end.
//!
//! Ids are accepted from [`PAST_DAYS_MAX`] days before today to [`FUTURE_DAYS_MAX`] day after it, by the
//! database's clock in UTC. An id outside that range is an error, never a silent duplicate: what is too old
//! to be remembered cannot be told from what was never seen.

use std::collections::{BTreeSet, HashSet};

use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::{Error, Kind};
use crate::message_id::{Day, MessageId};
use crate::retention;

/// An id minted more days ago than this is refused.
pub const PAST_DAYS_MAX: i32 = 400;

/// An id minted more days ahead of the database's clock than this is refused.
pub const FUTURE_DAYS_MAX: i32 = 1;

/// Whether this transaction is the first to claim a message for its consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use]
pub enum Claim {
    /// Nobody claimed it before: apply the effect.
    First,
    /// The effect is already there, or stands earlier in the same batch: do nothing.
    Duplicate,
}

/// Claims one message for a consumer within the caller's transaction.
///
/// Without an open transaction the claim commits by itself, and a crash before the effect loses the message.
///
/// # Errors
/// An id of a day outside the accepted range, or what Postgres answers; the latter leaves the transaction
/// aborted.
pub async fn claim(
    conn: &mut PgConnection,
    consumer: &str,
    id: &MessageId,
) -> Result<Claim, Error> {
    let claims = claim_all(conn, consumer, std::slice::from_ref(id)).await?;
    claims.into_iter().next().ok_or_else(|| Error::new(Kind::Internal, "a claim has no answer"))
}

/// Claims a batch of messages in one statement; the answers stand in the order of the ids.
///
/// An id that stands in the batch twice is [`Claim::First`] at its first place and
/// [`Claim::Duplicate`] at the others. Rows are inserted in the order of the ids, so that two batches with
/// the same ids wait for each other instead of deadlocking.
///
/// A missing partition is made on the way. It is attached in the caller's transaction and becomes visible
/// with its commit; until then others can insert into all other days, but cannot make partitions.
///
/// # Errors
/// As [`claim`]; nothing of the batch is claimed then.
pub async fn claim_all(
    conn: &mut PgConnection,
    consumer: &str,
    ids: &[MessageId],
) -> Result<Vec<Claim>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    match claim_inside(conn, consumer, ids).await? {
        Inside::Claims(claims) => Ok(claims),
        Inside::Refused(days) => Err(refusal(ids, &days)),
    }
}

/// What came of claims of which some may lie outside the accepted range.
pub(crate) enum Inside {
    /// All lie inside; the answers stand in the order of the ids.
    Claims(Vec<Claim>),
    /// Nothing is claimed, because of these days.
    Refused(Vec<(Day, Refused)>),
}

/// As [`claim_all`], but ids outside the accepted range are an answer.
pub(crate) async fn claim_inside(
    conn: &mut PgConnection,
    consumer: &str,
    ids: &[MessageId],
) -> Result<Inside, Error> {
    let days: BTreeSet<Day> = ids.iter().map(MessageId::day).collect();
    for _ in 0..2 {
        match try_claim(conn, consumer, ids, &days).await? {
            Answer::AllFirst => return Ok(Inside::Claims(vec![Claim::First; ids.len()])),
            Answer::Claimed(first) => return Ok(Inside::Claims(claims(ids, first))),
            Answer::Refused(refused) => return Ok(Inside::Refused(refused)),
            Answer::Missing(missing) => retention::make_partitions(conn, &missing).await?,
        };
    }
    Err(Error::new(
        Kind::Internal,
        "a partition of tailrace.processed_message was made and is still missing",
    ))
}

enum Answer {
    AllFirst,
    Claimed(HashSet<Uuid>),
    Missing(Vec<Day>),
    Refused(Vec<(Day, Refused)>),
}

/// On which side of the accepted range an id lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    TooOld,
    Future,
}

// The days are looked at in the same statement: a row without a partition would be an error, which aborts the
// caller's transaction, and a savepoint per claim costs more than this look-up. It goes by `to_regclass` and not by
// the catalog's rows: like the insert it knows what the session has heard of. A partition that it has not heard of
// yet is missing to both, and making it makes the session listen.
const CLAIM: &str = "
    WITH clock AS (
        SELECT floor(extract(epoch FROM now()) / 86400)::int AS today
    ), unready AS (
        SELECT day, CASE WHEN day > today + $4 THEN 2 WHEN day < today - $5 THEN 1 ELSE 0 END AS fault
        FROM unnest($3::int[]) AS day, clock
        WHERE day > today + $4
           OR day < today - $5
           OR to_regclass('tailrace.processed_message_' || to_char(date '1970-01-01' + day, 'YYYYMMDD')) IS NULL
    ), claimed AS (
        INSERT INTO tailrace.processed_message (consumer, message_id)
        SELECT $1, id FROM unnest($2::uuid[]) AS id
        WHERE NOT EXISTS (SELECT FROM unready)
        ORDER BY id
        ON CONFLICT DO NOTHING
        RETURNING message_id
    )
    SELECT CASE WHEN (SELECT count(*) FROM claimed) < cardinality($2::uuid[])
                THEN ARRAY(SELECT message_id FROM claimed) END,
           ARRAY(SELECT day FROM unready ORDER BY day),
           ARRAY(SELECT fault FROM unready ORDER BY day)";

async fn try_claim(
    conn: &mut PgConnection,
    consumer: &str,
    ids: &[MessageId],
    days: &BTreeSet<Day>,
) -> Result<Answer, Error> {
    let uuids: Vec<Uuid> = ids.iter().map(|id| *id.as_uuid()).collect();
    let days: Vec<i32> = days.iter().map(|day| day.0).collect();
    // Almost always all ids are new; then no list of them has to come back.
    let (claimed, unready, faults): (Option<Vec<Uuid>>, Vec<i32>, Vec<i32>) = sqlx::query_as(CLAIM)
        .bind(consumer)
        .bind(uuids)
        .bind(days)
        .bind(FUTURE_DAYS_MAX)
        .bind(PAST_DAYS_MAX)
        .fetch_one(conn)
        .await
        .map_err(|error| Error::database("the message ids cannot be claimed", error))?;

    let mut missing = Vec::new();
    let mut refused = Vec::new();
    for (day, fault) in unready.into_iter().zip(faults) {
        match fault {
            2 => refused.push((Day(day), Refused::Future)),
            1 => refused.push((Day(day), Refused::TooOld)),
            _ => missing.push(Day(day)),
        }
    }
    Ok(match (refused.is_empty(), missing.is_empty()) {
        (false, _) => Answer::Refused(refused),
        (true, false) => Answer::Missing(missing),
        (true, true) => claimed
            .map_or(Answer::AllFirst, |claimed| Answer::Claimed(claimed.into_iter().collect())),
    })
}

fn claims(ids: &[MessageId], mut first: HashSet<Uuid>) -> Vec<Claim> {
    ids.iter()
        .map(|id| if first.remove(id.as_uuid()) { Claim::First } else { Claim::Duplicate })
        .collect()
}

/// The error that names the first of the ids that were refused.
pub(crate) fn refusal(ids: &[MessageId], days: &[(Day, Refused)]) -> Error {
    let found = ids.iter().find_map(|id| {
        let (_, refused) = days.iter().find(|(day, _)| *day == id.day())?;
        Some((id, *refused))
    });
    let Some((id, refused)) = found else {
        return Error::new(Kind::Internal, "a claim was refused for a day of no id");
    };
    let (text, mend) = match refused {
        Refused::Future => (
            "the message id was minted more than one day ahead of the database's clock",
            "correct the producer's clock",
        ),
        Refused::TooOld => (
            "the message id was minted more than 400 days ago",
            "claims are not kept that long, so whether it was applied before is not known",
        ),
    };
    Error::new(Kind::MessageId, text).mended_by(mend).about(*id)
}

#[cfg(test)]
#[cfg(feature = "kafka")]
mod tests;
