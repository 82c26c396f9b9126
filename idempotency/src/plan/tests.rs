use std::collections::HashSet;

use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::failure::{Cause, Reason};

/// What a planted message does when it is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nature {
    Good,
    /// Its own failure, as often as it is run, up to this many times.
    Fails(u32),
    Rejects,
    /// As many transactions collide on it.
    Collides(u32),
    /// It takes as many transactions along, which those behind it find out, or the commit.
    Loses(u32),
}

/// A batch's life in memory: what transactions do is undone when they are lost.
struct World {
    natures: Vec<Nature>,
    /// Whether a handler is called with all records of a segment at once.
    together: bool,
    /// The call that has taken the open transaction along, which nobody has found out yet.
    lost: Option<Range<usize>>,
    applied: Vec<usize>,
    parked: Vec<usize>,
    dead: Vec<usize>,
    /// One letter for each thing that happened, for tables of expectations.
    history: Vec<String>,
}

fn park() -> Fate {
    Fate::Park(Cause::new(Reason::Failed))
}

enum Ended {
    Well,
    Blamed(Range<usize>, Fate, bool),
    Collided,
    Lost(Range<usize>),
}

impl World {
    fn new(natures: &[Nature], together: bool) -> Self {
        Self {
            natures: natures.to_vec(),
            together,
            lost: None,
            applied: Vec::new(),
            parked: Vec::new(),
            dead: Vec::new(),
            history: Vec::new(),
        }
    }

    /// A call fails for the first of its messages that does not want to; with one message it is known which.
    fn call(&mut self, records: &[usize]) -> Ended {
        let (Some(first), Some(last)) = (records.first(), records.last()) else {
            return Ended::Well;
        };
        let call = *first..last + 1;
        for record in records {
            match &mut self.natures[*record] {
                Nature::Good | Nature::Fails(0) | Nature::Collides(0) | Nature::Loses(0) => {}
                Nature::Fails(times) => {
                    *times -= 1;
                    return Ended::Blamed(call, park(), true);
                }
                Nature::Rejects => {
                    return Ended::Blamed(call, Fate::Bury(Cause::new(Reason::Rejected)), false);
                }
                Nature::Collides(times) => {
                    *times -= 1;
                    return Ended::Collided;
                }
                Nature::Loses(times) => {
                    *times -= 1;
                    self.lost = Some(call);
                    return Ended::Well;
                }
            }
        }
        Ended::Well
    }

    fn run<K: Hash + Eq + Clone>(&mut self, plan: &Plan<K>, segment: Range<usize>) -> Ended {
        if let Some(call) = self.lost.take() {
            return Ended::Lost(call);
        }
        let runnable: Vec<usize> = segment.filter(|at| plan.aside(*at).is_none()).collect();
        if self.together {
            return self.call(&runnable);
        }
        for record in runnable {
            if let Some(call) = self.lost.take() {
                return Ended::Lost(call);
            }
            let ended = self.call(&[record]);
            if !matches!(ended, Ended::Well) {
                return ended;
            }
        }
        Ended::Well
    }

    /// Works until the plan is done, within a bound that no plan needs.
    fn work<K: Hash + Eq + Clone + std::fmt::Debug>(&mut self, plan: &mut Plan<K>) {
        let mut savepoints = 0;
        for _ in 0..100_000 {
            match plan.next() {
                Next::Done => return,
                Next::Run { records, guarded } => {
                    self.history.push(format!(
                        "{}{}-{}",
                        if guarded { "s" } else { "r" },
                        records.start,
                        records.end
                    ));
                    match self.run(plan, records) {
                        Ended::Well => {
                            savepoints += usize::from(guarded);
                            plan.ran();
                        }
                        Ended::Blamed(call, fate, again) => {
                            if !guarded {
                                savepoints = 0;
                            }
                            plan.failed(call, fate, again);
                        }
                        Ended::Collided => {
                            savepoints = 0;
                            plan.lost(true);
                        }
                        Ended::Lost(call) => {
                            savepoints = 0;
                            self.history.push(format!("l{}-{}", call.start, call.end));
                            plan.failed_and_lost(call, park(), true);
                        }
                    }
                    assert!(savepoints <= SAVEPOINTS_MAX);
                }
                Next::Commit { .. } if self.lost.is_some() => {
                    savepoints = 0;
                    let call = self.lost.take().unwrap();
                    self.history.push(format!("l{}-{}", call.start, call.end));
                    plan.failed_and_lost(call, park(), true);
                }
                Next::Commit { until } => {
                    self.history.push(format!("c{until}"));
                    for record in plan.start()..until {
                        match plan.aside(record) {
                            None => self.applied.push(record),
                            Some(Aside::Fate(Fate::Bury(_))) => self.dead.push(record),
                            Some(Aside::Fate(Fate::Park(_) | Fate::Call) | Aside::Behind) => {
                                self.parked.push(record);
                            }
                        }
                    }
                    savepoints = 0;
                    plan.committed(until);
                }
            }
        }
        panic!("the plan does not end: {plan:?}");
    }
}

/// Records `0..` with these natures, each with a key of its own; a call per record.
fn check(natures: &[Nature], width: usize, history: &str) {
    let keys = (0..natures.len()).map(Some).collect();
    let mut plan = Plan::new(keys, |_| false, Width::new(width), 1);
    let mut world = World::new(natures, false);

    world.work(&mut plan);

    assert_eq!(world.history.join(" "), history);
}

use Nature::{Collides, Fails, Good, Loses, Rejects};

#[test]
fn a_batch_in_which_nothing_fails_is_one_run_without_a_savepoint() {
    check(&[Good; 5], 500, "r0-5 c5");
    check(&[], 500, "r0-0 c0");
}

#[test]
fn what_failed_is_tried_again_behind_a_savepoint_and_then_set_aside() {
    check(&[Good, Good, Fails(9), Good], 500, "r0-4 s0-2 s2-3 s2-3 s3-4 c4");
    check(&[Good, Fails(1), Good], 500, "r0-3 s0-1 s1-2 s2-3 c3");
    check(&[Rejects, Good], 500, "r0-2 s0-1 s1-2 c2");
}

#[test]
fn a_collision_halves_the_transaction_down_to_one_record_and_success_adds_one() {
    check(&[Collides(1), Good, Good, Good], 4, "r0-4 r0-2 c2 r2-4 c4");
    check(
        &[Collides(3), Good, Good, Good, Good, Good, Good, Good],
        8,
        "r0-8 r0-4 r0-2 r0-1 c1 r1-3 c3 r3-6 c6 r6-8 c8",
    );
}

#[test]
fn who_took_the_transaction_along_is_tried_again_and_then_set_aside_whoever_found_it_out() {
    check(&[Good, Loses(9), Good], 500, "r0-3 l1-2 s0-1 s1-2 s2-3 l1-2 s0-1 s1-2 s2-3 c3");
    check(&[Good, Loses(1)], 500, "r0-2 l1-2 s0-1 s1-2 c2");
    check(&[Loses(1), Rejects], 500, "r0-2 l0-1 s0-1 s1-2 s1-2 c2");
}

#[test]
fn a_call_with_many_messages_is_halved_until_the_bad_one_stands_alone() {
    let mut natures = [Good; 8];
    natures[5] = Fails(99);
    let keys = (0..8).map(Some).collect();
    let mut plan = Plan::new(keys, |_| false, Width::new(500), 1);
    let mut world = World::new(&natures, true);

    world.work(&mut plan);

    assert_eq!(world.history.join(" "), "r0-8 s0-4 s4-8 s4-6 s4-5 s5-6 s5-6 s5-6 s6-8 c8");
    assert_eq!((world.applied, world.parked), (vec![0, 1, 2, 3, 4, 6, 7], vec![5]));
}

#[test]
fn a_transaction_keeps_a_bounded_number_of_savepoints() {
    let natures: Vec<Nature> = (0..100).map(|n| if n % 2 == 0 { Good } else { Rejects }).collect();
    let keys = (0..100).map(Some).collect();
    let mut plan = Plan::new(keys, |_| false, Width::new(500), 0);
    let mut world = World::new(&natures, false);

    world.work(&mut plan);

    let commits = world.history.iter().filter(|step| step.starts_with('c')).count();
    assert_eq!((world.applied.len(), world.dead.len(), commits), (50, 50, 4));
}

#[test]
fn messages_of_a_key_that_is_parked_already_are_not_run() {
    let mut plan =
        Plan::new(vec![Some("a"), None, Some("b")], |key| *key == "a", Width::new(500), 1);
    let mut world = World::new(&[Good; 3], false);

    world.work(&mut plan);

    assert_eq!((world.applied, world.parked), (vec![1, 2], vec![0]));
}

#[test]
fn a_message_that_collides_for_ever_is_given_up_alone() {
    let mut plan = Plan::new(vec![Some("a"), Some("b"), Some("a")], |_| false, Width::new(8), 1);

    plan.lost(true);
    assert_eq!((plan.next(), plan.tried()), (Next::Run { records: 0..1, guarded: false }, 1));
    plan.give_up(park());

    assert!(matches!(plan.aside(0), Some(Aside::Fate(Fate::Park(_) | Fate::Call))));
    assert_eq!((plan.aside(1), plan.aside(2)), (None, Some(Aside::Behind)));
}

#[test]
fn each_message_has_a_savepoint_of_its_own_where_none_may_run_twice() {
    let mut plan: Plan<&str> = Plan::each(SAVEPOINTS_MAX);
    let mut ran = Vec::new();

    loop {
        match plan.next() {
            Next::Run { records, guarded } => {
                assert!(guarded && records.len() == 1);
                ran.push(records.start);
                if records.start == 3 && plan.aside(3).is_none() {
                    plan.failed(records, Fate::Park(Cause::new(Reason::Failed)), true);
                } else {
                    plan.ran();
                }
            }
            Next::Commit { until } => {
                assert_eq!(until, SAVEPOINTS_MAX);
                break;
            }
            Next::Done => unreachable!(),
        }
    }

    let expected: Vec<usize> = (0..=3).chain(3..SAVEPOINTS_MAX).collect();
    assert_eq!(ran, expected);
    assert!(plan.aside(3).is_some() && plan.aside(4).is_none());
}

#[test]
fn a_head_that_is_known_to_fail_gets_a_savepoint_at_once_and_no_second_try() {
    let mut plan = Plan::suspicious(vec![Some("a"); 3], Width::new(100));
    let mut world = World::new(&[Fails(9), Good, Good], false);

    world.work(&mut plan);

    assert_eq!(world.history.join(" "), "s0-1 s0-1 s1-3 c3");
    assert_eq!((world.applied, world.parked), (vec![], vec![0, 1, 2]));
}

fn nature() -> impl Strategy<Value = Nature> {
    prop_oneof![
        12 => proptest::strategy::Just(Good),
        2 => (1..4_u32).prop_map(Fails),
        1 => proptest::strategy::Just(Fails(u32::MAX)),
        1 => proptest::strategy::Just(Rejects),
        1 => (1..6_u32).prop_map(Collides),
        1 => (1..6_u32).prop_map(Loses),
        1 => proptest::strategy::Just(Loses(u32::MAX)),
    ]
}

#[test]
fn whatever_fails_each_message_ends_once_and_a_key_keeps_its_order() {
    let batch = proptest::collection::vec((nature(), proptest::option::of(0..6_u8)), 0..80);
    let held = proptest::collection::hash_set(0..6_u8, 0..2);
    let cases = (batch, held, 1..90_usize, 0..3_u32, any::<bool>());
    let mut runner = TestRunner::new(Config { cases: 2000, ..Config::default() });

    runner
        .run(&cases, |(batch, held, width, retries, together)| {
            let (natures, keys): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            let mut plan =
                Plan::new(keys.clone(), |key| held.contains(key), Width::new(width), retries);
            let mut world = World::new(&natures, together);

            world.work(&mut plan);

            let mut all = [&world.applied[..], &world.parked, &world.dead].concat();
            all.sort_unstable();
            assert_eq!(all, (0..keys.len()).collect::<Vec<_>>(), "each ends exactly once");
            assert!(world.applied.is_sorted() && world.parked.is_sorted());
            let mut parked: HashSet<u8> = held;
            for (record, key) in keys.iter().enumerate() {
                let Some(key) = key else { continue };
                if world.parked.contains(&record) {
                    parked.insert(*key);
                }
                assert_eq!(
                    parked.contains(key),
                    world.parked.contains(&record),
                    "what stands behind a parked message of its key is parked too: {record}"
                );
            }
            Ok(())
        })
        .unwrap();
}
