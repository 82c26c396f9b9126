//! The relay as a process of its own, so that it can be killed like one.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sqlx::PgPool;
use tailrace_cdc_relay::{Config, Relay};
use tailrace_outbox::DEFAULT_SLOT;
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::Failure;

/// A running relay. Dropped, it is killed.
pub(crate) struct RelayProcess {
    child: Child,
    pid: Pid,
    /// Open as long as the relay shall live.
    _alive: Option<ChildStdin>,
}

/// What the example is when it has started itself again: the sidecar, and nothing else.
///
/// It ends when its standard input does, so that it never outlives the example.
pub(crate) async fn be_the_relay(url: String, brokers: String) -> Result<bool, Failure> {
    std::thread::spawn(|| {
        // Whether it ends or breaks, the example is gone.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(1);
    });
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        terminate.recv().await;
    };
    // Transactions that stay open long enough to be met: records leave at once, the commit waits.
    let config = Config::new(url, brokers)
        .linger(Duration::from_millis(20))
        .kafka_property("linger.ms", "0");
    Relay::new(config).run(stop).await?;
    Ok(true)
}

impl RelayProcess {
    /// Starts this program again, as the relay.
    pub(crate) fn start(database_url: &str, brokers: &str) -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("relay")
            .env("DATABASE_URL", database_url)
            .env("KAFKA_BROKERS", brokers)
            .stdin(Stdio::piped())
            // Ctrl-C is for the example alone, which then ends its relay itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let _alive = child.stdin.take();
        Ok(RelayProcess { child, pid: pid.ok_or("the relay ended at once")?, _alive })
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
