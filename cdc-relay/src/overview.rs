//! Where a relay stands, seen from outside: nothing is held, fenced or changed.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::checkpoint::{self, Checkpoint, Stored, written_ms};
use crate::config::Config;
use crate::config::measure::{show_duration, show_size};
use crate::error::Error;
use crate::publisher::unix_ms;
use crate::replication::{Client, Row, quote_literal};
use crate::resume::{self, Server};
use crate::sink::{Connect, Kafka, Saved};
use crate::source;

/// What is known of a relay.
#[derive(Debug)]
pub(crate) struct Overview {
    relay_id: String,
    server: Server,
    slot: Option<SlotSight>,
    /// `None` while the topic does not exist.
    checkpoint: Option<Checkpoint>,
    written_ms: Option<u64>,
    now_ms: u64,
    /// Why a relay would refuse to go on.
    refusal: Option<String>,
}

#[derive(Debug)]
struct SlotSight {
    confirmed_flush: Option<String>,
    lag_bytes: Option<u64>,
    retained_bytes: Option<u64>,
    wal_status: String,
    safe_wal_bytes: Option<u64>,
    leader: Option<Leader>,
}

#[derive(Debug)]
struct Leader {
    pid: String,
    application: Option<String>,
    address: Option<String>,
    since: Option<String>,
    flush_lag: Option<Duration>,
}

/// Asks both servers.
pub(crate) async fn overview(config: &Config) -> Result<Overview, Error> {
    let mut client = Client::connect(&config.endpoint()?).await?;
    let server = source::identify(&mut client).await?;
    let relay_id = config.relay_id_for(&server.system_identifier, &server.database)?;
    // In this order a leader that goes on meanwhile is never taken for a gap: the slot follows
    // the checkpoint, and that the log.
    let slot = source::slot(&mut client, config.slot_name()).await?;
    let saved = saved(config, &relay_id).await?;
    let read = saved.as_ref().map(Stored::read).transpose();
    let (stored, unreadable) = match read {
        Ok(stored) => (stored.unwrap_or_default(), None),
        Err(error) => (Stored::default(), Some(error)),
    };
    let server = source::identify(&mut client).await?;
    let history = source::history(&mut client, &server).await?;
    let refusal = match slot {
        _ if unreadable.is_some() => unreadable,
        None => {
            let slot = config.slot_name();
            resume::create(&server, slot, &stored, crate::position::Incarnation(0)).err()
        }
        Some(slot) => slot.check(&server).err().or_else(|| {
            let switched = |timeline| resume::left_at(&history, timeline);
            let resumed = resume::resume(&server, &slot, &stored, switched);
            resumed.and_then(|_| resume::same_prefix(&stored, config.published_prefix())).err()
        }),
    };
    Ok(Overview {
        relay_id,
        slot: sight(config, &mut client).await?,
        written_ms: saved.as_ref().and_then(written_ms),
        checkpoint: stored.checkpoint,
        now_ms: unix_ms(),
        refusal: refusal.map(|error| error.to_string()),
        server,
    })
}

/// What is committed in the checkpoint topic; `None` where there is none.
pub(crate) async fn saved(config: &Config, relay_id: &str) -> Result<Option<Saved>, Error> {
    Kafka::of(config).saved(relay_id).await
}

async fn sight(config: &Config, client: &mut Client) -> Result<Option<SlotSight>, Error> {
    let slot = quote_literal(config.slot_name());
    let rows = client
        .query(&format!(
            "SELECT s.confirmed_flush_lsn, \
             pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.confirmed_flush_lsn), \
             pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn), \
             s.wal_status, s.safe_wal_size, s.active_pid, r.application_name, \
             r.client_addr::text, r.backend_start::text, \
             (extract(epoch from r.flush_lag) * 1000)::bigint \
             FROM pg_catalog.pg_replication_slots s \
             LEFT JOIN pg_catalog.pg_stat_replication r ON r.pid = s.active_pid \
             WHERE s.slot_name = {slot}"
        ))
        .await?;
    Ok(rows.first().map(|row| {
        let text = |at: usize| row.get(at).map(str::to_owned);
        let leader = text(5).map(|pid| Leader {
            pid,
            application: text(6),
            address: text(7),
            since: text(8),
            flush_lag: number(row, 9).map(Duration::from_millis),
        });
        SlotSight {
            confirmed_flush: text(0),
            lag_bytes: number(row, 1),
            retained_bytes: number(row, 2),
            wal_status: text(3).unwrap_or_default(),
            safe_wal_bytes: number(row, 4),
            leader,
        }
    }))
}

fn number(row: &Row, at: usize) -> Option<u64> {
    row.get(at)?.parse().ok()
}

impl Overview {
    /// For people.
    pub(crate) fn text(&self, config: &Config) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // A string takes any text.
            let _ = writeln!(text, "{name:11} {value}");
        };
        line("relay", self.relay_id.clone());
        match &self.slot {
            None => line("slot", format!("{} (does not exist)", config.slot_name())),
            Some(slot) => {
                line("slot", format!("{} ({})", config.slot_name(), slot.wal_status));
                line(
                    "leader",
                    slot.leader.as_ref().map_or_else(|| "none".to_owned(), Leader::text),
                );
                let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), show_size);
                let lag = slot.leader.as_ref().and_then(|leader| leader.flush_lag);
                let lag = lag.map_or_else(String::new, |lag| format!(", {}", show_duration(lag)));
                line("lag", format!("{}{lag}", bytes(slot.lag_bytes)));
                let limit = match slot.safe_wal_bytes {
                    None => "no limit".to_owned(),
                    Some(left) => format!("{} more until it is lost", show_size(left)),
                };
                // Then the server tells neither what it keeps nor what it may.
                let kept = match slot.wal_status.as_str() {
                    "lost" => "nothing: it was removed by the server".to_owned(),
                    _ => format!("{} ({limit})", bytes(slot.retained_bytes)),
                };
                line("log kept", kept);
                line("flushed", slot.confirmed_flush.clone().unwrap_or_default());
            }
        }
        match &self.checkpoint {
            None => line("checkpoint", "none".to_owned()),
            Some(Checkpoint { source, progress, .. }) => {
                let age = self.age().map_or_else(String::new, |age| {
                    format!(", written {} ago", show_duration(age))
                });
                let partial = progress.partial.map_or_else(String::new, |partial| {
                    format!(
                        ", and a part of the transaction that commits at {}",
                        partial.commit_lsn
                    )
                });
                line("checkpoint", format!("{}{partial}{age}", progress.flush_lsn));
                line("incarnation", source.incarnation.0.to_string());
            }
        }
        if let Some(refusal) = &self.refusal {
            line("refused", refusal.clone());
        }
        text
    }

    /// For programs.
    pub(crate) fn json(&self, config: &Config) -> Value {
        let slot = self.slot.as_ref().map(|slot| {
            json!({
                "confirmed_flush_lsn": slot.confirmed_flush,
                "lag_bytes": slot.lag_bytes,
                "retained_bytes": slot.retained_bytes,
                "wal_status": slot.wal_status,
                "safe_wal_bytes": slot.safe_wal_bytes,
            })
        });
        let leader = self.slot.as_ref().and_then(|slot| slot.leader.as_ref()).map(|leader| {
            json!({
                "pid": leader.pid.parse::<u32>().ok(),
                "application_name": leader.application,
                "address": leader.address,
                "since": leader.since,
                "flush_lag_ms": leader.flush_lag.map(|lag| u64::try_from(lag.as_millis()).ok()),
            })
        });
        let checkpoint = self.checkpoint.as_ref().map(|Checkpoint { source, progress, .. }| {
            json!({
                "flush_lsn": progress.flush_lsn.to_string(),
                "partial_commit_lsn": progress.partial.map(|at| at.commit_lsn.to_string()),
                "incarnation": source.incarnation.0,
                "timeline": source.timeline,
                "written_ms": self.written_ms,
                "topic": checkpoint::topic(&self.relay_id),
            })
        });
        json!({
            "relay_id": self.relay_id,
            "system_identifier": self.server.system_identifier,
            "database": self.server.database,
            "timeline": self.server.timeline,
            "slot_name": config.slot_name(),
            "slot": slot,
            "leader": leader,
            "checkpoint": checkpoint,
            "refused": self.refusal,
        })
    }

    fn age(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.now_ms.saturating_sub(self.written_ms?)))
    }
}

impl Leader {
    fn text(&self) -> String {
        let address = self.address.as_deref().unwrap_or("a local socket");
        let application = self.application.as_deref().unwrap_or("unnamed");
        let since = self.since.as_ref().map_or_else(String::new, |since| format!(" since {since}"));
        format!("backend {} ({application}, {address}){since}", self.pid)
    }
}
