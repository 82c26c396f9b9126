//! Through refusals, time-outs, killed and stopped engines, participants and relays, and servers that die, every saga
//! completes or leaves nothing behind.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tailrace_stack::{Needs, Stack};
use tokio::time::{MissedTickBehavior, interval};

use crate::proof::{Bench, Report, Scale};
use crate::saga_shop::{Order, SERVICES, Service, create_order};
use crate::saga_site::{SagaSite, customer};
use crate::writers::Dice;

mod cast;

use cast::{Cast, Role};

/// Between two faults.
const ROUND: Duration = Duration::from_millis(2_500);
/// All sagas have ended by then after the last fault.
const DRAIN_MAX: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// After how long an attempt is given up. Some commands take longer, and so does every takeover.
const TIME_OUT: Duration = Duration::from_secs(10);
const SLOW_FOR: Duration = Duration::from_secs(12);
/// Of so many orders one is refused by a service.
const REFUSED_EVERY: u64 = 4;

/// How much of it is done.
struct Measure {
    sagas: u64,
    customers: u64,
    /// Orders that are placed in a round.
    portion: u64,
    /// At so many sagas that have not ended nothing more is placed.
    backlog_max: i64,
    /// Of so many sagas one has slow participants.
    slow_every: u64,
}

impl Measure {
    fn of(scale: Scale) -> Self {
        match scale {
            Scale::Small => Measure {
                sagas: 2_000,
                customers: 40,
                portion: 300,
                backlog_max: i64::MAX,
                slow_every: 1_500,
            },
            Scale::Full => Measure {
                sagas: 100_000,
                customers: 500,
                portion: 500,
                backlog_max: 3_000,
                slow_every: 1_000,
            },
        }
    }
}

/// What befalls the shop.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// One of these dies, and is started again.
    Kill(Role),
    /// One of these stops while another takes over, and wakes up when it has long been given up.
    Stop(Role),
    /// Kafka dies and comes back.
    Broker,
    /// Postgres dies and comes back.
    Postgres,
}

fn faults(dice: &mut Dice) -> Vec<Fault> {
    let mut some = || match dice.below(3) {
        0 => Role::Service(Service::Customers),
        1 => Role::Service(Service::Warehouse),
        _ => Role::Service(Service::Payments),
    };
    let (killed, stopped) = (some(), some());
    let mut faults = vec![
        Fault::Kill(Role::Engine),
        Fault::Stop(Role::Engine),
        Fault::Kill(killed),
        Fault::Stop(stopped),
        Fault::Kill(Role::Relay(dice.below(4) as usize)),
        Fault::Broker,
        Fault::Postgres,
    ];
    for at in (1..faults.len()).rev() {
        let other = usize::try_from(dice.below(at as u64 + 1)).expect("a small number");
        faults.swap(at, other);
    }
    faults
}

/// The body of the proof `saga-chaos`.
///
/// # Panics
///
/// When a server fails by itself, or a process does not start or stop.
pub async fn prove(bench: Bench<'_>) -> Report {
    let measure = Measure::of(bench.scale);
    bench.bar.set_length(measure.sagas);
    let mut dice = Dice::new("saga-chaos");
    // Servers of its own: those of the other tests are not to be killed.
    let servers = Stack::start(Needs::BOTH.breakable()).await.expect("there are servers");
    let (postgres, kafka) = (servers.postgres(), servers.kafka());
    let Measure { customers, slow_every, .. } = measure;
    let site = SagaSite::new(postgres, kafka.brokers(), "saga_chaos", customers, &bench.node).await;
    let mut cast = Cast::start(&site, slow_every, SLOW_FOR, TIME_OUT).await;

    let started = Instant::now();
    let mut report = Report::default();
    let (mut placed, mut left) = (0, Vec::new());
    let mut round = interval(ROUND);
    round.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut had = 0;
    while placed < measure.sagas || had < faults(&mut dice.fork()).len() {
        round.tick().await;
        let standing = site.standing().await;
        bench.bar.set_position(standing.ended().unsigned_abs());
        if standing.all - standing.ended() < measure.backlog_max {
            let until = measure.sagas.min(placed + measure.portion);
            let orders: Vec<Order> =
                (placed..until).map(|at| order(at, customers, &mut dice)).collect();
            site.place(&orders).await;
            placed = until;
        }
        if left.is_empty() {
            left = faults(&mut dice);
        }
        match left.pop() {
            Some(Fault::Kill(role)) => cast.kill(role).await,
            Some(Fault::Stop(role)) => cast.stop(role).await,
            Some(Fault::Broker) => {
                kafka.kill().await.expect("Kafka is killed");
                kafka.restart().await.expect("Kafka comes back");
                cast.brokers_killed += 1;
            }
            Some(Fault::Postgres) => {
                postgres.kill().await.expect("Postgres is killed");
                postgres.restart().await.expect("Postgres comes back");
                cast.servers_killed += 1;
            }
            None => {}
        }
        had += 1;
        cast.wake();
    }
    let last_fault = started.elapsed();
    let drained =
        drain(&site, &mut cast, i64::try_from(placed).unwrap_or(i64::MAX), &bench.bar).await;
    // Behind what may still be on its way: an order of each customer, which all services know by name.
    let last: Vec<Order> =
        (0..customers).map(|at| order(placed + at, customers, &mut Dice::from_seed(1))).collect();
    site.place(&last).await;
    let all = i64::try_from(placed + customers).unwrap_or(i64::MAX);
    let drained = drained.and(drain(&site, &mut cast, all, &bench.bar).await);

    report.figure("sagas", all);
    if let Err(fault) = drained {
        report.faults.push(fault);
    }
    judge(&site, &mut report).await;
    cast.end(&mut report).await;
    report.figure("time with faults", format!("{:.1} s", last_fault.as_secs_f64()));
    report.figure("time in all", format!("{:.1} s", started.elapsed().as_secs_f64()));
    report
}

fn order(number: u64, customers: u64, dice: &mut Dice) -> Order {
    let refused_by = match dice.below(REFUSED_EVERY) {
        0 => SERVICES.get(dice.below(3) as usize).map(|service| service.name().to_owned()),
        _ => None,
    };
    Order {
        number: i64::try_from(number).unwrap_or_default(),
        customer: customer(number % customers),
        cents: i64::try_from(1 + dice.below(200)).unwrap_or(1),
        refused_by,
        hold: None,
    }
}

/// Waits until so many sagas have ended, or wait for a person.
async fn drain(
    site: &SagaSite,
    cast: &mut Cast<'_>,
    sagas: i64,
    bar: &ProgressBar,
) -> Result<(), String> {
    let since = Instant::now();
    let mut look = interval(LOOK_EVERY);
    loop {
        look.tick().await;
        cast.wake();
        let standing = site.standing().await;
        bar.set_position(standing.ended().unsigned_abs());
        if standing.ended() + standing.parked >= sagas && cast.are_awake() {
            return Ok(());
        }
        if since.elapsed() > DRAIN_MAX {
            let left = site.left().await;
            return Err(format!("{standing:?} of {sagas} after {DRAIN_MAX:?}: {left:#?}"));
        }
    }
}

async fn judge(site: &SagaSite, report: &mut Report) {
    let standing = site.standing().await;
    report.figure("completed", standing.completed);
    report.figure("compensated", standing.compensated);
    report.figure("parked", standing.parked);
    for (name, count) in site.causes().await {
        report.figure(name, count);
    }
    let dead = site.dead_letters().await;
    if !dead.is_empty() {
        report.faults.push(format!("there are dead letters: {dead:?}"));
    }
    report.faults.extend(site.faults().await);
    let saga = create_order(1, TIME_OUT).expect("the definition is right");
    let found = site.verified(saga.definition()).await;
    report.figure("sagas verified", found.sagas);
    report.figure("inputs told again", found.inputs);
    if found.sagas != standing.all.unsigned_abs() {
        report.faults.push(format!("of {} sagas {} were verified", standing.all, found.sagas));
    }
    for (saga, faults) in found.faults.iter().take(5) {
        report.faults.push(format!("saga {saga} is not what it was told: {}", faults.join("; ")));
    }
}
