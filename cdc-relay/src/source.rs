//! What the relay asks the source server.

use crate::error::{Error, Kind};
use crate::lsn::Lsn;
use crate::replication::{Client, Row, quote_literal};
use crate::resume::{Server, Slot};

/// The server behind a connection, which must be a primary that writes a logical log.
pub(crate) async fn identify(client: &mut Client) -> Result<Server, Error> {
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

/// A slot of the server.
pub(crate) async fn slot(client: &mut Client, name: &str) -> Result<Option<Slot>, Error> {
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

/// The server's timeline history, empty on its first timeline.
pub(crate) async fn history(client: &mut Client, server: &Server) -> Result<String, Error> {
    match server.timeline {
        1 => Ok(String::new()),
        timeline => {
            let rows = client.query(&format!("TIMELINE_HISTORY {timeline}")).await?;
            Ok(column(&rows, 1, "the timeline history")?.to_owned())
        }
    }
}

/// The backends with a transaction that has written something, in any database of the server.
pub(crate) async fn running(client: &mut Client) -> Result<String, Error> {
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

pub(crate) fn missing(what: &'static str, how: &'static str) -> Error {
    Error::new(Kind::Server, format!("{what} {how}"))
}
