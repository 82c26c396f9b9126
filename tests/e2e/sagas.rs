//! Sagas over three participants in databases of their own, on relays and Kafka.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;
use tailrace_stack::Stack;
use tests::process::Process;
use tests::saga_shop::{Order, SERVICES, Service, create_order_in_turn};
use tests::saga_site::{SagaSite, customer};

use crate::run::{LEAD_MAX, node, stop};

/// Every saga has ended by then.
const END_MAX: Duration = Duration::from_secs(120);
const CUSTOMERS: u64 = 5;

async fn site(name: &str) -> (SagaSite, Vec<Process>) {
    let stack = Stack::shared().await;
    let site =
        SagaSite::new(stack.postgres(), stack.kafka().brokers(), name, CUSTOMERS, &node()).await;
    let mut relays = site.relays();
    for relay in &mut relays {
        relay.says("leading", LEAD_MAX).await;
    }
    (site, relays)
}

fn order(number: i64, refused_by: Option<Service>) -> Order {
    Order {
        number,
        customer: customer(number.unsigned_abs() % CUSTOMERS),
        cents: 100 + number,
        refused_by: refused_by.map(|service| service.name().to_owned()),
        hold: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sagas_complete_or_are_undone_wherever_they_are_refused() {
    let (site, _relays) = site("sagas").await;
    let mut participants = SERVICES.map(|service| site.participant(service, &[]));
    let mut engine = site.engine(&[]);

    let refusing =
        [None, Some(Service::Customers), Some(Service::Warehouse), Some(Service::Payments)];
    let orders: Vec<Order> = (0..40)
        .map(|number: i64| order(number, refusing[usize::try_from(number % 4).unwrap()]))
        .collect();
    site.place(&orders).await;
    let standing = site.ended(40, END_MAX).await;

    assert_eq!((standing.completed, standing.compensated, standing.parked), (10, 30, 0));
    assert_eq!(site.faults().await, [""; 0]);
    stop(&mut engine).await;
    for participant in &mut participants {
        stop(participant).await;
    }
}

/// An engine that runs these versions, which does its first work by the time that this returns.
async fn engine(site: &SagaSite, versions: &[&str]) -> Process {
    let versions = versions.iter().flat_map(|version| ["--saga-version", version]);
    // Nothing is given up meanwhile.
    let more: Vec<&str> = ["--time-out-ms", "600000"].into_iter().chain(versions).collect();
    let mut engine = site.engine(&more);
    engine.says("assigned partitions=", LEAD_MAX).await;
    engine
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_engine_takes_the_answers_that_came_meanwhile_and_a_killed_participant_goes_on() {
    let (site, _relays) = site("saga_killed").await;
    let mut first = engine(&site, &["1"]).await;
    let orders: Vec<Order> = (0..20).map(|number| order(number, None)).collect();
    site.place(&orders).await;
    site.follow(0..20, 1, END_MAX).await;

    // Its commands are on their way, and it hears no answer.
    first.signal(Signal::KILL);
    first.ends(END_MAX).await;
    let mut participants = SERVICES.map(|service| site.participant(service, &[]));
    site.carried_out(Service::Customers, 20, END_MAX).await;
    let _second = engine(&site, &["1"]).await;
    site.carried_out(Service::Warehouse, 1, END_MAX).await;
    for participant in &mut participants {
        participant.signal(Signal::KILL);
        participant.ends(END_MAX).await;
    }
    let _others = SERVICES.map(|service| site.participant(service, &[]));
    let standing = site.ended(20, END_MAX).await;

    assert_eq!((standing.completed, standing.compensated), (20, 0));
    assert_eq!(site.faults().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn participants_slower_than_every_time_out_neither_hold_a_saga_for_ever_nor_act_twice() {
    let (site, _relays) = site("saga_slow").await;
    let slow = ["--slow-every", "1", "--slow-for-ms", "1500"];
    let _participants = SERVICES.map(|service| site.participant(service, &slow));
    let _engine = site.engine(&["--time-out-ms", "1000"]);

    let orders: Vec<Order> = (0..6).map(|number| order(number, None)).collect();
    site.place(&orders).await;
    let standing = site.ended(6, END_MAX).await;

    assert_eq!((standing.all, standing.parked), (6, 0));
    assert_eq!(site.faults().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_of_one_customer_are_done_in_turn_by_two_engines_of_which_one_is_killed() {
    let (site, _relays) = site("saga_turns").await;
    let in_turn = ["--in-turn", "--time-out-ms", "600000"];
    let _participants = SERVICES.map(|service| site.participant(service, &[]));
    let mut killed = site.engine(&in_turn);
    let _other = site.engine(&in_turn);

    let orders: Vec<Order> = (0..40)
        .map(|number: i64| order(number, (number % 3 == 0).then_some(Service::Payments)))
        .collect();
    site.place(&orders).await;
    site.carried_out(Service::Payments, 5, END_MAX).await;
    killed.signal(Signal::KILL);
    killed.ends(END_MAX).await;
    let _third = site.engine(&in_turn);
    let standing = site.ended(40, END_MAX).await;

    assert_eq!((standing.completed, standing.compensated, standing.parked), (26, 14, 0));
    assert_eq!(site.faults_of_turns().await, [""; 0]);
    let saga = create_order_in_turn(1, Duration::from_secs(600)).unwrap();
    assert_eq!(site.verified(saga.definition()).await.faults, BTreeMap::new());
    assert_eq!(site.faults().await, [""; 0]);
}
