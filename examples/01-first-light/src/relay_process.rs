//! The relay as a process of its own, so that it can be killed like one.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sqlx::PgPool;
use tailrace_cdc_relay::{Config, Relay};
use tailrace_outbox::DEFAULT_SLOT;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::Failure;

/// A running relay. Dropped, it is killed.
pub(crate) struct RelayProcess {
    child: Child,
    pid: Pid,
}

/// What the example is when it has started itself again: the sidecar, and nothing else.
pub(crate) async fn be_the_relay(url: String, brokers: String) -> Result<bool, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        terminate.recv().await;
    };
    Relay::new(Config::new(url, brokers)).run(stop).await?;
    Ok(true)
}

impl RelayProcess {
    /// Starts this program again, as the relay.
    pub(crate) fn start(database_url: &str, brokers: &str) -> Result<Self, Failure> {
        let child = Command::new(std::env::current_exe()?)
            .arg("relay")
            .env("DATABASE_URL", database_url)
            .env("KAFKA_BROKERS", brokers)
            .stdin(Stdio::null())
            // Ctrl-C is for the example alone, which then ends its relay itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(RelayProcess { child, pid: pid.ok_or("the relay ended at once")? })
    }

    /// Freezes the process: nothing more leaves it.
    pub(crate) fn freeze(&self) -> Result<(), Failure> {
        Ok(kill_process(self.pid, Signal::STOP)?)
    }

    /// Lets a frozen process go on.
    pub(crate) fn thaw(&self) -> Result<(), Failure> {
        Ok(kill_process(self.pid, Signal::CONT)?)
    }

    /// SIGKILL; returns when the process is gone.
    pub(crate) async fn kill(&mut self) -> Result<(), Failure> {
        Ok(self.child.kill().await?)
    }

    /// SIGTERM; the relay finishes what it has begun.
    pub(crate) async fn stop(&mut self) -> Result<(), Failure> {
        kill_process(self.pid, Signal::TERM)?;
        let ended = self.child.wait().await?;
        if ended.success() { Ok(()) } else { Err(format!("the relay ended with {ended}").into()) }
    }
}

/// Waits until a service may write: until the relay's slot exists.
pub(crate) async fn ready(pool: &PgPool) -> Result<(), Failure> {
    // A slot that is not there yet is the only fault that passes by itself.
    while let Err(error) = tailrace_outbox::check(pool, DEFAULT_SLOT).await {
        if !error.is_setup() {
            return Err(error.into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
