//! The server and the role.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Bounds, Report, value};
use crate::config::Config;
use crate::config::measure::{show_duration, show_size};
use crate::error::{Error, Kind};
use crate::replication::{Client, quote_identifier, quote_literal};
use crate::resume::Server;
use crate::source;

/// SQLSTATE of a right that is missing.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// A relay that is away for an hour on a busy database should find its log.
const KEEP_BYTES_MIN: u64 = 1 << 30;

/// Below it a short pause of the network or of the relay's host ends the connection.
const SENDER_TIMEOUT_MS_MIN: u64 = 5_000;

/// Logs in as the relay would.
pub(super) async fn reach(report: &mut Report, config: &Config) -> Option<Client> {
    let endpoint = match config.endpoint() {
        Ok(endpoint) => endpoint,
        Err(error) => {
            report.error("postgres", &error);
            return None;
        }
    };
    match Client::connect(&endpoint).await {
        Ok(client) => {
            let version = client.server_version();
            let (major, minor) = (version / 10_000, version % 10_000);
            let text = format!("{}, version {major}.{minor}", endpoint.describe());
            report.ok("postgres", text);
            Some(client)
        }
        Err(error) if error.sqlstate() == Some(INSUFFICIENT_PRIVILEGE) => {
            let role = quote_identifier(endpoint.user());
            let mend = format!(
                "ALTER ROLE {role} REPLICATION; on Amazon RDS and Aurora instead: GRANT \
                 rds_replication TO {role}; on Cloud SQL and Azure run ALTER ROLE as the \
                 administrator that the service made"
            );
            report.fail("role", error.to_string(), mend);
            None
        }
        Err(error) => {
            report.error("postgres", &error);
            None
        }
    }
}

/// Looks at the server; `None` when nothing further can be asked of it.
pub(super) async fn check(
    report: &mut Report,
    config: &Config,
    client: &mut Client,
    bounds: Bounds,
) -> Result<Option<Server>, Error> {
    role(report, client).await?;
    let settings = settings(client).await?;
    let setting = |name: &str| settings.get(name).map_or("", String::as_str);
    match setting("wal_level") {
        "logical" => report.ok("wal_level", "logical"),
        other => report.fail(
            "wal_level",
            format!("wal_level is {other}: messages that are written vanish"),
            "ALTER SYSTEM SET wal_level = logical, then restart the server (managed: its \
             parameter for logical replication, such as rds.logical_replication)",
        ),
    }
    if value(client, "SELECT pg_catalog.pg_is_in_recovery()::text").await?.as_deref()
        == Some("true")
    {
        let mend = "name the primary in database.url, or several hosts with \
                    target_session_attrs=read-write";
        report.fail("primary", "the server is a standby", mend);
        return Ok(None);
    }
    report.ok("primary", "the server is no standby");
    limits(report, config, client, &settings).await?;
    keeping(report, &settings);
    durability(report, &settings);
    transactions(report, client, bounds).await?;
    clock(report, client, bounds).await?;
    match source::identify(client).await {
        Ok(server) => Ok(Some(server)),
        // It was told above.
        Err(error) if error.kind() == Kind::Server => Ok(None),
        Err(error) => Err(error),
    }
}

async fn role(report: &mut Report, client: &mut Client) -> Result<(), Error> {
    let sql = "SELECT rolsuper::text FROM pg_catalog.pg_roles WHERE rolname = current_user";
    // That it was let in shows REPLICATION, or what the provider has in its place.
    match value(client, sql).await?.as_deref() {
        Some("true") => report.warn(
            "role",
            "the role is a superuser, and a relay needs far less",
            "CREATE ROLE relay LOGIN REPLICATION PASSWORD '...', and name it in database.url",
        ),
        _ => report.ok("role", "the role may replicate, and is no superuser"),
    }
    Ok(())
}

/// The settings that matter, each in its base unit.
async fn settings(client: &mut Client) -> Result<BTreeMap<String, String>, Error> {
    let rows = client
        .query(
            "SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ('wal_level', \
             'max_replication_slots', 'max_wal_senders', 'max_slot_wal_keep_size', \
             'wal_sender_timeout', 'idle_replication_slot_timeout', 'fsync', 'full_page_writes')",
        )
        .await?;
    let pair =
        |row: &crate::replication::Row| Some((row.get(0)?.to_owned(), row.get(1)?.to_owned()));
    Ok(rows.iter().filter_map(pair).collect())
}

fn number(settings: &BTreeMap<String, String>, name: &str) -> Option<i64> {
    settings.get(name)?.parse().ok()
}

/// Slots and senders are counted over the whole server.
async fn limits(
    report: &mut Report,
    config: &Config,
    client: &mut Client,
    settings: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let slots = format!(
        "SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots WHERE slot_name <> {}",
        quote_literal(config.slot_name())
    );
    let others = count(client, &slots).await?;
    let max = number(settings, "max_replication_slots").unwrap_or_default();
    if others < max {
        report.ok("replication_slots", format!("{others} of {max} are others'"));
    } else {
        report.fail(
            "replication_slots",
            format!("all {max} are others': the relay can make none"),
            "drop one that nobody needs, or raise max_replication_slots and restart the server",
        );
    }
    let senders = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication";
    let used = count(client, senders).await?;
    let max = number(settings, "max_wal_senders").unwrap_or_default();
    // The check holds one itself; a relay that starts needs two.
    if used < max {
        report.ok("wal_senders", format!("{used} of {max} in use"));
    } else {
        report.warn(
            "wal_senders",
            format!("{used} of {max} in use: a relay that starts needs two"),
            "end what nobody needs, or raise max_wal_senders and restart the server",
        );
    }
    Ok(())
}

async fn count(client: &mut Client, sql: &str) -> Result<i64, Error> {
    let count = value(client, sql).await?;
    Ok(count.and_then(|count| count.parse().ok()).unwrap_or_default())
}

/// What the server keeps for a relay that is away.
fn keeping(report: &mut Report, settings: &BTreeMap<String, String>) {
    let name = "max_slot_wal_keep_size";
    match number(settings, name).map(|megabytes| u64::try_from(megabytes).map(|mb| mb << 20)) {
        Some(Err(_)) => report.warn(
            name,
            "no limit: a relay that is away long enough fills the server's disk",
            "set it to what the disk can spare, for example ALTER SYSTEM SET \
             max_slot_wal_keep_size = '50GB', and alert on safe_wal_size",
        ),
        Some(Ok(bytes)) if bytes < KEEP_BYTES_MIN => report.warn(
            name,
            format!("{}: a short absence of the relay loses its slot", show_size(bytes)),
            "let it cover the log of the longest absence that you want to survive",
        ),
        Some(Ok(bytes)) => report.ok(name, show_size(bytes)),
        None => {}
    }
    if let Some(seconds) = number(settings, "idle_replication_slot_timeout")
        && seconds > 0
    {
        report.warn(
            "idle_slot_timeout",
            format!("a slot whose relay is away for {seconds} s is invalidated"),
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; max_slot_wal_keep_size bounds \
             what a slot costs",
        );
    }
    let timeout = number(settings, "wal_sender_timeout").and_then(|ms| u64::try_from(ms).ok());
    match timeout {
        Some(ms) if ms > 0 && ms < SENDER_TIMEOUT_MS_MIN => report.warn(
            "wal_sender_timeout",
            format!("{ms} ms: a short pause ends the relay's connection"),
            "set it to 60s, its default; a relay's takeover does not wait for it",
        ),
        _ => report.ok("wal_sender_timeout", "long enough"),
    }
}

/// A log that loses its end after a crash writes its positions twice.
fn durability(report: &mut Report, settings: &BTreeMap<String, String>) {
    let off = |name: &&str| settings.get(*name).is_some_and(|setting| setting == "off");
    let off: Vec<&str> = ["fsync", "full_page_writes"].into_iter().filter(off).collect();
    match off.is_empty() {
        true => report.ok("durability", "the log is flushed to disk"),
        false => report.warn(
            "durability",
            format!("{} off: a crash can lose what is published already", off.join(" and ")),
            "switch it on, but for throw-away data",
        ),
    }
}

/// What hinders the making of a slot and keeps the log.
async fn transactions(
    report: &mut Report,
    client: &mut Client,
    bounds: Bounds,
) -> Result<(), Error> {
    let age = bounds.transaction_age;
    let seconds = age.as_secs();
    // Walsenders show no age; of sessions of other roles only those with pg_read_all_stats see the age.
    let rows = client
        .query(&format!(
            "SELECT pg_catalog.string_agg(pid::text, ', ') FILTER (WHERE \
             xact_start <= pg_catalog.clock_timestamp() - interval '{seconds} s'), \
             pg_catalog.count(*) FILTER (WHERE xact_start IS NULL) \
             FROM pg_catalog.pg_stat_activity \
             WHERE backend_xid IS NOT NULL AND pid NOT IN \
             (SELECT pid FROM pg_catalog.pg_stat_replication)"
        ))
        .await?;
    let column = |at: usize| rows.first().and_then(|row| row.get(at)).map(str::to_owned);
    let (long, hidden) = (column(0), column(1));
    let prepared = value(
        client,
        &format!(
            "SELECT pg_catalog.string_agg(gid, ', ') FROM pg_catalog.pg_prepared_xacts \
             WHERE prepared <= pg_catalog.clock_timestamp() - interval '{seconds} s'"
        ),
    )
    .await?;
    let age = show_duration(age);
    match &long {
        None if hidden.is_some_and(|hidden| hidden != "0") => report.warn(
            "long_transactions",
            "the role may not see how long others' transactions are open",
            "GRANT pg_read_all_stats to it, or look yourself",
        ),
        None => report.ok("long_transactions", format!("none that writes for over {age}")),
        Some(pids) => report.warn(
            "long_transactions",
            format!("backends {pids} write in transactions open for over {age}"),
            "end them: the server keeps all log since they began, and a new slot waits for them",
        ),
    }
    if let Some(gids) = prepared {
        report.warn(
            "prepared_transactions",
            format!("prepared for over {age} and not ended: {gids}"),
            "COMMIT PREPARED or ROLLBACK PREPARED each: a new slot waits for them, and the server \
             keeps all log since",
        );
    }
    Ok(())
}

async fn clock(report: &mut Report, client: &mut Client, bounds: Bounds) -> Result<(), Error> {
    let before = since_epoch();
    let sql = "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000)::bigint";
    let theirs =
        value(client, sql).await?.and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
    let after = since_epoch();
    let Some(theirs) = theirs else { return Ok(()) };
    let skew = skew(before, theirs, after);
    if skew <= bounds.clock_skew {
        report.ok("clock", "the server's clock and ours agree");
    } else {
        report.warn(
            "clock",
            format!("the server's clock is {} off ours", show_duration(skew)),
            "keep both by NTP: Kafka refuses records that seem to come from the future",
        );
    }
    Ok(())
}

/// How far a clock that was read between two moments of ours is off for certain.
fn skew(before: Duration, theirs: Duration, after: Duration) -> Duration {
    before.saturating_sub(theirs).max(theirs.saturating_sub(after))
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::skew;

    #[test]
    fn a_slow_answer_is_no_skew() {
        let seconds = Duration::from_secs;
        for (before, theirs, after, off) in [(10, 15, 20, 0), (10, 8, 20, 2), (10, 27, 20, 7)] {
            assert_eq!(skew(seconds(before), seconds(theirs), seconds(after)), seconds(off));
        }
    }
}
