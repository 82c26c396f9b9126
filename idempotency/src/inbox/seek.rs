//! A consumer that is stopped goes on at another offset.

use std::fmt;

use sqlx::{Connection, PgConnection};

use super::{Audit, By, rolled_back, unchanged, unread};
use crate::error::{Error, Kind};

/// Progress that was moved so short ago is that of a consumer that runs.
pub(super) const QUIET_SECONDS: f64 = 60.0;

/// Where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// At this offset.
    Offset(i64),
    /// Where the consumer starts without progress, as its own configuration says: by default at the earliest record.
    Start,
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offset(offset) => write!(f, "offset {offset}"),
            Self::Start => f.write_str("where its configuration says"),
        }
    }
}

/// The lanes of a partition before a seek.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sought {
    /// How far each lane had come; none for one that had applied nothing.
    pub from: Vec<Option<i64>>,
    /// The epoch that no owner holds any more.
    pub epoch: i64,
}

/// What a seek would leave.
///
/// # Errors
/// [`Kind::Conflict`] if there is no such progress, or if it was moved within the last minute or is being moved: its
/// consumer runs. What Postgres answers.
pub async fn plan_seek(
    conn: &mut PgConnection,
    consumer: &str,
    topic: &str,
    partition: i32,
) -> Result<Sought, Error> {
    let mut tx = conn.begin().await.map_err(unread)?;
    let found = lanes(&mut tx, consumer, topic, partition).await;
    tx.rollback().await.map_err(unread)?;
    found
}

/// Has a stopped consumer go on elsewhere in a partition, in all of its lanes, and raises the epoch, so that an owner
/// that was overlooked can not commit what it had in hand: it takes the partition anew, at the new place.
///
/// Ids that were claimed stay claimed: going back repeats no effect within the horizon. Where messages are known by
/// [`Dedupe::Position`](crate::Dedupe::Position) going back repeats none at all, and what is passed over counts as
/// applied.
///
/// # Errors
/// As [`plan_seek`]; nothing is changed then.
pub async fn seek(
    conn: &mut PgConnection,
    consumer: &str,
    topic: &str,
    partition: i32,
    to: To,
    by: &By,
) -> Result<Sought, Error> {
    let offset = match to {
        To::Offset(offset) if offset < 0 => {
            return Err(Error::new(Kind::Config, "the offset is negative")
                .mended_by("give the offset of the first record to be applied"));
        }
        To::Offset(offset) => Some(offset),
        To::Start => None,
    };
    let mut tx = conn.begin().await.map_err(unchanged)?;
    let sought = match lanes(&mut tx, consumer, topic, partition).await {
        Ok(sought) => sought,
        Err(error) => return rolled_back(tx, error).await,
    };
    let epoch: i64 = sqlx::query_scalar("SELECT tailrace.seek_consumer($1, $2, $3, $4)")
        .bind(consumer)
        .bind(topic)
        .bind(partition)
        .bind(offset)
        .fetch_one(&mut *tx)
        .await
        .map_err(unchanged)?;
    let from: Vec<String> = sought.from.iter().map(|offset| json(*offset)).collect();
    let audit = Audit {
        action: "seek",
        consumer,
        topic: Some(topic),
        partition: Some(partition),
        offset,
        before: Some(format!(
            "{{\"next_offset\": [{}], \"epoch\": {}}}",
            from.join(", "),
            sought.epoch
        )),
        after: Some(format!("{{\"next_offset\": {}, \"epoch\": {}}}", json(offset), epoch)),
    };
    audit.write(&mut tx, by).await?;
    tx.commit().await.map_err(unchanged)?;
    Ok(sought)
}

fn json(offset: Option<i64>) -> String {
    offset.map_or_else(|| "null".to_owned(), |offset| offset.to_string())
}

/// Locks the rows of all lanes, or says that somebody moves them.
async fn lanes(
    tx: &mut PgConnection,
    consumer: &str,
    topic: &str,
    partition: i32,
) -> Result<Sought, Error> {
    let place = format!("consumer {consumer}, topic {topic}, partition {partition}");
    let runs = |how: String| {
        Error::new(Kind::Conflict, format!("{place}: {how}, so its consumer runs"))
            .mended_by("stop every process of the consumer, wait a minute and seek then")
    };
    let rows: Vec<(Option<i64>, i64, f64)> = sqlx::query_as(
        "SELECT next_offset, epoch, extract(epoch FROM clock_timestamp() - updated_at)::float8
         FROM tailrace.consumer_progress
         WHERE consumer = $1 AND topic = $2 AND partition = $3 ORDER BY lane FOR UPDATE NOWAIT",
    )
    .bind(consumer)
    .bind(topic)
    .bind(partition)
    .fetch_all(tx)
    .await
    .map_err(|error| {
        match error.as_database_error().and_then(|fault| fault.code()).as_deref() {
            Some("55P03") => runs("a batch is being applied".to_owned()),
            _ => unread(error),
        }
    })?;
    let Some(epoch) = rows.iter().map(|(_, epoch, _)| *epoch).max() else {
        return Err(Error::new(Kind::Conflict, format!("{place}: there is no progress"))
            .mended_by(
                "check the names; a consumer that has never run starts as its configuration says",
            ));
    };
    if let Some((_, _, ago)) = rows.iter().find(|(_, _, ago)| *ago < QUIET_SECONDS) {
        return Err(runs(format!("progress was moved {ago:.0} s ago")));
    }
    Ok(Sought { from: rows.into_iter().map(|(offset, _, _)| offset).collect(), epoch })
}
