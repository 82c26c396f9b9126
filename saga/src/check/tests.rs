use tailrace_idempotency::BoxError;

use crate::builder::Saga;
use crate::command::Irrefusable;
use crate::definition::{Forward, OnTimeout};
use crate::fixture::{
    AllocateStock, CapturePayment, Confirmed, Order, QuoteShipping, ReserveCredit, SECOND,
    SendMail, create_order,
};
use crate::local::{LocalCx, local};
use crate::lock::Lock;

use super::*;

fn three_steps() -> Saga<Order> {
    Saga::define("three", 1)
        .step("reserve", ReserveCredit::of)
        .timeout(SECOND, OnTimeout::Retry)
        .on_refused(|_, _| OnRefused::Retry)
        .compensate()
        .step("allocate", AllocateStock::of)
        .timeout(SECOND, OnTimeout::Compensate)
        .compensate()
        .pivot("pay", CapturePayment::of)
        .build()
        .unwrap()
}

fn parallel() -> Saga<Order> {
    Saga::define("parallel", 1)
        .step("reserve", ReserveCredit::of)
        .compensate()
        .parallel(|branches| {
            branches
                .step("allocate", AllocateStock::of)
                .compensate()
                .step("quote", QuoteShipping::of)
                .no_effect()
        })
        .pivot("pay", CapturePayment::of)
        .timeout(SECOND, Forward::Retry)
        .build()
        .unwrap()
}

/// One step is enough to see what each rule is for.
fn one_step() -> Saga<Order> {
    Saga::define("one", 1)
        .step("reserve", ReserveCredit::of)
        .on_refused(|_, _| OnRefused::Retry)
        .compensate()
        .build()
        .unwrap()
}

fn without(change: impl FnOnce(&mut Assumptions)) -> String {
    let mut by = Assumptions { forgets: false, ..Assumptions::SHIPPED };
    change(&mut by);
    check_by(one_step().definition(), by).unwrap_err().to_string()
}

#[test]
fn every_promise_holds_in_every_order_of_every_fault() {
    for saga in
        [one_step(), two_steps(), three_steps(), parallel(), create_order(), own_work(), locking()]
    {
        let coverage = check(saga.definition()).unwrap();

        assert!(coverage.is_exhaustive(), "{coverage}");
    }
}

#[test]
fn without_the_barrier_an_effect_stays_after_its_compensation() {
    let found = without(|by| by.knows = Knows::Operation);

    let expected = r#"
one/1: it is compensated, and the effect of reserve is there
sequenceDiagram
    participant saga
    participant s0 as reserve
    Note over saga: starts
    saga-)s0: do (epoch 1)
    Note over saga: is cancelled
    saga-)s0: undo (epoch 2)
    Note over saga: compensating
    Note over s0: takes "undo (epoch 2)": has nothing to undo
    Note over s0: takes "do (epoch 1)": does it
    s0--)saga: undo (epoch 2): done
    Note over saga: compensated
    Note over saga: broken: it is compensated, and the effect of reserve is there
"#;
    assert_eq!(found, expected.trim_start());
}

#[test]
fn without_the_step_key_an_effect_happens_twice() {
    let found = without(|by| by.knows = Knows::Message);

    let expected = r#"
one/1: the effect of reserve happens twice, or is undone twice
sequenceDiagram
    participant saga
    participant s0 as reserve
    Note over saga: starts
    saga-)s0: do (epoch 1)
    Note over s0: takes "do (epoch 1)": does it
    Note over saga: the timer of reserve is due
    saga-)s0: do (epoch 1)
    Note over s0: takes "do (epoch 1)": does it
    Note over saga: broken: the effect of reserve happens twice, or is undone twice
"#;
    assert_eq!(found, expected.trim_start());
}

#[test]
fn without_the_epoch_an_effect_stays_after_its_compensation() {
    let found = without(|by| by.rules.mixes_epochs = true);

    let expected = r#"
one/1: it is compensated, and the effect of reserve is there
sequenceDiagram
    participant saga
    participant s0 as reserve
    Note over saga: starts
    saga-)s0: do (epoch 1)
    Note over s0: takes "do (epoch 1)": refuses it
    s0--)saga: do (epoch 1): refused
    Note over saga: the timer of reserve is due
    saga-)s0: do (epoch 2)
    Note over s0: takes "do (epoch 2)": does it
    s0--)saga: do (epoch 1): refused, which comes again
    Note over saga: compensated
    Note over saga: broken: it is compensated, and the effect of reserve is there
"#;
    assert_eq!(found, expected.trim_start());
}

#[test]
fn a_saga_of_eight_steps_is_explored_by_windows_and_with_two_faults() {
    let saga = Saga::<Order>::define("eight", 1)
        .step("a", ReserveCredit::of)
        .compensate()
        .step("b", AllocateStock::of)
        .compensate()
        .parallel(|branches| {
            branches
                .step("c", AllocateStock::of)
                .compensate()
                .step("d", QuoteShipping::of)
                .no_effect()
        })
        .step("e", AllocateStock::of)
        .compensate()
        .pivot("f", CapturePayment::of)
        .retriable("g", SendMail::of)
        .retriable("h", SendMail::of)
        .build()
        .unwrap();

    let coverage = check(saga.definition()).unwrap();

    assert!(coverage.is_exhaustive(), "{coverage}");
    let text = coverage.to_string();
    for said in ["- a, b, c, d: ", "- b, c, d: ", "- c, d, e, f: ", "- e, f, g, h: "] {
        assert_eq!(text.contains(said), said != "- b, c, d: ", "{text}");
    }
    assert!(text.contains("- the whole with at most 2 faults: "), "{text}");
    assert!(text.contains("200 random schedules"), "{text}");
}

#[test]
fn a_window_of_steps_that_may_be_refused_and_are_undone_is_explored_to_its_end() {
    let saga = Saga::<Order>::define("refused", 1)
        .step("a", ReserveCredit::of)
        .on_refused(|_, _| OnRefused::Retry)
        .compensate()
        .step("b", ReserveCredit::of)
        .on_refused(|_, _| OnRefused::Retry)
        .compensate()
        .step("c", AllocateStock::of)
        .compensate()
        .step("d", AllocateStock::of)
        .compensate()
        .build()
        .unwrap();

    let coverage = check(saga.definition()).unwrap();

    assert!(coverage.is_exhaustive(), "{coverage}");
}

#[test]
fn a_group_that_is_too_wide_is_told_as_not_explored() {
    let saga = Saga::<Order>::define("wide", 1)
        .parallel(|mut branches| {
            for name in ["a", "b", "c", "d", "e"] {
                branches = branches.step(name, QuoteShipping::of).no_effect();
            }
            branches
        })
        .build()
        .unwrap();

    let coverage = check(saga.definition()).unwrap();

    assert!(!coverage.is_exhaustive());
    assert!(coverage.to_string().contains("not on its own: it is too wide"), "{coverage}");
}

#[test]
fn a_state_from_which_no_end_can_be_reached_is_found() {
    let mut seen = explore::Seen::default();
    // 0 leads to the end 1, and to 2 and 3, which lead to each other only.
    seen.is_end = vec![false, true, false, false];
    seen.from = vec![None; 4];
    seen.edges = vec![(0, 1), (0, 2), (2, 3), (3, 2)];

    assert_eq!(seen.endless(), Some(2));

    seen.edges.push((3, 0));
    assert_eq!(seen.endless(), None);
}

#[test]
fn what_is_left_out_of_an_exploration_changes_nothing_that_is_seen() {
    for saga in [one_step(), two_steps()] {
        let seen = |forgets| {
            let by = Assumptions { forgets, ..Assumptions::SHIPPED };
            explore::judged(saga.definition(), by)
        };

        assert_eq!(seen(true), seen(false));
    }
}

/// Work of the engine's own, and of somebody outside.
fn own_work() -> Saga<Order> {
    Saga::define("own-work", 1)
        .deadline(SECOND)
        .step("note", local(note).undo(forget))
        .compensate()
        .step("allocate", AllocateStock::of)
        .compensate()
        .wait::<Confirmed>("confirmed", SECOND, OnTimeout::Compensate, |_, _| {})
        .pivot("approve", local(approve))
        .build()
        .unwrap()
}

async fn note(_: LocalCx<'_>, _: Order) -> Result<Result<(), String>, BoxError> {
    Ok(Ok(()))
}

async fn forget(_: LocalCx<'_>, _: Order) -> Result<(), BoxError> {
    Ok(())
}

async fn approve(_: LocalCx<'_>, _: Order) -> Result<Result<(), Irrefusable>, BoxError> {
    Ok(Ok(()))
}

const ACCOUNT: Lock = Lock::named("account");
const STOCK: Lock = Lock::named("stock").wait(SECOND, OnTimeout::Park);

/// Two locks, for one of which a person is asked where it does not come.
fn locking() -> Saga<Order> {
    Saga::define("locking", 1)
        .deadline(SECOND)
        .lock_order(&["account", "stock"])
        .lock(ACCOUNT, |order: &Order| [order.customer.clone()])
        .step("reserve", ReserveCredit::of)
        .compensate()
        .lock(STOCK, |order: &Order| [order.customer.clone()])
        .pivot("pay", CapturePayment::of)
        .build()
        .unwrap()
}

#[test]
fn a_lock_that_is_given_too_late_is_kept_for_ever_by_who_does_not_give_it_back() {
    let saga = Saga::define("late", 1)
        .lock_order(&["account"])
        .lock(ACCOUNT, |order: &Order| [order.customer.clone()])
        .build()
        .unwrap();
    let mut by = Assumptions { forgets: false, ..Assumptions::SHIPPED };
    by.rules.keeps_grants = true;

    let found = check_by(saga.definition(), by).unwrap_err().to_string();

    let expected = r#"
late/1: it is over, and nobody else ever has the lock account
sequenceDiagram
    participant saga
    Note over saga: starts
    Note over saga: the timer of account is due
    Note over saga: compensated
    Note over saga: hears that it has the lock account
    Note over saga: broken: it is over, and nobody else ever has the lock account
"#;
    assert_eq!(found, expected.trim_start());
}

fn two_steps() -> Saga<Order> {
    Saga::define("two", 1)
        .step("reserve", ReserveCredit::of)
        .on_refused(|_, _| OnRefused::Retry)
        .compensate()
        .pivot("pay", CapturePayment::of)
        .build()
        .unwrap()
}

/// One step of each sort, behind one another.
fn sorts() -> Saga<Order> {
    Saga::define("sorts", 1)
        .step("plain", AllocateStock::of)
        .compensate()
        .step("deciding", ReserveCredit::of)
        .on_refused(|_, _| OnRefused::Retry)
        .compensate()
        .step("quote", QuoteShipping::of)
        .no_effect()
        .step("note", local(note).undo(forget))
        .compensate()
        .wait::<Confirmed>("confirmed", SECOND, OnTimeout::Compensate, |_, _| {})
        .lock_order(&["account"])
        .lock(ACCOUNT, |order: &Order| [order.customer.clone()])
        .pivot("pay", CapturePayment::of)
        .retriable("mail", SendMail::of)
        .retriable("approve", local(approve))
        .build()
        .unwrap()
}

/// A saga of up to three steps, by a seed.
fn random(seed: u64) -> Definition {
    let mut dice = seed;
    let mut pick = |sides| explore::roll(&mut dice, sides);
    let sorts = sorts();
    let sort = |at: usize| window::bare(&sorts.definition().0.steps[at]);
    let mut steps = Vec::new();
    let mut groups = 0;
    let before = pick(3);
    for _ in 0..before {
        let mut step = sort(pick(6));
        groups += usize::from(pick(2) == 0);
        step.group = groups;
        if step.signal_type().is_none() && step.lock().is_none() {
            step.on_timeout = [OnTimeout::Retry, OnTimeout::Compensate, OnTimeout::Park][pick(3)];
        }
        steps.push(step);
    }
    groups += 1;
    let mut pivot = sort(6);
    pivot.group = groups;
    steps.push(pivot);
    if before < 2 {
        groups += 1;
        let mut step = sort(7 + pick(2));
        step.group = groups;
        steps.push(step);
    }
    for (at, step) in steps.iter_mut().enumerate() {
        step.name = format!("{}-{at}", step.name).into();
    }
    Definition(std::sync::Arc::new(crate::definition::Graph {
        data: std::any::TypeId::of::<serde_json::Value>(),
        identity: sorts.definition().identity().clone(),
        replies: "replies".into(),
        deadline: (pick(2) == 0).then_some(SECOND),
        upcasters: Vec::new(),
        starts: Vec::new(),
        lock_order: Vec::new(),
        steps,
    }))
}

#[test]
fn every_promise_holds_for_sagas_of_every_sort() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..24).collect(),
    };
    for seed in seeds {
        let coverage = check(&random(seed));

        let coverage = coverage.unwrap_or_else(|found| panic!("SEED={seed}\n{found}"));
        assert!(coverage.is_exhaustive(), "SEED={seed}\n{coverage}");
    }
}
