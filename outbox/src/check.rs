//! Whether a message written now would reach a relay.

use serde::Deserialize;

use crate::{Error, Kind};

pub(crate) const DOING: &str = "the database could not be checked";

/// What is asked of the database; its parameters are the slot's name, and schema and quoted name
/// of the journal's table, or nulls for a store without.
///
/// The answer is one text of JSON, a [`Reply`], so that no client has columns to count.
pub(crate) const QUERY: &str = "\
    SELECT json_build_object( \
        'wal_level', current_setting('wal_level'), \
        'database', current_database(), \
        'exists', s.slot_name IS NOT NULL, \
        'slot_type', s.slot_type, \
        'slot_database', s.database, \
        'plugin', s.plugin, \
        'wal_status', s.wal_status, \
        'is_complete', s.confirmed_flush_lsn IS NOT NULL, \
        'table', json_build_object( \
            'exists', to_regclass($3::text) IS NOT NULL, \
            'may_insert', coalesce(has_table_privilege(to_regclass($3::text), 'INSERT'), false), \
            'is_published', EXISTS (SELECT FROM pg_catalog.pg_publication_tables \
                                    WHERE schemaname = $2::text AND tablename = 'outbox')))::text \
    FROM (SELECT 1) AS one LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1::text";

/// What the database says about itself, about the slot, if there is one, and about the journal.
#[derive(Deserialize)]
pub(crate) struct Reply {
    wal_level: String,
    database: String,
    exists: bool,
    slot_type: Option<String>,
    slot_database: Option<String>,
    plugin: Option<String>,
    wal_status: Option<String>,
    is_complete: bool,
    table: Table,
}

/// The journal's table.
#[derive(Clone, Copy, Deserialize)]
struct Table {
    exists: bool,
    may_insert: bool,
    is_published: bool,
}

impl Reply {
    /// Reads the answer to [`QUERY`].
    pub(crate) fn read(answer: &str) -> Self {
        serde_json::from_str(answer).expect("the query builds it")
    }

    /// The first thing that keeps messages from the relay; `table` is the journal's.
    pub(crate) fn judge(&self, slot: &str, table: Option<&str>) -> Result<(), Error> {
        judge(&Found {
            wal_level: &self.wal_level,
            database: &self.database,
            slot: self.exists.then_some(Slot {
                name: slot,
                is_logical: self.slot_type.as_deref() == Some("logical"),
                database: self.slot_database.as_deref(),
                plugin: self.plugin.as_deref(),
                is_complete: self.is_complete,
                is_lost: self.wal_status.as_deref() == Some("lost"),
            }),
            wanted: slot,
        })?;
        table.map_or(Ok(()), |name| judge_table(name, self.table))
    }
}

fn judge_table(name: &str, table: Table) -> Result<(), Error> {
    if !table.exists {
        return Err(setup(
            format!("there is no table {name}"),
            "run tailrace_outbox::schema::install or the files of its folder migrations".to_owned(),
        ));
    }
    if !table.may_insert {
        return Err(setup(
            format!("this role may not insert into {name}"),
            format!("run GRANT INSERT ON {name} as its owner"),
        ));
    }
    if !table.is_published {
        return Err(setup(
            format!("{name} is in no publication under its own name"),
            "make one with publish_via_partition_root, as Journal::publication_sql says it"
                .to_owned(),
        ));
    }
    Ok(())
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
    ask(executor, slot, None).await
}

/// Checks the slot, and the journal's table if its schema and quoted name are given.
#[cfg(feature = "sqlx")]
pub(crate) async fn ask<'c>(
    executor: impl sqlx::PgExecutor<'c>,
    slot: &str,
    table: Option<(&str, &str)>,
) -> Result<(), Error> {
    let answer: String = sqlx::query_scalar(QUERY)
        .bind(slot)
        .bind(table.map(|(schema, _)| schema))
        .bind(table.map(|(_, name)| name))
        .fetch_one(executor)
        .await
        .map_err(|error| Error::database(DOING, error).in_our_statement())?;
    Reply::read(&answer).judge(slot, table.map(|(_, name)| name))
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
    /// Made, and not only begun: a slot waits for the transactions that run at its beginning.
    is_complete: bool,
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
    if !slot.is_complete && !slot.is_lost {
        return Err(setup(
            format!("replication slot {name:?} is still being made"),
            "wait: it is complete when the transactions that are running now have ended".to_owned(),
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
