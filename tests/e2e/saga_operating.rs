//! Sagas that wait for a person, and what the person does about them, with an engine that runs.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::PgConnection;
use tailrace_saga::operate::{self, By, Change, Filter, Listed, Paging};
use tailrace_saga::{SagaId, Status, Verb};
use tailrace_stack::Stack;
use tests::saga_shop::{Order, Service};
use tests::saga_site::{SagaSite, customer};

use crate::run::{LEAD_MAX, node, stop};

/// Everything that is waited for has happened by then.
const END_MAX: Duration = Duration::from_secs(120);

fn orders(numbers: std::ops::Range<i64>) -> Vec<Order> {
    let order = |number| Order { number, customer: customer(0), cents: 100, ..Order::default() };
    numbers.map(order).collect()
}

/// Waits until so many sagas fit, and all of them are as they are to be.
#[track_caller]
fn until<'a>(
    conn: &'a mut PgConnection,
    filter: Filter,
    count: usize,
    is_so: fn(&Listed) -> bool,
) -> impl Future<Output = Vec<Listed>> + use<'a> {
    let caller = std::panic::Location::caller();
    async move {
        let looking = async {
            let mut tick = tokio::time::interval(Duration::from_millis(50));
            loop {
                tick.tick().await;
                let page = operate::list(conn, &filter, &Paging::default()).await;
                let page = page.expect("sagas are listed");
                if page.sagas.len() == count && page.sagas.iter().all(is_so) {
                    return page.sagas;
                }
            }
        };
        let ended = tokio::time::timeout(END_MAX, looking).await;
        ended.unwrap_or_else(|_| panic!("{caller}: not {count} sagas that are {filter}"))
    }
}

/// Waits until so many sagas fit.
#[track_caller]
fn listed<'a>(
    conn: &'a mut PgConnection,
    filter: Filter,
    count: usize,
) -> impl Future<Output = Vec<Listed>> + use<'a> {
    until(conn, filter, count, |_| true)
}

async fn wants(conn: &mut PgConnection, verb: Verb, query: &str, sagas: &[SagaId]) -> usize {
    let change = Change::verb(verb, By::new("anna").note("payments are back"), query);
    let outcomes = change.make(conn, sagas).await.expect("it is told");
    outcomes.iter().filter(|outcome| outcome.planned.is_ok()).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn sagas_that_wait_for_a_person_end_as_the_person_wants() {
    let stack = Stack::shared().await;
    let site =
        SagaSite::new(stack.postgres(), stack.kafka().brokers(), "saga_operating", 1, &node())
            .await;
    let mut relays = site.relays();
    for relay in &mut relays {
        relay.says("leading", LEAD_MAX).await;
    }
    let mut conn = site.orders.pool.acquire().await.expect("the server serves");
    let _customers = site.participant(Service::Customers, &[]);
    let mut warehouse = site.participant(Service::Warehouse, &[]);
    let patience =
        ["--time-out-ms", "600000", "--pivot-time-out-ms", "300", "--pivot-attempts", "1"];
    let _engine = site.engine(&patience);
    let parked = || Filter::default().state(Status::Parked).step("capture-payment");

    // Nobody takes payments.
    site.place(&orders(0..8)).await;
    let waiting = listed(&mut conn, parked(), 8).await;
    let ids: Vec<SagaId> = waiting.iter().map(|saga| saga.id).collect();
    let too_late = wants(&mut conn, Verb::Compensate, "by id", &ids[..1]).await;
    let step = "capture-payment".into();
    let skipped = wants(&mut conn, Verb::Skip { step }, "by id", &ids[..1]).await;
    let aborted = wants(&mut conn, Verb::Abort, "by id", &ids[1..2]).await;
    let retried =
        wants(&mut conn, Verb::Retry { step: None }, &parked().to_string(), &ids[2..]).await;
    // It is asked for again in another epoch, which alone is answered.
    let asked_again = |saga: &Listed| {
        let instance = saga.instance.as_ref().expect("it is of this release");
        instance.step("capture-payment").expect("its pivot").epoch().get() == 2
    };
    listed(&mut conn, Filter::default().state(Status::Completed), 1).await;
    listed(&mut conn, Filter::default().state(Status::Aborted), 1).await;
    until(&mut conn, parked(), 6, asked_again).await;
    let _payments = site.participant(Service::Payments, &[]);
    listed(&mut conn, Filter::default().state(Status::Completed), 7).await;

    // One that has not asked for its payment yet.
    stop(&mut warehouse).await;
    site.place(&orders(8..9)).await;
    let under_way = Filter::default().step("allocate-stock");
    let last = listed(&mut conn, under_way, 1).await.remove(0).id;
    let undone = wants(&mut conn, Verb::Compensate, "by id", &[last]).await;
    listed(&mut conn, Filter::default().state(Status::Compensating), 1).await;
    let _warehouse = site.participant(Service::Warehouse, &[]);
    listed(&mut conn, Filter::default().state(Status::Compensated), 1).await;

    assert_eq!((too_late, skipped, aborted, retried, undone), (0, 1, 1, 6, 1));
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "SELECT action, count(*) FROM tailrace.saga_audit WHERE actor = 'anna' GROUP BY action",
    )
    .fetch_all(&mut *conn)
    .await
    .expect("the audit is read");
    let audited: BTreeMap<&str, i64> =
        rows.iter().map(|(action, count)| (action.as_str(), *count)).collect();
    let expected = [("abort", 1), ("compensate", 1), ("retry", 6), ("skip", 1)];
    assert_eq!(audited, BTreeMap::from(expected));
    let shown = operate::show(&mut conn, last).await.expect("it is shown").expect("it is there");
    assert!(shown.has_engine && shown.inputs.is_empty(), "{shown:?}");
    let structure = operate::structure(&mut conn, "create-order", None).await.expect("it is read");
    assert!(structure.is_some(), "the engine has stored what it runs");
}
