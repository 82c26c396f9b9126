//! `tailrace outbox …`: functions and tables of the outbox, and the partitions of its journal.

use clap::{Args, Subcommand, ValueEnum};
use tailrace_outbox::mapping::Mapping;
use tailrace_outbox::schema::{MIGRATIONS, Schema};
use tailrace_outbox::{DEFAULT_SLOT, Outbox, Store};

use crate::database::Database;
use crate::error::{Error, Kind};

mod maintain;

use maintain::Maintain;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Makes the journal's partitions of the next days and drops the old ones
    ///
    /// For a timer, once an hour or once a day, from as many places at once as you like: one works,
    /// and the others say so. It is the work of the tables' owner. What a busy moment postpones,
    /// the next run does.
    Maintain(Maintain),
    /// Brings functions and tables into a database, in one transaction
    ///
    /// It may be run at every deployment and from several places at once; where everything is
    /// there it changes nothing.
    Install(Install),
    /// Prints the SQL that `install` runs, for any migration tool
    ///
    /// Run it in one transaction, and `tailrace outbox maintain` afterwards: it makes the first
    /// partitions.
    Schema(Named),
    /// Looks whether a message written now would reach the relay
    ///
    /// Exit code 0 if it would and 1 if it would not, with what is missing.
    Check(Check),
}

/// Runs a command; what it answers is for standard output.
pub(crate) async fn run(command: Command) -> Result<String, Error> {
    match command {
        Command::Maintain(maintain) => maintain.run().await,
        Command::Install(install) => install.run().await,
        Command::Schema(named) => Ok(script(&named.schema()?)),
        Command::Check(check) => check.run().await,
    }
}

#[derive(Args)]
pub(crate) struct Named {
    /// The schema that functions and tables live in
    #[arg(long, default_value = "tailrace")]
    schema: String,
}

impl Named {
    fn schema(&self) -> Result<Schema, Error> {
        Ok(Schema::named(&self.schema)?)
    }
}

fn script(schema: &Schema) -> String {
    let scripts: Vec<String> = MIGRATIONS.iter().map(|step| schema.render(step)).collect();
    scripts.join("\n")
}

#[derive(Args)]
pub(crate) struct Install {
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    named: Named,
}

impl Install {
    async fn run(self) -> Result<String, Error> {
        let schema = self.named.schema()?;
        let name = schema.name();
        let mut connection = self.database.connect().await?;
        // Only for what is told: installing looks again, under its lock.
        let was_there = schema.check(&mut connection).await.is_ok();
        schema.install(&mut connection).await.map_err(|error| {
            permitted(
                error.into(),
                format!(
                    "run it by a role that may create in the database and owns schema {name:?}, \
                     or what `tailrace outbox schema{}` prints by your migration tool",
                    option(&schema)
                ),
            )
        })?;
        Ok(if was_there {
            format!("schema {name:?} has everything already\n")
        } else {
            format!("installed into schema {name:?}\n")
        })
    }
}

#[derive(Args)]
pub(crate) struct Check {
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    named: Named,
    /// The relay's replication slot
    #[arg(long, default_value = DEFAULT_SLOT)]
    slot: String,
    /// Where the services write their messages: the log alone, the journal, or a table of yours
    /// [default: wal, or table with --table]
    #[arg(long, value_enum)]
    store: Option<StoreName>,
    /// The table and its mapping, as the relay has it: 'public.outbox=debezium, source=/orders'
    #[arg(long, value_name = "MAPPING")]
    table: Option<Mapping>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StoreName {
    Wal,
    Journal,
    Table,
}

impl Check {
    async fn run(self) -> Result<String, Error> {
        let schema = self.named.schema()?;
        let install = install_command(&schema);
        let outbox = Outbox::new(self.store()?);
        let mut connection = self.database.connect().await?;
        outbox.schema(schema).slot(self.slot.clone()).check(&mut connection).await.map_err(
            |error| {
                // The library names its own function, where there is a command.
                let is_to_install =
                    error.mend().is_some_and(|mend| mend.contains("schema::install"));
                let error = unfit(error);
                if is_to_install { error.mended_by(install) } else { error }
            },
        )?;
        Ok(format!("ok: a message written now reaches the relay of slot {:?}\n", self.slot))
    }

    fn store(&self) -> Result<Store, Error> {
        let fault = |text: &'static str, mend: &'static str| {
            Err(Error::new(Kind::Settings, text).mended_by(mend))
        };
        match (self.store, self.table.clone()) {
            (None | Some(StoreName::Wal), None) => Ok(Store::Wal),
            (Some(StoreName::Journal), None) => Ok(Store::Journal),
            (None | Some(StoreName::Table), Some(mapping)) => Ok(Store::Table(mapping)),
            (Some(StoreName::Table), None) => fault(
                "--store table needs the mapping of the table",
                "give it as the relay has it: --table 'public.outbox=debezium, source=/orders'",
            ),
            (Some(StoreName::Wal | StoreName::Journal), Some(_)) => {
                fault("--table is for --store table alone", "leave out one of the two")
            }
        }
    }
}

/// An error of a check; what is not set up is its answer.
fn unfit(error: tailrace_outbox::Error) -> Error {
    let is_answer = error.is_setup();
    let error = Error::from(error);
    if is_answer && error.kind() == Kind::Settings { error.of_kind(Kind::Unfit) } else { error }
}

/// Says whose work it is, if the role may not do it.
fn permitted(error: Error, mend: String) -> Error {
    if error.kind() == Kind::Permission { error.mended_by(mend) } else { error }
}

/// How to bring in what is missing.
fn install_command(schema: &Schema) -> String {
    format!("run `tailrace outbox install{}`", option(schema))
}

fn option(schema: &Schema) -> String {
    if *schema == Schema::default() {
        return String::new();
    }
    format!(" --schema {}", schema.name())
}
