//! What is made at the first run: publication, intent and slot.

use std::pin::pin;
use std::time::Duration;

use crate::checkpoint::{INTENT_KEY, Intent, Stored};
use crate::config::Config;
use crate::error::{Error, Kind};
use crate::milestone::{Milestone, Observer};
use crate::position::Incarnation;
use crate::publication;
use crate::publisher::unix_ms;
use crate::replication::{Client, quote_identifier, quote_literal};
use crate::resume::{self, Server};
use crate::sink::Sink;
use crate::source;

/// The journal's table, in the schema of the outbox.
pub(crate) const JOURNAL: &str = "outbox";

/// Creating a slot waits for every transaction that runs at its beginning.
const SLOT_TIMEOUT: Duration = Duration::from_secs(60);
/// From then on it is said for what.
const SLOT_PATIENCE: Duration = Duration::from_secs(2);

/// SQLSTATEs of what exists already, and of what was made just now.
const DUPLICATE_OBJECT: &str = "42710";
const UNIQUE_VIOLATION: &str = "23505";

/// Makes publication and slot at the first run: the publication first, because the slot's reader
/// looks for it as of the slot's beginning; the intent before the slot, because a slot without
/// either record is refused.
pub(crate) async fn create(
    config: &Config,
    observer: &Observer,
    server: &Server,
    sink: &mut impl Sink,
    client: &mut Client,
) -> Result<(), Error> {
    if !config.may_init() {
        let text = format!("slot {:?} does not exist", config.slot_name());
        return Err(Error::new(Kind::Config, text)
            .hint("run cdc-relay init, or leave out --no-init to let the relay create it"));
    }
    alone(config, client).await?;
    let made = create_alone(config, observer, server, sink, client).await;
    let let_go = client.query("SELECT pg_catalog.pg_advisory_unlock_all()").await;
    made?;
    let_go?;
    Ok(())
}

/// Makes sure that no other relay is between its look for the slot and the slot's making: it would
/// fence a relay that leads by then. That breaks no promise, but costs a session.
async fn alone(config: &Config, client: &mut Client) -> Result<(), Error> {
    let name = quote_literal(&format!("tailrace.slot.{}", config.slot_name()));
    let lock = format!(
        "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended({name}, 0))::text"
    );
    let rows = client.query(&lock).await?;
    if rows.first().and_then(|row| row.get(0)) == Some("true") {
        return Ok(());
    }
    let text = format!("another relay is making slot {:?}", config.slot_name());
    Err(Error::new(Kind::SlotBusy, text))
}

async fn create_alone(
    config: &Config,
    observer: &Observer,
    server: &Server,
    sink: &mut impl Sink,
    client: &mut Client,
) -> Result<(), Error> {
    // Asked once more before anybody is fenced: to connect has taken time, and who has made the slot
    // meanwhile may lead.
    if source::slot(client, config.slot_name()).await?.is_some() {
        return Ok(());
    }
    let stored = Stored::read(&sink.take_over().await?)?;
    let seconds = u32::try_from(unix_ms() / 1_000).unwrap_or(u32::MAX);
    let intent: Intent = resume::create(server, config.slot_name(), &stored, Incarnation(seconds))?;
    publication(config, client).await?;
    sink.seal(&[(INTENT_KEY, &intent.encode(unix_ms()))]).await?;
    sink.confirmed().await?;
    observer.at(Milestone::Intended);
    if slot(config, client).await? {
        observer.at(Milestone::SlotCreated);
    }
    Ok(())
}

/// The command that makes the slot.
pub(crate) fn slot_command(config: &Config, server_version: u32) -> String {
    let failover = if server_version >= 170_000 { ", FAILOVER true" } else { "" };
    format!(
        "CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'nothing'{failover})",
        quote_identifier(config.slot_name())
    )
}

/// Makes the slot; answers whether it was this relay that did.
pub(crate) async fn slot(config: &Config, client: &mut Client) -> Result<bool, Error> {
    tracing::info!(slot = config.slot_name(), "creating the slot");
    let command = slot_command(config, client.server_version());
    let mut creating = pin!(client.query_within(SLOT_TIMEOUT, &command));
    let created = match tokio::time::timeout(SLOT_PATIENCE, &mut creating).await {
        Ok(created) => created,
        Err(_) => {
            let waits_for = holders(config).await.unwrap_or_default();
            tracing::warn!(%waits_for, "the slot waits for the transactions of these backends to end");
            creating.await
        }
    };
    match created {
        // Another relay was faster: it leads, or this one will.
        Err(error) if error.sqlstate() == Some(DUPLICATE_OBJECT) => Ok(false),
        Err(error) if error.kind() == Kind::Unavailable => Err(waits(config, error).await),
        created => created.map(|_| true),
    }
}

/// The command that makes the publication, with the journal where there is one.
pub(crate) async fn publication_command(
    config: &Config,
    client: &mut Client,
) -> Result<String, Error> {
    let name = quote_identifier(config.publication_name());
    let journal = journal_table(config);
    // By the catalog's names, which a role without any right on the schema may read too.
    let exists = client
        .query(&format!(
            "SELECT 1 FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = {} AND c.relname = {} AND c.relkind IN ('r', 'p')",
            quote_literal(config.outbox_schema()),
            quote_literal(JOURNAL)
        ))
        .await?;
    let exists = !exists.is_empty();
    let mut tables = publication::tables(config, client).await?;
    tables.extend(exists.then_some(journal));
    let tables = match tables.as_slice() {
        [] => String::new(),
        tables => format!("FOR TABLE {} ", tables.join(", ")),
    };
    Ok(format!(
        "CREATE PUBLICATION {name} {tables}WITH (publish = 'insert', publish_via_partition_root = true)"
    ))
}

/// Makes the publication unless it exists.
pub(crate) async fn publication(config: &Config, client: &mut Client) -> Result<(), Error> {
    if has_publication(config, client).await? {
        return Ok(());
    }
    let command = publication_command(config, client).await?;
    match client.query(&command).await {
        Ok(_) => Ok(()),
        // Another relay was faster; at the very same moment the catalog's index says so.
        Err(error) if matches!(error.sqlstate(), Some(DUPLICATE_OBJECT | UNIQUE_VIOLATION)) => {
            Ok(())
        }
        Err(error) => Err(error.hint(format!(
            "the role needs CREATE on the database once, and to own the journal and the tables of \
             messages; or let their owner run: {command}; cdc-relay init --dry-run prints all that \
             is needed"
        ))),
    }
}

/// Whether the publication exists. With tables it must name them by their root: rows under the
/// names of partitions would not be known for the journal's.
pub(crate) async fn has_publication(config: &Config, client: &mut Client) -> Result<bool, Error> {
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
    publication::must_hold(config, client).await?;
    Ok(true)
}

/// A relay that has led is without its publication.
pub(crate) async fn lost_publication(config: &Config, client: &mut Client) -> Error {
    // With the tables: without them it could be read, and their rows would be left out unseen.
    let command = match publication_command(config, client).await {
        Ok(command) => command,
        Err(error) => return error,
    };
    let name = config.publication_name();
    Error::new(Kind::Server, format!("publication {name:?} does not exist, though the slot does"))
        .hint(format!(
            "let the owner of the tables run: {command}; or name the right one by --publication; \
             rows that were inserted while it was missing are not published"
        ))
}

/// The journal's name in SQL.
pub(crate) fn journal_table(config: &Config) -> String {
    format!("{}.{JOURNAL}", quote_identifier(config.outbox_schema()))
}

/// A slot's creation that took too long was most likely waiting: names for what.
async fn waits(config: &Config, error: Error) -> Error {
    match holders(config).await {
        Ok(pids) if !pids.is_empty() => error
            .hint(format!("the slot waits for the transactions of these backends to end: {pids}")),
        _ => error,
    }
}

/// The backends that the slot waits for, asked on a connection of its own.
async fn holders(config: &Config) -> Result<String, Error> {
    let mut client = Client::connect(&config.endpoint()?).await?;
    source::running(&mut client).await
}
