//! How far a slot is from being lost, as the server tells.

use serde::Serialize;

use crate::lsn::Lsn;
use crate::replication::{Row, quote_literal};

/// Versions from which the server tells more.
const HAS_INACTIVE_SINCE: u32 = 170_000;
const HAS_CONFLICTING: u32 = 160_000;

/// A slot with less than this part of its allowance left is in danger.
const SAFE_SHARE_MIN: u64 = 4;

/// What the server says of the slot (`pg_replication_slots`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SlotHealth {
    /// Whether the slot exists.
    pub exists: bool,
    /// Whether somebody reads from it.
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// Log between the slot's `restart_lsn` and the server's end: what it keeps on the disk.
    pub retained_bytes: Option<u64>,
    /// What can still be written before the slot is lost; `None` where `max_slot_wal_keep_size`
    /// sets no limit.
    pub safe_bytes: Option<u64>,
    /// For how long nobody has read from it; Postgres 17 and later.
    pub inactive_seconds: Option<u64>,
    /// Why the server gave it up, if it has; Postgres 17 and later.
    pub invalidation: Option<String>,
    /// Whether it conflicts with a standby's recovery; Postgres 16 and later.
    pub conflicting: Option<bool>,
    /// Whether it is to survive a failover; Postgres 17 and later.
    pub failover: Option<bool>,
    /// Whether it was synchronised from a primary; Postgres 17 and later.
    pub synced: Option<bool>,
}

/// What the server says about the slot and its own log at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// The end of the server's log on its disk.
    pub(crate) end: Lsn,
    /// Whether the process that serves the slot is at work, be it in silence.
    pub(crate) at_work: bool,
    pub(crate) health: SlotHealth,
}

impl SlotHealth {
    /// Whether the slot can not be read any more.
    pub fn is_lost(&self) -> bool {
        self.wal_status == "lost" || self.invalidation.is_some()
    }

    /// Whether it keeps log that the next checkpoint of the server may take from it, or has lost it.
    pub(crate) fn is_going(&self) -> bool {
        self.is_lost() || self.wal_status == "unreserved"
    }

    /// What an operator has to know before the slot is lost; `None` when all is well.
    pub fn warning(&self) -> Option<String> {
        if !self.exists {
            return Some("the slot does not exist".to_owned());
        }
        if let Some(reason) = &self.invalidation {
            return Some(format!("the server has given the slot up: {reason}"));
        }
        if self.is_lost() {
            return Some("the slot is lost: log that it needs is gone".to_owned());
        }
        if self.wal_status == "unreserved" {
            return Some(
                "the slot is about to be lost: its log is beyond max_slot_wal_keep_size and goes \
                 with the next checkpoint of the server"
                    .to_owned(),
            );
        }
        let safe = self.safe_bytes?;
        let allowance = safe.saturating_add(self.retained_bytes?);
        (safe < allowance / SAFE_SHARE_MIN)
            .then(|| format!("the slot is lost after {} MiB more of log", safe / (1024 * 1024)))
    }
}

/// The question whose answer [`look`] reads.
///
/// A walsender that waits for log, or for us to take what it sends, shows a wait event of the
/// class Client or Activity; one that shows another, or none, is at work. A `state` of null is
/// what a role sees that may not look.
pub(crate) fn question(slot: &str, server_version: u32) -> String {
    let since = |version: u32, column: &'static str| {
        if server_version >= version { column } else { "NULL" }
    };
    format!(
        "SELECT pg_catalog.pg_current_wal_flush_lsn(), s.slot_name, s.active::text, s.wal_status, \
         pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::bigint, \
         s.safe_wal_size, {inactive}, {invalidation}, {conflicting}, {failover}, {synced}, \
         (a.state IS NOT NULL \
          AND coalesce(a.wait_event_type, 'on a processor') NOT IN ('Client', 'Activity'))::text \
         FROM (VALUES (1)) AS one LEFT JOIN pg_catalog.pg_replication_slots s \
         ON s.slot_name = {slot} LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid",
        inactive = since(
            HAS_INACTIVE_SINCE,
            "extract(epoch FROM pg_catalog.clock_timestamp() - s.inactive_since)::bigint"
        ),
        invalidation = since(HAS_INACTIVE_SINCE, "s.invalidation_reason"),
        conflicting = since(HAS_CONFLICTING, "s.conflicting::text"),
        failover = since(HAS_INACTIVE_SINCE, "s.failover::text"),
        synced = since(HAS_INACTIVE_SINCE, "s.synced::text"),
        slot = quote_literal(slot),
    )
}

/// What the answer to [`question`] says; `None` when it is no such answer.
pub(crate) fn look(row: &Row) -> Option<Look> {
    let text = |at| row.get(at).map(str::to_owned);
    let number = |at| row.get(at).and_then(|text| text.parse::<i64>().ok());
    // A slot that reads ahead of what is flushed has nothing to keep, rather than less.
    let amount = |at| number(at).map(|number| u64::try_from(number).unwrap_or(0));
    let flag = |at| row.get(at).map(|text| text == "true");
    Some(Look {
        end: row.get(0)?.parse().ok()?,
        at_work: flag(11) == Some(true),
        health: SlotHealth {
            exists: row.get(1).is_some(),
            active: flag(2) == Some(true),
            wal_status: text(3).unwrap_or_default(),
            retained_bytes: amount(4),
            safe_bytes: amount(5),
            inactive_seconds: amount(6),
            invalidation: text(7),
            conflicting: flag(8),
            failover: flag(9),
            synced: flag(10),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::SlotHealth;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn danger_is_told_before_the_slot_is_lost() {
        let fine = SlotHealth {
            exists: true,
            wal_status: "reserved".to_owned(),
            retained_bytes: Some(100 * MIB),
            ..SlotHealth::default()
        };
        let check = |slot: SlotHealth, expected: Option<&str>| {
            let warning = slot.warning();
            match (&warning, expected) {
                (None, None) => {}
                (Some(text), Some(part)) if text.contains(part) => {}
                _ => panic!("{slot:?}: {warning:?}, not {expected:?}"),
            }
        };

        check(fine.clone(), None);
        check(SlotHealth { safe_bytes: Some(900 * MIB), ..fine.clone() }, None);
        check(SlotHealth { safe_bytes: Some(30 * MIB), ..fine.clone() }, Some("30 MiB"));
        check(SlotHealth { wal_status: "extended".to_owned(), ..fine.clone() }, None);
        check(SlotHealth { wal_status: "unreserved".to_owned(), ..fine.clone() }, Some("about to"));
        check(SlotHealth { wal_status: "lost".to_owned(), ..fine.clone() }, Some("lost"));
        check(
            SlotHealth { invalidation: Some("idle_timeout".to_owned()), ..fine },
            Some("idle_timeout"),
        );
        check(SlotHealth::default(), Some("does not exist"));
    }
}
