//! The intake owns the Kafka client on a thread of its own and hands records to the lanes.
//!
//! It never waits for a lane: what does not fit is left with the client, which keeps a queue for each partition.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime};

use rdkafka::ClientConfig;
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use crate::asking::Asking;
use crate::assignment::{Group, Rebalance};
use crate::beginning::{self, BROKER_WAIT_MAX};
use crate::client::{self, add, complain, interned, kafka_offset, list_of, refused};
use crate::config::{GroupProtocol, Start};
use crate::error::{Error, Kind};
use crate::known::{self, Inspector};
use crate::lane::{Lane, LaneEnd, Shared, in_time};
use crate::lanes::AppliedBefore;
use crate::leaving;
use crate::metrics::{Standing, Tally};
use crate::native::{self, Complaint, Described, PartitionQueue};
use crate::position::{Offset, Position};
use crate::progress::{self, Epoch, Owned, Partition, Taken, Takeover, Wanted};
use crate::retry::{Backoff, chance};
use crate::running::{Gauge, Running, RunningLane};

/// The longest rest while nothing arrives. Records and rebalances end it.
const REST_MAX: Duration = Duration::from_millis(50);
/// The same while a partition waits for its owner.
const REST_MAX_LOST: Duration = Duration::from_millis(5);
/// How often lanes are looked after while records arrive without a pause.
const LOOK_AFTER_EVERY: Duration = Duration::from_millis(5);
/// How often lanes without records are told how far the others are.
const PASS_EVERY: Duration = Duration::from_secs(1);
/// How often progress is told to Kafka.
const HINT_EVERY: Duration = Duration::from_secs(1);
/// How long the epoch of assigned partitions is tried to be raised while the database is busy or away: far shorter
/// than `max.poll.interval.ms`. It is longer where the deadline for a rebalance is.
const OWN_FOR: Duration = Duration::from_secs(45);
/// How long a partition that could not be owned waits while the database is away.
const AWAY_WAIT: Duration = Duration::from_secs(1);
/// How long the intake waits for a connection: meanwhile the client is not polled.
const ACQUIRE_MAX: Duration = Duration::from_secs(5);
/// How long an owner that found a newer epoch keeps trying to own the partition.
const OWN_AGAIN_FOR: Duration = Duration::from_secs(600);
/// How long brokers have to let a client in by the newer group protocol. Too short only costs the newer protocol.
const JOIN_MAX: Duration = Duration::from_secs(5);

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
    pub(crate) protocol: GroupProtocol,
    pub(crate) brokers: String,
    pub(crate) topics: Vec<Arc<str>>,
    pub(crate) start: Start,
    pub(crate) start_deadline: Duration,
    pub(crate) drain_deadline: Duration,
    pub(crate) takeover: Takeover,
}

/// A partition that turned out to have a newer owner although the group still gives it to us.
struct Lost {
    backoff: Backoff,
    /// When to own it again; none while a lane of ours has not met the fence again.
    again_at: Option<Instant>,
    /// Keeps what is fetched of a partition that was never owned away from others.
    _queue: Option<PartitionQueue>,
}

impl Default for Lost {
    fn default() -> Self {
        Self { backoff: Backoff::new(OWN_AGAIN_FOR), again_at: None, _queue: None }
    }
}

pub(crate) struct Intake {
    client: Arc<BaseConsumer<Group>>,
    /// Since when it is tried to join with the newer group protocol; none once the brokers have answered.
    joining: Option<Instant>,
    /// The thread that all this happens on.
    thread: Thread,
    runtime: Handle,
    shared: Arc<Shared>,
    settings: Settings,
    stop: Arc<Stop>,
    running: BTreeMap<Partition, Running>,
    lost: BTreeMap<Partition, Lost>,
    looked_after: Instant,
    passed: Instant,
    hinted: Instant,
    /// The topics that the running lanes read, as they were when these were started.
    topics: BTreeMap<String, Described>,
    asking: Asking,
    /// When its work ended.
    ended: Instant,
}

impl Intake {
    /// Connects, checks that brokers answer and topics exist, and joins the group.
    pub(crate) fn open(
        settings: Settings,
        shared: Arc<Shared>,
        runtime: Handle,
        stop: Arc<Stop>,
    ) -> Result<Self, Error> {
        let thread = thread::current();
        let client = client::join(&settings, settings.protocol, thread.clone())?;
        let now = Instant::now();
        let joining = (settings.protocol == GroupProtocol::Auto).then_some(now);
        Ok(Self {
            client: Arc::new(client),
            joining,
            thread,
            runtime,
            shared,
            settings,
            stop,
            running: BTreeMap::new(),
            lost: BTreeMap::new(),
            looked_after: now,
            passed: now,
            hinted: now,
            topics: BTreeMap::new(),
            asking: Asking::new(now),
            ended: now,
        })
    }

    /// Works until told to stop or until something stands in the way, then lets the lanes finish.
    pub(crate) fn serve(&mut self) -> Result<(), Error> {
        let worked = self.work();
        self.ended = Instant::now();
        if self.stop.is_abandoned() {
            self.abort_lanes();
            return worked;
        }
        let all = self.running.keys().cloned().collect::<Vec<_>>();
        let drained = self.end_lanes(&all, self.settings.drain_deadline);
        worked.and(drained)
    }

    /// Leaves the group. A rebalance that is under way is waited for, as long as a shutdown may take.
    pub(crate) fn leave(self) {
        drop((self.running, self.asking));
        let patience = match self.stop.is_abandoned() {
            true => Duration::ZERO,
            false => self.settings.drain_deadline.saturating_sub(self.ended.elapsed()),
        };
        leaving::leave(self.client, &self.settings.topics, patience);
    }

    fn work(&mut self) -> Result<(), Error> {
        while !self.stop.is_set() {
            let rebalanced = self.serve_client()?;
            let taken = self.take()?;
            if taken && self.looked_after.elapsed() < LOOK_AFTER_EVERY {
                continue;
            }
            self.look_after()?;
            if !taken && !rebalanced {
                let lost = self.lost.values().any(|lost| lost.again_at.is_some());
                thread::park_timeout(if lost { REST_MAX_LOST } else { REST_MAX });
            }
        }
        Ok(())
    }

    /// What the client has to say besides records: errors, and rebalances.
    fn serve_client(&mut self) -> Result<bool, Error> {
        match self.client.poll(Duration::ZERO) {
            None => {}
            Some(Ok(message)) => {
                let position = Position {
                    topic: interned(message.topic(), &self.settings.topics),
                    partition: message.partition(),
                    offset: Offset::new(message.offset()),
                };
                let text = "a record came past the queue of its partition";
                return Err(Error::new(Kind::Internal, text).at(&position));
            }
            Some(Err(_)) if self.joining.is_some() && client::refuses_protocol(&self.client) => {
                self.join_as_classic("the brokers refuse it")?;
            }
            Some(Err(error)) => complain(&error, self.client.context().complaint())
                .map_err(|error| self.located(error, None))?,
        }
        let mut rebalanced = false;
        while let Some(rebalance) = self.client.context().next_rebalance() {
            rebalanced = true;
            self.keep_places();
            match rebalance {
                Rebalance::Assigned(list) => {
                    self.assigned(&list)?;
                    self.shared.health.joined();
                }
                Rebalance::Revoked(list) => self.revoked(&list)?,
            }
        }
        Ok(rebalanced)
    }

    /// Brokers that know the newer protocol refuse it or let the client in. To those that do not the client cannot even
    /// put the question, and keeps that to itself: that nobody answers is all there is to see.
    fn settle_protocol(&mut self) -> Result<(), Error> {
        let Some(since) = self.joining else { return Ok(()) };
        if native::generation(&self.client) >= 0 {
            tracing::info!("joined with the group protocol of kip-848");
            self.joining = None;
        } else if since.elapsed() >= JOIN_MAX {
            self.join_as_classic("no broker answers to it")?;
        }
        Ok(())
    }

    fn join_as_classic(&mut self, reason: &str) -> Result<(), Error> {
        tracing::info!(reason, "the classic group protocol instead of that of kip-848");
        self.joining = None;
        self.asking.forget();
        let client = client::join(&self.settings, GroupProtocol::Classic, self.thread.clone())?;
        let refused = std::mem::replace(&mut self.client, Arc::new(client));
        leaving::leave(refused, &self.settings.topics, Duration::ZERO);
        Ok(())
    }

    /// A topic that is deleted and made anew under its readers does not stop them by itself.
    fn watch_topics(&mut self) -> Result<(), Error> {
        let (client, topics) = (&self.client, &self.settings.topics);
        let answered = self.asking.turn(client, topics, Instant::now())?;
        let Some(described) = answered else { return Ok(()) };
        for partition in self.running.keys() {
            let topic = &*partition.topic;
            let (Some(known), Some(found)) = (self.topics.get(topic), described.get(topic)) else {
                continue;
            };
            if known.id.is_some() && found.id.is_some() && known.id != found.id {
                return Err(progress::replaced(partition));
            }
            if self.shared.dedupe.is_position() && known.partitions != found.partitions {
                return Err(known::resized(topic, known.partitions, found.partitions));
            }
        }
        Ok(())
    }

    /// Hands to the lanes what the client has for them; answers whether there was any.
    fn take(&mut self) -> Result<bool, Error> {
        let mut any = false;
        let mut complaint = None;
        for (partition, running) in &mut self.running {
            let taken = running.take();
            any |= taken.delivered > 0;
            self.shared.counters.count_delivered(taken.delivered);
            if taken.applied_before > 0 {
                let duplicates = taken.applied_before;
                self.shared.counters.count_committed(Tally { duplicates, ..Tally::default() });
            }
            if let Some(found) = taken.complaint {
                complaint = Some((partition.clone(), found));
                break;
            }
        }
        match complaint {
            None => Ok(any),
            Some((_, Complaint::Record(error))) => Err(error),
            Some((
                Partition { topic, number: partition },
                Complaint::Kafka(code, text, offset),
            )) => {
                let at = Position { topic, partition, offset };
                let error = KafkaError::MessageConsumption(code);
                complain(&error, text.clone()).map_err(|error| self.located(error, Some(&at)))?;
                self.client.context().survived(&error, text.as_deref(), &at);
                let partition = Partition { topic: at.topic, number: at.partition };
                self.read_on(&partition, (offset.get() >= 0).then_some(offset));
                Ok(true)
            }
        }
    }

    /// Has the client read on at what has not arrived yet.
    ///
    /// It counts whatever it tells of a partition, also that it ends or cannot be fetched, as the record at that offset,
    /// handed over (librdkafka 2.12.1, `rd_kafka_q_serve_rkmessages`). Each rebalance pauses what stays assigned, and
    /// resumes it behind what was handed over: the record that comes to stand there would be left out. Held by
    /// `a_rebalance_leaves_no_record_out_where_the_end_of_a_partition_was_told`.
    fn read_on(&self, partition: &Partition, told_at: Option<Offset>) {
        let Some(running) = self.running.get(partition) else { return };
        let from = kafka_offset(running.arrived_until().max(told_at));
        if let Err(error) =
            self.client.seek(&partition.topic, partition.number, from, BROKER_WAIT_MAX)
        {
            // Then it is not being fetched, and whoever fetches it next says from where.
            tracing::warn!(%error, topic = %partition.topic, partition = partition.number, "not sought");
        }
    }

    /// The client has paused what stays assigned, until its question is answered.
    fn keep_places(&self) {
        for (partition, _) in self.running.iter().filter(|(_, running)| running.is_at_end()) {
            self.read_on(partition, None);
        }
    }

    fn look_after(&mut self) -> Result<(), Error> {
        self.looked_after = Instant::now();
        let ended = |(partition, running): (&Partition, &Running)| {
            running.has_ended().then(|| partition.clone())
        };
        let ended: Vec<_> = self.running.iter().filter_map(ended).collect();
        for partition in ended {
            self.lane_ended(partition)?;
        }
        self.own_again()?;
        self.settle_protocol()?;
        self.watch_topics()?;
        if self.passed.elapsed() >= PASS_EVERY {
            self.passed = self.looked_after;
            for running in self.running.values_mut() {
                running.pass();
            }
        }
        if self.hinted.elapsed() >= HINT_EVERY {
            self.hint();
            self.tell();
        }
        Ok(())
    }

    /// New partitions: own them in Postgres, then fetch from where Postgres says.
    fn assigned(&mut self, list: &TopicPartitionList) -> Result<(), Error> {
        let partitions = self.partitions(list);
        tracing::info!(partitions = partitions.len(), "assigned");
        let owned = match self.own(&partitions) {
            Ok(owned) => owned,
            Err(error) if error.is_outage() => return self.assign_later(&partitions, &error),
            Err(error) => {
                // The client waits for an answer even when there is no way on.
                drop(self.client.incremental_assign(&TopicPartitionList::new()));
                return Err(error);
            }
        };
        let mut from = TopicPartitionList::new();
        for taken in owned {
            add(&mut from, &taken.partition, taken.plan.resumes_at())?;
            self.start(taken)?;
        }
        self.client.incremental_assign(&from).map_err(refused)
    }

    /// Takes partitions over while the database is away: they are not fetched until they are owned, as if they had been
    /// lost. To wait for it here would keep the client from polling, and the group would see the consumer off.
    fn assign_later(&mut self, partitions: &[Partition], error: &Error) -> Result<(), Error> {
        tracing::warn!(error = %error, "partitions are owned once postgres is back");
        let mut from = TopicPartitionList::new();
        for partition in partitions {
            // What is fetched before the pause must not come the common way.
            let queue = PartitionQueue::open(&self.client, partition.clone(), self.thread.clone())?;
            let again_at = Some(Instant::now() + AWAY_WAIT);
            let lost = Lost { again_at, _queue: Some(queue), ..Lost::default() };
            self.lost.insert(partition.clone(), lost);
            add(&mut from, partition, None)?;
        }
        self.client.pause(&from).map_err(refused)?;
        self.client.incremental_assign(&from).map_err(refused)?;
        self.client.pause(&from).map_err(refused)
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
            if self.lost.remove(partition).is_some_and(|lost| lost.again_at.is_some()) {
                self.client.resume(&list_of(partition, None)?).map_err(refused)?;
            }
        }
        let drained = self.end_lanes(&partitions, patience);
        self.client.incremental_unassign(list).map_err(refused)?;
        drained
    }

    /// Starts the lanes of a partition that is owned, before it is fetched.
    fn start(&mut self, taken: Taken) -> Result<(), Error> {
        let Taken { partition, plan, before, sequences } = taken;
        let fetched = PartitionQueue::open(&self.client, partition.clone(), self.thread.clone())?;
        let (stop, stopped) = watch::channel(false);
        let epoch = Epoch(plan.epoch);
        let mut lanes = Vec::with_capacity(plan.next_offsets.len());
        for (number, next_offset) in (0i32..).zip(plan.next_offsets) {
            let (queue, queued) = mpsc::channel(crate::flow::QUEUE_RECORDS_MAX);
            let gauge = Arc::new(Gauge::new(self.thread.clone()));
            let owned = Owned { partition: partition.clone(), lane: number, epoch, next_offset };
            let lane = Lane {
                shared: Arc::clone(&self.shared),
                owned,
                stop: stopped.clone(),
                gauge: Arc::clone(&gauge),
            };
            let task = self.runtime.spawn(lane.run(queued));
            lanes.push(RunningLane::new(next_offset, queue, gauge, task));
        }
        let before = AppliedBefore::new(plan.former.into_iter().chain(before).collect());
        let count = self.settings.takeover.lanes;
        let Shared { dedupe, unsequenced, .. } = &*self.shared;
        let inspector = dedupe.is_position().then(|| Inspector::new(sequences, *unsequenced));
        let running = Running::new(epoch, lanes, stop, fetched, count, before, inspector);
        self.running.insert(partition, running);
        Ok(())
    }

    /// Stops lanes at their batch's end, or cuts them off when patience ends.
    fn end_lanes(&mut self, partitions: &[Partition], patience: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + patience;
        for running in partitions.iter().filter_map(|partition| self.running.get(partition)) {
            running.stop.send_replace(true);
        }
        let mut result = Ok(());
        for partition in partitions {
            let Some(running) = self.running.get_mut(partition) else { continue };
            for lane in &mut running.lanes {
                let waited =
                    async { tokio::time::timeout_at(deadline.into(), &mut lane.task).await };
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
        }
        if patience > Duration::ZERO {
            self.hint();
        }
        for partition in partitions {
            self.shared.meters.stands(partition, Standing::default());
        }
        self.running.retain(|partition, _| !partitions.contains(partition));
        result
    }

    fn abort_lanes(&mut self) {
        for lane in self.running.values().flat_map(|running| &running.lanes) {
            lane.task.abort();
        }
        self.running.clear();
    }

    /// A lane ended by itself. The epoch is that of all lanes of the partition: what one has found out holds for the
    /// others, whose next transaction would meet the same.
    fn lane_ended(&mut self, partition: Partition) -> Result<(), Error> {
        let Some(running) = self.running.get(&partition) else { return Ok(()) };
        let (epoch, committed) = (running.epoch, running.has_committed());
        self.end_lanes(std::slice::from_ref(&partition), self.settings.drain_deadline)?;
        tracing::warn!(
            topic = %partition.topic, partition = partition.number, epoch = epoch.0,
            "another process owns the partition"
        );
        self.shared.counters.count_fenced();
        self.client.pause(&list_of(&partition, None)?).map_err(refused)?;
        if committed {
            self.lost.remove(&partition);
        }
        let named = partition.clone();
        let lost = self.lost.entry(partition).or_default();
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
            let owned = match self.own(std::slice::from_ref(&partition)) {
                Err(error) if error.is_outage() => {
                    if let Some(lost) = self.lost.get_mut(&partition) {
                        lost.again_at = Some(Instant::now() + AWAY_WAIT);
                    }
                    continue;
                }
                owned => owned?,
            };
            for taken in owned {
                let from = kafka_offset(taken.plan.resumes_at());
                self.client
                    .seek(&partition.topic, partition.number, from, BROKER_WAIT_MAX)
                    .map_err(refused)?;
                self.start(taken)?;
                self.client.resume(&list_of(&partition, None)?).map_err(refused)?;
            }
        }
        Ok(())
    }

    /// Raises the epoch of partitions, with patience for a database that is busy or away. A former owner that still
    /// holds a row when patience ends is stopped inside its transaction, and its session is ended.
    fn own(&mut self, partitions: &[Partition]) -> Result<Vec<Taken>, Error> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let mut backoff = Backoff::new(OWN_FOR.max(self.settings.takeover.deadline * 2));
        loop {
            let owned = match self.shared.gate.permit() {
                Some(permit) => {
                    let owned = self.try_own(partitions);
                    self.shared.gate.ended(permit, owned.as_ref().err());
                    owned
                }
                None => Err(Error::database_silent("postgres is away", Duration::ZERO)),
            };
            let error = match owned {
                Ok(owned) => return Ok(owned),
                Err(error) => error,
            };
            // Brokers that are just restarting are waited for like the database.
            let passes = error.is_transient() || error.kind() == Kind::Kafka;
            if passes && self.stop.is_set() {
                tracing::info!(error = %error, "partitions are left to the next owner");
                return Ok(Vec::new());
            }
            let is_away = error.is_outage() && self.shared.gate.is_shut();
            if !passes || is_away {
                return Err(error);
            }
            if error.is_lock_timeout() && self.end_holders(partitions) {
                continue;
            }
            let Some(wait) = backoff.failed(Instant::now(), chance()) else { return Err(error) };
            tracing::warn!(error = %error, wait_ms = wait.as_millis(), "ownership is tried again");
            thread::sleep(wait);
        }
    }

    /// Whether a session stood in the way and was ended.
    fn end_holders(&self, partitions: &[Partition]) -> bool {
        let Shared { consumer, pool, .. } = &*self.shared;
        let ended =
            self.runtime.block_on(in_time("the former owner's session cannot be ended", async {
                progress::end_holders(&mut *acquire(pool).await?, consumer, partitions).await
            }));
        match ended {
            Ok(ended) => {
                tracing::warn!(
                    sessions = ended,
                    "a former owner held its partition up and was ended"
                );
                ended > 0
            }
            // Without the right to end it, it is the server that does when its patience ends.
            Err(error) => {
                tracing::warn!(error = %error, cause = error.fault().map(tracing::field::display), "a former owner holds its partition up");
                false
            }
        }
    }

    fn try_own(&mut self, partitions: &[Partition]) -> Result<Vec<Taken>, Error> {
        match beginning::described(&self.client, &self.settings.topics) {
            Ok(topics) => self.topics = topics,
            Err(error) if self.topics.is_empty() => return Err(error),
            // What they were the last time will do; `watch_topics` goes on asking.
            Err(error) => tracing::warn!(error = %error, "the topics are not known anew"),
        }
        self.settle_dedupe()?;
        let mut starts = self.starts(partitions)?;
        let Shared { consumer, pool, .. } = &*self.shared;
        let wanted = |partition: &Partition| {
            let topic = self.topics.get(&*partition.topic);
            Wanted {
                partition: partition.clone(),
                start: starts.remove(partition),
                topic_id: topic.and_then(|topic| topic.id.clone()),
                partitions: topic.map(|topic| topic.partitions),
            }
        };
        let wanted: Vec<_> = partitions.iter().map(wanted).collect();
        self.runtime.block_on(in_time("the epoch cannot be raised", async {
            let mut conn = acquire(pool).await?;
            progress::take(&mut conn, consumer, &wanted, self.settings.takeover).await
        }))
    }

    /// Before anything else is stored of a topic: afterwards it would look like one that was read already.
    fn settle_dedupe(&self) -> Result<(), Error> {
        let Shared { consumer, pool, dedupe, .. } = &*self.shared;
        let partitions = |topic: &Arc<str>| self.topics.get(&**topic).map(|topic| topic.partitions);
        let named = self.settings.topics.iter().map(|topic| (topic.to_string(), partitions(topic)));
        let topics = named.collect();
        self.runtime.block_on(in_time("how messages are known cannot be stored", async {
            known::settle(&mut *acquire(pool).await?, consumer, *dedupe, &topics).await
        }))
    }

    /// Where partitions begin of which nothing is stored, if not at the beginning.
    fn starts(&self, partitions: &[Partition]) -> Result<BTreeMap<Partition, Offset>, Error> {
        let Shared { consumer, pool, .. } = &*self.shared;
        let unread = "progress cannot be read";
        match self.settings.start {
            Start::Earliest => Ok(BTreeMap::new()),
            Start::Latest => {
                let topics: BTreeSet<&str> =
                    partitions.iter().map(|partition| &*partition.topic).collect();
                let topics: Vec<&str> = topics.into_iter().collect();
                let unmet = self.runtime.block_on(in_time(unread, async {
                    progress::unmet(&mut *acquire(pool).await?, consumer, &topics).await
                }))?;
                for topic in unmet {
                    let ends = beginning::ends(&self.client, &topic.into())?;
                    self.runtime.block_on(in_time(unread, async {
                        progress::begin_at(&mut *acquire(pool).await?, consumer, &ends).await
                    }))?;
                }
                Ok(BTreeMap::new())
            }
            Start::KafkaCommitted => {
                let unstored = self.runtime.block_on(in_time(unread, async {
                    progress::unstored(&mut *acquire(pool).await?, consumer, partitions).await
                }))?;
                if unstored.is_empty() {
                    return Ok(BTreeMap::new());
                }
                beginning::committed(&self.client, &unstored)
            }
        }
    }

    /// Tells those who watch how it is.
    fn tell(&self) {
        let Shared { meters, health, gate, counters, dispatch, .. } = &*self.shared;
        let now = SystemTime::now();
        let mut full = Vec::new();
        for (partition, running) in &self.running {
            let end = native::known_end(&self.client, partition);
            meters.stands(partition, running.standing(end, now));
            if running.is_held_back() {
                full.push(format!("{} {}", partition.topic, partition.number));
            }
        }
        health.beat(full);
        let (silent_since, gone) = (self.asking.silent_since(), self.asking.gone());
        meters.kafka(silent_since);
        health.kafka(silent_since, gone);
        // Whoever gets no partition is not told so.
        if native::generation(&self.client) >= 0 {
            health.joined();
        }
        meters.breaker("postgres", gate.state());
        for (of, breaker) in dispatch.breakers() {
            meters.breaker(of, breaker.state());
        }
        meters.counted(&counters.report(), health.faults().is_empty());
    }

    /// Tells Kafka how far the partitions are, for tools that show lag. Nothing reads it back.
    fn hint(&mut self) {
        self.hinted = Instant::now();
        let mut list = TopicPartitionList::new();
        for (partition, running) in &mut self.running {
            let reached = running.reached();
            if running.has_committed()
                && reached > running.hinted
                && add(&mut list, partition, reached).is_ok()
            {
                running.hinted = reached;
            }
        }
        if list.count() > 0
            && let Err(error) = self.client.commit(&list, CommitMode::Async)
        {
            tracing::debug!(%error, "kafka was not told about progress");
        }
    }

    /// Where the client does not say which offset is gone, the brokers are asked where partitions begin and end.
    fn located(&self, error: Error, at: Option<&Position>) -> Error {
        if error.kind() != Kind::OffsetGone {
            return error;
        }
        let error = error.mended_by(
            "it has expired, or the topic was truncated: see what is lost, then set where to go on with `tailrace inbox seek`",
        );
        if let Some(at) = at.filter(|at| at.offset.get() >= 0) {
            return error.at(at);
        }
        let positions = self.client.position().unwrap_or_default();
        for (partition, running) in &self.running {
            let read = positions.find_partition(&partition.topic, partition.number);
            let goes_on = match read.map(|element| element.offset()) {
                Some(KafkaOffset::Offset(offset)) => Some(Offset::new(offset)),
                _ => running.began_at(),
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

async fn acquire(pool: &PgPool) -> Result<PoolConnection<Postgres>, Error> {
    let doing = "no connection to postgres";
    match tokio::time::timeout(ACQUIRE_MAX, pool.acquire()).await {
        Ok(acquired) => acquired.map_err(|error| Error::database(doing, error)),
        Err(_) => Err(Error::database_silent(doing, ACQUIRE_MAX)),
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
