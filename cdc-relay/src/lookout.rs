//! Looks at the relay and its source from the side: the health of the slot, the end of the log,
//! probes, and the watchdog's judgement.
//!
//! It has a connection of its own, so that it still sees when the stream does not move. Of what
//! it finds it tells [`Status`] alone; the relay's loop ends a session that it wants ended.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use uuid::Uuid;

use crate::config::Config;
use crate::error::{Error, Kind};
use crate::lsn::Lsn;
use crate::publication::{self, Seen};
use crate::replication::{Client, quote_literal};
use crate::slot_health::{self, Look};
use crate::status::Status;
use crate::watchdog::{LOOK_EVERY, Watchdog};

/// How often the source is asked about the slot.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// A server that serves answers in milliseconds.
const ANSWER_MAX: Duration = Duration::from_secs(4);
/// How often a probe is written while the relay leads, in rounds of [`ASK_EVERY`]. One costs the
/// log about 150 bytes and Kafka a checkpoint, which is less than a hundred MB a year.
const PROBE_ROUNDS: u32 = 2;

/// The lookout's tasks; they end with it.
#[derive(Debug)]
pub(crate) struct Lookout {
    tasks: [JoinHandle<()>; 2],
}

impl Lookout {
    /// Begins to look, on tasks of its own: what it watches may be what is stuck.
    pub(crate) fn spawn(config: &Config, status: &Status) -> Self {
        let asks = ask(config.clone(), status.clone());
        let judges = judge(status.clone());
        Lookout { tasks: [tokio::spawn(Box::pin(asks)), tokio::spawn(judges)] }
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The content of the prefix by which a relay knows its own probes.
pub(crate) fn probe_prefix(message_prefix: &str) -> String {
    format!("{message_prefix}.probe")
}

async fn judge(status: Status) {
    let mut watchdog = Watchdog::default();
    let mut every = interval(LOOK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        match status.sight(Instant::now()) {
            None => watchdog.rest(),
            Some(sight) => status.judged(sight.session, watchdog.look(sight)),
        }
        status.publish_gauges();
    }
}

async fn ask(config: Config, status: Status) {
    let mut asker = Asker { client: None, round: 0, may_probe: true, told_of_journal: false };
    let mut every = interval(ASK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        // At first the session itself says best what is wrong with the source.
        if !status.has_settled() {
            continue;
        }
        let answer = timeout(ANSWER_MAX, asker.look(&config)).await;
        let look = match answer.unwrap_or_else(|_| Err(late())) {
            Ok(look) => Some(look),
            Err(error) => {
                tracing::debug!(%error, "the source does not tell about the slot");
                asker.client = None;
                None
            }
        };
        let end = look.as_ref().map(|look| look.end);
        let answers = end.is_some();
        status.source(look);
        if let Some(end) = end {
            asker.publication(&config, &status, end).await;
        }
        if answers && asker.may_probe && asker.round.is_multiple_of(PROBE_ROUNDS) {
            asker.probe(&config, &status).await;
        }
        asker.round = asker.round.wrapping_add(1);
    }
}

struct Asker {
    client: Option<Client>,
    round: u32,
    may_probe: bool,
    /// A journal that is in no publication was told of.
    told_of_journal: bool,
}

impl Asker {
    /// Looks whether what the leader reads is still what it is to publish; `end` is the end of the
    /// log before it looks.
    async fn publication(&mut self, config: &Config, status: &Status, end: Lsn) {
        let Some((session, before)) = status.publication_of_leader() else { return };
        let Some(client) = self.client.as_mut() else { return };
        let told = &mut self.told_of_journal;
        let looked = timeout(ANSWER_MAX, look_at_publication(config, client, &before, end, told));
        match looked.await.unwrap_or_else(|_| Err(late())) {
            Ok(Ok(seen)) => status.publication_stays(session, seen),
            Ok(Err(fault)) => status.refuses(session, fault),
            Err(error) => {
                tracing::debug!(%error, "the source does not tell about the publication");
                self.client = None;
            }
        }
    }

    async fn look(&mut self, config: &Config) -> Result<Look, Error> {
        let client = match &mut self.client {
            Some(client) => client,
            none => none.insert(Client::connect(&config.endpoint()?).await?),
        };
        let question = slot_health::question(config.slot_name(), client.server_version());
        let rows = client.query(&question).await?;
        rows.first()
            .and_then(slot_health::look)
            .ok_or_else(|| Error::new(Kind::Server, "the source tells nothing about its slots"))
    }

    /// Writes a probe: a message in a transaction of its own, which comes back in the stream. Not
    /// waiting for a standby, which may be away.
    async fn probe(&mut self, config: &Config, status: &Status) {
        let Some(client) = self.client.as_mut().filter(|_| status.wants_probe()) else { return };
        let content = Uuid::now_v7().to_string();
        let write = format!(
            "SELECT pg_catalog.set_config('synchronous_commit', 'local', true), \
             pg_catalog.pg_logical_emit_message(true, {}, {})",
            quote_literal(&probe_prefix(config.message_prefix())),
            quote_literal(&content)
        );
        status.probe_leaves(&content);
        let written = timeout(ANSWER_MAX, client.query(&write)).await;
        let Err(error) = written.unwrap_or_else(|_| Err(late())) else { return };
        status.probe_failed();
        if error.kind() == Kind::Permission {
            self.may_probe = false;
            tracing::warn!(
                %error,
                "no probes are written: grant EXECUTE on pg_logical_emit_message to have them"
            );
        } else {
            self.client = None;
            tracing::debug!(%error, "a probe could not be written");
        }
    }
}

/// The publication as it is, or why a leader can not go on with it.
async fn look_at_publication(
    config: &Config,
    client: &mut Client,
    before: &Seen,
    end: Lsn,
    told_of_journal: &mut bool,
) -> Result<Result<Seen, Error>, Error> {
    let now = publication::look(config, client, end).await?;
    if let Some(fault) = publication::fault(config, client, before, &now).await? {
        return Ok(Err(fault));
    }
    if now.journal_left_out
        && let Some(journal) = publication::unpublished_journal(config, client).await?
    {
        let error = journal.error(config);
        if journal.has_rows {
            return Ok(Err(error));
        }
        if !std::mem::replace(told_of_journal, true) {
            tracing::warn!(mend = error.mend(), "{error}: its rows would not be published");
        }
    }
    Ok(Ok(now.seen))
}

fn late() -> Error {
    Error::new(Kind::Unavailable, format!("postgres did not answer within {ANSWER_MAX:?}"))
}
