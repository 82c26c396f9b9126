use super::*;
use crate::builder::Saga;
use crate::fixture::{Order, ReserveCredit, SECOND};
use crate::work::part;

const CUSTOMER: Lock = Lock::named("customer");
const ACCOUNT: Lock = Lock::named("account");
const STOCK: Lock = Lock::named("stock");

fn key(order: &Order) -> [String; 1] {
    [order.customer.clone()]
}

fn saga(name: &str, order: &[&str]) -> crate::builder::BeforePivot<Order> {
    Saga::define(name, 1).lock_order(order)
}

#[test]
fn locks_against_their_order_and_all_else_that_is_wrong_with_them_is_told_at_once() {
    let wrong = saga("wrong", &["customer", "account", "customer", "Bad,Name"])
        .lock(ACCOUNT, key)
        .lock(CUSTOMER.wait(SECOND, OnTimeout::Retry), key)
        .lock(STOCK.ttl(Duration::ZERO), key)
        .lock(ACCOUNT.ttl(Duration::from_secs(400 * 86_400)), key)
        .build();

    let expected = [
        "the lock \"Bad,Name\": its name is not 1 to 100 of a-z, 0-9, - _ and .",
        "two steps are named account",
        "step customer: it waits, and there is nobody to ask again: compensate or park",
        "step stock: its lock's time to live is not between nothing and a year",
        "step account: its lock's time to live is not between nothing and a year",
        "its lock order names customer twice",
        "step customer: locks customer behind account, against the lock order",
        "step stock: locks stock, which is not in the lock order",
    ];
    assert_eq!(wrong.unwrap_err().list(), expected);
}

#[test]
fn locks_in_their_order_are_right_also_where_some_are_left_out() {
    let all = ["customer", "account", "stock"];

    assert!(
        saga("all", &all).lock(CUSTOMER, key).lock(ACCOUNT, key).lock(STOCK, key).build().is_ok()
    );
    assert!(saga("some", &all).lock(CUSTOMER, key).lock(STOCK, key).build().is_ok());
}

fn of(order: &Order) -> Order {
    order.clone()
}

fn ship(locks: &[Lock]) -> Saga<Order> {
    let ship = saga("ship", &["customer", "account", "stock"]);
    locks.iter().fold(ship, |ship, lock| ship.lock(*lock, key)).build().unwrap()
}

#[test]
fn a_saga_and_its_parts_take_their_locks_in_one_order_and_none_twice() {
    let order = |part: &Saga<Order>| {
        saga("order", &["customer", "account"])
            .lock(ACCOUNT, key)
            .step("ship", self::part(part.clone(), of))
            .compensate()
            .build()
    };
    let told = |locks: &[Lock]| order(&ship(locks)).unwrap_err().list().to_vec();

    let itself =
        "step ship: ship/1, which locks account, as its whole does: they would wait for each other";
    assert_eq!(told(&[ACCOUNT]), [itself]);
    let against = "step ship: ship/1, which locks customer behind account, against the lock order";
    assert_eq!(told(&[CUSTOMER]), [against]);
    let unknown = "step ship: ship/1, which locks stock, which is not in the lock order";
    assert_eq!(told(&[STOCK]), [unknown]);
}

#[test]
fn a_part_of_a_part_counts_and_what_a_part_took_before_does_not() {
    let inner = ship(&[CUSTOMER]);
    let outer = saga("outer", &["customer"]).step("ship", part(inner.clone(), of)).compensate();
    let outer = outer.build().unwrap();
    let behind = saga("order", &["customer", "account"])
        .lock(ACCOUNT, key)
        .step("outer", part(outer, of))
        .compensate()
        .build();
    let against =
        "step outer: outer/1, which locks customer behind account, against the lock order";
    assert_eq!(behind.unwrap_err().list(), [against]);

    // A part has given its locks back when the next step begins; parts side by side take turns.
    let before = saga("order", &["account", "customer"])
        .step("ship", part(inner.clone(), of))
        .compensate()
        .lock(ACCOUNT, key)
        .build();
    assert!(before.is_ok());
    let beside = saga("order", &["account", "stock"]).lock(ACCOUNT, key).parallel(|branches| {
        let other = ship(&[STOCK]);
        branches
            .step("one", part(other.clone(), of))
            .compensate()
            .step("two", part(other, of))
            .compensate()
    });
    assert!(beside.build().is_ok());
}

fn ordered(of: &str, locks: &[&str]) -> Ordered {
    Ordered { of: of.to_owned(), locks: locks.iter().map(|lock| (*lock).into()).collect() }
}

fn check(definitions: &[(&str, &[&str])], expected: &[&str]) {
    let definitions: Vec<Ordered> =
        definitions.iter().map(|(of, locks)| ordered(of, locks)).collect();

    assert_eq!(contradictions(&definitions), expected, "{definitions:?}");
}

#[test]
fn orders_that_can_not_all_be_kept_are_told_with_whom() {
    check(
        &[("a/1", &["x", "y"]), ("b/1", &["x", "y", "z"]), ("c/1", &["y", "z"]), ("d/1", &[])],
        &[],
    );
    check(
        &[("a/1", &["x", "y", "z"]), ("b/1", &["z", "x"]), ("c/1", &["y", "x"])],
        &["a/1 locks x before y, and c/1 y before x", "a/1 locks x before z, and b/1 z before x"],
    );
    check(
        &[("a/1", &["w", "x", "y"]), ("b/1", &["y", "z"]), ("c/1", &["z", "x"])],
        &["their lock orders go in a circle: x, y, z"],
    );
    check(&[("a/1", &["x", "y"]), ("b/1", &["y", "z"]), ("c/1", &["z", "v"])], &[]);
}

#[test]
fn keys_are_in_order_each_once_and_bounded() {
    let keys = |keys: &[&str]| in_order(keys.iter().map(|key| (*key).to_owned()));

    assert_eq!(keys(&["b", "a", "b"]), Ok(vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(keys(&[]), Ok(Vec::new()));
    assert!(keys(&["a\0"]).is_err());
    assert!(keys(&["a".repeat(LOCK_KEY_BYTES_MAX).as_str()]).is_ok());
    assert!(keys(&["a".repeat(LOCK_KEY_BYTES_MAX + 1).as_str()]).is_err());
}

#[test]
fn the_step_of_a_lock_is_named_after_it() {
    let saga = saga("short", &["account"])
        .lock(ACCOUNT, key)
        .step("reserve", ReserveCredit::of)
        .compensate()
        .build()
        .unwrap();

    let lock = saga.definition().step("account").and_then(|step| step.lock());
    assert_eq!(lock, Some(&ACCOUNT));
    assert_eq!(saga.definition().lock_order(), [Box::from("account")]);
}
