//! Breadth first through everything that can happen, so that what is found is the smallest.

use std::collections::VecDeque;

use crate::definition::Definition;

use super::hash::Map;
use super::story::Story;
use super::world::{Move, Stage, World};
use super::{Assumptions, Broken, Counterexample, FAULTS_MAX, STATES_MAX, Stop, WALK_MOVES, WALKS};

/// How far an exploration goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    faults_max: Option<u8>,
    states_max: usize,
}

impl Bounds {
    pub(super) const EXHAUSTIVE: Self = Self { faults_max: None, states_max: STATES_MAX };
    pub(super) const FAULTS: Self = Self { faults_max: Some(FAULTS_MAX), states_max: STATES_MAX };
}

/// What an exploration has seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Explored {
    pub(super) states: usize,
    /// Whether it came to its end.
    pub(super) is_whole: bool,
}

/// Of a world that was seen. Half of a pointer, since there are many edges.
type Number = u32;

fn place(number: Number) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Every world that was seen, and how it was come by first.
#[derive(Default)]
pub(super) struct Seen {
    numbers: Map<World, Number>,
    /// The world before, and the move from there.
    pub(super) from: Vec<Option<(Number, Move)>>,
    pub(super) is_end: Vec<bool>,
    pub(super) edges: Vec<(Number, Number)>,
}

impl Seen {
    /// The number of a world, and whether it is new.
    fn add(&mut self, world: &World, from: Option<(Number, Move)>, is_end: bool) -> (Number, bool) {
        if let Some(number) = self.numbers.get(world) {
            return (*number, false);
        }
        let number = Number::try_from(self.from.len()).expect("fewer worlds than STATES_MAX");
        self.numbers.insert(*world, number);
        self.from.push(from);
        self.is_end.push(is_end);
        (number, true)
    }

    /// The first world from which no end can be reached.
    pub(super) fn endless(&mut self) -> Option<Number> {
        self.edges.sort_unstable_by_key(|(_, to)| *to);
        let mut ends = self.is_end.clone();
        let mut left: Vec<Number> =
            (0..).zip(&ends).filter_map(|(number, is_end)| is_end.then_some(number)).collect();
        while let Some(at) = left.pop() {
            let first = self.edges.partition_point(|(_, to)| *to < at);
            let before = self.edges.iter().skip(first).take_while(|(_, to)| *to == at);
            for (from, _) in before {
                if let Some(ends) = ends.get_mut(place(*from)).filter(|ends| !**ends) {
                    *ends = true;
                    left.push(*from);
                }
            }
        }
        (0..).zip(&ends).find_map(|(number, ends)| (!ends).then_some(number))
    }

    fn moves_to(&self, mut at: Number) -> Vec<Move> {
        let mut moves = Vec::new();
        while let Some(Some((from, by))) = self.from.get(place(at)) {
            moves.push(*by);
            at = *from;
        }
        moves.reverse();
        moves
    }

    fn worlds_to(&self, at: Number) -> Vec<World> {
        let mut numbers = vec![at];
        while let Some(Some((from, _))) = numbers.last().and_then(|at| self.from.get(place(*at))) {
            numbers.push(*from);
        }
        numbers.reverse();
        let by_number: Map<Number, &World> =
            self.numbers.iter().map(|(world, number)| (*number, world)).collect();
        numbers.iter().filter_map(|number| by_number.get(number).map(|world| **world)).collect()
    }
}

/// Explores everything within the bounds.
pub(super) fn explore(
    definition: &Definition,
    by: Assumptions,
    bounds: Bounds,
) -> Result<Explored, Counterexample> {
    let mut stage = Stage::new(definition, by, bounds.faults_max);
    let mut seen = Seen::default();
    match visit(&mut stage, &mut seen, bounds) {
        Ok(()) => {}
        Err((_, Stop::TooLarge)) => {
            return Ok(Explored { states: seen.from.len(), is_whole: false });
        }
        Err((at, Stop::Broken(broken))) => {
            return Err(counterexample(&stage, &seen, at, broken));
        }
    }
    if let Some(at) = seen.endless() {
        return Err(counterexample(&stage, &seen, at, Broken::NoEnd));
    }
    Ok(Explored { states: seen.from.len(), is_whole: true })
}

fn visit(stage: &mut Stage<'_>, seen: &mut Seen, bounds: Bounds) -> Result<(), (Number, Stop)> {
    let first = stage.first();
    let mut left = VecDeque::new();
    seen.add(&first, None, stage.is_end(&first));
    left.push_back((0, first));
    while let Some((at, world)) = left.pop_front() {
        for (by, after) in stage.moves(&world).map_err(|stop| (at, stop))? {
            let (to, is_new) = seen.add(&after, Some((at, by)), stage.is_end(&after));
            seen.edges.push((at, to));
            if !is_new {
                continue;
            }
            if let Some(broken) = stage.judge(&after) {
                return Err((to, Stop::Broken(broken)));
            }
            if seen.from.len() >= bounds.states_max {
                return Err((to, Stop::TooLarge));
            }
            left.push_back((to, after));
            if seen.from.len().is_multiple_of(TELL_EVERY) {
                tell(stage, seen.from.len(), left.len());
            }
        }
    }
    Ok(())
}

/// An exploration says how far it is whenever it has seen so many states more.
const TELL_EVERY: usize = 100_000;

#[expect(
    clippy::print_stderr,
    reason = "it runs inside of tests, where nobody listens to traces, and would be taken for one that hangs"
)]
fn tell(stage: &Stage<'_>, states: usize, left: usize) {
    let saga = stage.orchestrator.definition.identity();
    eprintln!("{saga}: {states} states are seen, and {left} of them still to be gone on from");
}

fn counterexample(stage: &Stage<'_>, seen: &Seen, at: Number, broken: Broken) -> Counterexample {
    Counterexample {
        saga: stage.orchestrator.definition.identity().to_string(),
        story: Story::tell(stage, &seen.moves_to(at), &seen.worlds_to(at), &broken),
        broken,
    }
}

/// Random schedules of the whole, each by its own seed. Answers how many there were.
pub(super) fn wander(definition: &Definition, by: Assumptions) -> Result<u64, Counterexample> {
    let mut stage = Stage::new(definition, by, None);
    for seed in 0..WALKS {
        match walk(&mut stage, seed) {
            Ok(()) => {}
            // What was seen so far has a number; no walk can see more.
            Err((_, _, Stop::TooLarge)) => return Ok(seed),
            Err((moves, worlds, Stop::Broken(broken))) => {
                return Err(Counterexample {
                    saga: format!("{} (random schedule {seed})", definition.identity()),
                    story: Story::tell(&stage, &moves, &worlds, &broken),
                    broken,
                });
            }
        }
    }
    Ok(WALKS)
}

type Walked = (Vec<Move>, Vec<World>, Stop);

fn walk(stage: &mut Stage<'_>, seed: u64) -> Result<(), Walked> {
    let mut dice = seed;
    let mut moves = Vec::new();
    let mut worlds = vec![stage.first()];
    for _ in 0..WALK_MOVES {
        let Some(world) = worlds.last() else { break };
        let mut next = match stage.moves(world) {
            Ok(next) => next,
            Err(stop) => return Err((moves, worlds, stop)),
        };
        if next.is_empty() {
            break;
        }
        let (by, after) = next.swap_remove(roll(&mut dice, next.len()));
        let broken = stage.judge(&after);
        moves.push(by);
        worlds.push(after);
        if let Some(broken) = broken {
            return Err((moves, worlds, Stop::Broken(broken)));
        }
    }
    Ok(())
}

/// Numbers from a seed: the same seed, the same schedule (splitmix64).
pub(super) fn roll(dice: &mut u64, sides: usize) -> usize {
    *dice = dice.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *dice;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(sides).unwrap_or(1)).unwrap_or(0)
}

/// Every pair of a saga's state and its participants' effects that is seen.
#[cfg(test)]
pub(super) fn judged(
    definition: &Definition,
    by: Assumptions,
) -> std::collections::BTreeSet<(String, Vec<i8>)> {
    let mut stage = Stage::new(definition, by, None);
    let mut seen = Seen::default();
    visit(&mut stage, &mut seen, Bounds::EXHAUSTIVE).unwrap();
    seen.numbers.keys().map(|world| stage.judged_by(world)).collect()
}
