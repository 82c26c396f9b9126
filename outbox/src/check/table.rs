//! Whether a table can take messages.

use serde::Deserialize;

use super::setup;
use crate::Error;
use crate::mapping::{self, ColumnType, Mapping};
use crate::schema::Schema;

/// What the database says of a table.
#[derive(Deserialize)]
pub(super) struct Table {
    may_use_schema: bool,
    /// None if there is no column.
    columns: Option<Vec<Column>>,
    /// Whether row security applies to this role, and no policy lets it insert anything.
    lacks_policy: bool,
    /// Those that show its inserts under its own name, and all of its rows.
    publications: Option<Vec<Publication>>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
    /// By its name in the catalog; of a domain the one it stands for.
    r#type: String,
    is_text: bool,
    may_insert: bool,
    /// Whether no row may say it: generated, also as an identity.
    is_made_by_postgres: bool,
    /// Whether a row must say it: not null, and nothing makes it.
    is_required: bool,
}

#[derive(Deserialize)]
struct Publication {
    name: String,
    columns: Vec<String>,
}

/// The error of a table that is not there.
pub(super) fn missing(mapping: &Mapping) -> Error {
    setup(
        format!("there is no table {}", mapping.table_sql()),
        if is_journal(mapping) {
            "run tailrace_outbox::schema::install or the files of its folder migrations".to_owned()
        } else {
            "make it, or name the right one in the mapping".to_owned()
        },
    )
}

impl Table {
    /// The first thing that keeps rows of this mapping from being written, or from the relay.
    pub(super) fn judge(&self, mapping: &Mapping, role: &str) -> Result<(), Error> {
        let name = mapping.table_sql();
        let role = mapping::quoted(role);
        if !self.may_use_schema {
            let schema = mapping::quoted(mapping.schema());
            return Err(setup(
                format!("role {role} may not use schema {schema}"),
                format!("run GRANT USAGE ON SCHEMA {schema} TO {role} as the schema's owner"),
            ));
        }
        for column in mapping.columns() {
            self.judge_column(&name, &role, column)?;
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
        if self.lacks_policy {
            return Err(setup(
                format!("row security of {name} lets role {role} insert nothing"),
                format!(
                    "run CREATE POLICY messages ON {name} FOR INSERT TO {role} WITH CHECK (true), \
                     or turn row security off, as its owner"
                ),
            ));
        }
        self.judge_publications(mapping)
    }

    /// One publication is enough: which one the relay reads is its own affair.
    fn judge_publications(&self, mapping: &Mapping) -> Result<(), Error> {
        let name = mapping.table_sql();
        let publications = self.publications.as_deref().unwrap_or_default();
        let hidden = |publication: &Publication| {
            let shows = |name: &str| publication.columns.iter().any(|column| column == name);
            let columns = mapping.columns().iter().map(|column| column.name());
            columns.filter(|name| !shows(name)).map(str::to_owned).collect::<Vec<_>>()
        };
        if publications.iter().any(|publication| hidden(publication).is_empty()) {
            return Ok(());
        }
        if let Some(first) = publications.first() {
            return Err(setup(
                format!(
                    "publication {:?} has a column list for {name} without {}",
                    first.name,
                    hidden(first).join(", ")
                ),
                "take the list away, or name those columns in it too, by ALTER PUBLICATION … SET \
                 TABLE"
                    .to_owned(),
            ));
        }
        Err(setup(
            format!("{name} is in no publication under its own name and with all its rows"),
            if is_journal(mapping) {
                "make one with publish_via_partition_root, as Journal::publication_sql says it"
                    .to_owned()
            } else {
                format!("run ALTER PUBLICATION tailrace ADD TABLE {name}, or as the relay's is")
            },
        ))
    }

    fn judge_column(&self, table: &str, role: &str, wanted: &mapping::Column) -> Result<(), Error> {
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
        if found.is_made_by_postgres {
            return Err(setup(
                format!("column {name:?} of {table} is generated, and takes no value of a message"),
                "make it a plain column, or name another one in the mapping".to_owned(),
            ));
        }
        if !found.may_insert {
            return Err(setup(
                format!("role {role} may not insert into {table}"),
                format!("run GRANT INSERT ON {table} TO {role} as its owner"),
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
