use std::time::Duration;

use super::decide::{Course, Status};
use super::explore::{Explored, Rules, explore};
use super::{Choreography, Declaration, Role};
use crate::draft::{NAME_BYTES_MAX, STEPS_MAX};
use crate::retry::WAIT_MAX;

/// An order: credit, stock, payment.
pub(super) fn order() -> Declaration {
    Choreography::define("create-order", 1)
        .starts("orders", "place-order")
        .emits("order.placed")
        .compensated_by("reject-order")
        .step("customers", "reserve-credit", "order.placed")
        .emits("credit.reserved")
        .refuses("credit.refused")
        .compensated_by("release-credit")
        .undone("credit.released")
        .step("warehouse", "allocate-stock", "credit.reserved")
        .emits("stock.allocated")
        .refuses("stock.refused")
        .compensated_by("free-stock")
        .step("payments", "capture-payment", "stock.allocated")
        .emits("payment.captured")
        .refuses("payment.refused")
        .pivot("payment.called-off")
        .step("orders", "approve-order", "payment.captured")
        .emits("order.approved")
        .retriable()
        .ends_with("order.approved")
        .ends_within(Duration::from_secs(30), "order.expired")
}

/// Two services at once, and an end for each.
pub(super) fn trip() -> Declaration {
    Choreography::define("book-trip", 1)
        .starts("trips", "plan-trip")
        .emits("trip.planned")
        .compensated_by("drop-trip")
        .step("flights", "book-flight", "trip.planned")
        .emits("flight.booked")
        .refuses("flight.refused")
        .compensated_by("cancel-flight")
        .step("insurers", "insure", "trip.planned")
        .emits("trip.insured")
        .refuses("insurance.refused")
        .compensated_by("cancel-insurance")
        .step("flights", "note-insurance", "trip.insured")
        .emits("insurance.noted")
        .no_effect()
        .ends_with("flight.booked")
        .ends_with("insurance.noted")
        .ends_within(Duration::from_secs(30), "trip.expired")
}

fn one(name: &str) -> Declaration {
    Choreography::define(name, 1)
        .starts("a", "begin")
        .emits("begun")
        .compensated_by("unbegin")
        .ends_within(Duration::from_secs(1), "expired")
}

#[track_caller]
fn check(declaration: Declaration, expected: &[&str]) {
    let error = declaration.build().unwrap_err();
    assert_eq!(error.list(), expected);
}

#[test]
fn each_fault_is_told_by_name() {
    check(
        Choreography::define("empty", 0),
        &[
            "versions begin with 1",
            "nothing says by when it has ended: say ends_within",
            "nothing starts it",
            "no event ends it: say ends_with",
        ],
    );
    check(
        one("compensated by nobody").step("b", "pay", "begun").emits("paid").ends_with("paid"),
        &[
            "the effect of pay is compensated by nobody: say compensated_by, no_effect, pivot or retriable",
        ],
    );
    check(
        one("handled by nobody")
            .step("b", "pay", "begun")
            .emits("paid")
            .no_effect()
            .ends_with("gone"),
        &[
            "paid is handled by nobody, and does not end the saga",
            "gone ends the saga, and nobody emits it",
        ],
    );
    check(
        one("waits for nothing")
            .step("b", "pay", "asked")
            .emits("paid")
            .no_effect()
            .step("b", "cry", "expired")
            .emits("cried")
            .no_effect()
            .ends_with("begun")
            .ends_with("paid")
            .ends_with("cried"),
        &[
            "pay waits for asked, which nobody emits",
            "cry waits for expired, which undoes the saga: what is to be done then is a compensation",
        ],
    );
    check(
        one("silent").step("b", "pay", "begun").no_effect(),
        &["pay emits nothing, so nobody knows when it is done", "no event ends it: say ends_with"],
    );
}

#[test]
fn a_circle_is_told_with_all_who_are_in_it() {
    check(
        one("circle")
            .ends_with("begun")
            .step("b", "one", "third")
            .emits("first")
            .no_effect()
            .step("c", "two", "first")
            .emits("second")
            .no_effect()
            .step("b", "three", "second")
            .emits("third")
            .emits("fourth")
            .no_effect()
            .step("b", "four", "fourth")
            .emits("fifth")
            .no_effect()
            .ends_with("fifth"),
        &["it goes round in a circle: one, two, three", "nothing leads from the start to four"],
    );
}

#[test]
fn nothing_is_undone_or_refused_when_it_is_too_late() {
    let with_pivot = || one("late").step("b", "pay", "begun").emits("paid").pivot("called-off");
    check(
        with_pivot()
            .step("c", "send", "paid")
            .emits("sent")
            .refuses("unsent")
            .compensated_by("fetch-back")
            .ends_with("sent"),
        &[
            "send is compensated, and stands behind the pivot, where nothing is undone",
            "send may refuse behind the pivot, when it is too late",
        ],
    );
    check(
        with_pivot()
            .step("c", "beside", "begun")
            .emits("besides")
            .refuses("refused")
            .no_effect()
            .step("c", "stays", "begun")
            .emits("stayed")
            .retriable()
            .ends_with("besides")
            .ends_with("paid")
            .ends_with("stayed"),
        &[
            "beside may refuse when pay is done, which does not wait for it",
            "stays is retriable before the pivot: its effect would stay when the saga is undone",
        ],
    );
    check(
        with_pivot()
            .step("c", "again", "paid")
            .emits("done")
            .pivot("called-off-2")
            .ends_with("done"),
        &["it has more than one pivot: pay, again"],
    );
    check(
        one("no pivot")
            .step("b", "quick", "begun")
            .emits("quickly")
            .retriable()
            .step("b", "slow", "begun")
            .emits("slowly")
            .refuses("refused")
            .no_effect()
            .ends_with("quickly")
            .ends_with("slowly"),
        &["quick is retriable, and no pivot stands before it"],
    );
}

#[test]
fn what_is_said_twice_or_of_nothing_is_a_fault() {
    check(
        Choreography::define("a/b", 1)
            .emits("early")
            .starts("a", "begin")
            .emits("begun")
            .emits("begun-too")
            .refuses("unbegun")
            .no_effect()
            .retriable()
            .undone("never")
            .starts("b", "begin")
            .emits("begun")
            .compensated_by("begin")
            .ends_with("begun-too")
            .ends_with("begun")
            .ends_with("unbegun")
            .publishes("c", "")
            .ends_within(Duration::ZERO, "expired"),
        &[
            "emits stands before the first step",
            "begin is said twice what becomes of it",
            "never says that nothing is undone: no compensated_by stands before it",
            "its deadline is not between nothing and a year",
            "c publishes, and has no step",
            "\"\" is no name: it has 1 to 100 bytes",
            "its name has a slash",
            "two steps or compensations are called begin",
            "two steps or compensations are called begin",
            "more than one step starts it: begin, begin",
            "begun is emitted in more than one place, and says no longer what has happened",
            "unbegun undoes the saga: that ends it anyway",
            "begin is retriable, and no pivot stands before it",
        ],
    );
}

#[test]
fn the_step_that_starts_it_does_so_with_one_event_and_can_be_undone() {
    let end = |declaration: Declaration| {
        declaration.ends_with("begun").ends_within(Duration::from_secs(1), "expired")
    };
    let start = || Choreography::define("starts", 1).starts("a", "begin").emits("begun");

    end(start().no_effect()).build().unwrap();
    check(
        end(start().emits("begun-too").no_effect()).ends_with("begun-too"),
        &["begin starts it and emits more than one event"],
    );
    check(
        end(start().refuses("unbegun").no_effect()),
        &["begin starts it and may refuse: then do not start it"],
    );
    check(
        end(start().pivot("called-off")),
        &["begin starts it and is its pivot: nothing is left to undo"],
    );
}

#[test]
fn an_event_ends_it_or_leads_on() {
    check(
        one("both")
            .step("b", "pay", "begun")
            .emits("paid")
            .no_effect()
            .ends_with("begun")
            .ends_with("paid"),
        &["begun ends the saga, and something waits for it"],
    );
}

#[test]
fn names_steps_and_deadlines_are_bounded_and_the_bound_itself_is_allowed() {
    let named = |name: &str| one(name).ends_with("begun");
    named(&"n".repeat(NAME_BYTES_MAX)).build().unwrap();
    for wrong in ["n".repeat(NAME_BYTES_MAX + 1), "a\tb".to_owned()] {
        let fault = format!("{wrong:?} is no name: it has 1 to {NAME_BYTES_MAX} bytes");
        check(named(&wrong), &[&fault]);
    }

    let wide = |steps: usize| {
        (1..steps).fold(one("wide"), |declaration, step| {
            let (name, event) = (format!("step-{step}"), format!("done-{step}"));
            declaration.step("b", &name, "begun").emits(&event).no_effect().ends_with(&event)
        })
    };
    wide(STEPS_MAX).build().unwrap();
    let too_many = format!("{} steps are more than {STEPS_MAX}", STEPS_MAX + 1);
    check(wide(STEPS_MAX + 1), &[&too_many]);

    let within = |span| {
        let begun = Choreography::define("slow", 1).starts("a", "begin").emits("begun");
        begun.no_effect().ends_with("begun").ends_within(span, "expired")
    };
    within(WAIT_MAX).build().unwrap();
    let too_long = "its deadline is not between nothing and a year";
    check(within(WAIT_MAX + Duration::from_nanos(1)), &[too_long]);
    let twice = within(WAIT_MAX).ends_within(WAIT_MAX, "over");
    check(twice, &["it is said twice by when it ends"]);
}

#[test]
fn it_says_what_it_is_called_who_takes_part_and_who_says_what_where() {
    let order = order().publishes("orders", "shop").build().unwrap();

    assert_eq!((order.name(), order.version()), ("create-order", 1));
    let other = one("other").ends_with("begun").build().unwrap();
    assert_eq!((other.name(), other.version()), ("other", 1));
    let next = Choreography::define("next", 2).starts("a", "begin").emits("begun").no_effect();
    let next = next.ends_with("begun").ends_within(Duration::from_secs(1), "expired");
    assert_eq!(next.build().unwrap().version(), 2);
    assert_eq!(Vec::from_iter(order.services()), ["customers", "orders", "payments", "warehouse"]);
    assert_eq!((order.topic_of("orders"), order.topic_of("payments")), ("shop", "payments"));
    assert_eq!(Vec::from_iter(order.topics()), ["customers", "payments", "shop", "warehouse"]);
    let events = order.events();
    assert_eq!(events.len(), 11);
    assert_eq!((events["order.expired"], events["credit.released"]), ("orders", "customers"));
    assert_eq!(&*order.map().definition(), "create-order/1");
    for (definition, is_known) in [
        ("create-order/1", true),
        ("create-order/9", true),
        ("order/1", false),
        ("create-order", false),
    ] {
        assert_eq!(order.map().knows(definition), is_known, "{definition}");
    }
}

#[test]
fn where_a_saga_stands_is_read_as_it_is_written() {
    let all = [
        (Status::Running, "running"),
        (Status::Expiring, "expiring"),
        (Status::Completed, "completed"),
        (Status::Undone, "undone"),
    ];
    for (status, text) in all {
        assert_eq!((status.as_str(), Status::parse(text)), (text, Some(status)));
    }
    assert_eq!(Status::parse("over"), None);
}

#[test]
fn each_service_hears_of_the_failures_that_undo_what_it_did() {
    let order = order().build().unwrap();

    let expected: [(&str, &[&str]); 4] = [
        ("customers", &["payment.called-off", "payment.refused", "stock.refused"]),
        ("orders", &["credit.refused", "payment.called-off", "payment.refused", "stock.refused"]),
        ("payments", &[]),
        ("warehouse", &["payment.called-off", "payment.refused"]),
    ];
    for (service, failures) in expected {
        assert_eq!(Vec::from_iter(order.failures(service)), failures, "{service}");
    }
    assert_eq!(Vec::from_iter(order.topics()), ["customers", "orders", "payments", "warehouse"]);
    let payments = order.subscriptions("payments");
    let payments: Vec<_> = payments.into_iter().collect();
    assert_eq!(payments, [("order.expired", "orders"), ("stock.allocated", "warehouse")]);
    let orders = order.map().roles("orders", "stock.refused");
    assert_eq!(orders, [Role::Undo(0), Role::Fail]);
}

#[test]
fn a_failure_undoes_what_is_done_beside_it() {
    let trip = trip().build().unwrap();

    assert_eq!(Vec::from_iter(trip.failures("insurers")), ["flight.refused", "trip.expired"]);
    assert_eq!(Vec::from_iter(trip.failures("flights")), ["insurance.refused", "trip.expired"]);
}

#[test]
fn whatever_the_order_a_choreography_completes_or_is_undone() {
    for declaration in [order(), trip()] {
        let explored = explore(declaration.build().unwrap().map(), Rules::SHIPPED).unwrap();

        let Explored { worlds, completed, undone } = explored;
        assert!(worlds > 50 && completed > 0 && undone > 0, "{explored:?}");
    }
}

#[test]
fn without_the_barrier_an_effect_stays_that_was_to_be_undone() {
    let rules = Rules { barrier: false, ..Rules::SHIPPED };

    let late_pivot = explore(order().build().unwrap().map(), rules).unwrap_err();
    let late_action = explore(trip().build().unwrap().map(), rules).unwrap_err();

    assert_eq!(late_pivot.wrong, "something was undone although the pivot is done");
    assert_eq!(late_action.wrong, "it is undone, and an effect has stayed");
    let overtaken = ["flights takes insurance.refused", "flights takes trip.planned"];
    let mut way = late_action.way.iter();
    assert!(overtaken.iter().all(|step| way.any(|taken| taken == step)), "{late_action:?}");
}

#[test]
fn without_asking_the_pivot_an_expiry_undoes_what_was_paid_for() {
    let rules = Rules { asks_the_pivot: false, ..Rules::SHIPPED };

    let fault = explore(order().build().unwrap().map(), rules).unwrap_err();

    assert_eq!(fault.wrong, "something was undone although the pivot is done");
}

#[test]
fn a_saga_ends_once_and_with_all_of_its_ends() {
    let trip = trip().build().unwrap();
    let order = order().build().unwrap();
    let half = Course::BEGUN.hears(trip.map(), "flight.booked");
    let completed = half.clone().hears(trip.map(), "insurance.noted");

    assert_eq!(half.status, Status::Running);
    assert_eq!(completed.status, Status::Completed);
    assert_eq!(completed.clone().fails(), completed);
    assert_eq!(completed.clone().expires(trip.map()), completed);
    assert_eq!(half.clone().fails().hears(trip.map(), "insurance.noted").status, Status::Undone);
    assert_eq!(half.expires(trip.map()).status, Status::Undone);
    let expiring = Course::BEGUN.expires(order.map());
    assert_eq!(expiring.status, Status::Expiring);
    assert_eq!(expiring.clone().expires(order.map()), expiring);
    assert_eq!(expiring.clone().fails().status, Status::Undone);
    assert_eq!(expiring.hears(order.map(), "order.approved").status, Status::Completed);
}

#[tokio::test]
async fn a_service_that_is_not_declared_is_told_which_are() {
    let map = order().build().unwrap();
    let pool = sqlx::PgPool::connect_lazy("postgres://localhost/nowhere").unwrap();
    let config = tailrace_idempotency::Config::new("customers", "localhost:1", pool);

    let refused = map.service("custmers").run(config, std::future::pending()).await.unwrap_err();

    assert_eq!(refused.kind(), crate::Kind::Definition);
    let fault = "custmers is no service of it; these are: customers, ";
    assert!(refused.to_string().contains(fault), "{refused}");
}
