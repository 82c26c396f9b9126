//! `tailrace http-key …`: the answers that are kept for requests with an `Idempotency-Key`.

use clap::{Args, Subcommand};
use tailrace_idempotency::http_key;

use crate::answer::{Answer, ONLY_TOLD};
use crate::database::Database;
use crate::error::Error;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Deletes answers that are older than an age; a request that comes again later is a first one
    ///
    /// It tells how many, and deletes them with --yes. For a timer: once a day, or as the API's documentation promises.
    Forget(Forget),
}

/// Runs a command.
pub(crate) async fn run(command: Command) -> Result<Answer, Error> {
    match command {
        Command::Forget(forget) => forget.run().await,
    }
}

#[derive(Args)]
pub(crate) struct Forget {
    #[command(flatten)]
    database: Database,
    /// The age, as in 24h or 30d
    #[arg(long)]
    older_than: humantime::Duration,
    /// Do it; without it is told what would be done, and the exit code is 8
    #[arg(long)]
    yes: bool,
}

impl Forget {
    async fn run(self) -> Result<Answer, Error> {
        let mut connection = self.database.connect().await?;
        if !self.yes {
            let count = http_key::plan_forget(&mut connection, self.older_than.into()).await?;
            let text = format!("{count} answers are deleted\nnothing was changed: --yes does it\n");
            return Ok(Answer { text, code: ONLY_TOLD });
        }
        let mut count = 0;
        loop {
            let deleted = http_key::forget(&mut connection, self.older_than.into()).await?;
            count += deleted;
            if deleted == 0 {
                return Ok(format!("{count} answers are deleted\n").into());
            }
        }
    }
}
