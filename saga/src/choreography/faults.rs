//! Everything that can be wrong with a choreography.

use std::collections::{BTreeMap, BTreeSet};

use super::{Kind, Map, Step};
use crate::draft::{NAME_BYTES_MAX, STEPS_MAX};
use crate::retry::WAIT_MAX;

/// All faults, in the order in which a reader of the declaration meets them.
pub(super) fn of(map: &Map) -> Vec<String> {
    let mut faults = Vec::new();
    whole(map, &mut faults);
    names(map, &mut faults);
    start(map, &mut faults);
    for step in &map.steps {
        alone(map, step, &mut faults);
    }
    emitters(map, &mut faults);
    events(map, &mut faults);
    ends(map, &mut faults);
    circles(map, &mut faults);
    point_of_no_return(map, &mut faults);
    faults
}

fn whole(map: &Map, faults: &mut Vec<String>) {
    if map.version == 0 {
        faults.push("versions begin with 1".to_owned());
    }
    if map.steps.len() > STEPS_MAX {
        faults.push(format!("{} steps are more than {STEPS_MAX}", map.steps.len()));
    }
    match &map.expiry {
        None => faults.push("nothing says by when it has ended: say ends_within".to_owned()),
        Some(expiry) if expiry.within.is_zero() || expiry.within > WAIT_MAX => {
            faults.push("its deadline is not between nothing and a year".to_owned());
        }
        Some(_) => {}
    }
    let services: BTreeSet<&str> = map.steps.iter().map(|step| &*step.service).collect();
    for service in map.topics.keys().filter(|service| !services.contains(&***service)) {
        faults.push(format!("{service} publishes, and has no step"));
    }
}

fn names(map: &Map, faults: &mut Vec<String>) {
    let steps = map.steps.iter().flat_map(|step| [&*step.service, &*step.name]);
    let compensations = map.steps.iter().filter_map(Step::compensation);
    let topics = map.topics.values().map(|topic| &**topic);
    let events = map.events().into_keys();
    let all = steps.chain(compensations).chain(topics).chain(events).chain([&*map.name]);
    for name in all.collect::<BTreeSet<_>>() {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            faults.push(format!("{name:?} is no name: it has 1 to {NAME_BYTES_MAX} bytes"));
        }
    }
    if map.name.contains('/') {
        faults.push("its name has a slash".to_owned());
    }
    let mut seen = BTreeSet::new();
    for step in &map.steps {
        for name in [Some(&*step.name), step.compensation()].into_iter().flatten() {
            if !seen.insert(name) {
                faults.push(format!("two steps or compensations are called {name}"));
            }
        }
    }
}

fn start(map: &Map, faults: &mut Vec<String>) {
    let starts: Vec<&Step> = map.steps.iter().filter(|step| step.on.is_none()).collect();
    match starts.as_slice() {
        [] => faults.push("nothing starts it".to_owned()),
        [start] => {
            if start.emits.len() > 1 {
                faults.push(format!("{} starts it and emits more than one event", start.name));
            }
            if !start.refuses.is_empty() {
                faults
                    .push(format!("{} starts it and may refuse: then do not start it", start.name));
            }
            if matches!(start.kind, Some(Kind::Pivot { .. })) {
                faults.push(format!(
                    "{} starts it and is its pivot: nothing is left to undo",
                    start.name
                ));
            }
        }
        several => {
            let names: Vec<&str> = several.iter().map(|step| &*step.name).collect();
            faults.push(format!("more than one step starts it: {}", names.join(", ")));
        }
    }
}

/// What can be said of a step without the others.
fn alone(map: &Map, step: &Step, faults: &mut Vec<String>) {
    let name = &step.name;
    if step.kind.is_none() {
        faults.push(format!(
            "the effect of {name} is compensated by nobody: say compensated_by, no_effect, pivot or retriable"
        ));
    }
    if step.emits.is_empty() {
        faults.push(format!("{name} emits nothing, so nobody knows when it is done"));
    }
    let Some(on) = &step.on else { return };
    let emitted = map.steps.iter().any(|other| other.emits.contains(on));
    if emitted {
        return;
    }
    if map.events().contains_key(&**on) {
        faults.push(format!(
            "{name} waits for {on}, which undoes the saga: what is to be done then is a compensation"
        ));
    } else {
        faults.push(format!("{name} waits for {on}, which nobody emits"));
    }
}

fn emitters(map: &Map, faults: &mut Vec<String>) {
    let mut emitters: BTreeMap<&str, usize> = BTreeMap::new();
    let of_steps = map.steps.iter().flat_map(Step::events);
    for event in of_steps.chain(map.expiry.as_ref().map(|expiry| &*expiry.event)) {
        *emitters.entry(event).or_default() += 1;
    }
    for (event, _) in emitters.into_iter().filter(|(_, times)| *times > 1) {
        faults.push(format!(
            "{event} is emitted in more than one place, and says no longer what has happened"
        ));
    }
}

fn events(map: &Map, faults: &mut Vec<String>) {
    for step in &map.steps {
        for event in &step.emits {
            let handled = map.steps.iter().any(|other| other.on.as_ref() == Some(event));
            let ends = map.ends.contains(event);
            if !handled && !ends {
                faults.push(format!("{event} is handled by nobody, and does not end the saga"));
            }
            if handled && ends {
                faults.push(format!("{event} ends the saga, and something waits for it"));
            }
        }
    }
}

fn ends(map: &Map, faults: &mut Vec<String>) {
    if map.ends.is_empty() {
        faults.push("no event ends it: say ends_with".to_owned());
    }
    for end in &map.ends {
        if !map.steps.iter().any(|step| step.emits.contains(end)) {
            let fault = match map.events().contains_key(&**end) {
                true => format!("{end} undoes the saga: that ends it anyway"),
                false => format!("{end} ends the saga, and nobody emits it"),
            };
            faults.push(fault);
        }
    }
}

fn circles(map: &Map, faults: &mut Vec<String>) {
    let reached = map.reach(None);
    let mut told: BTreeSet<usize> = BTreeSet::new();
    for (index, step) in map.steps.iter().enumerate() {
        let mut behind: BTreeSet<usize> = BTreeSet::new();
        for (next, later) in map.steps.iter().enumerate() {
            if later.on.as_ref().is_some_and(|on| step.emits.contains(on)) {
                behind.extend(map.reach_from(Some(next), None));
            }
        }
        if behind.contains(&index) {
            // The others of the same circle are behind this one, and lead to it.
            let circle: Vec<usize> = behind
                .into_iter()
                .filter(|other| map.reach_from(Some(*other), None).contains(&index))
                .collect();
            if told.insert(index) {
                let names = circle.iter().filter_map(|index| map.steps.get(*index));
                let names: Vec<&str> = names.map(|step| &*step.name).collect();
                faults.push(format!("it goes round in a circle: {}", names.join(", ")));
            }
            told.extend(circle);
        } else if !reached.contains(&index) && step.on.is_some() && is_led_to(map, step) {
            faults.push(format!("nothing leads from the start to {}", step.name));
        }
    }
}

/// Whether somebody emits what the step waits for; if not, that is the fault.
fn is_led_to(map: &Map, step: &Step) -> bool {
    step.on.as_ref().is_some_and(|on| map.steps.iter().any(|other| other.emits.contains(on)))
}

/// What may and may not happen before, beside and behind the pivot.
fn point_of_no_return(map: &Map, faults: &mut Vec<String>) {
    let pivots: Vec<&Step> =
        map.steps.iter().filter(|step| matches!(step.kind, Some(Kind::Pivot { .. }))).collect();
    if pivots.len() > 1 {
        let names: Vec<&str> = pivots.iter().map(|step| &*step.name).collect();
        faults.push(format!("it has more than one pivot: {}", names.join(", ")));
        return;
    }
    let Some((pivot, the_pivot)) = map.pivot() else { return without_pivot(map, faults) };
    let behind = map.reach_from(Some(pivot), None);
    for (index, step) in map.steps.iter().enumerate().filter(|(index, _)| *index != pivot) {
        let name = &step.name;
        if behind.contains(&index) {
            if step.compensation().is_some() {
                faults.push(format!(
                    "{name} is compensated, and stands behind the pivot, where nothing is undone"
                ));
            }
            if !step.refuses.is_empty() {
                faults.push(format!("{name} may refuse behind the pivot, when it is too late"));
            }
            continue;
        }
        if step.kind == Some(Kind::Retriable) {
            faults.push(format!("{name} is retriable before the pivot: its effect would stay when the saga is undone"));
        }
        if !step.refuses.is_empty() && map.reach(Some(name)).contains(&pivot) {
            faults.push(format!(
                "{name} may refuse when {} is done, which does not wait for it",
                the_pivot.name
            ));
        }
    }
}

fn without_pivot(map: &Map, faults: &mut Vec<String>) {
    for step in &map.steps {
        if step.kind == Some(Kind::Retriable) {
            faults.push(format!("{} is retriable, and no pivot stands before it", step.name));
        }
    }
}
