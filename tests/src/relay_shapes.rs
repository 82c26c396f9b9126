//! A relay that is killed at any point of a transaction of any shape loses nothing, doubles nothing
//! and keeps the order.

use std::os::unix::process::ExitStatusExt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tailrace_cdc_relay::Milestone;

use crate::crash_point::CrashPoint;
use crate::proof::{Bench, Report, Scale};
use crate::shape::{MAPPING, SHAPES, Scribe, Shape, Store};
use crate::site::{Site, Streaming, Variant};
use crate::verdict::Verdict;
use crate::writers::{Dice, Written};

/// A relay that leads does so by then.
const LEAD_MAX: Duration = Duration::from_secs(60);
/// A relay that is to die has reached its point by then, whatever it has to recover first.
const DEATH_MAX: Duration = Duration::from_secs(60);
/// The last relay has published the rest by then.
const REST_MAX: Duration = Duration::from_secs(120);

/// Below what a bulk has, so that the giants are split, and above what anything else has.
const SPLIT_BYTES: usize = 12_000;

/// The longest time that a commit goes on before the relay dies inside it.
const INSIDE_COMMIT_MICROS_MAX: u64 = 4_000;

/// Databases that are under way at once.
const LANES: usize = 3;

/// How much of it is done.
struct Measure {
    /// Messages of a bulk. With fewer than 200 the server would keep it in memory.
    bulk: i32,
    /// The most messages of one shape between which a relay is killed.
    boundaries: u64,
    /// Deaths at, and deaths inside, the commits of one shape.
    commits: u32,
}

const SMALL: Measure = Measure { bulk: 200, boundaries: 1, commits: 1 };
const FULL: Measure = Measure { bulk: 1_000, boundaries: 12, commits: 3 };

/// How large transactions come to the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// When they have committed.
    Whole,
    /// While they are in progress: rows alone.
    InProgress,
}

impl Reading {
    fn stores(self) -> &'static [Store] {
        match self {
            Reading::Whole => &Store::ALL,
            Reading::InProgress => &Store::OF_ROWS,
        }
    }
}

/// Less than a bulk has, so that most of it is spooled.
const STREAMING: Streaming = Streaming { memory: 40_000, spool_max: 256 * 1024 * 1024, off: false };

/// A life of a relay, and what is written in it.
#[derive(Clone, Copy, Debug)]
struct Life {
    shape: &'static Shape,
    store: Store,
    die_at: CrashPoint,
    /// How often the shape is written.
    copies: u32,
    /// Whether it is written while the relay leads, or before.
    live: bool,
}

/// What a database has seen.
#[derive(Default)]
struct Outcome {
    deaths: usize,
    shapes: usize,
    verdict: Verdict,
}

/// The body of the proof `relay-shapes`.
///
/// # Panics
///
/// When a relay does not die where it is told, or a server fails.
pub async fn prove(bench: Bench<'_>) -> Report {
    let started = Instant::now();
    let outcomes = match bench.scale {
        Scale::Small => {
            let whole = Box::pin(lean(&bench, Reading::Whole));
            let in_progress = Box::pin(lean(&bench, Reading::InProgress));
            let (whole, in_progress) = tokio::join!(whole, in_progress);
            vec![whole, in_progress]
        }
        Scale::Full => Box::pin(cross_product(&bench)).await,
    };
    let mut report = Report::default();
    let sum = |count: fn(&Outcome) -> usize| outcomes.iter().map(count).sum::<usize>();
    report.figure("shapes", SHAPES.len());
    report.figure("databases", outcomes.len());
    report.figure("shapes written", sum(|outcome| outcome.shapes));
    report.figure("deaths by SIGKILL", sum(|outcome| outcome.deaths));
    let verdict = outcomes.into_iter().map(|outcome| outcome.verdict).reduce(Verdict::and);
    verdict.unwrap_or_default().tell(&mut report);
    report.figure("seconds", format!("{:.1}", started.elapsed().as_secs_f64()));
    report
}

/// Every shape that the reading makes a difference to, once in every store, and every milestone, in
/// one database.
async fn lean(bench: &Bench<'_>, reading: Reading) -> Outcome {
    let mut dice = Dice::new("relay-shapes");
    let turn = usize::try_from(dice.below(60)).expect("a small number");
    let milestones = [
        Milestone::Decoded,
        Milestone::Produced,
        Milestone::Committing,
        Milestone::Committed,
        Milestone::Flushed,
    ];
    let shapes = SHAPES.iter().filter(|shape| reading == Reading::Whole || shape.is_large());
    let lives = shapes.enumerate().map(|(at, shape)| {
        let milestone = *pick(&milestones, at + turn);
        let die_at = CrashPoint::at(milestone, 1);
        let store = *pick(reading.stores(), at + turn / milestones.len());
        Life { shape, store, die_at, copies: 1, live: at % 2 == 0 }
    });
    let lives: Vec<Life> = lives.collect();
    bench.bar.inc_length(lives.len() as u64);
    let mut play = Play::begin(bench, &SMALL, reading).await;
    for life in lives {
        // The other stores too, so that every shape is seen in each of them.
        for store in reading.stores() {
            if *store != life.store {
                play.write(life.shape, *store).await;
            }
        }
        play.live(life).await;
    }
    play.end().await
}

/// Every shape in every store and reading, in a database of its own, with a death at every milestone and, of
/// those that come with each message, between every two messages.
async fn cross_product(bench: &Bench<'_>) -> Vec<Outcome> {
    let dice = Dice::new("relay-shapes");
    let mut all = Vec::new();
    for shape in SHAPES {
        for reading in [Reading::Whole, Reading::InProgress] {
            all.extend(reading.stores().iter().map(|store| (shape, *store, reading)));
        }
    }
    bench.bar.set_length(all.len() as u64);
    let left = Mutex::new((all.into_iter(), dice));
    let lane = async || {
        let mut outcomes = Vec::new();
        loop {
            let next = {
                let (all, dice) = &mut *left.lock().expect("no lane panics under it");
                all.next().map(|next| (next, dice.fork()))
            };
            let Some(((shape, store, reading), dice)) = next else { return outcomes };
            outcomes.push(one_shape(bench, shape, store, reading, dice).await);
            bench.bar.inc(1);
        }
    };
    let (one, two, three) = tokio::join!(lane(), lane(), lane());
    let lanes: [Vec<Outcome>; LANES] = [one, two, three];
    lanes.into_iter().flatten().collect()
}

async fn one_shape(
    bench: &Bench<'_>,
    shape: &'static Shape,
    store: Store,
    reading: Reading,
    mut dice: Dice,
) -> Outcome {
    let mut play = Play::begin(bench, &FULL, reading).await;
    let messages = play.write(shape, store).await;
    let boundaries = messages.min(FULL.boundaries);
    let mut lives = Vec::new();
    let mut push = |die_at, copies| {
        let live = lives.len() % 2 == 1;
        lives.push(Life { shape, store, die_at, copies, live });
    };
    for at in 1..=boundaries {
        let occurrence = u32::try_from(at * messages / boundaries).expect("a small number");
        for milestone in [Milestone::Decoded, Milestone::Produced] {
            push(CrashPoint::at(milestone, occurrence), 1);
        }
    }
    for occurrence in 1..=FULL.commits {
        for milestone in [Milestone::Committing, Milestone::Committed, Milestone::Flushed] {
            push(CrashPoint::at(milestone, occurrence), occurrence);
        }
        let after = Duration::from_micros(dice.below(INSIDE_COMMIT_MICROS_MAX));
        push(CrashPoint::at(Milestone::Committing, occurrence).after(after), occurrence);
    }
    for life in lives {
        play.live(life).await;
    }
    play.end().await
}

/// A database with its relays, one after another.
struct Play<'a> {
    bench: &'a Bench<'a>,
    site: Site,
    scribe: Scribe,
    reading: Reading,
    outcome: Outcome,
}

impl<'a> Play<'a> {
    /// With a slot that a relay has died over twice: before it was made, and before it was read.
    async fn begin(bench: &'a Bench<'a>, measure: &Measure, reading: Reading) -> Self {
        let site = Site::new(bench.stack, "relay_shapes", 2, &bench.node).await;
        site.prepare_writers().await;
        site.prepare_journal().await;
        site.prepare_shapes().await;
        let scribe = site.scribe(measure.bulk).await;
        let mut play = Play { bench, site, scribe, reading, outcome: Outcome::default() };
        for milestone in [Milestone::Intended, Milestone::SlotCreated] {
            let die_at = CrashPoint::at(milestone, 1);
            let mut relay = play.site.relay(variant(Some(die_at), reading));
            play.dies(&mut relay, die_at).await;
        }
        play
    }

    /// Writes a shape; answers with how many messages it commits.
    async fn write(&mut self, shape: &Shape, store: Store) -> u64 {
        let before = self.site.expected_count().await;
        self.scribe.write(shape, store).await;
        self.outcome.shapes += 1;
        self.site.expected_count().await - before
    }

    async fn live(&mut self, life: Life) {
        let Life { shape, store, die_at, copies, live } = life;
        let relay = |play: &Self| play.site.relay(variant(Some(die_at), play.reading));
        let mut relay = if live {
            let mut relay = relay(self);
            relay.says("leading", LEAD_MAX).await;
            self.write_copies(shape, store, copies).await;
            relay
        } else {
            self.write_copies(shape, store, copies).await;
            relay(self)
        };
        self.dies(&mut relay, die_at).await;
        if self.bench.scale == Scale::Small {
            self.bench.bar.inc(1);
        }
    }

    async fn write_copies(&mut self, shape: &Shape, store: Store, copies: u32) {
        for _ in 0..copies {
            self.write(shape, store).await;
        }
    }

    async fn dies(&mut self, relay: &mut crate::process::Process, die_at: CrashPoint) {
        let status = relay.ends(DEATH_MAX).await;
        let log = || relay.log();
        assert_eq!(status.signal(), Some(9), "{status}, not a death at {die_at}:\n{}", log());
        self.outcome.deaths += 1;
        self.site.slot_is_not_above_the_checkpoint().await;
    }

    /// Lets a last relay publish the rest, stops it, and judges what a reader finds then.
    async fn end(self) -> Outcome {
        let Play { site, scribe, reading, mut outcome, .. } = self;
        scribe.close().await;
        let mut relay = site.relay(variant(None, reading));
        let enough = site.expected().await.len();
        site.read_until(REST_MAX, move |seen| seen.len() >= enough).await;
        outcome.verdict = site.stop_and_judge(&mut relay, &Written::default()).await;
        outcome
    }
}

/// In batches of one each source transaction has a commit of its own.
fn variant(die_at: Option<CrashPoint>, reading: Reading) -> Variant {
    Variant {
        die_at,
        batch_records: Some(1),
        split_bytes: Some(SPLIT_BYTES),
        table: Some(MAPPING),
        rows_alone: (reading == Reading::InProgress).then_some(STREAMING),
        ..Variant::default()
    }
}

fn pick<T>(of: &[T], at: usize) -> &T {
    of.get(at % of.len()).expect("below its length")
}
