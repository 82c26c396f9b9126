//! The preflight: asks both servers about every precondition, and says how to mend what is amiss.
//!
//! It changes nothing, holds nothing and fences nobody, so it may run beside a relay. What it may
//! not see is a warning, never a silent pass.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::checkpoint::Stored;
use crate::config::Config;
use crate::error::{Error, Reaction};
use crate::overview;
use crate::replication::Client;
use crate::sink::Saved;

mod kafka;
mod publication;
mod server;
mod slot;
mod spool;
mod standby;

/// From where on something is worth a warning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// A transaction that has written and is open for longer keeps the log and hinders `init`.
    pub(crate) transaction_age: Duration,
    /// Log that an abandoned slot keeps.
    pub(crate) abandoned_bytes: u64,
    /// Between our clock and the server's.
    pub(crate) clock_skew: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            transaction_age: Duration::from_secs(300),
            abandoned_bytes: 1 << 30,
            clock_skew: Duration::from_secs(5),
        }
    }
}

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Ok,
    /// The relay works, but not for ever, or not through every fault.
    Warn,
    /// The relay can not work, or would break its promise.
    Fail,
}

/// One precondition.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    /// A name that stays, for programs.
    pub(crate) name: &'static str,
    pub(crate) level: Level,
    pub(crate) text: String,
    /// Empty where nothing is amiss.
    pub(crate) mend: String,
}

/// All that was found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) findings: Vec<Finding>,
}

/// Asks both servers.
pub(crate) async fn check(config: &Config, bounds: Bounds) -> Report {
    let mut report = Report::default();
    spool::check(&mut report, config);
    let mut relay_id = None;
    let mut connected = None;
    if let Some(mut client) = server::reach(&mut report, config).await {
        match server::check(&mut report, config, &mut client, bounds).await {
            Ok(Some(server)) => {
                match config.relay_id_for(&server.system_identifier, &server.database) {
                    Ok(id) => relay_id = Some(id),
                    Err(error) => report.error("relay_id", &error),
                }
                connected = Some((client, server));
            }
            Ok(None) => {}
            Err(error) => report.error("postgres", &error),
        }
    }
    let saved = match &relay_id {
        Some(relay_id) => saved(&mut report, config, relay_id).await,
        None => Known::No,
    };
    if let Some((mut client, server)) = connected {
        let stored = match &saved {
            Known::Saved(saved) => stored(&mut report, saved.as_ref()),
            Known::No | Known::OutOfReach => None,
        };
        let found = async {
            let exists =
                slot::check(&mut report, config, &mut client, &server, stored.as_ref()).await?;
            slot::others(&mut report, config, &mut client, bounds).await?;
            publication::check(&mut report, config, &mut client, exists).await?;
            standby::check(&mut report, &mut client).await
        };
        if let Err(error) = found.await {
            report.error("postgres", &error);
        }
    }
    let saved = match saved {
        // To ask once more would take as long again.
        Known::OutOfReach => return report,
        Known::Saved(saved) => saved,
        Known::No => None,
    };
    kafka::check(&mut report, config, relay_id.as_deref(), saved.as_ref()).await;
    report
}

/// What is known of what the relay has saved.
enum Known {
    Saved(Option<Saved>),
    No,
    /// Nothing: Kafka does not answer.
    OutOfReach,
}

/// Asks for what the relay has saved.
async fn saved(report: &mut Report, config: &Config, relay_id: &str) -> Known {
    match overview::saved(config, relay_id).await {
        Ok(saved) => Known::Saved(saved),
        Err(error) if error.reaction() == Reaction::Retry => {
            report.error("kafka", &error);
            report.warn("checkpoint", "not known: kafka is out of reach", "mend kafka first");
            Known::OutOfReach
        }
        Err(error) => {
            report.error("checkpoint", &error);
            Known::No
        }
    }
}

/// What of it can be read; `None` where that is not known.
fn stored(report: &mut Report, saved: Option<&Saved>) -> Option<Stored> {
    match saved.map(Stored::read).transpose() {
        Ok(stored) => Some(stored.unwrap_or_default()),
        Err(error) => {
            report.error("checkpoint", &error);
            None
        }
    }
}

impl Report {
    pub(crate) fn ok(&mut self, name: &'static str, text: impl Into<String>) {
        self.add(name, Level::Ok, text, "");
    }

    pub(crate) fn warn(
        &mut self,
        name: &'static str,
        text: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.add(name, Level::Warn, text, mend);
    }

    pub(crate) fn fail(
        &mut self,
        name: &'static str,
        text: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.add(name, Level::Fail, text, mend);
    }

    /// What an error says.
    pub(crate) fn error(&mut self, name: &'static str, error: &Error) {
        self.fail(name, error.to_string(), error.mend().unwrap_or_default());
    }

    fn add(
        &mut self,
        name: &'static str,
        level: Level,
        text: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.findings.push(Finding { name, level, text: text.into(), mend: mend.into() });
    }

    /// The worst that was found.
    pub(crate) fn level(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }

    /// For people: a line each, and how to mend it below.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for Finding { name, level, text: what, mend } in &self.findings {
            // A string takes any text.
            let _ = writeln!(text, "{:4} {name:24} {what}", level.word());
            if !mend.is_empty() {
                let _ = writeln!(text, "     {:24} -> {mend}", "");
            }
        }
        let count = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        let _ = writeln!(
            text,
            "{} ok, {} to be looked at, {} to be mended",
            count(Level::Ok),
            count(Level::Warn),
            count(Level::Fail)
        );
        text
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let finding = |Finding { name, level, text, mend }: &Finding| {
            let mend = Some(mend).filter(|mend| !mend.is_empty());
            json!({ "name": name, "level": level.word(), "text": text, "mend": mend })
        };
        json!({
            "level": self.level().word(),
            "findings": self.findings.iter().map(finding).collect::<Vec<_>>(),
        })
    }
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
        }
    }
}

/// The only value of a query's only row.
async fn value(client: &mut Client, sql: &str) -> Result<Option<String>, Error> {
    let rows = client.query(sql).await?;
    Ok(rows.first().and_then(|row| row.get(0)).map(str::to_owned))
}

#[cfg(test)]
mod tests;
