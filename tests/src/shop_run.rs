//! The shop without its page, under every trouble, and with planted bugs that its books have to find.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::proof::{Bench, Report, Scale};
use crate::shop::Shop;
use crate::shop_outage::{Outcome, kafka_is_away};

/// How long Kafka is away in full.
const AWAY: Duration = Duration::from_secs(60);

/// Of the machinery, those that need no pause of a server.
const TROUBLES: &str =
    "card-declined,out-of-stock,carrier-refuses,duplicates,relay-crash,payments-crash,poison";
/// Each in a program that was built with the feature `bugs`.
const BUGS: [&str; 3] = ["dedupe-off", "barrier-off", "relay-by-message-lsn"];

/// A build from nothing, of everything.
const BUILD_MAX: Duration = Duration::from_secs(1800);
/// A run comes to its end by then, whatever happens in it: its own deadlines are shorter.
const END_MAX: Duration = Duration::from_secs(1200);
/// A shop that is asked to close has closed by then.
const CLOSED_MAX: Duration = Duration::from_secs(30);

/// A run of the program.
struct Run<'a> {
    orders: u32,
    troubles: &'a str,
    bug: Option<&'static str>,
}

/// What is to be true of a run.
struct Expected {
    books: &'static str,
    /// The control lane's, where it is known what they are.
    control: Option<&'static str>,
}

/// One run that has to be green; in full also a minute without Kafka, and one run for each bug, which have to be red.
pub async fn prove(bench: Bench<'_>) -> Report {
    let mut report = Report::default();
    let beside = bench.node.beside("shop");
    if bench.scale == Scale::Small {
        let run = Run { orders: 40, troubles: TROUBLES, bug: None };
        check(&mut report, &beside, run, Expected { books: "GREEN", control: None }).await;
        return report;
    }
    bench.bar.set_length(3 + 2 * (BUGS.len() as u64 + 1));
    let (right, wrong) = (beside.with_file_name("shop-right"), beside.with_file_name("shop-wrong"));
    for (program, features) in [(&right, None), (&wrong, Some("bugs"))] {
        build(&beside, features, program).await;
        bench.bar.inc(1);
    }
    let mut shop = Shop::open(&right, &[]).await;
    let Outcome { placed, ended_after } = kafka_is_away(&shop, AWAY, async { 0 }).await;
    report.figure("Kafka was away for", format!("{AWAY:?}, with {placed} orders"));
    report.figure("all of them had ended after", format!("{:.1} s", ended_after.as_secs_f64()));
    shop.closes(CLOSED_MAX).await;
    bench.bar.inc(1);
    let run = Run { orders: 2_000, troubles: "all", bug: None };
    check(&mut report, &right, run, Expected { books: "GREEN", control: Some("RED") }).await;
    bench.bar.inc(2);
    for bug in BUGS {
        let run = Run { orders: 300, troubles: "all", bug: Some(bug) };
        check(&mut report, &wrong, run, Expected { books: "RED", control: None }).await;
        bench.bar.inc(2);
    }
    report
}

/// Builds the program as this one was built, and keeps a copy of it: the next build takes its name.
async fn build(program: &Path, features: Option<&str>, copy: &Path) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = program.parent().and_then(Path::parent).expect("programs are in a target folder");
    let mut command = Command::new(cargo);
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "-p", "shop", "--target-dir"])
        .arg(target);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    if let Some(features) = features {
        command.args(["--features", features]);
    }
    let output = output(command, BUILD_MAX).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the shop does not build:\n{said}");
    std::fs::copy(program, copy).expect("the program can be copied");
}

async fn output(mut command: Command, limit: Duration) -> Output {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ended = timeout(limit, command.output()).await;
    ended.expect("it ends in time").expect("it starts")
}

impl Run<'_> {
    fn name(&self) -> &'static str {
        self.bug.unwrap_or("as it is")
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        let orders = self.orders.to_string();
        command.args([
            "--headless",
            "--seed",
            "7",
            "--orders",
            &orders,
            "--trouble",
            self.troubles,
        ]);
        command.args(self.bug.map(|bug| format!("--inject-bug={bug}")));
        command
    }
}

/// Runs it, and notes what is otherwise than it should be.
async fn check(report: &mut Report, program: &Path, run: Run<'_>, expected: Expected) {
    assert!(
        program.is_file(),
        "{} is missing: `cargo test --workspace` builds it, and so does `cargo build -p shop`",
        program.display()
    );
    let output = output(run.command(program), END_MAX).await;
    let said = String::from_utf8_lossy(&output.stdout);
    let is_green = expected.books == "GREEN";
    let mut faults = Vec::new();
    if output.status.success() != is_green {
        faults.push(format!("it ends with {}", output.status));
    }
    for (what, expected) in
        [("the books ", Some(expected.books)), ("control lane ", expected.control)]
    {
        let line = said.lines().find(|line| line.starts_with(what)).unwrap_or("nothing");
        if expected.is_some_and(|expected| !line.contains(expected)) {
            faults.push(format!("it says {line:?}"));
        }
    }
    let all = format!("{0} of {0}", run.orders);
    if is_green && !said.contains(&all) {
        faults.push(format!("it does not say {all}"));
    }
    for line in said
        .lines()
        .filter(|line| line.starts_with("orders ended") || line.starts_with("the books "))
    {
        report.figure(run.name(), line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    if !faults.is_empty() {
        let complained = String::from_utf8_lossy(&output.stderr);
        let name = run.name();
        report.faults.push(format!("{name}: {}\n{said}\n{complained}", faults.join("; ")));
    }
}
