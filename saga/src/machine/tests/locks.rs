//! Locks: when they are wanted, what is held, and what becomes of what is not wanted any more.

use super::*;
use crate::lock::Lock;
use crate::transition::{LockKey, LockMove};

const ACCOUNT: Lock = Lock::named("account")
    .ttl(Duration::from_secs(600))
    .wait(Duration::from_secs(30), OnTimeout::Compensate);

const ORDER: [&str; 2] = ["customer", "account"];

fn keys(order: &Order) -> Vec<String> {
    order.customer.split('+').map(str::to_owned).collect()
}

fn transfer_with(lock: Lock) -> Saga<Order> {
    Saga::define("transfer", 1)
        .lock_order(&ORDER)
        .step("quote", QuoteShipping::of)
        .on_reply(|order, ()| order.cents = 1)
        .no_effect()
        .lock(lock, keys)
        .step("reserve", ReserveCredit::of)
        .compensate()
        .pivot("pay", CapturePayment::of)
        .timeout(3600 * SECOND, Forward::Retry)
        .retriable("mail", SendMail::of)
        .build()
        .unwrap()
}

/// It waits for the first of these accounts.
fn waiting_for(accounts: &str, lock: Lock) -> Scenario<Order> {
    let order = Order { customer: accounts.to_owned(), ..order() };
    Scenario::given(&transfer_with(lock), &order).when_done("quote", &())
}

fn waiting() -> Scenario<Order> {
    waiting_for("ada", ACCOUNT)
}

fn held() -> Scenario<Order> {
    waiting().when_held("account")
}

fn at_its_pivot() -> Scenario<Order> {
    held().when_done("reserve", &HELD).then_asks(&["do pay"])
}

fn given(key: &str) -> Input {
    Input::Held { step: "account".into(), key: key.to_owned() }
}

/// What a scenario does with locks when it is told something.
fn moves(scenario: &Scenario<Order>, input: Input, now: SystemTime) -> (Verdict, Vec<LockMove>) {
    let saga = transfer_with(ACCOUNT);
    let turn = step(saga.definition(), scenario.instance(), input, now).unwrap();
    (turn.verdict, turn.locks)
}

fn release(key: &str) -> LockMove {
    LockMove::Release(LockKey { name: "account".into(), key: key.to_owned() })
}

#[test]
fn a_saga_goes_on_once_it_has_its_lock_and_gives_it_back_when_it_is_over() {
    waiting()
        .then_asks(&["lock account"])
        .then_stands_in_line(&["account ada"])
        .then_holds(&[])
        .when_held("account")
        .then_asks(&["do reserve"])
        .then_holds(&["account ada"])
        .when_done("reserve", &HELD)
        .when_done("pay", &())
        .then_holds(&["account ada"])
        .when_done("mail", &())
        .then_is(Status::Completed)
        .then_holds(&[]);
}

#[test]
fn a_lock_is_kept_until_everything_is_undone() {
    let undone = at_its_pivot()
        .when_refused("pay", &())
        .then_asks(&["undo reserve"])
        .then_holds(&["account ada"])
        .when_undone("reserve")
        .then_is(Status::Compensated)
        .then_holds(&[]);

    let what: Vec<&Happening> = undone.journal().iter().map(|entry| &entry.what).collect();
    let key = || "ada".to_owned();
    for noted in [
        Happening::LockWanted { key: key() },
        Happening::LockHeld { key: key() },
        Happening::Unlocked,
    ] {
        assert_eq!(what.iter().filter(|what| ***what == noted).count(), 1, "{noted:?}");
    }
    assert!(!what.contains(&&Happening::LockLeft { key: key() }));
}

#[test]
fn keys_are_taken_one_after_another_in_their_order_each_once() {
    waiting_for("bob+ada+bob", ACCOUNT)
        .then_stands_in_line(&["account ada"])
        .when_held("account")
        .then_asks(&["lock account"])
        .then_stands_in_line(&["account bob"])
        .when_held("account")
        .then_asks(&["do reserve"])
        .then_holds(&["account ada", "account bob"])
        .when_cancelled()
        .when_undone("reserve")
        .then_holds(&[]);
}

#[test]
fn a_saga_with_nothing_to_lock_goes_on() {
    let saga = Saga::<Order>::define("free", 1)
        .lock_order(&ORDER)
        .lock(ACCOUNT, |_: &Order| [])
        .step("reserve", ReserveCredit::of)
        .compensate()
        .build()
        .unwrap();

    let free = Scenario::given(&saga, &order()).then_asks(&["do reserve"]);

    assert_eq!(free.instance().step("account").unwrap().due(), None);
}

#[test]
fn what_was_to_be_locked_stays_so_whatever_becomes_of_the_data() {
    let saga = Saga::<Order>::define("changing", 1)
        .lock_order(&ORDER)
        .lock(ACCOUNT.wait(SECOND, OnTimeout::Park), keys)
        .build()
        .unwrap();
    let stuck = Scenario::given(&saga, &order()).when_time_passes(SECOND).then_stuck(&["account"]);
    let mut instance = stuck.instance().clone();
    instance.data["customer"] = json!("bob");
    let retry = Verb::Retry { step: Some("account".into()) };

    let again = Input::Operator { by: "eve".into(), verb: retry };
    let turn = step(saga.definition(), &instance, again, at(9)).unwrap();

    let lock = LockKey { name: "account".into(), key: "ada".to_owned() };
    assert_eq!(turn.locks, [LockMove::Take { lock, ttl: ACCOUNT.ttl }]);
}

#[test]
fn who_is_cancelled_while_he_waits_leaves_the_line_and_keeps_nothing() {
    waiting().when_cancelled().then_stands_in_line(&[]).then_is(Status::Compensated);
    waiting_for("ada+bob", ACCOUNT)
        .when_held("account")
        .then_stands_in_line(&["account bob"])
        .when_cancelled()
        .then_stands_in_line(&[])
        .then_holds(&[])
        .then_is(Status::Compensated);
}

#[test]
fn who_waits_for_too_long_is_undone_or_waits_for_a_person_in_his_place() {
    waiting()
        .when_time_passes(29 * SECOND)
        .then_is(Status::Running)
        .when_time_passes(SECOND)
        .then_is(Status::Compensated)
        .then_stands_in_line(&[]);

    let parked = || {
        waiting_for("ada", ACCOUNT.wait(SECOND, OnTimeout::Park))
            .when_time_passes(SECOND)
            .then_stuck(&["account"])
            .then_stands_in_line(&["account ada"])
    };
    // His turn comes after all.
    parked().when_held("account").then_stuck(&[]).then_asks(&["do reserve"]);
    let skip = Verb::Skip { step: "account".into() };
    parked()
        .when_operator("eve", skip)
        .then_stands_in_line(&[])
        .then_holds(&[])
        .then_asks(&["do reserve"]);
    parked().when_operator("eve", Verb::Abort).then_stands_in_line(&[]).then_is(Status::Aborted);
}

#[test]
fn a_lock_that_comes_when_it_is_not_wanted_any_more_is_given_to_the_next() {
    let left = waiting().when_cancelled();
    assert_eq!(moves(&left, given("ada"), at(1)), (Verdict::Stale, vec![release("ada")]));

    let undoing = at_its_pivot().when_refused("pay", &());
    assert_eq!(moves(&undoing, given("bob"), at(1)), (Verdict::Stale, vec![release("bob")]));

    let over = held().when_operator("eve", Verb::Abort);
    assert_eq!(moves(&over, given("ada"), at(1)), (Verdict::Stale, vec![release("ada")]));

    let not_yet = Scenario::given(&transfer_with(ACCOUNT), &order());
    assert_eq!(moves(&not_yet, given("ada"), at(1)), (Verdict::Stale, vec![release("ada")]));
    let another = waiting();
    assert_eq!(moves(&another, given("bob"), at(1)), (Verdict::Stale, vec![release("bob")]));
    let nobodys = Input::Held { step: "nothing".into(), key: "ada".to_owned() };
    let lock = LockKey { name: "nothing".into(), key: "ada".to_owned() };
    assert_eq!(moves(&another, nobodys, at(1)), (Verdict::Stale, vec![LockMove::Release(lock)]));
}

#[test]
fn a_lock_that_is_held_already_is_not_given_away() {
    assert_eq!(moves(&held(), given("ada"), at(1)), (Verdict::Duplicate, vec![]));
    let undoing = at_its_pivot().when_refused("pay", &());
    assert_eq!(moves(&undoing, given("ada"), at(1)), (Verdict::Duplicate, vec![]));
    let more = waiting_for("ada+bob", ACCOUNT).when_held("account");
    assert_eq!(moves(&more, given("ada"), at(1)), (Verdict::Duplicate, vec![]));
}

#[test]
fn nobody_answers_for_a_lock() {
    let correlation = waiting().correlation("account");

    waiting().when(reply(correlation, Answer::Done)).then_verdict(Verdict::Unfit).then_asks(&[]);
}

#[test]
fn a_saga_that_holds_a_lock_for_too_long_is_undone_with_the_lock_in_its_hand() {
    let expired = held().when_time_passes(599 * SECOND).then_is(Status::Running);
    let expired = expired.when_time_passes(SECOND).then_is(Status::Compensating);

    let expired = expired.then_asks(&["undo reserve"]).then_holds(&["account ada"]);
    let cause = Cause::LockExpired { step: "account".into() };
    assert_eq!(expired.instance().cause(), Some(&cause));
    expired.when_undone("reserve").then_is(Status::Compensated).then_holds(&[]);
}

#[test]
fn behind_its_pivot_a_saga_goes_on_with_a_lock_that_has_expired_and_a_person_is_told() {
    let expired = at_its_pivot().when_time_passes(600 * SECOND);

    let alert = |scenario: &Scenario<Order>| {
        let found = |alert: &&Alert| alert.trouble == Trouble::LockExpired;
        scenario.alerts().iter().find(found).map(|alert| (alert.step.to_string(), alert.operation))
    };
    assert_eq!(alert(&expired), Some(("account".to_owned(), Operation::Action)));
    assert!(expired.instance().step("account").unwrap().lock().unwrap().is_expired());
    let expired = expired.then_is(Status::Running).then_holds(&["account ada"]);
    expired.when_done("pay", &()).when_done("mail", &()).then_is(Status::Completed).then_holds(&[]);

    let undoing = held().when_cancelled().when_time_passes(600 * SECOND);
    assert_eq!(alert(&undoing), Some(("account".to_owned(), Operation::Compensation)));
    assert_eq!(undoing.instance().cause(), Some(&Cause::Cancelled));
}

#[test]
fn a_lock_expires_once_not_early_and_not_when_it_was_given_back() {
    let tick = || Input::Tick(Tick::Lock { step: "account".into() });
    let early =
        step(transfer_with(ACCOUNT).definition(), held().instance(), tick(), at(1)).unwrap();
    assert_eq!(early.verdict, Verdict::Early);
    assert_eq!(early.timers, [Timer { due: at(600), tick: Tick::Lock { step: "account".into() } }]);

    let after = at(601);
    let expired = at_its_pivot().when_time_passes(600 * SECOND);
    assert_eq!(moves(&expired, tick(), after).0, Verdict::Stale);
    assert_eq!(moves(&waiting(), tick(), after).0, Verdict::Stale);
    let nobodys = Input::Tick(Tick::Lock { step: "nothing".into() });
    assert_eq!(moves(&held(), nobodys, after).0, Verdict::Unfit);
    let unlocked = held().when_operator("eve", Verb::Unlock { step: "account".into() });
    assert_eq!(moves(&unlocked, tick(), after).0, Verdict::Stale);
}

#[test]
fn the_time_to_live_counts_from_the_first_key() {
    let second = waiting_for("ada+bob", ACCOUNT.wait(3600 * SECOND, OnTimeout::Compensate))
        .when_held("account")
        .when_time_passes(500 * SECOND)
        .when_held("account")
        .then_asks(&["do reserve"]);

    let until = |scenario: &Scenario<Order>| {
        scenario.instance().step("account").unwrap().lock().unwrap().expires_at()
    };
    assert_eq!(until(&second), Some(at(600)));
}

#[test]
fn a_person_gives_back_what_a_saga_holds_and_nothing_that_it_waits_for() {
    let unlock = |step: &str| Verb::Unlock { step: step.into() };
    held()
        .when_operator("eve", unlock("account"))
        .then_verdict(Verdict::Applied)
        .then_holds(&[])
        .when_done("reserve", &HELD)
        .then_asks(&["do pay"]);
    waiting()
        .when_operator("eve", unlock("account"))
        .then_verdict(Verdict::Unfit)
        .then_stands_in_line(&["account ada"]);
    held().when_operator("eve", unlock("reserve")).then_verdict(Verdict::Unfit);
    held().when_operator("eve", unlock("quote")).then_verdict(Verdict::Unfit);
    held().when_operator("eve", unlock("nothing")).then_verdict(Verdict::Unfit);
}

#[test]
fn too_many_or_too_long_keys_stop_their_saga_and_no_value_is_told() {
    let many: Vec<String> = (0..17).map(|number| format!("secret{number}")).collect();
    let long = "secret".repeat(100);
    for accounts in [many.join("+"), long, "secret\0".to_owned()] {
        let stuck = waiting_for(&accounts, ACCOUNT).then_stuck(&["account"]).then_asks(&[]);

        let trouble = stuck.instance().step("account").unwrap().trouble().unwrap();
        let Trouble::Unreadable { what } = trouble else { panic!("{trouble:?}") };
        assert!(what.starts_with("the lock account: ") && !what.contains("secret"), "{what}");
    }
    let most: Vec<String> = (0..16).map(|number| format!("{number:0500}")).collect();
    waiting_for(&most.join("+"), ACCOUNT).then_asks(&["lock account"]);
}

#[test]
fn whatever_step_fails_no_lock_outlives_its_saga() {
    let script = Script::new().reply("reserve", &HELD);
    for ended in script.run_with_each_fault(&transfer_with(ACCOUNT), &order()) {
        let is_over = ended.instance.status().is_over();
        let locked = ended.instance.step("account").unwrap().lock().is_some();
        assert!(is_over != locked || ended.instance.status() == Status::Parked, "{ended:?}");
    }
}

#[test]
fn a_lock_is_migrated_with_its_saga_and_its_timer() {
    let old = transfer_with(ACCOUNT);
    let new = Saga::<Order>::define("transfer", 2)
        .replies("transfer.replies")
        .lock_order(&ORDER)
        .step("quote", QuoteShipping::of)
        .no_effect()
        .lock(ACCOUNT, keys)
        .step("reserve", ReserveCredit::of)
        .compensate()
        .build()
        .unwrap();

    let mapping = crate::migrate::Mapping::new();
    let (from, to) = (old.definition(), new.definition());
    let moved = crate::migrate::migrate(held().instance(), from, to, &mapping, at(9)).unwrap();

    assert_eq!(moved.instance.step("account").unwrap().lock().unwrap().held(), ["ada"]);
    let due = Timer { due: at(600), tick: Tick::Lock { step: "account".into() } };
    assert!(moved.timers.contains(&due), "{:?}", moved.timers);
}
