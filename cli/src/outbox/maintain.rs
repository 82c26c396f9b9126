//! `tailrace outbox maintain`: the journal's days come and go.

use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;
use tailrace_outbox::journal::{DAYS_AHEAD, Journal, KEEP, Maintained, Planned, Retention};
use tailrace_outbox::schema::Schema;

use super::{Named, install_command, permitted};
use crate::database::Database;
use crate::error::{Error, Kind};

#[derive(Args)]
pub(crate) struct Maintain {
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    named: Named,
    /// How long rows are kept, and then until the end of their UTC day: 14d, 36h, "1week 12h"
    #[arg(long, default_value_t = KEEP.into())]
    keep: humantime::Duration,
    /// For how many days after today partitions are made; more than the days between two runs
    #[arg(long, default_value_t = DAYS_AHEAD, value_parser = clap::value_parser!(u16).range(1..=366))]
    days_ahead: u16,
    /// Tell what would be made and dropped, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

impl Maintain {
    pub(super) async fn run(self) -> Result<String, Error> {
        let schema = self.named.schema()?;
        let journal = Journal::new(&schema);
        let retention = Retention::new(self.keep.into()).days_ahead(self.days_ahead);
        let mut connection = self.database.connect().await?;
        let explained = |error: tailrace_outbox::Error| explain(error.into(), &schema);
        if self.dry_run {
            let planned = journal.plan(&mut connection, &retention).await.map_err(explained)?;
            return Ok(Report::of_plan(&schema, planned).text(self.json));
        }
        let done = journal.maintain(&mut connection, &retention).await.map_err(explained)?;
        Ok(Report::of(&schema, done).text(self.json))
    }
}

fn explain(error: Error, schema: &Schema) -> Error {
    if error.kind() == Kind::Settings {
        return error.mended_by(install_command(schema));
    }
    permitted(error, format!("run it by the role that owns {}.outbox", schema.name()))
}

/// What was done, or with `dry_run` what would be: the fields of the JSON object.
#[derive(Serialize)]
struct Report<'a> {
    schema: &'a str,
    dry_run: bool,
    made: Vec<String>,
    dropped: Vec<String>,
    /// The next run tries them again.
    postponed: Vec<String>,
    /// Days that get no partition any more.
    blocked: Vec<String>,
    strays_deleted: u64,
    /// Another run was at work, and does the rest.
    elsewhere: bool,
}

impl<'a> Report<'a> {
    fn of(schema: &'a Schema, done: Maintained) -> Self {
        Report {
            schema: schema.name(),
            dry_run: false,
            made: done.made,
            dropped: done.dropped,
            postponed: done.postponed,
            blocked: done.blocked,
            strays_deleted: done.strays_deleted,
            elsewhere: done.elsewhere,
        }
    }

    fn of_plan(schema: &'a Schema, planned: Planned) -> Self {
        let done = Maintained::default();
        Report {
            dry_run: true,
            made: planned.make,
            dropped: planned.drop,
            blocked: planned.blocked,
            strays_deleted: planned.strays,
            ..Report::of(schema, done)
        }
    }

    fn text(&self, as_json: bool) -> String {
        if as_json {
            let object = serde_json::to_string(self).expect("names and numbers are valid JSON");
            return object + "\n";
        }
        let (made, dropped) =
            if self.dry_run { ("would make", "would drop") } else { ("made", "dropped") };
        let mut text = String::new();
        for (word, names, why) in [
            (made, &self.made, ""),
            (dropped, &self.dropped, ""),
            ("postponed", &self.postponed, "  (in use just now: the next run tries again)"),
            (
                "blocked",
                &self.blocked,
                "  (rows of it are in outbox_default already, or another table has its place)",
            ),
        ] {
            for name in names {
                // A string takes any text.
                let _ = writeln!(text, "{word:<10}  {}.{name}{why}", self.schema);
            }
        }
        if self.strays_deleted > 0 {
            let (count, schema) = (self.strays_deleted, self.schema);
            let word = if self.dry_run { "would delete  " } else { "deleted     " };
            let _ = writeln!(text, "{word}{count} old rows of {schema}.outbox_default");
        }
        if self.elsewhere {
            text += "another run is at work on this journal and does the rest\n";
        } else if text.is_empty() {
            text += "nothing to do\n";
        }
        text
    }
}
