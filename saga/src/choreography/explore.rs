//! Every order in which the events of a choreography can reach its services, over the real decisions.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::rc::Rc;

use super::decide::{self, Course, Status};
use super::{Kind, Map, Role};
use crate::barrier::{Barrier, Decision, Ended};

/// What is left out, to see that it is missed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Without it, a service applies each event once, as any consumer does, and undoes what is there.
    pub(super) barrier: bool,
    /// Without it, an expiry undoes the saga although its pivot may be done.
    pub(super) asks_the_pivot: bool,
}

impl Rules {
    pub(super) const SHIPPED: Self = Self { barrier: true, asks_the_pivot: true };
}

/// How many worlds there are, and how many of them are the last of a run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Explored {
    pub(super) worlds: usize,
    pub(super) completed: usize,
    pub(super) undone: usize,
}

/// The shortest way into something wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) wrong: &'static str,
    pub(super) way: Vec<String>,
}

/// Nothing that was emitted is ever forgotten: it comes again, later, and in any order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    emitted: BTreeSet<String>,
    barriers: Vec<Barrier>,
    /// How often each step was done, and how often undone.
    effects: Vec<(u8, u8)>,
    course: Course,
    /// What each service has claimed; looked at only where there is no barrier.
    claimed: BTreeSet<(String, String)>,
}

/// How a world was come to.
struct Way {
    last: String,
    before: Option<Rc<Way>>,
}

pub(super) fn explore(map: &Map, rules: Rules) -> Result<Explored, Fault> {
    let first = World::begin(map);
    let mut seen: HashSet<World> = HashSet::from([first.clone()]);
    let mut open: VecDeque<(World, Option<Rc<Way>>)> = VecDeque::from([(first, None)]);
    let mut explored = Explored { worlds: 0, completed: 0, undone: 0 };
    while let Some((world, way)) = open.pop_front() {
        explored.worlds += 1;
        let told = |wrong| Fault { wrong, way: steps_of(way.clone()) };
        world.is_sound(map).map_err(told)?;
        let mut is_last = true;
        for (happened, next) in world.successors(map, rules) {
            if next == world {
                continue;
            }
            is_last = false;
            if seen.insert(next.clone()) {
                let before = way.clone();
                open.push_back((next, Some(Rc::new(Way { last: happened, before }))));
            }
        }
        if is_last {
            world.has_ended(map).map_err(told)?;
            match world.course.status {
                Status::Completed => explored.completed += 1,
                _ => explored.undone += 1,
            }
        }
    }
    Ok(explored)
}

fn steps_of(mut way: Option<Rc<Way>>) -> Vec<String> {
    let mut steps = Vec::new();
    while let Some(step) = way {
        steps.push(step.last.clone());
        way = step.before.clone();
    }
    steps.reverse();
    steps
}

impl World {
    fn begin(map: &Map) -> Self {
        let (start, step) = map.start().unwrap();
        let mut world = Self {
            emitted: step.emits.iter().map(ToString::to_string).collect(),
            barriers: vec![Barrier::default(); map.steps.len()],
            effects: vec![(0, 0); map.steps.len()],
            course: Course::BEGUN,
            claimed: BTreeSet::new(),
        };
        let request = decide::request(crate::correlation::Operation::Action);
        world.barriers[start] = Barrier::default().after(request, Decision::Run, Ended::Done);
        world.effects[start] = (1, 0);
        world
    }

    fn successors(&self, map: &Map, rules: Rules) -> Vec<(String, Self)> {
        let mut successors = Vec::new();
        let services: BTreeMap<&str, ()> =
            map.steps.iter().map(|step| (&*step.service, ())).collect();
        for event in &self.emitted {
            for service in services.keys() {
                let claim = ((*service).to_owned(), event.clone());
                let roles = map.roles(service, event);
                if roles.is_empty() || (!rules.barrier && self.claimed.contains(&claim)) {
                    continue;
                }
                let mut worlds = vec![self.clone()];
                for role in roles {
                    worlds = worlds
                        .iter()
                        .flat_map(|world| world.taken(map, rules, role, event))
                        .collect();
                }
                for mut world in worlds {
                    if !rules.barrier {
                        world.claimed.insert(claim.clone());
                    }
                    successors.push((format!("{service} takes {event}"), world));
                }
            }
        }
        let expired = self.course.clone().expires(map);
        if expired != self.course {
            let mut world = self.clone();
            world.course = expired;
            let expiry = map.expiry.as_ref().unwrap().event.to_string();
            let called_off = map.pivot().and_then(|(_, pivot)| match &pivot.kind {
                Some(Kind::Pivot { called_off }) => Some(called_off.to_string()),
                _ => None,
            });
            let event = called_off.filter(|_| !rules.asks_the_pivot).unwrap_or(expiry);
            world.emitted.insert(event);
            successors.push(("the deadline passes".to_owned(), world));
        }
        successors
    }

    /// What one role makes of this world: two worlds where the step may refuse.
    fn taken(&self, map: &Map, rules: Rules, role: Role, event: &str) -> Vec<Self> {
        let (Role::Act(index) | Role::Undo(index) | Role::CallOff(index)) = role else {
            let mut world = self.clone();
            world.course = match role {
                Role::Hear => world.course.hears(map, event),
                _ => world.course.fails(),
            };
            return vec![world];
        };
        let step = &map.steps[index];
        let decided = match rules.barrier {
            true => self.decided(role, index),
            false => self.carelessly(role, index),
        };
        let Some((request, decision)) = decided else { return vec![self.clone()] };
        let after = |ended| {
            let mut world = self.clone();
            world.barriers[index] = self.barriers[index].after(request, decision, ended);
            world
        };
        match (role, decision) {
            (Role::Act(_), Decision::Run) => {
                let mut done = after(Ended::Done);
                done.effects[index].0 += 1;
                done.emitted.extend(step.emits.iter().map(ToString::to_string));
                let refusal = step.refuses.iter().map(|event| {
                    let mut refused = after(Ended::Refused);
                    refused.emitted.insert(event.to_string());
                    refused
                });
                refusal.chain([done.clone()]).collect()
            }
            (Role::Undo(_), Decision::Run) => {
                let mut undone = after(Ended::Done);
                undone.effects[index].1 += 1;
                vec![undone]
            }
            (Role::CallOff(_), _) => {
                let mut blocked = after(Ended::Done);
                if let Some(Kind::Pivot { called_off }) = &step.kind {
                    blocked.emitted.insert(called_off.to_string());
                }
                vec![blocked]
            }
            _ => vec![after(Ended::Done)],
        }
    }

    fn decided(&self, role: Role, index: usize) -> Option<(crate::barrier::Request, Decision)> {
        let barrier = self.barriers[index];
        decide::of_step(role, barrier, |request| barrier.decide(request))
    }

    /// As a service does that has no barrier: an action runs, and a compensation undoes what is there by then.
    fn carelessly(&self, role: Role, index: usize) -> Option<(crate::barrier::Request, Decision)> {
        let is_there = self.effects[index].0 > self.effects[index].1;
        match role {
            Role::Undo(_) if !is_there => None,
            Role::Act(_) | Role::Undo(_) => {
                let operation = match role {
                    Role::Act(_) => crate::correlation::Operation::Action,
                    _ => crate::correlation::Operation::Compensation,
                };
                Some((decide::request(operation), Decision::Run))
            }
            _ => self.decided(role, index),
        }
    }

    /// What holds at every moment.
    fn is_sound(&self, map: &Map) -> Result<(), &'static str> {
        if self.effects.iter().any(|(done, _)| *done > 1) {
            return Err("an effect happened twice");
        }
        if self.effects.iter().any(|(done, undone)| undone > done) {
            return Err("something was undone that was not there");
        }
        let is_done = |index: usize| self.effects[index].0 > 0;
        let undone = self.effects.iter().any(|(_, undone)| *undone > 0);
        if undone && map.pivot().is_some_and(|(pivot, _)| is_done(pivot)) {
            return Err("something was undone although the pivot is done");
        }
        Ok(())
    }

    /// What holds when nothing more can happen.
    fn has_ended(&self, map: &Map) -> Result<(), &'static str> {
        match self.course.status {
            Status::Running | Status::Expiring => Err("it never ends"),
            Status::Completed if self.effects.iter().all(|effect| *effect == (1, 0)) => Ok(()),
            Status::Completed => Err("it is completed, and an effect is missing"),
            Status::Undone => {
                let stays = |(index, (done, undone)): (usize, &(u8, u8))| {
                    done > undone && map.steps[index].kind != Some(Kind::NoEffect)
                };
                match self.effects.iter().enumerate().any(stays) {
                    true => Err("it is undone, and an effect has stayed"),
                    false => Ok(()),
                }
            }
        }
    }
}
