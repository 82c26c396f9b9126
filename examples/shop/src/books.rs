//! The books, checked from outside: what each database says of the orders that have ended, held against what it has to say.
//!
//! No two databases are read at the same moment, so only ended orders can be compared; the ledger of each one balances at
//! every moment.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;
use sqlx::Row;
use uuid::Uuid;

use crate::Failure;
use crate::order::Style;
use crate::services::shipping::POSTAGE;
use crate::stage::Stage;

/// Faults that are told; there may be more.
const FAULTS_TOLD: usize = 10;

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Books {
    /// Orders that have not ended, and are not covered.
    pub(crate) running: u64,
    /// Orders that have.
    pub(crate) ended: u64,
    /// How many things are wrong.
    pub(crate) wrong: u64,
    /// Some of them.
    pub(crate) faults: Vec<String>,
    #[serde(skip)]
    pub(crate) orders: Vec<Ended>,
}

/// An order that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) style: String,
    pub(crate) completed: bool,
    pub(crate) reason: Option<String>,
    /// From the order to its outcome.
    pub(crate) took_ms: f64,
    /// How many steps were undone for it.
    pub(crate) undone: u64,
}

/// What was found in the control lane.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct ControlBooks {
    pub(crate) orders: u64,
    pub(crate) completed: u64,
    /// Orders that were paid for, and say nothing of it, or the other way round.
    pub(crate) lost: u64,
    /// Orders that were paid for more than once.
    pub(crate) doubled: u64,
}

impl ControlBooks {
    pub(crate) fn wrong(&self) -> u64 {
        self.lost + self.doubled
    }
}

/// The sum of each account, by order.
type Sums = HashMap<Uuid, BTreeMap<String, i64>>;

/// Accounts from which something goes out for an order. What comes back to one of them was undone.
const HOME_ACCOUNTS: [&str; 4] = ["customers", "stock", "postage-budget", "cards"];

struct Ledger {
    service: &'static str,
    sums: Sums,
    undone: HashMap<Uuid, u64>,
}

impl Ledger {
    async fn read(stage: &Stage, service: &'static str) -> Result<Self, Failure> {
        let rows = sqlx::query(
            "SELECT order_id, account, sum(amount)::bigint, count(*) FILTER (WHERE amount > 0)
             FROM ledger GROUP BY order_id, account",
        )
        .fetch_all(&stage.home(service)?.pool)
        .await?;
        let mut ledger = Ledger { service, sums: Sums::new(), undone: HashMap::new() };
        for row in rows {
            let (order, account): (Uuid, String) = (row.try_get(0)?, row.try_get(1)?);
            if HOME_ACCOUNTS.contains(&account.as_str()) {
                let back: i64 = row.try_get(3)?;
                *ledger.undone.entry(order).or_default() += back.unsigned_abs();
            }
            ledger.sums.entry(order).or_default().insert(account, row.try_get(2)?);
        }
        Ok(ledger)
    }

    fn sum(&self, order: Uuid, account: &str) -> i64 {
        self.sums.get(&order).and_then(|sums| sums.get(account)).copied().unwrap_or_default()
    }

    /// What is wrong with an order, where these are the only accounts that have something.
    fn fault(&self, order: Uuid, expected: &[(&str, i64)]) -> Option<String> {
        let empty = BTreeMap::new();
        let found = self.sums.get(&order).unwrap_or(&empty);
        let found: BTreeMap<&str, i64> =
            found.iter().map(|(account, sum)| (account.as_str(), *sum)).collect();
        let accounts: HashSet<&str> =
            found.keys().copied().chain(expected.iter().map(|(account, _)| *account)).collect();
        let wanted: BTreeMap<&str, i64> = expected.iter().copied().collect();
        let sum = |of: &BTreeMap<&str, i64>, account| of.get(account).copied().unwrap_or_default();
        let is_right = accounts.iter().all(|it| sum(&found, it) == sum(&wanted, it));
        (!is_right).then(|| {
            format!("order {order}: {} has {found:?}, and should have {wanted:?}", self.service)
        })
    }
}

/// Checks the four services of both sagas, and the provider.
pub(crate) async fn check(stage: &Stage) -> Result<Books, Failure> {
    // The orders first: what ends after that is not covered, and what is covered had ended before its ledgers are read.
    let rows = sqlx::query(
        "SELECT id, style, cents, quantity, state, reason,
             (extract(epoch FROM ended_at - placed_at) * 1000)::float8 FROM orders",
    )
    .fetch_all(&stage.home("orders")?.pool)
    .await?;
    let (orders, payments) =
        (Ledger::read(stage, "orders").await?, Ledger::read(stage, "payments").await?);
    let (stock, shipping) =
        (Ledger::read(stage, "stock").await?, Ledger::read(stage, "shipping").await?);
    let ledgers = [&orders, &payments, &stock, &shipping];
    let url = format!("http://{}/charges", stage.address("provider")?);
    let charged: HashMap<Uuid, i64> = stage.client.get(url).send().await?.json().await?;

    let mut books = Books::default();
    let mut faults = Vec::new();
    let mut known = HashSet::new();
    for row in rows {
        let (id, cents, quantity): (Uuid, i64, i64) =
            (row.try_get(0)?, row.try_get(2)?, row.try_get(3)?);
        let state: String = row.try_get(4)?;
        known.insert(id);
        let Some(took_ms) = row.try_get::<Option<f64>, _>(6)? else {
            books.running += 1;
            continue;
        };
        books.ended += 1;
        let completed = state == "completed";
        let [cents, quantity, postage] =
            if completed { [cents, quantity, POSTAGE] } else { [0, 0, 0] };
        let (bank, lent) = (payments.sum(id, "bank"), payments.sum(id, "in-transit"));
        let lost = payments.sum(id, "losses");
        faults.extend(orders.fault(id, &[("customers", -cents), ("sales", cents)]));
        faults.extend(stock.fault(id, &[("stock", -quantity), ("sold", quantity)]));
        faults.extend(shipping.fault(id, &[("postage-budget", -postage), ("carrier", postage)]));
        let paid = [
            ("cards", -cents),
            ("bank", cents - lent - lost),
            ("in-transit", lent),
            ("losses", lost),
        ];
        faults.extend(payments.fault(id, &paid));
        let at_provider = charged.get(&id).copied().unwrap_or_default();
        // What is lent may have been charged by a call that nobody heard the answer of.
        if at_provider != bank && (lent == 0 || at_provider != lent) {
            faults.push(format!("order {id}: the provider has {at_provider}, and the bank {bank}"));
        }
        let undone = ledgers.iter().filter_map(|ledger| ledger.undone.get(&id)).sum();
        let (style, reason) = (row.try_get(1)?, row.try_get(5)?);
        books.orders.push(Ended { style, completed, reason, took_ms, undone });
    }
    // An order may have been placed after the orders were read, but nothing is done for one that nobody placed.
    let placed: HashSet<Uuid> = orders.sums.keys().copied().collect();
    for ledger in ledgers {
        let foreign = ledger.sums.keys().filter(|id| !known.contains(id) && !placed.contains(id));
        let unknown = foreign.count();
        if unknown > 0 && books.running == 0 {
            faults.push(format!("{} has {unknown} orders that nobody placed", ledger.service));
        }
    }
    books.wrong = faults.len() as u64;
    faults.truncate(FAULTS_TOLD);
    books.faults = faults;
    Ok(books)
}

/// Checks the control lane, of which each order has to be completed and paid for once.
pub(crate) async fn check_control(stage: &Stage) -> Result<ControlBooks, Failure> {
    let rows = sqlx::query("SELECT id, cents, state FROM control_order")
        .fetch_all(&stage.home("control")?.pool)
        .await?;
    let orders = Ledger::read(stage, "control").await?;
    let payments = Ledger::read(stage, "control_payments").await?;
    let mut books = ControlBooks { orders: rows.len() as u64, ..ControlBooks::default() };
    for row in rows {
        let (id, cents, state): (Uuid, i64, String) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        books.completed += u64::from(state == "completed");
        let (sold, paid) = (orders.sum(id, "sales"), payments.sum(id, "bank"));
        if sold > cents || paid > cents {
            books.doubled += 1;
        } else if sold != cents || paid != cents {
            books.lost += 1;
        }
    }
    Ok(books)
}

impl Books {
    /// The orders of a style.
    pub(crate) fn of(&self, style: Style) -> impl Iterator<Item = &Ended> {
        self.orders.iter().filter(move |order| order.style == style.as_str())
    }
}
