//! A relay that is killed at any point loses nothing, doubles nothing and keeps the order.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use sqlx::Executor;
use tailrace_cdc_relay::Milestone;

use crate::crash_point::CrashPoint;
use crate::proof::{Bench, Report, Scale};
use crate::site::{Site, Variant};
use crate::verdict::Verdict;
use crate::writers::{Dice, Written};

/// A relay that is to die has reached its point by then, whatever it has to recover first.
const DEATH_MAX: Duration = Duration::from_secs(60);
/// The last relay has published the rest by then.
const REST_MAX: Duration = Duration::from_secs(120);

/// Far below the default, so that ordinary big transactions are split.
const SPLIT_BYTES: usize = 12_000;

/// The longest time that a commit goes on before the relay dies inside it.
const INSIDE_COMMIT_MICROS_MAX: u64 = 4_000;

const WRITERS: usize = 4;

/// How much of it is done.
struct Measure {
    /// Deaths at each milestone.
    deaths: usize,
    /// Deaths inside a commit.
    inside_commit: usize,
    /// Source transactions that are committed in the life of one relay.
    transactions: usize,
}

impl Measure {
    fn of(scale: Scale) -> Self {
        match scale {
            Scale::Small => Measure { deaths: 2, inside_commit: 4, transactions: 16 },
            Scale::Full => Measure { deaths: 40, inside_commit: 100, transactions: 200 },
        }
    }
}

/// The body of the proof `relay-crash`.
///
/// # Panics
///
/// When a relay does not die where it is told, or a server fails.
pub async fn prove(bench: Bench<'_>) -> Report {
    let measure = Measure::of(bench.scale);
    let mut dice = Dice::new("relay-crash");
    let site = Site::new(bench.stack, "relay_crash", 3, &bench.node).await;
    site.prepare_writers().await;
    // Rows that the relay does not publish still take part in the order of changes.
    site.pool.execute("create publication tailrace for table noise").await.expect("it is made");
    let crashes = crashes(&measure, &mut dice);
    bench.bar.set_length(crashes.len() as u64 + 2);
    let started = Instant::now();

    for milestone in [Milestone::Intended, Milestone::SlotCreated] {
        live_and_die(&site, Variant { die_at: Some(CrashPoint::at(milestone, 1)), ..variant() })
            .await;
        bench.bar.inc(1);
    }
    let mut written = Written::default();
    for crash in &crashes {
        let death = live_and_die(&site, *crash);
        let write = site.write(measure.transactions, WRITERS, &mut dice);
        let ((), part) = tokio::join!(death, write);
        written.add(part);
        bench.bar.inc(1);
    }
    let rest = site.write(measure.transactions, WRITERS, &mut dice).await;
    written.add(rest);
    let verdict = finish(&site, &written).await;

    report(&crashes, &written, verdict, started.elapsed())
}

/// The deaths after the slot exists, in an order of their own.
fn crashes(measure: &Measure, dice: &mut Dice) -> Vec<Variant> {
    let mut crashes = Vec::new();
    // Each life has at least so many of everything that is counted.
    let most = measure.transactions as u64 / 2;
    let mut occurrence = || 1 + u32::try_from(dice.below(most)).expect("a small number");
    for _ in 0..measure.deaths {
        for milestone in [Milestone::Decoded, Milestone::Produced] {
            let die_at = Some(CrashPoint::at(milestone, occurrence()));
            crashes.push(Variant { die_at, ..variant() });
        }
        for milestone in [Milestone::Committing, Milestone::Committed, Milestone::Flushed] {
            // In batches of one each source transaction has a commit of its own.
            let die_at = Some(CrashPoint::at(milestone, occurrence()));
            crashes.push(Variant { die_at, batch_records: Some(1), ..variant() });
        }
    }
    let inside: Vec<u32> = (0..measure.inside_commit).map(|_| occurrence()).collect();
    for occurrence in inside {
        let after = Duration::from_micros(dice.below(INSIDE_COMMIT_MICROS_MAX));
        let die_at = Some(CrashPoint::at(Milestone::Committing, occurrence).after(after));
        crashes.push(Variant { die_at, batch_records: Some(1), ..variant() });
    }
    for at in (1..crashes.len()).rev() {
        let other = usize::try_from(dice.below(at as u64 + 1)).expect("a small number");
        crashes.swap(at, other);
    }
    crashes
}

fn variant() -> Variant {
    Variant { split_bytes: Some(SPLIT_BYTES), ..Variant::default() }
}

async fn live_and_die(site: &Site, variant: Variant) {
    let mut relay = site.relay(variant);
    let status = relay.ends(DEATH_MAX).await;
    let point = variant.die_at.expect("each of these lives ends");
    assert_eq!(
        status.signal(),
        Some(9),
        "{status} instead of a death at {point}:\n{}",
        relay.log()
    );
    site.slot_is_not_above_the_checkpoint().await;
}

/// Lets a last relay publish the rest, stops it, and judges what a reader finds then.
async fn finish(site: &Site, written: &Written) -> Verdict {
    let mut relay = site.relay(variant());
    let enough = site.expected().await.len();
    site.read_until(REST_MAX, move |seen| seen.len() >= enough).await;
    site.stop_and_judge(&mut relay, written).await
}

fn report(crashes: &[Variant], written: &Written, verdict: Verdict, elapsed: Duration) -> Report {
    let mut report = Report::default();
    report.figure("deaths by SIGKILL", crashes.len() + 2);
    report.figure("source transactions", written.committed);
    report.figure("messages rolled back", written.rolled_back.len());
    verdict.tell(&mut report);
    report.figure("seconds", format!("{:.1}", elapsed.as_secs_f64()));
    report
}
