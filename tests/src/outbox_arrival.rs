//! What many connections commit at once arrives once, in commit order per key; nothing else does.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::client::Way;
use crate::proof::{Bench, Report, Scale};
use crate::site::{Site, Variant};
use crate::writers::{Dice, Written};

/// The relay leads by then.
const LEAD_MAX: Duration = Duration::from_secs(30);
/// A writer that is to die has died by then.
const DEATH_MAX: Duration = Duration::from_secs(60);

const CONNECTIONS: usize = 16;
const TOPICS: usize = 3;

/// The most transactions that a writer ends before it dies.
const TRANSACTIONS_MAX: u64 = 40;
/// The longest time that a commit goes on before the writer dies inside it.
const INSIDE_COMMIT_MICROS_MAX: u64 = 3_000;

/// How much of it is done.
struct Measure {
    /// Messages that the connections commit, to which come those of the writers that die.
    messages: usize,
    /// Writers that die, half of them before a commit and half inside it.
    deaths: usize,
    /// Everything has arrived by then.
    arrive_max: Duration,
}

impl Measure {
    fn of(scale: Scale) -> Self {
        match scale {
            Scale::Small => {
                Measure { messages: 3_000, deaths: 4, arrive_max: Duration::from_secs(120) }
            }
            Scale::Full => {
                Measure { messages: 100_000, deaths: 100, arrive_max: Duration::from_secs(900) }
            }
        }
    }
}

/// The body of the proof `outbox-arrival`.
///
/// # Panics
///
/// When a writer does not die where it is told, the relay does not keep up, or a server fails.
pub async fn prove(bench: Bench<'_>) -> Report {
    let measure = Measure::of(bench.scale);
    let mut dice = Dice::new("outbox-arrival");
    let site = Site::new(bench.stack, "outbox_arrival", TOPICS, &bench.node).await;
    site.prepare_writers().await;
    site.prepare_journal().await;
    let mut relay = site.relay(Variant::default());
    relay.says("leading", LEAD_MAX).await;
    bench.bar.set_length(measure.messages as u64);
    let started = Instant::now();

    // How much there is to arrive is known when the last writer is gone. What has not arrived in
    // time is for the verdict to name.
    let committed = Arc::new(AtomicUsize::new(usize::MAX));
    let (enough, bar) = (Arc::clone(&committed), bench.bar.clone());
    let arriving = site.read_until(2 * measure.arrive_max, move |seen| {
        bar.set_position(seen.len() as u64);
        seen.len() >= enough.load(Ordering::Relaxed) || started.elapsed() > measure.arrive_max
    });
    let mut dice_of_the_doomed = dice.fork();
    let writing = async {
        let (written, ()) = tokio::join!(
            site.write_in_every_way(measure.messages, CONNECTIONS, &mut dice),
            die(&site, measure.deaths, &mut dice_of_the_doomed)
        );
        site.writers_are_gone().await;
        let count = site.expected().await.len();
        bench.bar.set_length(count as u64);
        committed.store(count, Ordering::Relaxed);
        (written, started.elapsed())
    };
    let ((written, wrote_for), _) = tokio::join!(writing, arriving);
    let elapsed = started.elapsed();
    let verdict = site.stop_and_judge(&mut relay, &written).await;

    let mut report = Report::default();
    report.figure("connections", CONNECTIONS);
    report.figure("writers dead by SIGKILL", measure.deaths);
    tell(&mut report, &written);
    verdict.tell(&mut report);
    report.figure("seconds of writing", format!("{:.1}", wrote_for.as_secs_f64()));
    report.figure("seconds until all had arrived", format!("{:.1}", elapsed.as_secs_f64()));
    report
}

/// Writers that are killed, one after another.
async fn die(site: &Site, deaths: usize, dice: &mut Dice) {
    for at in 0..deaths {
        let transactions = dice.below(TRANSACTIONS_MAX);
        let micros = (at % 2 == 1).then(|| dice.below(INSIDE_COMMIT_MICROS_MAX));
        let mut writer = site.doomed_writer(transactions, micros, dice);
        let status = writer.ends(DEATH_MAX).await;
        assert_eq!(status.signal(), Some(9), "{status} is no SIGKILL:\n{}", writer.log());
    }
}

/// Adds what the connections did; a way that none of them took would prove nothing of it.
fn tell(report: &mut Report, written: &Written) {
    report.figure("connections cut off", written.cut_off);
    report.figure("source transactions", written.committed);
    report.figure("messages rolled back", written.rolled_back.len());
    for (way, name) in Way::ALL {
        let count = written.ways.get(&way).copied().unwrap_or_default();
        report.figure(name, count);
        if count == 0 {
            report.faults.push(format!("nothing was {name}"));
        }
    }
    if written.cut_off == 0 || written.rolled_back.is_empty() {
        report.faults.push("no connection was cut off, or nothing was rolled back".to_owned());
    }
}
