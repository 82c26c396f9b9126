//! A consumer that is stopped knows messages that come again in another way, or begins anew with it.

use sqlx::{Connection, PgConnection};

use super::seek::QUIET_SECONDS;
use super::{Audit, By, quoted, rolled_back, unchanged, unread};
use crate::dedupe::Dedupe;
use crate::error::{Error, Kind};

/// How a consumer has known messages until now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KnownBy {
    /// Each topic with `ids` or `position`, in the order of their names.
    pub topics: Vec<(String, String)>,
}

/// What a change would replace.
///
/// # Errors
/// [`Kind::Conflict`] if the consumer has no progress, or if progress was moved within the last minute or is being
/// moved: it runs. What Postgres answers.
pub async fn plan_dedupe(conn: &mut PgConnection, consumer: &str) -> Result<KnownBy, Error> {
    let mut tx = conn.begin().await.map_err(unread)?;
    let found = known(&mut tx, consumer).await;
    tx.rollback().await.map_err(unread)?;
    found
}

/// From now on a stopped consumer knows messages in this way, in all of its topics; the same way as before begins anew
/// with the next record. Progress stays. The epoch is raised, so that an owner that was overlooked can not commit.
///
/// By position, what was claimed by id is known by its offset alone. By ids, what was known by its position is known by
/// its offset, and not where the message stands in the topic once more.
///
/// # Errors
/// As [`plan_dedupe`]; nothing is changed then.
pub async fn set_dedupe(
    conn: &mut PgConnection,
    consumer: &str,
    dedupe: Dedupe,
    by: &By,
) -> Result<KnownBy, Error> {
    let mut tx = conn.begin().await.map_err(unchanged)?;
    let known = match known(&mut tx, consumer).await {
        Ok(known) => known,
        Err(error) => return rolled_back(tx, error).await,
    };
    sqlx::query("SELECT tailrace.set_consumer_dedupe($1, $2)")
        .bind(consumer)
        .bind(dedupe.name())
        .execute(&mut *tx)
        .await
        .map_err(unchanged)?;
    let before: Vec<String> = known
        .topics
        .iter()
        .map(|(topic, way)| format!("{}: {}", quoted(topic), quoted(way)))
        .collect();
    let audit = Audit {
        action: "dedupe",
        consumer,
        topic: None,
        partition: None,
        offset: None,
        before: Some(format!("{{{}}}", before.join(", "))),
        after: Some(format!("{{\"dedupe\": {}}}", quoted(dedupe.name()))),
    };
    audit.write(&mut tx, by).await?;
    tx.commit().await.map_err(unchanged)?;
    Ok(known)
}

/// Locks the consumer's progress, or says why nothing can be changed.
async fn known(tx: &mut PgConnection, consumer: &str) -> Result<KnownBy, Error> {
    let refused = |how: String, mend: &'static str| {
        Error::new(Kind::Conflict, format!("consumer {consumer}: {how}")).mended_by(mend)
    };
    let stop = "stop every process of the consumer, wait a minute and change it then";
    let ages: Vec<f64> = sqlx::query_scalar(
        "SELECT extract(epoch FROM clock_timestamp() - updated_at)::float8 FROM tailrace.consumer_progress
         WHERE consumer = $1 ORDER BY topic, partition, lane FOR UPDATE NOWAIT",
    )
    .bind(consumer)
    .fetch_all(&mut *tx)
    .await
    .map_err(|error| {
        match error.as_database_error().and_then(|fault| fault.code()).as_deref() {
            Some("55P03") => refused("a batch is being applied".to_owned(), stop),
            _ => unread(error),
        }
    })?;
    if ages.is_empty() {
        return Err(refused(
            "there is no progress".to_owned(),
            "check the name; a consumer that has never run begins as it is configured",
        ));
    }
    if let Some(ago) = ages.iter().find(|ago| **ago < QUIET_SECONDS) {
        return Err(refused(format!("progress was moved {ago:.0} s ago, so it runs"), stop));
    }
    let topics = sqlx::query_as(
        "SELECT met.topic, coalesce(known.dedupe, 'ids')
         FROM (SELECT DISTINCT topic FROM tailrace.consumer_progress WHERE consumer = $1) AS met
         LEFT JOIN tailrace.consumer_dedupe AS known ON known.consumer = $1 AND known.topic = met.topic
         ORDER BY met.topic",
    )
    .bind(consumer)
    .fetch_all(tx)
    .await
    .map_err(unread)?;
    Ok(KnownBy { topics })
}
