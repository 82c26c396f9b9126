//! `tailrace inbox maintain`: days of claims come and go.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tailrace_idempotency::retention::{self, DAYS_AHEAD_MIN, HORIZON, Horizon, Maintained};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, timeout};

use super::list::json;
use crate::answer::{self, Answer};
use crate::database::Database;
use crate::error::{Error, Kind};

/// No run of a loop takes longer.
const RUN_MAX: Duration = Duration::from_secs(600);

#[derive(Args)]
pub(crate) struct Maintain {
    #[command(flatten)]
    database: Database,
    /// How long claims are known: longer than the longest time after which a message may come again
    #[arg(long, default_value_t = HORIZON.into(), value_parser = horizon)]
    horizon: humantime::Duration,
    /// For how many days after today partitions are made; more than the days between two runs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=7))]
    days_ahead: u16,
    /// How long a drop waits for transactions that have claimed, while new claims wait behind it
    #[arg(long, default_value = "100ms")]
    lock_wait: humantime::Duration,
    /// Do it again and again until it is told to stop: 1h
    #[arg(long)]
    every: Option<humantime::Duration>,
    /// Tell what would be dropped, and change nothing
    #[arg(long, conflicts_with = "every")]
    dry_run: bool,
    /// Answer with one JSON object, for each run
    #[arg(long)]
    json: bool,
}

/// Clocks may be an hour apart: with a shorter horizon what is new is taken for too old.
const HORIZON_MIN: Duration = Duration::from_secs(2 * 3_600);

fn horizon(text: &str) -> Result<humantime::Duration, String> {
    let horizon: humantime::Duration =
        text.parse().map_err(|error: humantime::DurationError| error.to_string())?;
    match Duration::from(horizon) >= HORIZON_MIN {
        true => Ok(horizon),
        false => Err("a horizon is two hours or longer, or what is new would be taken for too old"
            .to_owned()),
    }
}

impl Maintain {
    pub(crate) fn is_endless(&self) -> bool {
        self.every.is_some()
    }

    fn to(&self) -> Horizon {
        Horizon::new(self.horizon.into())
            .days_ahead(self.days_ahead)
            .lock_wait(self.lock_wait.into())
    }

    pub(super) async fn run(&self) -> Result<Answer, Error> {
        let mut connection = self.database.connect().await?;
        if self.dry_run {
            let status = retention::status(&mut connection, &self.to()).await?;
            let due = status.partitions.into_iter().filter(|day| day.is_due);
            let report = Report {
                dry_run: true,
                dropped: due.map(|day| day.name).collect(),
                opaque_turned: status.is_opaque_due,
                days_ahead: status.days_ahead,
                ..Report::default()
            };
            return Ok(report.text(self.json).into());
        }
        let done = retention::maintain(&mut connection, &self.to()).await?;
        Ok(Report::of(done).text(self.json).into())
    }

    /// Until SIGTERM or SIGINT. A database that is away for a while ends nothing.
    pub(crate) async fn repeat(self) -> Result<Answer, Error> {
        let no_signal =
            |error| Error::new(Kind::Refused, "no signal can be received").caused_by(error);
        let mut terminated = signal(SignalKind::terminate()).map_err(no_signal)?;
        let mut interrupted = signal(SignalKind::interrupt()).map_err(no_signal)?;
        let every = self.every.map_or(RUN_MAX, Into::into).max(Duration::from_secs(1));
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = terminated.recv() => break,
                _ = interrupted.recv() => break,
                _ = tick.tick() => {}
            }
            // To drop the run half-way would only roll back the day that it is at.
            let run = tokio::select! {
                _ = terminated.recv() => break,
                _ = interrupted.recv() => break,
                run = timeout(RUN_MAX, self.run()) => run,
            };
            match run {
                Ok(Ok(answer)) => answer::print(&answer.text)?,
                Ok(Err(error)) if error.kind() != Kind::Unavailable => return Err(error),
                Ok(Err(error)) => error.print(),
                Err(_) => Error::new(Kind::Unavailable, "a run did not end within 10 minutes")
                    .mended_by("see what Postgres waits for")
                    .print(),
            }
        }
        Ok(String::new().into())
    }
}

/// What was done, or with `dry_run` what would be: the fields of the JSON object.
#[derive(Default, Serialize)]
struct Report {
    dry_run: bool,
    made: Vec<String>,
    dropped: Vec<String>,
    /// The next run tries them again.
    postponed: Vec<String>,
    /// The older claims of ids that are no UUID v7 were dropped.
    opaque_turned: bool,
    /// Another run was at work, and does the rest.
    elsewhere: bool,
    days_ahead: u16,
}

impl Report {
    fn of(done: Maintained) -> Self {
        Report {
            dry_run: false,
            made: done.made,
            dropped: done.dropped,
            postponed: done.postponed,
            opaque_turned: done.opaque_turned,
            elsewhere: done.elsewhere,
            days_ahead: done.days_ahead,
        }
    }

    fn text(&self, as_json: bool) -> String {
        if as_json {
            return json(self);
        }
        let dropped = if self.dry_run { "would drop" } else { "dropped" };
        let mut text = String::new();
        for (word, names, why) in [
            ("made", &self.made, ""),
            (dropped, &self.dropped, ""),
            ("postponed", &self.postponed, "  (in use just now: the next run tries again)"),
        ] {
            for name in names {
                // A string takes any text.
                let _ = writeln!(text, "{word:<10}  tailrace.{name}{why}");
            }
        }
        if self.opaque_turned {
            let _ = writeln!(text, "{dropped:<10}  tailrace.processed_opaque_before");
        }
        if self.elsewhere {
            text += "another run is at work and does the rest\n";
        } else if text.is_empty() {
            text += "nothing to do\n";
        }
        if self.days_ahead < DAYS_AHEAD_MIN {
            let _ = writeln!(
                text,
                "alert: there are partitions for {} days ahead only",
                self.days_ahead
            );
        }
        text
    }
}
