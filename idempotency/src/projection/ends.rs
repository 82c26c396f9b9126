//! How far the topics of a read model reach, and how far a build has come in them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use sqlx::PgConnection;

use super::Remaining;
use crate::assignment::Group;
use crate::beginning::BROKER_WAIT_MAX;
use crate::client::refused_properties;
use crate::config::Options;
use crate::consumer::client_config;
use crate::error::{Error, Kind};

/// How often Kafka is asked where topics end.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Where a partition begins and ends for a reader of committed records.
type Bounds = BTreeMap<(String, i32), (i64, i64)>;

/// Asks Kafka where topics begin and end, at most once a second.
pub(super) struct Ends {
    client: Arc<BaseConsumer<Group>>,
    topics: Vec<Arc<str>>,
    known: Option<(Instant, Bounds)>,
    told: bool,
}

impl Ends {
    pub(super) fn new(options: &Options, topics: &[Arc<str>]) -> Result<Self, Error> {
        let config = client_config(options);
        let client = config.create_with_context(Group::default());
        let client = client.map_err(|error| refused_properties(&config, &error))?;
        Ok(Self { client: Arc::new(client), topics: topics.to_vec(), known: None, told: false })
    }

    /// How far the consumer is from the ends as they were a moment ago: what is committed in Kafka by then is applied
    /// once nothing is left. Offsets count, of which some are no records.
    pub(super) async fn remaining(
        &mut self,
        conn: &mut PgConnection,
        consumer: &str,
    ) -> Result<Remaining, Error> {
        let bounds = match self.known.take() {
            Some((at, bounds)) if at.elapsed() < ASK_EVERY => (at, bounds),
            _ => {
                let (client, topics) = (Arc::clone(&self.client), self.topics.clone());
                // The client's calls block.
                let asked = tokio::task::spawn_blocking(move || bounds(&client, &topics));
                let broke = |_| Error::new(Kind::Internal, "the question for the ends broke off");
                (Instant::now(), asked.await.map_err(broke)??)
            }
        };
        if !std::mem::replace(&mut self.told, true)
            && bounds.1.values().any(|(begin, _)| *begin > 0)
        {
            tracing::warn!(
                consumer,
                "a topic does not begin at its first record any more: what was deleted from it is not in the read model"
            );
        }
        let reached = reached(conn, consumer).await?;
        let mut remaining = Remaining::default();
        for (partition, (begin, end)) in &bounds.1 {
            let next = reached.get(partition).copied().unwrap_or(*begin);
            remaining.total += end.saturating_sub(*begin).unsigned_abs();
            remaining.done += next.clamp(*begin, *end).saturating_sub(*begin).unsigned_abs();
        }
        self.known = Some(bounds);
        Ok(remaining)
    }
}

fn bounds(client: &BaseConsumer<Group>, topics: &[Arc<str>]) -> Result<Bounds, Error> {
    let mut bounds = Bounds::new();
    for topic in topics {
        let unknown = |error| {
            let text = format!("the ends of the partitions of {topic} are not known");
            Error::new(Kind::Kafka, text).caused_by(error)
        };
        let metadata = client.fetch_metadata(Some(topic), BROKER_WAIT_MAX).map_err(unknown)?;
        let found = metadata.topics().iter().filter(|found| found.name() == &**topic);
        let mut partitions = found.flat_map(|found| found.partitions()).peekable();
        // A topic that is just being made would pass for one that is read to its end.
        if partitions.peek().is_none() {
            let text = format!("the topic {topic} does not exist or cannot be read");
            return Err(Error::new(Kind::Kafka, text));
        }
        for partition in partitions {
            let number = partition.id();
            let watermarks = client.fetch_watermarks(topic, number, BROKER_WAIT_MAX);
            bounds.insert((topic.to_string(), number), watermarks.map_err(unknown)?);
        }
    }
    Ok(bounds)
}

/// Below which offset everything is applied, per partition.
async fn reached(
    conn: &mut PgConnection,
    consumer: &str,
) -> Result<BTreeMap<(String, i32), i64>, Error> {
    let rows: Vec<(String, i32, i64)> = sqlx::query_as(
        "SELECT topic, partition, min(coalesce(next_offset, 0))
         FROM tailrace.consumer_progress WHERE consumer = $1 GROUP BY topic, partition",
    )
    .bind(consumer)
    .fetch_all(conn)
    .await
    .map_err(|error| Error::database("progress cannot be read", error))?;
    Ok(rows.into_iter().map(|(topic, number, next)| ((topic, number), next)).collect())
}
