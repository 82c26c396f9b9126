//! A giant transaction is published once and in order in little memory, whether it is received
//! while it is in progress or once it has committed.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use sqlx::{Connection, Row};
use tailrace_stack::unique;

use crate::endpoint::Endpoint;
use crate::events::{MAPPING, event};
use crate::proof::{Bench, Report, Scale};
use crate::reader::Seen;
use crate::site::Site;

/// Of a goal in the relay's design.
const RESIDENT_BYTES_MAX: u64 = 96 * 1024 * 1024;

const LEAD_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(15);
/// A relay that does ten thousand rows in a second has long failed.
const ROWS_PER_SECOND_MIN: u64 = 10_000;
/// Which every wait has besides.
const WAIT_MIN: Duration = Duration::from_secs(60);

/// Partitions are read side by side, so the order is that of each key.
const KEYS: i32 = 4;

/// How much of it is done.
struct Measure {
    rows: i32,
    /// What the server decodes in memory is less than the transaction by far, and so is what the
    /// relay keeps in memory.
    memory: &'static str,
    spool_max: &'static str,
    /// So that the transaction is split in any case.
    split: &'static str,
}

impl Measure {
    fn of(scale: Scale) -> Self {
        match scale {
            Scale::Small => {
                Measure { rows: 200_000, memory: "1MiB", spool_max: "1GiB", split: "4MiB" }
            }
            Scale::Full => {
                Measure { rows: 10_000_000, memory: "8MiB", spool_max: "8GiB", split: "64MiB" }
            }
        }
    }

    fn wait_max(&self) -> Duration {
        WAIT_MIN + Duration::from_secs(u64::from(self.rows.unsigned_abs()) / ROWS_PER_SECOND_MIN)
    }
}

/// The body of the proof `giant-transaction`.
///
/// # Panics
///
/// When a relay does not lead or stop, or a server fails.
pub async fn prove(bench: Bench<'_>) -> Report {
    let measure = Measure::of(bench.scale);
    bench.bar.set_length(4);
    let mut report = Report::default();
    report.figure("rows of the transaction", measure.rows);
    for streamed in [true, false] {
        let name = if streamed { "giant_streamed" } else { "giant_at_commit" };
        let site = Site::new(bench.stack, name, 1, &bench.node).await;
        site.prepare_events().await;
        let run = publish(&site, &measure, streamed, &bench).await;
        run.tell(streamed, bench.scale, &mut report);
        let verdict = judge(&site, &measure).await;
        report.faults.extend(verdict.map(|fault| format!("{name}: {fault}")));
        bench.bar.inc(1);
    }
    report
}

/// What was seen of a relay that published the transaction.
struct Run {
    spooled: u64,
    resident: Option<u64>,
    took: Duration,
    log: String,
}

/// Has a relay receive and publish the transaction.
async fn publish(site: &Site, measure: &Measure, streamed: bool, bench: &Bench<'_>) -> Run {
    let file = std::env::temp_dir().join(format!("{}.toml", unique("giant")));
    let Measure { rows, memory, spool_max, split } = measure;
    let text = format!(
        "relay.messages = {}\nstreaming = {{ memory = \"{memory}\", spool_max = \"{spool_max}\" }}\n\
         transaction.max_bytes = \"{split}\"\n",
        !streamed
    );
    fs::write(&file, text).expect("the settings are written");
    let table = format!("--table={MAPPING}");
    let config = format!("--config={}", file.display());
    let arguments = [site.run_arguments(), vec![table, config]].concat();
    let mut relay = site.cdc_relay(&arguments);
    relay.says("leading", LEAD_MAX).await;
    let endpoint = Endpoint::of(&mut relay).await;

    let mut connection = site.connect().await;
    let mut tx = connection.begin().await.expect("a transaction begins");
    site.insert_events(&mut tx, "k", KEYS, 0..*rows).await;
    let mut spooled = 0;
    if streamed {
        let number = |status: &serde_json::Value| status.get("spooled_bytes")?.as_u64();
        let most = |status: &serde_json::Value| number(status).is_some_and(|bytes| bytes > 0);
        endpoint.status_until(WAIT_MIN, most).await;
        spooled = number(&endpoint.status().await).unwrap_or_default();
    }
    let committed = Instant::now();
    tx.commit().await.expect("it commits");
    let end: i64 = sqlx::query("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
        .fetch_one(&mut connection)
        .await
        .expect("the server answers")
        .get(0);
    bench.bar.inc(1);
    flushed(site, end.unsigned_abs(), measure.wait_max()).await;
    let took = committed.elapsed();
    let resident = relay.resident_bytes_max();
    relay.signal(rustix::process::Signal::TERM);
    let status = relay.ends(STOP_MAX).await;
    assert!(status.success(), "{status}:\n{}", relay.log());
    fs::remove_file(&file).expect("the settings are removed");
    Run { spooled, resident, took, log: relay.log() }
}

/// Waits until the slot is flushed so far: then all before it is in Kafka.
async fn flushed(site: &Site, end: u64, limit: Duration) {
    let deadline = Instant::now() + limit;
    let mut every = tokio::time::interval(Duration::from_millis(200));
    while site.confirmed_flush().await.is_none_or(|flushed| flushed < end) {
        assert!(Instant::now() < deadline, "not published within {limit:?}");
        every.tick().await;
    }
}

/// What comes next of each key, and the first thing that was something else.
#[derive(Default)]
struct Judge {
    next: BTreeMap<String, i32>,
    fault: Option<String>,
}

impl Judge {
    fn look(&mut self, record: &Seen) {
        let (key, number) = event(record);
        let next = self.next.entry(key).or_default();
        if *next != number && self.fault.is_none() {
            self.fault = Some(format!("{number} came where {next} was next: {record:?}"));
        }
        *next = number + KEYS;
    }
}

/// What of the transaction is not in Kafka as it should be, if anything.
async fn judge(site: &Site, measure: &Measure) -> Option<String> {
    let begin: BTreeMap<String, i32> = (0..KEYS).map(|key| (format!("k{key}"), key)).collect();
    // There are as many rows of each key.
    let end: BTreeMap<String, i32> =
        (0..KEYS).map(|key| (format!("k{key}"), measure.rows + key)).collect();
    let judge = Judge { next: begin, fault: None };
    let Judge { next, fault } = site.read_each(measure.wait_max(), judge, Judge::look).await;
    fault.or_else(|| (next != end).then(|| format!("it ends with {next:?}, not {end:?}")))
}

impl Run {
    fn tell(self, streamed: bool, scale: Scale, report: &mut Report) {
        let Run { spooled, resident, took, log } = self;
        let names = match streamed {
            true => ["streamed: resident MB at most", "streamed: s from commit to all flushed"],
            false => ["at commit: resident MB at most", "at commit: s from commit to all flushed"],
        };
        let [memory, seconds] = names;
        let megabytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1024.0 / 1024.0);
        report.figure(memory, resident.map_or("unknown".to_owned(), megabytes));
        report.figure(seconds, format!("{:.1}", took.as_secs_f64()));
        if streamed {
            report.figure("streamed: MB spooled before the commit", megabytes(spooled));
        }
        // A build for debugging has other needs.
        if scale == Scale::Full && resident.is_some_and(|bytes| bytes > RESIDENT_BYTES_MAX) {
            report.faults.push(format!("{memory}: more than {}", megabytes(RESIDENT_BYTES_MAX)));
        }
        // A walsender that times out, and a watchdog that does not wait, end the session.
        let sessions = log.matches("leading").count();
        if sessions != 1 || !log.contains(&format!("streaming={streamed}")) {
            report.faults.push(format!("{sessions} sessions, and not one: {log}"));
        }
    }
}
