//! Runs proofs in full: `cargo run --release -p tests --bin prove -- NAME`.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use tailrace_stack::{Needs, Stack};
use tests::node;
use tests::process::Node;
use tests::proof::Bench;
use tests::{PROOFS, Proof, Scale};
use tokio::time::interval;

const TELL_EVERY: Duration = Duration::from_secs(15);

// As the sidecar has it: what is run here is its processes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Shows on real servers that what the product promises holds.
#[derive(Parser)]
struct Cli {
    /// The proof to run, or `all`
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// Show every proof and what it claims
    #[arg(long)]
    list: bool,
    /// As small as in the tests
    #[arg(long)]
    small: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|first| first == Node::SWITCH) {
        return node::play(std::iter::once("node".into()).chain(arguments)).await;
    }
    let cli = Cli::parse();
    if cli.list {
        for proof in PROOFS {
            say(&format!("{:<18} {}", proof.name, proof.claim));
        }
        return ExitCode::SUCCESS;
    }
    let name = cli.name.unwrap_or_default();
    let chosen: Vec<&Proof> =
        PROOFS.iter().filter(|proof| name == "all" || name == proof.name).collect();
    if chosen.is_empty() {
        say(&format!("error: there is no proof {name:?}\n  mend: --list shows them all"));
        return ExitCode::from(2);
    }
    let node = Node::this_program();
    let stack = match Stack::start(Needs::BOTH).await {
        Ok(stack) => stack,
        Err(error) => {
            say(&format!("error: {error:?}"));
            return ExitCode::from(2);
        }
    };
    let scale = if cli.small { Scale::Small } else { Scale::Full };
    let mut holds = true;
    for proof in chosen {
        let bench = Bench { stack: &stack, node: node.clone(), scale, bar: bar(proof.name) };
        let bar = bench.bar.clone();
        let telling = tokio::spawn(tell(proof.name, bar.clone()));
        let report = (proof.body)(bench).await;
        telling.abort();
        bar.finish_and_clear();
        say(&format!("{}: {}", proof.name, proof.claim));
        for (name, value) in &report.figures {
            say(&format!("  {name:<30} {value:>12}"));
        }
        for fault in &report.faults {
            say(&format!("  fault: {fault}"));
        }
        say(if report.passes() { "PASS" } else { "FAIL" });
        holds &= report.passes();
    }
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn bar(name: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {elapsed}")
        .expect("the template is valid");
    let bar = ProgressBar::new(0).with_style(style).with_prefix(name);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Where nobody sees the bar its numbers are said now and then.
async fn tell(name: &'static str, bar: ProgressBar) {
    if std::io::stderr().is_terminal() {
        return;
    }
    let mut tick = interval(TELL_EVERY);
    tick.tick().await;
    loop {
        tick.tick().await;
        let (done, all) = (bar.position(), bar.length().unwrap_or_default());
        say(&format!("{name}: {done} of {all} after {} s", bar.elapsed().as_secs()));
    }
}

#[expect(clippy::print_stdout, reason = "what it finds is for the person who asked")]
fn say(line: &str) {
    println!("{line}");
}
