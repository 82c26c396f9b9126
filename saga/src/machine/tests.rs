//! What a saga does, as data: given, when, then.

use std::time::Duration;

use serde_json::{Value, json};
use tailrace_idempotency::BoxError;

use super::*;
use crate::builder::Saga;
use crate::command::Irrefusable;
use crate::correlation::{Epoch, SagaId};
use crate::definition::Forward;
use crate::fixture::{
    AllocateStock, CapturePayment, Confirmed, CreditLimitExceeded, CreditReserved, Order,
    QuoteShipping, ReserveCredit, SECOND, SendMail, at, create_order, order, saga_id,
};
use crate::instance::{Parent, Status};
use crate::local::{LocalCx, local};
use crate::retry::Retry;
use crate::testing::{Fault, Scenario, Script};
use crate::work::part;

const HELD: CreditReserved = CreditReserved { hold: 3 };

fn started() -> Scenario<Order> {
    Scenario::given(&create_order(), &order())
}

/// Credit is reserved.
fn reserved() -> Scenario<Order> {
    started().when_done("reserve-credit", &HELD)
}

/// Everything before the pivot is done.
fn at_pivot() -> Scenario<Order> {
    reserved().when_done("allocate-stock", &()).when_done("quote-shipping", &())
}

fn reply(correlation: Correlation, answer: Answer) -> Input {
    Input::Reply { correlation, answer, payload: Value::Null }
}

#[test]
fn a_saga_goes_forward_group_by_group_to_its_end() {
    let done = started()
        .then_asks(&["do reserve-credit"])
        .when_done("reserve-credit", &HELD)
        .then_data(|order| assert_eq!(order.hold, Some(3)))
        .then_asks(&["do allocate-stock", "do quote-shipping"])
        .when_done("quote-shipping", &())
        .then_asks(&[])
        .when_done("allocate-stock", &())
        .then_asks(&["do capture-payment"])
        .when_done("capture-payment", &())
        .then_asks(&["do send-mail"])
        .then_is(Status::Running)
        .when_done("send-mail", &())
        .then_is(Status::Completed);

    assert_eq!(done.instance().cause(), None);
}

#[test]
fn a_refusal_undoes_what_was_done_and_what_may_have_been() {
    reserved()
        .when_refused("quote-shipping", &())
        .then_is(Status::Compensating)
        .then_asks(&["undo allocate-stock"])
        .when_undone("allocate-stock")
        .then_asks(&["undo reserve-credit"])
        .when_undone("reserve-credit")
        .then_is(Status::Compensated);
}

#[test]
fn a_compensation_is_the_same_command_in_the_other_direction() {
    let action =
        Correlation { operation: Operation::Action, ..started().correlation("reserve-credit") };
    started()
        .then_commands(|commands| {
            let [command] = commands else { panic!("{commands:?}") };
            assert_eq!(command.request.key, "ada");
            assert_eq!(command.request.payload, json!({ "customer": "ada", "cents": 1999 }));
            assert_eq!(command.instruction.correlation, action);
            assert_eq!(&*command.instruction.correlation.definition, "create-order/4");
            assert_eq!(&*command.instruction.reply_to, "create-order.replies");
            assert_eq!(command.instruction.deadline, Some(at(3600)));
        })
        .when_cancelled()
        .then_commands(|commands| {
            let [command] = commands else { panic!("{commands:?}") };
            assert_eq!(&*command.request.message_type, "credit.reserve.v1");
            assert_eq!(command.request.key, "ada");
            assert_eq!(command.request.payload, json!({ "customer": "ada", "cents": 1999 }));
            let of = &command.instruction.correlation;
            assert_eq!((of.operation, of.epoch), (Operation::Compensation, Epoch::new(2)));
            assert_eq!(command.instruction.deadline, None);
        });
}

#[test]
fn the_pivot_and_what_follows_it_carry_no_deadline() {
    let none = |commands: &[CommandMessage]| {
        assert!(commands.iter().all(|command| command.instruction.deadline.is_none()));
    };

    at_pivot().then_commands(none).when_done("capture-payment", &()).then_commands(none);
}

#[test]
fn a_failing_compensation_parks_and_the_others_go_on() {
    let parked = at_pivot()
        .when_refused("capture-payment", &())
        .then_asks(&["undo allocate-stock"])
        .when_time_passes(40 * SECOND)
        .then_asks(&["undo allocate-stock"])
        .when_time_passes(40 * SECOND)
        .then_stuck(&["allocate-stock"])
        .then_asks(&["undo reserve-credit"])
        .when_undone("reserve-credit")
        .then_is(Status::Parked);

    // It has worked after all: nobody has to decide any more.
    parked.when_undone("allocate-stock").then_is(Status::Compensated);
}

#[test]
fn a_compensation_is_asked_for_as_often_as_its_policy_says_and_not_for_ever() {
    let ended = Script::new()
        .reply("reserve-credit", &HELD)
        .inject("capture-payment", Fault::Refused)
        .inject("reserve-credit", Fault::NotUndone)
        .run(&create_order(), &order());

    let asked = ended.asked.iter().filter(|asked| *asked == "undo reserve-credit").count();
    assert_eq!(asked, 3);
    assert_eq!(ended.instance.status(), Status::Parked);
}

#[test]
fn a_step_without_an_answer_is_asked_for_again_and_then_undone() {
    started()
        .when_time_passes(21 * SECOND)
        .then_asks(&["do reserve-credit"])
        .when_time_passes(22 * SECOND)
        .then_asks(&["do reserve-credit"])
        .when_time_passes(24 * SECOND)
        .then_asks(&["undo reserve-credit"])
        .when_undone("reserve-credit")
        .then_is(Status::Compensated);
}

#[test]
fn a_step_that_is_too_old_is_not_asked_for_again() {
    let saga = Saga::<Order>::define("old", 1)
        .step("reserve", ReserveCredit::of)
        .timeout(10 * SECOND, OnTimeout::Retry)
        .retry(Retry::every(SECOND).max_age(15 * SECOND))
        .compensate()
        .build()
        .unwrap();

    Scenario::given(&saga, &order())
        .when_time_passes(11 * SECOND)
        .then_asks(&["do reserve"])
        .when_time_passes(11 * SECOND)
        .then_asks(&["undo reserve"]);
}

#[test]
fn an_answer_to_an_earlier_attempt_counts() {
    started()
        .when_time_passes(45 * SECOND)
        .then_asks(&["do reserve-credit", "do reserve-credit"])
        .when_done("reserve-credit", &HELD)
        .then_asks(&["do allocate-stock", "do quote-shipping"]);
}

#[test]
fn an_action_that_was_done_too_late_changes_nothing_once_its_direction_has_changed() {
    let allocated = reserved().correlation("allocate-stock");

    reserved()
        .when_time_passes(30 * SECOND)
        .then_asks(&["undo allocate-stock"])
        .when(reply(allocated, Answer::Done))
        .then_verdict(Verdict::Stale)
        .then_is(Status::Compensating)
        .when_undone("allocate-stock")
        .when_undone("reserve-credit")
        .then_is(Status::Compensated);
}

#[test]
fn nothing_that_comes_again_does_anything() {
    reserved().when_repeated().then_verdict(Verdict::Duplicate);
    let ended =
        Script::new().reply("reserve-credit", &HELD).repeating().run(&create_order(), &order());

    assert_eq!(ended.instance.status(), Status::Completed);
}

#[test]
fn whatever_step_fails_the_saga_ends_or_asks_a_person() {
    let script = Script::new()
        .reply("reserve-credit", &HELD)
        .refusal("reserve-credit", &CreditLimitExceeded { missing_cents: 7 });

    let all = script.run_with_each_fault(&create_order(), &order());

    let stands: Vec<_> = all
        .iter()
        .map(|ended| {
            let faults = ended.faults.iter().map(|(step, fault)| format!("{step} {fault:?}"));
            (faults.collect::<Vec<_>>().join(", "), ended.instance.status())
        })
        .collect();
    let expected = [
        ("", Status::Completed),
        ("reserve-credit Refused", Status::Compensated),
        ("allocate-stock Refused", Status::Compensated),
        ("quote-shipping Refused", Status::Compensated),
        ("capture-payment Refused", Status::Compensated),
        ("reserve-credit Silent", Status::Compensated),
        ("allocate-stock Silent", Status::Compensated),
        ("quote-shipping Silent", Status::Compensated),
        ("capture-payment Silent", Status::Parked),
        ("send-mail Silent", Status::Parked),
        ("capture-payment Refused, reserve-credit NotUndone", Status::Parked),
        ("allocate-stock NotUndone, capture-payment Refused", Status::Parked),
    ];
    assert_eq!(stands, expected.map(|(faults, status)| (faults.to_owned(), status)));
}

#[test]
fn a_refusal_comes_into_the_data_and_one_for_the_deadline_alone_does_not() {
    let ended = started()
        .when_refused("reserve-credit", &CreditLimitExceeded { missing_cents: 7 })
        .then_data(|order| assert_eq!(order.missing_cents, Some(7)))
        .then_is(Status::Compensated);
    assert_eq!(ended.instance().cause(), Some(&Cause::Refused { step: "reserve-credit".into() }));

    started()
        .when_refused("reserve-credit", &())
        .then_data(|order| assert_eq!(order.missing_cents, None))
        .then_is(Status::Compensated);
}

fn deciding(then: OnRefused) -> Scenario<Order> {
    let saga = Saga::<Order>::define("deciding", 1)
        .step("reserve", ReserveCredit::of)
        .retry(Retry::every(8 * SECOND).attempts(2))
        .on_refused(move |_, _| then)
        .compensate()
        .pivot("pay", CapturePayment::of)
        .build()
        .unwrap();
    Scenario::given(&saga, &order())
}

#[test]
fn a_refused_step_is_asked_for_again_in_a_new_epoch_as_often_as_its_policy_says() {
    let refusal = CreditLimitExceeded { missing_cents: 7 };
    let refused = deciding(OnRefused::Retry);
    let first = refused.correlation("reserve");

    let again = refused
        .when_refused("reserve", &refusal)
        .then_asks(&[])
        .when_time_passes(8 * SECOND)
        .then_asks(&["do reserve"])
        .then_commands(|commands| {
            assert_eq!(commands[0].instruction.correlation.epoch, Epoch::new(2));
        });

    again
        .when(reply(first, Answer::Refused))
        .then_verdict(Verdict::Stale)
        .when_refused("reserve", &refusal)
        .then_is(Status::Compensated);
}

#[test]
fn a_saga_may_go_on_without_a_refused_step() {
    deciding(OnRefused::GoOn)
        .when_refused("reserve", &CreditLimitExceeded { missing_cents: 7 })
        .then_asks(&["do pay"]);
}

#[test]
fn cancel_undoes_until_the_pivot_was_asked_for_and_is_too_late_from_then_on() {
    reserved()
        .when_cancelled()
        .then_asks(&["undo allocate-stock"])
        .when_cancelled()
        .then_verdict(Verdict::Duplicate);
    at_pivot()
        .when_cancelled()
        .then_verdict(Verdict::TooLate)
        .then_is(Status::Running)
        .when_done("capture-payment", &())
        .when_cancelled()
        .then_verdict(Verdict::TooLate)
        .when_done("send-mail", &())
        .when_cancelled()
        .then_verdict(Verdict::TooLate)
        .then_is(Status::Completed);
}

#[test]
fn the_deadline_undoes_a_saga_that_has_not_asked_for_its_pivot() {
    let hour = 3600 * SECOND;
    let saga = Saga::<Order>::define("slow", 1)
        .deadline(hour)
        .step("reserve", ReserveCredit::of)
        .timeout(2 * hour, OnTimeout::Retry)
        .compensate()
        .pivot("pay", CapturePayment::of)
        .timeout(2 * hour, Forward::Retry)
        .build()
        .unwrap();
    let started = || Scenario::given(&saga, &order());

    let late = started().when_time_passes(hour).then_asks(&["undo reserve"]);
    assert_eq!(late.instance().cause(), Some(&Cause::Deadline));
    started()
        .when_done("reserve", &HELD)
        .when_time_passes(hour)
        .then_asks(&[])
        .then_is(Status::Running);
}

#[test]
fn a_timer_that_says_nothing_any_more_is_ignored_and_one_that_comes_early_is_wished_for_again() {
    let tick = |attempt| {
        Input::Tick(Tick::Step { step: "reserve-credit".into(), epoch: Epoch::FIRST, attempt })
    };

    started().when(tick(1)).then_verdict(Verdict::Early).then_is(Status::Running);
    started().when_time_passes(21 * SECOND).when(tick(1)).then_verdict(Verdict::Stale);
    started().when_cancelled().when(tick(1)).then_verdict(Verdict::Stale);
    reserved().when(tick(1)).then_verdict(Verdict::Stale);
    let early = step(
        create_order().definition(),
        started().instance(),
        Input::Tick(Tick::Deadline),
        at(3599),
    );
    assert_eq!(early.unwrap().timers, [Timer { due: at(3600), tick: Tick::Deadline }]);
}

#[test]
fn a_pivot_or_a_later_step_without_an_answer_waits_for_a_person_and_for_its_answer() {
    let parked = at_pivot().when_time_passes(60 * SECOND).then_stuck(&["capture-payment"]);
    let parked = parked
        .when_operator("ada", Verb::Compensate)
        .then_verdict(Verdict::TooLate)
        .then_is(Status::Parked);

    parked.when_done("capture-payment", &()).then_asks(&["do send-mail"]);
}

#[test]
fn a_person_asks_again_in_a_new_epoch_passes_over_or_ends_it() {
    let parked = || at_pivot().when_time_passes(60 * SECOND);
    let before = parked().correlation("capture-payment");

    parked()
        .when_operator("ada", Verb::Retry { step: None })
        .then_asks(&["do capture-payment"])
        .then_commands(|commands| {
            assert_eq!(commands[0].instruction.correlation.epoch, Epoch::new(2));
        })
        .when(reply(before, Answer::Done))
        .then_verdict(Verdict::Stale)
        .then_is(Status::Running);
    parked()
        .when_operator("ada", Verb::Skip { step: "capture-payment".into() })
        .then_asks(&["do send-mail"])
        .when_operator("ada", Verb::Skip { step: "send-mail".into() })
        .then_verdict(Verdict::Unfit);
    let aborted = parked().when_operator("ada", Verb::Abort).then_is(Status::Aborted);
    assert!(aborted.journal().iter().any(|entry| {
        let by_ada =
            Happening::Operator { by: "ada".into(), verb: Verb::Abort, verdict: Verdict::Applied };
        entry.what == by_ada
    }));
    aborted.when_operator("ada", Verb::Retry { step: None }).then_verdict(Verdict::TooLate);
}

#[test]
fn a_compensation_that_a_person_passes_over_is_waived_and_the_saga_ends() {
    at_pivot()
        .when_refused("capture-payment", &())
        .when_time_passes(200 * SECOND)
        .when_operator("ada", Verb::Skip { step: "allocate-stock".into() })
        .when_undone("reserve-credit")
        .then_is(Status::Compensated);
}

#[test]
fn a_reply_that_can_not_be_read_waits_for_a_person_and_is_not_lost() {
    started()
        .when_done("reserve-credit", &json!({ "hold": "secret" }))
        .then_stuck(&["reserve-credit"])
        .when_operator("ada", Verb::Retry { step: Some("reserve-credit".into()) })
        .then_asks(&["do reserve-credit"])
        .when_done("reserve-credit", &HELD)
        .then_is(Status::Running);
    let stuck = started().when_done("reserve-credit", &json!({ "hold": "secret" }));
    assert!(!format!("{:?}", stuck.journal()).contains("secret"));
}

#[test]
fn data_of_another_type_stops_its_saga_and_no_other() {
    let saga = create_order();
    let mut instance = saga.instance(saga_id(), &order(), at(0)).unwrap();
    instance.data = json!({ "customer": 7 });

    let turn = step(saga.definition(), &instance, Input::Start, at(0)).unwrap();

    assert_eq!(turn.instance.status(), Status::Parked);
    let what = "the data: expected a string".to_owned();
    assert_eq!(turn.alerts[0].trouble, Trouble::Unreadable { what });
}

fn confirmed_order() -> Saga<Order> {
    Saga::define("confirmed", 1)
        .step("reserve", ReserveCredit::of)
        .compensate()
        .wait("confirmed", 60 * SECOND, OnTimeout::Compensate, |order: &mut Order, signal| {
            let Confirmed { by } = signal;
            order.customer = by;
        })
        .pivot("pay", CapturePayment::of)
        .build()
        .unwrap()
}

#[test]
fn a_signal_is_taken_by_the_step_that_waits_also_when_it_came_before() {
    let started = || Scenario::given(&confirmed_order(), &order());
    let signal = Confirmed { by: "bob".to_owned() };

    started()
        .when_done("reserve", &HELD)
        .then_asks(&[])
        .when_signal(&signal)
        .then_data(|order| assert_eq!(order.customer, "bob"))
        .then_asks(&["do pay"])
        .when_signal(&signal)
        .then_verdict(Verdict::TooLate);
    started()
        .when_signal(&signal)
        .then_verdict(Verdict::Applied)
        .when_done("reserve", &HELD)
        .then_data(|order| assert_eq!(order.customer, "bob"))
        .then_asks(&["do pay"]);
}

#[test]
fn a_signal_that_does_not_come_undoes_the_saga_and_too_many_are_turned_away() {
    let signal = Confirmed { by: "bob".to_owned() };
    Scenario::given(&confirmed_order(), &order())
        .when_done("reserve", &HELD)
        .when_time_passes(60 * SECOND)
        .then_asks(&["undo reserve"])
        .when_signal(&signal)
        .then_verdict(Verdict::TooLate);

    let mut flooded = Scenario::given(&confirmed_order(), &order());
    for _ in 0..SIGNALS_MAX {
        flooded = flooded.when_signal(&signal).then_verdict(Verdict::Applied);
    }
    flooded.when_signal(&signal).then_verdict(Verdict::Full);
    started().when_signal(&signal).then_verdict(Verdict::Unfit);
}

#[test]
fn behind_the_pivot_steps_stand_side_by_side_and_wait_for_signals() {
    let saga = Saga::<Order>::define("behind", 1)
        .pivot("pay", CapturePayment::of)
        .retriable("send-mail", SendMail::of)
        .alongside("send-letter", SendMail::of)
        .wait("confirmed", 60 * SECOND, |order: &mut Order, signal| {
            let Confirmed { by } = signal;
            order.customer = by;
        })
        .retriable("send-thanks", SendMail::of)
        .build()
        .unwrap();
    let mailed = || {
        Scenario::given(&saga, &order())
            .when_done("pay", &())
            .then_asks(&["do send-mail", "do send-letter"])
            .when_done("send-letter", &())
            .when_done("send-mail", &())
            .then_asks(&[])
    };

    mailed()
        .when_signal(&Confirmed { by: "bob".to_owned() })
        .then_data(|order| assert_eq!(order.customer, "bob"))
        .then_asks(&["do send-thanks"])
        .when_done("send-thanks", &())
        .then_is(Status::Completed);
    mailed().when_time_passes(60 * SECOND).then_stuck(&["confirmed"]);
}

async fn note(_: LocalCx<'_>, _: Order) -> Result<Result<(), Irrefusable>, BoxError> {
    Ok(Ok(()))
}

async fn forget(_: LocalCx<'_>, _: Order) -> Result<(), BoxError> {
    Ok(())
}

#[test]
fn a_local_step_is_undone_only_if_it_was_done() {
    let saga = Saga::<Order>::define("local", 1)
        .step("note", local(note).undo(forget))
        .compensate()
        .step("reserve", ReserveCredit::of)
        .compensate()
        .build()
        .unwrap();

    Scenario::given(&saga, &order())
        .then_asks(&["do note"])
        .then_commands(|commands| assert_eq!(commands, []))
        .when_cancelled()
        .then_asks(&[])
        .then_is(Status::Compensated);
    Scenario::given(&saga, &order())
        .when_done("note", &())
        .when_refused("reserve", &())
        .then_asks(&["undo note"])
        .when_undone("note")
        .then_is(Status::Compensated);
}

#[test]
fn a_saga_that_is_a_step_of_another_one_answers_it_and_is_undone_with_it() {
    let ship = Saga::<Order>::define("ship", 1)
        .step("allocate", AllocateStock::of)
        .compensate()
        .build()
        .unwrap();
    let whole = Saga::<Order>::define("whole", 1)
        .step("ship", part(ship.clone(), Order::clone))
        .on_reply(|order, shipped| *order = shipped)
        .compensate()
        .step("quote", QuoteShipping::of)
        .no_effect()
        .build()
        .unwrap();
    let ask = |whole: &Scenario<Order>, operation, epoch| Instruction {
        correlation: Correlation {
            operation,
            epoch: Epoch::new(epoch),
            saga: whole.instance().id(),
            definition: "whole/1".into(),
            step: "ship".into(),
        },
        reply_to: "whole.replies".into(),
        deadline: None,
    };
    let started = Scenario::given(&whole, &order());
    let action = ask(&started, Operation::Action, 1);
    let parent =
        Parent { reply_to: "whole.replies".into(), correlation: action.correlation.clone() };
    let instance = ship.instance(saga_id(), &order(), at(0)).unwrap().part_of(parent);
    let next =
        |instance: &Instance, input| step(ship.definition(), instance, input, at(1)).unwrap();

    let turn = next(&instance, Input::Start);
    let allocated = turn.commands[0].instruction.correlation.clone();
    let done = next(&turn.instance, reply(allocated, Answer::Done));
    assert_eq!(done.replies[0].correlation, action.correlation);
    assert_eq!(done.replies[0].answer, Answer::Done);
    assert_eq!(next(&done.instance, Input::Part(action)).replies, done.replies);

    let undone = next(&done.instance, Input::Part(ask(&started, Operation::Compensation, 2)));
    assert_eq!(undone.instance.status(), Status::Compensating);
    let freed = undone.commands[0].instruction.correlation.clone();
    let undone = next(&undone.instance, reply(freed, Answer::Done));
    assert_eq!(undone.replies[0].correlation.epoch, Epoch::new(2));
    assert_eq!(undone.replies[0].answer, Answer::Done);

    started
        .then_commands(|commands| {
            assert_eq!(&*commands[0].request.topic, "ship.replies");
            assert_eq!(&*commands[0].request.message_type, "tailrace.saga.part.v1");
        })
        .when(Input::Reply {
            correlation: done.replies[0].correlation.clone(),
            answer: Answer::Done,
            payload: done.replies[0].payload.clone(),
        })
        .then_asks(&["do quote"])
        .when_refused("quote", &())
        .then_asks(&["undo ship"]);
}

#[test]
fn data_of_an_older_version_is_brought_up_to_date_and_of_a_newer_one_refused() {
    let build = |upcasts: usize| {
        let mut saga = Saga::<Order>::define("order", 1);
        for _ in 0..upcasts {
            saga = saga.upcast(|mut data| {
                data["cents"] = json!(data["cents"].as_i64().unwrap_or_default() * 10);
                data
            });
        }
        saga.step("reserve", ReserveCredit::of).compensate().build().unwrap()
    };
    let (old, new) = (build(1), build(3));
    let instance = old.instance(saga_id(), &order(), at(0)).unwrap();

    let turn = step(new.definition(), &instance, Input::Start, at(0)).unwrap();

    assert_eq!(turn.commands[0].request.payload["cents"], json!(199_900));
    assert_eq!(turn.instance.data_version, 3);
    let refused = step(old.definition(), &turn.instance, Input::Cancel, at(0)).unwrap_err();
    assert_eq!(refused.kind(), crate::Kind::Definition);
}

#[test]
fn a_saga_of_another_structure_or_release_is_refused_and_not_misread() {
    let instance = started().instance().clone();
    let other = Saga::<Order>::define("create-order", 4)
        .step("inserted", QuoteShipping::of)
        .no_effect()
        .step("reserve-credit", ReserveCredit::of)
        .compensate()
        .build()
        .unwrap();
    let mut newer = instance.clone();
    newer.format += 1;

    for (definition, instance) in [(&other, &instance), (&create_order(), &newer)] {
        let refused = step(definition.definition(), instance, Input::Cancel, at(0)).unwrap_err();
        assert_eq!(refused.kind(), crate::Kind::Definition);
    }
}

#[test]
fn policies_and_code_may_change_under_a_running_saga() {
    let other = Saga::<Order>::define("create-order", 4)
        .step("reserve-credit", ReserveCredit::of)
        .timeout(7 * SECOND, OnTimeout::Park)
        .compensate()
        .parallel(|branches| {
            branches
                .step("allocate-stock", AllocateStock::of)
                .compensate()
                .step("quote-shipping", QuoteShipping::of)
                .no_effect()
        })
        .pivot("capture-payment", CapturePayment::of)
        .retriable("send-mail", SendMail::of)
        .build()
        .unwrap();

    assert_eq!(other.definition().identity(), create_order().definition().identity());
}

#[test]
fn an_instance_is_read_as_it_was_written() {
    for scenario in [started(), reserved().when_cancelled(), at_pivot()] {
        let text = serde_json::to_string(scenario.instance()).unwrap();

        assert_eq!(&serde_json::from_str::<Instance>(&text).unwrap(), scenario.instance());
    }
}

#[test]
fn everything_that_is_wrong_with_a_definition_is_told_at_once() {
    let with_pivot =
        Saga::<Order>::define("pays", 1).pivot("pay", CapturePayment::of).build().unwrap();
    let error = Saga::<Order>::define("Wrong Name", 0)
        .deadline(Duration::ZERO)
        .step("same", QuoteShipping::of)
        .timeout(Duration::ZERO, OnTimeout::Retry)
        .retry(Retry::every(SECOND).attempts(0))
        .no_effect()
        .step("same", part(with_pivot, Order::clone))
        .retry_compensation(Retry::exponential(2 * SECOND, SECOND))
        .compensate()
        .parallel(|branches| branches)
        .wait::<Confirmed>("waits", SECOND, OnTimeout::Retry, |_, _| {})
        .build()
        .unwrap_err();

    let told = error.to_string();
    for fault in [
        "a parallel group has no branch",
        "versions begin with 1",
        "its deadline is not",
        "the saga's name is not",
        "two steps are named same",
        "step same: its time-out is not",
        "step same: its retry: 0 attempts",
        "step same: the retry of its compensation: the first wait",
        "step waits: it waits, and there is nobody to ask again",
        "step same: pays/1 has a pivot and can not be undone",
    ] {
        assert!(told.contains(fault), "{fault} in {told}");
    }
    assert_eq!(error.list().len(), 10, "{told}");
}

#[test]
fn a_saga_can_not_be_a_part_of_itself() {
    let saga = Saga::<Order>::define("loop", 1)
        .step("reserve", ReserveCredit::of)
        .compensate()
        .build()
        .unwrap();

    let error = Saga::<Order>::define("loop", 2)
        .step("again", part(saga, Order::clone))
        .compensate()
        .build()
        .unwrap_err();

    assert_eq!(error.list(), ["step again: the saga is a part of itself"]);
}

#[test]
fn behind_the_pivot_stands_only_a_part_that_can_not_be_undone_by_itself() {
    let define = |name: &str| Saga::<Order>::define(name, 1);
    let check = |part: Saga<Order>, expected: &[&str]| {
        let built = define("whole")
            .pivot("pay", CapturePayment::of)
            .retriable("ship", self::part(part, Order::clone))
            .build();
        let faults = built.err().map(|error| error.list().to_vec()).unwrap_or_default();
        assert_eq!(faults, expected);
    };
    let fault = [
        "step ship: ship/1 may end undone, and behind the pivot stands only a saga that begins with its pivot, \
        which nobody may refuse",
    ];

    let undone = define("ship").step("allocate", AllocateStock::of).compensate();
    check(undone.build().unwrap(), &fault);
    let before = define("ship").step("quote", QuoteShipping::of).no_effect();
    check(before.pivot("mail", SendMail::of).build().unwrap(), &fault);
    check(define("ship").pivot("pay", CapturePayment::of).build().unwrap(), &fault);
    check(define("ship").pivot("mail", SendMail::of).build().unwrap(), &[]);
    let inner = define("inner").pivot("note", local(note)).build().unwrap();
    check(define("ship").pivot("inner", part(inner, Order::clone)).build().unwrap(), &[]);
}

#[test]
fn a_part_is_of_the_time_of_its_whole_and_always_the_same() {
    let whole = SagaId::from_uuid(uuid::Uuid::now_v7());

    let part = crate::definition::part_id(whole, "ship");

    assert_eq!(part, crate::definition::part_id(whole, "ship"));
    assert_ne!(part, crate::definition::part_id(whole, "bill"));
    assert_eq!(part.as_uuid().get_timestamp().unwrap().to_unix().0, {
        whole.as_uuid().get_timestamp().unwrap().to_unix().0
    });
}

#[test]
fn a_message_starts_a_saga_with_the_data_that_is_made_of_it() {
    let saga = Saga::<Order>::define("started", 1)
        .start_on("orders", "order.placed.v1", |placed: Confirmed| Order {
            customer: placed.by,
            ..Order::default()
        })
        .step("reserve", ReserveCredit::of)
        .compensate()
        .build()
        .unwrap();
    let definition = saga.definition();
    let payload = json!({ "by": "ada" });

    let data = definition.start_data("orders", "order.placed.v1", &payload).unwrap();

    assert_eq!(data["customer"], "ada");
    assert_eq!(definition.starts().collect::<Vec<_>>(), [("orders", "order.placed.v1")]);
    let unread = definition.start_data("orders", "order.placed.v1", &json!({})).unwrap_err();
    assert_eq!(unread.kind(), crate::Kind::Unreadable);
    definition.start_data("orders", "other", &payload).unwrap_err();
}

mod corners;
mod locks;
