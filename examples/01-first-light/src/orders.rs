//! The service that takes orders: the row and its message in one transaction.

use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tailrace_outbox::Message;

use crate::Failure;
use crate::print::Bars;

/// Type of the message that announces an order.
pub(crate) const ORDER_PLACED: &str = "order.placed.v1";

/// Connections that place orders at the same time.
const WRITERS: u32 = 8;

const CUSTOMERS: u64 = 500;

/// How many orders, and which of them go wrong at first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) orders: u32,
    pub(crate) seed: u64,
}

/// What is said of an order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OrderPlaced {
    pub(crate) order_id: i64,
    pub(crate) customer: i32,
    /// The how-manieth order of this customer it is.
    pub(crate) number: i64,
}

/// What becomes of the first try to place an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstTry {
    Commits,
    /// The whole transaction is rolled back; another one places the order.
    RollsBack,
    /// It is rolled back to a savepoint; the same transaction tries again.
    RollsBackToSavepoint,
}

impl Plan {
    /// The customer of the n-th order and the fate of its first try; the same for the same seed.
    fn decide(self, n: u32) -> (i32, FirstTry) {
        let roll = splitmix(self.seed.wrapping_add(u64::from(n)));
        let customer = i32::try_from(roll % CUSTOMERS + 1).expect("a few hundred customers");
        let first_try = match (roll >> 32) % 20 {
            0 => FirstTry::RollsBack,
            1 => FirstTry::RollsBackToSavepoint,
            _ => FirstTry::Commits,
        };
        (customer, first_try)
    }
}

/// Scatters numbers (splitmix64).
fn splitmix(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Places all orders of the plan on several connections; returns how many tries were rolled back.
pub(crate) async fn place(
    pool: PgPool,
    topic: String,
    plan: Plan,
    bars: Bars,
) -> Result<u64, Failure> {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (pool, topic, bars) = (pool.clone(), topic.clone(), bars.clone());
        writers.spawn(async move {
            let mut rolled_back = 0;
            for n in (writer..plan.orders).step_by(WRITERS as usize) {
                let (customer, first_try) = plan.decide(n);
                business_transaction(&pool, &topic, customer, first_try).await?;
                rolled_back += u64::from(first_try != FirstTry::Commits);
                bars.written();
            }
            Ok::<_, Failure>(rolled_back)
        });
    }
    let mut rolled_back = 0;
    while let Some(written) = writers.join_next().await {
        rolled_back += written??;
    }
    Ok(rolled_back)
}

async fn business_transaction(
    pool: &PgPool,
    topic: &str,
    customer: i32,
    first_try: FirstTry,
) -> Result<(), Failure> {
    let mut tx = pool.begin().await?;
    match first_try {
        FirstTry::Commits => {}
        FirstTry::RollsBack => {
            order(&mut tx, topic, customer).await?;
            tx.rollback().await?;
            tx = pool.begin().await?;
        }
        FirstTry::RollsBackToSavepoint => {
            sqlx::raw_sql("savepoint first_try").execute(&mut *tx).await?;
            order(&mut tx, topic, customer).await?;
            sqlx::raw_sql("rollback to savepoint first_try").execute(&mut *tx).await?;
        }
    }
    order(&mut tx, topic, customer).await?;
    tx.commit().await?;
    Ok(())
}

/// One order and its message; the transaction is the caller's.
async fn order(tx: &mut sqlx::PgConnection, topic: &str, customer: i32) -> Result<(), Failure> {
    let (number,): (i64,) =
        sqlx::query_as("update customer set orders = orders + 1 where id = $1 returning orders")
            .bind(customer)
            .fetch_one(&mut *tx)
            .await?;
    let (order_id,): (i64,) =
        sqlx::query_as("insert into orders (customer, number) values ($1, $2) returning id")
            .bind(customer)
            .bind(number)
            .fetch_one(&mut *tx)
            .await?;
    let message = Message::builder(topic, ORDER_PLACED)
        .source("/orders")
        .key(format!("customer-{customer}"))
        .subject(format!("order-{order_id}"))
        .json(&OrderPlaced { order_id, customer, number })
        .build()?;
    tailrace_outbox::write(tx, &message).await?;
    Ok(())
}
