//! The publication, the journal, and what becomes of the application's own writes.

use tailrace_outbox::mapping::Mapping;

use super::{Report, value};
use crate::config::Config;
use crate::error::Error;
use crate::replication::{Client, Row, quote_identifier, quote_literal};
use crate::{publication, setup};

/// Tables that are named in a line; of more the number is told.
const NAMED_MAX: usize = 3;

/// Looks at the publication.
pub(super) async fn check(
    report: &mut Report,
    config: &Config,
    client: &mut Client,
    slot_exists: bool,
) -> Result<(), Error> {
    let journal = Journal::ask(config, client).await?;
    match setup::has_publication(config, client).await {
        Err(error) if error.sqlstate().is_none() => report.error("publication", &error),
        Err(error) => return Err(error),
        Ok(false) if slot_exists => {
            let lost = setup::lost_publication(config, client).await;
            report.error("publication", &lost);
        }
        Ok(false) => missing(report, config, client, &journal).await?,
        Ok(true) => report.ok("publication", format!("{:?} exists", config.publication_name())),
    }
    tables(report, config, client, &journal).await
}

/// The journal's table, as far as there is one.
struct Journal {
    exists: bool,
    owned: bool,
}

impl Journal {
    async fn ask(config: &Config, client: &mut Client) -> Result<Self, Error> {
        let sql = format!(
            "SELECT pg_catalog.pg_has_role(c.relowner, 'USAGE')::text FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = {} AND c.relname = {} AND c.relkind IN ('r', 'p')",
            quote_literal(config.outbox_schema()),
            quote_literal(setup::JOURNAL)
        );
        let owned = value(client, &sql).await?;
        Ok(Journal { exists: owned.is_some(), owned: owned.as_deref() == Some("true") })
    }
}

/// Whether the role could make the publication.
async fn missing(
    report: &mut Report,
    config: &Config,
    client: &mut Client,
    journal: &Journal,
) -> Result<(), Error> {
    let name = config.publication_name();
    let sql = "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), \
               'CREATE')::text";
    let may_create = value(client, sql).await?.as_deref() == Some("true");
    let command = setup::publication_command(config, client).await?;
    let mend = format!("let the owner run: {command}");
    let without = match (may_create, journal.exists && !journal.owned) {
        (false, _) => "the role lacks CREATE on the database",
        (true, true) => "the role does not own the journal",
        (true, false) => {
            report.ok("publication", format!("{name:?} will be made with the slot"));
            return Ok(());
        }
    };
    report.fail("publication", format!("{name:?} does not exist, and {without}"), mend);
    Ok(())
}

/// The tables whose rows are messages, as rows of SQL: schema and name.
fn messages(config: &Config) -> String {
    let name = |table: &Mapping| {
        format!("({}, {})", quote_literal(table.schema()), quote_literal(table.table()))
    };
    match config.message_tables().as_slice() {
        [] => "(NULL, NULL)".to_owned(),
        tables => tables.iter().map(name).collect::<Vec<_>>().join(", "),
    }
}

/// The tables that are published.
async fn tables(
    report: &mut Report,
    config: &Config,
    client: &mut Client,
    journal: &Journal,
) -> Result<(), Error> {
    let publication_name = quote_literal(config.publication_name());
    let messages = messages(config);
    let sql = format!(
        "SELECT pg_catalog.format('%I.%I', t.schemaname, t.tablename), \
         (t.schemaname = {})::text, \
         ((p.pubupdate OR p.pubdelete) AND (c.relreplident = 'n' OR (c.relreplident = 'd' AND NOT \
         EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND \
         i.indisprimary))))::text, ((t.schemaname, t.tablename) IN ({messages}))::text \
         FROM pg_catalog.pg_publication_tables t \
         JOIN pg_catalog.pg_publication p ON p.pubname = t.pubname \
         JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname \
         JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename \
         WHERE t.pubname = {publication_name}",
        quote_literal(config.outbox_schema()),
    );
    let rows = client.query(&sql).await?;
    let is = |row: &&Row, at| row.get(at) == Some("true");
    let foreign: Vec<&Row> = rows.iter().filter(|row| !is(row, 3)).collect();
    let unidentified: Vec<&Row> = rows.iter().filter(|row| is(row, 2)).collect();
    let name = quote_identifier(config.publication_name());
    if !unidentified.is_empty() {
        report.fail(
            "replica_identity",
            format!(
                "the application's own UPDATE and DELETE fail on {}: no replica identity",
                names(&unidentified)
            ),
            format!(
                "ALTER PUBLICATION {name} SET (publish = 'insert'), or give each a primary key"
            ),
        );
    }
    if !foreign.is_empty() {
        report.warn(
            "publication_tables",
            format!("changes of {} are sent and not published", names(&foreign)),
            format!("ALTER PUBLICATION {name} DROP TABLE ..., for what they cost"),
        );
    }
    let published = rows.iter().any(|row| is(&row, 1));
    let unpublished = match journal.exists && !published {
        true => publication::unpublished_journal(config, client).await?,
        false => None,
    };
    if let Some(unpublished) = unpublished.filter(|unpublished| unpublished.has_rows) {
        report.error("journal", &unpublished.error(config));
    } else if journal.exists
        && !published
        && value(
            client,
            &format!("SELECT 1 FROM pg_catalog.pg_publication WHERE pubname = {publication_name}"),
        )
        .await?
        .is_some()
    {
        report.warn(
            "journal",
            "there is a journal, and the publication does not have it: its rows stay there",
            format!(
                "ALTER PUBLICATION {name} ADD TABLE {}.{}",
                quote_identifier(config.outbox_schema()),
                quote_identifier(setup::JOURNAL)
            ),
        );
    } else if published {
        report.ok("journal", "its rows are published");
    }
    Ok(())
}

fn names(rows: &[&Row]) -> String {
    let mut named: Vec<String> =
        rows.iter().take(NAMED_MAX).filter_map(|row| row.get(0)).map(str::to_owned).collect();
    if rows.len() > NAMED_MAX {
        named.push(format!("{} more", rows.len() - NAMED_MAX));
    }
    named.join(", ")
}
