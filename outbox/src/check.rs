//! Whether a message written now would reach a relay.

use serde::Deserialize;

use crate::mapping::Mapping;
use crate::{Error, Kind};
use table::Table;

mod table;

pub(crate) const DOING: &str = "the database could not be checked";

/// What is asked of the database; its parameters are the slot's name, and schema and name of the
/// store's table, or nulls for a store without.
///
/// The answer is one text of JSON, a [`Reply`], so that no client has columns to count. The table is
/// looked for in the catalog and not by `to_regclass`, which asks for a right on its schema, and may
/// answer with what the session saw before.
pub(crate) const QUERY: &str = "\
    SELECT json_build_object( \
        'wal_level', current_setting('wal_level'), \
        'is_standby', pg_is_in_recovery(), \
        'database', current_database(), \
        'role', current_user, \
        'exists', s.slot_name IS NOT NULL, \
        'slot_type', s.slot_type, \
        'slot_database', s.database, \
        'plugin', s.plugin, \
        'wal_status', s.wal_status, \
        'is_complete', s.confirmed_flush_lsn IS NOT NULL, \
        'table', (SELECT json_build_object( \
            'may_use_schema', has_schema_privilege(n.oid, 'USAGE'), \
            'columns', (SELECT json_agg(json_build_object( \
                    'name', a.attname, \
                    'type', b.typname, \
                    'is_text', b.typcategory = 'S', \
                    'may_insert', has_column_privilege(a.attrelid, a.attnum, 'INSERT'), \
                    'is_made_by_postgres', a.attgenerated <> '' OR a.attidentity = 'a', \
                    'is_required', (a.attnotnull OR t.typnotnull) AND NOT a.atthasdef \
                        AND t.typdefault IS NULL AND a.attidentity = '')) \
                FROM pg_catalog.pg_attribute a \
                JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
                JOIN LATERAL ( \
                    WITH RECURSIVE below (oid, base) AS ( \
                        SELECT t.oid, t.typbasetype UNION ALL SELECT d.oid, d.typbasetype \
                        FROM pg_catalog.pg_type d JOIN below ON d.oid = below.base \
                    ) SELECT oid FROM below WHERE base = 0) AS bottom ON true \
                JOIN pg_catalog.pg_type b ON b.oid = bottom.oid \
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
            'lacks_policy', row_security_active(c.oid) AND NOT EXISTS ( \
                SELECT FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid \
                AND p.polpermissive AND p.polcmd IN ('a', '*') AND EXISTS ( \
                    SELECT FROM unnest(p.polroles) AS r (oid) \
                    WHERE CASE WHEN r.oid = 0 THEN true ELSE pg_has_role(r.oid, 'USAGE') END)), \
            'publications', (SELECT json_agg(json_build_object( \
                    'name', p.pubname, 'columns', p.attnames) ORDER BY p.pubname) \
                FROM pg_catalog.pg_publication_tables p \
                JOIN pg_catalog.pg_publication q ON q.pubname = p.pubname \
                WHERE q.pubinsert AND p.rowfilter IS NULL \
                AND p.schemaname = n.nspname AND p.tablename = c.relname)) \
            FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
            WHERE n.nspname = $2::text AND c.relname = $3::text \
            AND c.relkind IN ('r', 'p', 'v', 'f')))::text \
    FROM (SELECT 1) AS one LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1::text";

/// What the database says about itself, about the slot, if there is one, and about the table.
#[derive(Deserialize)]
pub(crate) struct Reply {
    wal_level: String,
    is_standby: bool,
    database: String,
    role: String,
    exists: bool,
    slot_type: Option<String>,
    slot_database: Option<String>,
    plugin: Option<String>,
    wal_status: Option<String>,
    is_complete: bool,
    table: Option<Table>,
}

impl Reply {
    /// Reads the answer to [`QUERY`].
    pub(crate) fn read(answer: &str) -> Self {
        serde_json::from_str(answer).expect("the query builds it")
    }

    /// The first thing that keeps messages from the relay; the mapping is that of the store's table.
    pub(crate) fn judge(&self, slot: &str, mapping: Option<&Mapping>) -> Result<(), Error> {
        judge(&Found {
            wal_level: &self.wal_level,
            is_standby: self.is_standby,
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
        let Some(mapping) = mapping else { return Ok(()) };
        let table = self.table.as_ref().ok_or_else(|| table::missing(mapping))?;
        table.judge(mapping, &self.role)
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
/// [`Kind::Setup`] with how to mend it: the server is a standby, `wal_level` is not `logical`, or the
/// slot is missing, can not exist under this name, is physical, of another database, of another output plugin, or invalidated. Otherwise what the
/// database says, sorted by [`Error::kind`].
#[cfg(feature = "sqlx")]
pub async fn check<'c>(executor: impl sqlx::PgExecutor<'c>, slot: &str) -> Result<(), Error> {
    ask(executor, slot, None).await
}

/// Checks the slot, and the table of a mapping if one is given.
#[cfg(feature = "sqlx")]
pub(crate) async fn ask<'c>(
    executor: impl sqlx::PgExecutor<'c>,
    slot: &str,
    mapping: Option<&Mapping>,
) -> Result<(), Error> {
    must_be_slot(slot)?;
    // Asked once: to prepare it would cost a session more than it saves, and poolers do not like it.
    let answer: String = sqlx::query_scalar(QUERY)
        .persistent(false)
        .bind(slot)
        .bind(mapping.map(Mapping::schema))
        .bind(mapping.map(Mapping::table))
        .persistent(false)
        .fetch_one(executor)
        .await
        .map_err(|error| Error::database(DOING, error))?;
    Reply::read(&answer).judge(slot, mapping)
}

/// Fails for a name that no slot can have: Postgres would only say that there is none, and not take
/// one with a NUL at all.
pub(crate) fn must_be_slot(name: &str) -> Result<(), Error> {
    let letter = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
    if (1..=63).contains(&name.len()) && name.bytes().all(letter) {
        return Ok(());
    }
    Err(setup(
        format!("no replication slot can have the name {name:?}"),
        "take 1 to 63 lower-case letters, digits and underscores, as the relay has them".to_owned(),
    ))
}

#[derive(Clone, Copy)]
struct Found<'a> {
    wal_level: &'a str,
    is_standby: bool,
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
    if found.is_standby {
        return Err(setup(
            "this server is a standby, and takes no messages".to_owned(),
            "connect to the primary, as with target_session_attrs=read-write".to_owned(),
        ));
    }
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
