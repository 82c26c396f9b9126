//! A Kafka that dies under a relay in full swing loses nothing, doubles nothing and keeps the order.

use std::time::{Duration, Instant};

use tailrace_stack::{Needs, Stack};

use crate::proof::{Bench, Report, Scale};
use crate::site::{Site, Variant};
use crate::writers::{Dice, Written};

/// A relay that starts leads by then.
const LEAD_MAX: Duration = Duration::from_secs(30);
/// After each death the relay has published everything by then.
const REST_MAX: Duration = Duration::from_secs(120);

/// How long the relay publishes before Kafka dies.
const SWING_MICROS_MAX: u64 = 300_000;

const WRITERS: usize = 4;

/// The body of the proof `kafka-crash`.
///
/// # Panics
///
/// When the relay does not lead or stop, or Postgres fails.
pub async fn prove(bench: Bench<'_>) -> Report {
    let deaths = match bench.scale {
        Scale::Small => 4,
        Scale::Full => 100,
    };
    bench.bar.set_length(deaths);
    let mut dice = Dice::new("kafka-crash");
    // Servers of its own: those of the other tests are not to be killed.
    let stack = Stack::start(Needs::BOTH.breakable()).await.expect("there are servers");
    let site = Site::new(&stack, "kafka_crash", 3, &bench.node).await;
    site.prepare_writers().await;
    // A commit for each source transaction: Kafka dies in the middle of one more often than not.
    let mut relay = site.relay(Variant { batch_records: Some(1), ..Variant::default() });
    relay.says("leading", LEAD_MAX).await;

    let started = Instant::now();
    let (mut written, mut slowest) = (Written::default(), Duration::ZERO);
    for _ in 0..deaths {
        let mut swing = dice.fork();
        let death = async {
            tokio::time::sleep(Duration::from_micros(swing.below(SWING_MICROS_MAX))).await;
            stack.kafka().kill().await.expect("Kafka is killed");
        };
        written.add(site.write_during(WRITERS, &mut dice, death).await);
        stack.kafka().restart().await.expect("Kafka comes back");
        let back = Instant::now();
        let enough = site.expected().await.len();
        site.read_until(REST_MAX, move |seen| seen.len() >= enough).await;
        slowest = slowest.max(back.elapsed());
        bench.bar.inc(1);
    }
    let verdict = site.stop_and_judge(&mut relay, &written).await;

    let mut report = Report::default();
    report.figure("deaths of Kafka by SIGKILL", deaths);
    report.figure("source transactions", written.committed);
    report.figure("longest until all was published, s", format!("{:.1}", slowest.as_secs_f64()));
    verdict.tell(&mut report);
    report.figure("seconds", format!("{:.1}", started.elapsed().as_secs_f64()));
    report
}
