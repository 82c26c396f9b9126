//! The service that ships orders: an effect in Postgres, once per order.

use std::time::Duration;

use sqlx::PgPool;
use tailrace_idempotency::{BoxError, Config, Consumer, Counters, Cx, Outcome, Report};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::Failure;
use crate::orders::{ORDER_PLACED, OrderPlaced};
use crate::print::Bars;

/// The consumer while it runs.
pub(crate) struct Shipping {
    counters: Counters,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<Report, tailrace_idempotency::Error>>,
    bars: Bars,
}

/// Ships one order. It asks nothing about duplicates: they never come here.
async fn ship(cx: Cx<'_, ()>, placed: OrderPlaced) -> Result<Outcome, BoxError> {
    // One statement for both tables: the shipment, and the check that its customer's orders come
    // one after the other.
    sqlx::query(
        "with shipped_now as ( \
             insert into shipment (order_id, customer, number) values ($1, $2, $3)) \
         insert into shipped as s (customer, last_number, violations) \
         values ($2, $3, case when $3 = 1 then 0 else 1 end) \
         on conflict (customer) do update set last_number = $3, \
             violations = s.violations + case when s.last_number + 1 = $3 then 0 else 1 end",
    )
    .bind(placed.order_id)
    .bind(placed.customer)
    .bind(placed.number)
    .execute(cx.conn)
    .await?;
    Ok(Outcome::Done)
}

/// Starts the consumer.
pub(crate) fn start(brokers: &str, topic: &str, pool: &PgPool, bars: &Bars) -> Shipping {
    let (stop, stopped) = oneshot::channel();
    let group = tailrace_stack::unique("shipping");
    let consumer = Consumer::new(Config::new(group, brokers, pool.clone()))
        .topic(topic)
        .on(ORDER_PLACED, ship);
    let counters = consumer.counters();
    let running = tokio::spawn(consumer.run(async move {
        // A dropped sender stops it too.
        let _ = stopped.await;
    }));
    Shipping { counters, stop, running, bars: bars.clone() }
}

impl Shipping {
    /// Waits until this many records were delivered, then stops the consumer.
    pub(crate) async fn finish(self, delivered: u64) -> Result<Report, Failure> {
        let Shipping { counters, stop, mut running, bars } = self;
        loop {
            let so_far = counters.report();
            bars.applied(so_far.applied);
            bars.suppressed(so_far.duplicates);
            if so_far.delivered >= delivered {
                break;
            }
            tokio::select! {
                ended = &mut running => {
                    let report = ended??;
                    return Err(format!("the consumer ended by itself after {} records", report.delivered).into());
                }
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
        }
        let _ = stop.send(());
        Ok(running.await??)
    }
}
