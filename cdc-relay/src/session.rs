//! The way to leadership: the same at the first start, after any crash, and after any error.

use std::pin::pin;
use std::time::{Duration, Instant};

use crate::checkpoint::{Checkpoint, Intent, Stored};
use crate::config::Config;
use crate::error::{Error, Kind};
use crate::journal::{self, Journal};
use crate::leadership;
use crate::lsn::Lsn;
use crate::milestone::{Milestone, Observer};
use crate::position::Incarnation;
use crate::progress::Progress;
use crate::publisher::{Publisher, unix_ms};
use crate::replication::{Client, Row, Stream, quote_identifier, quote_literal};
use crate::resume::{self, Server, Slot, Start};
use crate::sink::ExactlyOnce;

/// Creating a slot waits for every transaction that runs at its beginning.
const SLOT_TIMEOUT: Duration = Duration::from_secs(60);
/// From then on it is said for what.
const SLOT_PATIENCE: Duration = Duration::from_secs(2);

/// SQLSTATEs of what does not exist, of what exists already, and of what was made just now.
const UNDEFINED_OBJECT: &str = "42704";
const DUPLICATE_OBJECT: &str = "42710";
const UNIQUE_VIOLATION: &str = "23505";

/// A relay that holds the slot and knows where to go on.
pub(crate) struct Session<'a> {
    pub(crate) stream: Stream,
    pub(crate) publisher: Publisher<'a>,
}

/// Comes to lead: takes the slot, fences whoever led before, reads the checkpoint, and decides
/// where to go on. Waits as long as another relay leads; `settled` is set once nothing but other
/// relays or passing faults can stand in the way.
pub(crate) async fn lead<'a>(
    config: &'a Config,
    observer: &Observer,
    settled: &mut bool,
) -> Result<Session<'a>, Error> {
    let mut client = Client::connect(&config.endpoint()?).await?;
    let server = identify(&mut client).await?;
    let relay_id = config.relay_id_for(&server.system_identifier, &server.database)?;
    match slot(&mut client, config.slot_name()).await? {
        Some(slot) => slot.check(&server)?,
        None => create(config, observer, &server, &relay_id, &mut client).await?,
    }
    // Kafka first: a relay that can not publish must not hold the slot.
    let mut sink = connect(config, &relay_id).await?;
    let stream = hold(config, client, settled).await?;

    // From here on the slot is ours, and with it the right to fence.
    sink.take_over().await?;
    let stored = sink.stored().await?;
    let start = decide(config, &stored).await?;
    *settled = true;
    if start.first {
        let checkpoint = Checkpoint { source: start.source.clone(), progress: start.progress };
        sink.commit(&checkpoint, unix_ms()).await?;
    }
    tracing::info!(
        %relay_id,
        slot = config.slot_name(),
        from = %start.progress.flush_lsn,
        incarnation = start.source.incarnation.0,
        "leading"
    );
    let status = stream.status();
    status.flushed(start.progress.flush_lsn);
    let progress =
        Progress::new(start.source.incarnation, start.progress, config.limits(), Instant::now());
    let publisher = Publisher {
        config,
        observer: observer.clone(),
        relay_id,
        source: start.source,
        progress,
        sink,
        status,
        journal: Journal::new(config.outbox_schema()),
        sequence: String::new(),
        frame: Vec::new(),
        warned_of_rows: false,
    };
    Ok(Session { stream, publisher })
}

async fn connect(config: &Config, relay_id: &str) -> Result<ExactlyOnce, Error> {
    ExactlyOnce::connect(&config.cluster(), relay_id, config.may_create_topics()).await
}

/// Starts replication, standing by while another relay holds the slot.
async fn hold(config: &Config, client: Client, settled: &mut bool) -> Result<Stream, Error> {
    let mut client = Some(client);
    loop {
        let client = match client.take() {
            Some(client) => client,
            None => Client::connect(&config.endpoint()?).await?,
        };
        let started = client.start_replication(config.slot_name(), config.publication_name()).await;
        match started {
            Err(busy) if busy.kind() == Kind::SlotBusy => {
                *settled = true;
                tracing::info!(slot = config.slot_name(), "standing by: another relay leads");
                leadership::stand_by(config).await?;
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

/// Asks server and slot anew, now that nobody else can move the slot.
async fn decide(config: &Config, stored: &Stored) -> Result<Start, Error> {
    let mut client = Client::connect(&config.endpoint()?).await?;
    let server = identify(&mut client).await?;
    let slot = slot(&mut client, config.slot_name()).await?;
    let slot = slot.ok_or_else(|| missing("the slot", "disappeared while it was held"))?;
    let history = match server.timeline {
        1 => String::new(),
        timeline => {
            let rows = client.query(&format!("TIMELINE_HISTORY {timeline}")).await?;
            column(&rows, 1, "the timeline history")?.to_owned()
        }
    };
    let start =
        resume::resume(&server, &slot, stored, |timeline| resume::left_at(&history, timeline))?;
    if !has_publication(config, &mut client).await? {
        return Err(lost_publication(config));
    }
    Ok(start)
}

async fn identify(client: &mut Client) -> Result<Server, Error> {
    let rows = client.query("IDENTIFY_SYSTEM").await?;
    let answer = |at| column(&rows, at, "the answer to IDENTIFY_SYSTEM");
    let number = |text: &str| {
        text.parse().map_err(|error| missing("the timeline", "is no number").caused_by(error))
    };
    let lsn = |text: &str| {
        text.parse::<Lsn>().map_err(|error| missing("the log position", "is bad").caused_by(error))
    };
    let server = Server {
        system_identifier: answer(0)?.to_owned(),
        timeline: number(answer(1)?)?,
        flushed: lsn(answer(2)?)?,
        database: answer(3)?.to_owned(),
    };
    let rows = client
        .query(
            "SELECT pg_catalog.current_setting('wal_level'), pg_catalog.pg_is_in_recovery()::text",
        )
        .await?;
    if column(&rows, 1, "pg_is_in_recovery")? == "true" {
        return Err(Error::new(Kind::Unavailable, "the server is a standby, not the primary")
            .hint("point DATABASE_URL at the primary"));
    }
    let wal_level = column(&rows, 0, "wal_level")?;
    if wal_level != "logical" {
        return Err(Error::new(Kind::Server, format!("wal_level is {wal_level}, not logical"))
            .hint("ALTER SYSTEM SET wal_level = logical, then restart the server"));
    }
    Ok(server)
}

async fn slot(client: &mut Client, name: &str) -> Result<Option<Slot>, Error> {
    let rows = client
        .query(&format!(
            "SELECT slot_name, plugin, database, two_phase::text, confirmed_flush_lsn, wal_status \
             FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
            quote_literal(name)
        ))
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let text = |at| row.get(at).unwrap_or_default().to_owned();
    Ok(Some(Slot {
        name: text(0),
        plugin: text(1),
        database: text(2),
        two_phase: row.get(3) == Some("true"),
        confirmed_flush: row.get(4).and_then(|lsn| lsn.parse().ok()),
        wal_status: text(5),
    }))
}

/// Makes publication and slot at the first run: the publication first, because the slot's reader
/// looks for it as of the slot's beginning; the intent before the slot, because a slot without
/// either record is refused.
async fn create(
    config: &Config,
    observer: &Observer,
    server: &Server,
    relay_id: &str,
    client: &mut Client,
) -> Result<(), Error> {
    if !config.may_init() {
        let text = format!("slot {:?} does not exist", config.slot_name());
        return Err(
            Error::new(Kind::Config, text).hint("leave out --no-init to let the relay create it")
        );
    }
    // Of several relays at their first start the last to come here fences the others.
    let mut sink = connect(config, relay_id).await?;
    sink.take_over().await?;
    let stored = sink.stored().await?;
    // Another relay may have created it since this one looked: then it leads, or this one will.
    if slot(client, config.slot_name()).await?.is_some() {
        return Ok(());
    }
    let seconds = u32::try_from(unix_ms() / 1_000).unwrap_or(u32::MAX);
    let intent: Intent = resume::create(server, config.slot_name(), &stored, Incarnation(seconds))?;
    publication(config, client).await?;
    sink.commit_intent(&intent, unix_ms()).await?;
    observer.at(Milestone::Intended);
    tracing::info!(slot = config.slot_name(), "creating the slot");
    let failover = if client.server_version() >= 170_000 { ", FAILOVER true" } else { "" };
    let command = format!(
        "CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'nothing'{failover})",
        quote_identifier(config.slot_name())
    );
    let mut creating = pin!(client.query_within(SLOT_TIMEOUT, &command));
    let created = match tokio::time::timeout(SLOT_PATIENCE, &mut creating).await {
        Ok(created) => created,
        Err(_) => {
            let waits_for = running(config).await.unwrap_or_default();
            tracing::warn!(%waits_for, "the slot waits for the transactions of these backends to end");
            creating.await
        }
    };
    match created {
        // Another relay was faster: it leads, or this one will.
        Err(error) if error.sqlstate() == Some(DUPLICATE_OBJECT) => Ok(()),
        Err(error) if error.kind() == Kind::Unavailable => Err(waits(config, error).await),
        created => {
            created?;
            observer.at(Milestone::SlotCreated);
            Ok(())
        }
    }
}

/// Makes the publication, with the journal where there is one.
async fn publication(config: &Config, client: &mut Client) -> Result<(), Error> {
    let name = quote_identifier(config.publication_name());
    if has_publication(config, client).await? {
        return Ok(());
    }
    let journal = journal_table(config);
    let exists = client
        .query(&format!("SELECT pg_catalog.to_regclass({})", quote_literal(&journal)))
        .await?
        .first()
        .is_some_and(|row| row.get(0).is_some());
    let tables = if exists { format!("FOR TABLE {journal} ") } else { String::new() };
    let command = format!(
        "CREATE PUBLICATION {name} {tables}WITH (publish = 'insert', publish_via_partition_root = true)"
    );
    match client.query(&command).await {
        Ok(_) => Ok(()),
        // Another relay was faster; at the very same moment the catalog's index says so.
        Err(error) if matches!(error.sqlstate(), Some(DUPLICATE_OBJECT | UNIQUE_VIOLATION)) => {
            Ok(())
        }
        Err(error) => Err(error.hint(format!(
            "the role needs CREATE on the database once, and to own the journal; or let their \
             owner run: {command}"
        ))),
    }
}

/// Whether the publication exists. With tables it must name them by their root: rows under the
/// names of partitions would not be known for the journal's.
async fn has_publication(config: &Config, client: &mut Client) -> Result<bool, Error> {
    let rows = client
        .query(&format!(
            "SELECT p.pubviaroot::text, p.pubinsert::text, EXISTS (SELECT FROM \
             pg_catalog.pg_publication_tables t WHERE t.pubname = p.pubname \
             AND t.schemaname = {})::text FROM pg_catalog.pg_publication p WHERE p.pubname = {}",
            quote_literal(config.outbox_schema()),
            quote_literal(config.publication_name())
        ))
        .await?;
    let Some(row) = rows.first() else { return Ok(false) };
    let is = |at| row.get(at) == Some("true");
    if is(2) && !(is(0) && is(1)) {
        let name = config.publication_name();
        let text = format!("publication {name:?} does not publish the journal's rows as its own");
        return Err(Error::new(Kind::Server, text).hint(format!(
            "ALTER PUBLICATION {} SET (publish = 'insert', publish_via_partition_root = true)",
            quote_identifier(name)
        )));
    }
    Ok(true)
}

fn lost_publication(config: &Config) -> Error {
    let name = config.publication_name();
    Error::new(Kind::Server, format!("publication {name:?} does not exist, though the slot does"))
        .hint(format!(
            "CREATE PUBLICATION {} WITH (publish = 'insert', publish_via_partition_root = true); \
             or name the right one by --publication",
            quote_identifier(name)
        ))
}

fn journal_table(config: &Config) -> String {
    format!("{}.{}", quote_identifier(config.outbox_schema()), quote_identifier(journal::TABLE))
}

/// A slot's creation that took too long was most likely waiting: names for what.
async fn waits(config: &Config, error: Error) -> Error {
    match running(config).await {
        Ok(pids) if !pids.is_empty() => error
            .hint(format!("the slot waits for the transactions of these backends to end: {pids}")),
        _ => error,
    }
}

/// The backends with a transaction that has written something, in any database of the server.
async fn running(config: &Config) -> Result<String, Error> {
    let mut client = Client::connect(&config.endpoint()?).await?;
    let rows = client
        .query(
            "SELECT pg_catalog.string_agg(pid::text, ', ') FROM pg_catalog.pg_stat_activity \
             WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid()",
        )
        .await?;
    Ok(rows.first().and_then(|row| row.get(0)).unwrap_or_default().to_owned())
}

fn column<'r>(rows: &'r [Row], at: usize, what: &'static str) -> Result<&'r str, Error> {
    rows.first().and_then(|row| row.get(at)).ok_or_else(|| missing(what, "is empty"))
}

fn missing(what: &'static str, how: &'static str) -> Error {
    Error::new(Kind::Server, format!("{what} {how}"))
}
