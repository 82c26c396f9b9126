//! `tailrace saga …`: sagas, what happened to them, and what a person wants of them.

use clap::{Args, Subcommand};
use sqlx::PgConnection;
use tailrace_saga::operate::{By, Filter};
use tailrace_saga::{SagaId, Status, schema};
use uuid::Uuid;

use crate::answer::Answer;
use crate::database::Database;
use crate::error::{Error, Kind};

mod change;
mod diagram;
mod list;
mod migrate;
mod timeline;
mod words;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Brings the tables of sagas into a database, in one transaction
    Install(Install),
    /// Lists sagas that are not over, or those that are chosen, oldest first
    List(list::List),
    /// Shows one saga: its steps, what it has still to be told, and what people wanted of it
    Show(list::Show),
    /// Tells what happened to a saga, from its orchestrator's journal or from its messages
    Timeline(timeline::Timeline),
    /// Has steps asked for again that wait for a person, or the one that is named
    Retry(change::Retry),
    /// Passes over a step that waits for a person: an action counts as done, an effect stays that was to go
    Skip(change::Skip),
    /// Has sagas give back a lock and go on without it: others see what is half done
    Unlock(change::Unlock),
    /// Has sagas undone, unless their pivot was asked for
    Compensate(change::Compensate),
    /// Ends sagas as they are: what is done stays done, and nothing more is asked of anybody
    Abort(change::Abort),
    /// Gives a saga the event that one of its steps waits for, or will
    Signal(change::Signal),
    /// Has sagas go on under another definition, by a mapping in a file
    ///
    /// {"from": "create-order/3", "to": "create-order/4", "skip": ["check-address"], "data": [{"set": "/currency", "to": "EUR"},
    /// {"move": "/amount", "to": "/cents"}, {"remove": "/coupon"}]}
    ///
    /// An engine that runs the new definition moves them. Upcasters are code: where the data of a saga is older than its
    /// own definition, that engine has to have both definitions.
    Migrate(migrate::Migrate),
    /// Draws a definition, or how far a saga is, as Mermaid or SVG
    ///
    /// Engines store the structure of what they run, so this needs no code of the service.
    Diagram(diagram::Diagram),
}

/// Runs a command.
pub(crate) async fn run(command: Command) -> Result<Answer, Error> {
    match command {
        Command::Install(install) => install.run().await,
        Command::List(list) => list.run().await,
        Command::Show(show) => show.run().await,
        Command::Timeline(timeline) => timeline.run().await,
        Command::Retry(retry) => retry.run().await,
        Command::Skip(skip) => skip.run().await,
        Command::Unlock(unlock) => unlock.run().await,
        Command::Compensate(compensate) => compensate.run().await,
        Command::Abort(abort) => abort.run().await,
        Command::Signal(signal) => signal.run().await,
        Command::Migrate(migrate) => migrate.run().await,
        Command::Diagram(diagram) => diagram.run().await,
    }
}

#[derive(Args)]
pub(crate) struct Install {
    #[command(flatten)]
    database: Database,
}

impl Install {
    async fn run(self) -> Result<Answer, Error> {
        let mut connection = self.database.connect().await?;
        // Only for what is told: installing looks again, under its lock.
        let was_there = schema::check(&mut connection).await.is_ok();
        schema::install(&mut connection).await.map_err(|error| {
            let error = Error::from(error);
            if error.kind() != Kind::Permission {
                return error;
            }
            error.mended_by(
                "run it by a role that may create in the database and owns schema \"tailrace\", \
                 or the files of saga/migrations by your migration tool",
            )
        })?;
        let text = if was_there { "everything is there already\n" } else { "installed\n" };
        Ok(text.to_owned().into())
    }
}

/// Connects, and says what to do where there are no tables.
async fn connect(database: &Database) -> Result<PgConnection, Error> {
    let mut connection = database.connect().await?;
    schema::check(&mut connection).await?;
    Ok(connection)
}

/// Which sagas are meant; what is not said does not matter.
#[derive(Args, Default)]
pub(crate) struct Chosen {
    /// In this state, several times where several are meant: running, compensating, parked, completed, compensated,
    /// aborted, all
    #[arg(long = "state", value_parser = words::state)]
    states: Vec<State>,
    /// Of this definition
    #[arg(long)]
    definition: Option<String>,
    /// Of this version
    #[arg(long, requires = "definition")]
    version: Option<u32>,
    /// At this step: somebody is to answer, or to decide, about it
    #[arg(long)]
    step: Option<String>,
    /// Started longer ago than this: 90m, 2d
    #[arg(long)]
    older_than: Option<humantime::Duration>,
    /// Started no longer ago than this
    #[arg(long)]
    newer_than: Option<humantime::Duration>,
    /// Not changed for so long
    #[arg(long)]
    unchanged_for: Option<humantime::Duration>,
}

/// One state, or all of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    All,
    One(Status),
}

impl Chosen {
    fn filter(&self) -> Filter {
        let mut filter = Filter::default();
        for state in &self.states {
            filter = match state {
                State::All => filter.any_state(),
                State::One(status) => filter.state(*status),
            };
        }
        if let Some(name) = &self.definition {
            filter = filter.definition(name);
        }
        if let Some(version) = self.version {
            filter = filter.version(version);
        }
        if let Some(step) = &self.step {
            filter = filter.step(step);
        }
        if let Some(age) = self.older_than {
            filter = filter.older_than(age.into());
        }
        if let Some(age) = self.newer_than {
            filter = filter.newer_than(age.into());
        }
        if let Some(time) = self.unchanged_for {
            filter = filter.unchanged_for(time.into());
        }
        filter
    }

    fn says_nothing(&self) -> bool {
        self.filter() == Filter::default()
    }
}

/// Who changes something, and whether it is done at all.
#[derive(Args)]
pub(crate) struct Hand {
    /// Do it; without it is told what would be done, and the exit code is 8
    #[arg(long)]
    yes: bool,
    /// Who does it, for the journal and the audit
    #[arg(long, env = "USER", default_value = "unknown")]
    actor: String,
    /// Why, for the audit
    #[arg(long)]
    note: Option<String>,
}

impl Hand {
    fn by(&self) -> By {
        let by = By::new(&self.actor);
        match &self.note {
            Some(note) => by.note(note),
            None => by,
        }
    }
}

fn saga_id(text: &str) -> Result<SagaId, String> {
    Uuid::try_parse(text).map(SagaId::from_uuid).map_err(|_| "a saga's id is a UUID".to_owned())
}

/// The error for a saga that is not there.
fn no_such(id: SagaId) -> Error {
    Error::new(Kind::Refused, format!("there is no saga {id}")).mended_by(
        "see `tailrace saga list --state all`, and that this is its orchestrator's database",
    )
}
