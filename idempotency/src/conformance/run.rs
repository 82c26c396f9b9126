//! One run of the suite: the samples, an accident, and the wait until all messages are seen to.

use std::time::Duration;

use sqlx::PgPool;

use super::process::{Begin, Plant, Process};
use super::topic::Topics;
use super::{Sample, Suite};
use crate::error::BoxError;
use crate::milestone::Milestone;

/// Messages that share a transaction, so that there are several.
pub(super) const BATCH_RECORDS: usize = 5;
/// How often it is looked whether all messages are seen to.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What happens in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accident {
    Nothing,
    Again,
    Twice,
    OtherOrder,
    /// Two deaths, with the first batch or call and with a later one.
    DeathAt(Milestone),
    RolledBack,
    Zombie,
    Rebalance,
}

/// Cheap ones first, each finding what those before it leave open.
pub(super) const ACCIDENTS: [Accident; 12] = [
    Accident::Nothing,
    Accident::Again,
    Accident::Twice,
    Accident::OtherOrder,
    Accident::DeathAt(Milestone::Fenced),
    Accident::DeathAt(Milestone::Handled),
    Accident::DeathAt(Milestone::Committed),
    Accident::DeathAt(Milestone::Prepared),
    Accident::DeathAt(Milestone::Called),
    Accident::RolledBack,
    Accident::Zombie,
    Accident::Rebalance,
];

impl Accident {
    pub(super) fn name(self) -> String {
        match self {
            Self::Nothing => "nothing happens".to_owned(),
            Self::Again => "the same messages come to a consumer of another name".to_owned(),
            Self::Twice => "each record comes twice".to_owned(),
            Self::OtherOrder => "other keys come first, one message in a transaction".to_owned(),
            Self::DeathAt(milestone) => format!("processes die at {milestone:?}"),
            Self::RolledBack => "a transaction is rolled back and repeated".to_owned(),
            Self::Zombie => "a former owner goes on after the next one has begun".to_owned(),
            Self::Rebalance => "a second process joins within a batch".to_owned(),
        }
    }

    /// What is usually behind a difference.
    pub(super) fn behind(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Again => {
                "something outlives a consumer: a static, a table that reset leaves alone, the clock, chance"
            }
            Self::Twice => {
                "a handler has effects at a duplicate: an id of its own, or another transaction"
            }
            Self::OtherOrder => {
                "the effects depend on the order across keys, which nobody promises, or on what shares a batch"
            }
            Self::DeathAt(_) | Self::RolledBack | Self::Zombie | Self::Rebalance => {
                "a handler has effects outside of the transaction that it is given (another connection, a call, a file: \
                 use on_call), or keeps state in memory"
            }
        }
    }

    /// Whether it never happens to a consumer without calls.
    pub(super) fn is_about_calls(self) -> bool {
        matches!(self, Self::DeathAt(Milestone::Prepared | Milestone::Called))
    }

    fn batch_records(self) -> usize {
        if self == Self::OtherOrder { 1 } else { BATCH_RECORDS }
    }

    /// The records of a run, in their order.
    fn records(self, samples: &[Sample]) -> Vec<&Sample> {
        match self {
            Self::Twice => samples.iter().flat_map(|sample| [sample, sample]).collect(),
            Self::OtherOrder => {
                let mut records: Vec<&Sample> = samples.iter().collect();
                // A stable sort: each key keeps its order.
                records.sort_by(|one, other| other.key.cmp(&one.key));
                records
            }
            _ => samples.iter().collect(),
        }
    }
}

pub(super) struct Run<'s> {
    pub(super) suite: &'s Suite,
    pub(super) pool: &'s PgPool,
    pub(super) topic: &'s str,
    pub(super) plant: &'s Plant,
    pub(super) accident: Accident,
}

impl Run<'_> {
    /// The consumer's name, which no other run has.
    pub(super) fn consumer(&self) -> String {
        self.topic.to_owned()
    }

    /// Has the accident happen, and returns when all messages are seen to.
    pub(super) async fn go(&self, topics: &Topics) -> Result<(), BoxError> {
        let records = self.accident.records(&self.suite.samples);
        topics.fill(self.topic, &records).await?;
        let expected = records.len() as u64;
        match self.accident {
            Accident::DeathAt(milestone) => {
                for time in [1, 2] {
                    let mut process = self.start(time, Some((milestone, time))).await?;
                    let there = self.comes_to_halt(&mut process, expected).await?;
                    process.kill().await;
                    if !there {
                        return Ok(());
                    }
                }
            }
            Accident::RolledBack => {
                let mut process = self.start(1, Some((Milestone::Handled, 2))).await?;
                if self.comes_to_halt(&mut process, expected).await? {
                    self.end_sessions().await?;
                    process.go_on();
                }
                self.all(&mut process, expected).await?;
                process.kill().await;
                return Ok(());
            }
            Accident::Zombie => return self.zombie(expected).await,
            Accident::Rebalance => return self.rebalance(expected).await,
            Accident::Nothing | Accident::Again | Accident::Twice | Accident::OtherOrder => {}
        }
        let mut process = self.start(9, None).await?;
        self.all(&mut process, expected).await?;
        process.kill().await;
        Ok(())
    }

    /// The next owner comes by another group, so that the former one hears nothing of it.
    async fn zombie(&self, expected: u64) -> Result<(), BoxError> {
        let mut zombie = self.start(1, Some((Milestone::Handled, 2))).await?;
        if !self.comes_to_halt(&mut zombie, expected).await? {
            return Ok(());
        }
        let mut next = self.start(2, None).await?;
        self.all(&mut next, expected).await?;
        zombie.go_on();
        while zombie.counters.report().fenced == 0 {
            tokio::select! {
                // It may have found out in another way.
                _ = zombie.failure() => break,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        zombie.kill().await;
        self.all(&mut next, expected).await?;
        next.kill().await;
        Ok(())
    }

    /// The second process joins while the first is within a batch; by the deadline of a rebalance that is cut off.
    async fn rebalance(&self, expected: u64) -> Result<(), BoxError> {
        let mut first = self.start(1, Some((Milestone::Handled, 2))).await?;
        if !self.comes_to_halt(&mut first, expected).await? {
            return Ok(());
        }
        let mut second = self.start(1, None).await?;
        // The partition that moves may be the one that stands still, or another one.
        while !self.has_moved().await? {
            if let Some(error) = self.ended(&mut second).await {
                return Err(error);
            }
        }
        first.go_on();
        self.all(&mut second, expected).await?;
        first.kill().await;
        second.kill().await;
        Ok(())
    }

    /// Processes of one group share the partitions; those of another one do not know of them.
    async fn start(
        &self,
        group: u32,
        halts_at: Option<(Milestone, u32)>,
    ) -> Result<Process, BoxError> {
        let begin = Begin {
            database_url: self.suite.database_url.clone(),
            brokers: self.suite.brokers.clone(),
            consumer: self.consumer(),
            group: format!("{}-{group}", self.topic),
            topic: self.topic.to_owned(),
            batch_records: self.accident.batch_records(),
            halts_at,
        };
        Process::start(self.plant, begin).await
    }

    /// Whether a process comes to stand still before all messages are seen to.
    async fn comes_to_halt(&self, process: &mut Process, expected: u64) -> Result<bool, BoxError> {
        loop {
            tokio::select! {
                biased;
                there = process.halts() => return Ok(there),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if self.seen_to().await? >= expected {
                return Ok(false);
            }
            if let Some(error) = self.ended(process).await {
                return Err(error);
            }
        }
    }

    /// Waits until all messages are seen to.
    async fn all(&self, process: &mut Process, expected: u64) -> Result<(), BoxError> {
        while self.seen_to().await? < expected {
            if let Some(error) = self.ended(process).await {
                return Err(error);
            }
        }
        Ok(())
    }

    /// A little later: the error that the process has ended with.
    async fn ended(&self, process: &mut Process) -> Option<BoxError> {
        tokio::select! {
            biased;
            error = process.failure() => Some(error.into()),
            () = tokio::time::sleep(LOOK_EVERY) => None,
        }
    }

    /// How many records were applied or given up: offsets that were passed, but for those that are parked.
    async fn seen_to(&self) -> Result<u64, BoxError> {
        let seen_to: i64 = sqlx::query_scalar(
            "SELECT coalesce(sum(next_offset), 0)::bigint
                    - (SELECT count(*) FROM tailrace.parked_message WHERE consumer = $1)
             FROM (SELECT min(coalesce(next_offset, 0)) AS next_offset FROM tailrace.consumer_progress
                   WHERE consumer = $1 GROUP BY topic, partition) AS progress",
        )
        .bind(self.consumer())
        .fetch_one(self.pool)
        .await?;
        Ok(u64::try_from(seen_to).unwrap_or(0))
    }

    /// Whether a partition has its second owner.
    async fn has_moved(&self) -> Result<bool, BoxError> {
        let moved = "SELECT coalesce(max(epoch) > 1, false) FROM tailrace.consumer_progress WHERE consumer = $1";
        Ok(sqlx::query_scalar(moved).bind(self.consumer()).fetch_one(self.pool).await?)
    }

    /// Postgres ends the sessions that are within a transaction of the consumer.
    async fn end_sessions(&self) -> Result<(), BoxError> {
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'idle in transaction'",
        )
        .execute(self.pool)
        .await?;
        Ok(())
    }

    /// Why messages wait, for the text of a finding.
    pub(super) async fn what_is_left(&self) -> String {
        let why: Result<Option<String>, sqlx::Error> = sqlx::query_scalar(
            "SELECT min(coalesce(detail, reason)) FROM tailrace.parked_message WHERE consumer = $1",
        )
        .bind(self.consumer())
        .fetch_one(self.pool)
        .await;
        let why = why.ok().flatten();
        why.map_or_else(String::new, |why| format!("; parked, since: {why}"))
    }
}
