//! The books, checked from outside: what each database says of the orders that have ended, held against what it has to say.
//!
//! No two databases are read at the same moment, so only ended orders can be compared; the ledger of each one balances at
//! every moment.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::Failure;
use crate::order::Style;
use crate::services::shipping::POSTAGE;
use crate::services::storefront::points::{CREDITED, ISSUED, points_of};
use crate::stage::Stage;

/// Faults that are told; there may be more.
const FAULTS_TOLD: usize = 10;
/// The control lane has carried an order through by then, or it never does.
const YOUNG_FOR: Duration = Duration::from_secs(10);

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Books {
    /// Orders that have not ended, and are not covered.
    pub(crate) running: u64,
    /// Orders that have.
    pub(crate) ended: u64,
    /// How many things are wrong.
    pub(crate) wrong: u64,
    /// How many more are wrong of orders that have ended just now: what is undone, or told, may be on its way.
    pub(crate) settling: u64,
    /// Some of them.
    pub(crate) faults: Vec<String>,
    /// The ledger of each database.
    pub(crate) ledgers: Vec<LedgerSums>,
    #[serde(skip)]
    pub(crate) orders: Vec<Ended>,
}

/// The ledger of a database, over all orders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LedgerSums {
    pub(crate) database: &'static str,
    /// What stands on each account; together it is nothing.
    pub(crate) accounts: BTreeMap<String, i64>,
    /// The sum over the accounts, which has to be 0.
    pub(crate) balance: i64,
    /// Orders that do not have what they should, counting those that have ended just now.
    pub(crate) wrong: u64,
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct ControlBooks {
    pub(crate) orders: u64,
    pub(crate) completed: u64,
    /// Orders that were paid for, and say nothing of it, or the other way round.
    pub(crate) lost: u64,
    /// How many of these were placed just now, and may only be on their way.
    pub(crate) late: u64,
    /// Orders that were paid for more than once.
    pub(crate) doubled: u64,
    /// The ledgers of its two databases.
    pub(crate) ledgers: Vec<LedgerSums>,
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

    /// What stands on the accounts, over all orders, and in how many of them something is wrong.
    fn total(&self, wrong: u64) -> LedgerSums {
        let mut accounts: BTreeMap<String, i64> = BTreeMap::new();
        for (account, sum) in self.sums.values().flatten() {
            *accounts.entry(account.clone()).or_default() += sum;
        }
        let balance = accounts.values().sum();
        LedgerSums { database: self.service, accounts, balance, wrong }
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

/// An order, as the orders service has it.
struct Order {
    id: Uuid,
    cents: i64,
    quantity: i64,
    ended: Option<Ended>,
    /// Whether it has ended just now.
    settles: bool,
}

impl Order {
    async fn read(stage: &Stage) -> Result<Vec<Self>, Failure> {
        let rows = sqlx::query(
            "SELECT id, style, cents, quantity, state, reason,
                 (extract(epoch FROM ended_at - placed_at) * 1000)::float8,
                 coalesce(ended_at > clock_timestamp() - interval '60 seconds', true)
             FROM orders",
        )
        .fetch_all(&stage.home("orders")?.pool)
        .await?;
        rows.iter().map(Order::of_row).collect::<Result<_, _>>().map_err(Failure::from)
    }

    fn of_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let ended = match row.try_get::<Option<f64>, _>(6)? {
            None => None,
            Some(took_ms) => Some(Ended {
                style: row.try_get(1)?,
                completed: row.try_get::<String, _>(4)? == "completed",
                reason: row.try_get(5)?,
                took_ms,
                undone: 0,
            }),
        };
        let (id, cents, quantity) = (row.try_get(0)?, row.try_get(2)?, row.try_get(3)?);
        Ok(Order { id, cents, quantity, ended, settles: row.try_get(7)? })
    }
}

/// What all the others have of the orders.
struct Others {
    orders: Ledger,
    payments: Ledger,
    stock: Ledger,
    shipping: Ledger,
    points: Ledger,
    /// What the provider has charged.
    charged: HashMap<Uuid, i64>,
}

impl Others {
    async fn read(stage: &Stage) -> Result<Self, Failure> {
        let url = format!("http://{}/charges", stage.address("provider")?);
        Ok(Others {
            orders: Ledger::read(stage, "orders").await?,
            payments: Ledger::read(stage, "payments").await?,
            stock: Ledger::read(stage, "stock").await?,
            shipping: Ledger::read(stage, "shipping").await?,
            points: Ledger::read(stage, "storefront").await?,
            charged: stage.client.get(url).send().await?.json().await?,
        })
    }

    fn ledgers(&self) -> [&Ledger; 5] {
        [&self.orders, &self.payments, &self.stock, &self.shipping, &self.points]
    }

    /// Everything that is wrong with an order that has ended, and in whose books.
    fn faults(&self, order: &Order, completed: bool) -> Vec<(&'static str, String)> {
        let id = order.id;
        let [cents, quantity, postage] = match completed {
            true => [order.cents, order.quantity, POSTAGE],
            false => [0, 0, 0],
        };
        let points = points_of(cents);
        // What the shop has lent is collected later, or lost: all three are a payment.
        let (lent, lost) = (self.payments.sum(id, "in-transit"), self.payments.sum(id, "losses"));
        let bank = cents - lent - lost;
        let paid = [("cards", -cents), ("bank", bank), ("in-transit", lent), ("losses", lost)];
        let expected: [(&Ledger, &[(&str, i64)]); 5] = [
            (&self.orders, &[("customers", -cents), ("sales", cents)]),
            (&self.stock, &[("stock", -quantity), ("sold", quantity)]),
            (&self.shipping, &[("postage-budget", -postage), ("carrier", postage)]),
            (&self.points, &[(ISSUED, -points), (CREDITED, points)]),
            (&self.payments, &paid),
        ];
        let mut faults: Vec<(&'static str, String)> = expected
            .into_iter()
            .filter_map(|(ledger, sums)| Some((ledger.service, ledger.fault(id, sums)?)))
            .collect();
        let charged = self.charged.get(&id).copied().unwrap_or_default();
        // What is lent may have been charged by a call whose answer nobody has heard.
        if charged != bank && (lent == 0 || charged != lent) {
            let text = format!("order {id}: the provider has {charged}, and the bank {bank}");
            faults.push((self.payments.service, text));
        }
        faults
    }
}

/// Checks all services of both sagas, and the provider.
pub(crate) async fn check(stage: &Stage) -> Result<Books, Failure> {
    // The orders first: what ends later is not covered.
    let orders = Order::read(stage).await?;
    let others = Others::read(stage).await?;
    let mut books = Books::default();
    let mut wrong_in: BTreeMap<&'static str, u64> = BTreeMap::new();
    let known: HashSet<Uuid> = orders.iter().map(|order| order.id).collect();
    for order in orders {
        let Some(ended) = &order.ended else {
            books.running += 1;
            continue;
        };
        books.ended += 1;
        let faults = others.faults(&order, ended.completed);
        match order.settles {
            true => books.settling += faults.len() as u64,
            false => books.wrong += faults.len() as u64,
        }
        for (service, fault) in faults {
            *wrong_in.entry(service).or_default() += 1;
            books.faults.push(fault);
        }
        let undone = others.ledgers().iter().filter_map(|it| it.undone.get(&order.id)).sum();
        books.orders.push(Ended { undone, ..ended.clone() });
    }
    // Nothing is done for an order that nobody has placed; one may have been placed while this was read.
    for ledger in others.ledgers() {
        let foreign = |id: &&Uuid| !known.contains(id) && !others.orders.sums.contains_key(id);
        let unknown = ledger.sums.keys().filter(foreign).count() as u64;
        if books.running == 0 && unknown > 0 {
            let text = format!("{} has {unknown} orders that nobody has placed", ledger.service);
            books.faults.push(text);
            books.wrong += unknown;
            *wrong_in.entry(ledger.service).or_default() += unknown;
        }
        let wrong = wrong_in.get(ledger.service).copied().unwrap_or_default();
        books.ledgers.push(ledger.total(wrong));
    }
    books.faults.truncate(FAULTS_TOLD);
    Ok(books)
}

/// Checks the control lane, of which each order has to be completed and paid for once.
pub(crate) async fn check_control(stage: &Stage) -> Result<ControlBooks, Failure> {
    let rows = sqlx::query("SELECT id, cents, state FROM control_order")
        .fetch_all(&stage.home("control")?.pool)
        .await?;
    let orders = Ledger::read(stage, "control").await?;
    let payments = Ledger::read(stage, "control_payments").await?;
    let mut due = HashMap::new();
    let mut books = ControlBooks { orders: rows.len() as u64, ..ControlBooks::default() };
    for row in rows {
        let (id, cents, state): (Uuid, i64, String) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        due.insert(id, cents);
        books.completed += u64::from(state == "completed");
        let (sold, paid) = (orders.sum(id, "sales"), payments.sum(id, "bank"));
        if sold > cents || paid > cents {
            books.doubled += 1;
        } else if sold != cents || paid != cents {
            books.lost += 1;
            books.late += u64::from(is_young(id));
        }
    }
    let wrong = |ledger: &Ledger, account: &str, cents: &HashMap<Uuid, i64>| {
        cents.iter().filter(|(id, cents)| ledger.sum(**id, account) != **cents).count() as u64
    };
    books.ledgers = vec![
        orders.total(wrong(&orders, "sales", &due)),
        payments.total(wrong(&payments, "bank", &due)),
    ];
    Ok(books)
}

/// Whether an order was placed just now, as its id says.
fn is_young(order: Uuid) -> bool {
    let placed = order.get_timestamp().map(|at| at.to_unix());
    let placed = placed.map(|(seconds, nanos)| UNIX_EPOCH + Duration::new(seconds, nanos));
    placed.and_then(|at| at.elapsed().ok()).is_none_or(|age| age < YOUNG_FOR)
}

impl Books {
    /// The orders of a style.
    pub(crate) fn of(&self, style: Style) -> impl Iterator<Item = &Ended> {
        self.orders.iter().filter(move |order| order.style == style.as_str())
    }
}
