//! What is known of messages that may come again, besides their claims: how far the relays have come, and the lanes
//! before progress was set back.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use crate::dedupe::{Dedupe, Unsequenced};
use crate::error::{Error, Kind};
use crate::lanes::{Lanes, Reached, Stored, plan};
use crate::position::Offset;
use crate::progress::{Partition, Wanted, columns};
use crate::record::{Delivery, SEQUENCE};
use crate::sequence::{Break, Highest, Place, Sequences};

const AGAIN: &str = "see whether messages come again by that, then begin anew with \
     `tailrace inbox dedupe`, by position or by ids";

/// Looks at the records of a partition before they are handed to its lanes.
#[derive(Debug)]
pub(crate) struct Inspector {
    sequences: Sequences,
    unsequenced: Unsequenced,
}

impl Inspector {
    pub(crate) fn new(sequences: Sequences, unsequenced: Unsequenced) -> Self {
        Self { sequences, unsequenced }
    }

    /// An error for a record that may stand in the partition twice.
    pub(crate) fn admit(&mut self, delivery: &Delivery) -> Result<(), Error> {
        let told = |error: Error| Err(error.at(&delivery.position));
        let Some(header) = delivery.headers.get(SEQUENCE) else {
            return match self.unsequenced {
                Unsequenced::Claim => Ok(()),
                Unsequenced::Halt => told(unsequenced(delivery)),
            };
        };
        let admitted = match str::from_utf8(header) {
            Ok(sequence) => self.sequences.admit(sequence, delivery.position.offset),
            Err(_) => Err(Break::Unreadable),
        };
        admitted.or_else(|found| told(broken(delivery, found)))
    }
}

fn unsequenced(delivery: &Delivery) -> Error {
    let whose = match delivery.headers.get("ce_replay") {
        Some(_) => "a record of a replay",
        None => "a record",
    };
    let text = format!("{whose} has no ce_sequence, by which messages are known");
    Error::new(Kind::Sequence, text).mended_by(
        "pass over it with `tailrace inbox seek`, have such records known by their ids with \
         Config::unsequenced, or all with `tailrace inbox dedupe`",
    )
}

fn broken(delivery: &Delivery, found: Break) -> Error {
    let relay = delivery
        .headers
        .get(SEQUENCE)
        .and_then(|header| str::from_utf8(header).ok())
        .and_then(crate::sequence::parts)
        .map_or("", |(relay, _)| relay);
    let (text, mend) = match found {
        Break::Unreadable => (
            "the header ce_sequence is not what a relay writes".to_owned(),
            "pass over the record with `tailrace inbox seek`, or have messages known by their ids with \
             `tailrace inbox dedupe`",
        ),
        Break::Back { highest } => (
            format!(
                "the sequence of the relay {relay:?} goes back behind offset {highest}: a message stands in the partition twice"
            ),
            "its relay delivers at least once, or somebody else publishes under its id: pass over what comes again \
             with `tailrace inbox seek`, and have messages known by their ids with `tailrace inbox dedupe`",
        ),
        Break::Ahead { highest } => (
            format!(
                "the sequence of the relay {relay:?} is above that at offset {highest}, which stands behind it"
            ),
            "this is not the record that stood there before; begin anew with `tailrace inbox dedupe`",
        ),
        Break::Incarnation { from, to } => (
            format!("the relay {relay:?} has begun incarnation {to} after {from}"),
            "its adoption has told what is published twice: pass over that with `tailrace inbox seek`, then begin \
             anew with `tailrace inbox dedupe`, by position or by ids",
        ),
        Break::Relays => (
            format!("the relay {relay:?} is one more than can be kept apart in a partition"),
            "have messages known by their ids with `tailrace inbox dedupe`",
        ),
    };
    Error::new(Kind::Sequence, text).mended_by(mend)
}

/// The error about a topic with another number of partitions.
pub(crate) fn resized(topic: &str, before: i32, now: i32) -> Error {
    let text = format!(
        "the topic {topic} has {now} partitions and had {before}: the messages of a key may stand in two of them"
    );
    Error::new(Kind::Sequence, text).mended_by(AGAIN)
}

/// Stores how messages of these topics are known where nobody has yet: before the first progress of a topic.
pub(crate) async fn settle(
    conn: &mut PgConnection,
    consumer: &str,
    dedupe: Dedupe,
    topics: &BTreeMap<String, Option<i32>>,
) -> Result<(), Error> {
    let (names, partitions): (Vec<&str>, Vec<Option<i32>>) =
        topics.iter().map(|(name, partitions)| (name.as_str(), *partitions)).unzip();
    sqlx::query(
        "INSERT INTO tailrace.consumer_dedupe AS known (consumer, topic, dedupe, partitions)
         SELECT $1, topic, chosen, CASE chosen WHEN 'position' THEN partitions END
         FROM unnest($3::text[], $4::int[]) AS asked (topic, partitions),
              LATERAL (SELECT CASE WHEN EXISTS (
                  SELECT FROM tailrace.consumer_progress AS stored
                  WHERE stored.consumer = $1 AND stored.topic = asked.topic AND stored.next_offset IS NOT NULL)
              THEN 'ids' ELSE $2 END AS chosen) AS choice
         ORDER BY topic
         ON CONFLICT (consumer, topic) DO UPDATE SET partitions = excluded.partitions
             WHERE known.dedupe = 'position' AND known.partitions IS NULL AND excluded.partitions IS NOT NULL",
    )
    .bind(consumer)
    .bind(dedupe.name())
    .bind(names)
    .bind(partitions)
    .execute(conn)
    .await
    .map_err(|error| Error::database("how messages are known cannot be stored", error))?;
    Ok(())
}

/// What is stored of a topic.
struct Known {
    dedupe: String,
    was_position: bool,
    partitions: Option<i32>,
}

/// What a new owner has to know about messages that may come again.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// Per topic: whether what was reached before counts as applied.
    by_offset: BTreeMap<String, bool>,
    sequences: BTreeMap<Partition, Sequences>,
}

/// Checks that messages are known as configured, and reads what that takes. The rows of progress are locked by then.
pub(crate) async fn remember(
    conn: &mut PgConnection,
    consumer: &str,
    dedupe: Dedupe,
    wanted: &[Wanted],
) -> Result<Remembered, Error> {
    let unread = |error| Error::database("how messages are known cannot be read", error);
    let (topics, numbers) = columns(wanted.iter().map(|wanted| &wanted.partition));
    let rows: Vec<(String, String, bool, Option<i32>)> = sqlx::query_as(
        "SELECT topic, dedupe, was_position, partitions FROM tailrace.consumer_dedupe
         WHERE consumer = $1 AND topic = ANY($2)",
    )
    .bind(consumer)
    .bind(&topics)
    .fetch_all(&mut *conn)
    .await
    .map_err(unread)?;
    let mut remembered = Remembered::default();
    for (topic, stored, was_position, partitions) in rows {
        let known = Known { dedupe: stored, was_position, partitions };
        let now = wanted.iter().find(|wanted| *wanted.partition.topic == *topic);
        check(consumer, &topic, dedupe, &known, now.and_then(|wanted| wanted.partitions))?;
        remembered.by_offset.insert(topic, known.was_position || dedupe.is_position());
    }
    if !dedupe.is_position() {
        return Ok(remembered);
    }
    let rows: Vec<(String, i32, String, String, i64)> = sqlx::query_as(
        r#"SELECT topic, partition, relay, sequence, "offset" FROM tailrace.consumer_position
           WHERE consumer = $1 AND (topic, partition) IN (SELECT * FROM unnest($2::text[], $3::int[]))"#,
    )
    .bind(consumer)
    .bind(topics)
    .bind(numbers)
    .fetch_all(conn)
    .await
    .map_err(unread)?;
    for (topic, number, relay, sequence, offset) in rows {
        let place = Place::read(&sequence).ok_or_else(|| {
            Error::new(Kind::Internal, "a row of tailrace.consumer_position is not readable")
        })?;
        let partition = Partition { topic: topic.into(), number };
        let highest = Highest { place, offset: Offset::new(offset) };
        remembered.sequences.entry(partition).or_default().know(relay, highest);
    }
    Ok(remembered)
}

fn check(
    consumer: &str,
    topic: &str,
    dedupe: Dedupe,
    known: &Known,
    partitions: Option<i32>,
) -> Result<(), Error> {
    if known.dedupe != dedupe.name() {
        let text = format!(
            "the consumer {consumer} knows messages of {topic} by {}, and is configured to know them by {}",
            known.dedupe,
            dedupe.name()
        );
        return Err(Error::new(Kind::Sequence, text).mended_by(
            "set Config::dedupe back, or change what is stored with `tailrace inbox dedupe`",
        ));
    }
    match (known.partitions, partitions) {
        (Some(before), Some(now)) if before != now => Err(resized(topic, before, now)),
        _ => Ok(()),
    }
}

impl Remembered {
    pub(crate) fn sequences(&mut self, partition: &Partition) -> Sequences {
        self.sequences.remove(partition).unwrap_or_default()
    }

    pub(crate) fn is_by_offset(&self, topic: &str) -> bool {
        self.by_offset.get(topic).copied().unwrap_or_default()
    }
}

/// How far lanes had come before progress was set back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Before {
    /// Index is the lane; none where it was not set back.
    pub(crate) below: Vec<Option<Offset>>,
    pub(crate) former: Vec<Reached>,
}

impl Before {
    /// What is left of it for a new owner with so many lanes, of which the stored ones go on at `next_offsets`.
    pub(crate) fn of_lanes(&self, next_offsets: &[Option<Offset>], lanes: Lanes) -> Self {
        if self.below.iter().all(Option::is_none) && self.former.is_empty() {
            return Self::default();
        }
        let below = (0..next_offsets.len().max(self.below.len())).map(|lane| {
            let next = next_offsets.get(lane).copied().flatten();
            next.max(self.below.get(lane).copied().flatten())
        });
        let stored =
            Stored { epoch: 0, next_offsets: below.collect(), former: self.former.clone() };
        let plan = plan(&stored, lanes, None);
        Self { below: plan.next_offsets, former: plan.former }
    }

    /// In the form in which lanes are asked what was applied before.
    pub(crate) fn reached(&self) -> Vec<Reached> {
        let below = self.below.iter().map(|offset| offset.map_or(0, Offset::get)).collect();
        self.former.iter().cloned().chain([below]).filter(|reached| !reached.is_empty()).collect()
    }
}

/// Sequences of a topic that was made anew stand nowhere in it: its records have to be above them wherever they stand.
pub(crate) async fn detach(
    conn: &mut PgConnection,
    consumer: &str,
    partition: &Partition,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        r#"UPDATE tailrace.consumer_position SET "offset" = -1
           WHERE consumer = $1 AND topic = $2 AND partition = $3"#,
    )
    .bind(consumer)
    .bind(&*partition.topic)
    .bind(partition.number)
    .execute(conn)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests;
