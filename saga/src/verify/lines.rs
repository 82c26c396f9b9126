//! Whether a saga has the locks that it takes itself to have, and stands in the lines in which it waits.

use serde::Deserialize;

use crate::instance::{Instance, StepStatus};
use crate::transition::Input;

/// A saga's place in the line of a lock.
#[derive(Debug, Deserialize)]
pub(super) struct Place {
    lock: Box<str>,
    key: String,
    is_held: bool,
}

/// What is wrong. Keys are not told: they are data.
pub(super) fn faults(instance: &Instance, places: &[Place], inputs: &[Input]) -> Vec<String> {
    let mut faults = Vec::new();
    let place = |lock: &str, key: &str| {
        places.iter().find(|place| *place.lock == *lock && place.key == key)
    };
    for state in instance.steps() {
        let Some(lock) = state.lock() else { continue };
        let name = state.name();
        for key in lock.held() {
            if !place(name, key).is_some_and(|place| place.is_held) {
                faults.push(format!(
                    "it takes itself for the one who has the lock {name}, and is not"
                ));
            }
        }
        let waits = matches!(state.status(), StepStatus::Acting | StepStatus::StuckActing);
        if let Some(key) = lock.next().filter(|_| waits)
            && place(name, key).is_none()
        {
            faults.push(format!("it waits for the lock {name}, and does not stand in its line"));
        }
    }
    for place in places.iter().filter(|place| place.is_held) {
        let state = instance.step(&place.lock).and_then(|state| state.lock());
        let knows = state.is_some_and(|lock| lock.held().contains(&place.key));
        let is_word = |input: &Input| matches!(input, Input::Held { step, key } if *step == place.lock && *key == place.key);
        if !knows && !inputs.iter().any(is_word) {
            faults.push(format!("it has the lock {}, and does not know it", place.lock));
        }
    }
    faults
}
