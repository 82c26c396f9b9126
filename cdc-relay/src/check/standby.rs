//! What a failover needs, as far as the primary can tell.

use super::{Report, value};
use crate::error::Error;
use crate::replication::Client;

/// Looks at the standbys; there is nothing to say without one, and before Postgres 17.
pub(super) async fn check(report: &mut Report, client: &mut Client) -> Result<(), Error> {
    if client.server_version() < 170_000 {
        return Ok(());
    }
    let rows = client
        .query(
            "SELECT slot_name, (xmin IS NOT NULL OR catalog_xmin IS NOT NULL)::text \
             FROM pg_catalog.pg_replication_slots WHERE slot_type = 'physical' AND active",
        )
        .await?;
    if rows.is_empty() {
        return Ok(());
    }
    let setting = "SELECT pg_catalog.current_setting('synchronized_standby_slots')";
    let waited_for = value(client, setting).await?.unwrap_or_default();
    let slots = waited_for.split(',').map(|name| name.trim().trim_matches('"'));
    let slots: Vec<&str> = slots.collect();
    for row in &rows {
        let standby = row.get(0).unwrap_or_default();
        if slots.contains(&standby) {
            report.ok("standby_waited_for", format!("readers wait for standby slot {standby}"));
        } else {
            report.warn(
                "standby_waited_for",
                format!(
                    "what standby slot {standby} has not received may be published already when \
                     it is promoted"
                ),
                format!("add it: ALTER SYSTEM SET synchronized_standby_slots = '{standby}'"),
            );
        }
        if row.get(1) != Some("true") {
            report.warn(
                "standby_feedback",
                format!("standby slot {standby} reports nothing that it still needs"),
                "on the standby: ALTER SYSTEM SET hot_standby_feedback = on; without it copies of \
                 slots there become invalid",
            );
        }
    }
    // The worker's own name gives way to one in primary_conninfo, which the standby's sender has too.
    let workers = value(
        client,
        "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity \
         WHERE (application_name LIKE '%slotsync worker' OR application_name IN \
         (SELECT application_name FROM pg_catalog.pg_stat_replication)) \
         AND pid NOT IN (SELECT pid FROM pg_catalog.pg_stat_replication)",
    )
    .await?;
    if workers.as_deref() == Some("0") {
        report.warn(
            "standby_slot_sync",
            "no standby seems to copy slots from here: the slot would be gone after a failover",
            "on the standby: ALTER SYSTEM SET sync_replication_slots = on, with dbname in its \
             primary_conninfo and primary_slot_name set",
        );
    } else {
        report.ok("standby_slot_sync", "a standby copies slots from here");
    }
    Ok(())
}
