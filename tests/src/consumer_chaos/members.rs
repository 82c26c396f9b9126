//! The consumers of the group: processes that come, leave, die, and stop for a while.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::time::{interval, timeout};

use super::ground::Ground;
use crate::process::{Node, Process};
use crate::proof::Report;
use crate::writers::Dice;

/// A process has begun, or has a partition, by then.
const BEGIN_MAX: Duration = Duration::from_secs(90);
/// A process that is asked to stop has ended by then.
const END_MAX: Duration = Duration::from_secs(120);

/// The shortest time that brokers allow by default after which a member of the classic protocol is taken for dead. Until
/// then its partitions are nobody's; with that protocol, whoever comes or goes waits as long.
const SESSION: Duration = Duration::from_secs(6);
/// How long former owners may hold up the next ones: less than the session, so that the server ends a stopped one
/// before anybody takes over, and more, so that the next owner has to.
const REBALANCE_DEADLINES_MS: [&str; 2] = ["2000", "8000"];
/// Longer than either, and than the session.
const STOPPED_FOR: Duration = Duration::from_secs(9);

const LANES: [&str; 2] = ["1", "4"];
/// A group may have members of both, as while a service is rolled out.
const PROTOCOLS: [&str; 2] = [CLASSIC, "that of kip-848"];
const CLASSIC: &str = "classic";
const FAIL_EVERY: &str = "307";
const PARKED_WAIT_MS: &str = "100";
const ATTEMPTS_MAX: &str = "2";
/// So that there is work in hand at every fault.
const TAKE_MS: &str = "1";

const FIRST: usize = 3;
/// What a process says before the number of partitions that it is given.
const ASSIGNED: &str = "assigned partitions=";
const LOOK_EVERY: Duration = Duration::from_millis(50);
const FEWEST: usize = 2;
const MOST: usize = 4;
/// Lines of a process that are shown when it ended as it should not.
const LINES_SHOWN: usize = 30;

const ENDED_BY_KILL: i32 = 9;

pub(super) struct Members {
    node: Node,
    arguments: Vec<String>,
    dice: Dice,
    running: Vec<Process>,
    /// With the time since which they are stopped.
    stopped: Vec<(Instant, Process)>,
    leaving: Vec<Process>,
    killed: Vec<Process>,
    started: usize,
    classic: usize,
    changed_at: Instant,
    unchanged_longest: Duration,
    woken: usize,
}

impl Members {
    pub(super) async fn start(node: &Node, ground: &Ground<'_>, dice: Dice) -> Self {
        ground.set_session(SESSION).await;
        let arguments = [
            ("--database-url", ground.database.url()),
            ("--kafka-brokers", &ground.brokers),
            ("--group", &ground.topic),
            ("--topic", &ground.topic),
            ("--batch-records", "100"),
            ("--fail-every", FAIL_EVERY),
            ("--parked-wait-ms", PARKED_WAIT_MS),
            ("--attempts-max", ATTEMPTS_MAX),
            ("--take-ms", TAKE_MS),
        ];
        let arguments = arguments.iter().flat_map(|&(name, value)| [name, value]);
        let mut members = Members {
            node: node.clone(),
            arguments: ["consumer", "--tell"]
                .into_iter()
                .chain(arguments)
                .map(str::to_owned)
                .collect(),
            dice,
            running: Vec::new(),
            stopped: Vec::new(),
            leaving: Vec::new(),
            killed: Vec::new(),
            started: 0,
            classic: 0,
            changed_at: Instant::now(),
            unchanged_longest: Duration::ZERO,
            woken: 0,
        };
        for _ in 0..FIRST {
            members.join().await;
        }
        let shared = timeout(BEGIN_MAX, members.all_have_a_share()).await;
        shared.expect("the first consumers share the partitions");
        (members.changed_at, members.unchanged_longest) = (Instant::now(), Duration::ZERO);
        members
    }

    async fn join(&mut self) {
        let lanes = self.one_of(LANES);
        let deadline = self.one_of(REBALANCE_DEADLINES_MS);
        let mut own =
            ["--lanes", lanes, "--rebalance-deadline-ms", deadline].map(str::to_owned).to_vec();
        // Only members of the classic protocol say by themselves how long their session is.
        if self.one_of(PROTOCOLS) == CLASSIC {
            own.extend(["--session-ms".to_owned(), SESSION.as_millis().to_string()]);
            self.classic += 1;
        }
        let mut member = Process::start(&self.node, self.arguments.iter().chain(&own));
        member.says("a consumer begins", BEGIN_MAX).await;
        self.running.push(member);
        self.started += 1;
        self.changed();
    }

    async fn all_have_a_share(&self) {
        let mut look = interval(LOOK_EVERY);
        while !self.running.iter().all(has_a_share) {
            look.tick().await;
        }
    }

    fn one_of(&mut self, choices: [&'static str; 2]) -> &'static str {
        let [first, second] = choices;
        if self.dice.below(2) == 0 { first } else { second }
    }

    fn changed(&mut self) {
        self.unchanged_longest = self.unchanged_longest.max(self.changed_at.elapsed());
        self.changed_at = Instant::now();
    }

    /// A rebalance: somebody comes, or is asked to leave.
    pub(super) async fn rebalance(&mut self) {
        let joins = match self.running.len() {
            ..=FEWEST => true,
            MOST.. => false,
            _ => self.dice.below(2) == 0,
        };
        if joins {
            self.join().await;
        } else {
            // The others have a part in more of what happens.
            let member = self.running.remove(0);
            member.signal(Signal::TERM);
            self.leaving.push(member);
            self.changed();
        }
    }

    pub(super) fn kill(&mut self) {
        let at = usize::try_from(self.dice.below(self.running.len() as u64)).unwrap_or_default();
        let member = self.running.swap_remove(at);
        member.signal(Signal::KILL);
        self.killed.push(member);
    }

    /// Stops the oldest, which has partitions and most of the time a transaction.
    pub(super) fn stop(&mut self) {
        let member = self.running.remove(0);
        member.signal(Signal::STOP);
        self.stopped.push((Instant::now(), member));
    }

    /// Lets those go on that were stopped for long enough.
    pub(super) fn wake(&mut self) {
        for (since, member) in std::mem::take(&mut self.stopped) {
            if since.elapsed() < STOPPED_FOR {
                self.stopped.push((since, member));
                continue;
            }
            member.signal(Signal::CONT);
            self.woken += 1;
            self.running.push(member);
        }
    }

    pub(super) fn are_awake(&self) -> bool {
        self.stopped.is_empty()
    }

    /// Ends all of them, and says what they did.
    pub(super) async fn end(mut self, report: &mut Report) {
        self.wake();
        for member in &self.running {
            member.signal(Signal::TERM);
        }
        report.figure("consumers started", self.started);
        report.figure("of the classic group protocol", self.classic);
        report.figure("asked to stop", self.leaving.len());
        report.figure("killed", self.killed.len());
        report.figure("stopped and woken", self.woken);
        let mut said = Vec::new();
        for mut member in self.leaving.into_iter().chain(self.running) {
            let status = member.ends(END_MAX).await;
            if !status.success() {
                report.faults.push(format!("a consumer ended with {status}:\n{}", tail(&member)));
            }
            said.push(member.log());
        }
        for mut member in self.killed {
            let status = member.ends(END_MAX).await;
            if status.signal() != Some(ENDED_BY_KILL) {
                report.faults.push(format!("a consumer ended with {status}:\n{}", tail(&member)));
            }
            said.push(member.log());
        }
        let times = |text: &str| said.iter().map(|log| log.matches(text).count()).sum::<usize>();
        let counted = |name: &str| said.iter().map(|log| last(log, name)).sum::<u64>();
        report.figure("longest time without a rebalance", seconds(self.unchanged_longest));
        report.figure("assignments", times(ASSIGNED));
        report.figure("assignments lost", times("lost=true"));
        report.figure("former owners whose session was ended", times("was ended"));
        report.figure("records delivered", counted("delivered: "));
        report.figure("duplicates suppressed", counted("duplicates: "));
        report.figure("fenced", counted("fenced: "));
        report.figure("parked", counted("parked: "));
        report.figure("replayed", counted("replayed: "));
        report.figure("failed attempts", counted("failed_attempts: "));
        report.figure("batches repeated", counted("retried_batches: "));
    }
}

pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Whether a process has had a partition; some are told first that they have none yet.
fn has_a_share(member: &Process) -> bool {
    let log = member.log();
    log.split(ASSIGNED).skip(1).any(|rest| !rest.starts_with('0'))
}

/// The last number that a process has said under this name.
fn last(log: &str, name: &str) -> u64 {
    let Some((_, rest)) = log.rsplit_once(name) else { return 0 };
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

fn tail(member: &Process) -> String {
    let log = member.log();
    let told = log.lines().filter(|line| !line.contains("counted report"));
    let lines: Vec<&str> = told.collect();
    lines.get(lines.len().saturating_sub(LINES_SHOWN)..).unwrap_or_default().join("\n")
}
