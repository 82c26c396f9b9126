//! The way to leadership: the same at the first start, after any crash, and after any error.

use std::time::Instant;

use crate::checkpoint::{CHECKPOINT_KEY, Checkpoint, Reads, Stored};
use crate::config::Config;
use crate::error::{Error, Kind, Reaction};
use crate::leadership;
use crate::lookout::probe_prefix;
use crate::milestone::Observer;
use crate::progress::Progress;
use crate::publisher::{Batches, Probe, Publisher, Spans, unix_ms};
use crate::replication::{Client, Large, Stream};
use crate::resume::{self, Server, Slot, Start};
use crate::sink::{Connect, Sink};
use crate::status::Status;
use crate::streamed::Streamed;
use crate::tables::Tables;
use crate::trouble::Trouble;
use crate::{publication, setup, source};

/// SQLSTATE of what does not exist.
const UNDEFINED_OBJECT: &str = "42704";

/// A relay that holds the slot and knows where to go on.
pub(crate) struct Session<'a, S> {
    pub(crate) stream: Stream,
    pub(crate) publisher: Publisher<'a, S>,
}

/// Comes to lead: takes the slot, fences whoever led before, reads the checkpoint, and decides
/// where to go on. Waits as long as another relay leads; `settled` is set once nothing but other
/// relays or passing faults can stand in the way.
pub(crate) async fn lead<'a, C: Connect>(
    config: &'a Config,
    connect: &C,
    observer: &Observer,
    trouble: &'a Trouble,
    report: &Status,
    large: Large,
    settled: &mut bool,
) -> Result<Session<'a, C::Sink>, Error> {
    let mut client = Client::connect(&config.endpoint()?).await?;
    let server = source::identify(&mut client).await?;
    let relay_id = config.relay_id_for(&server.system_identifier, &server.database)?;
    let slot = source::slot(&mut client, config.slot_name()).await?;
    if let Some(slot) = &slot {
        slot.check(&server)?;
    }
    // The sink first: a relay that can not publish must not hold the slot.
    let mut sink = connect.connect(&relay_id).await?;
    if config.has_chosen_id() {
        not_anothers(config, connect, &relay_id, &server).await?;
    }
    if slot.is_none() {
        setup::create(config, observer, &server, &mut sink, &mut client).await?;
        sink = connect.connect(&relay_id).await?;
    }
    let stream = hold(config, client, report, large, settled).await?;

    // Both servers have answered and are rightly set up as far as they can say: what does not
    // answer from here on may be a broker that has just died.
    *settled = true;

    // From here on the slot is ours, and with it the right to fence. It is asked for its place
    // before the checkpoint is read: another relay may take it from us at any time, and what that
    // one flushes is newer than a checkpoint that was read before, which would look like a gap.
    let mut client = Client::connect(&config.endpoint()?).await?;
    let slot = source::slot(&mut client, config.slot_name()).await?;
    let slot = slot.ok_or_else(|| source::missing("the slot", "disappeared while it was held"))?;
    let stored = Stored::read(&sink.take_over().await?)?;
    let start = decide(config, &mut client, &slot, &stored, report).await?;
    note_down(&mut sink, &start, &stored, Reads::of(config, report)).await?;
    tracing::info!(
        %relay_id,
        slot = config.slot_name(),
        from = %start.progress.flush_lsn,
        incarnation = start.source.incarnation.0,
        streaming = large == Large::InProgress,
        "leading"
    );
    let status = stream.status();
    status.flushed(start.progress.flush_lsn);
    let progress =
        Progress::new(start.source.incarnation, start.progress, config.limits(), Instant::now())
            .counting(config.counting());
    let streamed = config
        .streamed()
        .filter(|_| large == Large::InProgress)
        .map(|bounds| Streamed::new(bounds.clone(), stream.arrived()));
    let publisher = Publisher {
        config,
        observer: observer.clone(),
        dead_letter_topic: config.dead_letter_topic_for(&relay_id),
        relay_id,
        source: start.source,
        progress,
        sink,
        status,
        report: report.clone(),
        probe_prefix: probe_prefix(config.message_prefix()),
        probe: Probe::default(),
        committed_at: 0,
        spans: Spans::default(),
        tables: Tables::new(config.message_tables()),
        trouble,
        batches: Batches::default(),
        sequence: String::new(),
        frame: Vec::new(),
        behind: false,
        warned_of_rows: false,
        warned_of_messages: false,
        warned_of_outside: false,
        streamed,
        read_back: None,
    };
    Ok(Session { stream, publisher })
}

/// Saves where the session begins and what it reads, unless both are saved already. Before it reads:
/// else a change under this session could not be told by the next.
async fn note_down(
    sink: &mut impl Sink,
    start: &Start,
    stored: &Stored,
    reads: Reads,
) -> Result<(), Error> {
    let is_known = stored.checkpoint.as_ref().is_some_and(|it| it.reads.is_as(&reads));
    if is_known && !start.first {
        return Ok(());
    }
    let checkpoint = Checkpoint { source: start.source.clone(), progress: start.progress, reads };
    sink.seal(&[(CHECKPOINT_KEY, &checkpoint.encode(unix_ms()))]).await?;
    sink.confirmed().await
}

/// Refuses a relay id that is another relay's, whose slot is another one: holding ours gives no
/// right to fence it.
pub(crate) async fn not_anothers<C: Connect>(
    config: &Config,
    connect: &C,
    relay_id: &str,
    server: &Server,
) -> Result<(), Error> {
    match connect.saved(relay_id).await {
        Ok(None) => Ok(()),
        Ok(Some(saved)) => resume::is_ours(server, config.slot_name(), &Stored::read(&saved)?),
        // It is read once more, by whoever leads.
        Err(error) if error.reaction() == Reaction::Retry => {
            tracing::debug!(%error, "the checkpoint can not be read yet");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Starts replication, standing by while another relay holds the slot.
async fn hold(
    config: &Config,
    mut client: Client,
    report: &Status,
    large: Large,
    settled: &mut bool,
) -> Result<Stream, Error> {
    loop {
        let started =
            client.start_replication(config.slot_name(), config.publication_name(), large).await;
        match started {
            Err(busy) if busy.kind() == Kind::SlotBusy => {
                *settled = true;
                report.stands_by();
                tracing::info!(slot = config.slot_name(), "standing by: the slot is in use");
                client = leadership::stand_by(config).await?;
            }
            // It was given up while it was being made, or dropped: the next session sees to it.
            Err(gone) if gone.sqlstate() == Some(UNDEFINED_OBJECT) => {
                return Err(
                    Error::new(Kind::SlotBusy, "the slot went away meanwhile").caused_by(gone)
                );
            }
            started => return started,
        }
    }
}

/// Asks the server anew: its log ends above every checkpoint that was read before.
async fn decide(
    config: &Config,
    client: &mut Client,
    slot: &Slot,
    stored: &Stored,
    report: &Status,
) -> Result<Start, Error> {
    let server = source::identify(client).await?;
    let history = source::history(client, &server).await?;
    let start =
        resume::resume(&server, slot, stored, |timeline| resume::left_at(&history, timeline))?;
    resume::same_prefix(stored, config.published_prefix())?;
    if !setup::has_publication(config, client).await? {
        return Err(setup::lost_publication(config, client).await);
    }
    let sight = publication::look(config, client, server.flushed).await?;
    if sight.journal_left_out
        && let Some(journal) = publication::unpublished_journal(config, client).await?
        && journal.has_rows
    {
        return Err(journal.error(config));
    }
    if !sight.filtered.is_empty() {
        tracing::warn!(
            tables = ?sight.filtered,
            "the publication has a row filter: what it leaves out is not published by this relay"
        );
    }
    let before = stored.checkpoint.as_ref().and_then(|it| it.reads.publication.as_ref());
    if let Some(change) = before.and_then(|before| before.change(&sight.seen, config)) {
        tracing::error!(mend = change.mend(), "{change}");
        report.remember(&change);
    }
    report.begins_with(sight.seen);
    Ok(start)
}
