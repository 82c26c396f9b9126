//! Sagas of version 3 go on while version 4 comes: beside it, rolled back twice, with version 3 gone, migrated, and back.

use std::ops::Range;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tailrace_saga::operate::{self, BATCH_SAGAS_MAX, By, Change, Filter, Paging};
use tailrace_saga::{MappingFile, SagaId};

use crate::process::Process;
use crate::proof::{Bench, Report, Scale};
use crate::saga_shop::{CREATE_ORDER, Order, SERVICES, create_order};
use crate::saga_site::{SagaSite, customer};

const CUSTOMERS: u64 = 5;
/// A relay leads, and an engine has begun its work or refused to, by then.
const BEGIN_MAX: Duration = Duration::from_secs(30);
/// A process that is told to stop has stopped by then.
const STOP_MAX: Duration = Duration::from_secs(15);
/// Sagas have begun, or ended, by then.
const END_MAX: Duration = Duration::from_secs(180);

/// How many sagas there are.
struct Measure {
    /// Under way on version 3 before anything happens.
    running: i64,
    /// Begun at each step of the deploy.
    few: i64,
}

impl Measure {
    fn of(scale: Scale) -> Self {
        match scale {
            Scale::Small => Measure { running: 20, few: 4 },
            Scale::Full => Measure { running: 1_000, few: 100 },
        }
    }
}

/// What is deployed, and what was placed meanwhile.
struct Deploy<'b> {
    site: SagaSite,
    bench: &'b Bench<'b>,
    placed: i64,
    /// How many sagas follow version 3 from their beginning on, and how many version 4.
    begun: [i64; 2],
}

impl Deploy<'_> {
    /// An engine that runs these versions, which does its first work by the time that this returns.
    async fn engine(&self, versions: &[&str]) -> Process {
        let versions = versions.iter().flat_map(|version| ["--saga-version", version]);
        // Nothing is given up meanwhile.
        let more: Vec<&str> = ["--time-out-ms", "600000"].into_iter().chain(versions).collect();
        let mut engine = self.site.engine(&more);
        engine.says("assigned partitions=", BEGIN_MAX).await;
        engine
    }

    /// Orders come, and their sagas follow this version.
    async fn place(&mut self, count: i64, version: u32) {
        let numbers: Range<i64> = self.placed..self.placed + count;
        let order = |number: i64| Order {
            number,
            customer: customer(number.unsigned_abs() % CUSTOMERS),
            cents: 100,
            ..Order::default()
        };
        let orders: Vec<Order> = numbers.clone().map(order).collect();
        self.site.place(&orders).await;
        self.site.follow(numbers, version, END_MAX).await;
        self.placed += count;
        let [three, four] = &mut self.begun;
        if version == 3 {
            *three += count
        } else {
            *four += count
        }
        self.bench.bar.inc(count.unsigned_abs());
    }

    /// The oldest sagas that wait go on under version 4, in as many parts as it takes.
    async fn migrate(&self, count: i64) -> Result<(), String> {
        let mut conn = self.site.orders.pool.acquire().await.expect("the server serves");
        let to = operate::structure(&mut conn, CREATE_ORDER, Some(4)).await;
        let to = to.expect("structures are read").expect("an engine has stored it");
        let mapping: MappingFile = serde_json::from_value(
            serde_json::json!({ "from": "create-order/3", "to": "create-order/4" }),
        )
        .expect("it is a mapping");
        let filter = Filter::default().definition(CREATE_ORDER).version(3);
        let mut left = u32::try_from(count).unwrap_or(u32::MAX);
        let mut paging = Paging::default();
        while left > 0 {
            paging.max = left.min(u32::try_from(BATCH_SAGAS_MAX).unwrap_or(u32::MAX));
            let page = operate::list(&mut conn, &filter, &paging).await.expect("they are listed");
            let sagas: Vec<SagaId> = page.sagas.iter().map(|saga| saga.id).collect();
            let change =
                Change::migrate(to.clone(), mapping.clone(), By::new("anna"), filter.to_string());
            let told = change.make(&mut conn, &sagas).await.expect("it is told");
            if let Some(refused) = told.iter().find_map(|told| told.planned.as_ref().err()) {
                return Err(format!("a saga is not migrated: {refused}"));
            }
            left -= u32::try_from(sagas.len()).unwrap_or(left);
            paging.after = page.next;
            if page.next.is_none() && left > 0 {
                return Err(format!("{left} sagas to migrate are not there"));
            }
        }
        Ok(())
    }

    /// How many sagas have completed on each version.
    async fn completed(&self) -> Vec<(i64, i64)> {
        sqlx::query_as(
            "SELECT version, count(*) FROM tailrace.saga_instance WHERE status = 'completed'
             GROUP BY version ORDER BY version",
        )
        .fetch_all(&self.site.orders.pool)
        .await
        .expect("the sagas are counted")
    }
}

/// The body of the proof `saga-deploy`.
///
/// # Panics
///
/// When a server or a process fails by itself, or a saga begins on another version than it should.
pub async fn prove(bench: Bench<'_>) -> Report {
    let Measure { running, few } = Measure::of(bench.scale);
    bench.bar.set_length((running + 5 * few).unsigned_abs());
    let (postgres, brokers) = (bench.stack.postgres(), bench.stack.kafka().brokers());
    let site = SagaSite::new(postgres, brokers, "saga_deploy", CUSTOMERS, &bench.node).await;
    let mut relays = site.relays();
    for relay in &mut relays {
        relay.says("leading", BEGIN_MAX).await;
    }
    let mut deploy = Deploy { site, bench: &bench, placed: 0, begun: [0, 0] };
    let mut report = Report::default();
    let started = Instant::now();

    // Nobody carries out a command yet: every saga is under way.
    let both = roll(&mut deploy, running, few).await;
    let new = remove(&deploy, both, &mut report).await;
    finish(&deploy, new, &mut report).await;

    report.figure("time in all", format!("{:.1} s", started.elapsed().as_secs_f64()));
    for relay in &mut relays {
        stop(relay).await;
    }
    report
}

/// Version 4 comes beside version 3, is rolled back half way, comes, is rolled back once sagas follow it, and comes.
async fn roll(deploy: &mut Deploy<'_>, running: i64, few: i64) -> Process {
    let mut old = deploy.engine(&["3"]).await;
    deploy.place(running, 3).await;
    let mut both = deploy.engine(&["3", "4"]).await;
    deploy.place(few, 3).await;
    stop(&mut both).await;
    deploy.place(few, 3).await;

    let mut both = deploy.engine(&["3", "4"]).await;
    stop(&mut old).await;
    // Once when it began, and once when it is alone.
    both.says_times("new sagas follow another version", 2, BEGIN_MAX).await;
    deploy.place(few, 4).await;
    let mut old = deploy.engine(&["3"]).await;
    stop(&mut both).await;
    old.says("no engine can run these sagas", BEGIN_MAX).await;
    deploy.place(few, 3).await;

    let mut both = deploy.engine(&["3", "4"]).await;
    stop(&mut old).await;
    both.says_times("new sagas follow another version", 2, BEGIN_MAX).await;
    deploy.place(few, 4).await;
    both
}

/// Version 3 is removed too early: its sagas are listed and wait, and those of version 4 end.
async fn remove(deploy: &Deploy<'_>, mut both: Process, report: &mut Report) -> Process {
    let [three, four] = deploy.begun;
    stop(&mut both).await;
    let mut new = deploy.engine(&["4"]).await;
    new.says("no engine can run these sagas", BEGIN_MAX).await;
    let mut strict = deploy.site.engine(&["--saga-version", "4", "--strict"]);
    let refused = strict.ends(BEGIN_MAX).await;
    let named = strict.log().contains(&format!("nobody can run {three} of create-order/3"));
    if refused.success() || !named {
        report.faults.push(format!("a strict engine has started: {}", strict.log()));
    }
    report.figure("running on version 3 when it is removed", three);
    report.figure("running on version 4", four);
    new
}

/// The sagas of version 4 end while the others wait; half of these is migrated and ends, and the rest when version 3 is
/// back.
async fn finish(deploy: &Deploy<'_>, mut new: Process, report: &mut Report) {
    let [three, four] = deploy.begun;
    let mut participants = SERVICES.map(|service| deploy.site.participant(service, &[]));
    deploy.site.ended(four, END_MAX).await;
    let on_four = deploy.completed().await;
    if on_four != [(4, four)] {
        report.faults.push(format!("before anybody is migrated there have completed {on_four:?}"));
    }
    let migrated = three / 2;
    if let Err(fault) = deploy.migrate(migrated).await {
        report.faults.push(fault);
        return;
    }
    deploy.site.ended(four + migrated, END_MAX).await;
    let mut again = deploy.engine(&["3", "4"]).await;
    deploy.site.ended(three + four, END_MAX).await;

    let completed = deploy.completed().await;
    if completed != [(3, three - migrated), (4, four + migrated)] {
        report
            .faults
            .push(format!("{migrated} were migrated, and there have completed {completed:?}"));
    }
    report.figure("migrated", migrated);
    report.figure("completed", three + four);
    report.faults.extend(deploy.site.faults().await);
    for version in [3, 4] {
        let saga =
            create_order(version, Duration::from_secs(600)).expect("the definition is right");
        let found = deploy.site.verified(saga.definition()).await;
        for (saga, faults) in found.faults.iter().take(5) {
            let text = faults.join("; ");
            report.faults.push(format!("saga {saga} is not what it was told: {text}"));
        }
    }
    for process in participants.iter_mut().chain([&mut new, &mut again]) {
        stop(process).await;
    }
}

/// SIGTERM, and a clean end.
async fn stop(process: &mut Process) {
    process.signal(Signal::TERM);
    let status = process.ends(STOP_MAX).await;
    assert!(status.success(), "{status}:\n{}", process.log());
}
