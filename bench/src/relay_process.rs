//! A relay as a process of its own, so that its time and memory can be told from ours.

use std::error::Error;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

type Failure = Box<dyn Error + Send + Sync>;

/// The subcommand that makes this program the sidecar.
pub(crate) const SIDECAR: &str = "cdc-relay";

/// A relay that does not lead, or end, within this has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a relay delivers, by the name that it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    ExactlyOnce,
    AtLeastOnce,
}

impl Mode {
    pub(crate) const ALL: [Mode; 2] = [Mode::ExactlyOnce, Mode::AtLeastOnce];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::ExactlyOnce => "exactly-once",
            Mode::AtLeastOnce => "at-least-once",
        }
    }
}

/// Which relay, on which servers.
#[derive(Clone, Debug)]
pub(crate) struct RelayArguments {
    pub(crate) database_url: String,
    pub(crate) brokers: String,
    /// The slot, and the relay's id as well.
    pub(crate) slot: String,
    pub(crate) mode: Mode,
    /// How long records wait for others; none as it is by default.
    pub(crate) gather: Option<Duration>,
}

/// A running relay. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct RelayProcess {
    child: Child,
    pid: Pid,
    log: watch::Receiver<String>,
}

impl RelayProcess {
    /// Starts this program again as the sidecar.
    pub(crate) fn start(arguments: &RelayArguments) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args([SIDECAR, "run", "--database-url", &arguments.database_url])
            .args(["--kafka-brokers", &arguments.brokers])
            .args(["--slot", &arguments.slot, "--relay-id", &arguments.slot])
            // Two run at a time, and nobody looks.
            .args(["--http", "off"])
            .args(["--delivery", arguments.mode.name()])
            // It says at this level when it leads.
            .env("RUST_LOG", "info");
        if let Some(gather) = arguments.gather {
            let gather = gather.as_millis();
            match arguments.mode {
                Mode::ExactlyOnce => command.args(["--linger", &format!("{gather}ms")]),
                Mode::AtLeastOnce => command.args(["-X", &format!("linger.ms={gather}")]),
            };
        }
        RelayProcess::spawn(command)
    }

    /// Starts a program that is a relay, or is measured as one.
    pub(crate) fn spawn(mut command: Command) -> Result<Self, Failure> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let pid = pid.ok_or("a new process has no id")?;
        let stderr = child.stderr.take().ok_or("standard error is not piped")?;
        let (append, log) = watch::channel(String::new());
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                append.send_modify(|log| {
                    log.push_str(&line);
                    log.push('\n');
                });
            }
        });
        Ok(RelayProcess { child, pid, log })
    }

    /// Waits until it has written this text.
    pub(crate) async fn says(&mut self, text: &str) -> Result<(), Failure> {
        let said = self.log.wait_for(|log| log.contains(text));
        if matches!(timeout(PATIENCE, said).await, Ok(Ok(_))) {
            return Ok(());
        }
        Err(self.failure(&format!("did not say {text:?} in {PATIENCE:?}")))
    }

    /// Has it finish in order.
    pub(crate) async fn stop(mut self) -> Result<(), Failure> {
        self.signal(Signal::TERM)?;
        match timeout(PATIENCE, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            _ => Err(self.failure("did not stop as asked")),
        }
    }

    /// Has it finish in order, whatever it says of that.
    pub(crate) async fn end(mut self) -> Result<(), Failure> {
        self.signal(Signal::TERM)?;
        // What does not end by then is killed.
        timeout(PATIENCE, self.child.wait()).await.ok();
        Ok(())
    }

    /// What it waits for, unless the relay ends first.
    pub(crate) async fn during<T>(
        &mut self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            done = work => done.map_err(|error| self.failure(&format!("failed us: {error}"))),
            _ = self.child.wait() => Err(self.failure("ended by itself")),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<(), Failure> {
        Ok(kill_process(self.pid, signal)?)
    }

    /// What it has used since it began.
    pub(crate) fn usage(&self) -> Result<Usage, Failure> {
        Usage::of(&self.pid.as_raw_nonzero().to_string())
    }

    /// An error with all that it has written.
    pub(crate) fn failure(&self, what: &str) -> Failure {
        format!("the relay {what}:\n{}", self.log.borrow().as_str()).into()
    }
}

/// What a process has used since it began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// In user and in system mode, of all its threads.
    pub(crate) cpu: Duration,
    /// The most it ever held.
    pub(crate) resident_bytes_max: u64,
}

impl Usage {
    /// Of this program.
    pub(crate) fn own() -> Result<Self, Failure> {
        Usage::of("self")
    }

    /// Reads `/proc`; fields by `proc(5)`.
    fn of(pid: &str) -> Result<Self, Failure> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in brackets may hold anything; after it comes field 3.
        let (_, fields) = stat.rsplit_once(") ").ok_or("/proc has no line for the process")?;
        let mut times = fields.split(' ').skip(11).take(2);
        let mut ticks = || -> Result<u64, Failure> {
            Ok(times.next().ok_or("/proc gives no times of the process")?.parse()?)
        };
        let ticks = ticks()? + ticks()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .ok_or("/proc gives no memory of the process")?;
        Ok(Usage {
            cpu: Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64),
            resident_bytes_max: peak.parse::<u64>()? * 1024,
        })
    }
}
