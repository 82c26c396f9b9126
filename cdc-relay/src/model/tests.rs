//! The worlds that are explored.
//!
//! `MODEL=full` explores larger ones too, for some minutes; `SEED=` takes the random walks of
//! another seed.

use std::collections::BTreeSet;
use std::time::Duration;

use stateright::{Checker, Chooser, HasDiscoveries, Model};

use super::properties::{
    CHECKPOINTED, ENDS_WELL, IN_ORDER, NO_FALSE_GAP, NOTHING_LOST, ONCE, SHARED, SPLIT,
    UNDISTURBED, ZOMBIE,
};
use super::rule::Broken;
use super::wal::Wal;
use super::{Action, Arrivals, Relays, State};
use crate::progress::Limits;

/// So far off that it is never due.
const NEVER: Duration = Duration::from_secs(3_600);

/// Two messages fill a batch, a third splits its transaction; foreign log is checkpointed at once.
const LIMITS: Limits = Limits {
    batch_records: 2,
    batch_bytes: 100,
    linger: Duration::ZERO,
    behind_age: NEVER,
    split_bytes: 2,
    split_age: NEVER,
    idle_bytes: 300,
    idle_age: NEVER,
};

fn world(relays: usize, faults_max: u8, wal: Wal) -> Relays {
    Relays {
        relays,
        faults_max,
        wal,
        limits: LIMITS,
        has_slot: true,
        arrivals: Arrivals::AtOnce,
        cuts: false,
        broken: None,
    }
}

/// Relays that come to a database without a slot.
fn fresh(relays: usize, faults_max: u8) -> Relays {
    Relays { has_slot: false, ..world(relays, faults_max, Wal::short()) }
}

fn cut(world: Relays) -> Relays {
    Relays { cuts: true, ..world }
}

fn late_arrivals(relays: usize, faults_max: u8) -> Relays {
    Relays { arrivals: Arrivals::Later, ..world(relays, faults_max, Wal::short()) }
}

/// Explores a world to its end: nothing that must never be is, and each of these is reached.
fn holds(world: Relays, reached: &[&'static str]) {
    let says = format!("{} relays, {} faults", world.relays, world.faults_max);
    let checker =
        world.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    tell(&says, checker.unique_state_count(), checker.max_depth());
    for property in checker.model().properties() {
        if property.expectation.discovery_is_failure() {
            checker.assert_no_discovery(property.name);
        }
    }
    for name in reached {
        checker.assert_any_discovery(name);
    }
}

fn is_full() -> bool {
    std::env::var("MODEL").is_ok_and(|value| value == "full")
}

#[expect(clippy::print_stderr, reason = "how much was explored is the point of the test")]
fn tell(what: &str, count: usize, depth: usize) {
    eprintln!("{what}: {count} states, {depth} deep");
}

#[test]
fn two_relays_publish_each_message_once_in_order_whatever_befalls_them() {
    holds(world(2, 1, Wal::of_all_shapes()), &[ENDS_WELL, SPLIT, SHARED, ZOMBIE]);
    holds(world(2, 2, Wal::short()), &[ENDS_WELL, SHARED, ZOMBIE]);
    holds(cut(world(2, 1, Wal::split())), &[ENDS_WELL, SPLIT, SHARED, ZOMBIE]);
    if is_full() {
        holds(cut(world(2, 1, Wal::of_all_shapes())), &[ENDS_WELL, SPLIT, SHARED, ZOMBIE]);
        holds(world(2, 2, Wal::of_all_shapes()), &[ENDS_WELL, SPLIT, SHARED, ZOMBIE]);
        holds(world(2, 3, Wal::split()), &[ENDS_WELL, SPLIT, SHARED, ZOMBIE]);
        holds(world(2, 4, Wal::short()), &[ENDS_WELL, SHARED, ZOMBIE]);
    }
}

#[test]
fn three_relays_publish_each_message_once_in_order_whatever_befalls_them() {
    holds(world(3, 2, Wal::one_message()), &[ENDS_WELL, SHARED, ZOMBIE]);
    if is_full() {
        holds(world(3, 2, Wal::of_all_shapes()), &[ENDS_WELL, SPLIT, SHARED, ZOMBIE]);
        holds(world(3, 3, Wal::short()), &[ENDS_WELL, SHARED, ZOMBIE]);
    }
}

#[test]
fn relays_that_come_to_a_fresh_database_publish_each_message_once_in_order() {
    holds(fresh(2, 1), &[ENDS_WELL, SHARED, ZOMBIE]);
    if is_full() {
        holds(fresh(3, 2), &[ENDS_WELL, SHARED, ZOMBIE]);
    }
}

#[test]
fn records_that_arrive_late_are_published_once_in_order_too() {
    holds(late_arrivals(2, 1), &[ENDS_WELL, SHARED, ZOMBIE]);
    if is_full() {
        holds(late_arrivals(3, 2), &[ENDS_WELL, SHARED, ZOMBIE]);
    }
}

/// Walks at random, where a fault is one choice in sixteen.
#[derive(Clone, Debug)]
struct Walk;

impl Walk {
    /// splitmix64: the same seed, the same walk.
    fn roll(dice: &mut u64, sides: usize) -> usize {
        *dice = dice.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = *dice;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % (sides as u64)).unwrap()
    }
}

impl Chooser<Relays> for Walk {
    type State = u64;

    fn new_state(&self, seed: u64) -> u64 {
        seed
    }

    fn choose_initial_state(&self, _: &mut u64, _: &[State]) -> usize {
        0
    }

    fn choose_action(&self, dice: &mut u64, _: &State, actions: &[Action]) -> usize {
        let is_fault = |at: &usize| matches!(actions[*at], Action::Befalls(_));
        let (faults, others): (Vec<_>, Vec<_>) = (0..actions.len()).partition(is_fault);
        let rare = others.is_empty() || (!faults.is_empty() && Walk::roll(dice, 16) == 0);
        let from = if rare { faults } else { others };
        from[Walk::roll(dice, from.len())]
    }
}

#[test]
fn three_relays_in_a_long_row_of_faults_publish_each_message_once_in_order() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let states = if is_full() { 2_000_000 } else { 40_000 };
    for world in [cut(world(3, 12, Wal::of_all_shapes())), cut(fresh(3, 12))] {
        let checker = world
            .checker()
            .finish_when(HasDiscoveries::AnyFailures)
            .target_state_count(states)
            .spawn_simulation(seed, Walk)
            .join();

        tell(&format!("walks of SEED={seed}"), checker.state_count(), checker.max_depth());
        for (name, path) in checker.discoveries() {
            let property = checker.model().property(name);
            assert!(!property.expectation.discovery_is_failure(), "SEED={seed} {name}: {path}");
        }
    }
}

/// Switches a rule off: a way is found to what must never be.
fn breaks(broken: Broken, world: Relays, never: &'static str) {
    let checker = Relays { broken: Some(broken), ..world }
        .checker()
        .finish_when(HasDiscoveries::AnyOf(BTreeSet::from([never])))
        .spawn_bfs()
        .join();
    let path = checker.assert_any_discovery(never);
    tell(
        &format!("{broken:?} breaks that {never}"),
        checker.unique_state_count(),
        path.into_actions().len(),
    );
}

#[test]
fn without_a_rule_of_leadership_a_message_is_doubled_or_a_relay_refuses() {
    // By itself each epoch still fences the one before: nothing is lost, but nobody leads in peace.
    let early = Broken::InitialisesBeforeItHoldsTheSlot;
    breaks(early, world(2, 0, Wal::short()), UNDISTURBED);
    breaks(early, world(2, 1, Wal::short()), NO_FALSE_GAP);
    breaks(Broken::ReadsBeforeAllAreInitialised, world(2, 1, Wal::short()), ONCE);
    breaks(Broken::FirstCommitsOnB, world(2, 1, Wal::short()), ONCE);
    breaks(Broken::ReadsToTheLastStableOffset, world(2, 1, Wal::short()), ONCE);
    breaks(Broken::AsksTheSlotLast, world(2, 1, Wal::short()), NO_FALSE_GAP);
    breaks(Broken::CreatesTheSlotBeforeTheIntent, fresh(2, 1), NO_FALSE_GAP);
}

#[test]
fn without_a_rule_of_publishing_a_message_is_lost_or_doubled_or_out_of_order() {
    breaks(Broken::SavesTheCheckpointApart, world(2, 1, Wal::short()), NOTHING_LOST);
    breaks(Broken::CommitsTwiceAtOnce, world(2, 1, Wal::short()), NOTHING_LOST);
    breaks(Broken::FillsBeforeAllAcks, late_arrivals(1, 0), IN_ORDER);
    breaks(Broken::TakesUncertainForCommitted, world(1, 1, Wal::short()), NOTHING_LOST);
    let all_shapes = world(1, 1, Wal::of_all_shapes());
    breaks(Broken::KeepsProducersAfterUncertain, all_shapes, ONCE);
}

#[test]
fn without_a_rule_of_position_a_message_is_lost_or_doubled_or_the_slot_runs_ahead() {
    breaks(Broken::FlushesWhatIsSealed, world(1, 1, Wal::short()), NOTHING_LOST);
    breaks(Broken::FlushesIdleLogAtOnce, world(1, 1, Wal::of_all_shapes()), NOTHING_LOST);
    // What the slot is sent from there would do; but the next session can not know that.
    breaks(Broken::FlushesInsideATransaction, world(1, 1, Wal::split()), CHECKPOINTED);
    breaks(Broken::FlushesInsideATransaction, world(1, 1, Wal::split()), NO_FALSE_GAP);
    breaks(Broken::ForgetsTheCheckpoint, world(1, 1, Wal::short()), ONCE);
    breaks(Broken::ForgetsThePartial, world(1, 1, Wal::split()), ONCE);
    breaks(Broken::DiscardsByChangeLsn, world(1, 1, Wal::of_all_shapes()), NOTHING_LOST);
}
