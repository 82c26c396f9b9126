//! What seldom happens: each rule of the machine that no ordinary story needs.

use super::*;

fn retry(step: &str) -> Verb {
    Verb::Retry { step: Some(step.into()) }
}

#[test]
fn a_saga_that_was_ended_takes_no_answer_and_asks_for_nothing() {
    let acting = started();
    let correlation = acting.correlation("reserve-credit");

    let ended = acting
        .when_operator("ada", Verb::Abort)
        .when(reply(correlation.clone(), Answer::Done))
        .then_verdict(Verdict::Duplicate)
        .then_asks(&[]);

    let noted = Happening::Answered {
        operation: Operation::Action,
        epoch: correlation.epoch,
        answer: Answer::Done,
        verdict: Verdict::Duplicate,
    };
    assert!(ended.journal().iter().any(|entry| entry.what == noted), "an effect may be there");
    ended.when_time_passes(4000 * SECOND).then_is(Status::Aborted).then_asks(&[]);
}

#[test]
fn a_saga_begins_once() {
    started().when(Input::Start).then_verdict(Verdict::Duplicate).then_asks(&[]);
}

#[test]
fn an_answer_about_what_nobody_knows_is_noted_and_changes_nothing() {
    let acting = started();
    let known = acting.correlation("reserve-credit");
    let others = [
        Correlation { step: "other".into(), ..known.clone() },
        Correlation { epoch: Epoch::new(9), ..known.clone() },
        Correlation { saga: SagaId::from_uuid(uuid::Uuid::nil()), ..known },
    ];

    for other in others {
        started().when(reply(other, Answer::Done)).then_verdict(Verdict::Unfit).then_asks(&[]);
    }
}

#[test]
fn a_compensation_is_over_when_the_action_is_blocked() {
    let undoing = started().when_cancelled();
    let correlation = undoing.correlation("reserve-credit");

    undoing.when(reply(correlation, Answer::Blocked)).then_is(Status::Compensated);
}

#[test]
fn an_answer_that_must_not_come_asks_a_person() {
    let cases = [
        (started(), "reserve-credit", Answer::Blocked, Trouble::Blocked),
        (started().when_cancelled(), "reserve-credit", Answer::Refused, Trouble::Refused),
        (
            at_pivot().when_done("capture-payment", &()),
            "send-mail",
            Answer::Refused,
            Trouble::Refused,
        ),
    ];
    for (scenario, step, answer, trouble) in cases {
        let correlation = scenario.correlation(step);

        let stuck = scenario.when(reply(correlation, answer)).then_stuck(&[step]);

        assert_eq!(stuck.instance().step(step).unwrap().trouble(), Some(&trouble));
    }
}

#[test]
fn a_person_may_ask_again_for_what_is_under_way_and_for_nothing_else() {
    started()
        .when_operator("ada", retry("reserve-credit"))
        .then_asks(&["do reserve-credit"])
        .then_commands(|commands| {
            assert_eq!(commands[0].instruction.correlation.epoch, Epoch::new(2));
            assert_eq!(commands[0].request.payload["customer"], "ada");
        });
    reserved().when_operator("ada", retry("reserve-credit")).then_verdict(Verdict::Unfit);
    reserved().when_operator("ada", retry("send-mail")).then_verdict(Verdict::Unfit);
    reserved().when_operator("ada", retry("other")).then_verdict(Verdict::Unfit);
    reserved().when_operator("ada", Verb::Retry { step: None }).then_verdict(Verdict::Unfit);
}

#[test]
fn a_stuck_compensation_is_asked_for_again_with_all_its_attempts() {
    let stuck = at_pivot()
        .when_refused("capture-payment", &())
        .when_time_passes(80 * SECOND)
        .then_stuck(&["allocate-stock"])
        .when_undone("reserve-credit");

    stuck
        .when_operator("ada", Verb::Retry { step: None })
        .then_asks(&["undo allocate-stock"])
        .then_stuck(&[])
        .then_commands(|commands| {
            assert_eq!(commands[0].instruction.correlation.epoch, Epoch::new(3));
        })
        .when_time_passes(40 * SECOND)
        .then_asks(&["undo allocate-stock"]);
}

#[test]
fn between_two_compensations_is_a_wait_also_where_the_action_has_none() {
    let undoing = || at_pivot().when_refused("capture-payment", &());

    undoing().when_time_passes(30 * SECOND).then_asks(&[]);
    undoing().when_time_passes(31 * SECOND).then_asks(&["undo allocate-stock"]);
}

#[test]
fn who_is_asked_again_is_in_no_trouble_any_more() {
    let parked = at_pivot().when_time_passes(60 * SECOND).then_stuck(&["capture-payment"]);
    let trouble = |scenario: &Scenario<Order>| {
        scenario.instance().step("capture-payment").unwrap().trouble().cloned()
    };
    assert_eq!(trouble(&parked), Some(Trouble::NoAnswer { attempts: 2 }));

    let again = parked.when_operator("ada", Verb::Retry { step: None });

    assert_eq!(trouble(&again), None);
}

#[test]
fn what_was_asked_for_once_is_asked_for_again_as_it_was() {
    let saga = Saga::<Order>::define("changing", 1)
        .parallel(|branches| {
            branches
                .step("reserve", ReserveCredit::of)
                .compensate()
                .step("rename", QuoteShipping::of)
                .on_reply(|order, ()| order.customer = "bob".to_owned())
                .no_effect()
        })
        .build()
        .unwrap();
    let same = |commands: &[CommandMessage]| {
        assert_eq!(commands[0].request.key, "ada");
        assert_eq!(commands[0].request.payload["customer"], "ada");
    };
    let renamed = || Scenario::given(&saga, &order()).when_done("rename", &());

    renamed().when_operator("ada", retry("reserve")).then_commands(same);
    renamed().when_time_passes(70 * SECOND).then_commands(same);
    renamed().when_cancelled().then_asks(&["undo reserve"]).then_commands(same);
}

#[test]
fn what_was_refused_may_be_asked_for_anew_as_the_data_is_by_then() {
    let saga = Saga::<Order>::define("anew", 1)
        .step("reserve", ReserveCredit::of)
        .retry(Retry::every(SECOND).attempts(2))
        .on_refused(|order, refusal| {
            order.cents -= refusal.missing_cents;
            OnRefused::Anew
        })
        .compensate()
        .build()
        .unwrap();
    let refusal = CreditLimitExceeded { missing_cents: 999 };
    let asks_for = |cents: i64| {
        move |commands: &[CommandMessage]| assert_eq!(commands[0].request.payload["cents"], cents)
    };
    let refused = || Scenario::given(&saga, &order()).when_refused("reserve", &refusal);

    refused().then_asks(&[]).when_cancelled().then_is(Status::Compensated).then_asks(&[]);
    let again = || refused().when_time_passes(2 * SECOND);
    again().then_asks(&["do reserve"]).then_commands(asks_for(1000)).then_commands(|commands| {
        assert_eq!(commands[0].instruction.correlation.epoch, Epoch::new(2));
    });
    again().when_cancelled().then_asks(&["undo reserve"]).then_commands(asks_for(1000));
    // Not for ever.
    again().when_refused("reserve", &refusal).then_is(Status::Compensated);
}

#[test]
fn a_compensation_is_not_old_because_its_action_was() {
    let hour = 3600 * SECOND;
    let saga = Saga::<Order>::define("old", 1)
        .step("reserve", ReserveCredit::of)
        .timeout(3 * hour, OnTimeout::Compensate)
        .retry_compensation(Retry::every(SECOND).max_age(4 * hour))
        .compensate()
        .build()
        .unwrap();

    Scenario::given(&saga, &order())
        .when_time_passes(3 * hour)
        .then_asks(&["undo reserve"])
        .when_time_passes(3 * hour + SECOND)
        .then_asks(&["undo reserve"]);
}

#[test]
fn a_step_that_waits_to_be_asked_again_has_nothing_to_undo() {
    let delayed = || {
        deciding(OnRefused::Retry)
            .when_refused("reserve", &CreditLimitExceeded { missing_cents: 7 })
    };

    let undone = delayed().when_cancelled().then_asks(&[]).then_is(Status::Compensated);
    assert_eq!(undone.instance().step("reserve").unwrap().status(), StepStatus::Refused);
    delayed()
        .when_operator("ada", retry("reserve"))
        .then_asks(&["do reserve"])
        .when_done("reserve", &HELD)
        .then_asks(&["do pay"]);
}

#[test]
fn a_timer_that_came_early_is_wished_for_at_its_time() {
    let acting = started();
    let due = acting.instance().step("reserve-credit").unwrap().due().unwrap();
    let tick = Tick::Step { step: "reserve-credit".into(), epoch: Epoch::FIRST, attempt: 1 };
    let saga = create_order();
    let early = Input::Tick(tick.clone());

    let turn = step(saga.definition(), acting.instance(), early, due - SECOND).unwrap();

    assert_eq!(turn.timers, [Timer { due, tick }]);
    assert_eq!(&turn.instance, acting.instance());
}

#[test]
fn signals_that_nobody_took_end_with_their_saga() {
    let kept = Scenario::given(&confirmed_order(), &order())
        .when_signal(&Confirmed { by: "bob".to_owned() })
        .when_cancelled()
        .when_undone("reserve")
        .then_is(Status::Compensated);

    assert_eq!(kept.instance().signals, []);
    Scenario::given(&confirmed_order(), &order())
        .when_cancelled()
        .when_signal(&Confirmed { by: "bob".to_owned() })
        .then_verdict(Verdict::TooLate);
}

/// A saga that is the step "ship" of another one, in the first epoch.
fn part_of(answer: Option<Answer>) -> (Saga<Order>, Instance, Instruction) {
    let ship = Saga::<Order>::define("ship", 1)
        .step("allocate", AllocateStock::of)
        .compensate()
        .build()
        .unwrap();
    let correlation = Correlation {
        saga: SagaId::from_uuid(uuid::Uuid::from_u128(1)),
        definition: "whole/1".into(),
        step: "ship".into(),
        operation: Operation::Action,
        epoch: Epoch::FIRST,
    };
    let parent = Parent { reply_to: "whole.replies".into(), correlation: correlation.clone() };
    let instance = ship.instance(saga_id(), &order(), at(0)).unwrap().part_of(parent);
    let mut turn = step(ship.definition(), &instance, Input::Start, at(0)).unwrap();
    if let Some(answer) = answer {
        let of = turn.commands[0].instruction.correlation.clone();
        turn = step(ship.definition(), &turn.instance, reply(of, answer), at(0)).unwrap();
    }
    let asked = Instruction { correlation, reply_to: "whole.replies".into(), deadline: None };
    (ship, turn.instance, asked)
}

fn asked_for(
    part: &(Saga<Order>, Instance, Instruction),
    change: fn(&mut Correlation),
) -> Transition {
    let (saga, instance, asked) = part;
    let mut asked = asked.clone();
    change(&mut asked.correlation);
    step(saga.definition(), instance, Input::Part(asked), at(1)).unwrap()
}

#[test]
fn a_part_answers_the_newest_epoch_of_its_own_whole_and_nobody_else() {
    let done = part_of(Some(Answer::Done));

    let again = asked_for(&done, |asked| asked.epoch = Epoch::new(3));
    assert_eq!(again.replies[0].correlation.epoch, Epoch::new(3));
    let newer = (done.0.clone(), again.instance, done.2.clone());
    assert_eq!(asked_for(&newer, |_| {}).verdict, Verdict::Stale);
    assert_eq!(asked_for(&done, |asked| asked.step = "bill".into()).verdict, Verdict::Unfit);
    let stranger = |asked: &mut Correlation| asked.saga = SagaId::from_uuid(uuid::Uuid::nil());
    assert_eq!(asked_for(&done, stranger).verdict, Verdict::Unfit);
    let whole = started();
    let nobodys =
        step(create_order().definition(), whole.instance(), Input::Part(done.2.clone()), at(1));
    assert_eq!(nobodys.unwrap().verdict, Verdict::Unfit);
}

#[test]
fn a_part_that_is_undone_or_ended_tells_its_whole_what_that_is() {
    let refused = part_of(Some(Answer::Refused));
    assert_eq!(asked_for(&refused, |_| {}).replies[0].answer, Answer::Refused);

    let undone = asked_for(&refused, |asked| {
        asked.operation = Operation::Compensation;
        asked.epoch = Epoch::new(2);
    });
    assert_eq!(undone.replies[0].answer, Answer::Done);

    let running = part_of(None);
    assert_eq!(asked_for(&running, |_| {}).replies, []);
    let abort = Input::Operator { by: "ada".into(), verb: Verb::Abort };
    let aborted = step(running.0.definition(), &running.1, abort, at(1)).unwrap();
    assert_eq!(aborted.replies, [], "a person decides what that means for the whole");
}

#[test]
fn a_part_that_is_under_way_is_undone_when_its_whole_wants_it() {
    let undo = |asked: &mut Correlation| {
        asked.operation = Operation::Compensation;
        asked.epoch = Epoch::new(2);
    };

    let undoing = asked_for(&part_of(None), undo);
    assert_eq!(undoing.instance.cause(), Some(&Cause::Parent));
    assert_eq!(undoing.commands[0].instruction.correlation.operation, Operation::Compensation);
    let running = part_of(None);
    let again = asked_for(&(running.0, undoing.instance, running.2), undo);
    assert_eq!((again.commands.len(), again.replies.len()), (0, 0));
}
