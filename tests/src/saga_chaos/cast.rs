//! The processes of the shop: each dies and stops, and is replaced.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::process::Process;
use crate::proof::Report;
use crate::saga_shop::{SERVICES, Service};
use crate::saga_site::SagaSite;

/// A process has begun by then.
const BEGIN_MAX: Duration = Duration::from_secs(90);
/// A process that is asked to stop has ended by then.
const END_MAX: Duration = Duration::from_secs(120);
/// Longer than the session of a consumer, so that it is given up.
const STOPPED_FOR: Duration = Duration::from_secs(8);
/// Lines of a process that are shown when it ended as it should not.
const LINES_SHOWN: usize = 30;
const ENDED_BY_KILL: i32 = 9;

/// What a process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Engine,
    Service(Service),
    Relay(usize),
}

pub(super) struct Cast<'s> {
    site: &'s SagaSite,
    engine_arguments: Vec<String>,
    service_arguments: Vec<String>,
    running: Vec<(Role, Process)>,
    stopped: Vec<(Instant, Role, Process)>,
    /// Those that woke up beside the one that took over.
    leaving: Vec<Process>,
    killed: Vec<Process>,
    woken: usize,
    pub(super) brokers_killed: usize,
    pub(super) servers_killed: usize,
}

impl<'s> Cast<'s> {
    pub(super) async fn start(
        site: &'s SagaSite,
        slow_every: u64,
        slow_for: Duration,
        time_out: Duration,
    ) -> Self {
        let give = |pairs: &[(&str, u128)]| {
            pairs.iter().flat_map(|(name, value)| [(*name).to_owned(), value.to_string()]).collect()
        };
        let mut cast = Cast {
            site,
            engine_arguments: give(&[("--time-out-ms", time_out.as_millis())]),
            service_arguments: give(&[
                ("--slow-every", u128::from(slow_every)),
                ("--slow-for-ms", slow_for.as_millis()),
            ]),
            running: Vec::new(),
            stopped: Vec::new(),
            leaving: Vec::new(),
            killed: Vec::new(),
            woken: 0,
            brokers_killed: 0,
            servers_killed: 0,
        };
        for (at, mut relay) in site.relays().into_iter().enumerate() {
            relay.says("leading", BEGIN_MAX).await;
            cast.running.push((Role::Relay(at), relay));
        }
        // Two engines share the sagas from the beginning.
        let roles = [Role::Engine, Role::Engine].into_iter().chain(SERVICES.map(Role::Service));
        for role in roles {
            cast.join(role).await;
        }
        cast
    }

    async fn join(&mut self, role: Role) {
        let texts = |list: &'_ [String]| list.to_vec();
        let process = match role {
            Role::Engine => {
                let arguments = texts(&self.engine_arguments);
                let more: Vec<&str> = arguments.iter().map(String::as_str).collect();
                let mut engine = self.site.engine(&more);
                engine.says("an engine begins", BEGIN_MAX).await;
                engine
            }
            Role::Service(service) => {
                let arguments = texts(&self.service_arguments);
                let more: Vec<&str> = arguments.iter().map(String::as_str).collect();
                let mut participant = self.site.participant(service, &more);
                participant.says("a participant begins", BEGIN_MAX).await;
                participant
            }
            Role::Relay(at) => self.site.relay(at),
        };
        self.running.push((role, process));
    }

    fn take(&mut self, role: Role) -> Option<Process> {
        let at = self.running.iter().position(|(of, _)| *of == role)?;
        Some(self.running.remove(at).1)
    }

    /// SIGKILL, and another one in its place.
    pub(super) async fn kill(&mut self, role: Role) {
        let Some(process) = self.take(role) else { return };
        process.signal(Signal::KILL);
        self.killed.push(process);
        self.join(role).await;
    }

    /// SIGSTOP, and another one that takes over.
    pub(super) async fn stop(&mut self, role: Role) {
        let Some(process) = self.take(role) else { return };
        process.signal(Signal::STOP);
        self.stopped.push((Instant::now(), role, process));
        self.join(role).await;
    }

    /// Lets those go on that were stopped for long enough, and asks them to leave.
    pub(super) fn wake(&mut self) {
        for (since, role, process) in std::mem::take(&mut self.stopped) {
            if since.elapsed() < STOPPED_FOR {
                self.stopped.push((since, role, process));
                continue;
            }
            process.signal(Signal::CONT);
            self.woken += 1;
            // What it was doing goes on before it hears that it is to end.
            process.signal(Signal::TERM);
            self.leaving.push(process);
        }
    }

    pub(super) fn are_awake(&self) -> bool {
        self.stopped.is_empty()
    }

    /// Ends all of them, and says what they did.
    pub(super) async fn end(mut self, report: &mut Report) {
        for (_, process) in &self.running {
            process.signal(Signal::TERM);
        }
        report.figure("processes killed", self.killed.len());
        report.figure("processes stopped and woken", self.woken);
        report.figure("Kafka killed", self.brokers_killed);
        report.figure("Postgres killed", self.servers_killed);
        let mut said = Vec::new();
        let running = std::mem::take(&mut self.running).into_iter().map(|(_, process)| process);
        for mut process in self.leaving.into_iter().chain(running) {
            let status = process.ends(END_MAX).await;
            if !status.success() {
                report.faults.push(format!("a process ended with {status}:\n{}", tail(&process)));
            }
            said.push(process.log());
        }
        for mut process in self.killed {
            let status = process.ends(END_MAX).await;
            if status.signal() != Some(ENDED_BY_KILL) {
                report.faults.push(format!("a process ended with {status}:\n{}", tail(&process)));
            }
            said.push(process.log());
        }
        let counted = |name: &str| said.iter().map(|log| last(log, name)).sum::<u64>();
        report.figure("transitions", counted("transitions: "));
        report.figure("stale answers and timers", counted("stale: "));
        report.figure("answers heard before", counted("duplicates: "));
        report.figure("timers taken", counted("timers: "));
        report.figure("inputs that failed", counted(" failed: "));
    }
}

/// The last number that a process has said under this name.
fn last(log: &str, name: &str) -> u64 {
    let Some((_, rest)) = log.rsplit_once(name) else { return 0 };
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

fn tail(process: &Process) -> String {
    let log = process.log();
    let lines: Vec<&str> = log.lines().filter(|line| !line.contains("counted report")).collect();
    lines.get(lines.len().saturating_sub(LINES_SHOWN)..).unwrap_or_default().join("\n")
}
