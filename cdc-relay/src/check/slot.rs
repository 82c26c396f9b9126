//! The slot, and what else keeps log.

use super::{Bounds, Report};
use crate::checkpoint::Stored;
use crate::config::Config;
use crate::config::measure::show_size;
use crate::error::Error;
use crate::position::Incarnation;
use crate::replication::{Client, Row, quote_identifier, quote_literal};
use crate::resume::{self, Server};
use crate::source;

/// Looks at the slot, and answers whether it exists. Without `stored` nothing is known of what was
/// published.
pub(super) async fn check(
    report: &mut Report,
    config: &Config,
    client: &mut Client,
    server: &Server,
    stored: Option<&Stored>,
) -> Result<bool, Error> {
    let name = config.slot_name();
    let Some(slot) = source::slot(client, name).await? else {
        missing(report, config, server, stored);
        return Ok(false);
    };
    if let Err(error) = slot.check(server) {
        report.error("slot", &error);
        return Ok(true);
    }
    match slot.wal_status.as_str() {
        "lost" => report.fail(
            "slot_wal",
            format!("slot {name:?} is lost: the server has removed log that it needs"),
            "cdc-relay adopt --accept-gap makes a new one and tells what is missing",
        ),
        "unreserved" => report.fail(
            "slot_wal",
            format!("slot {name:?} is about to be lost: the next checkpoint may remove its log"),
            "start the relay now, and raise max_slot_wal_keep_size (a reload is enough)",
        ),
        "extended" => report.warn(
            "slot_wal",
            format!("slot {name:?} keeps more log than max_wal_size"),
            "see that the relay runs and keeps up: cdc-relay status",
        ),
        _ => report.ok("slot_wal", format!("slot {name:?} has its log")),
    }
    if let Some(stored) = stored {
        let history = source::history(client, server).await?;
        // Asked anew: a relay that runs may have gone on since the checkpoint was read.
        let server = source::identify(client).await?;
        let switched = |timeline| resume::left_at(&history, timeline);
        let prefix = config.published_prefix();
        let resumed = resume::resume(&server, &slot, stored, switched);
        match resumed.and_then(|_| resume::same_prefix(stored, prefix)) {
            Ok(()) => report.ok("checkpoint", "slot, checkpoint and server belong together"),
            Err(error) => report.error("checkpoint", &error),
        }
    }
    reader(report, config, client).await?;
    if client.server_version() >= 170_000 {
        failover(report, name, client).await?;
    }
    Ok(true)
}

/// Who reads from the slot, as far as the role may see it.
async fn reader(report: &mut Report, config: &Config, client: &mut Client) -> Result<(), Error> {
    let sql = format!(
        "SELECT s.active_pid, a.application_name FROM pg_catalog.pg_replication_slots s \
         JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
         WHERE s.slot_name = {} AND a.backend_type IS NOT NULL",
        quote_literal(config.slot_name())
    );
    let rows = client.query(&sql).await?;
    let Some(row) = rows.first() else { return Ok(()) };
    let (pid, name) = (row.get(0).unwrap_or_default(), row.get(1).unwrap_or_default());
    if name != config.endpoint()?.application_name() {
        report.warn(
            "slot_reader",
            format!("backend {pid} ({name:?}) reads from the slot, and is no relay by its name"),
            "see what it is: while it reads no relay leads, and what it takes is a gap",
        );
    }
    Ok(())
}

fn missing(report: &mut Report, config: &Config, server: &Server, stored: Option<&Stored>) {
    let name = config.slot_name();
    let refused = stored.map(|stored| resume::create(server, name, stored, Incarnation(0)));
    match refused {
        Some(Err(error)) => report.error("slot", &error),
        _ if config.may_init() => {
            report.warn(
                "slot",
                format!("slot {name:?} does not exist yet: messages written before it vanish"),
                "cdc-relay init makes it, or the first run does",
            );
        }
        _ => report.fail(
            "slot",
            format!("slot {name:?} does not exist, and relay.init is false"),
            "cdc-relay init makes it",
        ),
    }
}

/// Postgres 17 can keep a copy of the slot on a standby.
async fn failover(report: &mut Report, name: &str, client: &mut Client) -> Result<(), Error> {
    let sql = format!(
        "SELECT failover::text, synced::text, invalidation_reason \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
        quote_literal(name)
    );
    let rows = client.query(&sql).await?;
    let is = |at: usize| rows.first().and_then(|row| row.get(at)) == Some("true");
    if is(0) {
        report.ok("slot_failover", "standbys may keep the slot");
    } else {
        report.warn(
            "slot_failover",
            "the slot is none that standbys keep: it is gone after a failover",
            format!(
                "with every relay stopped, on a connection with replication=database: \
                 ALTER_REPLICATION_SLOT {} (FAILOVER true)",
                quote_identifier(name)
            ),
        );
    }
    Ok(())
}

/// Slots of others that nobody reads.
pub(super) async fn others(
    report: &mut Report,
    config: &Config,
    client: &mut Client,
    bounds: Bounds,
) -> Result<(), Error> {
    let sql = format!(
        "SELECT slot_name, pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), \
         restart_lsn)::bigint FROM pg_catalog.pg_replication_slots \
         WHERE NOT active AND slot_name <> {} ORDER BY restart_lsn",
        quote_literal(config.slot_name())
    );
    let rows = client.query(&sql).await?;
    let keeps = |row: &Row| {
        let bytes: u64 = row.get(1)?.parse().ok()?;
        let name = row.get(0)?;
        (bytes > bounds.abandoned_bytes).then(|| format!("{name} ({})", show_size(bytes)))
    };
    let abandoned: Vec<String> = rows.iter().filter_map(keeps).collect();
    if abandoned.is_empty() {
        report.ok("other_slots", "no abandoned slot keeps much log");
    } else {
        report.warn(
            "other_slots",
            format!("nobody reads these slots, and they keep log: {}", abandoned.join(", ")),
            "start their readers, or SELECT pg_drop_replication_slot('name')",
        );
    }
    Ok(())
}
