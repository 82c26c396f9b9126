//! The intake owns the Kafka client on a thread of its own and hands records to the lanes.
//!
//! It never waits for a lane while records arrive: what does not fit is held and its partition paused.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use crate::assignment::{Group, Rebalance};
use crate::client::{self, add, complain, copy, interned, kafka_offset, list_of, refused};
use crate::config::Start;
use crate::error::{Error, Kind, Verdict};
use crate::flow::Flow;
use crate::lane::{Gauge, Lane, LaneEnd, Shared, in_time};
use crate::position::{Offset, Position};
use crate::progress::{self, Owned, Partition};
use crate::record::Delivery;
use crate::retry::{Backoff, chance};
use crate::running::Running;

/// The longest that a poll waits while nothing needs attention.
const POLL_WAIT: Duration = Duration::from_millis(50);
/// The longest that a poll waits while a lane is full or a partition waits for its owner.
const POLL_WAIT_BUSY: Duration = Duration::from_millis(5);
/// How often lanes are looked after while records arrive without a pause.
const LOOK_AFTER_EVERY: Duration = Duration::from_millis(5);
/// How often progress is told to Kafka.
const HINT_EVERY: Duration = Duration::from_secs(1);
/// How long the epoch of assigned partitions is tried to be raised: longer than a stopped former owner can
/// hold the row (see `progress::BEGIN`), far shorter than `max.poll.interval.ms`.
const OWN_FOR: Duration = Duration::from_secs(45);
/// How long an owner that found a newer epoch keeps trying to own the partition.
const OWN_AGAIN_FOR: Duration = Duration::from_secs(600);
/// How long a broker may take to tell where a partition ends, or to move its position.
const BROKER_WAIT_MAX: Duration = Duration::from_secs(10);

/// Tells the intake to end.
#[derive(Debug, Default)]
pub(crate) struct Stop(AtomicU8);

impl Stop {
    /// Finish the running batches, then leave the group.
    pub(crate) fn finish(&self) {
        self.0.fetch_max(1, Ordering::Relaxed);
    }

    /// Nobody waits any more and the runtime may be gone: leave at once.
    pub(crate) fn abandon(&self) {
        self.0.fetch_max(2, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    fn is_abandoned(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 1
    }
}

/// What the intake needs to know besides what it shares with the lanes.
pub(crate) struct Settings {
    pub(crate) client: ClientConfig,
    pub(crate) brokers: String,
    pub(crate) topics: Vec<Arc<str>>,
    pub(crate) start: Start,
    pub(crate) start_deadline: Duration,
    pub(crate) drain_deadline: Duration,
}

/// A partition that turned out to have a newer owner although the group still gives it to us.
struct Lost {
    backoff: Backoff,
    /// When to own it again; none while a lane of ours has not met the fence again.
    again_at: Option<Instant>,
}

pub(crate) struct Intake {
    client: BaseConsumer<Group>,
    runtime: Handle,
    shared: Arc<Shared>,
    settings: Settings,
    stop: Arc<Stop>,
    lanes: BTreeMap<Partition, Running>,
    lost: BTreeMap<Partition, Lost>,
    looked_after: Instant,
    hinted: Instant,
}

impl Intake {
    /// Connects, checks that brokers answer and topics exist, and joins the group.
    pub(crate) fn open(
        settings: Settings,
        shared: Arc<Shared>,
        runtime: Handle,
        stop: Arc<Stop>,
    ) -> Result<Self, Error> {
        let client: BaseConsumer<Group> =
            settings.client.create_with_context(Group::default()).map_err(|error| {
                Error::new(Kind::Config, "the kafka client refuses its properties").caused_by(error)
            })?;
        for topic in &settings.topics {
            client::exists(&client, topic, &settings.brokers, settings.start_deadline)?;
        }
        let topics: Vec<&str> = settings.topics.iter().map(|topic| &**topic).collect();
        client.subscribe(&topics).map_err(|error| {
            Error::new(Kind::Kafka, "the topics cannot be subscribed").caused_by(error)
        })?;
        let now = Instant::now();
        Ok(Self {
            client,
            runtime,
            shared,
            settings,
            stop,
            lanes: BTreeMap::new(),
            lost: BTreeMap::new(),
            looked_after: now,
            hinted: now,
        })
    }

    /// Works until told to stop or until something stands in the way, then lets the lanes finish.
    pub(crate) fn serve(&mut self) -> Result<(), Error> {
        let worked = self.work();
        if self.stop.is_abandoned() {
            self.abort_lanes();
            return worked;
        }
        let all = self.lanes.keys().cloned().collect::<Vec<_>>();
        let drained = self.end_lanes(&all, self.settings.drain_deadline);
        worked.and(drained)
    }

    /// Leaves the group. Rebalances on the way are answered without looking at them.
    pub(crate) fn leave(self) {
        self.client.context().close();
        // A rebalance that nobody answered would hold up the client's close.
        while let Some(rebalance) = self.client.context().next_rebalance() {
            let answered = match rebalance {
                Rebalance::Assigned(_) => {
                    self.client.incremental_assign(&TopicPartitionList::new())
                }
                Rebalance::Revoked(list) => self.client.incremental_unassign(&list),
            };
            if let Err(error) = answered {
                tracing::debug!(%error, "a rebalance during the shutdown was not answered");
            }
        }
        drop(self.client);
    }

    fn work(&mut self) -> Result<(), Error> {
        while !self.stop.is_set() {
            let busy = self.lost.values().any(|lost| lost.again_at.is_some())
                || self.lanes.values().any(|lane| lane.flow == Flow::Paused);
            let wait = if busy { POLL_WAIT_BUSY } else { POLL_WAIT };
            let record = match self.client.poll(wait) {
                None => None,
                Some(Ok(message)) => Some(copy(&message, &self.settings.topics)?),
                Some(Err(error)) => {
                    complain(&error, self.client.context().complaint())
                        .map_err(|error| self.located(error))?;
                    None
                }
            };
            let idle = record.is_none();
            if let Some(delivery) = record {
                self.accept(delivery)?;
            }
            while let Some(rebalance) = self.client.context().next_rebalance() {
                match rebalance {
                    Rebalance::Assigned(list) => self.assigned(&list)?,
                    Rebalance::Revoked(list) => self.revoked(&list)?,
                }
            }
            if idle || self.looked_after.elapsed() >= LOOK_AFTER_EVERY {
                self.look_after()?;
            }
        }
        Ok(())
    }

    /// Hands a record to its lane.
    fn accept(&mut self, delivery: Delivery) -> Result<(), Error> {
        let partition = Partition {
            topic: Arc::clone(&delivery.position.topic),
            number: delivery.position.partition,
        };
        // Without a lane the partition is lost for now; its records come again when it is owned again.
        let Some(lane) = self.lanes.get_mut(&partition) else { return Ok(()) };
        self.shared.counters.count_delivered();
        lane.offer(delivery);
        if lane.flow == Flow::Open && lane.flow_now() == Flow::Paused {
            lane.flow = Flow::Paused;
            self.client.pause(&list_of(&partition, None)?).map_err(refused)?;
        }
        Ok(())
    }

    fn look_after(&mut self) -> Result<(), Error> {
        self.looked_after = Instant::now();
        let mut ended = Vec::new();
        for (partition, lane) in &mut self.lanes {
            if lane.task.is_finished() {
                ended.push(partition.clone());
                continue;
            }
            lane.offer_held();
            if lane.flow == Flow::Paused && lane.flow_now() == Flow::Open {
                lane.flow = Flow::Open;
                self.client.resume(&list_of(partition, None)?).map_err(refused)?;
            }
        }
        for partition in ended {
            self.lane_ended(partition)?;
        }
        self.own_again()?;
        if self.hinted.elapsed() >= HINT_EVERY {
            self.hint();
        }
        Ok(())
    }

    /// New partitions: own them in Postgres, then fetch from where Postgres says.
    fn assigned(&mut self, list: &TopicPartitionList) -> Result<(), Error> {
        let partitions = self.partitions(list);
        tracing::info!(partitions = partitions.len(), "assigned");
        let owned = self.own(&partitions, OWN_FOR).inspect_err(|_| {
            // The client waits for an answer even when there is no way on.
            drop(self.client.incremental_assign(&TopicPartitionList::new()));
        })?;
        let mut from = TopicPartitionList::new();
        for owned in owned {
            add(&mut from, &owned.partition, owned.next_offset)?;
            self.start_lane(owned);
        }
        self.client.incremental_assign(&from).map_err(refused)
    }

    /// Partitions go elsewhere: let their lanes come to a batch's end, then let go.
    fn revoked(&mut self, list: &TopicPartitionList) -> Result<(), Error> {
        let partitions = self.partitions(list);
        let lost = self.client.assignment_lost();
        tracing::info!(partitions = partitions.len(), lost, "revoked");
        // An assignment that is lost may have a new owner already: nothing more can be committed.
        let patience = if lost { Duration::ZERO } else { self.settings.drain_deadline };
        // The client keeps a pause over revocation and assignment: the partition would never be fetched again.
        for partition in &partitions {
            let lost = self.lost.remove(partition).is_some_and(|lost| lost.again_at.is_some());
            let paused = self.lanes.get(partition).is_some_and(|lane| lane.flow == Flow::Paused);
            if lost || paused {
                self.client.resume(&list_of(partition, None)?).map_err(refused)?;
            }
        }
        let drained = self.end_lanes(&partitions, patience);
        self.client.incremental_unassign(list).map_err(refused)?;
        drained
    }

    fn start_lane(&mut self, owned: Owned) {
        let (queue, queued) = mpsc::channel(crate::flow::QUEUE_RECORDS_MAX);
        let (stop, stopped) = watch::channel(false);
        let gauge = Arc::new(Gauge::new());
        let partition = owned.partition.clone();
        let Owned { epoch, next_offset: began_at, .. } = owned;
        let lane = Lane {
            shared: Arc::clone(&self.shared),
            owned,
            queue: queued,
            stop: stopped,
            gauge: Arc::clone(&gauge),
        };
        let running = Running {
            epoch,
            began_at,
            queue,
            held: VecDeque::new(),
            flow: Flow::Open,
            stop,
            gauge,
            hinted: -1,
            task: self.runtime.spawn(lane.run()),
        };
        self.lanes.insert(partition, running);
    }

    /// Stops lanes at their batch's end, or cuts them off when patience ends.
    fn end_lanes(&mut self, partitions: &[Partition], patience: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + patience;
        for lane in partitions.iter().filter_map(|partition| self.lanes.get(partition)) {
            lane.stop.send_replace(true);
        }
        let mut result = Ok(());
        for partition in partitions {
            let Some(lane) = self.lanes.get_mut(partition) else { continue };
            let waited = async { tokio::time::timeout_at(deadline.into(), &mut lane.task).await };
            match self.runtime.block_on(waited) {
                Ok(ended) => {
                    if let (Err(error), Ok(())) = (failure(ended, partition), &result) {
                        result = Err(error);
                    }
                }
                Err(_) => {
                    lane.task.abort();
                    tracing::warn!(
                        topic = %partition.topic, partition = partition.number,
                        "the running batch was cut off and is rolled back"
                    );
                }
            }
        }
        if patience > Duration::ZERO {
            self.hint();
        }
        self.lanes.retain(|partition, _| !partitions.contains(partition));
        result
    }

    fn abort_lanes(&mut self) {
        for lane in self.lanes.values() {
            lane.task.abort();
        }
        self.lanes.clear();
    }

    /// A lane ended by itself.
    fn lane_ended(&mut self, partition: Partition) -> Result<(), Error> {
        let Some(lane) = self.lanes.remove(&partition) else { return Ok(()) };
        let Running { epoch, task, gauge, .. } = lane;
        failure(self.runtime.block_on(task), &partition)?;
        tracing::warn!(
            topic = %partition.topic, partition = partition.number, epoch = epoch.0,
            "another process owns the partition"
        );
        self.shared.counters.count_fenced();
        self.client.pause(&list_of(&partition, None)?).map_err(refused)?;
        let committed = gauge.committed.load(Ordering::Acquire) >= 0;
        if committed {
            self.lost.remove(&partition);
        }
        let named = partition.clone();
        let lost = self
            .lost
            .entry(partition)
            .or_insert_with(|| Lost { backoff: Backoff::new(OWN_AGAIN_FOR), again_at: None });
        let now = Instant::now();
        let Some(wait) = lost.backoff.failed(now, chance()) else {
            let text = format!("another process keeps owning {} {}", named.topic, named.number);
            return Err(Error::new(Kind::Kafka, text)
                .mended_by("find the second consumer with this name outside of the group"));
        };
        lost.again_at = Some(now + wait);
        Ok(())
    }

    /// Owns again what is still assigned. A group's view that is behind would have two members raise the
    /// epoch against each other; the wait gives the rebalance time to arrive.
    fn own_again(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (partition, lost) in &mut self.lost {
            if lost.again_at.take_if(|again_at| *again_at <= now).is_some() {
                due.push(partition.clone());
            }
        }
        for partition in due {
            for owned in self.own(std::slice::from_ref(&partition), OWN_FOR)? {
                let from = kafka_offset(owned.next_offset);
                self.client
                    .seek(&partition.topic, partition.number, from, BROKER_WAIT_MAX)
                    .map_err(refused)?;
                self.start_lane(owned);
                self.client.resume(&list_of(&partition, None)?).map_err(refused)?;
            }
        }
        Ok(())
    }

    /// Raises the epoch of partitions, with patience for a database that is busy or away.
    fn own(&self, partitions: &[Partition], patience: Duration) -> Result<Vec<Owned>, Error> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let mut backoff = Backoff::new(patience);
        loop {
            let error = match self.try_own(partitions) {
                Ok(owned) => return Ok(owned),
                Err(error) => error,
            };
            if error.verdict() == Verdict::Stop || self.stop.is_set() {
                return Err(error);
            }
            let Some(wait) = backoff.failed(Instant::now(), chance()) else { return Err(error) };
            tracing::warn!(error = %error, wait_ms = wait.as_millis(), "ownership is tried again");
            std::thread::sleep(wait);
        }
    }

    fn try_own(&self, partitions: &[Partition]) -> Result<Vec<Owned>, Error> {
        let Shared { consumer, pool, .. } = &*self.shared;
        let acquire = async || {
            let acquired = pool.acquire().await;
            acquired.map_err(|error| Error::database("no connection to postgres", error))
        };
        let unstored = match self.settings.start {
            Start::Earliest => Vec::new(),
            Start::Latest => self.runtime.block_on(in_time("progress cannot be read", async {
                progress::unstored(&mut *acquire().await?, consumer, partitions).await
            }))?,
        };
        let starts = partitions
            .iter()
            .map(|partition| match unstored.contains(partition) {
                true => self.newest(partition).map(Some),
                false => Ok(None),
            })
            .collect::<Result<Vec<_>, _>>()?;
        self.runtime.block_on(in_time("the epoch cannot be raised", async {
            progress::take(&mut *acquire().await?, consumer, partitions, &starts).await
        }))
    }

    /// Where a partition ends for a reader of committed records.
    fn newest(&self, partition: &Partition) -> Result<Offset, Error> {
        let (_, newest) = self
            .client
            .fetch_watermarks(&partition.topic, partition.number, BROKER_WAIT_MAX)
            .map_err(|error| {
                let text =
                    format!("the end of {} {} is not known", partition.topic, partition.number);
                Error::new(Kind::Kafka, text).caused_by(error)
            })?;
        Ok(Offset::new(newest))
    }

    /// Tells Kafka how far the lanes are, for tools that show lag. Nothing reads it back.
    fn hint(&mut self) {
        self.hinted = Instant::now();
        let mut list = TopicPartitionList::new();
        for (partition, lane) in &mut self.lanes {
            let committed = lane.gauge.committed.load(Ordering::Acquire);
            if committed > lane.hinted
                && add(&mut list, partition, Some(Offset::new(committed))).is_ok()
            {
                lane.hinted = committed;
            }
        }
        if list.count() > 0
            && let Err(error) = self.client.commit(&list, CommitMode::Async)
        {
            tracing::debug!(%error, "kafka was not told about progress");
        }
    }

    /// The client does not say whose offset is gone, so the brokers are asked where each partition begins and
    /// ends.
    fn located(&self, error: Error) -> Error {
        if error.kind() != Kind::OffsetGone {
            return error;
        }
        let error = error.mended_by(
            "it has expired, or the topic was truncated or made anew: see what is lost, then set next_offset in tailrace.consumer_progress",
        );
        let positions = self.client.position().unwrap_or_default();
        for (partition, lane) in &self.lanes {
            let read = positions.find_partition(&partition.topic, partition.number);
            let goes_on = match read.map(|element| element.offset()) {
                Some(KafkaOffset::Offset(offset)) => Some(Offset::new(offset)),
                _ => lane.began_at,
            };
            let bounds =
                self.client.fetch_watermarks(&partition.topic, partition.number, BROKER_WAIT_MAX);
            if let (Some(offset), Ok((first, end))) = (goes_on, bounds)
                && !(first..=end).contains(&offset.get())
            {
                let topic = Arc::clone(&partition.topic);
                return error.at(&Position { topic, partition: partition.number, offset });
            }
        }
        error
    }

    fn partitions(&self, list: &TopicPartitionList) -> Vec<Partition> {
        list.elements()
            .iter()
            .map(|element| Partition {
                topic: interned(element.topic(), &self.settings.topics),
                number: element.partition(),
            })
            .collect()
    }
}

/// What a lane's end means for the consumer.
fn failure(
    ended: Result<LaneEnd, tokio::task::JoinError>,
    partition: &Partition,
) -> Result<(), Error> {
    match ended {
        Ok(LaneEnd::Stopped | LaneEnd::NotOurs) => Ok(()),
        Ok(LaneEnd::Failed(error)) => Err(error),
        Err(error) => {
            let text = format!("the lane of {} {} broke off", partition.topic, partition.number);
            Err(Error::new(Kind::Internal, text).caused_by(error))
        }
    }
}
