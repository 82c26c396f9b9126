//! Sagas over three participants in databases of their own, on relays and Kafka.

use std::time::Duration;

use tailrace_stack::Stack;
use tests::process::Process;
use tests::saga_shop::{Order, SERVICES, Service};
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

    let refusing = [None, Some(Service::Customers), Some(Service::Warehouse), Some(Service::Payments)];
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
