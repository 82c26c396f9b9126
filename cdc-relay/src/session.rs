//! The way to leadership: the same at the first start, after any crash, and after any error.

use std::time::Instant;

use crate::checkpoint::{CHECKPOINT_KEY, Checkpoint, Stored};
use crate::config::Config;
use crate::error::{Error, Kind};
use crate::leadership;
use crate::lookout::probe_prefix;
use crate::milestone::Observer;
use crate::progress::Progress;
use crate::publisher::{Batches, Probe, Publisher, Spans, unix_ms};
use crate::replication::{Client, Large, Stream};
use crate::resume::{self, Slot, Start};
use crate::sink::{Connect, Sink};
use crate::status::Status;
use crate::streamed::Streamed;
use crate::tables::Tables;
use crate::trouble::Trouble;
use crate::{setup, source};

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
    match source::slot(&mut client, config.slot_name()).await? {
        Some(slot) => slot.check(&server)?,
        None => {
            let mut sink = connect.connect(&relay_id).await?;
            setup::create(config, observer, &server, &mut sink, &mut client).await?;
        }
    }
    // The sink first: a relay that can not publish must not hold the slot.
    let mut sink = connect.connect(&relay_id).await?;
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
    let start = decide(config, &mut client, &slot, &stored).await?;
    if start.first {
        let checkpoint = Checkpoint { source: start.source.clone(), progress: start.progress };
        sink.seal(&[(CHECKPOINT_KEY, &checkpoint.encode(unix_ms()))]).await?;
        sink.confirmed().await?;
    }
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
        streamed,
        read_back: None,
    };
    Ok(Session { stream, publisher })
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
                tracing::info!(slot = config.slot_name(), "standing by: another relay leads");
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
) -> Result<Start, Error> {
    let server = source::identify(client).await?;
    let history = source::history(client, &server).await?;
    let start =
        resume::resume(&server, slot, stored, |timeline| resume::left_at(&history, timeline))?;
    if !setup::has_publication(config, client).await? {
        return Err(setup::lost_publication(config));
    }
    Ok(start)
}
