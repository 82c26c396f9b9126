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
//! # The horizon
//! Claims are not kept for ever: [`retention::maintain`] drops a day of them once nothing was claimed in it for
//! the whole [horizon](retention::Horizon). Whether an id of such a day was applied is not known any more, so it
//! is neither a first nor a duplicate: [`claim_each`] answers [`Claim::TooOld`], and [`claim`] and
//! [`claim_all`] fail. The same is true of an id minted more than [`PAST_DAYS_MAX`] days ago whose day has no
//! partition. An id minted more than [`FUTURE_DAYS_MAX`] day ahead of the database's clock is
//! [`Claim::Future`]: such a clock puts claims where they are forgotten too late or, once it is mended, not
//! looked for. Days are those of the database's clock, in UTC.
//!
//! # Opaque ids
//! An id that is no UUID v7 says nothing of its time. Its claim is kept for one horizon at least and two at
//! most, counted from when it was made. A delivery that comes later is taken for a first one, unless
//! [`Candidate::written_at`] says that the message is that old. Such ids are claimed in transactions of READ
//! COMMITTED alone, and cost more, as every insert hits another page of the index.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::{Error, Kind};
use crate::message_id::{Day, MessageId};
use crate::retention;

/// An id minted more days ago than this is refused, unless its day has a partition already.
pub const PAST_DAYS_MAX: i32 = 400;

/// An id minted more days ahead of the database's clock than this is refused.
pub const FUTURE_DAYS_MAX: i32 = 1;

/// And more days ahead than this it is refused even by [`Beyond::Accept`]: no partition is made for it.
pub const FUTURE_DAYS_ACCEPTED_MAX: i32 = 7;

/// [`claim_outside`] makes a partition for an id minted this many days ahead at most.
pub const FUTURE_DAYS_OUTSIDE_MAX: i32 = 400;

/// What became of the claim of a message for its consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use]
pub enum Claim {
    /// Nobody claimed it before: apply the effect.
    First,
    /// The effect is already there, or stands earlier in the same batch: do nothing.
    Duplicate,
    /// It may have been applied, and that would be forgotten by now. It is not claimed.
    TooOld,
    /// It was minted ahead of the database's clock by more than a day. It is not claimed.
    Future,
}

/// What is done about a message outside the horizon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Beyond {
    /// It is told, as [`Claim::TooOld`] or [`Claim::Future`], and not claimed. The default.
    #[default]
    Tell,
    /// It is claimed all the same, so that it is applied once from now on: a new consumer that reads a long
    /// history, or a producer whose clock is known to be wrong. What was applied before it was forgotten is
    /// applied again. Beyond [`FUTURE_DAYS_ACCEPTED_MAX`] days ahead it is told as before.
    Accept,
}

/// A message to be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    id: MessageId,
    written_at: Option<SystemTime>,
}

impl Candidate {
    /// A message of which nothing is known but its id.
    pub fn new(id: MessageId) -> Self {
        Self { id, written_at: None }
    }

    /// Says when the message was written, such as the timestamp of its Kafka record. It tells an opaque id
    /// that is older than what is remembered; a UUID v7 has a time of its own. The clock may be an hour wrong.
    /// Default: unknown.
    #[must_use]
    pub fn written_at(mut self, time: Option<SystemTime>) -> Self {
        self.written_at = time;
        self
    }
}

impl From<MessageId> for Candidate {
    fn from(id: MessageId) -> Self {
        Self::new(id)
    }
}

/// Claims one message for a consumer within the caller's transaction.
///
/// Without an open transaction the claim commits by itself, and a crash before the effect loses the message.
///
/// # Errors
/// An id outside the horizon, or what Postgres answers; the latter leaves the transaction aborted.
pub async fn claim(
    conn: &mut PgConnection,
    consumer: &str,
    id: &MessageId,
) -> Result<Claim, Error> {
    let claims = claim_all(conn, consumer, std::slice::from_ref(id)).await?;
    claims.into_iter().next().ok_or_else(|| Error::new(Kind::Internal, "a claim has no answer"))
}

/// Claims a batch of messages; the answers stand in the order of the ids, and are [`Claim::First`] and
/// [`Claim::Duplicate`] alone.
///
/// An id that stands in the batch twice is [`Claim::First`] at its first place and
/// [`Claim::Duplicate`] at the others. Rows are inserted in the order of the ids, so that two batches with
/// the same ids wait for each other instead of deadlocking. One statement, and another one if there are
/// opaque ids.
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
    let candidates: Vec<Candidate> = ids.iter().copied().map(Candidate::new).collect();
    claim_batch(conn, consumer, &candidates, None).await
}

/// As [`claim_all`], but tells each message outside the horizon by itself and claims the others.
///
/// # Errors
/// What Postgres answers; the transaction is aborted then.
pub async fn claim_each(
    conn: &mut PgConnection,
    consumer: &str,
    candidates: &[Candidate],
    beyond: Beyond,
) -> Result<Vec<Claim>, Error> {
    claim_batch(conn, consumer, candidates, Some(beyond)).await
}

/// How often the statement may find a reason not to insert: a day outside the horizon, then one that has to
/// be made, then one that was dropped before it could be made.
const ROUNDS_MAX: usize = 4;

/// Without `beyond`, a message outside the horizon is an error.
async fn claim_batch(
    conn: &mut PgConnection,
    consumer: &str,
    candidates: &[Candidate],
    beyond: Option<Beyond>,
) -> Result<Vec<Claim>, Error> {
    let future_max = match beyond {
        Some(Beyond::Accept) => FUTURE_DAYS_ACCEPTED_MAX,
        _ => FUTURE_DAYS_MAX,
    };
    let Timed { outside, first, asked } =
        claim_timed(conn, consumer, candidates, future_max, beyond.is_none()).await?;
    let mut first = match first {
        // As almost always: no id has to be looked up.
        First::All if asked == candidates.len() => return Ok(vec![Claim::First; asked]),
        First::All => timed(candidates, &outside).0.into_iter().collect(),
        First::These(ids) => ids,
    };
    let opaque = opaque(candidates, &outside, beyond == Some(Beyond::Accept));
    let mut too_old = HashSet::new();
    if !opaque.is_empty() {
        claim_opaque(conn, consumer, &opaque, &mut first, &mut too_old).await?;
    }
    let accepted: HashSet<Uuid> = opaque.iter().map(|(id, _)| *id).collect();
    Ok(answers(candidates, first, |id| match id.day().and_then(|day| outside.get(&day)) {
        Some(claim) if !accepted.contains(id.as_uuid()) => Some(*claim),
        _ => too_old.contains(id.as_uuid()).then_some(Claim::TooOld),
    }))
}

/// Claims messages that [`claim_each`] has told as [`Claim::TooOld`] or [`Claim::Future`], so that each is set aside, or
/// decided about by a person, once, however often it comes: [`Claim::First`] and [`Claim::Duplicate`] alone.
///
/// It does not say that a message was never applied. The claims are kept as those of [opaque ids](self#opaque-ids) are,
/// from when they were made; an id from the future is claimed in the partition of its day too, so that it is a
/// duplicate still when that day has come. Two or three statements, in a transaction of READ COMMITTED.
///
/// # Errors
/// What Postgres answers; the transaction is aborted then.
pub async fn claim_outside(
    conn: &mut PgConnection,
    consumer: &str,
    ids: &[MessageId],
) -> Result<Vec<Claim>, Error> {
    let candidates: Vec<Candidate> = ids.iter().copied().map(Candidate::new).collect();
    let days = claim_timed(conn, consumer, &candidates, FUTURE_DAYS_OUTSIDE_MAX, false).await?;
    let mut known: HashSet<Uuid> = HashSet::new();
    if let First::These(new) = days.first {
        known.extend(timed(&candidates, &days.outside).0.iter().filter(|id| !new.contains(id)));
    }
    // Also those that have a partition: they may have been claimed when their day was too far ahead for one.
    let opaque: Vec<(Uuid, Option<f64>)> = ids.iter().map(|id| (*id.as_uuid(), None)).collect();
    let mut first = HashSet::new();
    claim_opaque(conn, consumer, &opaque, &mut first, &mut HashSet::new()).await?;
    first.retain(|id| !known.contains(id));
    Ok(answers(&candidates, first, |_| None))
}

/// What became of the ids that go by their day.
#[derive(Default)]
struct Timed {
    /// Days whose ids were not claimed.
    outside: BTreeMap<Day, Claim>,
    first: First,
    /// How many were asked for in the end.
    asked: usize,
}

/// Claims the ids of days that have a partition or can have one. With `refuse`, a day outside the horizon is an error.
async fn claim_timed(
    conn: &mut PgConnection,
    consumer: &str,
    candidates: &[Candidate],
    future_max: i32,
    refuse: bool,
) -> Result<Timed, Error> {
    let mut outside = BTreeMap::new();
    for round in 0.. {
        let (ids, days) = timed(candidates, &outside);
        if ids.is_empty() {
            break;
        }
        if round == ROUNDS_MAX {
            return Err(Error::new(
                Kind::Internal,
                "a partition of tailrace.processed_message was made and is still missing",
            ));
        }
        let asked = ids.len();
        let found = try_claim(conn, consumer, ids, days, future_max).await?;
        if let (true, Some((day, claim))) = (refuse, found.outside.first_key_value()) {
            return Err(refusal(candidates, *day, *claim));
        }
        if !found.missing.is_empty() {
            retention::make_partitions(conn, &found.missing).await?;
        } else if found.outside.is_empty() {
            retention::note_late_claims(conn, &found.late).await?;
            return Ok(Timed { outside, first: found.first, asked });
        }
        outside.extend(found.outside);
    }
    Ok(Timed { outside, ..Timed::default() })
}

/// The ids that go by their day, and the days.
fn timed(candidates: &[Candidate], outside: &BTreeMap<Day, Claim>) -> (Vec<Uuid>, BTreeSet<Day>) {
    let mut days = BTreeSet::new();
    let mut ids = Vec::with_capacity(candidates.len());
    for Candidate { id, .. } in candidates {
        if let Some(day) = id.day().filter(|day| !outside.contains_key(day)) {
            days.insert(day);
            ids.push(*id.as_uuid());
        }
    }
    (ids, days)
}

/// The ids that go by when they came, each with the seconds of when it was written: the opaque ones, and
/// those of forgotten days if they are accepted.
fn opaque(
    candidates: &[Candidate],
    outside: &BTreeMap<Day, Claim>,
    accept: bool,
) -> Vec<(Uuid, Option<f64>)> {
    let chosen = candidates.iter().filter(|candidate| match candidate.id.day() {
        Some(day) => accept && outside.get(&day) == Some(&Claim::TooOld),
        None => true,
    });
    let written = |candidate: &Candidate| {
        let since = candidate.written_at?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(since.as_secs_f64())
    };
    chosen
        .map(|candidate| (*candidate.id.as_uuid(), if accept { None } else { written(candidate) }))
        .collect()
}

/// Which ids were claimed.
#[derive(Default)]
enum First {
    /// All, each of which was asked for once.
    #[default]
    All,
    These(HashSet<Uuid>),
}

impl First {
    /// As a statement has told them: almost always all ids are new, and no list of them has to come back.
    fn of(claimed: Option<Vec<Uuid>>) -> Self {
        #[cfg(feature = "faults")]
        if crate::faults::claims_are_ignored() {
            return Self::All;
        }
        claimed.map_or(Self::All, |ids| Self::These(ids.into_iter().collect()))
    }
}

/// What the statement found; nothing is inserted if a day is outside or missing.
#[derive(Default)]
struct Found {
    first: First,
    outside: BTreeMap<Day, Claim>,
    missing: Vec<Day>,
    /// Days of long ago without a fresh mark of when they were claimed.
    late: Vec<Day>,
}

// The days are looked at in the same statement: a row without a partition would be an error, which aborts the
// caller's transaction, and a savepoint per claim costs more than this look-up. It goes by `to_regclass` and not by
// the catalog's rows: like the insert it knows what the session has heard of. A partition that it has not heard of
// yet is missing to both, and making it makes the session listen. That a day is there is asked before how old it is:
// claims may stand in it.
//
// The arrays are read by subqueries so that the planner does not look into them: it would see how few ids there are, take a
// plan for them to be cheaper than one for any number, and plan the statement anew for each batch, which takes three times
// as long as running it. Held by `the_plan_of_a_claim_is_kept`.
macro_rules! odd_days {
    () => {
        "clock AS (
        SELECT floor(extract(epoch FROM statement_timestamp()) / 86400)::int AS today
    ), asked AS (
        SELECT day, date '1970-01-01' + day AS date, day - today AS ahead FROM unnest((SELECT $3::int[])) AS day, clock
    ), odd AS MATERIALIZED (
        SELECT day, state FROM asked, LATERAL (SELECT CASE
            WHEN ahead > $4 THEN 2
            WHEN to_regclass('tailrace.processed_message_' || to_char(date, 'YYYYMMDD')) IS NOT NULL THEN
                CASE WHEN ahead < -1 AND NOT EXISTS (
                    SELECT FROM tailrace.processed_message_day AS known
                    WHERE known.day = date AND known.claimed_at > statement_timestamp() - interval '1 hour')
                THEN 4 ELSE 0 END
            WHEN ahead < -$5 OR EXISTS (
                SELECT FROM tailrace.processed_message_day AS known
                WHERE known.day = date AND known.dropped_at IS NOT NULL) THEN 1
            ELSE 3 END AS state) AS found
        WHERE state > 0
    )"
    };
}

const CLAIM: &str = concat!(
    "WITH ",
    odd_days!(),
    ", claimed AS (
        INSERT INTO tailrace.processed_message (consumer, message_id)
        SELECT $1, id FROM unnest((SELECT $2::uuid[])) AS id
        WHERE NOT EXISTS (SELECT FROM odd WHERE state < 4)
        ORDER BY id
        ON CONFLICT DO NOTHING
        RETURNING message_id
    )
    SELECT CASE WHEN (SELECT count(*) FROM claimed) < cardinality($2::uuid[])
                THEN ARRAY(SELECT message_id FROM claimed) END,
           ARRAY(SELECT day FROM odd ORDER BY day),
           ARRAY(SELECT state FROM odd ORDER BY day)"
);

async fn try_claim(
    conn: &mut PgConnection,
    consumer: &str,
    ids: Vec<Uuid>,
    days: BTreeSet<Day>,
    future_max: i32,
) -> Result<Found, Error> {
    let days: Vec<i32> = days.iter().map(|day| day.0).collect();
    let (claimed, days, states): (Option<Vec<Uuid>>, Vec<i32>, Vec<i32>) = sqlx::query_as(CLAIM)
        .bind(consumer)
        .bind(ids)
        .bind(days)
        .bind(future_max)
        .bind(PAST_DAYS_MAX)
        .fetch_one(conn)
        .await
        .map_err(cannot_claim)?;
    let mut found = Found { first: First::of(claimed), ..Found::default() };
    for (day, state) in days.into_iter().map(Day).zip(states) {
        match state {
            1 => drop(found.outside.insert(day, Claim::TooOld)),
            2 => drop(found.outside.insert(day, Claim::Future)),
            3 => found.missing.push(day),
            _ => found.late.push(day),
        }
    }
    Ok(found)
}

async fn claim_opaque(
    conn: &mut PgConnection,
    consumer: &str,
    candidates: &[(Uuid, Option<f64>)],
    first: &mut HashSet<Uuid>,
    too_old: &mut HashSet<Uuid>,
) -> Result<(), Error> {
    let (ids, written_at): (Vec<Uuid>, Vec<Option<f64>>) = candidates.iter().copied().unzip();
    let rows: Vec<(Uuid, bool)> = sqlx::query_as(
        "SELECT id, too_old FROM tailrace.claim_opaque($1, $2::uuid[],
             ARRAY(SELECT to_timestamp(seconds) FROM unnest($3::float8[]) WITH ORDINALITY AS given (seconds, place)
                   ORDER BY place))",
    )
    .bind(consumer)
    .bind(ids)
    .bind(written_at)
    .fetch_all(conn)
    .await
    .map_err(cannot_claim)?;
    for (id, is_old) in rows {
        if is_old {
            too_old.insert(id)
        } else {
            first.insert(id)
        };
    }
    Ok(())
}

fn cannot_claim(error: sqlx::Error) -> Error {
    Error::database("the message ids cannot be claimed", error)
}

fn answers(
    candidates: &[Candidate],
    mut first: HashSet<Uuid>,
    outside: impl Fn(&MessageId) -> Option<Claim>,
) -> Vec<Claim> {
    let answer = |Candidate { id, .. }: &Candidate| match outside(id) {
        Some(claim) => claim,
        None if first.remove(id.as_uuid()) => Claim::First,
        None => Claim::Duplicate,
    };
    candidates.iter().map(answer).collect()
}

fn refusal(candidates: &[Candidate], day: Day, claim: Claim) -> Error {
    let (text, mend) = match claim {
        Claim::Future => (
            "the message id was minted more than one day ahead of the database's clock",
            "correct the producer's clock",
        ),
        _ => (
            "the message id is older than the claims that are kept",
            "whether it was applied before is not known; claim_each leaves it to you what to do about it",
        ),
    };
    let error = Error::new(Kind::MessageId, text).mended_by(mend);
    match candidates.iter().find(|candidate| candidate.id.day() == Some(day)) {
        Some(candidate) => error.about(candidate.id),
        None => error,
    }
}

#[cfg(feature = "kafka")]
pub(crate) mod fenced;
#[cfg(test)]
#[cfg(feature = "kafka")]
pub(crate) mod tests;
