//! Whether a message written now would reach a relay.

use crate::{Error, Kind};

/// What is asked of the database; its parameter is the slot's name.
pub(crate) const QUERY: &str = "SELECT current_setting('wal_level'), current_database()::text, s.slot_name IS NOT NULL, \
            s.slot_type, s.database::text, s.plugin::text, s.wal_status \
     FROM (SELECT 1) AS one LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1::text";

/// What the database says about itself and about the slot, if there is one.
pub(crate) struct Reply {
    pub(crate) wal_level: String,
    pub(crate) database: String,
    pub(crate) exists: bool,
    pub(crate) slot_type: Option<String>,
    pub(crate) slot_database: Option<String>,
    pub(crate) plugin: Option<String>,
    pub(crate) wal_status: Option<String>,
}

impl Reply {
    pub(crate) fn judge(&self, slot: &str) -> Result<(), Error> {
        judge(&Found {
            wal_level: &self.wal_level,
            database: &self.database,
            slot: self.exists.then_some(Slot {
                name: slot,
                is_logical: self.slot_type.as_deref() == Some("logical"),
                database: self.slot_database.as_deref(),
                plugin: self.plugin.as_deref(),
                is_lost: self.wal_status.as_deref() == Some("lost"),
            }),
            wanted: slot,
        })
    }
}

/// Fails unless this database logs messages and keeps them for the relay's slot.
///
/// For the start of a service: with another `wal_level`, or before the slot exists, every write
/// succeeds and the messages vanish. The slot's name is [`DEFAULT_SLOT`](crate::DEFAULT_SLOT)
/// unless the relay is configured otherwise. Takes a pool or a connection, sends one query, and
/// needs no privilege.
///
/// # Errors
///
/// [`Kind::Setup`] with how to mend it: `wal_level` is not `logical`, or the slot is missing,
/// physical, of another database, of another output plugin, or invalidated. Otherwise what the
/// database says, sorted by [`Error::kind`].
#[cfg(feature = "sqlx")]
pub async fn check<'c>(executor: impl sqlx::PgExecutor<'c>, slot: &str) -> Result<(), Error> {
    type Row =
        (String, String, bool, Option<String>, Option<String>, Option<String>, Option<String>);
    let row: Row = sqlx::query_as(QUERY)
        .bind(slot)
        .fetch_one(executor)
        .await
        .map_err(|error| Error::database("the database could not be checked", error))?;
    let (wal_level, database, exists, slot_type, slot_database, plugin, wal_status) = row;
    Reply { wal_level, database, exists, slot_type, slot_database, plugin, wal_status }.judge(slot)
}

#[derive(Clone, Copy)]
struct Found<'a> {
    wal_level: &'a str,
    database: &'a str,
    wanted: &'a str,
    slot: Option<Slot<'a>>,
}

#[derive(Clone, Copy)]
struct Slot<'a> {
    name: &'a str,
    is_logical: bool,
    database: Option<&'a str>,
    plugin: Option<&'a str>,
    is_lost: bool,
}

/// The first thing that keeps messages from the relay.
fn judge(found: &Found<'_>) -> Result<(), Error> {
    if found.wal_level != "logical" {
        return Err(setup(
            format!("wal_level is {}, and messages need logical", found.wal_level),
            "run ALTER SYSTEM SET wal_level = 'logical' and restart Postgres".to_owned(),
        ));
    }
    let Some(slot) = &found.slot else {
        return Err(setup(
            format!("there is no replication slot {:?}", found.wanted),
            format!(
                "start cdc-relay on database {:?} before this service; it creates the slot",
                found.database
            ),
        ));
    };
    let name = slot.name;
    if !slot.is_logical {
        return Err(setup(
            format!("replication slot {name:?} is physical, and messages need a logical one"),
            "name the relay's slot".to_owned(),
        ));
    }
    if slot.database != Some(found.database) {
        return Err(setup(
            format!(
                "replication slot {name:?} is of database {:?}, and this one is {:?}",
                slot.database.unwrap_or_default(),
                found.database
            ),
            "a slot sees one database: name the slot of this one's relay".to_owned(),
        ));
    }
    if slot.plugin != Some("pgoutput") {
        return Err(setup(
            format!(
                "replication slot {name:?} has the plugin {:?}, and the relay reads pgoutput",
                slot.plugin.unwrap_or_default()
            ),
            "name the relay's slot".to_owned(),
        ));
    }
    if slot.is_lost {
        return Err(setup(
            format!("replication slot {name:?} is invalidated: its log was removed"),
            "drop it, then let cdc-relay adopt a new one; see max_slot_wal_keep_size".to_owned(),
        ));
    }
    Ok(())
}

fn setup(text: String, mend: String) -> Error {
    Error::new(Kind::Setup, text).mended_by(mend)
}

#[cfg(test)]
#[cfg(feature = "sqlx")]
mod tests;
