//! Whether a table can take messages.

use serde::Deserialize;

use super::setup;
use crate::Error;
use crate::mapping::{self, ColumnType, Mapping};
use crate::schema::Schema;

/// What the database says of a table.
#[derive(Deserialize)]
pub(super) struct Table {
    exists: bool,
    /// None if there is no table, or no column.
    columns: Option<Vec<Column>>,
    is_published: bool,
}

#[derive(Deserialize)]
struct Column {
    name: String,
    /// By its name in the catalog; of a domain the one it stands for.
    r#type: String,
    is_text: bool,
    may_insert: bool,
    /// Whether a row must say it: not null, and nothing makes it.
    is_required: bool,
}

impl Table {
    /// The first thing that keeps rows of this mapping from being written, or from the relay.
    pub(super) fn judge(&self, mapping: &Mapping) -> Result<(), Error> {
        let name = mapping.table_sql();
        if !self.exists {
            return Err(setup(
                format!("there is no table {name}"),
                if is_journal(mapping) {
                    "run tailrace_outbox::schema::install or the files of its folder migrations"
                        .to_owned()
                } else {
                    "make it, or name the right one in the mapping".to_owned()
                },
            ));
        }
        for column in mapping.columns() {
            self.judge_column(&name, column)?;
        }
        let columns = self.columns.as_deref().unwrap_or_default();
        let is_mapped =
            |found: &Column| mapping.columns().iter().any(|column| column.name() == found.name);
        if let Some(found) = columns.iter().find(|found| found.is_required && !is_mapped(found)) {
            return Err(setup(
                format!(
                    "column {:?} of {name} is not null and has no default, and no part of a \
                     message is for it",
                    found.name
                ),
                "give it a default, or a part in the mapping".to_owned(),
            ));
        }
        if !self.is_published {
            return Err(setup(
                format!("{name} is in no publication under its own name and with all its rows"),
                if is_journal(mapping) {
                    "make one with publish_via_partition_root, as Journal::publication_sql says it"
                        .to_owned()
                } else {
                    format!("run ALTER PUBLICATION tailrace ADD TABLE {name}, or as the relay's is")
                },
            ));
        }
        Ok(())
    }

    fn judge_column(&self, table: &str, wanted: &mapping::Column) -> Result<(), Error> {
        let name = wanted.name();
        let columns = self.columns.as_deref().unwrap_or_default();
        let Some(found) = columns.iter().find(|found| found.name == name) else {
            return Err(setup(
                format!("{table} has no column {name:?}"),
                "name the right one in the mapping".to_owned(),
            ));
        };
        if !found.is_of(wanted.r#type()) {
            return Err(setup(
                format!(
                    "column {name:?} of {table} is of type {}, and the mapping says {}",
                    found.r#type,
                    wanted.r#type().name()
                ),
                "change the mapping, or the column".to_owned(),
            ));
        }
        if !found.may_insert {
            return Err(setup(
                format!("this role may not insert into {table}"),
                format!("run GRANT INSERT ON {table} as its owner"),
            ));
        }
        Ok(())
    }
}

impl Column {
    fn is_of(&self, wanted: ColumnType) -> bool {
        match wanted {
            ColumnType::Text => self.is_text,
            ColumnType::Boolean => self.r#type == "bool",
            _ => self.r#type == wanted.name(),
        }
    }
}

/// Whether it is the journal of some schema.
fn is_journal(mapping: &Mapping) -> bool {
    Schema::named(mapping.schema()).is_ok_and(|schema| Mapping::journal(&schema) == *mapping)
}
