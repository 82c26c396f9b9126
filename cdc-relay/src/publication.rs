//! Whether the publication has the tables of messages, and what brings them into it.
//!
//! A table that is not in the publication is not in the stream: its rows would not be published, and
//! nobody would be told. So it is asked at the start of every session.

use std::collections::BTreeMap;

use tailrace_outbox::mapping::{Column, ColumnType, Mapping};

use crate::config::Config;
use crate::error::{Error, Kind};
use crate::lsn::Lsn;
use crate::replication::{Client, Row, quote_identifier, quote_literal};
use crate::setup;

/// What the publication was seen to be, as far as rows of messages depend on it.
///
/// Rows that are written while it is otherwise never come into the stream, also when the log is
/// read again later: the server decodes with the catalog as it was. So no order of steps of ours
/// can win them back; what can be done is to notice every change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// No commit up to here had changed it.
    pub(crate) at: Lsn,
    /// The tables of messages that it has, each with what tells its entry from any other there
    /// was or will be.
    pub(crate) tables: BTreeMap<String, String>,
}

/// What [`look`] finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    /// Whether the publication exists.
    pub(crate) exists: bool,
    /// Whether there is a journal that the publication does not have.
    pub(crate) journal_left_out: bool,
    /// The tables of which it has some rows only, by a filter.
    pub(crate) filtered: Vec<String>,
    pub(crate) seen: Seen,
}

impl Seen {
    /// The tables of these whose rows may have been left out between this look and a later one.
    ///
    /// One that was not there is none of them: the relay was not to publish its rows.
    fn lost<'m>(&self, later: &Seen, tables: &'m [Mapping]) -> Vec<&'m Mapping> {
        let changed = |table: &&Mapping| {
            let name = table.table_sql();
            self.tables.get(&name).is_some_and(|before| later.tables.get(&name) != Some(before))
        };
        tables.iter().filter(changed).collect()
    }

    /// What an operator has to know of the change from this look to a later one.
    pub(crate) fn change(&self, later: &Seen, config: &Config) -> Option<Error> {
        let tables = config.message_tables();
        let lost = self.lost(later, &tables);
        let names: Vec<String> = lost.iter().map(|table| table.table_sql()).collect();
        let left_out = lost.iter().find(|table| !later.tables.contains_key(&table.table_sql()));
        let hint = match left_out {
            None if lost.is_empty() => return None,
            None => "see that it publishes what it should".to_owned(),
            Some(table) => format!(
                "ALTER PUBLICATION {} ADD TABLE {}",
                quote_identifier(config.publication_name()),
                table.table_sql()
            ),
        };
        let text = format!(
            "publication {:?} was changed for {}; {}",
            config.publication_name(),
            names.join(", "),
            self.range(later.at)
        );
        Some(Error::new(Kind::Server, text).hint(format!(
            "{hint}; rows that the journal still has are published by cdc-relay replay"
        )))
    }

    fn range(&self, up_to: Lsn) -> String {
        format!(
            "rows whose commits stand in the log after {} and up to {up_to} may not have been \
             published",
            self.at
        )
    }
}

/// Looks at the publication; no commit up to `at` is newer than what is seen. By the catalog's
/// names, which a role without any right on the schema may read too.
///
/// The oid of an entry tells whether it was taken out and put in again; the `xmin` of the
/// publication's own row whether that was changed.
pub(crate) async fn look(config: &Config, client: &mut Client, at: Lsn) -> Result<Sight, Error> {
    let tables = config.message_tables();
    let row = |table: &Mapping| {
        let (schema, name) = (quote_literal(table.schema()), quote_literal(table.table()));
        format!(", ({}, {schema}::name, {name}::name)", quote_literal(&table.table_sql()))
    };
    let sql = format!(
        "SELECT (p.oid IS NOT NULL)::text, w.named, (c.oid IS NOT NULL)::text, \
         CASE WHEN c.oid IS NOT NULL AND (p.puballtables OR r.oid IS NOT NULL OR s.oid IS NOT NULL) \
         THEN pg_catalog.concat_ws('.', p.oid, p.xmin, c.oid, r.oid, s.oid) END, \
         (r.prqual IS NOT NULL)::text \
         FROM (VALUES (NULL, NULL::name, NULL::name){wanted}) AS w(named, schema, relation) \
         LEFT JOIN pg_catalog.pg_publication p ON p.pubname = {publication} \
         LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema \
         LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.relation \
         AND c.relkind IN ('r', 'p') \
         LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid \
         LEFT JOIN pg_catalog.pg_publication_namespace s ON s.pnpubid = p.oid \
         AND s.pnnspid = n.oid",
        wanted = tables.iter().map(row).collect::<String>(),
        publication = quote_literal(config.publication_name()),
    );
    let rows = client.query(&sql).await?;
    let held = |row: &Row| Some((row.get(1)?.to_owned(), row.get(3)?.to_owned()));
    let filtered = rows.iter().filter(|row| row.get(4) == Some("true"));
    let schema = quote_identifier(config.outbox_schema());
    let journal = format!("{schema}.{}", quote_identifier(setup::JOURNAL));
    Ok(Sight {
        exists: rows.first().is_some_and(|row| row.get(0) == Some("true")),
        journal_left_out: rows.iter().any(|row| {
            row.get(1) == Some(&*journal) && row.get(2) == Some("true") && row.get(3).is_none()
        }),
        filtered: filtered.filter_map(|row| row.get(1).map(str::to_owned)).collect(),
        seen: Seen { at, tables: rows.iter().filter_map(held).collect() },
    })
}

/// Why a relay that has led can not go on with a publication that was seen so before, if it can
/// not: with the part of the log whose rows may be missing.
pub(crate) async fn fault(
    config: &Config,
    client: &mut Client,
    before: &Seen,
    now: &Sight,
) -> Result<Option<Error>, Error> {
    let change = before.change(&now.seen, config);
    if now.exists && change.is_none() {
        return Ok(None);
    }
    let told = |error: Error| {
        let text = format!("{error}; {}", before.range(now.seen.at));
        Error::new(Kind::Server, text).hint(error.mend().unwrap_or_default().to_owned())
    };
    match setup::has_publication(config, client).await {
        Ok(true) => Ok(change),
        Ok(false) => Ok(Some(told(setup::lost_publication(config, client).await))),
        Err(error) if error.kind() == Kind::Server => Ok(Some(told(error))),
        Err(error) => Err(error),
    }
}

/// A journal that no publication of the database has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unpublished {
    /// Whether rows have been inserted.
    pub(crate) has_rows: bool,
}

impl Unpublished {
    /// What is told of it.
    pub(crate) fn error(self, config: &Config) -> Error {
        let journal = setup::journal_table(config);
        let (rows, then) = match self.has_rows {
            true => (
                "rows are inserted into",
                "; those that are there already are published by cdc-relay replay",
            ),
            false => ("there is", ""),
        };
        let text = format!("{rows} the journal {journal}, and no publication has it");
        Error::new(Kind::Server, text).hint(format!(
            "let its owner run: ALTER PUBLICATION {} ADD TABLE {journal}{then}",
            quote_identifier(config.publication_name())
        ))
    }
}

/// Whether there is a journal whose rows nobody is sent. One that another publication has may be
/// another relay's.
pub(crate) async fn unpublished_journal(
    config: &Config,
    client: &mut Client,
) -> Result<Option<Unpublished>, Error> {
    // The statistics are for everybody, where the rows are for those with the right.
    let sql = format!(
        "SELECT coalesce((SELECT sum(t.n_tup_ins) FROM pg_catalog.pg_stat_all_tables t \
         WHERE t.relid = c.oid OR t.relid IN (SELECT i.inhrelid FROM pg_catalog.pg_inherits i \
         WHERE i.inhparent = c.oid)), 0) > 0 \
         FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = {} AND c.relname = {} AND c.relkind IN ('r', 'p') \
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication p WHERE p.puballtables) \
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r WHERE r.prrelid = c.oid) \
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s WHERE s.pnnspid = n.oid)",
        quote_literal(config.outbox_schema()),
        quote_literal(setup::JOURNAL)
    );
    let rows = client.query(&sql).await?;
    Ok(rows.first().map(|row| Unpublished { has_rows: row.get(0) == Some("t") }))
}

/// Fails unless every mapped table is there with its columns and the publication shows them.
pub(crate) async fn must_hold(config: &Config, client: &mut Client) -> Result<(), Error> {
    for mapping in config.tables() {
        let columns = columns(config, mapping, client).await?;
        judge(mapping, &columns)?;
        judge_publication(config, mapping, &columns)?;
    }
    Ok(())
}

/// The mapped tables, for the statement that makes a publication of them.
pub(crate) async fn tables(config: &Config, client: &mut Client) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for mapping in config.tables() {
        judge(mapping, &columns(config, mapping, client).await?)?;
        names.push(mapping.table_sql());
    }
    Ok(names)
}

/// The columns of a table, each with what the publication shows of it. By the catalog's names, which
/// a role without any right on the schema may read too.
async fn columns(
    config: &Config,
    mapping: &Mapping,
    client: &mut Client,
) -> Result<Vec<Row>, Error> {
    let sql = format!(
        "SELECT a.attname, b.typname, (b.typcategory IN ('S', 'E'))::text, \
         coalesce(a.attname = ANY (s.attnames), false)::text, \
         (s.tablename IS NOT NULL AND p.pubinsert)::text, \
         (c.relkind = 'p' AND NOT coalesce(p.pubviaroot, true))::text, \
         coalesce(p.pubinsert, true)::text \
         FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid \
         JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
         JOIN pg_catalog.pg_type b ON b.oid = coalesce(nullif(t.typbasetype, 0), t.oid) \
         LEFT JOIN pg_catalog.pg_publication p ON p.pubname = {publication} \
         LEFT JOIN pg_catalog.pg_publication_tables s ON s.pubname = p.pubname \
         AND s.schemaname = n.nspname AND s.tablename = c.relname \
         WHERE n.nspname = {schema} AND c.relname = {table} AND c.relkind IN ('r', 'p') \
         AND a.attnum > 0 AND NOT a.attisdropped",
        publication = quote_literal(config.publication_name()),
        schema = quote_literal(mapping.schema()),
        table = quote_literal(mapping.table()),
    );
    client.query(&sql).await
}

/// Fails unless the table can be read by the mapping.
fn judge(mapping: &Mapping, columns: &[Row]) -> Result<(), Error> {
    let table = mapping.table_sql();
    let wrong = |text: String, hint: &'static str| Err(Error::new(Kind::Server, text).hint(hint));
    if columns.is_empty() {
        let hint = "make it before the relay starts, or name the right one by --table";
        return wrong(format!("there is no table {table}"), hint);
    }
    for mapped in mapping.columns() {
        let name = mapped.name();
        let Some(found) = found(mapped, columns) else {
            let text = format!("table {table} has no column {name:?}");
            return wrong(text, "name the right one by --table");
        };
        let r#type = found.get(1).unwrap_or_default();
        if !is_of(mapped.r#type(), r#type, found.get(2) == Some("true")) {
            let wanted = mapped.r#type().name();
            let text = format!(
                "column {name:?} of table {table} is of type {type}, and is mapped as {wanted}"
            );
            return wrong(text, "change the mapping by --table, or the column");
        }
    }
    Ok(())
}

fn judge_publication(config: &Config, mapping: &Mapping, columns: &[Row]) -> Result<(), Error> {
    let table = mapping.table_sql();
    let publication = config.publication_name();
    let quoted = quote_identifier(publication);
    let is = |at: usize| columns.first().is_some_and(|row| row.get(at) == Some("true"));
    let alter = |text: String, change: String| {
        Err(Error::new(Kind::Server, text).hint(format!(
            "run ALTER PUBLICATION {quoted} {change}; rows that were inserted before are not \
             published"
        )))
    };
    if is(5) || !is(6) {
        let text =
            format!("publication {publication:?} does not publish rows of {table} as its own");
        return alter(
            text,
            "SET (publish = 'insert', publish_via_partition_root = true)".to_owned(),
        );
    }
    if !is(4) {
        let text = format!("publication {publication:?} does not have table {table}");
        return alter(text, format!("ADD TABLE {table}"));
    }
    let hidden = mapping
        .columns()
        .iter()
        .find(|mapped| found(mapped, columns).is_none_or(|column| column.get(3) != Some("true")));
    if let Some(hidden) = hidden {
        let name = hidden.name();
        let text = format!("publication {publication:?} leaves out column {name:?} of {table}");
        return alter(
            text,
            format!("DROP TABLE {table}, then ADD TABLE {table}, in one transaction"),
        );
    }
    Ok(())
}

fn found<'r>(mapped: &Column, columns: &'r [Row]) -> Option<&'r Row> {
    columns.iter().find(|row| row.get(0) == Some(mapped.name()))
}

/// Whether a column of this type of the catalog can be read as the mapped one.
fn is_of(mapped: ColumnType, name: &str, is_text: bool) -> bool {
    match mapped {
        ColumnType::Text => is_text,
        ColumnType::Boolean => name == "bool",
        other => name == other.name(),
    }
}
