//! `tailrace inbox check`.

use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;
use tailrace_idempotency::retention::{self, HORIZON, Horizon};
use tailrace_idempotency::schema;

use super::list::json;
use super::words::bytes_of;
use crate::answer::Answer;
use crate::database::Database;
use crate::error::{Error, Kind};

#[derive(Args)]
pub(crate) struct Check {
    #[command(flatten)]
    database: Database,
    /// The horizon that `maintain` has
    #[arg(long, default_value_t = HORIZON.into())]
    horizon: humantime::Duration,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let mut connection = self.database.connect().await?;
        schema::check(&mut connection)
            .await
            .map_err(|error| Error::from(error).of_kind(Kind::Unfit))?;
        let status = retention::status(&mut connection, &Horizon::new(self.horizon.into())).await?;
        let faults = status.faults();
        let bytes = status.partitions.iter().map(|day| day.bytes).sum();
        let code = if faults.is_empty() { 0 } else { Error::new(Kind::Unfit, "").exit_code() };
        if self.json {
            let report = Report {
                partitions: status.partitions.len(),
                bytes,
                days_ahead: status.days_ahead,
                faults: &faults,
            };
            return Ok(Answer { text: json(&report), code });
        }
        let mut text = format!(
            "{} days of claims in {}, partitions for {} days ahead\n",
            status.partitions.len(),
            bytes_of(bytes),
            status.days_ahead
        );
        for fault in &faults {
            // A string takes any text.
            let _ = writeln!(text, "fault: {fault}");
        }
        if !faults.is_empty() {
            text += "mend: run `tailrace inbox maintain` once an hour, with this horizon\n";
        }
        Ok(Answer { text, code })
    }
}

#[derive(Serialize)]
struct Report<'a> {
    partitions: usize,
    bytes: u64,
    days_ahead: u16,
    faults: &'a [String],
}
