//! A process of the shop: this program once more, started again whenever it dies.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::Failure;

/// Said by the environment to those that end when their standard input does.
pub(crate) const CHILD: &str = "SHOP_CHILD";

/// Between the end of a process and its next start.
const AGAIN_AFTER: Duration = Duration::from_millis(300);
/// What does not end by then is killed.
const END_MAX: Duration = Duration::from_secs(12);

/// A running process. Dropped, it is killed.
pub(crate) struct Child {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
}

#[derive(Default)]
struct Shared {
    pid: AtomicU32,
    restarts: AtomicU64,
}

impl Child {
    pub(super) fn start(
        name: &'static str,
        arguments: &[&str],
        environment: &[(&str, String)],
        log_format: &str,
    ) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (*name, value)))
            .env("LOG_FORMAT", log_format)
            .env("OTEL_SERVICE_NAME", name)
            .env(CHILD, name)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Ctrl-C is for whoever started everything, who then ends the others.
            .process_group(0)
            .kill_on_drop(true);
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "off");
        }
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = watch::channel(false);
        let (ending, ended) = watch::channel(false);
        tokio::spawn(keep(command, name, Arc::clone(&shared), stopped, ending));
        Ok(Child { shared, stop, ended })
    }

    pub(super) fn pid(&self) -> u32 {
        self.shared.pid.load(Ordering::Relaxed)
    }

    /// How often it was started again.
    pub(super) fn restarts(&self) -> u64 {
        self.shared.restarts.load(Ordering::Relaxed)
    }

    /// SIGKILL.
    pub(super) fn kill(&self) -> Result<(), Failure> {
        signal(self.pid(), Signal::KILL)
    }

    /// SIGTERM, and no other start.
    pub(super) fn ask_to_stop(&self) {
        self.stop.send_replace(true);
    }

    pub(super) async fn ended(&self) {
        // Who is gone has ended.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}

fn signal(pid: u32, signal: Signal) -> Result<(), Failure> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("the process has not begun")?;
    Ok(kill_process(pid, signal)?)
}

async fn keep(
    mut command: Command,
    name: &'static str,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
    ended: watch::Sender<bool>,
) {
    while !*stop.borrow() {
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                tracing::error!(%error, name, "a process cannot be started");
                sleep(AGAIN_AFTER).await;
                continue;
            }
        };
        // Waiting would close it, and the process would end.
        let _alive = child.stdin.take();
        shared.pid.store(child.id().unwrap_or_default(), Ordering::Relaxed);
        let died = tokio::select! {
            status = child.wait() => Some(status),
            // The sender lives as long as the shop.
            () = async { drop(stop.wait_for(|stop| *stop).await) } => None,
        };
        if let Some(status) = died {
            tracing::info!(name, ?status, "a process has ended");
            shared.restarts.fetch_add(1, Ordering::Relaxed);
            sleep(AGAIN_AFTER).await;
        } else if signal(shared.pid.load(Ordering::Relaxed), Signal::TERM).is_err()
            || timeout(END_MAX, child.wait()).await.is_err()
        {
            // It may have ended by itself just now.
            let _ = child.kill().await;
        }
    }
    ended.send_replace(true);
}
