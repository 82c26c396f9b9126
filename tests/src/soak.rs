//! A relay's memory stays what it was, however long it runs and whatever it goes through.

use std::time::{Duration, Instant};

use sqlx::Executor;
use tokio::time::{interval, timeout};

use crate::endpoint::Endpoint;
use crate::proof::{Bench, Report, Scale};
use crate::shape::{MAPPING, SHAPES, Scribe, Store};
use crate::site::Site;
use crate::verdict::STOP_MAX;
use crate::writers::Dice;

/// What is written in a round is published by then.
const ROUND_MAX: Duration = Duration::from_secs(120);
/// A relay that starts, or has lost its connection, leads by then.
const LEAD_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Messages of a bulk, and of what is written besides.
const BULK: i32 = 400;
/// Source transactions of a round that have any shape.
const TRANSACTIONS: usize = 20;
const WRITERS: usize = 2;
/// Of so many rounds one begins with a session that is cut off.
const CUT_EVERY: usize = 4;
/// Frames of a round that are no message.
const BAD: usize = 3;

/// How much the relay may have grown: less than a leak of 100 bytes for each message, or of 200 kB for each session,
/// would come to.
const GROWTH_MAX: u64 = 8 * 1024 * 1024;
/// How much of it is done.
struct Measure {
    /// Rounds, of which the first quarter fills what is kept on purpose: pools, caches, queues.
    rounds: usize,
    /// Bulks of a round.
    bulks: usize,
}

impl Measure {
    fn of(scale: Scale) -> Self {
        match scale {
            Scale::Small => Measure { rounds: 8, bulks: 1 },
            Scale::Full => Measure { rounds: 400, bulks: 10 },
        }
    }
}

/// The body of the proof `soak`.
///
/// # Panics
///
/// When the relay does not keep up or stop, or a server fails.
pub async fn prove(bench: Bench<'_>) -> Report {
    let Measure { rounds, bulks } = Measure::of(bench.scale);
    bench.bar.set_length(rounds as u64);
    let mut dice = Dice::new("soak");
    let site = Site::new(bench.stack, "soak", 2, &bench.node).await;
    site.prepare_writers().await;
    site.prepare_journal().await;
    site.prepare_shapes().await;
    let mut scribe = site.scribe(BULK).await;
    let arguments = [site.run_arguments(), vec![format!("--table={MAPPING}")]].concat();
    let mut relay = site.cdc_relay(&arguments);
    let endpoint = Endpoint::of(&mut relay).await;
    relay.says("leading", LEAD_MAX).await;

    let started = Instant::now();
    let mut resident = Vec::new();
    for round in 0..rounds {
        if round % CUT_EVERY == CUT_EVERY - 1 {
            site.on_slot(CUT).await;
        }
        site.write(TRANSACTIONS, WRITERS, &mut dice).await;
        write(&mut scribe, round, bulks).await;
        for _ in 0..BAD {
            let bad = "select pg_logical_emit_message(true, 'tailrace', 'no frame')";
            site.pool.execute(bad).await.expect("any bytes can be written");
        }
        flushed(&site).await;
        // What people look at costs memory too.
        for path in ["/", "/status", "/metrics", "/readyz"] {
            endpoint.get(path).await;
        }
        resident.push(relay.resident_bytes());
        bench.bar.inc(1);
    }
    let status = endpoint.status().await;
    scribe.close().await;
    relay.signal(rustix::process::Signal::TERM);
    let ended = relay.ends(STOP_MAX).await;
    assert!(ended.success(), "{ended}:\n{}", relay.log());

    let mut report = Report::default();
    let count = |name: &str| status.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
    report.figure("rounds", rounds);
    report.figure("messages committed", site.expected_count().await);
    report.figure("records published", count("messages"));
    report.figure("dead letters", count("dead_letters"));
    report.figure("sessions", count("sessions"));
    judge(&mut report, &resident);
    report.figure("seconds", format!("{:.1}", started.elapsed().as_secs_f64()));
    report
}

/// Ends the relay's connection, and with it its session.
const CUT: &str =
    "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1";

/// Every shape in some store, and bulks.
async fn write(scribe: &mut Scribe, round: usize, bulks: usize) {
    let store = |at: usize| *Store::ALL.get(at % Store::ALL.len()).expect("below its length");
    for (at, shape) in SHAPES.iter().enumerate() {
        scribe.write(shape, store(round + at)).await;
    }
    let giant = SHAPES.iter().find(|shape| shape.name == "giant").expect("there is one");
    for at in 0..bulks {
        scribe.write(giant, store(at)).await;
    }
}

/// Waits until the slot is flushed to where the log ends now.
async fn flushed(site: &Site) {
    let end: i64 = sqlx::query_scalar("select (pg_current_wal_lsn() - '0/0')::bigint")
        .fetch_one(&site.pool)
        .await
        .expect("the server answers");
    let end = u64::try_from(end).expect("a position is no less than nothing");
    let flushed = async {
        let mut look = interval(LOOK_EVERY);
        while site.confirmed_flush().await < Some(end) {
            look.tick().await;
        }
    };
    timeout(ROUND_MAX, flushed).await.expect("the relay keeps up");
}

/// Compares the second quarter of the rounds with the last.
fn judge(report: &mut Report, resident: &[u64]) {
    let quarter = resident.len() / 4;
    let median = |from: usize| {
        let mut part = resident.get(from..from + quarter).expect("a quarter").to_vec();
        part.sort_unstable();
        part.get(quarter / 2).copied().unwrap_or_default()
    };
    let (early, late) = (median(quarter), median(3 * quarter));
    let mb = |bytes: u64| format!("{:.1}", bytes as f64 / (1024.0 * 1024.0));
    report.figure("MB resident, first round", mb(resident.first().copied().unwrap_or_default()));
    report.figure("MB resident, second quarter", mb(early));
    report.figure("MB resident, last quarter", mb(late));
    report.figure("MB resident, most", mb(resident.iter().copied().max().unwrap_or_default()));
    if late > early + GROWTH_MAX {
        report.faults.push(format!("from {} MB it grew to {} MB", mb(early), mb(late)));
    }
}
