//! Through rebalances, killed and stopped consumers, a database that dies, keys that fail and records that come
//! twice, each message has its effect once, in the order of its key.

use std::pin::pin;
use std::time::{Duration, Instant};

use tailrace_stack::{Needs, Postgres, Stack};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::proof::{Bench, Report, Scale};
use crate::writers::Dice;

mod ground;
mod members;

use ground::Ground;
use members::{Members, seconds};

/// All has its effect by then after the last fault.
const DRAIN_MAX: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How much of it is done.
struct Measure {
    messages: usize,
    keys: u64,
    /// Between two rebalances, where nothing takes longer.
    round: Duration,
    /// Messages that are produced in a round.
    portion: usize,
    /// At so many without an effect nothing more is produced.
    backlog_max: usize,
    /// Rounds without a fault for each four with one.
    calm: usize,
    /// Rounds for which the same keys are poisoned.
    poisoned_for: usize,
    /// How many keys these are.
    poisoned: usize,
}

impl Measure {
    fn of(scale: Scale) -> Self {
        match scale {
            Scale::Small => Measure {
                messages: 20_000,
                keys: 300,
                round: Duration::from_millis(1_200),
                portion: 5_000,
                backlog_max: usize::MAX,
                calm: 0,
                poisoned_for: 4,
                poisoned: 3,
            },
            Scale::Full => Measure {
                messages: 1_000_000,
                keys: 5_000,
                round: Duration::from_secs(2),
                portion: 10_000,
                backlog_max: 40_000,
                calm: 8,
                poisoned_for: 10,
                poisoned: 10,
            },
        }
    }
}

/// What befalls the group beside a rebalance.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// A consumer stops, and goes on when others have long taken over.
    Stop,
    /// A consumer dies.
    Kill,
    /// Postgres shuts down in order and comes back.
    Restart,
    /// Postgres dies and comes back.
    Crash,
}

const FAULTS: [Fault; 4] = [Fault::Stop, Fault::Kill, Fault::Restart, Fault::Crash];

/// The body of the proof `consumer-chaos`.
///
/// # Panics
///
/// When a server fails by itself, or a consumer does not start or stop.
pub async fn prove(bench: Bench<'_>) -> Report {
    let measure = Measure::of(bench.scale);
    bench.bar.set_length(measure.messages as u64);
    let mut dice = Dice::new("consumer-chaos");
    // One of its own: that of the other tests is not to be killed.
    let servers = Stack::start(Needs::POSTGRES.breakable()).await.expect("there is a Postgres");
    let Measure { messages, keys, .. } = measure;
    let mut ground =
        Ground::new(bench.stack.kafka(), servers.postgres(), messages, keys, &mut dice).await;
    let mut members = Members::start(&bench.node, &ground, dice.fork()).await;

    let started = Instant::now();
    let mut report = Report::default();
    report.figure("messages, each produced twice", messages);
    let mut done = Done::default();
    let mut faults = shuffled(measure.calm, &mut dice);
    // Those that take long to end begin first; the last is the first to come.
    faults.sort_by_key(|fault| matches!(fault, Some(Fault::Stop | Fault::Kill)));
    let mut round = interval(measure.round);
    round.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !ground.all_is_produced() {
        round.tick().await;
        if done.rounds % measure.poisoned_for == 0 {
            let keys: Vec<u64> = (0..measure.poisoned).map(|_| dice.below(keys)).collect();
            ground.poison(&keys).await;
        }
        let backlog = ground.backlog().await;
        bench.bar.set_position((ground.messages_produced() - backlog) as u64);
        if backlog < measure.backlog_max {
            ground.produce(2 * measure.portion).await;
        }
        members.wake();
        members.rebalance().await;
        if faults.is_empty() {
            faults = shuffled(measure.calm, &mut dice);
        }
        let fault = faults.pop().flatten();
        done.suffer(fault, &mut members, servers.postgres(), &mut round).await;
        done.retried_by_hand += ground.retry_by_hand().await;
        done.rounds += 1;
    }
    ground.poison(&[]).await;
    let last_fault = started.elapsed();
    drain(&ground, &mut members, &mut done, &mut report).await;

    members.end(&mut report).await;
    done.tell(&mut report);
    ground.judge(&mut report).await;
    report.figure("time with faults", seconds(last_fault));
    report.figure("time in all", seconds(started.elapsed()));
    report
}

/// The next faults from the last to the first, among rounds without one.
fn shuffled(calm: usize, dice: &mut Dice) -> Vec<Option<Fault>> {
    let mut faults: Vec<_> = FAULTS.into_iter().map(Some).collect();
    faults.resize(FAULTS.len() + calm, None);
    for at in (1..faults.len()).rev() {
        let other = usize::try_from(dice.below(at as u64 + 1)).expect("a small number");
        faults.swap(at, other);
    }
    faults
}

/// Waits until nothing is left to do.
async fn drain(ground: &Ground<'_>, members: &mut Members, done: &mut Done, report: &mut Report) {
    let ends = ground.ends().await;
    let since = Instant::now();
    let mut look = interval(LOOK_EVERY);
    loop {
        look.tick().await;
        members.wake();
        done.retried_by_hand += ground.retry_by_hand().await;
        if members.are_awake() && ground.is_drained(&ends).await {
            return;
        }
        if since.elapsed() > DRAIN_MAX {
            let left = ground.backlog().await;
            report.faults.push(format!("{left} messages have no effect after {DRAIN_MAX:?}"));
            return;
        }
    }
}

/// What was done to the group.
#[derive(Default)]
struct Done {
    rounds: usize,
    restarts: usize,
    crashes: usize,
    retried_by_hand: usize,
}

impl Done {
    /// While Postgres is away the group goes on changing.
    async fn suffer(
        &mut self,
        fault: Option<Fault>,
        members: &mut Members,
        postgres: &Postgres,
        round: &mut Interval,
    ) {
        let crash = match fault {
            None => return,
            Some(Fault::Stop) => return members.stop(),
            Some(Fault::Kill) => return members.kill(),
            Some(Fault::Restart) => false,
            Some(Fault::Crash) => true,
        };
        let restart = async {
            if crash {
                postgres.kill().await.expect("Postgres is killed");
                self.crashes += 1;
            } else {
                postgres.stop().await.expect("Postgres shuts down");
                self.restarts += 1;
            }
            postgres.restart().await.expect("Postgres comes back");
        };
        let mut restart = pin!(restart);
        loop {
            tokio::select! {
                () = &mut restart => return,
                _ = round.tick() => members.rebalance().await,
            }
        }
    }

    fn tell(&self, report: &mut Report) {
        report.figure("rounds", self.rounds);
        report.figure("Postgres shut down", self.restarts);
        report.figure("Postgres killed", self.crashes);
        report.figure("retried by hand", self.retried_by_hand);
    }
}
