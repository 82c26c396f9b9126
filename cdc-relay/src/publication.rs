//! Whether the publication has the tables of messages, and what brings them into it.
//!
//! A table that is not in the publication is not in the stream: its rows would not be published, and
//! nobody would be told. So it is asked at the start of every session.

use tailrace_outbox::mapping::{Column, ColumnType, Mapping};

use crate::config::Config;
use crate::error::{Error, Kind};
use crate::replication::{Client, Row, quote_identifier, quote_literal};

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
