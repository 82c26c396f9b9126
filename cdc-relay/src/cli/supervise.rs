//! `cdc-relay run`: a relay, and another with new settings when SIGHUP asks for it.

use std::pin::pin;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::http;
use super::sources::Sources;
use crate::config::Config;
use crate::config::layers::Settings;
use crate::error::{Error, Kind};
use crate::relay::Relay;
use crate::replication::Client;
use crate::sink::{Connect, Kafka};
use crate::status::Status;
use crate::{setup, source};

/// Runs until SIGTERM, SIGINT or an error.
pub(super) async fn supervise(sources: Sources, mut settings: Settings) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    settings.config.validate()?;
    // What is shown, and where, outlives a relay that is followed by one with other settings: it
    // stays paused if it was, and the port is never let go. It is served beside the relay's own
    // thread, and so tells when that one is stuck.
    let status = Status::new(settings.config.slot_name());
    let _server = match http::http(&settings.config)? {
        Some(http) => Some(http.serve(status.clone()).await?),
        None => None,
    };
    loop {
        let (stop, stopped) = oneshot::channel::<()>();
        let relay = Relay::new(settings.config.clone()).with_status(status.clone());
        let mut relay = pin!(relay.run_on_own_thread(async move {
            // Its sender lives until it is told to stop, or is dropped with the same meaning.
            let _ = stopped.await;
        }));
        let next = tokio::select! {
            ended = &mut relay => return ended,
            next = signals.next(&sources, &settings) => next,
        };
        drop(stop);
        relay.await?;
        match next {
            None => return Ok(()),
            Some(next) => settings = next,
        }
    }
}

/// Resolves at SIGTERM or SIGINT; never where they can not be listened for.
pub(super) async fn stop_signal() {
    match Signals::new() {
        Ok(mut signals) => tokio::select! {
            _ = signals.terminate.recv() => {}
            _ = signals.interrupt.recv() => {}
        },
        Err(error) => {
            tracing::error!(%error, "the process can only be killed");
            std::future::pending().await
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Error::new(Kind::Server, "signals can not be listened for").caused_by(error)
            })
        };
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Resolves at SIGTERM or SIGINT, and with other settings at a SIGHUP that has brought some.
    async fn next(&mut self, sources: &Sources, settings: &Settings) -> Option<Settings> {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return None,
                _ = self.interrupt.recv() => return None,
                _ = self.hang_up.recv() => {}
            }
            let Some((next, changed)) = reload(sources, settings) else { continue };
            let tried = tokio::select! {
                _ = self.terminate.recv() => return None,
                _ = self.interrupt.recv() => return None,
                tried = Box::pin(try_out(&next.config)) => tried,
            };
            match tried {
                Ok(()) => {
                    tracing::info!(?changed, "reloaded: a new session takes these settings up");
                    return Some(next);
                }
                Err(error) => tracing::error!(
                    %error,
                    source = ?std::error::Error::source(&error),
                    mend = error.mend(),
                    ?changed,
                    "not reloaded: with these settings a relay could not lead"
                ),
            }
        }
    }
}

/// The settings as they are now, where that can be taken up.
fn reload(sources: &Sources, settings: &Settings) -> Option<(Settings, Vec<String>)> {
    let next = match sources.read() {
        Ok(next) => next,
        Err(error) => {
            tracing::error!(%error, "not reloaded: the settings have faults");
            return None;
        }
    };
    let (identity, changed) = settings.changed(&next);
    if !identity.is_empty() {
        tracing::error!(?identity, "not reloaded: these settings need a restart");
        return None;
    }
    if changed.is_empty() {
        tracing::info!("reloaded: no setting has changed");
        return None;
    }
    Some((next, changed))
}

/// Asks both servers what a relay asks them before it leads, beside the one that does: settings
/// that they refuse must not end it.
async fn try_out(config: &Config) -> Result<(), Error> {
    config.validate()?;
    config.check_spool()?;
    let mut client = Client::connect(&config.endpoint()?).await?;
    let server = source::identify(&mut client).await?;
    let relay_id = config.relay_id_for(&server.system_identifier, &server.database)?;
    if let Some(slot) = source::slot(&mut client, config.slot_name()).await? {
        slot.check(&server)?;
        if !setup::has_publication(config, &mut client).await? {
            return Err(setup::lost_publication(config, &mut client).await);
        }
    }
    Kafka::of(config).connect(&relay_id).await.map(drop)
}
