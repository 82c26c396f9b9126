//! Carries decoded changes to the sink, as progress decides.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::batch_span::BatchSpan;
use crate::checkpoint::{self, CHECKPOINT_KEY, Checkpoint, Published, Reads, Source};
use crate::config::Config;
use crate::dead_letter::{self, Kept};
use crate::error::{Error, Kind};
use crate::lsn::Lsn;
use crate::milestone::{Milestone, Observer};
use crate::pgoutput::{self, Change, RelationId, Timestamp, Tuple};
use crate::position::{Place, Position};
use crate::progress::{Progress, Verdict};
use crate::record::{self, Record, Unpublishable};
use crate::replication::{Event, StatusHandle};
use crate::sink::{Obstacle, Sink};
use crate::status::{Delivered, Status};
use crate::streamed::Streamed;
use crate::tables::Tables;
use crate::trouble::{Refused, Trouble};
use in_progress::{Committed, End, misplaced};

mod in_progress;
mod unread;

/// Obstacles that a record may meet before it is given up: a topic that is not known yet, a queue
/// without room, and each of them once more.
const OBSTACLES_MAX: usize = 4;

/// The way of a change from the stream to Kafka.
#[derive(Debug)]
pub(crate) struct Publisher<'a, S> {
    pub(crate) config: &'a Config,
    pub(crate) observer: Observer,
    pub(crate) relay_id: String,
    pub(crate) dead_letter_topic: String,
    pub(crate) source: Source,
    pub(crate) progress: Progress,
    pub(crate) sink: S,
    pub(crate) status: StatusHandle,
    pub(crate) tables: Tables,
    /// What is shown of all this to the outside.
    pub(crate) report: Status,
    pub(crate) probe_prefix: String,
    pub(crate) probe: Probe,
    /// When the open source transaction was committed, microseconds since 1970.
    pub(crate) committed_at: u64,
    pub(crate) spans: Spans,
    /// What earlier sessions learned about messages that are refused.
    pub(crate) trouble: &'a Trouble,
    pub(crate) batches: Batches,
    /// Reused for each record.
    pub(crate) sequence: String,
    /// Reused for each row of a table of messages.
    pub(crate) frame: Vec<u8>,
    /// The newest transaction waited long before the server sent it: there is a backlog.
    pub(crate) behind: bool,
    /// Rows are counted, not published: said once a session.
    pub(crate) warned_of_rows: bool,
    /// Messages are ignored: said once a session.
    pub(crate) warned_of_messages: bool,
    /// Messages outside of transactions are ignored: said once a session.
    pub(crate) warned_of_outside: bool,
    /// Transactions in progress, where the server sends them.
    pub(crate) streamed: Option<Streamed>,
    /// The streamed transaction that has committed and is being published.
    pub(crate) read_back: Option<Committed>,
}

/// A transaction that was sent so long after its commit is one of a backlog. Longer than the
/// server itself keeps one back with `synchronous_commit=off` (three times `wal_writer_delay`).
const BEHIND: Duration = Duration::from_secs(1);

/// What is in the batch that is being filled, and in the one sealed before it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Batches {
    filling: Batch,
    sealed: Batch,
    sealed_at: Option<Instant>,
}

/// The spans of the batches.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    filling: BatchSpan,
    sealed: BatchSpan,
}

/// The probe of [`crate::lookout`] on its way through the relay.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Probe {
    #[default]
    None,
    /// It is in the open source transaction.
    Open,
    /// It has come through once a checkpoint covers this place.
    Until(Lsn),
}

#[derive(Clone, Copy, Debug, Default)]
struct Batch {
    newest: Option<Place>,
    count: usize,
    bytes: usize,
    dead_letters: usize,
    /// Of the dead letters those without their payload.
    cut: usize,
    /// When the first of its messages was committed in the source, and the last.
    oldest_commit: u64,
    newest_commit: u64,
}

impl<S: Sink> Publisher<'_, S> {
    /// Takes in one event of the stream.
    pub(crate) async fn take(&mut self, event: Event<'_>, now: Instant) -> Result<(), Error> {
        match event {
            Event::Keepalive { wal_end, reply_requested } => {
                self.progress.keepalive(wal_end, reply_requested);
                self.status.received(wal_end);
                self.report.received(wal_end);
                if reply_requested {
                    self.status.reply_now();
                }
                Ok(())
            }
            Event::Unread { wal_start, head, unread } if self.in_segment() => {
                self.keep_head(head, unread, wal_start).await
            }
            Event::Unread { wal_start, head, unread } => {
                let head = pgoutput::decode_head(head, false, wal_start)?;
                self.unread(head, unread, wal_start, now).await
            }
            Event::Data { wal_start, sent_at, body, .. } => {
                if self.in_segment() {
                    return self.keep(body, wal_start).await;
                }
                match pgoutput::decode(body, wal_start)? {
                    Change::Begin { final_lsn, timestamp, .. } => {
                        self.source_begins(final_lsn, timestamp)
                    }
                    Change::Commit { commit_lsn, end_lsn, timestamp } => {
                        self.behind = timestamp.until(sent_at) >= BEHIND;
                        self.source_committed(commit_lsn, end_lsn)
                    }
                    change @ (Change::StreamStart { .. }
                    | Change::StreamStop
                    | Change::StreamAbort { .. }) => self.in_progress(change, wal_start).await,
                    Change::StreamCommit { xid, commit_lsn, end_lsn, timestamp } => {
                        let behind = timestamp.until(sent_at) >= BEHIND;
                        let end = End { commit_lsn, end_lsn, behind };
                        self.streamed_committed(xid, timestamp, end)
                    }
                    change => self.change(change, wal_start, now).await,
                }
            }
        }
    }

    /// Takes in a part of the open transaction, or what stands between transactions.
    async fn change(
        &mut self,
        change: Change<'_>,
        change_lsn: Lsn,
        now: Instant,
    ) -> Result<(), Error> {
        match change {
            Change::Message { transactional: true, prefix, content, .. } => {
                self.message(prefix, content, change_lsn, now).await
            }
            Change::Message { prefix, .. } => {
                self.outside_a_transaction(prefix, change_lsn);
                Ok(())
            }
            Change::Insert { relation, new } if self.tables.hold(relation) => {
                self.message_row(relation, new, change_lsn, now).await
            }
            // What becomes of a row once it has been inserted is no message.
            Change::Insert { relation, .. }
            | Change::Update { relation, .. }
            | Change::Delete { relation, .. } => self.row(&[relation], change_lsn),
            Change::Truncate { relations, .. } => self.row(&relations, change_lsn),
            Change::Relation(relation) => {
                let arrival = self.tables.arrives();
                self.tables.relation(&relation, arrival);
                Ok(())
            }
            Change::Type { .. } | Change::Origin { .. } => Ok(()),
            change => Err(misplaced(&change, change_lsn)),
        }
    }

    fn source_begins(&mut self, commit_lsn: Lsn, committed_at: Timestamp) -> Result<(), Error> {
        self.committed_at = u64::try_from(committed_at.unix_micros()).unwrap_or(0);
        self.tables.begin(committed_at);
        self.progress.begin(commit_lsn)
    }

    fn source_committed(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<(), Error> {
        self.status.received(end_lsn);
        self.report.received(end_lsn);
        self.progress.commit(commit_lsn, end_lsn)?;
        if matches!(self.probe, Probe::Open) {
            self.probe = Probe::Until(end_lsn);
            // What asks how the relay is has its answer at once, not when idle log is checkpointed
            // anyway.
            self.progress.keepalive(end_lsn, true);
        }
        Ok(())
    }

    /// Seals what was produced with its checkpoint, once the batch before is durable.
    pub(crate) async fn seal(&mut self, published: Published) -> Result<(), Error> {
        self.report.held_up();
        if self.progress.is_committing() {
            self.confirmed().await?;
        }
        self.report.sealing(published.flush_lsn);
        let sealed_at = Instant::now();
        if let Some(partial) = published.partial
            && self.config.refuses_large_transactions()
        {
            self.sink.abort().await?;
            return Err(too_large(partial.commit_lsn));
        }
        let reads = Reads::of(self.config, &self.report);
        let checkpoint = Checkpoint { source: self.source.clone(), progress: published, reads };
        self.observer.at(Milestone::Committing);
        self.sink.seal(&[(CHECKPOINT_KEY, &checkpoint.encode(unix_ms()))]).await?;
        self.progress.sealed(published, Instant::now());
        let filled = std::mem::take(&mut self.batches.filling);
        self.batches =
            Batches { filling: Batch::default(), sealed: filled, sealed_at: Some(sealed_at) };
        self.spans.sealed = std::mem::take(&mut self.spans.filling);
        self.report.goes_on();
        Ok(())
    }

    /// The refused batch behind an error, where the next session can find a way around it.
    pub(crate) fn refused(&self, error: &Error) -> Option<Refused> {
        let record = error.refused()?;
        let ours = [self.dead_letter_topic.clone(), checkpoint::topic(&self.relay_id)];
        if !self.config.sets_aside() || ours.contains(&record.topic) {
            return None;
        }
        let Batches { filling, sealed, .. } = self.batches;
        let named = record.place.or(filling.newest).or(sealed.newest)?;
        let batch = if sealed.newest >= Some(named) { sealed } else { filling };
        Some(Refused {
            named,
            last: batch.newest.unwrap_or(named),
            count: batch.count,
            why: record.why.clone(),
            topic: record.whole_topic.then(|| record.topic.clone()),
        })
    }

    /// Waits until the sealed batch is durable; then, and only then, flushes the slot. Cancel safe.
    pub(crate) async fn confirmed(&mut self) -> Result<(), Error> {
        self.sink.confirmed().await?;
        self.observer.at(Milestone::Committed);
        self.progress.committed();
        self.status.flushed(self.progress.flush_lsn());
        self.observer.at(Milestone::Flushed);
        self.tell_delivered();
        Ok(())
    }

    /// Shows what the newest checkpoint has made durable.
    fn tell_delivered(&mut self) {
        let flushed = self.progress.flush_lsn();
        let Batches { filling, sealed, sealed_at } = self.batches;
        std::mem::take(&mut self.spans.sealed).ends(sealed.count, sealed.bytes);
        let batch = Delivered {
            messages: sealed.count,
            bytes: sealed.bytes,
            dead_letters: sealed.dead_letters,
            dead_letters_cut: sealed.cut,
            oldest: sealed.oldest_commit,
            newest: sealed.newest_commit,
            oldest_left: filling.oldest_commit,
            took: sealed_at.map_or(Duration::ZERO, |sealed_at| sealed_at.elapsed()),
        };
        self.report.delivered(flushed, batch);
        if let Probe::Until(end) = self.probe
            && flushed >= end
        {
            self.probe = Probe::None;
            self.report.probe_returned();
        }
    }

    async fn message(
        &mut self,
        prefix: &str,
        content: &[u8],
        change_lsn: Lsn,
        now: Instant,
    ) -> Result<(), Error> {
        let is_probe = prefix == self.probe_prefix && self.report.is_probe(content);
        if !self.config.publishes_messages() {
            if is_probe {
                self.probe = Probe::Open;
            } else if prefix == self.config.message_prefix() {
                self.unwanted_message();
            }
            return Ok(());
        }
        // Every change counts, also one with another prefix, so that ordinals do not depend on
        // that setting.
        let Verdict::Fresh(position) = self.progress.change(change_lsn)? else { return Ok(()) };
        if prefix != self.config.message_prefix() {
            if is_probe {
                self.probe = Probe::Open;
            }
            return Ok(());
        }
        self.publish(content, position, change_lsn, now).await
    }

    /// A message where rows alone are published.
    fn unwanted_message(&mut self) {
        self.report.ignored();
        if !self.warned_of_messages {
            self.warned_of_messages = true;
            tracing::warn!(
                prefix = self.config.message_prefix(),
                "ignored a message: relay.messages is off, and rows alone are published"
            );
        }
    }

    /// A row of a table of messages is the frame that its writer did not put into the log.
    async fn message_row(
        &mut self,
        relation: RelationId,
        row: Tuple<'_>,
        change_lsn: Lsn,
        now: Instant,
    ) -> Result<(), Error> {
        let Verdict::Fresh(position) = self.progress.change(change_lsn)? else { return Ok(()) };
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        match self.tables.frame(relation, row, &mut frame) {
            Ok(()) => self.publish(&frame, position, change_lsn, now).await?,
            Err(fault) => {
                let table = self.tables.name(relation);
                let why = format!("the row of {table} is no message: {}", fault.text);
                let fault = Unpublishable { kind: fault.kind, why, unread: 0 };
                frame.clear();
                self.tables.show(relation, row, &mut frame);
                self.fault(&frame, fault, position, change_lsn, now).await?;
            }
        }
        self.frame = frame;
        Ok(())
    }

    async fn publish(
        &mut self,
        content: &[u8],
        position: Position,
        change_lsn: Lsn,
        now: Instant,
    ) -> Result<(), Error> {
        let place = position.place();
        let decoded = record::decode(content);
        self.observer.at(Milestone::Decoded);
        let frame = match decoded {
            Ok(frame) => frame,
            Err(fault) => return self.fault(content, fault, position, change_lsn, now).await,
        };
        if let Some(why) = self.trouble.verdict(place, frame.topic()) {
            let fault = Unpublishable::rejected(why.to_owned());
            return self.fault(content, fault, position, change_lsn, now).await;
        }
        if self.config.skips(place) {
            return self.skip(place);
        }
        let mut sequence = std::mem::take(&mut self.sequence);
        record::write_sequence(&mut sequence, &self.relay_id, &position);
        let record = Record::new(frame, &sequence);
        let refused = self.produce(&record, position, change_lsn, now).await?;
        self.sequence = sequence;
        match refused {
            None => Ok(()),
            Some(why) => {
                let fault = Unpublishable::rejected(why);
                self.fault(content, fault, position, change_lsn, now).await
            }
        }
    }

    fn skip(&self, place: Place) -> Result<(), Error> {
        tracing::warn!(%place, "skipped a message, as told");
        Ok(())
    }

    /// A message that can not be published: set aside as a dead letter, or the relay stops.
    async fn fault(
        &mut self,
        content: &[u8],
        fault: Unpublishable,
        position: Position,
        change_lsn: Lsn,
        now: Instant,
    ) -> Result<(), Error> {
        let place = position.place();
        if self.config.skips(place) {
            return self.skip(place);
        }
        let Unpublishable { kind, why, unread } = fault;
        let why = dead_letter::bounded(&why).to_owned();
        if !self.config.sets_aside() {
            let text = format!("the message at {place} can not be published: {why}");
            return Err(record::skippable(kind, text, place));
        }
        let kept = Kept::of(content, unread);
        told(place, &why, content.len() + unread, kept);
        let topic = self.dead_letter_topic.clone();
        let mut sequence = std::mem::take(&mut self.sequence);
        record::write_sequence(&mut sequence, &self.relay_id, &position);
        let why = Unpublishable { kind, why, unread };
        let at = SystemTime::now();
        let cause = dead_letter::Cause { relay_id: &self.relay_id, place, at, why: &why };
        let letter = dead_letter::headers(content, &cause);
        let Unpublishable { why, .. } = why;
        let now_ms = i64::try_from(unix_ms()).unwrap_or(i64::MAX);
        let record = Record::dead_letter(&topic, content, unread, &sequence, &letter, now_ms);
        let refused = self.produce(&record, position, change_lsn, now).await?;
        self.sequence = sequence;
        match refused {
            None => {
                self.batches.filling.dead_letters += 1;
                self.batches.filling.cut += usize::from(kept != Kept::All);
                Ok(())
            }
            Some(again) => {
                let text = format!(
                    "the message at {place} can not be published ({why}), nor can its dead \
                     letter to topic {topic:?}: {again}"
                );
                Err(Error::new(Kind::Rejected, text).hint(format!(
                    "nothing is lost: the slot keeps it; make topic {topic:?}, or mend it: the \
                     relay must be able to write to it, and a dead letter takes up to 17 MB \
                     (max.message.bytes=17000000); or go past this one message by running with \
                     --skip {place}"
                )))
            }
        }
    }

    /// Hands a record over. Answers with why it is refused, if it is.
    async fn produce(
        &mut self,
        record: &Record<'_>,
        position: Position,
        change_lsn: Lsn,
        now: Instant,
    ) -> Result<Option<String>, Error> {
        let place = position.place();
        let Batch { newest, count, .. } = self.batches.filling;
        if self.trouble.cuts(newest, count, place)
            && let Some(due) = self.progress.cut()
        {
            self.seal(due).await?;
        }
        for _ in 0..OBSTACLES_MAX {
            match self.sink.produce(record) {
                Ok(()) => {
                    self.progress.produced(position, change_lsn, record.size(), now);
                    self.count(place, record.size());
                    if let Some(frame) = record.frame() {
                        self.spans.filling.carries(frame);
                    }
                    self.observer.at(Milestone::Produced);
                    return Ok(None);
                }
                Err(Obstacle::Refused(why)) => return Ok(Some(why)),
                Err(obstacle) => {
                    self.report.held_up();
                    self.sink.overcome(obstacle, record).await?;
                    self.report.goes_on();
                }
            }
        }
        Ok(Some(format!("it has {} bytes, more than the relay's queue", record.size())))
    }

    /// Counts a record into the batch that is being filled.
    fn count(&mut self, place: Place, bytes: usize) {
        let filling = &mut self.batches.filling;
        if filling.count == 0 {
            filling.oldest_commit = self.committed_at;
            self.report.pending(self.committed_at);
        }
        filling.newest = Some(place);
        filling.count += 1;
        filling.bytes += bytes;
        filling.newest_commit = self.committed_at;
    }

    fn row(&mut self, relations: &[RelationId], change_lsn: Lsn) -> Result<(), Error> {
        self.progress.change(change_lsn)?;
        if !self.warned_of_rows && !relations.iter().all(|relation| self.tables.hold(*relation)) {
            self.warned_of_rows = true;
            tracing::warn!(
                publication = self.config.publication_name(),
                "the publication has tables besides those of messages; their changes are not published"
            );
        }
        Ok(())
    }

    fn outside_a_transaction(&mut self, prefix: &str, lsn: Lsn) {
        if prefix != self.config.message_prefix() {
            return;
        }
        self.report.ignored();
        if !self.warned_of_outside {
            self.warned_of_outside = true;
            tracing::warn!(
                %lsn,
                "ignored a message that was written outside of any transaction (said once a \
                 session): write it with pg_logical_emit_message(true, ...)"
            );
        }
    }
}

/// Says of a message of so many bytes that its dead letter is all that becomes of it.
fn told(place: Place, why: &str, bytes: usize, kept: Kept) {
    if kept == Kept::All {
        tracing::warn!(%place, why, "a message can not be published: it becomes a dead letter");
    } else {
        tracing::warn!(
            %place,
            why,
            bytes,
            "a message can not be published, and is longer than a record may be: it becomes a dead \
             letter without its payload, which nobody keeps"
        );
    }
}

/// A source transaction that would have to be split, and may not be.
fn too_large(commit_lsn: Lsn) -> Error {
    let text = format!(
        "the source transaction that commits at {commit_lsn} is larger than one Kafka transaction \
         may be"
    );
    Error::new(Kind::Rejected, text).hint(
        "nothing of it was published, nor of what follows; raise transaction.max_bytes, or set \
         transaction.large_transactions to split. One that takes longer than 5 s is refused too",
    )
}

/// Now, for people who read a checkpoint; nothing is decided by it.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
