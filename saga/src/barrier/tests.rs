use super::*;

const ACTION: Operation = Operation::Action;
const COMPENSATION: Operation = Operation::Compensation;

fn barrier(action: Option<(u32, Ended)>, compensation: Option<u32>) -> Barrier {
    Barrier {
        action: action.map(|(epoch, ended)| Past { epoch: Epoch::new(epoch), ended }),
        compensation: compensation.map(Epoch::new),
        undoing: None,
    }
}

fn request(operation: Operation, epoch: u32, late: bool) -> Request {
    Request { operation, epoch: Epoch::new(epoch), late }
}

#[track_caller]
fn check(before: Barrier, asked: (Operation, u32), decision: Decision) {
    let (operation, epoch) = asked;

    assert_eq!(before.decide(request(operation, epoch, false)), decision, "{before:?} {asked:?}");
}

#[test]
fn an_action_runs_once_and_its_repetitions_are_answered_alike() {
    let done = barrier(Some((1, Ended::Done)), None);
    let refused = barrier(Some((1, Ended::Refused)), None);

    check(barrier(None, None), (ACTION, 1), Decision::Run);
    check(done, (ACTION, 1), Decision::Repeat(Answer::Done));
    check(done, (ACTION, 3), Decision::Repeat(Answer::Done));
    check(refused, (ACTION, 1), Decision::Repeat(Answer::Refused));
}

#[test]
fn a_refused_action_runs_again_in_a_higher_epoch_and_never_in_a_lower_one() {
    let refused = barrier(Some((3, Ended::Refused)), None);

    check(refused, (ACTION, 5), Decision::Run);
    check(refused, (ACTION, 3), Decision::Repeat(Answer::Refused));
    check(refused, (ACTION, 1), Decision::Repeat(Answer::Refused));
}

#[test]
fn a_compensation_undoes_what_is_there_and_nothing_else() {
    check(barrier(Some((1, Ended::Done)), None), (COMPENSATION, 2), Decision::Run);
    check(barrier(Some((1, Ended::Refused)), None), (COMPENSATION, 2), Decision::Void);
    check(barrier(None, None), (COMPENSATION, 2), Decision::Void);
    check(
        barrier(Some((1, Ended::Done)), Some(2)),
        (COMPENSATION, 2),
        Decision::Repeat(Answer::Done),
    );
    check(barrier(None, Some(2)), (COMPENSATION, 3), Decision::Repeat(Answer::Done));
}

#[test]
fn what_is_compensated_stays_so() {
    for action in [None, Some((1, Ended::Done)), Some((1, Ended::Refused))] {
        for epoch in [1, 2, 3] {
            let compensated = barrier(action, Some(2));
            check(compensated, (ACTION, epoch), Decision::Repeat(Answer::Blocked));
        }
    }
}

#[test]
fn a_compensation_of_a_direction_that_was_given_up_undoes_nothing() {
    let again = barrier(Some((3, Ended::Done)), None);

    check(again, (COMPENSATION, 2), Decision::Stale);
    check(again, (COMPENSATION, 3), Decision::Stale);
    check(again, (COMPENSATION, 4), Decision::Run);
}

#[test]
fn an_action_after_its_deadline_is_refused_and_stays_so_in_its_epoch() {
    let late = request(ACTION, 1, true);
    let none = barrier(None, None);
    let refused = barrier(Some((1, Ended::Refused)), None);
    let done = barrier(Some((1, Ended::Done)), None);

    assert_eq!(none.decide(late), Decision::Miss);
    assert_eq!(none.after(late, Decision::Miss, Ended::Done), refused);
    // By the clock of another moment it would have been in time.
    check(refused, (ACTION, 1), Decision::Repeat(Answer::Refused));
    assert_eq!(refused.decide(request(ACTION, 3, true)), Decision::Repeat(Answer::Refused));
    // What has an effect has it also after the deadline.
    assert_eq!(done.decide(late), Decision::Repeat(Answer::Done));
}

#[test]
fn nothing_is_decided_while_the_action_is_under_way_outside() {
    let calling = barrier(Some((1, Ended::Calling)), None);

    check(calling, (ACTION, 1), Decision::Wait);
    check(calling, (COMPENSATION, 2), Decision::Wait);
    check(calling, (COMPENSATION, 1), Decision::Stale);
}

#[test]
fn only_what_is_run_voided_or_missed_is_remembered() {
    let done = barrier(Some((1, Ended::Done)), None);
    let ask = |before: Barrier, operation, epoch| {
        let request = request(operation, epoch, false);
        before.after(request, before.decide(request), Ended::Refused)
    };

    assert_eq!(ask(barrier(None, None), ACTION, 1), barrier(Some((1, Ended::Refused)), None));
    assert_eq!(ask(done, ACTION, 2), done);
    assert_eq!(ask(done, COMPENSATION, 2), barrier(Some((1, Ended::Done)), Some(2)));
    assert_eq!(ask(barrier(None, None), COMPENSATION, 2), barrier(None, Some(2)));
    assert_eq!(ask(done, COMPENSATION, 1), done);
    assert_eq!(ask(barrier(None, Some(2)), ACTION, 1), barrier(None, Some(2)));
}

/// Every order of the commands of a step, each up to twice, that a directed exploration finds: whatever comes, the effect
/// is there at most once, and after a compensation that was told as done it is not there, for good.
#[test]
fn in_every_order_of_commands_the_effect_happens_once_and_stays_undone() {
    // An action, its compensation, and what a person has retried.
    let requests = [(ACTION, 1), (COMPENSATION, 2), (ACTION, 3), (COMPENSATION, 4)];
    let mut states = vec![(Barrier::default(), 0_u32, 0_u32)];
    let mut seen = std::collections::HashSet::new();
    while let Some((before, done, undone)) = states.pop() {
        if !seen.insert((before, done, undone)) {
            continue;
        }
        for (operation, epoch) in requests {
            for late in [false, true] {
                for ended in [Ended::Done, Ended::Refused] {
                    let request = request(operation, epoch, late && operation == ACTION);
                    let decision = before.decide(request);
                    let after = before.after(request, decision, ended);
                    let runs = decision == Decision::Run;
                    let done =
                        done + u32::from(runs && operation == ACTION && ended == Ended::Done);
                    let undone = undone + u32::from(runs && operation == COMPENSATION);
                    let compensated = after.compensation.is_some();

                    assert!(done <= 1 && undone <= done, "{before:?} {request:?}");
                    assert!(!compensated || done == undone, "{before:?} {request:?}");
                    states.push((after, done, undone));
                }
            }
        }
    }
    assert!(seen.len() > 10, "{seen:?}");
}

#[test]
fn a_compensation_that_is_made_outside_is_decided_once_it_is_recorded() {
    let done = barrier(Some((1, Ended::Done)), None);
    let asked = request(COMPENSATION, 2, false);
    let under_way = done.after(asked, Decision::Run, Ended::Calling);

    assert_eq!(under_way, Barrier { undoing: Some(Epoch::new(2)), ..done });
    assert!(under_way.is_calling(COMPENSATION, Epoch::new(2)));
    assert!(!under_way.is_calling(COMPENSATION, Epoch::new(3)));
    assert!(!under_way.is_calling(ACTION, Epoch::new(1)));
    check(under_way, (COMPENSATION, 2), Decision::Wait);
    check(under_way, (COMPENSATION, 3), Decision::Wait);
    check(under_way, (COMPENSATION, 1), Decision::Stale);
    check(under_way, (ACTION, 3), Decision::Wait);
    assert_eq!(
        under_way.after(asked, Decision::Run, Ended::Done),
        barrier(Some((1, Ended::Done)), Some(2))
    );
}

#[test]
fn an_action_that_is_made_outside_is_that_of_its_epoch() {
    let calling = barrier(Some((2, Ended::Calling)), None);

    assert!(calling.is_calling(ACTION, Epoch::new(2)));
    assert!(!calling.is_calling(ACTION, Epoch::new(1)));
    assert!(!barrier(Some((2, Ended::Done)), None).is_calling(ACTION, Epoch::new(2)));
    assert!(!calling.is_calling(COMPENSATION, Epoch::new(2)));
}
